/**
 * The code of single instructions, out of their decoded form. What ends a block is in blocks.ts.
 */

import { HART_FENCE_WORD } from "../state";
import { HART_X } from "../layout";
import * as op from "../opcodes";
import { emitEndOfTurn, emitStep } from "./blocks";
import { isForInterpreter, setSlotPage, slotAt } from "./discover";
import { emitFloat, isFloat, noteFloatUse } from "./float";
import { CSR_REFUSED } from "./helpers";
import { emitLoad, emitStore } from "./memory_access";
import * as l from "./locals";
import {
  IMPORT_ATOMIC,
  IMPORT_CSR,
  IMPORT_MULH,
  IMPORT_MULHSU,
  IMPORT_MULHU,
  IMPORT_OR_COMBINE,
  IMPORT_REVERSE_BYTES,
} from "./module";
import { hasWideArithmetic } from "./policy";
import * as w from "./writer";

export function fieldRd(slot: u64): u32 {
  return (<u32>slot >> 3) & 31;
}

export function fieldRs1(slot: u64): u32 {
  return (<u32>slot >> 11) & 31;
}

export function fieldRs2(slot: u64): u32 {
  return (<u32>slot >> 19) & 31;
}

function immediate(slot: u64): i64 {
  return <i64>slot >> 32;
}

function isLoad(opcode: u32): bool {
  return opcode >= op.OP_LB && opcode <= op.OP_LWU;
}

function isStore(opcode: u32): bool {
  return opcode >= op.OP_SB && opcode <= op.OP_SD;
}

// ---- registers ----------------------------------------------------------------------------------

/** Tells locals.ts what an instruction needs of it. */
export function noteUse(index: u32): void {
  const slot = slotAt(index);
  const opcode = <u32>slot >>> 24;
  if (isFloat(opcode)) {
    noteFloatUse(index, slot);
    return;
  }
  if (isForInterpreter(opcode) || opcode === op.OP_NOP || opcode === op.OP_FENCE) return;
  if (isLoad(opcode) || isStore(opcode)) {
    setSlotPage(index, l.useBase(fieldRs1(slot), isStore(opcode)));
  }
  // A pointer that is moved on leads to the same page, most of the time.
  const isStep = opcode === op.OP_ADDI && fieldRd(slot) === fieldRs1(slot);
  if (!isStep) l.endValue(fieldRd(slot));
}

/** Puts the value of a register on the stack. */
export function emitX(register: u32): void {
  if (register === 0) w.i64Const(0);
  else w.get(l.localX(register));
}

/** The same, its low half. */
function emitX32(register: u32): void {
  if (register === 0) {
    w.i32Const(0);
    return;
  }
  w.get(l.localX(register));
  w.byte(w.I32_WRAP);
}

/** Takes the value of a register, not x0, from the stack. */
export function setXFromStack(register: u32): void {
  w.set(l.localX(register));
}

// ---- instructions -------------------------------------------------------------------------------

export function emitInstruction(slot: u64, distance: i32): void {
  const opcode = <u32>slot >>> 24;
  if (opcode === op.OP_NOP) return;
  if (opcode === op.OP_FENCE) {
    emitFence();
    return;
  }
  if (isFloat(opcode)) {
    emitFloat(slot);
    return;
  }
  if (opcode >= op.OP_LR_W && opcode <= op.OP_AMO_D) {
    emitAtomic(slot);
    return;
  }
  if (opcode === op.OP_CSR_INLINE) {
    emitCsr(slot);
    return;
  }
  if (isStore(opcode)) {
    emitStore(opcode, fieldRs1(slot), immediate(slot), fieldRs2(slot));
    return;
  }
  if (isLoad(opcode)) emitLoad(opcode, fieldRs1(slot), immediate(slot));
  else if (opcode === op.OP_LI) w.i64Const(immediate(slot));
  else if (opcode === op.OP_AUIPC) emitAuipc(distance, immediate(slot));
  else if (opcode >= op.OP_MUL && opcode <= op.OP_REMUW) emitMultiply(opcode, slot);
  else if (opcode >= op.OP_SLLI && opcode <= op.OP_SRAW) emitShift(opcode, slot);
  else if (opcode >= op.OP_ADD_UW && opcode <= op.OP_BSETI) emitBits(opcode, slot);
  else emitPlain(opcode, slot);
  setXFromStack(fieldRd(slot));
}

