/**
 * The interpreter's loop: one dispatch and one handler for each guest instruction.
 *
 * Everything that the loop keeps is in locals: `at`, the address of the next decoded instruction;
 * `pcOf`, what to add to at / 4 for the guest's pc; `left`, the instructions that may still be retired;
 * `h`, `tlb` and `fetchTlb`, addresses that hold while the loop runs. Privilege, mstatus and translation
 * never change inside the loop without leaving it.
 *
 * A handler ends with `continue` (next instruction), with `break` after setting `target` (jump off the
 * page), or with `return` (exception, or something that `run` has to look at). `left` is checked where
 * control goes elsewhere, so a slice overruns its budget by a page of straight code at most.
 *
 * pc and instret are in memory exactly when the loop is left and when a CSR instruction runs.
 */

import { sbiCall } from "./board/sbi";
import * as atomics from "./atomics";
import { currentFetchTlb, decodeAt, decodeStraddling, dropStaleCode, findCode } from "./code";
import { executeCsr } from "./csr";
import {
  CAUSE_BREAKPOINT,
  CAUSE_ECALL_U,
  CAUSE_ILLEGAL_INSTRUCTION,
  clearEvent,
  event,
  EVENT_EXCEPTION,
  EVENT_NONE,
  raiseException,
} from "./event";
import { executeFloat, executeFma, isFloatOn, markFloatDirty } from "./float_ops";
import * as integer from "./integer";
import { HART_F, HART_STATE_WORD, HART_WAITING, HART_X, SBI_BUILT_IN } from "./layout";
import { currentTlb, loadSlow, storeSlow } from "./mmu";
import * as op from "./opcodes";
import {
  flushTlb,
  flushTlbPage,
  getCsr,
  getInstret,
  getPriv,
  getX,
  hart,
  HART_FENCE_WORD,
  MSTATUS,
  MSTATUS_TSR,
  MSTATUS_TVM,
  MSTATUS_TW,
  PRIV_M,
  PRIV_S,
  PRIV_U,
  setInstret,
  setPc,
  TLB_MASK,
  TLB_SHIFT,
  TLB_WRITE,
} from "./state";
import { returnFromMachine, returnFromSupervisor, takeException } from "./trap";

/** The budget is used up, or interrupts, privilege or translation may have changed. */
export const EXIT_TO_TURN: u32 = 0;
/** The hart waits or was stopped, or devices want to be looked at: the slice is over. */
export const EXIT_TO_SLICE: u32 = 1;

/** Why the loop was left. */
export let exitKind: u32 = 0;

/** instret when `left` will be 0. */
let instretEnd: u64 = 0;

const FS_DIRTY: u32 = 0x6000;
const FLOAT_BOX: u64 = 0xffff_ffff_0000_0000;

// ---- operands -----------------------------------------------------------------------------------

function rs1(h: u32, low: u32): u64 {
  return load<u64>(h + ((low >> 8) & 0xf8), HART_X);
}

function rs2(h: u32, low: u32): u64 {
  return load<u64>(h + ((low >> 16) & 0xf8), HART_X);
}

function setRd(h: u32, low: u32, value: u64): void {
  store<u64>(h + (low & 0xf8), value, HART_X);
}

function signed(value: u32): u64 {
  return <u64> <i64> <i32> value;
}

/** An access hits if its page is there and it is aligned: one comparison. */

function tlbEntry(table: u32, va: u64): u32 {
  return table + (<u32> (va >> TLB_SHIFT) & TLB_MASK);
}

function hits(entry: u32, va: u64, alignMask: u64): bool {
  return (va & (~0xfff | alignMask)) === load<u64>(entry);
}

function hostAddress(entry: u32, va: u64): u32 {
  return <u32> va + load<u32>(entry, 8);
}

// ---- ways out -----------------------------------------------------------------------------------

/** Takes the exception that the instruction at `pc` raised; it does not retire. */
function leaveWithException(pc: u64, left: i32): void {
  setPc(pc);
  setInstret(instretEnd - <i64> (left + 1));
  takeException();
  exitKind = EXIT_TO_TURN;
}

/** The next instruction is at `pc`. */
function leave(pc: u64, left: i32, kind: u32): void {
  clearEvent();
  setPc(pc);
  setInstret(instretEnd - <i64> left);
  exitKind = kind;
}

function illegalInstruction(bits: u32): void {
  raiseException(CAUSE_ILLEGAL_INSTRUCTION, bits);
}

