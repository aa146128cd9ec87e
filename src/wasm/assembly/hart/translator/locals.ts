/**
 * The locals of a region's function. Registers of the guest that the region uses have one each;
 * so have, for each base register of its loads and of its stores, the page that was accessed last
 * by it: its address (`tag`) and what is added to a guest's address on it (`delta`).
 *
 *   parameters   hart, handle, base
 *   i32          LEFT ... FLOAT, deltas of loads, deltas of stores
 *   i64          PC ... , x registers, tags of loads, tags of stores
 *   f64          FLOAT_RESULT, f registers
 */

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
const FIRST_DELTA: u32 = 10;

/** Sets of registers, a bit each. */
export let usedX: u32 = 0;
export let writtenX: u32 = 0;
export let usedF: u32 = 0;
export let writtenF: u32 = 0;
let readBases: u32 = 0;
let writeBases: u32 = 0;

/** First local of each kind. */
let firstWriteDelta: u32 = 0;
export let PC: u32 = 0;
let firstX: u32 = 0;
let firstTag: u32 = 0;
let firstWriteTag: u32 = 0;
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
  readBases = 0;
  writeBases = 0;
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

export function useBase(register: u32, isWrite: bool): void {
  useX(register);
  if (isWrite) writeBases |= 1 << register;
  else readBases |= 1 << register;
}

/** Gives everything its local, and writes their declaration. */
export function declareLocals(): void {
  // x0 is a constant.
  usedX &= ~1;
  writtenX &= ~1;
  firstWriteDelta = FIRST_DELTA + popcnt(readBases);
  PC = firstWriteDelta + popcnt(writeBases);
  firstX = PC + I64_COUNT;
  firstTag = firstX + popcnt(usedX);
  firstWriteTag = firstTag + popcnt(readBases);
  FLOAT_RESULT = firstWriteTag + popcnt(writeBases);
  firstF = FLOAT_RESULT + 1;
  w.unsigned(3);
  w.unsigned(PC - LEFT);
  w.byte(w.I32);
  w.unsigned(FLOAT_RESULT - PC);
  w.byte(w.I64);
  w.unsigned(1 + popcnt(usedF));
  w.byte(w.F64);
  for (let tag = firstTag; tag < FLOAT_RESULT; tag++) {
    w.i64Const(NO_TAG);
    w.set(tag);
  }
}

/** No page: the bit is not in any mask. */
const NO_TAG: i64 = 0x800;

function rank(set: u32, register: u32): u32 {
  return popcnt(set & ((1 << register) - 1));
}

export function localX(register: u32): u32 {
  return firstX + rank(usedX, register);
}

export function localF(register: u32): u32 {
  return firstF + rank(usedF, register);
}

export function tagOf(register: u32, isWrite: bool): u32 {
  return isWrite
    ? firstWriteTag + rank(writeBases, register)
    : firstTag + rank(readBases, register);
}

export function deltaOf(register: u32, isWrite: bool): u32 {
  return isWrite
    ? firstWriteDelta + rank(writeBases, register)
    : FIRST_DELTA + rank(readBases, register);
}