/** LR, SC and AMOs: the core does them. */
function emitAtomic(slot: u64): void {
  const rd = fieldRd(slot);
  storeX(fieldRs1(slot));
  storeX(fieldRs2(slot));
  w.i32Const(<i32>slot);
  w.i32Const(<i32>(slot >> 32));
  w.call(IMPORT_ATOMIC);
  w.byte(w.I32_EQZ);
  w.ifUnlikely();
  emitStep();
  w.end();
  if (rd === 0) return;
  w.get(l.HART);
  w.access(w.I64_LOAD, HART_X + (rd << 3));
  setXFromStack(rd);
}

/**
 * The core executes it, and says how floating point stands, or that the interpreter must raise, or
 * that the turn is over.
 */
function emitCsr(slot: u64): void {
  const rd = fieldRd(slot);
  const bits = <u32>(slot >> 32);
  const isImmediate = ((bits >> 14) & 1) !== 0;
  if (!isImmediate) storeX(fieldRs1(slot));
  w.i32Const(bits);
  w.call(IMPORT_CSR);
  w.tee(l.FLOAT);
  w.i32Const(CSR_REFUSED);
  w.byte(w.I32_EQ);
  w.ifUnlikely();
  emitStep();
  w.end();
  if (rd !== 0) {
    w.get(l.HART);
    w.access(w.I64_LOAD, HART_X + (rd << 3));
    setXFromStack(rd);
  }
  w.get(l.FLOAT);
  w.i32Const(0);
  w.byte(0x48); // i32.lt_s
  w.ifUnlikely();
  emitEndOfTurn(<i32>slot & 6);
  w.end();
}

function storeX(register: u32): void {
  if (register === 0) return;
  w.get(l.HART);
  emitX(register);
  w.access(w.I64_STORE, HART_X + (register << 3));
}

/** Orders this hart's accesses, as the interpreter does. */
function emitFence(): void {
  w.get(l.HART);
  w.i32Const(0);
  w.atomicAccess(0x1e, 2, HART_FENCE_WORD); // i32.atomic.rmw.add
  w.byte(w.DROP);
}

function emitAuipc(distance: i32, imm: i64): void {
  w.get(l.BASE);
  w.i64Const(<i64>distance + imm);
  w.byte(w.I64_ADD);
}

function binary(slot: u64, opcode: u32): void {
  emitX(fieldRs1(slot));
  emitX(fieldRs2(slot));
  w.byte(opcode);
}

function withImmediate(slot: u64, opcode: u32): void {
  emitX(fieldRs1(slot));
  w.i64Const(immediate(slot));
  w.byte(opcode);
}

/** A 32-bit operation, its result sign-extended. */
function binary32(slot: u64, opcode: u32): void {
  emitX32(fieldRs1(slot));
  emitX32(fieldRs2(slot));
  w.byte(opcode);
  w.byte(w.I64_EXTEND_S);
}

function withImmediate32(slot: u64, opcode: u32): void {
  emitX32(fieldRs1(slot));
  w.i32Const(<i32>immediate(slot));
  w.byte(opcode);
  w.byte(w.I64_EXTEND_S);
}

function comparison(slot: u64, opcode: u32): void {
  binary(slot, opcode);
  w.byte(w.I64_EXTEND_U);
}

