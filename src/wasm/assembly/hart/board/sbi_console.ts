/**
 * SBI debug console (SBI 2.0, 12) and the legacy console calls. The guest names physical addresses,
 * and they must all be RAM.
 */

import { CONSOLE_OUT_TAIL_WORD, CONSOLE_RING_BYTES, PAGE_SIZE, RAM_BASE, RAM_GPA } from "../layout";
import { noteWrite } from "../code";
import { setX } from "../state";
import { SBI_ERR_FAILED, SBI_ERR_INVALID_PARAM, SBI_SUCCESS } from "./sbi_errors";
import { isInRam } from "./sbi_hsm";
import { isStopping } from "./signal";
import { readConsole, readConsoleByte, writeConsole, writeConsoleByte } from "./uart";

/** A legacy putchar waits for room, in steps, and gives up after so many. */
const PUTCHAR_WAIT_NS: i64 = 1_000_000;
const PUTCHAR_WAITS: u32 = 100;

/** Writes what there is room for; a1 says how much. */
export function writeDebugConsole(count: u64, low: u64, high: u64): i64 {
  if (high !== 0 || !isInRam(low, count)) return SBI_ERR_INVALID_PARAM;
  const bounded: u32 = <u32> min(count, <u64> CONSOLE_RING_BYTES);
  setX(11, <u64> writeConsole(findRam(low), bounded));
  return SBI_SUCCESS;
}

/** Reads what there is; a1 says how much. */
export function readDebugConsole(count: u64, low: u64, high: u64): i64 {
  if (high !== 0 || !isInRam(low, count)) return SBI_ERR_INVALID_PARAM;
  const bounded: u32 = <u32> min(count, <u64> CONSOLE_RING_BYTES);
  const taken: u32 = readConsole(findRam(low), bounded);
  if (taken !== 0) noteWrites(low, taken);
  setX(11, <u64> taken);
  return SBI_SUCCESS;
}

/** Writes one byte, waiting for room as the legacy call does. */
export function writeByteToConsole(byte: u64): i64 {
  for (let wait: u32 = 0; wait < PUTCHAR_WAITS && !isStopping(); wait++) {
    const tail: i32 = atomic.load<i32>(CONSOLE_OUT_TAIL_WORD);
    if (writeConsoleByte(<u32> byte & 0xff)) return SBI_SUCCESS;
    atomic.wait<i32>(CONSOLE_OUT_TAIL_WORD, tail, PUTCHAR_WAIT_NS);
  }
  return SBI_ERR_FAILED;
}

/** A byte of input, -1 without one. */
export function readByteFromConsole(): i64 {
  return <i64> readConsoleByte();
}

function findRam(gpa: u64): usize {
  return RAM_BASE + <u32> (gpa - RAM_GPA);
}

/** Tells harts that hold decoded code of these pages that it may be stale (code.ts). */
function noteWrites(gpa: u64, length: u32): void {
  const end: u64 = gpa + length;
  for (let page: u64 = gpa & ~(<u64> PAGE_SIZE - 1); page < end; page += PAGE_SIZE) noteWrite(page);
}
