/** What generated code calls: the host passes these functions on, in the order of module.ts. */

import { executeAtomic } from "../atomics";
import { knownCode } from "../code";
import { executeCsr } from "../csr";
import { clearEvent, event, EVENT_EXCEPTION, EVENT_NONE } from "../event";
import { executeFloat, executeFma } from "../float_ops";
import { mulh, mulhsu, mulhu, orCombine } from "../integer";
import { hostFuses } from "../float/f64";
import { isFloatDirty, isFloatHost, refreshFloat } from "../interpreter";
import { currentTlb, readAddress, writeAddress } from "../mmu";
import { OP_TRANSLATED } from "../opcodes";
import {
  FLOAT_DIRTY,
  FLOAT_HOST,
  getCsr,
  MSTATUS,
  MSTATUS_FS,
  MSTATUS_SIE,
  MSTATUS_SPIE,
  MSTATUS_SPP,
  TLB_MASK,
  TLB_SHIFT,
  TLB_WRITE,
} from "../state";
import { canTakeInterrupt } from "../trap";
import { enter } from "./regions";

/**
 * Address in this memory of `va`, of which `size` bytes are to be read; 0 if the interpreter must
 * do it: it crosses pages, is no RAM, faults, or not all of its page may be read.
 */
export function readPage(va: u64, size: u32): u32 {
  if ((<u32> va & 0xfff) + size > 4096) return 0;
  return checked(readAddress(va, size), currentTlb(), va);
}

/** The same for writing. */
export function writePage(va: u64, size: u32): u32 {
  if ((<u32> va & 0xfff) + size > 4096) return 0;
  return checked(writeAddress(va, size), currentTlb() + TLB_WRITE, va);
}

function checked(address: u32, table: u32, va: u64): u32 {
  if (event !== EVENT_NONE) {
    clearEvent();
    return 0;
  }
  const entry = table + (<u32> (va >> TLB_SHIFT) & TLB_MASK);
  return (va & ~0xfff) === load<u64>(entry) ? address : 0;
}

/**
 * The handle of the entry of translated code at `pc`, which the jump cache knows then; 0 if there
 * is none.
 */
export function findRegion(pc: u64): u32 {
  const code = knownCode(pc);
  if (code === 0) return 0;
  const slot = load<u64>(code + ((<u32>pc & 0xffe) << 2));
  if (<u32>slot >>> 24 !== OP_TRANSLATED) return 0;
  const handle = <u32>(slot >> 32);
  return enter(handle, pc) ? handle : 0;
}

export function multiplyHigh(a: u64, b: u64): u64 {
  return mulh(a, b);
}

export function multiplyHighMixed(a: u64, b: u64): u64 {
  return mulhsu(a, b);
}

export function multiplyHighUnsigned(a: u64, b: u64): u64 {
  return mulhu(a, b);
}

export function combineBytes(a: u64): u64 {
  return orCombine(a);
}

export function reverseBytes(a: u64): u64 {
  return bswap<u64>(a);
}

/** Executes an instruction of OP-FP; FLOAT_* afterwards, or -1 if the interpreter must raise. */
export function floatOperation(bits: u32): i32 {
  executeFloat(bits);
  return afterFloat();
}

/** The same for FMADD and its kin. */
export function fusedOperation(bits: u32): i32 {
  executeFma(bits);
  return afterFloat();
}

/** FLOAT_*: what the interpreter's loop keeps, for translated code. */
export function floatState(): u32 {
  return (isFloatDirty ? FLOAT_DIRTY : 0) | (isFloatHost && hostFuses ? FLOAT_HOST : 0);
}

function afterFloat(): i32 {
  if (event !== EVENT_NONE) {
    clearEvent();
    return -1;
  }
  refreshFloat();
  return <i32> floatState();
}

/** What csrOperation says instead of FLOAT_*. */
export const CSR_REFUSED: i32 = -1;
const CSR_ENDS_TURN: i32 = -2;

/**
 * Executes a CSR instruction of those that translated code may go on after; FLOAT_* then, unless
 * the interpreter must raise an exception, or an interrupt may be taken now, or more of mstatus
 * changed than the stack of interrupt enables.
 */
export function csrOperation(bits: u32): i32 {
  const before = getCsr(MSTATUS);
  executeCsr(bits);
  const happened = event;
  clearEvent();
  if (happened === EVENT_EXCEPTION) return CSR_REFUSED;
  refreshFloat();
  const changed = (before ^ getCsr(MSTATUS)) & ~(MSTATUS_SIE | MSTATUS_SPIE | MSTATUS_SPP);
  // A float CSR makes FS dirty, which harms nothing.
  const isHarmless = (changed & ~MSTATUS_FS) === 0 &&
    (changed === 0 || (getCsr(MSTATUS) & MSTATUS_FS) === MSTATUS_FS);
  if (happened !== EVENT_NONE && (!isHarmless || canTakeInterrupt())) return CSR_ENDS_TURN;
  return <i32> floatState();
}

/** Executes LR, SC or an AMO; false if the interpreter must, to raise an exception. */
export function atomicOperation(low: u32, funct5: u32): bool {
  executeAtomic(low >>> 24, low, funct5);
  if (event === EVENT_NONE) return true;
  clearEvent();
  return false;
}
