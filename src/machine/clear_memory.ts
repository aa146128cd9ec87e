/**
 * Makes a range of the shared memory zero again without touching what was never used: reading an
 * untouched page costs no memory, writing one does.
 *
 * @module
 */

import { nextTurn } from "./event_loop.ts";
import type { GuestMemory } from "./guest_memory.ts";

const PAGE_WORDS = 1024;
/** How much is looked at between two turns of the event loop. */
const TURN_WORDS = 4 * 1024 * 1024;

/** Zeroes `[from, to)`, offsets in the memory, multiples of 4096. */
export async function clearMemory(memory: GuestMemory, from: number, to: number): Promise<void> {
  const end = to >>> 2;
  for (let start = from >>> 2; start < end; start += TURN_WORDS) {
    clearPages(memory.words, start, Math.min(end, start + TURN_WORDS));
    await nextTurn();
  }
}

function clearPages(words: Int32Array, start: number, end: number): void {
  for (let page = start; page < end; page += PAGE_WORDS) {
    if (!isZeroPage(words, page)) words.fill(0, page, page + PAGE_WORDS);
  }
}

function isZeroPage(words: Int32Array, page: number): boolean {
  for (let index = page; index < page + PAGE_WORDS; index += 4) {
    const bits = (words[index] ?? 0) | (words[index + 1] ?? 0) | (words[index + 2] ?? 0) |
      (words[index + 3] ?? 0);
    if (bits !== 0) return false;
  }
  return true;
}