function emitPlain(opcode: u32, slot: u64): void {
  switch (opcode) {
    case op.OP_MV:
      emitX(fieldRs1(slot));
      break;
    case op.OP_ADDI:
      withImmediate(slot, w.I64_ADD);
      break;
    case op.OP_SLTI:
      withImmediate(slot, w.I64_LT_S);
      w.byte(w.I64_EXTEND_U);
      break;
    case op.OP_SLTIU:
      withImmediate(slot, w.I64_LT_U);
      w.byte(w.I64_EXTEND_U);
      break;
    case op.OP_XORI:
      withImmediate(slot, w.I64_XOR);
      break;
    case op.OP_ORI:
      withImmediate(slot, w.I64_OR);
      break;
    case op.OP_ANDI:
      withImmediate(slot, w.I64_AND);
      break;
    case op.OP_ADDIW:
      withImmediate32(slot, w.I32_ADD);
      break;
    case op.OP_ADD:
      binary(slot, w.I64_ADD);
      break;
    case op.OP_SUB:
      binary(slot, w.I64_SUB);
      break;
    case op.OP_SLT:
      comparison(slot, w.I64_LT_S);
      break;
    case op.OP_SLTU:
      comparison(slot, w.I64_LT_U);
      break;
    case op.OP_XOR:
      binary(slot, w.I64_XOR);
      break;
    case op.OP_OR:
      binary(slot, w.I64_OR);
      break;
    case op.OP_AND:
      binary(slot, w.I64_AND);
      break;
    case op.OP_ADDW:
      binary32(slot, w.I32_ADD);
      break;
    default: // OP_SUBW
      binary32(slot, w.I32_SUB);
      break;
  }
}

function emitShift(opcode: u32, slot: u64): void {
  switch (opcode) {
    case op.OP_SLLI:
      withImmediate(slot, w.I64_SHL);
      break;
    case op.OP_SRLI:
      withImmediate(slot, w.I64_SHR_U);
      break;
    case op.OP_SRAI:
      withImmediate(slot, w.I64_SHR_S);
      break;
    case op.OP_SLLIW:
      withImmediate32(slot, w.I32_SHL);
      break;
    case op.OP_SRLIW:
      withImmediate32(slot, w.I32_SHR_U);
      break;
    case op.OP_SRAIW:
      withImmediate32(slot, w.I32_SHR_S);
      break;
    case op.OP_SLL:
      binary(slot, w.I64_SHL);
      break;
    case op.OP_SRL:
      binary(slot, w.I64_SHR_U);
      break;
    case op.OP_SRA:
      binary(slot, w.I64_SHR_S);
      break;
    case op.OP_SLLW:
      binary32(slot, w.I32_SHL);
      break;
    case op.OP_SRLW:
      binary32(slot, w.I32_SHR_U);
      break;
    default: // OP_SRAW
      binary32(slot, w.I32_SHR_S);
      break;
  }
}

// ---- multiplication and division ----------------------------------------------------------------

function emitMultiply(opcode: u32, slot: u64): void {
  switch (opcode) {
    case op.OP_MUL:
      binary(slot, w.I64_MUL);
      break;
    case op.OP_MULH:
    case op.OP_MULHSU:
    case op.OP_MULHU:
      emitMultiplyHigh(opcode, slot);
      break;
    case op.OP_MULW:
      binary32(slot, w.I32_MUL);
      break;
    case op.OP_DIV:
    case op.OP_DIVU:
    case op.OP_REM:
    case op.OP_REMU:
      emitDivide(slot, opcode);
      break;
    default:
      emitDivide32(slot, opcode);
      break;
  }
}

/** The upper half of the product: by an instruction, where V8 has it, else by a call. */
function emitMultiplyHigh(opcode: u32, slot: u64): void {
  emitX(fieldRs1(slot));
  emitX(fieldRs2(slot));
  if (!hasWideArithmetic) {
    const isMixed = opcode === op.OP_MULHSU;
    w.call(isMixed ? IMPORT_MULHSU : opcode === op.OP_MULH ? IMPORT_MULH : IMPORT_MULHU);
    return;
  }
  w.multiplyWide(opcode === op.OP_MULH);
  w.set(l.operandA());
  w.byte(w.DROP);
  w.get(l.operandA());
  if (opcode !== op.OP_MULHSU) return;
  // A negative multiplicand was taken for 2^64 more than it is.
  emitX(fieldRs1(slot));
  w.i64Const(63);
  w.byte(w.I64_SHR_S);
  emitX(fieldRs2(slot));
  w.byte(w.I64_AND);
  w.byte(w.I64_SUB);
}

/**
 * Division (Unpriv 13.2): by 0 gives all ones and the dividend; by -1, which includes the overflow,
 * minus the dividend and 0. Divisors 0 and -1 are told apart by one comparison, of their successor
 * with 1; unsigned ones need only 0.
 */
