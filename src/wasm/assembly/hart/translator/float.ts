/**
 * Floating point in generated code: what the host's arithmetic does exactly enough (float/f64.ts
 * says when), inline; the rest by a call, for which the operands go to the hart block and from
 * which the result comes back.
 *
 * A block looks at mstatus.FS before its first such instruction: the interpreter executes that one
 * while FS is not dirty. Later it can't change, since CSR instructions end a block.
 *
 * f registers are f64 locals whatever they hold: moves keep all bits, also of signalling NaNs.
 * Singles are taken out of their box and put into it again.
 */

import { HART_F, HART_X } from "../layout";
import * as op from "../opcodes";
import { FLOAT_DIRTY, FLOAT_HOST } from "../state";
import { emitStep } from "./blocks";
import { setSlotPage } from "./discover";
import { emitX, fieldRd, fieldRs1, fieldRs2, setXFromStack } from "./instructions";
import * as l from "./locals";
import { emitHostAddress } from "./memory_access";
import { IMPORT_FLOAT, IMPORT_FMA } from "./module";
import * as w from "./writer";

const BOX: i64 = 0xffff_ffff_0000_0000;

const FUNCT5_SIGN: u32 = 0x04;
const FUNCT5_MIN_MAX: u32 = 0x05;
const FUNCT5_FROM_FLOAT: u32 = 0x08;
const FUNCT5_SQRT: u32 = 0x0b;
const FUNCT5_COMPARE: u32 = 0x14;
const FUNCT5_TO_INTEGER: u32 = 0x18;
const FUNCT5_FROM_INTEGER: u32 = 0x1a;
const FUNCT5_TO_X: u32 = 0x1c;
const FUNCT5_FROM_X: u32 = 0x1e;

const RM_RTZ: u32 = 1;

// ---- what it uses -------------------------------------------------------------------------------

/** Whether it is floating point, CSRs aside. */
export function isFloat(opcode: u32): bool {
  return (opcode > op.OP_UNDECODED && opcode < op.OP_FENCE) || opcode === op.OP_FLOAT ||
    opcode === op.OP_FMA;
}

function bitsOf(slot: u64): u32 {
  return <u32>(slot >> 32);
}

function isFma(opcode: u32): bool {
  return opcode === op.OP_FMA || (opcode >= op.OP_FMADD_D && opcode <= op.OP_FNMADD_D);
}

/** Whether rd, or rs1, is an integer register. */
function writesX(bits: u32): bool {
  const funct5 = bits >> 27;
  return funct5 === FUNCT5_COMPARE || funct5 === FUNCT5_TO_INTEGER || funct5 === FUNCT5_TO_X;
}

function readsX(bits: u32): bool {
  return (bits >> 27) === FUNCT5_FROM_INTEGER || (bits >> 27) === FUNCT5_FROM_X;
}

export function noteFloatUse(index: u32, slot: u64): void {
  const opcode = <u32>slot >>> 24;
  if (opcode <= op.OP_FSD) {
    const isStore = opcode >= op.OP_FSW;
    setSlotPage(index, l.useBase(fieldRs1(slot), isStore));
    if (isStore) l.useF(fieldRs2(slot));
    else l.writeF(fieldRd(slot));
    return;
  }
  const bits = bitsOf(slot);
  if (isFma(opcode)) {
    l.useF(fieldRs1(slot));
    l.useF(bits >> 27);
    l.useF(fieldRs2(slot));
    l.writeF(fieldRd(slot));
    return;
  }
  if (!readsX(bits)) l.useF(fieldRs1(slot));
  l.useF(fieldRs2(slot));
  if (writesX(bits)) l.endValue(fieldRd(slot));
  else l.writeF(fieldRd(slot));
}

// ---- operands -----------------------------------------------------------------------------------

function emitF(register: u32): void {
  w.get(l.localF(register));
}

/** A register's bits. */
function emitFBits(register: u32): void {
  w.get(l.localF(register));
  w.byte(w.I64_REINTERPRET);
}

function setFFromStack(register: u32): void {
  w.set(l.localF(register));
}

