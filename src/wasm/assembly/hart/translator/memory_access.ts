/**
 * Loads and stores. The page that a base register's value last led to is kept: its address (`tag`)
 * and what is added to a guest's address on it (`delta`). One comparison says that an access is on
 * it and aligned. Else a function of the module looks into the TLB, and at last a helper for the
 * page; it gives the address in this memory, or 0: then the interpreter executes the instruction,
 * which faults, crosses pages or goes to a device.
 *
 * Pages are in globals of the module, since locals that change on a way that is hardly ever taken
 * cost registers, and moves, on the usual one. They hold until something is taken out of the TLBs,
 * or the context changes: nothing of that kind happens within an activation.
 */

import * as op from "../opcodes";
import { HART_DATA_EPOCH, HART_DATA_TLB } from "../state";
import { currentPage, emitStep } from "./blocks";
import { emitX } from "./instructions";
import * as l from "./locals";
import { GLOBAL_IMPORTS, LOOKUP_READ, LOOKUP_WRITE } from "./module";
import * as w from "./writer";

/** No page: the bit is not in any mask. */
const NO_TAG: i64 = 0x800;

/**
 * Globals of the module, behind what is imported: the data epoch (state.ts) that all these are of;
 * HART_DATA_TLB; the address and the distance of each page.
 */
const PAGES_EPOCH: u32 = GLOBAL_IMPORTS;
export const DATA_TLB: u32 = GLOBAL_IMPORTS + 1;

function tagOf(page: u32): u32 {
  return DATA_TLB + 1 + 2 * page;
}

function deltaOf(page: u32): u32 {
  return DATA_TLB + 2 + 2 * page;
}

/** Declares the globals: the contents of the section. They begin with no epoch, so with no page. */
export function writePageGlobals(): void {
  w.unsigned(2 + 2 * l.pageCount);
  // Of each page as of all of them: a long one and a short one.
  for (let pair: u32 = 0; pair <= l.pageCount; pair++) {
    w.byte(w.I64);
    w.byte(1); // mutable
    w.i64Const(-1);
    w.byte(0x0b);
    w.byte(w.I32);
    w.byte(1);
    w.i32Const(0);
    w.byte(0x0b);
  }
}

/** What an activation begins with: pages that may be others now are not known any more. */
export function emitForgetPages(): void {
  if (l.pageCount === 0) return;
  w.get(l.HART);
  w.access(w.I64_LOAD, HART_DATA_EPOCH);
  w.globalGet(PAGES_EPOCH);
  w.byte(w.I64_NE);
  w.ifUnlikely();
  w.get(l.HART);
  w.access(w.I64_LOAD, HART_DATA_EPOCH);
  w.globalSet(PAGES_EPOCH);
  w.get(l.HART);
  w.access(w.I32_LOAD, HART_DATA_TLB);
  w.globalSet(DATA_TLB);
  for (let page: u32 = 0; page < l.pageCount; page++) {
    w.i64Const(NO_TAG);
    w.globalSet(tagOf(page));
  }
  w.end();
}

/** Loads, and leaves the value, extended, on the stack. */
export function emitLoad(opcode: u32, base: u32, imm: i64): void {
  const funct3 = opcode - op.OP_LB;
  const offset = emitHostAddress(base, imm, funct3 & 3, false);
  w.access(loadOpcode(funct3), offset);
}

function loadOpcode(funct3: u32): u32 {
  switch (funct3 & 7) {
    case 0:
      return w.I64_LOAD8_S;
    case 1:
      return w.I64_LOAD16_S;
    case 2:
      return w.I64_LOAD32_S;
    case 3:
      return w.I64_LOAD;
    case 4:
      return w.I64_LOAD8_U;
    case 5:
      return w.I64_LOAD16_U;
    default:
      return w.I64_LOAD32_U;
  }
}

export function emitStore(opcode: u32, base: u32, imm: i64, source: u32): void {
  const sizeLog = opcode - op.OP_SB;
  const offset = emitHostAddress(base, imm, sizeLog, true);
  emitX(source);
  if (sizeLog === 0) w.access(w.I64_STORE8, offset);
  else if (sizeLog === 1) w.access(w.I64_STORE16, offset);
  else if (sizeLog === 2) w.access(w.I64_STORE32, offset);
  else w.access(w.I64_STORE, offset);
}

/**
 * Leaves an address on the stack, to which the access must add the offset that is returned: it is
 * then that of x[base] + imm in this memory.
 */
export function emitHostAddress(base: u32, imm: i64, sizeLog: u32, isWrite: bool): u32 {
  const tag = tagOf(currentPage);
  const delta = deltaOf(currentPage);
  const size: i64 = 1 << sizeLog;
  emitX(base);
  if (imm !== 0) {
    w.i64Const(imm);
    w.byte(w.I64_ADD);
  }
  w.tee(l.va());
  w.i64Const(~0xfff | (size - 1));
  w.byte(w.I64_AND);
  w.globalGet(tag);
  w.byte(w.I64_NE);
  w.ifUnlikely();
  w.get(l.va());
  w.i32Const(<i32>size);
  w.call(isWrite ? LOOKUP_WRITE : LOOKUP_READ);
  w.tee(l.ADDRESS);
  w.byte(w.I32_EQZ);
  w.ifUnlikely();
  emitStep();
  w.end();
  w.get(l.ADDRESS);
  w.get(l.va());
  w.byte(w.I32_WRAP);
  w.byte(w.I32_SUB);
  w.globalSet(delta);
  w.get(l.va());
  w.i64Const(~0xfff);
  w.byte(w.I64_AND);
  w.globalSet(tag);
  w.end();
  emitX(base);
  w.byte(w.I32_WRAP);
  w.globalGet(delta);
  w.byte(w.I32_ADD);
  // Guest memory does not begin at 0: what is on the stack can't have wrapped around.
  if (imm >= 0) return <u32>imm;
  w.i32Const(<i32>imm);
  w.byte(w.I32_ADD);
  return 0;
}