function emitDivide(slot: u64, opcode: u32): void {
  const isSigned = opcode === op.OP_DIV || opcode === op.OP_REM;
  const isRemainder = opcode === op.OP_REM || opcode === op.OP_REMU;
  emitX(fieldRs1(slot));
  w.set(l.operandA());
  emitX(fieldRs2(slot));
  w.tee(l.operandB());
  if (isSigned) {
    w.i64Const(1);
    w.byte(w.I64_ADD);
    w.i64Const(1);
    w.byte(w.I64_LE_U);
  } else {
    w.byte(w.I64_EQZ);
  }
  w.ifUnlikelyOf(w.I64);
  // by 0, and by -1
  if (isRemainder) w.get(l.operandA());
  else w.i64Const(-1);
  if (isSigned) {
    w.i64Const(0);
    if (!isRemainder) {
      w.get(l.operandA());
      w.byte(w.I64_SUB);
    }
    w.get(l.operandB());
    w.byte(w.I64_EQZ);
    w.byte(w.SELECT);
  }
  w.otherwise();
  w.get(l.operandA());
  w.get(l.operandB());
  if (isRemainder) w.byte(isSigned ? w.I64_REM_S : w.I64_REM_U);
  else w.byte(isSigned ? w.I64_DIV_S : w.I64_DIV_U);
  w.end();
}

/** The same for words. */
function emitDivide32(slot: u64, opcode: u32): void {
  const isSigned = opcode === op.OP_DIVW || opcode === op.OP_REMW;
  const isRemainder = opcode === op.OP_REMW || opcode === op.OP_REMUW;
  emitX32(fieldRs1(slot));
  w.set(l.ADDRESS);
  emitX32(fieldRs2(slot));
  w.tee(l.RESULT32);
  if (isSigned) {
    w.i32Const(1);
    w.byte(w.I32_ADD);
    w.i32Const(1);
    w.byte(0x4d); // i32.le_u
  } else {
    w.byte(w.I32_EQZ);
  }
  w.ifUnlikelyOf(w.I32);
  if (isRemainder) w.get(l.ADDRESS);
  else w.i32Const(-1);
  if (isSigned) {
    w.i32Const(0);
    if (!isRemainder) {
      w.get(l.ADDRESS);
      w.byte(w.I32_SUB);
    }
    w.get(l.RESULT32);
    w.byte(w.I32_EQZ);
    w.byte(w.SELECT);
  }
  w.otherwise();
  w.get(l.ADDRESS);
  w.get(l.RESULT32);
  if (isRemainder) w.byte(isSigned ? w.I32_REM_S : w.I32_REM_U);
  else w.byte(isSigned ? w.I32_DIV_S : w.I32_DIV_U);
  w.end();
  w.byte(w.I64_EXTEND_S);
}

// ---- Zba, Zbb, Zbs ------------------------------------------------------------------------------

function emitBits(opcode: u32, slot: u64): void {
  if (opcode <= op.OP_SLLI_UW) emitShiftAdd(opcode, slot);
  else if (opcode <= op.OP_XNOR) emitNegated(opcode, slot);
  else if (opcode <= op.OP_CPOPW) emitCount(opcode, slot);
  else if (opcode <= op.OP_MINU) emitMinMax(opcode, slot);
  else if (opcode <= op.OP_REV8) emitRotate(opcode, slot);
  else emitSingleBit(opcode, slot);
}

/** rs1, its low half if the instruction is a *.UW. */
function emitUnsignedWord(slot: u64): void {
  emitX32(fieldRs1(slot));
  w.byte(w.I64_EXTEND_U);
}

function emitShiftAdd(opcode: u32, slot: u64): void {
  if (opcode === op.OP_SLLI_UW) {
    emitUnsignedWord(slot);
    w.i64Const(immediate(slot));
    w.byte(w.I64_SHL);
    return;
  }
  const isWord = opcode === op.OP_ADD_UW || opcode >= op.OP_SH1ADD_UW;
  if (isWord) emitUnsignedWord(slot);
  else emitX(fieldRs1(slot));
  if (opcode !== op.OP_ADD_UW) {
    const first = opcode >= op.OP_SH1ADD_UW ? op.OP_SH1ADD_UW : op.OP_SH1ADD;
    w.i64Const(opcode - first + 1);
    w.byte(w.I64_SHL);
  }
  emitX(fieldRs2(slot));
  w.byte(w.I64_ADD);
}

