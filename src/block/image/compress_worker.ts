/**
 * A worker that compresses clusters in shared memory: see compressor_pool.ts. It is terminated when
 * it has returned from its work.
 *
 * @module
 */

import { directCompressors } from "../qcow2/compress.ts";
import { POOL_WORDS, type PoolMemory, SLOT } from "./compressor_pool.ts";

/** What a worker's global scope has, as far as it is used here. */
interface WorkerScope {
  onmessage: ((event: MessageEvent<PoolMemory>) => void) | null;
}

(self as unknown as WorkerScope).onmessage = ({ data }) => void work(data);

/** Slot after slot, in the order in which they are asked. */
async function work(memory: PoolMemory): Promise<void> {
  const { words, bytes, clusterBytes } = memory;
  const slotCount = bytes.length / clusterBytes;
  Atomics.store(words, POOL_WORDS.ready, 1);
  for (let slot = 0;; slot = (slot + 1) % slotCount) {
    const at = POOL_WORDS.slots + slot * 2;
    for (;;) {
      const seen = Atomics.load(words, POOL_WORDS.asked);
      if (Atomics.load(words, POOL_WORDS.stopped) === 1) return;
      if (Atomics.load(words, at) === SLOT.asked) break;
      Atomics.wait(words, POOL_WORDS.asked, seen);
    }
    await compress(memory, slot);
    Atomics.add(words, POOL_WORDS.done, 1);
    Atomics.notify(words, POOL_WORDS.done);
  }
}

async function compress(memory: PoolMemory, slot: number): Promise<void> {
  const { type, words, bytes, clusterBytes } = memory;
  const at = POOL_WORDS.slots + slot * 2;
  const start = slot * clusterBytes;
  let state: number = SLOT.done;
  words[at + 1] = clusterBytes;
  try {
    // What compresses takes no shared memory.
    const packed = await directCompressors[type].compress(bytes.slice(start, start + clusterBytes));
    if (packed !== null) bytes.set(packed, start);
    words[at + 1] = packed?.length ?? 0;
  } catch {
    state = SLOT.failed;
  }
  Atomics.store(words, at, state);
}
