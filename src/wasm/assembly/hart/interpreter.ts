/**
 * The interpreter's loop: one dispatch and one handler for each guest instruction.
 *
 * `execute` calls nothing: what a handler can't do by itself (a TLB miss, a CSR, a trap, ...) stops
 * the loop, slow.ts does it, and enters the loop again. So everything that the loop keeps stays in
 * machine registers: `at`, the address of the next decoded instruction; `left`, the instructions
 * that may still be retired; `x` and `tlb`, addresses that hold while the loop runs. Between two
 * executions they are in the globals below, which are the instance's own.
 *
 * The guest's pc is pcOf + at / 4. Privilege, mstatus and translation never change inside the loop.
 *
 * A handler ends with `continue` (next instruction), with `break` after setting `target` (jump off
 * the page), or with `return` (slow.ts). `left` is checked where control goes elsewhere, so a slice
 * overruns its budget by a page of straight code at most.
 */

import { FLAG_NX, fflags } from "./float/flags";
import { isPlain32 } from "./float/f32";
import { F64_SIGN, hostFuses, isPlain64 } from "./float/f64";
import * as integer from "./integer";
import { HART_F, HART_X } from "./layout";
import * as op from "./opcodes";
import {
  FRM,
  getCsr,
  hart,
  HART_FENCE_WORD,
  MSTATUS,
  MSTATUS_FS,
  TLB_MASK,
  TLB_SHIFT,
  TLB_WRITE,
} from "./state";

/** Go on at `stopTarget`: the budget is used up, or its page is not in the fetch TLB. */
export const STOP_JUMP: u32 = 0;
/** `stopSlot` is for slow.ts; stopAt and stopLeft count it as done. */
export const STOP_SLOW: u32 = 1;

// What the loop keeps, while it does not run.
export let stopAt: u32 = 0;
export let stopLeft: i32 = 0;
export let stopSlot: u64 = 0;
export let stopTarget: u64 = 0;
export let pcOf: u64 = 0;

/** Tables of the current privilege and context: to be set before `execute`. */
let dataTlb: u32 = 0;
let fetchTlb: u32 = 0;

/** FS is dirty already: registers may be read and written without a further look. */
export let isFloatDirty: bool = false;
/**
 * Besides: rounding to nearest, and NX set already, so that the host's plain results are exact
 * enough.
 */
export let isFloatHost: bool = false;

const FLOAT_BOX: u64 = 0xffff_ffff_0000_0000;
const F_FROM_X: u32 = HART_F - HART_X;
const FENCE_WORD_FROM_X: u32 = HART_FENCE_WORD - HART_X;

/** Begins a turn: `budget` instructions. */
export function beginTurn(budget: i32, newDataTlb: u32, newFetchTlb: u32): void {
  stopLeft = budget;
  dataTlb = newDataTlb;
  fetchTlb = newFetchTlb;
  refreshFloat();
}

/** To be called when mstatus.FS, frm or fflags may have changed. */
export function refreshFloat(): void {
  isFloatDirty = (getCsr(MSTATUS) & MSTATUS_FS) === MSTATUS_FS;
  isFloatHost = isFloatDirty && getCsr(FRM) === 0 && (fflags & FLAG_NX) !== 0;
}


/** The next instruction is the decoded one at `code`, for the guest at `pc`. */
export function continueAt(code: u32, pc: u64): void {
  stopAt = code;
  pcOf = pc - <u64>(code >> 2);
}

/** Changes what may still be retired. */
export function setLeft(left: i32): void {
  stopLeft = left;
}

// ---- operands: `x` is the address of the integer registers --------------------------------------

function rs1(x: u32, slot: u64): u64 {
  return load<u64>(x + ((<u32>slot >> 8) & 0xf8));
}

function rs2(x: u32, slot: u64): u64 {
  return load<u64>(x + ((<u32>slot >> 16) & 0xf8));
}

function setRd(x: u32, slot: u64, value: u64): void {
  store<u64>(x + (<u32>slot & 0xf8), value);
}

/** The immediate, sign-extended. */
function immediate(slot: u64): u64 {
  return <u64>(<i64>slot >> 32);
}

function immediate32(slot: u64): u32 {
  return <u32>(slot >> 32);
}

