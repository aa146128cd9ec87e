/**
 * Compresses clusters on all processors: workers that start when the first cluster comes.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import { type Compressor, directCompressors } from "../qcow2/compress.ts";
import type { Qcow2CompressionType } from "../qcow2/format.ts";

/** Smaller clusters are compressed before they would have been sent. */
const WORKER_BYTES_MIN = 16 * 1024;
/** With fewer than these, workers stand in the way of who sends them their work. */
const PROCESSOR_COUNT_MIN = 4;
/** As QEMU's MAX_COMPRESS_THREADS. */
const WORKER_COUNT_MAX = 4;

/** Clusters that go together. */
const GROUP_COUNT_MAX = 8;

/** To a worker: clusters of the same size, one behind the other. */
export interface CompressQuestion {
  /** Comes back with the answer. */
  id: number;
  /** How. */
  type: Qcow2CompressionType;
  /** Of each. */
  clusterBytes: number;
  /** What; moved to the worker. */
  clusters: Uint8Array<ArrayBuffer>;
}

/** From a worker. */
export type CompressAnswer =
  | {
    id: number;
    /** What the clusters were compressed to, one behind the other. */
    bytes: Uint8Array<ArrayBuffer>;
    /** How long each is; 0 for one that does not become smaller. */
    lengths: number[];
  }
  | { id: number; error: string };

/** A cluster that is to be compressed. */
interface Waiting {
  type: Qcow2CompressionType;
  cluster: Uint8Array;
  answer: PromiseWithResolvers<Uint8Array | null>;
}

interface PoolWorker {
  worker: Worker;
  /** Questions without an answer. */
  asked: Map<number, readonly Waiting[]>;
}

/** See the module's head. */
export class CompressorPool {
  #workers: PoolWorker[] = [];
  #nextId = 0;
  /** What came in this turn of the event loop. */
  #waiting: Waiting[] = [];

  /** With fewer processors the messages cost more than the workers do. */
  static get isWorthwhile(): boolean {
    return navigator.hardwareConcurrency >= PROCESSOR_COUNT_MIN;
  }

  /** A compressor of that type, which works as long as the pool is open. */
  compressor(type: Qcow2CompressionType): Compressor {
    return {
      compress: (cluster) =>
        cluster.length < WORKER_BYTES_MIN
          ? directCompressors[type].compress(cluster)
          : this.#compress(type, cluster),
    };
  }

  /** Ends the workers; what they have not answered fails. */
  close(): void {
    for (const pool of this.#workers.splice(0)) {
      pool.worker.terminate();
      fail(pool, new BlockError("ESHUTDOWN", "The compressor was closed"));
    }
  }

  #compress(type: Qcow2CompressionType, cluster: Uint8Array): Promise<Uint8Array | null> {
    if (this.#workers.length === 0) this.#start();
    if (this.#waiting.length === 0) queueMicrotask(() => this.#ask());
    const answer = Promise.withResolvers<Uint8Array | null>();
    // The caller may use it for something else when this returns.
    this.#waiting.push({ type, cluster: cluster.slice(), answer });
    return answer.promise;
  }

  /** A message costs as much as a cluster: clusters that came together go together. */
  #ask(): void {
    const waiting = this.#waiting.splice(0);
    for (let start = 0; start < waiting.length;) {
      const first = waiting[start];
      let end = start + 1;
      while (
        end < start + GROUP_COUNT_MAX && end < waiting.length && isAlike(first, waiting[end])
      ) {
        end++;
      }
      this.#send(waiting.slice(start, end));
      start = end;
    }
  }

  #send(group: readonly Waiting[]): void {
    const [first] = group;
    const worker = this.#workers.toSorted((a, b) => a.asked.size - b.asked.size)[0];
    if (first === undefined || worker === undefined) return;
    const clusterBytes = first.cluster.length;
    const clusters = new Uint8Array(clusterBytes * group.length);
    group.forEach(({ cluster }, index) => clusters.set(cluster, index * clusterBytes));
    const id = this.#nextId++;
    worker.asked.set(id, group);
    const question: CompressQuestion = { id, type: first.type, clusterBytes, clusters };
    worker.worker.postMessage(question, [clusters.buffer]);
  }

  #start(): void {
    const count = Math.min(navigator.hardwareConcurrency, WORKER_COUNT_MAX);
    for (let index = 0; index < count; index++) {
      const worker = new Worker(new URL("./compress_worker.ts", import.meta.url), {
        type: "module",
        name: `compressor ${index}`,
        deno: { permissions: "none" },
      });
      const pool: PoolWorker = { worker, asked: new Map() };
      worker.onmessage = ({ data }: MessageEvent<CompressAnswer>) => settle(pool, data);
      worker.onerror = (event) => {
        event.preventDefault();
        fail(pool, new BlockError("EIO", `A compressor died: ${event.message}`));
      };
      this.#workers.push(pool);
    }
  }
}

function isAlike(first: Waiting | undefined, other: Waiting | undefined): boolean {
  return first?.type === other?.type && first?.cluster.length === other?.cluster.length;
}

function settle({ asked }: PoolWorker, answer: CompressAnswer): void {
  const group = asked.get(answer.id) ?? [];
  asked.delete(answer.id);
  if ("error" in answer) {
    for (const { answer: { reject } } of group) reject(new BlockError("EIO", answer.error));
    return;
  }
  let at = 0;
  group.forEach(({ answer: { resolve } }, index) => {
    const length = answer.lengths[index] ?? 0;
    resolve(length === 0 ? null : answer.bytes.subarray(at, at + length));
    at += length;
  });
}

function fail({ asked }: PoolWorker, error: BlockError): void {
  for (const group of asked.values()) {
    for (const { answer: { reject } } of group) reject(error);
  }
  asked.clear();
}