/** Lets the interpreter execute the instruction at hand while FS is not dirty. */
export function emitFloatCheck(): void {
  w.get(l.FLOAT);
  w.i32Const(FLOAT_DIRTY);
  w.byte(w.I32_AND);
  w.byte(w.I32_EQZ);
  w.ifUnlikely();
  emitStep();
  w.end();
}

// ---- instructions -------------------------------------------------------------------------------

export function emitFloat(slot: u64): void {
  const opcode = <u32>slot >>> 24;
  if (opcode <= op.OP_FSD) {
    emitFloatAccess(opcode, slot);
  } else if (isFma(opcode)) {
    emitFusedOrCall(opcode, slot);
  } else {
    emitOperation(slot, bitsOf(slot));
  }
}

function emitFloatAccess(opcode: u32, slot: u64): void {
  const isWord = opcode === op.OP_FLW || opcode === op.OP_FSW;
  const isStore = opcode >= op.OP_FSW;
  if (!isStore && isWord) w.i64Const(BOX);
  const offset = emitHostAddress(fieldRs1(slot), <i64>slot >> 32, isWord ? 2 : 3, isStore);
  if (isStore) {
    if (isWord) emitFBits(fieldRs2(slot));
    else emitF(fieldRs2(slot));
    w.access(isWord ? w.I64_STORE32 : w.F64_STORE, offset);
    return;
  }
  w.access(isWord ? w.I64_LOAD32_U : w.F64_LOAD, offset);
  if (isWord) {
    w.byte(w.I64_OR);
    w.byte(w.F64_REINTERPRET);
  }
  setFFromStack(fieldRd(slot));
}

/** Labels of the instruction at hand: its slow way, and what comes after it. */
let slowLabel: u32 = 0;
let doneLabel: u32 = 0;

/** Between these stands the fast way, which ends with what it sets. */
function beginFast(): void {
  doneLabel = w.block();
  slowLabel = w.block();
}

function endFast(): void {
  w.branch(doneLabel);
  w.end();
}

function emitOperation(slot: u64, bits: u32): void {
  const isDouble = ((bits >> 25) & 3) === 1;
  const hasFast = isDouble ? hasFastDouble(bits) : hasFastSingle(bits);
  if (!hasFast) {
    emitCall(slot, bits, IMPORT_FLOAT);
    return;
  }
  if (isPlainMove(bits)) {
    emitMove(slot, bits, isDouble);
    return;
  }
  beginFast();
  if (isDouble) emitFastDouble(slot, bits);
  else emitFastSingle(slot, bits);
  endFast();
  if (isDouble && bits >> 27 < 3) emitZeroResult(slot, bits >> 27);
  emitCall(slot, bits, IMPORT_FLOAT);
  w.end();
}

function roundingOf(bits: u32): u32 {
  return (bits >> 12) & 7;
}

/** To nearest, or by frm, which says so while FLOAT_HOST is set. */
function isUsualRounding(bits: u32): bool {
  return roundingOf(bits) === 0 || roundingOf(bits) === 7;
}

function rs2Of(bits: u32): u32 {
  return (bits >> 20) & 31;
}

function rdOf(bits: u32): u32 {
  return (bits >> 7) & 31;
}

/** Moves that never look at what they move; only legal forms. */
function isPlainMove(bits: u32): bool {
  const funct5 = bits >> 27;
  const isDouble = ((bits >> 25) & 3) === 1;
  if (funct5 === FUNCT5_SIGN) return isDouble && roundingOf(bits) < 3;
  return (funct5 === FUNCT5_TO_X && roundingOf(bits) === 0 && rdOf(bits) !== 0 ||
    funct5 === FUNCT5_FROM_X && roundingOf(bits) === 0) && rs2Of(bits) === 0;
}