function signed(value: u32): u64 {
  return <u64><i64><i32>value;
}

function fs1(x: u32, slot: u64): u64 {
  return load<u64>(x + ((<u32>slot >> 8) & 0xf8), F_FROM_X);
}

function fs2(x: u32, slot: u64): u64 {
  return load<u64>(x + ((<u32>slot >> 16) & 0xf8), F_FROM_X);
}

/** The immediate is the instruction itself: rs3 is its top five bits. */
function fs3(x: u32, slot: u64): u64 {
  return load<u64>(x + (<u32>(slot >> 56) & 0xf8), F_FROM_X);
}

function setFd(x: u32, slot: u64, value: u64): void {
  store<u64>(x + (<u32>slot & 0xf8), value, F_FROM_X);
}

function host64(bits: u64): f64 {
  return reinterpret<f64>(bits);
}

function bits64(value: f64): u64 {
  return reinterpret<u64>(value);
}

function host32(bits: u64): f32 {
  return reinterpret<f32>(<u32>bits);
}

function bits32(value: f32): u32 {
  return reinterpret<u32>(value);
}

function fma64(a: u64, b: u64, c: u64): u64 {
  return i64x2.extract_lane(
    f64x2.relaxed_madd(i64x2.splat(a), i64x2.splat(b), i64x2.splat(c)),
    0,
  );
}

/** An access hits if its page is there and it is aligned: one comparison. */
function tlbEntry(table: u32, va: u64): u32 {
  return table + ((<u32>va >> TLB_SHIFT) & TLB_MASK);
}

function hits(entry: u32, va: u64, alignMask: u64): bool {
  return (va & (~0xfff | alignMask)) === load<u64>(entry);
}

function hostAddress(entry: u32, va: u64): u32 {
  return <u32>va + load<u32>(entry, 8);
}

// ---- the loop -----------------------------------------------------------------------------------

function stopSlow(at: u32, left: i32, slot: u64): u32 {
  stopAt = at;
  stopLeft = left;
  stopSlot = slot;
  return STOP_SLOW;
}

function stopJump(left: i32, target: u64): u32 {
  stopLeft = left;
  stopTarget = target;
  return STOP_JUMP;
}

