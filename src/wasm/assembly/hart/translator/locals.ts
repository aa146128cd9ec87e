/**
 * The locals of a region's function: registers of the guest that the region uses have one each. And
 * which pages are kept (memory_access.ts): one for the loads, and one for the stores, relative to
 * one value of a base register within a block; and for all those relative to what the register
 * holds when a block begins.
 *
 *   parameters   hart, handle, base
 *   i32          LEFT ... FLOAT
 *   i64          PC ... , x registers
 *   f64          FLOAT_RESULT, f registers
 */

import { area, PAGE_TABLES } from "./area";
import * as w from "./writer";

export const HART: u32 = 0;
export const HANDLE: u32 = 1;
export const BASE: u32 = 2;
/** Instructions that may still be retired. */
export const LEFT: u32 = 3;
/** Where a dispatch goes: structure.ts. */
export const SELECTOR: u32 = 4;
/** What the function returns. */
export const WHY: u32 = 5;
/** Handle of the region to go on in, 0 if there is none. */
export const NEXT: u32 = 6;
/** An address in this memory. */
export const ADDRESS: u32 = 7;
export const RESULT32: u32 = 8;
/** FLOAT_DIRTY and FLOAT_HOST. */
export const FLOAT: u32 = 9;

/** Sets of registers, a bit each. */
export let usedX: u32 = 0;
export let writtenX: u32 = 0;
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
export const PC: u32 = 10;
let firstX: u32 = 0;
export let FLOAT_RESULT: u32 = 0;
let firstF: u32 = 0;

const I64_COUNT: u32 = 6;

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
  usedX = 0;
  writtenX = 0;
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

export function useX(register: u32): void {
  usedX |= 1 << register;
}

export function writeX(register: u32): void {
  usedX |= 1 << register;
  writtenX |= 1 << register;
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
  useX(register);
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

/** Gives everything its local, and writes their declaration. */
export function declareLocals(): void {
  // x0 is a constant.
  usedX &= ~1;
  writtenX &= ~1;
  firstX = PC + I64_COUNT;
  FLOAT_RESULT = firstX + popcnt(usedX);
  firstF = FLOAT_RESULT + 1;
  w.unsigned(3);
  w.unsigned(PC - LEFT);
  w.byte(w.I32);
  w.unsigned(FLOAT_RESULT - PC);
  w.byte(w.I64);
  w.unsigned(1 + popcnt(usedF));
  w.byte(w.F64);
}

function rank(set: u32, register: u32): u32 {
  return popcnt(set & ((1 << register) - 1));
}

export function localX(register: u32): u32 {
  return firstX + rank(usedX, register);
}

export function localF(register: u32): u32 {
  return firstF + rank(usedF, register);
}