function hasFastDouble(bits: u32): bool {
  if (isPlainMove(bits)) return true;
  const rs2 = rs2Of(bits);
  const rm = roundingOf(bits);
  switch (bits >> 27) {
    case 0:
    case 1:
    case 2:
    case 3:
      return isUsualRounding(bits);
    case FUNCT5_SQRT:
      return isUsualRounding(bits) && rs2 === 0;
    case FUNCT5_MIN_MAX:
      return rm < 2;
    case FUNCT5_COMPARE:
      return rm < 3 && rdOf(bits) !== 0;
    case FUNCT5_FROM_FLOAT:
      return rs2 === 0 && isUsualRounding(bits); // FCVT.D.S
    case FUNCT5_TO_INTEGER:
      return rm === RM_RTZ && (rs2 === 0 || rs2 === 2) && rdOf(bits) !== 0;
    case FUNCT5_FROM_INTEGER:
      return rs2 < 4 && isUsualRounding(bits);
    default:
      return false;
  }
}

function hasFastSingle(bits: u32): bool {
  if (isPlainMove(bits)) return true;
  const rs2 = rs2Of(bits);
  switch (bits >> 27) {
    case 0:
    case 1:
    case 2:
    case 3:
      return isUsualRounding(bits);
    case FUNCT5_SQRT:
      return isUsualRounding(bits) && rs2 === 0;
    case FUNCT5_SIGN:
      return roundingOf(bits) < 3;
    case FUNCT5_COMPARE:
      return roundingOf(bits) < 3 && rdOf(bits) !== 0;
    case FUNCT5_FROM_FLOAT:
      return rs2 === 1 && isUsualRounding(bits); // FCVT.S.D
    default:
      return false;
  }
}

/** Moves between f registers, with the sign of another, and between f and x. */
function emitMove(slot: u64, bits: u32, isDouble: bool): void {
  const funct5 = bits >> 27;
  if (funct5 === FUNCT5_TO_X) {
    emitFBits(fieldRs1(slot));
    if (!isDouble) w.byte(w.I64_EXTEND32_S);
    setXFromStack(fieldRd(slot));
  } else if (funct5 === FUNCT5_FROM_X) {
    emitX(fieldRs1(slot));
    if (!isDouble) emitBox();
    w.byte(w.F64_REINTERPRET);
    setFFromStack(fieldRd(slot));
  } else {
    emitSign(fieldRs1(slot), fieldRs2(slot), roundingOf(bits));
    setFFromStack(fieldRd(slot));
  }
}

const F64_ABS: u32 = 0x99;
const F64_NEG: u32 = 0x9a;
const F64_COPYSIGN: u32 = 0xa6;
const F64_MIN: u32 = 0xa4;
const F64_MAX: u32 = 0xa5;

function emitSign(a: u32, b: u32, funct3: u32): void {
  emitF(a);
  if (funct3 === 0) {
    if (a === b) return;
    emitF(b);
    w.byte(F64_COPYSIGN);
  } else if (funct3 === 1) {
    if (a !== b) emitF(b);
    w.byte(F64_NEG);
    if (a !== b) w.byte(F64_COPYSIGN);
  } else if (a === b) {
    w.byte(F64_ABS);
  } else {
    w.byte(w.I64_REINTERPRET);
    emitFBits(b);
    w.i64Const(i64.MIN_VALUE);
    w.byte(w.I64_AND);
    w.byte(w.I64_XOR);
    w.byte(w.F64_REINTERPRET);
  }
}

/** The low half of an i64 on the stack, boxed. */
function emitBox(): void {
  w.i64Const(0xffff_ffff);
  w.byte(w.I64_AND);
  w.i64Const(BOX);
  w.byte(w.I64_OR);
}

// ---- doubles ------------------------------------------------------------------------------------