// ---- privileged instructions: pc and instret stand in memory, without this one --------------------

/** Whether ECALL was answered by the built-in SBI; else it raised its exception. */
function executeEcall(pc: u64): bool {
  const priv = getPriv();
  if (priv === PRIV_S && load<u32>(SBI_BUILT_IN) !== 0) {
    setPc(pc + 4);
    setInstret(getInstret() + 1);
    sbiCall();
    return true;
  }
  raiseException(CAUSE_ECALL_U + priv, 0);
  return false;
}

/** MRET, SRET: false if not allowed here. */
function executeReturn(isMachine: bool): bool {
  const priv = getPriv();
  if (isMachine) {
    if (priv !== PRIV_M) return false;
    setInstret(getInstret() + 1);
    returnFromMachine();
    return true;
  }
  if (priv === PRIV_U || (priv === PRIV_S && (getCsr(MSTATUS) & MSTATUS_TSR) !== 0)) return false;
  setInstret(getInstret() + 1);
  returnFromSupervisor();
  return true;
}

/** WFI: false if not allowed here (Priv 3.1.6.6, 3.3.3). */
function executeWfi(): bool {
  const priv = getPriv();
  if (priv === PRIV_U) return false;
  if (priv === PRIV_S && (getCsr(MSTATUS) & MSTATUS_TW) !== 0) return false;
  atomic.store<u32>(hart + HART_STATE_WORD, HART_WAITING);
  return true;
}

/** SFENCE.VMA and SINVAL.VMA: false if not allowed here. */
function executeSfence(bits: u32): bool {
  const priv = getPriv();
  if (priv === PRIV_U) return false;
  if (priv === PRIV_S && (getCsr(MSTATUS) & MSTATUS_TVM) !== 0) return false;
  const rs1Index = (bits >> 15) & 31;
  if (rs1Index === 0) flushTlb();
  else flushTlbPage(getX(rs1Index), 0);
  return true;
}

// ---- the loop -----------------------------------------------------------------------------------

