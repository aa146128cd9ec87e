/**
 * Fences that one hart asks of others (SBI RFENCE).
 *
 *   sender                                   target, between two guest instructions
 *     or the bits into HART_REMOTE_WORD        HART_REMOTE_DONE_WORD += 1   (now odd)
 *     wake the target                          bits = exchange(HART_REMOTE_WORD, 0)
 *     wait until its bits are gone             fence
 *       and the done word is even, or moved    HART_REMOTE_DONE_WORD += 1   (now even)
 *
 * A hart that executes nothing (stopped, in WFI, parked by the host) is not waited for: it stores
 * HART_RUNNING first and then looks at its requests, before its first instruction. A sender that
 * waits is such a hart itself and answers requests meanwhile, so two that fence each other both get
 * on.
 */

import {
  HART_REMOTE_DONE_WORD,
  HART_REMOTE_WORD,
  HART_RUNNING,
  HART_STATE_WORD,
  REMOTE_FENCE_I,
  REMOTE_SFENCE,
} from "../layout";
import { flushTlb, hart, hartId } from "../state";
import { dropStaleCode } from "../code";
import { addressOfHartWord, isStopping, wakeHart } from "./signal";

/** A sender looks again after so long even if nobody notified it. */
const FENCE_WAIT_NS: i64 = 100_000;
const FENCE_SPINS: u32 = 200;

/** Does what other harts asked of this one. */
export function handleRemoteRequests(): void {
  const requests: usize = hart + HART_REMOTE_WORD;
  if (atomic.load<u32>(requests) === 0) return;
  const done: usize = hart + HART_REMOTE_DONE_WORD;
  atomic.add<i32>(done, 1);
  const bits: u32 = atomic.xchg<u32>(requests, 0);
  if ((bits & REMOTE_SFENCE) !== 0) flushTlb();
  if ((bits & REMOTE_FENCE_I) !== 0) dropStaleCode();
  atomic.add<i32>(done, 1);
  atomic.notify(done);
}

/** Asks for `bits` of every hart in `targets` (one bit a hart) and waits until it is done. */
export function fenceRemotely(targets: u32, bits: u32): void {
  for (let rest: u32 = targets; rest !== 0; rest &= rest - 1) {
    const id: u32 = ctz(rest);
    atomic.or<u32>(addressOfHartWord(id, HART_REMOTE_WORD), bits);
    if (id !== hartId) wakeHart(id);
  }
  handleRemoteRequests();
  for (let rest: u32 = targets; rest !== 0; rest &= rest - 1) {
    const id: u32 = ctz(rest);
    if (id !== hartId) awaitFence(id, bits);
  }
}

function awaitFence(id: u32, bits: u32): void {
  const requests: usize = addressOfHartWord(id, HART_REMOTE_WORD);
  const done: usize = addressOfHartWord(id, HART_REMOTE_DONE_WORD);
  // Once the bits were taken, the fence that took them ends with the first change of an odd count.
  let taken: bool = false;
  let countWhenTaken: i32 = 0;
  for (let turn: u32 = 0; isRunning(id) && !isStopping(); turn++) {
    const count: i32 = atomic.load<i32>(done);
    if (!taken && (atomic.load<u32>(requests) & bits) === 0) {
      taken = true;
      countWhenTaken = atomic.load<i32>(done);
    }
    if (taken && ((countWhenTaken & 1) === 0 || count !== countWhenTaken)) return;
    if (turn >= FENCE_SPINS) atomic.wait<i32>(done, count, FENCE_WAIT_NS);
    handleRemoteRequests();
  }
}

function isRunning(id: u32): bool {
  return atomic.load<u32>(addressOfHartWord(id, HART_STATE_WORD)) === HART_RUNNING;
}