function emitFastDouble(slot: u64, bits: u32): void {
  const funct5 = bits >> 27;
  const rs1 = fieldRs1(slot);
  const rs2 = fieldRs2(slot);
  switch (funct5) {
    case FUNCT5_SQRT:
      emitF(rs1);
      w.byte(w.F64_SQRT);
      takeIfPlain(fieldRd(slot));
      break;
    case FUNCT5_MIN_MAX:
      slowIfUnordered(rs1, rs2);
      emitF(rs1);
      emitF(rs2);
      w.byte(roundingOf(bits) === 0 ? F64_MIN : F64_MAX);
      setFFromStack(fieldRd(slot));
      break;
    case FUNCT5_COMPARE:
      slowIfUnordered(rs1, rs2);
      emitF(rs1);
      emitF(rs2);
      w.byte(roundingOf(bits) === 0 ? w.F64_LE : roundingOf(bits) === 1 ? w.F64_LT : w.F64_EQ);
      w.byte(w.I64_EXTEND_U);
      setXFromStack(fieldRd(slot));
      break;
    case FUNCT5_FROM_FLOAT:
      emitPromoted(rs1);
      break;
    case FUNCT5_TO_INTEGER:
      emitTruncated(slot, rs2Of(bits) === 0);
      break;
    case FUNCT5_FROM_INTEGER:
      emitConverted(slot, rs2Of(bits));
      break;
    default:
      emitF(rs1);
      emitF(rs2);
      w.byte(w.F64_ADD + funct5);
      takeIfPlain(fieldRd(slot));
      break;
  }
  if (funct5 === FUNCT5_FROM_FLOAT) setFFromStack(fieldRd(slot));
}

/**
 * Takes a rounded result from the stack, if only inexact can have been raised and is accrued, and
 * rounding is to nearest: a normal number of at least twice the least.
 */
function takeIfPlain(rd: u32): void {
  w.tee(l.FLOAT_RESULT);
  w.byte(w.I64_REINTERPRET);
  w.i64Const(52);
  w.byte(w.I64_SHR_U);
  w.byte(w.I32_WRAP);
  w.i32Const(0x7ff);
  w.byte(w.I32_AND);
  w.i32Const(2);
  w.byte(w.I32_SUB);
  w.i32Const(0x7fd);
  w.byte(0x4f); // i32.ge_u
  w.branchIfUnlikely(slowLabel);
  slowUnlessHost();
  w.get(l.FLOAT_RESULT);
  setFFromStack(rd);
}

function slowUnlessHost(): void {
  w.get(l.FLOAT);
  w.i32Const(FLOAT_HOST);
  w.byte(w.I32_AND);
  w.byte(w.I32_EQZ);
  w.branchIfUnlikely(slowLabel);
}

/**
 * A sum or product of exactly zero is exact: a sum always, since it does not underflow; a product
 * if a factor is zero. Its sign is the host's when rounding to nearest.
 */
function emitZeroResult(slot: u64, funct5: u32): void {
  w.get(l.FLOAT_RESULT);
  emitZero();
  w.byte(w.F64_EQ);
  w.get(l.FLOAT);
  w.i32Const(1);
  w.byte(w.I32_SHR_U);
  w.byte(w.I32_AND);
  if (funct5 === 2) {
    emitF(fieldRs1(slot));
    emitZero();
    w.byte(w.F64_EQ);
    emitF(fieldRs2(slot));
    emitZero();
    w.byte(w.F64_EQ);
    w.byte(w.I32_OR);
    w.byte(w.I32_AND);
  }
  w.ifThen();
  w.get(l.FLOAT_RESULT);
  setFFromStack(fieldRd(slot));
  w.branch(doneLabel);
  w.end();
}

function emitZero(): void {
  w.byte(0x44); // f64.const
  store<u64>(w.at, 0);
  w.writeAt(w.at + 8);
}

/** To the slow way if either is NaN. */
function slowIfUnordered(a: u32, b: u32): void {
  emitF(a);
  emitF(b);
  w.byte(w.F64_LT);
  emitF(a);
  emitF(b);
  w.byte(0x66); // f64.ge
  w.byte(w.I32_OR);
  w.byte(w.I32_EQZ);
  w.branchIfUnlikely(slowLabel);
}

/** FCVT.D.S, which is exact but for NaNs. */
function emitPromoted(rs1: u32): void {
  slowUnlessBoxed(rs1, rs1);
  emitSingle(rs1);
  w.byte(w.F64_PROMOTE);
  w.tee(l.FLOAT_RESULT);
  w.get(l.FLOAT_RESULT);
  w.byte(w.F64_NE);
  w.branchIfUnlikely(slowLabel);
  w.get(l.FLOAT_RESULT);
}

