/**
 * Writes WebAssembly: bytes, numbers in LEB128, and the instructions that the translator uses,
 * under their own names. Control depth is kept here, so that a label is the depth at which it was
 * opened and branches name labels.
 */

import { area, BODY, BODY_BYTES, HINTS, HINTS_BYTES } from "./area";

/** The next byte goes here. */
export let at: u32 = 0;
/** Blocks, loops and ifs that are open. */
export let depth: u32 = 0;

let bodyStart: u32 = 0;
let hintAt: u32 = 0;
let hintEnd: u32 = 0;

/** Begins the body of a function. */
export function beginBody(): void {
  bodyStart = area() + BODY;
  at = bodyStart;
  depth = 0;
  hintAt = area() + HINTS;
  hintEnd = hintAt + HINTS_BYTES - 4;
}

/** Goes on writing at `address`. */
export function writeAt(address: u32): void {
  at = address;
}

export function bodyAddress(): u32 {
  return bodyStart;
}

export function bodyLength(): u32 {
  return at - bodyStart;
}

/** Whether there is room for one more block of instructions. */
export function hasRoom(): bool {
  return at - bodyStart < BODY_BYTES - 0x10000;
}

/** Places of branches that are hardly ever taken: u32 offsets in the body. */
export function hintCount(): u32 {
  return (hintAt - (area() + HINTS)) >> 2;
}

export function hintOffset(index: u32): u32 {
  return load<u32>(area() + HINTS + (index << 2));
}

// ---- bytes and numbers --------------------------------------------------------------------------

export function byte(value: u32): void {
  store<u8>(at, value);
  at++;
}

export function unsigned(value: u32): void {
  let rest = value;
  while (rest > 0x7f) {
    byte((rest & 0x7f) | 0x80);
    rest >>= 7;
  }
  byte(rest);
}

export function signed(value: i64): void {
  let rest = value;
  while (rest < -64 || rest > 63) {
    byte((<u32>rest & 0x7f) | 0x80);
    rest >>= 7;
  }
  byte(<u32>rest & 0x7f);
}

/** A number in five bytes, whatever its size, to be written where room was left for it. */
export function unsignedPadded(address: u32, value: u32): void {
  store<u32>(
    address,
    0x80808080 | (value & 0x7f) | ((value & 0x3f80) << 1) | ((value & 0x1fc000) << 2) |
      ((value & 0xfe00000) << 3),
  );
  store<u8>(address + 4, value >> 28);
}

// ---- control ------------------------------------------------------------------------------------

const VOID: u32 = 0x40;
export const I32: u32 = 0x7f;
export const I64: u32 = 0x7e;
export const F64: u32 = 0x7c;

/** Opens a block; its label. */
export function block(): u32 {
  byte(0x02);
  byte(VOID);
  return depth++;
}

export function loop(): u32 {
  byte(0x03);
  byte(VOID);
  return depth++;
}

export function ifThen(): void {
  byte(0x04);
  byte(VOID);
  depth++;
}

/** An if that is hardly ever entered. */
export function ifUnlikely(): void {
  hint();
  ifThen();
}

/** The same with a value of `type`. */
export function ifUnlikelyOf(type: u32): void {
  hint();
  byte(0x04);
  byte(type);
  depth++;
}

export function otherwise(): void {
  byte(0x05);
}

export function end(): void {
  byte(0x0b);
  depth--;
}

export function branch(label: u32): void {
  byte(0x0c);
  unsigned(depth - 1 - label);
}

export function branchIf(label: u32): void {
  byte(0x0d);
  unsigned(depth - 1 - label);
}

export function branchIfUnlikely(label: u32): void {
  hint();
  branchIf(label);
}

function hint(): void {
  if (hintAt >= hintEnd) return;
  store<u32>(hintAt, at - bodyStart);
  hintAt += 4;
}

export function call(index: u32): void {
  byte(0x10);
  unsigned(index);
}

// ---- locals and constants -----------------------------------------------------------------------

export function get(local: u32): void {
  byte(0x20);
  unsigned(local);
}

export function set(local: u32): void {
  byte(0x21);
  unsigned(local);
}

export function tee(local: u32): void {
  byte(0x22);
  unsigned(local);
}

export function globalGet(global: u32): void {
  byte(0x23);
  unsigned(global);
}

export function globalSet(global: u32): void {
  byte(0x24);
  unsigned(global);
}

export function i32Const(value: i32): void {
  byte(0x41);
  signed(value);
}

export function i64Const(value: i64): void {
  byte(0x42);
  signed(value);
}

/** A load or store: `opcode`, with a constant offset. Nothing is said about alignment. */
export function access(opcode: u32, offset: u32): void {
  byte(opcode);
  byte(0);
  unsigned(offset);
}

/** An instruction of the 0xfe page (threads). */
export function atomicAccess(opcode: u32, alignment: u32, offset: u32): void {
  byte(0xfe);
  byte(opcode);
  byte(alignment);
  unsigned(offset);
}

/** i64.mul_wide_s or i64.mul_wide_u (wide arithmetic): the product's lower half, then the upper. */
export function multiplyWide(isSigned: bool): void {
  byte(0xfc);
  byte(isSigned ? 0x15 : 0x16);
}

