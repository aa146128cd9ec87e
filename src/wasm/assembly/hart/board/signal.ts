/**
 * How a hart reaches the others: the I/O worker's doorbell, other harts' wake words, the machine's
 * end.
 *
 * The doorbell loses no wake-up: a hart first or-s its bit, then looks whether the I/O worker
 * sleeps; the I/O worker first declares that it sleeps, then looks at the bits. In the one order of
 * all sequentially consistent accesses one of the two sees the other. The wake word makes the sleep
 * itself safe: its value was read before the bits, so a bump after that ends the wait at once.
 */

import {
  DOORBELL_EXIT,
  DOORBELL_WORD,
  EXIT_CODE,
  EXIT_NONE,
  EXIT_WORD,
  HART_BASE,
  HART_COUNT,
  HART_STRIDE,
  HART_WAKE_WORD,
  IO_SLEEPING_WORD,
  IO_WAKE_WORD,
  MAX_HARTS,
  STOP_WORD,
} from "../layout";

/** Harts of this machine, never more than the layout has room for. */
export function countHarts(): u32 {
  return min(load<u32>(HART_COUNT), MAX_HARTS);
}

/** Address of a word in the block of hart `id`, which must exist. */
export function addressOfHartWord(id: u32, offset: u32): usize {
  return HART_BASE + id * HART_STRIDE + offset;
}

/** Tells the I/O worker that there is something to do. */
export function ringDoorbell(bits: u32): void {
  atomic.or<u32>(DOORBELL_WORD, bits);
  if (atomic.load<i32>(IO_SLEEPING_WORD) !== 0) {
    atomic.add<i32>(IO_WAKE_WORD, 1);
    atomic.notify(IO_WAKE_WORD, 1);
  }
}

/** Makes hart `id` look at its interrupts and requests, also out of WFI. */
export function wakeHart(id: u32): void {
  const word: usize = addressOfHartWord(id, HART_WAKE_WORD);
  atomic.add<i32>(word, 1);
  atomic.notify(word, 1);
}

/** Ends the machine; the first reason counts. */
export function requestExit(reason: u32, code: u32): void {
  if (atomic.cmpxchg<u32>(EXIT_WORD, EXIT_NONE, reason) === EXIT_NONE) {
    atomic.store<u32>(EXIT_CODE, code);
  }
  ringDoorbell(DOORBELL_EXIT);
  for (let id: u32 = 0; id < countHarts(); id++) wakeHart(id);
}

/** The host or the machine itself wants the harts to leave: no wait may go on. */
export function isStopping(): bool {
  return atomic.load<i32>(STOP_WORD) !== 0 || atomic.load<u32>(EXIT_WORD) !== EXIT_NONE;
}
