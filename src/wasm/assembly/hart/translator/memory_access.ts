/**
 * Loads and stores. The page that a base register's value last led to is in locals (locals.ts); one
 * comparison says that an access is on it and aligned. Else a function of the module looks into the
 * TLB, and at last a helper for the page; it gives the address in this memory, or 0: then the
 * interpreter executes the instruction, which faults, crosses pages or goes to a device.
 */

import * as op from "../opcodes";
import { currentPage, emitStep } from "./blocks";
import { emitX } from "./instructions";
import * as l from "./locals";
import { LOOKUP_READ, LOOKUP_WRITE } from "./module";
import * as w from "./writer";

/** Loads, and leaves the value, extended, on the stack. */
export function emitLoad(opcode: u32, base: u32, imm: i64): void {
  const funct3 = opcode - op.OP_LB;
  emitHostAddress(base, imm, funct3 & 3, false);
  w.access(loadOpcode(funct3), 0);
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
  emitHostAddress(base, imm, sizeLog, true);
  emitX(source);
  if (sizeLog === 0) w.access(w.I64_STORE8, 0);
  else if (sizeLog === 1) w.access(w.I64_STORE16, 0);
  else if (sizeLog === 2) w.access(w.I64_STORE32, 0);
  else w.access(w.I64_STORE, 0);
}

/** Leaves on the stack the address in this memory of x[base] + imm. */
export function emitHostAddress(base: u32, imm: i64, sizeLog: u32, isWrite: bool): void {
  const tag = l.tagOf(currentPage);
  const delta = l.deltaOf(currentPage);
  const size: i64 = 1 << sizeLog;
  emitX(base);
  if (imm !== 0) {
    w.i64Const(imm);
    w.byte(w.I64_ADD);
  }
  w.tee(l.va());
  w.i64Const(~0xfff | (size - 1));
  w.byte(w.I64_AND);
  w.get(tag);
  w.byte(w.I64_NE);
  w.ifUnlikely();
  w.get(l.HART);
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
  w.set(delta);
  w.get(l.va());
  w.i64Const(~0xfff);
  w.byte(w.I64_AND);
  w.set(tag);
  w.end();
  w.get(l.va());
  w.byte(w.I32_WRAP);
  w.get(delta);
  w.byte(w.I32_ADD);
}