/** Executes from stopAt on, until something is not for the loop; returns STOP_*. */
export function execute(): u32 {
  const x = hart + HART_X;
  const tlb = dataTlb;
  let left = stopLeft;
  let at = stopAt;
  let target: u64 = 0;

  while (true) {
    const slot = load<u64>(at);
    at += (<u32>slot & 6) << 2;
    left--;
      switch (<u32>slot >>> 24) {
        case op.OP_UNDECODED:
          return stopSlow(at, left, slot);
        case op.OP_PAGE_END:
          left++;
          target = pcOf + <u64>(at >> 2);
          break;
        case op.OP_NOP:
          continue;
        case op.OP_LI:
          setRd(x, slot, immediate(slot));
          continue;
        case op.OP_AUIPC:
          setRd(x, slot, pcOf + <u64>(at >> 2) - 4 + immediate(slot));
          continue;
        case op.OP_J:
          at += immediate32(slot);
          if (left > 0) continue;
          target = pcOf + <u64>(at >> 2);
          break;
        case op.OP_J_FAR:
          target = pcOf + <u64>(at >> 2) - <u64>(<u32>slot & 6) + immediate(slot);
          break;
        case op.OP_JAL:
          setRd(x, slot, pcOf + <u64>(at >> 2));
          at += immediate32(slot);
          if (left > 0) continue;
          target = pcOf + <u64>(at >> 2);
          break;
        case op.OP_JAL_FAR:
          target = pcOf + <u64>(at >> 2) - <u64>(<u32>slot & 6) + immediate(slot);
          setRd(x, slot, pcOf + <u64>(at >> 2));
          break;
        case op.OP_JR:
          target = (rs1(x, slot) + immediate(slot)) & ~1;
          break;
        case op.OP_JALR:
          target = (rs1(x, slot) + immediate(slot)) & ~1;
          setRd(x, slot, pcOf + <u64>(at >> 2));
          break;
        case op.OP_BEQ:
          if (rs1(x, slot) !== rs2(x, slot)) continue;
          at += immediate32(slot);
          if (left > 0) continue;
          target = pcOf + <u64>(at >> 2);
          break;
        case op.OP_BNE:
          if (rs1(x, slot) === rs2(x, slot)) continue;
          at += immediate32(slot);
          if (left > 0) continue;
          target = pcOf + <u64>(at >> 2);
          break;
        case op.OP_BLT:
          if (<i64>rs1(x, slot) >= <i64>rs2(x, slot)) continue;
          at += immediate32(slot);
          if (left > 0) continue;
          target = pcOf + <u64>(at >> 2);
          break;
        case op.OP_BGE:
          if (<i64>rs1(x, slot) < <i64>rs2(x, slot)) continue;
          at += immediate32(slot);
          if (left > 0) continue;
          target = pcOf + <u64>(at >> 2);
          break;
        case op.OP_BLTU:
          if (rs1(x, slot) >= rs2(x, slot)) continue;
          at += immediate32(slot);
          if (left > 0) continue;
          target = pcOf + <u64>(at >> 2);
          break;
        case op.OP_BGEU:
          if (rs1(x, slot) < rs2(x, slot)) continue;
          at += immediate32(slot);
          if (left > 0) continue;
          target = pcOf + <u64>(at >> 2);
          break;
        case op.OP_BEQ_FAR:
          if (rs1(x, slot) !== rs2(x, slot)) continue;
          target = pcOf + <u64>(at >> 2) - <u64>(<u32>slot & 6) + immediate(slot);
          break;
        case op.OP_BNE_FAR:
          if (rs1(x, slot) === rs2(x, slot)) continue;
          target = pcOf + <u64>(at >> 2) - <u64>(<u32>slot & 6) + immediate(slot);
          break;
        case op.OP_BLT_FAR:
          if (<i64>rs1(x, slot) >= <i64>rs2(x, slot)) continue;
          target = pcOf + <u64>(at >> 2) - <u64>(<u32>slot & 6) + immediate(slot);
          break;
        case op.OP_BGE_FAR:
          if (<i64>rs1(x, slot) < <i64>rs2(x, slot)) continue;
          target = pcOf + <u64>(at >> 2) - <u64>(<u32>slot & 6) + immediate(slot);
          break;
        case op.OP_BLTU_FAR:
          if (rs1(x, slot) >= rs2(x, slot)) continue;
          target = pcOf + <u64>(at >> 2) - <u64>(<u32>slot & 6) + immediate(slot);
          break;
        case op.OP_BGEU_FAR:
          if (rs1(x, slot) < rs2(x, slot)) continue;
          target = pcOf + <u64>(at >> 2) - <u64>(<u32>slot & 6) + immediate(slot);
          break;
        case op.OP_LB: {
          const va = rs1(x, slot) + immediate(slot);
          const entry = tlbEntry(tlb, va);
          if (!hits(entry, va, 0)) return stopSlow(at, left, slot);
          setRd(x, slot, <u64><i64>load<i8>(hostAddress(entry, va)));
          continue;
        }
        case op.OP_LH: {
          const va = rs1(x, slot) + immediate(slot);
          const entry = tlbEntry(tlb, va);
          if (!hits(entry, va, 1)) return stopSlow(at, left, slot);
          setRd(x, slot, <u64><i64>load<i16>(hostAddress(entry, va)));
          continue;
        }
        case op.OP_LW: {
          const va = rs1(x, slot) + immediate(slot);
          const entry = tlbEntry(tlb, va);
          if (!hits(entry, va, 3)) return stopSlow(at, left, slot);
          setRd(x, slot, <u64><i64>load<i32>(hostAddress(entry, va)));
          continue;
        }
        case op.OP_LD: {
          const va = rs1(x, slot) + immediate(slot);
          const entry = tlbEntry(tlb, va);
          if (!hits(entry, va, 7)) return stopSlow(at, left, slot);
          setRd(x, slot, load<u64>(hostAddress(entry, va)));
          continue;
        }
        case op.OP_LBU: {
          const va = rs1(x, slot) + immediate(slot);
          const entry = tlbEntry(tlb, va);
          if (!hits(entry, va, 0)) return stopSlow(at, left, slot);
          setRd(x, slot, <u64>load<u8>(hostAddress(entry, va)));
          continue;
        }
        case op.OP_LHU: {
          const va = rs1(x, slot) + immediate(slot);
          const entry = tlbEntry(tlb, va);
          if (!hits(entry, va, 1)) return stopSlow(at, left, slot);
          setRd(x, slot, <u64>load<u16>(hostAddress(entry, va)));
          continue;
        }
        case op.OP_LWU: {
          const va = rs1(x, slot) + immediate(slot);
          const entry = tlbEntry(tlb, va);
          if (!hits(entry, va, 3)) return stopSlow(at, left, slot);
          setRd(x, slot, <u64>load<u32>(hostAddress(entry, va)));
          continue;
        }
        case op.OP_SB: {
          const va = rs1(x, slot) + immediate(slot);
          const entry = tlbEntry(tlb + TLB_WRITE, va);
          if (!hits(entry, va, 0)) return stopSlow(at, left, slot);
          store<u8>(hostAddress(entry, va), <u8>rs2(x, slot));
          continue;
        }
        case op.OP_SH: {
          const va = rs1(x, slot) + immediate(slot);
          const entry = tlbEntry(tlb + TLB_WRITE, va);
          if (!hits(entry, va, 1)) return stopSlow(at, left, slot);
          store<u16>(hostAddress(entry, va), <u16>rs2(x, slot));
          continue;
        }
        case op.OP_SW: {
          const va = rs1(x, slot) + immediate(slot);
          const entry = tlbEntry(tlb + TLB_WRITE, va);
          if (!hits(entry, va, 3)) return stopSlow(at, left, slot);
          store<u32>(hostAddress(entry, va), <u32>rs2(x, slot));
          continue;
        }
        case op.OP_SD: {
          const va = rs1(x, slot) + immediate(slot);
          const entry = tlbEntry(tlb + TLB_WRITE, va);
          if (!hits(entry, va, 7)) return stopSlow(at, left, slot);
          store<u64>(hostAddress(entry, va), rs2(x, slot));
          continue;
        }
        case op.OP_ADDI:
          setRd(x, slot, rs1(x, slot) + immediate(slot));
          continue;
        case op.OP_SLTI:
          setRd(x, slot, <u64>(<i64>rs1(x, slot) < <i64>immediate(slot)));
          continue;
        case op.OP_SLTIU:
          setRd(x, slot, <u64>(rs1(x, slot) < immediate(slot)));
          continue;
        case op.OP_XORI:
          setRd(x, slot, rs1(x, slot) ^ immediate(slot));
          continue;
        case op.OP_ORI:
          setRd(x, slot, rs1(x, slot) | immediate(slot));
          continue;
        case op.OP_ANDI:
          setRd(x, slot, rs1(x, slot) & immediate(slot));
          continue;
        case op.OP_SLLI:
          setRd(x, slot, rs1(x, slot) << immediate(slot));
          continue;
        case op.OP_SRLI:
          setRd(x, slot, rs1(x, slot) >> immediate(slot));
          continue;
        case op.OP_SRAI:
          setRd(x, slot, <u64>(<i64>rs1(x, slot) >> <i64>immediate(slot)));
          continue;
        case op.OP_ADDIW:
          setRd(x, slot, signed(<u32>rs1(x, slot) + immediate32(slot)));
          continue;
        case op.OP_SLLIW:
          setRd(x, slot, signed(<u32>rs1(x, slot) << immediate32(slot)));
          continue;
        case op.OP_SRLIW:
          setRd(x, slot, signed(<u32>rs1(x, slot) >> immediate32(slot)));
          continue;
        case op.OP_SRAIW:
          setRd(x, slot, <u64><i64>(<i32>rs1(x, slot) >> <i32>immediate32(slot)));
          continue;
        case op.OP_MV:
          setRd(x, slot, rs1(x, slot));
          continue;
        case op.OP_ADD:
          setRd(x, slot, rs1(x, slot) + rs2(x, slot));
          continue;
        case op.OP_SUB:
          setRd(x, slot, rs1(x, slot) - rs2(x, slot));
          continue;
        case op.OP_SLL:
          setRd(x, slot, rs1(x, slot) << rs2(x, slot));
          continue;
        case op.OP_SLT:
          setRd(x, slot, <u64>(<i64>rs1(x, slot) < <i64>rs2(x, slot)));
          continue;
        case op.OP_SLTU:
          setRd(x, slot, <u64>(rs1(x, slot) < rs2(x, slot)));
          continue;
        case op.OP_XOR:
          setRd(x, slot, rs1(x, slot) ^ rs2(x, slot));
          continue;
        case op.OP_SRL:
          setRd(x, slot, rs1(x, slot) >> rs2(x, slot));
          continue;
        case op.OP_SRA:
          setRd(x, slot, <u64>(<i64>rs1(x, slot) >> <i64>rs2(x, slot)));
          continue;
        case op.OP_OR:
          setRd(x, slot, rs1(x, slot) | rs2(x, slot));
          continue;
        case op.OP_AND:
          setRd(x, slot, rs1(x, slot) & rs2(x, slot));
          continue;
        case op.OP_ADDW:
          setRd(x, slot, signed(<u32>rs1(x, slot) + <u32>rs2(x, slot)));
          continue;
        case op.OP_SUBW:
          setRd(x, slot, signed(<u32>rs1(x, slot) - <u32>rs2(x, slot)));
          continue;
        case op.OP_SLLW:
          setRd(x, slot, signed(<u32>rs1(x, slot) << <u32>rs2(x, slot)));
          continue;
        case op.OP_SRLW:
          setRd(x, slot, signed(<u32>rs1(x, slot) >> <u32>rs2(x, slot)));
          continue;
        case op.OP_SRAW:
          setRd(x, slot, <u64><i64>(<i32>rs1(x, slot) >> <i32>rs2(x, slot)));
          continue;
        case op.OP_MUL:
          setRd(x, slot, rs1(x, slot) * rs2(x, slot));
          continue;
        case op.OP_MULH:
          setRd(x, slot, integer.mulh(rs1(x, slot), rs2(x, slot)));
          continue;
        case op.OP_MULHSU:
          setRd(x, slot, integer.mulhsu(rs1(x, slot), rs2(x, slot)));
          continue;
        case op.OP_MULHU:
          setRd(x, slot, integer.mulhu(rs1(x, slot), rs2(x, slot)));
          continue;
        case op.OP_DIV:
          setRd(x, slot, integer.div(rs1(x, slot), rs2(x, slot)));
          continue;
        case op.OP_DIVU:
          setRd(x, slot, integer.divu(rs1(x, slot), rs2(x, slot)));
          continue;
        case op.OP_REM:
          setRd(x, slot, integer.rem(rs1(x, slot), rs2(x, slot)));
          continue;
        case op.OP_REMU:
          setRd(x, slot, integer.remu(rs1(x, slot), rs2(x, slot)));
          continue;
        case op.OP_MULW:
          setRd(x, slot, signed(<u32>rs1(x, slot) * <u32>rs2(x, slot)));
          continue;
        case op.OP_DIVW:
          setRd(x, slot, <u64><i64>integer.divw(<i32>rs1(x, slot), <i32>rs2(x, slot)));
          continue;
        case op.OP_DIVUW:
          setRd(x, slot, signed(integer.divuw(<u32>rs1(x, slot), <u32>rs2(x, slot))));
          continue;
        case op.OP_REMW:
          setRd(x, slot, <u64><i64>integer.remw(<i32>rs1(x, slot), <i32>rs2(x, slot)));
          continue;
        case op.OP_REMUW:
          setRd(x, slot, signed(integer.remuw(<u32>rs1(x, slot), <u32>rs2(x, slot))));
          continue;
        case op.OP_ADD_UW:
          setRd(x, slot, <u64><u32>rs1(x, slot) + rs2(x, slot));
          continue;
        case op.OP_SH1ADD:
          setRd(x, slot, (rs1(x, slot) << 1) + rs2(x, slot));
          continue;
        case op.OP_SH2ADD:
          setRd(x, slot, (rs1(x, slot) << 2) + rs2(x, slot));
          continue;
        case op.OP_SH3ADD:
          setRd(x, slot, (rs1(x, slot) << 3) + rs2(x, slot));
          continue;
        case op.OP_SH1ADD_UW:
          setRd(x, slot, (<u64><u32>rs1(x, slot) << 1) + rs2(x, slot));
          continue;
        case op.OP_SH2ADD_UW:
          setRd(x, slot, (<u64><u32>rs1(x, slot) << 2) + rs2(x, slot));
          continue;
        case op.OP_SH3ADD_UW:
          setRd(x, slot, (<u64><u32>rs1(x, slot) << 3) + rs2(x, slot));
          continue;
        case op.OP_SLLI_UW:
          setRd(x, slot, <u64><u32>rs1(x, slot) << immediate(slot));
          continue;
        case op.OP_ANDN:
          setRd(x, slot, rs1(x, slot) & ~rs2(x, slot));
          continue;
        case op.OP_ORN:
          setRd(x, slot, rs1(x, slot) | ~rs2(x, slot));
          continue;
        case op.OP_XNOR:
          setRd(x, slot, rs1(x, slot) ^ ~rs2(x, slot));
          continue;
        case op.OP_CLZ:
          setRd(x, slot, clz<u64>(rs1(x, slot)));
          continue;
        case op.OP_CLZW:
          setRd(x, slot, <u64>clz<u32>(<u32>rs1(x, slot)));
          continue;
        case op.OP_CTZ:
          setRd(x, slot, ctz<u64>(rs1(x, slot)));
          continue;
        case op.OP_CTZW:
          setRd(x, slot, <u64>ctz<u32>(<u32>rs1(x, slot)));
          continue;
        case op.OP_CPOP:
          setRd(x, slot, popcnt<u64>(rs1(x, slot)));
          continue;
        case op.OP_CPOPW:
          setRd(x, slot, <u64>popcnt<u32>(<u32>rs1(x, slot)));
          continue;
        case op.OP_MAX: {
          const a = rs1(x, slot);
          const b = rs2(x, slot);
          setRd(x, slot, <i64>a > <i64>b ? a : b);
          continue;
        }
        case op.OP_MAXU: {
          const a = rs1(x, slot);
          const b = rs2(x, slot);
          setRd(x, slot, <u64>a > <u64>b ? a : b);
          continue;
        }
        case op.OP_MIN: {
          const a = rs1(x, slot);
          const b = rs2(x, slot);
          setRd(x, slot, <i64>a < <i64>b ? a : b);
          continue;
        }
        case op.OP_MINU: {
          const a = rs1(x, slot);
          const b = rs2(x, slot);
          setRd(x, slot, <u64>a < <u64>b ? a : b);
          continue;
        }
        case op.OP_SEXT_B:
          setRd(x, slot, <u64><i64><i8>rs1(x, slot));
          continue;
        case op.OP_SEXT_H:
          setRd(x, slot, <u64><i64><i16>rs1(x, slot));
          continue;
        case op.OP_ZEXT_H:
          setRd(x, slot, rs1(x, slot) & 0xffff);
          continue;
        case op.OP_ROL:
          setRd(x, slot, rotl<u64>(rs1(x, slot), rs2(x, slot)));
          continue;
        case op.OP_ROLW:
          setRd(x, slot, signed(rotl<u32>(<u32>rs1(x, slot), <u32>rs2(x, slot))));
          continue;
        case op.OP_ROR:
          setRd(x, slot, rotr<u64>(rs1(x, slot), rs2(x, slot)));
          continue;
        case op.OP_RORW:
          setRd(x, slot, signed(rotr<u32>(<u32>rs1(x, slot), <u32>rs2(x, slot))));
          continue;
        case op.OP_RORI:
          setRd(x, slot, rotr<u64>(rs1(x, slot), immediate(slot)));
          continue;
        case op.OP_RORIW:
          setRd(x, slot, signed(rotr<u32>(<u32>rs1(x, slot), immediate32(slot))));
          continue;
        case op.OP_ORC_B:
          setRd(x, slot, integer.orCombine(rs1(x, slot)));
          continue;
        case op.OP_REV8:
          setRd(x, slot, bswap<u64>(rs1(x, slot)));
          continue;
        case op.OP_BCLR:
          setRd(x, slot, rs1(x, slot) & ~(<u64>1 << rs2(x, slot)));
          continue;
        case op.OP_BCLRI:
          setRd(x, slot, rs1(x, slot) & ~(<u64>1 << immediate(slot)));
          continue;
        case op.OP_BEXT:
          setRd(x, slot, (rs1(x, slot) >> rs2(x, slot)) & 1);
          continue;
        case op.OP_BEXTI:
          setRd(x, slot, (rs1(x, slot) >> immediate(slot)) & 1);
          continue;
        case op.OP_BINV:
          setRd(x, slot, rs1(x, slot) ^ (<u64>1 << rs2(x, slot)));
          continue;
        case op.OP_BINVI:
          setRd(x, slot, rs1(x, slot) ^ (<u64>1 << immediate(slot)));
          continue;
        case op.OP_BSET:
          setRd(x, slot, rs1(x, slot) | (<u64>1 << rs2(x, slot)));
          continue;
        case op.OP_BSETI:
          setRd(x, slot, rs1(x, slot) | (<u64>1 << immediate(slot)));
          continue;
        case op.OP_FENCE:
          // The compiler's atomic.fence does not validate; any atomic read-modify-write is as
          // strong.
          atomic.add<u32>(x, 0, FENCE_WORD_FROM_X);
          continue;
        case op.OP_FLW: {
          const va = rs1(x, slot) + immediate(slot);
          const entry = tlbEntry(tlb, va);
          if (!isFloatDirty || !hits(entry, va, 3)) return stopSlow(at, left, slot);
          setFd(x, slot, FLOAT_BOX | <u64>load<u32>(hostAddress(entry, va)));
          continue;
        }
        case op.OP_FLD: {
          const va = rs1(x, slot) + immediate(slot);
          const entry = tlbEntry(tlb, va);
          if (!isFloatDirty || !hits(entry, va, 7)) return stopSlow(at, left, slot);
          setFd(x, slot, load<u64>(hostAddress(entry, va)));
          continue;
        }
        case op.OP_FSW: {
          const va = rs1(x, slot) + immediate(slot);
          const entry = tlbEntry(tlb + TLB_WRITE, va);
          if (!isFloatDirty || !hits(entry, va, 3)) return stopSlow(at, left, slot);
          store<u32>(hostAddress(entry, va), <u32>fs2(x, slot));
          continue;
        }
        case op.OP_FSD: {
          const va = rs1(x, slot) + immediate(slot);
          const entry = tlbEntry(tlb + TLB_WRITE, va);
          if (!isFloatDirty || !hits(entry, va, 7)) return stopSlow(at, left, slot);
          store<u64>(hostAddress(entry, va), fs2(x, slot));
          continue;
        }
        case op.OP_FADD_D: {
          const result = bits64(host64(fs1(x, slot)) + host64(fs2(x, slot)));
          if (!isFloatHost || !isPlain64(result)) return stopSlow(at, left, slot);
          setFd(x, slot, result);
          continue;
        }
        case op.OP_FSUB_D: {
          const result = bits64(host64(fs1(x, slot)) - host64(fs2(x, slot)));
          if (!isFloatHost || !isPlain64(result)) return stopSlow(at, left, slot);
          setFd(x, slot, result);
          continue;
        }
        case op.OP_FMUL_D: {
          const result = bits64(host64(fs1(x, slot)) * host64(fs2(x, slot)));
          if (!isFloatHost || !isPlain64(result)) return stopSlow(at, left, slot);
          setFd(x, slot, result);
          continue;
        }
        case op.OP_FDIV_D: {
          const result = bits64(host64(fs1(x, slot)) / host64(fs2(x, slot)));
          if (!isFloatHost || !isPlain64(result)) return stopSlow(at, left, slot);
          setFd(x, slot, result);
          continue;
        }
        case op.OP_FMADD_D: {
          const result = fma64(fs1(x, slot), fs2(x, slot), fs3(x, slot));
          if (!isFloatHost || !hostFuses || !isPlain64(result)) return stopSlow(at, left, slot);
          setFd(x, slot, result);
          continue;
        }
        case op.OP_FMSUB_D: {
          const result = fma64(fs1(x, slot), fs2(x, slot), fs3(x, slot) ^ F64_SIGN);
          if (!isFloatHost || !hostFuses || !isPlain64(result)) return stopSlow(at, left, slot);
          setFd(x, slot, result);
          continue;
        }
        case op.OP_FNMSUB_D: {
          const result = fma64(fs1(x, slot) ^ F64_SIGN, fs2(x, slot), fs3(x, slot));
          if (!isFloatHost || !hostFuses || !isPlain64(result)) return stopSlow(at, left, slot);
          setFd(x, slot, result);
          continue;
        }
        case op.OP_FNMADD_D: {
          const result = fma64(fs1(x, slot) ^ F64_SIGN, fs2(x, slot), fs3(x, slot) ^ F64_SIGN);
          if (!isFloatHost || !hostFuses || !isPlain64(result)) return stopSlow(at, left, slot);
          setFd(x, slot, result);
          continue;
        }
        case op.OP_FADD_S: {
          const a = fs1(x, slot);
          const b = fs2(x, slot);
          const result = bits32(host32(a) + host32(b));
          if (!isFloatHost || (a & b) < FLOAT_BOX || !isPlain32(result)) {
            return stopSlow(at, left, slot);
          }
          setFd(x, slot, FLOAT_BOX | <u64>result);
          continue;
        }
        case op.OP_FSUB_S: {
          const a = fs1(x, slot);
          const b = fs2(x, slot);
          const result = bits32(host32(a) - host32(b));
          if (!isFloatHost || (a & b) < FLOAT_BOX || !isPlain32(result)) {
            return stopSlow(at, left, slot);
          }
          setFd(x, slot, FLOAT_BOX | <u64>result);
          continue;
        }
        case op.OP_FMUL_S: {
          const a = fs1(x, slot);
          const b = fs2(x, slot);
          const result = bits32(host32(a) * host32(b));
          if (!isFloatHost || (a & b) < FLOAT_BOX || !isPlain32(result)) {
            return stopSlow(at, left, slot);
          }
          setFd(x, slot, FLOAT_BOX | <u64>result);
          continue;
        }
        case op.OP_FDIV_S: {
          const a = fs1(x, slot);
          const b = fs2(x, slot);
          const result = bits32(host32(a) / host32(b));
          if (!isFloatHost || (a & b) < FLOAT_BOX || !isPlain32(result)) {
            return stopSlow(at, left, slot);
          }
          setFd(x, slot, FLOAT_BOX | <u64>result);
          continue;
        }
        case op.OP_FSGNJ_D:
          if (!isFloatDirty) return stopSlow(at, left, slot);
          setFd(x, slot, (fs1(x, slot) & ~F64_SIGN) | (fs2(x, slot) & F64_SIGN));
          continue;
        case op.OP_FMV_X_D:
          if (!isFloatDirty) return stopSlow(at, left, slot);
          setRd(x, slot, fs1(x, slot));
          continue;
        case op.OP_FMV_D_X:
          if (!isFloatDirty) return stopSlow(at, left, slot);
          setFd(x, slot, rs1(x, slot));
          continue;
        case op.OP_FLE_D: {
          const a = host64(fs1(x, slot));
          const b = host64(fs2(x, slot));
          if (!isFloatDirty || a !== a || b !== b) return stopSlow(at, left, slot);
          setRd(x, slot, <u64>(a <= b));
          continue;
        }
        case op.OP_FLT_D: {
          const a = host64(fs1(x, slot));
          const b = host64(fs2(x, slot));
          if (!isFloatDirty || a !== a || b !== b) return stopSlow(at, left, slot);
          setRd(x, slot, <u64>(a < b));
          continue;
        }
        case op.OP_FEQ_D: {
          const a = host64(fs1(x, slot));
          const b = host64(fs2(x, slot));
          if (!isFloatDirty || a !== a || b !== b) return stopSlow(at, left, slot);
          setRd(x, slot, <u64>(a === b));
          continue;
        }
        case op.OP_FCVT_D_W:
          if (!isFloatDirty) return stopSlow(at, left, slot);
          setFd(x, slot, bits64(<f64><i32>rs1(x, slot)));
          continue;
        default:
          return stopSlow(at, left, slot);
      }

    // A jump off the page.
    const fetchEntry = tlbEntry(fetchTlb, target);
    if (left <= 0 || (target & ~0xfff) !== load<u64>(fetchEntry)) return stopJump(left, target);
    at = load<u32>(fetchEntry, 8) + ((<u32>target & 0xffe) << 2);
    pcOf = target - <u64>(at >> 2);
  }
}
