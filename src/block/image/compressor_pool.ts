/**
 * Compresses clusters on all processors: on the caller's thread, and on workers that start when
 * there is much to do.
 *
 *   caller --copies a cluster--> slot of shared memory --worker--> the same slot --copies--> caller
 *      \--no slot is free--> compresses it himself meanwhile
 *
 * A worker has a few slots and takes them in turn. No messages go to and fro, which would cost as
 * much as the work: a worker waits for a count of what was asked, the caller looks at the slots
 * whenever he comes with the next cluster, and waits for a count of what was done only when he has
 * nothing else to do.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import { type Compressor, directCompressors } from "../qcow2/compress.ts";
import type { Qcow2CompressionType } from "../qcow2/format.ts";

/** Smaller clusters are compressed before they would have been copied. */
const SHARED_BYTES_MIN = 16 * 1024;
/** So much is compressed by the caller before it is worth to start workers. */
const DIRECT_BYTES = 2 * 1024 * 1024;
/** As QEMU's MAX_COMPRESS_THREADS. */
const WORKER_COUNT_MAX = 4;
/** Slots of a worker: while the caller looks away, it must not run out of work. */
const SLOT_COUNT = 4;

/** Where words are in the shared memory of a worker. */
export const POOL_WORDS = {
  /** 1: the worker has started. */
  ready: 0,
  /** 1: the worker shall end. One that waits for a word can't be terminated. */
  stopped: 1,
  /** Counts what was asked; the worker waits for it. */
  asked: 2,
  /** Counts what was done; the caller waits for it. */
  done: 3,
  /** Two words for each slot: its state, one of SLOT, and the bytes that are there. */
  slots: 4,
} as const;

/** The states of a slot. `failed`: the cluster is there as it was. */
export const SLOT = { asked: 1, done: 2, failed: 3 } as const;

/** What a worker is sent, once. */
export interface PoolMemory {
  /** How. */
  type: Qcow2CompressionType;
  /** See POOL_WORDS. */
  words: Int32Array<SharedArrayBuffer>;
  /** The slots' bytes, one behind the other. */
  bytes: Uint8Array<SharedArrayBuffer>;
  /** Bytes of a slot: a cluster. */
  clusterBytes: number;
}

type Answer = PromiseWithResolvers<Uint8Array | null>;

/** See the module's head. */
export class CompressorPool {
  /** For the type and size of the first cluster: a command writes one image. */
  #workers: PoolWorker[] = [];
  #directBytes = 0;
  #isClosed = false;

  /** A compressor of that type, which works as long as the pool is open. */
  compressor(type: Qcow2CompressionType): Compressor {
    return {
      compress: (cluster) => this.#ask(type, cluster) ?? directCompressors[type].compress(cluster),
    };
  }

