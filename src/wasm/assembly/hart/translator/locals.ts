/**
 * The locals of a region's function. The guest's x registers are parameters, which regions hand on
 * to each other: V8 keeps most of them in the stack, where what was not written stays as it is. Of
 * f registers those that the region uses have a local each; between regions they are in memory.
 *
 * And which pages are kept (memory_access.ts): one for the loads, and one for the stores, relative
 * to one value of a base register within a block; and for all those relative to what the register
 * holds when a block begins.
 *
 *   parameters   hart, handle, base, LEFT, x1 ... x31, HOPS
 *   i32          SELECTOR ... FLOAT
 *   i64          PC ...
 *   f64          FLOAT_RESULT, f registers
 */

import { area, PAGE_TABLES } from "./area";
import * as w from "./writer";

export const HART: u32 = 0;
export const HANDLE: u32 = 1;
export const BASE: u32 = 2;
/** Instructions that may still be retired. */
export const LEFT: u32 = 3;
/** The x registers: x1 is the first. */
const X1: u32 = 4;
/** How often one region went on in another. */
export const HOPS: u32 = X1 + 31;
const PARAMETERS_END: u32 = HOPS + 1;
/** Where a dispatch goes: structure.ts. */
export const SELECTOR: u32 = PARAMETERS_END;
/** What the function returns. */
export const WHY: u32 = PARAMETERS_END + 1;
/** Handle of the region to go on in, 0 if there is none. */
export const NEXT: u32 = PARAMETERS_END + 2;
/** An address in this memory. */
export const ADDRESS: u32 = PARAMETERS_END + 3;
export const RESULT32: u32 = PARAMETERS_END + 4;
/** FLOAT_DIRTY and FLOAT_HOST. */
export const FLOAT: u32 = PARAMETERS_END + 5;

/** Sets of registers, a bit each. */
export let usedF: u32 = 0;
export let writtenF: u32 = 0;
/** Pages that are kept. */
export let pageCount: u32 = 0;
/** Registers that the block has written. */
let newValues: u32 = 0;

/**
 * Of pages: beyond, all values of a register share one. u8 tables of 32 registers, by which pages
 * are found: of the current value, and of that at the beginning of a block; + 1, for loads and for
 * stores.
 */
const PAGES_MAX: u32 = 48;
const CURRENT_PAGES: u32 = 0;
const FIRST_PAGES: u32 = 64;

/** First local of each kind. */
export const PC: u32 = FLOAT + 1;
const I64_COUNT: u32 = 6;
export const FLOAT_RESULT: u32 = PC + I64_COUNT;
const F0: u32 = FLOAT_RESULT + 1;

/** The guest's address of where to go on; of an access; operands. */
export function site(): u32 {
  return PC + 1;
}

export function va(): u32 {
  return PC + 2;
}

export function operandA(): u32 {
  return PC + 3;
}

export function operandB(): u32 {
  return PC + 4;
}

export function nextBase(): u32 {
  return PC + 5;
}

export function beginUse(): void {
  usedF = 0;
  writtenF = 0;
  pageCount = 0;
  memory.fill(area() + PAGE_TABLES, 0, 128);
}

/** Begins a block: registers hold what they held before. */
export function beginBlockUse(): void {
  const tables = area() + PAGE_TABLES;
  memory.copy(tables + CURRENT_PAGES, tables + FIRST_PAGES, 64);
  newValues = 0;
}

function isNewValue(register: u32): bool {
  return ((newValues >> register) & 1) !== 0;
}

/** The register has another value from now on. */
export function endValue(register: u32): void {
  const current = area() + PAGE_TABLES + CURRENT_PAGES + register;
  store<u8>(current, 0);
  store<u8>(current, 0, 32);
  newValues |= 1 << register;
}

export function useF(register: u32): void {
  usedF |= 1 << register;
}

export function writeF(register: u32): void {
  usedF |= 1 << register;
  writtenF |= 1 << register;
}

/** Notes an access relative to a register; the number of the page that is kept for it. */
export function useBase(register: u32, isWrite: bool): u32 {
  const which = register + (isWrite ? 32 : 0);
  const current = area() + PAGE_TABLES + CURRENT_PAGES + which;
  const known: u32 = load<u8>(current);
  if (known !== 0) return known - 1;
  // Not known: no access yet in this region relative to what a block found, or a new value.
  const first = area() + PAGE_TABLES + FIRST_PAGES + which;
  if (!isNewValue(register) || pageCount >= PAGES_MAX) {
    if (load<u8>(first) === 0) store<u8>(first, ++pageCount);
    store<u8>(current, load<u8>(first));
    return <u32>load<u8>(first) - 1;
  }
  store<u8>(current, ++pageCount);
  return pageCount - 1;
}

/** Writes the declaration of what is no parameter. */
export function declareLocals(): void {
  w.unsigned(3);
  w.unsigned(PC - SELECTOR);
  w.byte(w.I32);
  w.unsigned(I64_COUNT);
  w.byte(w.I64);
  w.unsigned(1 + popcnt(usedF));
  w.byte(w.F64);
}

/** The local of an x register; x0 is a constant and has none. */
export function localX(register: u32): u32 {
  return X1 + register - 1;
}

export function localF(register: u32): u32 {
  return F0 + popcnt(usedF & ((1 << register) - 1));
}

/** The type of a region's function: its parameters and its result. */
export function writeRegionType(): void {
  w.byte(0x60);
  w.unsigned(PARAMETERS_END);
  for (let local: u32 = 0; local < PARAMETERS_END; local++) {
    const isLong = local === BASE || (local >= X1 && local < HOPS);
    w.byte(isLong ? w.I64 : w.I32);
  }
  w.unsigned(1);
  w.byte(w.I32);
}