// ---- opcodes ------------------------------------------------------------------------------------

export const I32_LOAD: u32 = 0x28;
export const I64_LOAD: u32 = 0x29;
export const F64_LOAD: u32 = 0x2b;
export const I64_LOAD8_S: u32 = 0x30;
export const I64_LOAD8_U: u32 = 0x31;
export const I64_LOAD16_S: u32 = 0x32;
export const I64_LOAD16_U: u32 = 0x33;
export const I64_LOAD32_S: u32 = 0x34;
export const I64_LOAD32_U: u32 = 0x35;
export const I32_STORE: u32 = 0x36;
export const I64_STORE: u32 = 0x37;
export const F64_STORE: u32 = 0x39;
export const I64_STORE8: u32 = 0x3c;
export const I64_STORE16: u32 = 0x3d;
export const I64_STORE32: u32 = 0x3e;

export const DROP: u32 = 0x1a;
export const SELECT: u32 = 0x1b;
export const I32_EQZ: u32 = 0x45;
export const I32_EQ: u32 = 0x46;
export const I32_LE_S: u32 = 0x4c;
export const I32_LT_U: u32 = 0x49;
export const I64_EQZ: u32 = 0x50;
export const I64_EQ: u32 = 0x51;
export const I64_NE: u32 = 0x52;
export const I64_LT_S: u32 = 0x53;
export const I64_LT_U: u32 = 0x54;
export const I64_GT_S: u32 = 0x55;
export const I64_GT_U: u32 = 0x56;
export const I64_LE_U: u32 = 0x58;
export const I64_GE_S: u32 = 0x59;
export const I64_GE_U: u32 = 0x5a;
export const F64_EQ: u32 = 0x61;
export const F64_NE: u32 = 0x62;
export const F64_LT: u32 = 0x63;
export const F64_LE: u32 = 0x65;
export const I32_CLZ: u32 = 0x67;
export const I32_CTZ: u32 = 0x68;
export const I32_POPCNT: u32 = 0x69;
export const I32_ADD: u32 = 0x6a;
export const I32_SUB: u32 = 0x6b;
export const I32_MUL: u32 = 0x6c;
export const I32_DIV_S: u32 = 0x6d;
export const I32_DIV_U: u32 = 0x6e;
export const I32_REM_S: u32 = 0x6f;
export const I32_REM_U: u32 = 0x70;
export const I32_AND: u32 = 0x71;
export const I32_OR: u32 = 0x72;
export const I32_XOR: u32 = 0x73;
export const I32_SHL: u32 = 0x74;
export const I32_SHR_S: u32 = 0x75;
export const I32_SHR_U: u32 = 0x76;
export const I32_ROTL: u32 = 0x77;
export const I32_ROTR: u32 = 0x78;
export const I64_CLZ: u32 = 0x79;
export const I64_CTZ: u32 = 0x7a;
export const I64_POPCNT: u32 = 0x7b;
export const I64_ADD: u32 = 0x7c;
export const I64_SUB: u32 = 0x7d;
export const I64_MUL: u32 = 0x7e;
export const I64_DIV_S: u32 = 0x7f;
export const I64_DIV_U: u32 = 0x80;
export const I64_REM_S: u32 = 0x81;
export const I64_REM_U: u32 = 0x82;
export const I64_AND: u32 = 0x83;
export const I64_OR: u32 = 0x84;
export const I64_XOR: u32 = 0x85;
export const I64_SHL: u32 = 0x86;
export const I64_SHR_S: u32 = 0x87;
export const I64_SHR_U: u32 = 0x88;
export const I64_ROTL: u32 = 0x89;
export const I64_ROTR: u32 = 0x8a;
export const F32_SQRT: u32 = 0x91;
export const F32_ADD: u32 = 0x92;
export const F32_SUB: u32 = 0x93;
export const F32_MUL: u32 = 0x94;
export const F32_DIV: u32 = 0x95;
export const F64_SQRT: u32 = 0x9f;
export const F64_ADD: u32 = 0xa0;
export const F64_SUB: u32 = 0xa1;
export const F64_MUL: u32 = 0xa2;
export const F64_DIV: u32 = 0xa3;
export const I32_WRAP: u32 = 0xa7;
export const I64_EXTEND_S: u32 = 0xac;
export const I64_EXTEND_U: u32 = 0xad;
export const F64_CONVERT_I32_S: u32 = 0xb7;
export const F64_CONVERT_I32_U: u32 = 0xb8;
export const F64_CONVERT_I64_S: u32 = 0xb9;
export const F64_CONVERT_I64_U: u32 = 0xba;
export const F64_PROMOTE: u32 = 0xbb;
export const I32_REINTERPRET: u32 = 0xbc;
export const I64_REINTERPRET: u32 = 0xbd;
export const F32_REINTERPRET: u32 = 0xbe;
export const F64_REINTERPRET: u32 = 0xbf;
export const I64_EXTEND8_S: u32 = 0xc2;
export const I64_EXTEND16_S: u32 = 0xc3;
export const I64_EXTEND32_S: u32 = 0xc4;