  /** Ends the workers; what they have not answered fails. */
  close(): void {
    this.#isClosed = true;
    for (const worker of this.#workers.splice(0)) worker.close();
  }

  /** Gives a cluster to a worker; null: the caller compresses it himself. */
  #ask(type: Qcow2CompressionType, cluster: Uint8Array): Promise<Uint8Array | null> | null {
    if (cluster.length < SHARED_BYTES_MIN || this.#isClosed) return null;
    if (this.#workers.length === 0) {
      this.#directBytes += cluster.length;
      if (this.#directBytes > DIRECT_BYTES) this.#start(type, cluster.length);
    }
    for (const worker of this.#workers) worker.collect();
    for (const worker of this.#workers) {
      const answer = worker.ask(type, cluster);
      if (answer !== null) return answer;
    }
    return null;
  }

  /** One worker less than there are processors: the caller works too. */
  #start(type: Qcow2CompressionType, clusterBytes: number): void {
    const count = Math.min(navigator.hardwareConcurrency - 1, WORKER_COUNT_MAX);
    for (let index = 0; index < count; index++) {
      this.#workers.push(new PoolWorker(`compressor ${index}`, type, clusterBytes));
    }
  }
}

class PoolWorker {
  readonly #worker: Worker;
  readonly #memory: PoolMemory;
  readonly #asked: (Answer | null)[] = new Array(SLOT_COUNT).fill(null);
  #next = 0;
  #isWatched = false;
  #hasFailed = false;

  constructor(name: string, type: Qcow2CompressionType, clusterBytes: number) {
    this.#memory = {
      type,
      words: new Int32Array(new SharedArrayBuffer((POOL_WORDS.slots + SLOT_COUNT * 2) * 4)),
      bytes: new Uint8Array(new SharedArrayBuffer(SLOT_COUNT * clusterBytes)),
      clusterBytes,
    };
    this.#worker = new Worker(new URL("./compress_worker.ts", import.meta.url), {
      type: "module",
      name,
      deno: { permissions: "none" },
    });
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(new BlockError("EIO", `A compressor died: ${event.message}`));
    };
    this.#worker.postMessage(this.#memory);
  }

  /** Takes a cluster, unless the worker has not started yet, or has enough to do. */
  ask(type: Qcow2CompressionType, cluster: Uint8Array): Promise<Uint8Array | null> | null {
    const { words, bytes, clusterBytes } = this.#memory;
    const slot = this.#next;
    if (
      this.#hasFailed || this.#asked[slot] !== null || type !== this.#memory.type ||
      cluster.length !== clusterBytes || Atomics.load(words, POOL_WORDS.ready) === 0
    ) return null;
    this.#next = (slot + 1) % SLOT_COUNT;
    bytes.set(cluster, slot * clusterBytes);
    Atomics.store(words, POOL_WORDS.slots + slot * 2, SLOT.asked);
    Atomics.add(words, POOL_WORDS.asked, 1);
    Atomics.notify(words, POOL_WORDS.asked);
    const answer: Answer = Promise.withResolvers();
    this.#asked[slot] = answer;
    if (!this.#isWatched) this.#watch();
    return answer.promise;
  }

  /** Answers what is done. */
  collect(): void {
    const { words, bytes, clusterBytes, type } = this.#memory;
    for (const [slot, answer] of this.#asked.entries()) {
      const state = Atomics.load(words, POOL_WORDS.slots + slot * 2);
      if (answer === null || state === SLOT.asked) continue;
      this.#asked[slot] = null;
      const length = words[POOL_WORDS.slots + slot * 2 + 1] ?? 0;
      const content = bytes.slice(slot * clusterBytes, slot * clusterBytes + length);
      if (state === SLOT.done) answer.resolve(length === 0 ? null : content);
      // Here as well it fails, and says why.
      else answer.resolve(Promise.try(() => directCompressors[type].compress(content)));
    }
  }

  close(): void {
    const { words } = this.#memory;
    Atomics.store(words, POOL_WORDS.stopped, 1);
    Atomics.add(words, POOL_WORDS.asked, 1);
    Atomics.notify(words, POOL_WORDS.asked);
    this.#worker.terminate();
    this.#fail(new BlockError("ESHUTDOWN", "The compressor was closed"));
  }

  /** Looks again whenever something is done, as long as somebody waits. */
  async #watch(): Promise<void> {
    const { words } = this.#memory;
    this.#isWatched = true;
    for (;;) {
      const seen = Atomics.load(words, POOL_WORDS.done);
      this.collect();
      if (this.#asked.every((answer) => answer === null)) break;
      await Atomics.waitAsync(words, POOL_WORDS.done, seen).value;
    }
    this.#isWatched = false;
  }

  #fail(error: BlockError): void {
    this.#hasFailed = true;
    for (const answer of this.#asked) answer?.reject(error);
    this.#asked.fill(null);
    // Who watches wakes up and ends.
    Atomics.add(this.#memory.words, POOL_WORDS.done, 1);
    Atomics.notify(this.#memory.words, POOL_WORDS.done);
  }
}