/** Towards zero, as C converts; NaN and what is out of range is for the slow way. */
function emitTruncated(slot: u64, isWord: bool): void {
  slowUnlessHost();
  emitF(fieldRs1(slot));
  w.byte(0xfc);
  w.byte(6); // i64.trunc_sat_f64_s
  w.tee(l.operandA());
  if (isWord) {
    w.get(l.operandA());
    w.byte(w.I64_EXTEND32_S);
    w.byte(w.I64_NE);
  } else {
    // the least and the greatest
    w.i64Const(i64.MIN_VALUE);
    w.byte(w.I64_SUB);
    w.i64Const(1);
    w.byte(w.I64_ADD);
    w.i64Const(1);
    w.byte(w.I64_LE_U);
  }
  w.branchIfUnlikely(slowLabel);
  emitF(fieldRs1(slot));
  emitF(fieldRs1(slot));
  w.byte(w.F64_NE);
  w.branchIfUnlikely(slowLabel);
  w.get(l.operandA());
  setXFromStack(fieldRd(slot));
}

/** FCVT.D.W, .WU, .L and .LU: the first two are exact. */
function emitConverted(slot: u64, kind: u32): void {
  if (kind >= 2) slowUnlessHost();
  emitX(fieldRs1(slot));
  if (kind >= 2) {
    w.byte(kind === 2 ? w.F64_CONVERT_I64_S : w.F64_CONVERT_I64_U);
  } else {
    w.byte(w.I32_WRAP);
    w.byte(kind === 0 ? w.F64_CONVERT_I32_S : w.F64_CONVERT_I32_U);
  }
  setFFromStack(fieldRd(slot));
}

// ---- singles ------------------------------------------------------------------------------------

function slowUnlessBoxed(a: u32, b: u32): void {
  emitFBits(a);
  if (a !== b) {
    emitFBits(b);
    w.byte(w.I64_AND);
  }
  w.i64Const(BOX);
  w.byte(w.I64_LT_U);
  w.branchIfUnlikely(slowLabel);
}

function emitSingle(register: u32): void {
  emitFBits(register);
  w.byte(w.I32_WRAP);
  w.byte(w.F32_REINTERPRET);
}

function emitFastSingle(slot: u64, bits: u32): void {
  const funct5 = bits >> 27;
  const rs1 = fieldRs1(slot);
  const rs2 = fieldRs2(slot);
  const isUnary = funct5 === FUNCT5_SQRT;
  if (funct5 === FUNCT5_FROM_FLOAT) {
    emitF(rs1);
    w.byte(0xb6); // f32.demote_f64
    takeIfPlainSingle(fieldRd(slot));
    return;
  }
  slowUnlessBoxed(rs1, isUnary ? rs1 : rs2);
  if (funct5 === FUNCT5_SIGN) {
    emitSingleSign(slot, roundingOf(bits));
    return;
  }
  if (funct5 === FUNCT5_COMPARE) {
    emitSingleCompare(slot, roundingOf(bits));
    return;
  }
  emitSingle(rs1);
  if (!isUnary) emitSingle(rs2);
  w.byte(isUnary ? w.F32_SQRT : w.F32_ADD + funct5);
  takeIfPlainSingle(fieldRd(slot));
}

function takeIfPlainSingle(rd: u32): void {
  w.byte(w.I32_REINTERPRET);
  w.tee(l.RESULT32);
  w.i32Const(23);
  w.byte(w.I32_SHR_U);
  w.i32Const(0xff);
  w.byte(w.I32_AND);
  w.i32Const(2);
  w.byte(w.I32_SUB);
  w.i32Const(0xfd);
  w.byte(0x4f); // i32.ge_u
  w.branchIfUnlikely(slowLabel);
  slowUnlessHost();
  w.get(l.RESULT32);
  w.byte(w.I64_EXTEND_U);
  w.i64Const(BOX);
  w.byte(w.I64_OR);
  w.byte(w.F64_REINTERPRET);
  setFFromStack(rd);
}

