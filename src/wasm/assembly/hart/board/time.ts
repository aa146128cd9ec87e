/**
 * mtime: ticks of 10 MHz since the machine's start, from the host's clock. All harts of a machine
 * read the same clock, so there is nothing to keep in step.
 */

import { MTIME_ORIGIN } from "../layout";
import { hostTicks } from "./env";

export const NS_PER_TICK: u64 = 100;
export const TICKS_PER_MS: u64 = 10_000;

export function readTime(): u64 {
  return <u64> hostTicks() - atomic.load<u64>(MTIME_ORIGIN);
}

/** Moves the clock so that it now shows `time`: what a store to mtime does. */
export function writeTime(time: u64): void {
  atomic.store<u64>(MTIME_ORIGIN, <u64> hostTicks() - time);
}
