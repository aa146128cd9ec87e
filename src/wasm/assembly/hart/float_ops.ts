/**
 * F and D (Unpriv 21, 22): everything but loads and stores. Operands are taken apart and NaN-boxed
 * here; the arithmetic is float/.
 */

import { CAUSE_ILLEGAL_INSTRUCTION, raiseException } from "./event";
import * as c from "./float/convert";
import * as f32s from "./float/f32";
import * as f64s from "./float/f64";
import { HART_F } from "./layout";
import { FRM, getCsr, getX, hart, MSTATUS, MSTATUS_FS, setCsr, setX } from "./state";

const BOX: u64 = 0xffff_ffff_0000_0000;
const F32_NAN: u32 = 0x7fc0_0000;
const F32_SIGN: u32 = 0x8000_0000;
const F64_SIGN: u64 = 1 << 63;

function getF64(index: u32): u64 {
  return load<u64>(hart + (index << 3), HART_F);
}

function setF64(index: u32, value: u64): void {
  store<u64>(hart + (index << 3), value, HART_F);
}

/** What is not NaN-boxed counts as the canonical NaN (Unpriv 22.2). */

function getF32(index: u32): u32 {
  const value = getF64(index);
  return value >= BOX ? <u32> value : F32_NAN;
}

function setF32(index: u32, value: u32): void {
  setF64(index, BOX | <u64> value);
}

/** Whether FS allows floating point at all; raises an illegal instruction exception if not. */
export function isFloatOn(bits: u32): bool {
  if ((getCsr(MSTATUS) & MSTATUS_FS) !== 0) return true;
  raiseException(CAUSE_ILLEGAL_INSTRUCTION, bits);
  return false;
}

/** Notes that floating point state changes. */
export function markFloatDirty(): void {
  setCsr(MSTATUS, getCsr(MSTATUS) | MSTATUS_FS);
}

const RM_ILLEGAL: u32 = 5;

/** The rounding mode of an instruction: its own, or frm. RM_ILLEGAL and above are none. */

function roundingMode(bits: u32): u32 {
  const rm = (bits >> 12) & 7;
  return rm === 7 ? <u32> getCsr(FRM) : rm;
}

function fieldRd(bits: u32): u32 {
  return (bits >> 7) & 31;
}

function fieldRs1(bits: u32): u32 {
  return (bits >> 15) & 31;
}

function fieldRs2(bits: u32): u32 {
  return (bits >> 20) & 31;
}

/** FMADD, FMSUB, FNMSUB, FNMADD: signs of product and addend flipped as the opcode says. */
export function executeFma(bits: u32): void {
  if (!isFloatOn(bits)) return;
  const rm = roundingMode(bits);
  if (rm >= RM_ILLEGAL) {
    raiseException(CAUSE_ILLEGAL_INSTRUCTION, bits);
    return;
  }
  const kind = (bits >> 2) & 3; // 0 madd, 1 msub, 2 nmsub, 3 nmadd
  const negatesProduct = kind >= 2;
  const negatesAddend = kind === 1 || kind === 3;
  const rs3 = bits >> 27;
  if (((bits >> 25) & 3) === 0) {
    const a = getF32(fieldRs1(bits)) ^ (negatesProduct ? F32_SIGN : 0);
    const addend = getF32(rs3) ^ (negatesAddend ? F32_SIGN : 0);
    setF32(fieldRd(bits), f32s.f32Fma(a, getF32(fieldRs2(bits)), addend, rm));
  } else {
    const a = getF64(fieldRs1(bits)) ^ (negatesProduct ? F64_SIGN : 0);
    const addend = getF64(rs3) ^ (negatesAddend ? F64_SIGN : 0);
    setF64(fieldRd(bits), f64s.f64Fma(a, getF64(fieldRs2(bits)), addend, rm));
  }
  markFloatDirty();
}

/** Every instruction of OP-FP. */
export function executeFloat(bits: u32): void {
  if (!isFloatOn(bits)) return;
  const isDouble = ((bits >> 25) & 3) === 1;
  const isDone = isDouble ? executeDouble(bits) : executeSingle(bits);
  if (!isDone) raiseException(CAUSE_ILLEGAL_INSTRUCTION, bits);
}

/** Returns whether there is such an instruction, with a legal rounding mode. */
function executeDouble(bits: u32): bool {
  const rd = fieldRd(bits);
  const a = getF64(fieldRs1(bits));
  const b = getF64(fieldRs2(bits));
  const funct3 = (bits >> 12) & 7;
  switch (bits >> 27) {
    case 0x04: // FSGNJ
      if (funct3 > 2) return false;
      setF64(rd, (a & ~F64_SIGN) | (sign64(a, b, funct3) & F64_SIGN));
      break;
    case 0x05:
      if (funct3 > 1) return false;
      setF64(rd, funct3 === 0 ? f64s.f64Min(a, b) : f64s.f64Max(a, b));
      break;
    case 0x14:
      if (funct3 > 2) return false;
      setX(
        rd,
        funct3 === 2 ? f64s.f64Eq(a, b) : funct3 === 1 ? f64s.f64Lt(a, b) : f64s.f64Le(a, b),
      );
      break;
    case 0x1c: // FMV.X.D, FCLASS.D: f registers stay as they are
      if (fieldRs2(bits) !== 0 || funct3 > 1) return false;
      setX(rd, funct3 === 0 ? a : f64s.f64Classify(a));
      return true;
    case 0x1e:
      if (fieldRs2(bits) !== 0 || funct3 !== 0) return false;
      setF64(rd, getX(fieldRs1(bits)));
      break;
    default:
      if (!roundDouble(bits, rd, a, b)) return false;
  }
  markFloatDirty();
  return true;
}