/** Executes about `budget` instructions from the pc in memory on. */
export function execute(budget: i32): void {
  const h = hart;
  const tlb = currentTlb();
  const fetchTlb = currentFetchTlb();
  let left = budget;
  let target: u64 = load<u64>(h, 0x300);
  let at: u32 = 0;
  let pcOf: u64 = 0;
  instretEnd = getInstret() + <u64> budget;

  while (true) {
    // A jump off the page, or the start.
    if (left <= 0) return leave(target, left, EXIT_TO_TURN);
    const fetchEntry = fetchTlb + (<u32> (target >> TLB_SHIFT) & TLB_MASK);
    if ((target & ~0xfff) === load<u64>(fetchEntry)) {
      at = load<u32>(fetchEntry, 8) + ((<u32> target & 0xffe) << 2);
    } else {
      at = findCode(target);
      if (at === 0) return leaveWithException(target, left - 1);
    }
    pcOf = target - <u64> (at >> 2);

    while (true) {
      const slot = load<u64>(at);
      const low = <u32> slot;
      const imm: u64 = <u64> (<i64> slot >> 32);
      at += (low & 6) << 2;
      left--;
      switch (low >>> 24) {
        case op.OP_UNDECODED: {
          left++;
          const pc = pcOf + <u64> (at >> 2);
          const offset = <u32> pc & 0xffe;
          if (decodeAt(at - (offset << 2), offset) === 0) {
            at = decodeStraddling(pc);
            if (at === 0) return leaveWithException(pc, left - 1);
            pcOf = pc - <u64> (at >> 2);
          }
          continue;
        }
        case op.OP_PAGE_END:
          left++;
          target = pcOf + <u64> (at >> 2);
          break;
        case op.OP_ILLEGAL:
          illegalInstruction(<u32> imm);
          return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
        case op.OP_NOP:
          continue;
        case op.OP_LI:
          setRd(h, low, imm);
          continue;
        case op.OP_AUIPC:
          setRd(h, low, pcOf + <u64> (at >> 2) - 4 + imm);
          continue;
        case op.OP_J:
          at += <u32> imm;
          if (left > 0) continue;
          target = pcOf + <u64> (at >> 2);
          break;
        case op.OP_J_FAR:
          target = pcOf + <u64> (at >> 2) - <u64> (low & 6) + imm;
          break;
        case op.OP_JAL:
          setRd(h, low, pcOf + <u64> (at >> 2));
          at += <u32> imm;
          if (left > 0) continue;
          target = pcOf + <u64> (at >> 2);
          break;
        case op.OP_JAL_FAR:
          target = pcOf + <u64> (at >> 2) - <u64> (low & 6) + imm;
          setRd(h, low, pcOf + <u64> (at >> 2));
          break;
        case op.OP_JR:
          target = (rs1(h, low) + imm) & ~1;
          break;
        case op.OP_JALR:
          target = (rs1(h, low) + imm) & ~1;
          setRd(h, low, pcOf + <u64> (at >> 2));
          break;
        case op.OP_BEQ:
          if (rs1(h, low) !== rs2(h, low)) continue;
          at += <u32> imm;
          if (left > 0) continue;
          target = pcOf + <u64> (at >> 2);
          break;
        case op.OP_BNE:
          if (rs1(h, low) === rs2(h, low)) continue;
          at += <u32> imm;
          if (left > 0) continue;
          target = pcOf + <u64> (at >> 2);
          break;
        case op.OP_BLT:
          if (<i64> rs1(h, low) >= <i64> rs2(h, low)) continue;
          at += <u32> imm;
          if (left > 0) continue;
          target = pcOf + <u64> (at >> 2);
          break;
        case op.OP_BGE:
          if (<i64> rs1(h, low) < <i64> rs2(h, low)) continue;
          at += <u32> imm;
          if (left > 0) continue;
          target = pcOf + <u64> (at >> 2);
          break;
        case op.OP_BLTU:
          if (rs1(h, low) >= rs2(h, low)) continue;
          at += <u32> imm;
          if (left > 0) continue;
          target = pcOf + <u64> (at >> 2);
          break;
        case op.OP_BGEU:
          if (rs1(h, low) < rs2(h, low)) continue;
          at += <u32> imm;
          if (left > 0) continue;
          target = pcOf + <u64> (at >> 2);
          break;
        case op.OP_BEQ_FAR:
          if (rs1(h, low) !== rs2(h, low)) continue;
          target = pcOf + <u64> (at >> 2) - <u64> (low & 6) + imm;
          break;
        case op.OP_BNE_FAR:
          if (rs1(h, low) === rs2(h, low)) continue;
          target = pcOf + <u64> (at >> 2) - <u64> (low & 6) + imm;
          break;
        case op.OP_BLT_FAR:
          if (<i64> rs1(h, low) >= <i64> rs2(h, low)) continue;
          target = pcOf + <u64> (at >> 2) - <u64> (low & 6) + imm;
          break;
        case op.OP_BGE_FAR:
          if (<i64> rs1(h, low) < <i64> rs2(h, low)) continue;
          target = pcOf + <u64> (at >> 2) - <u64> (low & 6) + imm;
          break;
        case op.OP_BLTU_FAR:
          if (rs1(h, low) >= rs2(h, low)) continue;
          target = pcOf + <u64> (at >> 2) - <u64> (low & 6) + imm;
          break;
        case op.OP_BGEU_FAR:
          if (rs1(h, low) < rs2(h, low)) continue;
          target = pcOf + <u64> (at >> 2) - <u64> (low & 6) + imm;
          break;
        case op.OP_LB: {
          const va = rs1(h, low) + imm;
          const entry = tlbEntry(tlb, va);
          if (hits(entry, va, 0)) {
            setRd(h, low, <u64> <i64> load<i8>(hostAddress(entry, va)));
            continue;
          }
          const value = loadSlow(va, 1);
          if (event === EVENT_EXCEPTION) {
            return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
          }
          setRd(h, low, <u64> <i64> <i8> value);
          if (event === EVENT_NONE) continue;
          return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_TURN);
        }
        case op.OP_LH: {
          const va = rs1(h, low) + imm;
          const entry = tlbEntry(tlb, va);
          if (hits(entry, va, 1)) {
            setRd(h, low, <u64> <i64> load<i16>(hostAddress(entry, va)));
            continue;
          }
          const value = loadSlow(va, 2);
          if (event === EVENT_EXCEPTION) {
            return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
          }
          setRd(h, low, <u64> <i64> <i16> value);
          if (event === EVENT_NONE) continue;
          return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_TURN);
        }
        case op.OP_LW: {
          const va = rs1(h, low) + imm;
          const entry = tlbEntry(tlb, va);
          if (hits(entry, va, 3)) {
            setRd(h, low, <u64> <i64> load<i32>(hostAddress(entry, va)));
            continue;
          }
          const value = loadSlow(va, 4);
          if (event === EVENT_EXCEPTION) {
            return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
          }
          setRd(h, low, <u64> <i64> <i32> value);
          if (event === EVENT_NONE) continue;
          return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_TURN);
        }
        case op.OP_LD: {
          const va = rs1(h, low) + imm;
          const entry = tlbEntry(tlb, va);
          if (hits(entry, va, 7)) {
            setRd(h, low, load<u64>(hostAddress(entry, va)));
            continue;
          }
          const value = loadSlow(va, 8);
          if (event === EVENT_EXCEPTION) {
            return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
          }
          setRd(h, low, value);
          if (event === EVENT_NONE) continue;
          return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_TURN);
        }
        case op.OP_LBU: {
          const va = rs1(h, low) + imm;
          const entry = tlbEntry(tlb, va);
          if (hits(entry, va, 0)) {
            setRd(h, low, <u64> load<u8>(hostAddress(entry, va)));
            continue;
          }
          const value = loadSlow(va, 1);
          if (event === EVENT_EXCEPTION) {
            return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
          }
          setRd(h, low, value);
          if (event === EVENT_NONE) continue;
          return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_TURN);
        }
        case op.OP_LHU: {
          const va = rs1(h, low) + imm;
          const entry = tlbEntry(tlb, va);
          if (hits(entry, va, 1)) {
            setRd(h, low, <u64> load<u16>(hostAddress(entry, va)));
            continue;
          }
          const value = loadSlow(va, 2);
          if (event === EVENT_EXCEPTION) {
            return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
          }
          setRd(h, low, value);
          if (event === EVENT_NONE) continue;
          return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_TURN);
        }
        case op.OP_LWU: {
          const va = rs1(h, low) + imm;
          const entry = tlbEntry(tlb, va);
          if (hits(entry, va, 3)) {
            setRd(h, low, <u64> load<u32>(hostAddress(entry, va)));
            continue;
          }
          const value = loadSlow(va, 4);
          if (event === EVENT_EXCEPTION) {
            return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
          }
          setRd(h, low, value);
          if (event === EVENT_NONE) continue;
          return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_TURN);
        }
        case op.OP_LOAD_X0:
          loadSlow(rs1(h, low) + imm, <u32> 1 << ((low >> 19) & 3));
          if (event === EVENT_EXCEPTION) {
            return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
          }
          if (event === EVENT_NONE) continue;
          return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_TURN);
        case op.OP_SB: {
          const va = rs1(h, low) + imm;
          const entry = tlbEntry(tlb + TLB_WRITE, va);
          if (hits(entry, va, 0)) {
            store<u8>(hostAddress(entry, va), <u8> rs2(h, low));
            continue;
          }
          storeSlow(va, rs2(h, low), 1);
          if (event === EVENT_NONE) continue;
          if (event === EVENT_EXCEPTION) {
            return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
          }
          return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_TURN);
        }
        case op.OP_SH: {
          const va = rs1(h, low) + imm;
          const entry = tlbEntry(tlb + TLB_WRITE, va);
          if (hits(entry, va, 1)) {
            store<u16>(hostAddress(entry, va), <u16> rs2(h, low));
            continue;
          }
          storeSlow(va, rs2(h, low), 2);
          if (event === EVENT_NONE) continue;
          if (event === EVENT_EXCEPTION) {
            return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
          }
          return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_TURN);
        }
        case op.OP_SW: {
          const va = rs1(h, low) + imm;
          const entry = tlbEntry(tlb + TLB_WRITE, va);
          if (hits(entry, va, 3)) {
            store<u32>(hostAddress(entry, va), <u32> rs2(h, low));
            continue;
          }
          storeSlow(va, rs2(h, low), 4);
          if (event === EVENT_NONE) continue;
          if (event === EVENT_EXCEPTION) {
            return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
          }
          return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_TURN);
        }
        case op.OP_SD: {
          const va = rs1(h, low) + imm;
          const entry = tlbEntry(tlb + TLB_WRITE, va);
          if (hits(entry, va, 7)) {
            store<u64>(hostAddress(entry, va), rs2(h, low));
            continue;
          }
          storeSlow(va, rs2(h, low), 8);
          if (event === EVENT_NONE) continue;
          if (event === EVENT_EXCEPTION) {
            return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
          }
          return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_TURN);
        }
        case op.OP_ADDI:
          setRd(h, low, rs1(h, low) + imm);
          continue;
        case op.OP_SLTI:
          setRd(h, low, <u64> (<i64> rs1(h, low) < <i64> imm));
          continue;
        case op.OP_SLTIU:
          setRd(h, low, <u64> (rs1(h, low) < imm));
          continue;
        case op.OP_XORI:
          setRd(h, low, rs1(h, low) ^ imm);
          continue;
        case op.OP_ORI:
          setRd(h, low, rs1(h, low) | imm);
          continue;
        case op.OP_ANDI:
          setRd(h, low, rs1(h, low) & imm);
          continue;
        case op.OP_SLLI:
          setRd(h, low, rs1(h, low) << imm);
          continue;
        case op.OP_SRLI:
          setRd(h, low, rs1(h, low) >> imm);
          continue;
        case op.OP_SRAI:
          setRd(h, low, <u64> (<i64> rs1(h, low) >> <i64> imm));
          continue;
        case op.OP_ADDIW:
          setRd(h, low, signed(<u32> rs1(h, low) + <u32> imm));
          continue;
        case op.OP_SLLIW:
          setRd(h, low, signed(<u32> rs1(h, low) << <u32> imm));
          continue;
        case op.OP_SRLIW:
          setRd(h, low, signed(<u32> rs1(h, low) >> <u32> imm));
          continue;
        case op.OP_SRAIW:
          setRd(h, low, <u64> <i64> (<i32> rs1(h, low) >> <i32> imm));
          continue;
        case op.OP_MV:
          setRd(h, low, rs1(h, low));
          continue;
        case op.OP_ADD:
          setRd(h, low, rs1(h, low) + rs2(h, low));
          continue;
        case op.OP_SUB:
          setRd(h, low, rs1(h, low) - rs2(h, low));
          continue;
        case op.OP_SLL:
          setRd(h, low, rs1(h, low) << rs2(h, low));
          continue;
        case op.OP_SLT:
          setRd(h, low, <u64> (<i64> rs1(h, low) < <i64> rs2(h, low)));
          continue;
        case op.OP_SLTU:
          setRd(h, low, <u64> (rs1(h, low) < rs2(h, low)));
          continue;
        case op.OP_XOR:
          setRd(h, low, rs1(h, low) ^ rs2(h, low));
          continue;
        case op.OP_SRL:
          setRd(h, low, rs1(h, low) >> rs2(h, low));
          continue;
        case op.OP_SRA:
          setRd(h, low, <u64> (<i64> rs1(h, low) >> <i64> rs2(h, low)));
          continue;
        case op.OP_OR:
          setRd(h, low, rs1(h, low) | rs2(h, low));
          continue;
        case op.OP_AND:
          setRd(h, low, rs1(h, low) & rs2(h, low));
          continue;
        case op.OP_ADDW:
          setRd(h, low, signed(<u32> rs1(h, low) + <u32> rs2(h, low)));
          continue;
        case op.OP_SUBW:
          setRd(h, low, signed(<u32> rs1(h, low) - <u32> rs2(h, low)));
          continue;
        case op.OP_SLLW:
          setRd(h, low, signed(<u32> rs1(h, low) << <u32> rs2(h, low)));
          continue;
        case op.OP_SRLW:
          setRd(h, low, signed(<u32> rs1(h, low) >> <u32> rs2(h, low)));
          continue;
        case op.OP_SRAW:
          setRd(h, low, <u64> <i64> (<i32> rs1(h, low) >> <i32> rs2(h, low)));
          continue;
        case op.OP_MUL:
          setRd(h, low, rs1(h, low) * rs2(h, low));
          continue;
        case op.OP_MULH:
          setRd(h, low, integer.mulh(rs1(h, low), rs2(h, low)));
          continue;
        case op.OP_MULHSU:
          setRd(h, low, integer.mulhsu(rs1(h, low), rs2(h, low)));
          continue;
        case op.OP_MULHU:
          setRd(h, low, integer.mulhu(rs1(h, low), rs2(h, low)));
          continue;
        case op.OP_DIV:
          setRd(h, low, integer.div(rs1(h, low), rs2(h, low)));
          continue;
        case op.OP_DIVU:
          setRd(h, low, integer.divu(rs1(h, low), rs2(h, low)));
          continue;
        case op.OP_REM:
          setRd(h, low, integer.rem(rs1(h, low), rs2(h, low)));
          continue;
        case op.OP_REMU:
          setRd(h, low, integer.remu(rs1(h, low), rs2(h, low)));
          continue;
        case op.OP_MULW:
          setRd(h, low, signed(<u32> rs1(h, low) * <u32> rs2(h, low)));
          continue;
        case op.OP_DIVW:
          setRd(h, low, <u64> <i64> integer.divw(<i32> rs1(h, low), <i32> rs2(h, low)));
          continue;
        case op.OP_DIVUW:
          setRd(h, low, signed(integer.divuw(<u32> rs1(h, low), <u32> rs2(h, low))));
          continue;
        case op.OP_REMW:
          setRd(h, low, <u64> <i64> integer.remw(<i32> rs1(h, low), <i32> rs2(h, low)));
          continue;
        case op.OP_REMUW:
          setRd(h, low, signed(integer.remuw(<u32> rs1(h, low), <u32> rs2(h, low))));
          continue;
        case op.OP_ADD_UW:
          setRd(h, low, <u64> <u32> rs1(h, low) + rs2(h, low));
          continue;
        case op.OP_SH1ADD:
          setRd(h, low, (rs1(h, low) << 1) + rs2(h, low));
          continue;
        case op.OP_SH2ADD:
          setRd(h, low, (rs1(h, low) << 2) + rs2(h, low));
          continue;
        case op.OP_SH3ADD:
          setRd(h, low, (rs1(h, low) << 3) + rs2(h, low));
          continue;
        case op.OP_SH1ADD_UW:
          setRd(h, low, (<u64> <u32> rs1(h, low) << 1) + rs2(h, low));
          continue;
        case op.OP_SH2ADD_UW:
          setRd(h, low, (<u64> <u32> rs1(h, low) << 2) + rs2(h, low));
          continue;
        case op.OP_SH3ADD_UW:
          setRd(h, low, (<u64> <u32> rs1(h, low) << 3) + rs2(h, low));
          continue;
        case op.OP_SLLI_UW:
          setRd(h, low, <u64> <u32> rs1(h, low) << imm);
          continue;
        case op.OP_ANDN:
          setRd(h, low, rs1(h, low) & ~rs2(h, low));
          continue;
        case op.OP_ORN:
          setRd(h, low, rs1(h, low) | ~rs2(h, low));
          continue;
        case op.OP_XNOR:
          setRd(h, low, rs1(h, low) ^ ~rs2(h, low));
          continue;
        case op.OP_CLZ:
          setRd(h, low, clz<u64>(rs1(h, low)));
          continue;
        case op.OP_CLZW:
          setRd(h, low, <u64> clz<u32>(<u32> rs1(h, low)));
          continue;
        case op.OP_CTZ:
          setRd(h, low, ctz<u64>(rs1(h, low)));
          continue;
        case op.OP_CTZW:
          setRd(h, low, <u64> ctz<u32>(<u32> rs1(h, low)));
          continue;
        case op.OP_CPOP:
          setRd(h, low, popcnt<u64>(rs1(h, low)));
          continue;
        case op.OP_CPOPW:
          setRd(h, low, <u64> popcnt<u32>(<u32> rs1(h, low)));
          continue;
        case op.OP_MAX: {
          const a = rs1(h, low);
          const b = rs2(h, low);
          setRd(h, low, <i64> a > <i64> b ? a : b);
          continue;
        }
        case op.OP_MAXU: {
          const a = rs1(h, low);
          const b = rs2(h, low);
          setRd(h, low, <u64> a > <u64> b ? a : b);
          continue;
        }
        case op.OP_MIN: {
          const a = rs1(h, low);
          const b = rs2(h, low);
          setRd(h, low, <i64> a < <i64> b ? a : b);
          continue;
        }
        case op.OP_MINU: {
          const a = rs1(h, low);
          const b = rs2(h, low);
          setRd(h, low, <u64> a < <u64> b ? a : b);
          continue;
        }
        case op.OP_SEXT_B:
          setRd(h, low, <u64> <i64> <i8> rs1(h, low));
          continue;
        case op.OP_SEXT_H:
          setRd(h, low, <u64> <i64> <i16> rs1(h, low));
          continue;
        case op.OP_ZEXT_H:
          setRd(h, low, rs1(h, low) & 0xffff);
          continue;
        case op.OP_ROL:
          setRd(h, low, rotl<u64>(rs1(h, low), rs2(h, low)));
          continue;
        case op.OP_ROLW:
          setRd(h, low, signed(rotl<u32>(<u32> rs1(h, low), <u32> rs2(h, low))));
          continue;
        case op.OP_ROR:
          setRd(h, low, rotr<u64>(rs1(h, low), rs2(h, low)));
          continue;
        case op.OP_RORW:
          setRd(h, low, signed(rotr<u32>(<u32> rs1(h, low), <u32> rs2(h, low))));
          continue;
        case op.OP_RORI:
          setRd(h, low, rotr<u64>(rs1(h, low), imm));
          continue;
        case op.OP_RORIW:
          setRd(h, low, signed(rotr<u32>(<u32> rs1(h, low), <u32> imm)));
          continue;
        case op.OP_ORC_B:
          setRd(h, low, integer.orCombine(rs1(h, low)));
          continue;
        case op.OP_REV8:
          setRd(h, low, bswap<u64>(rs1(h, low)));
          continue;
        case op.OP_BCLR:
          setRd(h, low, rs1(h, low) & ~(<u64> 1 << rs2(h, low)));
          continue;
        case op.OP_BCLRI:
          setRd(h, low, rs1(h, low) & ~(<u64> 1 << imm));
          continue;
        case op.OP_BEXT:
          setRd(h, low, (rs1(h, low) >> rs2(h, low)) & 1);
          continue;
        case op.OP_BEXTI:
          setRd(h, low, (rs1(h, low) >> imm) & 1);
          continue;
        case op.OP_BINV:
          setRd(h, low, rs1(h, low) ^ (<u64> 1 << rs2(h, low)));
          continue;
        case op.OP_BINVI:
          setRd(h, low, rs1(h, low) ^ (<u64> 1 << imm));
          continue;
        case op.OP_BSET:
          setRd(h, low, rs1(h, low) | (<u64> 1 << rs2(h, low)));
          continue;
        case op.OP_BSETI:
          setRd(h, low, rs1(h, low) | (<u64> 1 << imm));
          continue;
        case op.OP_FENCE:
          // The compiler's atomic.fence does not validate; any atomic read-modify-write is as strong.
          atomic.add<u32>(h, 0, HART_FENCE_WORD);
          continue;
        case op.OP_FENCE_I:
          dropStaleCode();
          target = pcOf + <u64> (at >> 2);
          break;
        case op.OP_ECALL: {
          const pc = pcOf + <u64> (at >> 2) - <u64> (low & 6);
          setPc(pc);
          setInstret(instretEnd - <i64> (left + 1));
          if (!executeEcall(pc)) return leaveWithException(pc, left);
          exitKind = EXIT_TO_SLICE;
          return;
        }
        case op.OP_EBREAK: {
          const pc = pcOf + <u64> (at >> 2) - <u64> (low & 6);
          raiseException(CAUSE_BREAKPOINT, pc);
          return leaveWithException(pc, left);
        }
        case op.OP_MRET: {
          const pc = pcOf + <u64> (at >> 2) - <u64> (low & 6);
          setPc(pc);
          setInstret(instretEnd - <i64> (left + 1));
          if (!executeReturn(true)) {
            illegalInstruction(<u32> imm);
            return leaveWithException(pc, left);
          }
          exitKind = EXIT_TO_TURN;
          return;
        }
        case op.OP_SRET: {
          const pc = pcOf + <u64> (at >> 2) - <u64> (low & 6);
          setPc(pc);
          setInstret(instretEnd - <i64> (left + 1));
          if (!executeReturn(false)) {
            illegalInstruction(<u32> imm);
            return leaveWithException(pc, left);
          }
          exitKind = EXIT_TO_TURN;
          return;
        }
        case op.OP_WFI:
          if (executeWfi()) return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_SLICE);
          illegalInstruction(<u32> imm);
          return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
        case op.OP_SFENCE_VMA:
          if (executeSfence(<u32> imm)) {
            target = pcOf + <u64> (at >> 2);
            break;
          }
          illegalInstruction(<u32> imm);
          return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
        case op.OP_SFENCE_INVAL:
          if (getPriv() !== PRIV_U) continue;
          illegalInstruction(<u32> imm);
          return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
        case op.OP_CSR: {
          const pc = pcOf + <u64> (at >> 2) - <u64> (low & 6);
          setPc(pc);
          setInstret(instretEnd - <i64> (left + 1));
          executeCsr(<u32> imm);
          if (event === EVENT_NONE) continue;
          if (event === EVENT_EXCEPTION) return leaveWithException(pc, left);
          return leave(pc + 4, left, EXIT_TO_TURN);
        }
        case op.OP_LR_W:
          atomics.loadReservedWord((low >> 3) & 31, (low >> 11) & 31);
          if (event === EVENT_NONE) continue;
          return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
        case op.OP_LR_D:
          atomics.loadReservedDouble((low >> 3) & 31, (low >> 11) & 31);
          if (event === EVENT_NONE) continue;
          return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
        case op.OP_SC_W:
          atomics.storeConditionalWord((low >> 3) & 31, (low >> 11) & 31, (low >> 19) & 31);
          if (event === EVENT_NONE) continue;
          return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
        case op.OP_SC_D:
          atomics.storeConditionalDouble((low >> 3) & 31, (low >> 11) & 31, (low >> 19) & 31);
          if (event === EVENT_NONE) continue;
          return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
        case op.OP_AMO_W:
          atomics.amoWord(<u32> imm, (low >> 3) & 31, (low >> 11) & 31, (low >> 19) & 31);
          if (event === EVENT_NONE) continue;
          return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
        case op.OP_AMO_D:
          atomics.amoDouble(<u32> imm, (low >> 3) & 31, (low >> 11) & 31, (low >> 19) & 31);
          if (event === EVENT_NONE) continue;
          return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
        case op.OP_FLW: {
          const va = rs1(h, low) + imm;
          const entry = tlbEntry(tlb, va);
          if ((load<u32>(h, MSTATUS) & FS_DIRTY) === FS_DIRTY && hits(entry, va, 3)) {
            store<u64>(
              h + (low & 0xf8),
              FLOAT_BOX | <u64> load<u32>(hostAddress(entry, va)),
              HART_F,
            );
            continue;
          }
          if (isFloatOn(0)) {
            const value = loadSlow(va, 4);
            if (event !== EVENT_EXCEPTION) {
              store<u64>(h + (low & 0xf8), FLOAT_BOX | value, HART_F);
              markFloatDirty();
            }
          }
          if (event === EVENT_NONE) continue;
          if (event === EVENT_EXCEPTION) {
            return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
          }
          return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_TURN);
        }
        case op.OP_FLD: {
          const va = rs1(h, low) + imm;
          const entry = tlbEntry(tlb, va);
          if ((load<u32>(h, MSTATUS) & FS_DIRTY) === FS_DIRTY && hits(entry, va, 7)) {
            store<u64>(h + (low & 0xf8), load<u64>(hostAddress(entry, va)), HART_F);
            continue;
          }
          if (isFloatOn(0)) {
            const value = loadSlow(va, 8);
            if (event !== EVENT_EXCEPTION) {
              store<u64>(h + (low & 0xf8), value, HART_F);
              markFloatDirty();
            }
          }
          if (event === EVENT_NONE) continue;
          if (event === EVENT_EXCEPTION) {
            return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
          }
          return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_TURN);
        }
        case op.OP_FSW: {
          const va = rs1(h, low) + imm;
          const entry = tlbEntry(tlb + TLB_WRITE, va);
          if ((load<u32>(h, MSTATUS) & FS_DIRTY) !== 0 && hits(entry, va, 3)) {
            store<u32>(hostAddress(entry, va), <u32> load<u64>(h + ((low >> 16) & 0xf8), HART_F));
            continue;
          }
          if (isFloatOn(0)) storeSlow(va, load<u64>(h + ((low >> 16) & 0xf8), HART_F), 4);
          if (event === EVENT_NONE) continue;
          if (event === EVENT_EXCEPTION) {
            return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
          }
          return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_TURN);
        }
        case op.OP_FSD: {
          const va = rs1(h, low) + imm;
          const entry = tlbEntry(tlb + TLB_WRITE, va);
          if ((load<u32>(h, MSTATUS) & FS_DIRTY) !== 0 && hits(entry, va, 7)) {
            store<u64>(hostAddress(entry, va), load<u64>(h + ((low >> 16) & 0xf8), HART_F));
            continue;
          }
          if (isFloatOn(0)) storeSlow(va, load<u64>(h + ((low >> 16) & 0xf8), HART_F), 8);
          if (event === EVENT_NONE) continue;
          if (event === EVENT_EXCEPTION) {
            return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
          }
          return leave(pcOf + <u64> (at >> 2), left, EXIT_TO_TURN);
        }
        case op.OP_FLOAT:
          executeFloat(<u32> imm);
          if (event === EVENT_NONE) continue;
          return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
        case op.OP_FMA:
          executeFma(<u32> imm);
          if (event === EVENT_NONE) continue;
          return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
        default:
          illegalInstruction(0);
          return leaveWithException(pcOf + <u64> (at >> 2) - <u64> (low & 6), left);
      }
      break;
    }
  }
}