function emitSingleSign(slot: u64, funct3: u32): void {
  emitFBits(fieldRs1(slot));
  emitFBits(fieldRs2(slot));
  if (funct3 === 1) {
    w.i64Const(-1);
    w.byte(w.I64_XOR);
  }
  // The bits of rs1, with the sign of the second; or changed by it.
  if (funct3 < 2) {
    emitFBits(fieldRs1(slot));
    w.byte(w.I64_XOR);
  }
  w.i64Const(0x8000_0000);
  w.byte(w.I64_AND);
  w.byte(w.I64_XOR);
  w.byte(w.F64_REINTERPRET);
  setFFromStack(fieldRd(slot));
}

function emitSingleCompare(slot: u64, funct3: u32): void {
  emitSingle(fieldRs1(slot));
  emitSingle(fieldRs2(slot));
  w.byte(0x5d); // f32.lt
  emitSingle(fieldRs1(slot));
  emitSingle(fieldRs2(slot));
  w.byte(0x60); // f32.ge
  w.byte(w.I32_OR);
  w.byte(w.I32_EQZ);
  w.branchIfUnlikely(slowLabel);
  emitSingle(fieldRs1(slot));
  emitSingle(fieldRs2(slot));
  w.byte(funct3 === 0 ? 0x5f : funct3 === 1 ? 0x5d : 0x5b); // f32.le, lt, eq
  w.byte(w.I64_EXTEND_U);
  setXFromStack(fieldRd(slot));
}

// ---- fused operations ---------------------------------------------------------------------------

function emitFusedOrCall(opcode: u32, slot: u64): void {
  const bits = bitsOf(slot);
  if (opcode === op.OP_FMA) {
    emitCall(slot, bits, IMPORT_FMA);
    return;
  }
  const kind = opcode - op.OP_FMADD_D; // 0 madd, 1 msub, 2 nmsub, 3 nmadd
  beginFast();
  emitF(fieldRs1(slot));
  if (kind >= 2) w.byte(F64_NEG);
  emitSplat();
  emitF(fieldRs2(slot));
  emitSplat();
  emitF(bits >> 27);
  if (kind === 1 || kind === 3) w.byte(F64_NEG);
  emitSplat();
  w.byte(0xfd);
  w.unsigned(0x107); // f64x2.relaxed_madd
  w.byte(0xfd);
  w.byte(0x21); // f64x2.extract_lane
  w.byte(0);
  takeIfPlain(fieldRd(slot));
  endFast();
  emitCall(slot, bits, IMPORT_FMA);
  w.end();
}

function emitSplat(): void {
  w.byte(0xfd);
  w.byte(0x14); // f64x2.splat
}

// ---- the slow way -------------------------------------------------------------------------------

function storeF(register: u32): void {
  w.get(l.HART);
  emitF(register);
  w.access(w.F64_STORE, HART_F + (register << 3));
}

/** Lets the core do it: operands and result go by the hart block. */
function emitCall(slot: u64, bits: u32, helper: u32): void {
  const isFused = helper === IMPORT_FMA;
  const rs1 = fieldRs1(slot);
  if (!isFused && readsX(bits)) {
    w.get(l.HART);
    emitX(rs1);
    w.access(w.I64_STORE, HART_X + (rs1 << 3));
  } else {
    storeF(rs1);
  }
  storeF(fieldRs2(slot));
  if (isFused) storeF(bits >> 27);
  w.i32Const(bits);
  w.call(helper);
  w.tee(l.FLOAT);
  w.i32Const(0);
  w.byte(0x48); // i32.lt_s
  w.ifUnlikely();
  emitStep();
  w.end();
  const rd = fieldRd(slot);
  if (!isFused && writesX(bits)) {
    if (rd === 0) return;
    w.get(l.HART);
    w.access(w.I64_LOAD, HART_X + (rd << 3));
    setXFromStack(rd);
  } else {
    w.get(l.HART);
    w.access(w.F64_LOAD, HART_F + (rd << 3));
    setFFromStack(rd);
  }
}