function sign64(a: u64, b: u64, funct3: u32): u64 {
  return funct3 === 0 ? b : funct3 === 1 ? ~b : a ^ b;
}

/** The instructions that round. */
function roundDouble(bits: u32, rd: u32, a: u64, b: u64): bool {
  const rm = roundingMode(bits);
  if (rm >= RM_ILLEGAL) return false;
  const rs2 = fieldRs2(bits);
  switch (bits >> 27) {
    case 0x00:
      setF64(rd, f64s.f64Add(a, b, rm));
      return true;
    case 0x01:
      setF64(rd, f64s.f64Sub(a, b, rm));
      return true;
    case 0x02:
      setF64(rd, f64s.f64Mul(a, b, rm));
      return true;
    case 0x03:
      setF64(rd, f64s.f64Div(a, b, rm));
      return true;
    case 0x0b:
      if (rs2 !== 0) return false;
      setF64(rd, f64s.f64Sqrt(a, rm));
      return true;
    case 0x08: // FCVT.D.S
      if (rs2 !== 0) return false;
      setF64(rd, c.f32ToF64(getF32(fieldRs1(bits))));
      return true;
    case 0x18:
      if (rs2 > 3) return false;
      if (rs2 < 2) setX(rd, rs2 === 0 ? c.f64ToI32(a, rm) : c.f64ToU32(a, rm));
      else setX(rd, rs2 === 2 ? c.f64ToI64(a, rm) : c.f64ToU64(a, rm));
      return true;
    case 0x1a: {
      if (rs2 > 3) return false;
      const x = getX(fieldRs1(bits));
      if (rs2 < 2) setF64(rd, rs2 === 0 ? c.f64FromI32(x, rm) : c.f64FromU32(x, rm));
      else setF64(rd, rs2 === 2 ? c.f64FromI64(x, rm) : c.f64FromU64(x, rm));
      return true;
    }
    default:
      return false;
  }
}

function executeSingle(bits: u32): bool {
  const rd = fieldRd(bits);
  const a = getF32(fieldRs1(bits));
  const b = getF32(fieldRs2(bits));
  const funct3 = (bits >> 12) & 7;
  switch (bits >> 27) {
    case 0x04:
      if (funct3 > 2) return false;
      setF32(rd, (a & ~F32_SIGN) | (sign32(a, b, funct3) & F32_SIGN));
      break;
    case 0x05:
      if (funct3 > 1) return false;
      setF32(rd, funct3 === 0 ? f32s.f32Min(a, b) : f32s.f32Max(a, b));
      break;
    case 0x14:
      if (funct3 > 2) return false;
      setX(
        rd,
        funct3 === 2 ? f32s.f32Eq(a, b) : funct3 === 1 ? f32s.f32Lt(a, b) : f32s.f32Le(a, b),
      );
      break;
    case 0x1c: // FMV.X.W takes the low half as it is, boxed or not
      if (fieldRs2(bits) !== 0 || funct3 > 1) return false;
      setX(rd, funct3 === 0 ? <u64> <i64> <i32> getF64(fieldRs1(bits)) : f32s.f32Classify(a));
      return true;
    case 0x1e:
      if (fieldRs2(bits) !== 0 || funct3 !== 0) return false;
      setF32(rd, <u32> getX(fieldRs1(bits)));
      break;
    default:
      if (!roundSingle(bits, rd, a, b)) return false;
  }
  markFloatDirty();
  return true;
}

function sign32(a: u32, b: u32, funct3: u32): u32 {
  return funct3 === 0 ? b : funct3 === 1 ? ~b : a ^ b;
}

function roundSingle(bits: u32, rd: u32, a: u32, b: u32): bool {
  const rm = roundingMode(bits);
  if (rm >= RM_ILLEGAL) return false;
  const rs2 = fieldRs2(bits);
  switch (bits >> 27) {
    case 0x00:
      setF32(rd, f32s.f32Add(a, b, rm));
      return true;
    case 0x01:
      setF32(rd, f32s.f32Sub(a, b, rm));
      return true;
    case 0x02:
      setF32(rd, f32s.f32Mul(a, b, rm));
      return true;
    case 0x03:
      setF32(rd, f32s.f32Div(a, b, rm));
      return true;
    case 0x0b:
      if (rs2 !== 0) return false;
      setF32(rd, f32s.f32Sqrt(a, rm));
      return true;
    case 0x08: // FCVT.S.D
      if (rs2 !== 1) return false;
      setF32(rd, c.f64ToF32(getF64(fieldRs1(bits)), rm));
      return true;
    case 0x18:
      if (rs2 > 3) return false;
      if (rs2 < 2) setX(rd, rs2 === 0 ? c.f32ToI32(a, rm) : c.f32ToU32(a, rm));
      else setX(rd, rs2 === 2 ? c.f32ToI64(a, rm) : c.f32ToU64(a, rm));
      return true;
    case 0x1a: {
      if (rs2 > 3) return false;
      const x = getX(fieldRs1(bits));
      if (rs2 < 2) setF32(rd, rs2 === 0 ? c.f32FromI32(x, rm) : c.f32FromU32(x, rm));
      else setF32(rd, rs2 === 2 ? c.f32FromI64(x, rm) : c.f32FromU64(x, rm));
      return true;
    }
    default:
      return false;
  }
}
