/** What the translator did, as figures in the hart block that anybody may read. */

import { HART_STATISTICS } from "../layout";
import { hart } from "../state";

/** Regions that exist, and bytes of their modules. */
export const STAT_REGIONS: u32 = 0;
export const STAT_BYTES: u32 = 1;
/** Regions made and dropped since the start; instructions in those made. */
export const STAT_MADE: u32 = 2;
export const STAT_DROPPED: u32 = 3;
export const STAT_INSTRUCTIONS_MADE: u32 = 4;
/** Time of the host's compiler before the code could run, and of all of a translation, in us. */
export const STAT_COMPILE_US: u32 = 5;
/** Instructions retired in translated code. */
export const STAT_RETIRED: u32 = 6;
/** Entries from the interpreter; ways back: one instruction is for it, or a jump, or the budget. */
export const STAT_ENTRIES: u32 = 7;
export const STAT_STEPS: u32 = 8;
export const STAT_JUMPS: u32 = 9;
export const STAT_BUDGETS: u32 = 10;
/** Entries that could not be taken, as memory is mapped. */
export const STAT_REFUSED: u32 = 11;
/** Places that were hot, of which nothing could be made. */
export const STAT_FAILED: u32 = 12;

function addressOf(index: u32): u32 {
  return hart + HART_STATISTICS + (index << 3);
}

export function countStatistic(index: u32): void {
  addStatistic(index, 1);
}

export function addStatistic(index: u32, value: u64): void {
  store<u64>(addressOf(index), load<u64>(addressOf(index)) + value);
}

export function setStatistic(index: u32, value: u64): void {
  store<u64>(addressOf(index), value);
}