function emitNegated(opcode: u32, slot: u64): void {
  emitX(fieldRs1(slot));
  emitX(fieldRs2(slot));
  w.i64Const(-1);
  w.byte(w.I64_XOR);
  w.byte(opcode === op.OP_ANDN ? w.I64_AND : opcode === op.OP_ORN ? w.I64_OR : w.I64_XOR);
}

function emitCount(opcode: u32, slot: u64): void {
  const isWord = ((opcode - op.OP_CLZ) & 1) !== 0;
  const kind = (opcode - op.OP_CLZ) >> 1;
  if (isWord) {
    emitX32(fieldRs1(slot));
    w.byte(w.I32_CLZ + kind);
    w.byte(w.I64_EXTEND_U);
  } else {
    emitX(fieldRs1(slot));
    w.byte(w.I64_CLZ + kind);
  }
}

function emitMinMax(opcode: u32, slot: u64): void {
  emitX(fieldRs1(slot));
  emitX(fieldRs2(slot));
  emitX(fieldRs1(slot));
  emitX(fieldRs2(slot));
  if (opcode === op.OP_MAX) w.byte(w.I64_GT_S);
  else if (opcode === op.OP_MAXU) w.byte(w.I64_GT_U);
  else if (opcode === op.OP_MIN) w.byte(w.I64_LT_S);
  else w.byte(w.I64_LT_U);
  w.byte(w.SELECT);
}

/** Extensions, rotations, bytes. */
function emitRotate(opcode: u32, slot: u64): void {
  switch (opcode) {
    case op.OP_SEXT_B:
      emitX(fieldRs1(slot));
      w.byte(w.I64_EXTEND8_S);
      break;
    case op.OP_SEXT_H:
      emitX(fieldRs1(slot));
      w.byte(w.I64_EXTEND16_S);
      break;
    case op.OP_ZEXT_H:
      emitX(fieldRs1(slot));
      w.i64Const(0xffff);
      w.byte(w.I64_AND);
      break;
    case op.OP_ROL:
      binary(slot, w.I64_ROTL);
      break;
    case op.OP_ROLW:
      binary32(slot, w.I32_ROTL);
      break;
    case op.OP_ROR:
      binary(slot, w.I64_ROTR);
      break;
    case op.OP_RORW:
      binary32(slot, w.I32_ROTR);
      break;
    case op.OP_RORI:
      withImmediate(slot, w.I64_ROTR);
      break;
    case op.OP_RORIW:
      withImmediate32(slot, w.I32_ROTR);
      break;
    default: // OP_ORC_B, OP_REV8
      emitX(fieldRs1(slot));
      w.call(opcode === op.OP_ORC_B ? IMPORT_OR_COMBINE : IMPORT_REVERSE_BYTES);
      break;
  }
}

function emitSingleBit(opcode: u32, slot: u64): void {
  const hasImmediate = ((opcode - op.OP_BCLR) & 1) !== 0;
  const kind = (opcode - op.OP_BCLR) >> 1; // BCLR, BEXT, BINV, BSET
  emitX(fieldRs1(slot));
  if (kind === 1) {
    if (hasImmediate) w.i64Const(immediate(slot));
    else emitX(fieldRs2(slot));
    w.byte(w.I64_SHR_U);
    w.i64Const(1);
    w.byte(w.I64_AND);
    return;
  }
  w.i64Const(1);
  if (hasImmediate) w.i64Const(immediate(slot));
  else emitX(fieldRs2(slot));
  w.byte(w.I64_SHL);
  if (kind === 0) {
    w.i64Const(-1);
    w.byte(w.I64_XOR);
    w.byte(w.I64_AND);
  } else {
    w.byte(kind === 2 ? w.I64_XOR : w.I64_OR);
  }
}
