/**
 * Conversions between doubles, singles and integers (F 2.7, D 3.5).
 *
 * To integers: the host rounds to an integral number exactly in every mode, so no integer path is
 * needed; what is out of range, and NaN, saturates and is invalid, without inexact. 32-bit results
 * are sign-extended to 64 bits, the unsigned ones too, as registers hold them.
 */
import { exponent64, F64_INFINITY, F64_NAN, isNaN64, isSignalling64, significand64 } from "./f64";
import { F32_NAN, isPlain32, isSignalling32 } from "./f32";
import { FLAG_NV, FLAG_NX, raise } from "./flags";
import { RDN, RNE, roundF32, roundF64, RTZ, RUP } from "./round";

const BIAS_DIFFERENCE: i32 = 1023 - 127;
/** Integers up to here in magnitude are doubles. */
const EXACT_LIMIT: u64 = 1 << 53;
const TWO_31: f64 = 2147483648.0;
const TWO_32: f64 = 4294967296.0;
const TWO_63: f64 = 9223372036854775808.0;
const TWO_64: f64 = 18446744073709551616.0;

// ---- between the formats ------------------------------------------------------------------------

/** Rounds a double, not NaN, to a single, and raises what that raises. */
export function narrow(a: f64, rm: u32): u32 {
  const single: f32 = <f32> a;
  const bits: u32 = reinterpret<u32>(single);
  // Also infinity and zero. An exact result is no underflow though it be tiny.
  if (<f64> single == a) return bits;
  if (rm == RNE && isPlain32(bits)) {
    raise(FLAG_NX);
    return bits;
  }
  const wide: u64 = reinterpret<u64>(a);
  return roundF32(<u32> (wide >> 63), exponent64(wide) - BIAS_DIFFERENCE, significand64(wide), rm);
}

export function f64ToF32(a: u64, rm: u32): u32 {
  if (isNaN64(a)) {
    if (isSignalling64(a)) raise(FLAG_NV);
    return F32_NAN;
  }
  return narrow(reinterpret<f64>(a), rm);
}

export function f32ToF64(a: u32): u64 {
  const wide: u64 = reinterpret<u64>(<f64> reinterpret<f32>(a));
  if ((wide << 1) <= (F64_INFINITY << 1)) return wide;
  if (isSignalling32(a)) raise(FLAG_NV);
  return F64_NAN;
}

// ---- to integers --------------------------------------------------------------------------------

/** Rounds to an integral number. NaN and infinity stay. */
function toIntegral(a: f64, rm: u32): f64 {
  if (rm == RTZ) return trunc<f64>(a);
  if (rm == RNE) return nearest<f64>(a);
  if (rm == RDN) return floor<f64>(a);
  if (rm == RUP) return ceil<f64>(a);
  // RMM. The difference is exact; adding one is too, as a number with a fraction is below 2^52.
  const whole: f64 = trunc<f64>(a);
  return abs<f64>(a - whole) >= 0.5 ? whole + copysign<f64>(1.0, a) : whole;
}

/** Raises inexact if rounding changed the number. */
function raiseIfInexact(whole: f64, a: f64): void {
  if (whole != a) raise(FLAG_NX);
}

/** What an integer conversion gives out of range; NaN counts as positive. */
function saturate(a: f64, least: u64, greatest: u64): u64 {
  raise(FLAG_NV);
  return a < 0.0 ? least : greatest;
}

function toI32(a: f64, rm: u32): u64 {
  const whole: f64 = toIntegral(a, rm);
  if (!(whole >= -TWO_31 && whole < TWO_31)) {
    return saturate(a, 0xffff_ffff_8000_0000, 0x7fff_ffff);
  }
  raiseIfInexact(whole, a);
  return <u64> <i64> whole;
}

function toU32(a: f64, rm: u32): u64 {
  const whole: f64 = toIntegral(a, rm);
  if (!(whole >= 0.0 && whole < TWO_32)) return saturate(a, 0, 0xffff_ffff_ffff_ffff);
  raiseIfInexact(whole, a);
  return <u64> <i64> <i32> <u32> whole;
}

function toI64(a: f64, rm: u32): u64 {
  const whole: f64 = toIntegral(a, rm);
  if (!(whole >= -TWO_63 && whole < TWO_63)) {
    return saturate(a, 0x8000_0000_0000_0000, 0x7fff_ffff_ffff_ffff);
  }
  raiseIfInexact(whole, a);
  return <u64> <i64> whole;
}

function toU64(a: f64, rm: u32): u64 {
  const whole: f64 = toIntegral(a, rm);
  if (!(whole >= 0.0 && whole < TWO_64)) return saturate(a, 0, 0xffff_ffff_ffff_ffff);
  raiseIfInexact(whole, a);
  return <u64> whole;
}

export function f64ToI32(a: u64, rm: u32): u64 {
  return toI32(reinterpret<f64>(a), rm);
}

export function f64ToU32(a: u64, rm: u32): u64 {
  return toU32(reinterpret<f64>(a), rm);
}

export function f64ToI64(a: u64, rm: u32): u64 {
  return toI64(reinterpret<f64>(a), rm);
}

export function f64ToU64(a: u64, rm: u32): u64 {
  return toU64(reinterpret<f64>(a), rm);
}

export function f32ToI32(a: u32, rm: u32): u64 {
  return toI32(<f64> reinterpret<f32>(a), rm);
}

export function f32ToU32(a: u32, rm: u32): u64 {
  return toU32(<f64> reinterpret<f32>(a), rm);
}

export function f32ToI64(a: u32, rm: u32): u64 {
  return toI64(<f64> reinterpret<f32>(a), rm);
}

export function f32ToU64(a: u32, rm: u32): u64 {
  return toU64(<f64> reinterpret<f32>(a), rm);
}

// ---- from integers: the 32-bit ones take the low half of the register ---------------------------

/** Exact, so the mode does not matter; it is there to have one shape of all conversions. */
export function f64FromI32(x: u64, _rm: u32): u64 {
  return reinterpret<u64>(<f64> <i32> x);
}

/** Exact. */
export function f64FromU32(x: u64, _rm: u32): u64 {
  return reinterpret<u64>(<f64> <u32> x);
}

export function f64FromI64(x: u64, rm: u32): u64 {
  const magnitude: u64 = <i64> x < 0 ? 0 - x : x;
  if (magnitude <= EXACT_LIMIT) return reinterpret<u64>(<f64> <i64> x);
  return roundF64(<u32> (x >> 63), 1023 + 63, magnitude, rm);
}

export function f64FromU64(x: u64, rm: u32): u64 {
  if (x <= EXACT_LIMIT) return reinterpret<u64>(<f64> x);
  return roundF64(0, 1023 + 63, x, rm);
}

export function f32FromI32(x: u64, rm: u32): u32 {
  return narrow(<f64> <i32> x, rm);
}

export function f32FromU32(x: u64, rm: u32): u32 {
  return narrow(<f64> <u32> x, rm);
}

export function f32FromI64(x: u64, rm: u32): u32 {
  const magnitude: u64 = <i64> x < 0 ? 0 - x : x;
  if (magnitude <= EXACT_LIMIT) return narrow(<f64> <i64> x, rm);
  return roundF32(<u32> (x >> 63), 127 + 63, magnitude, rm);
}

export function f32FromU64(x: u64, rm: u32): u32 {
  if (x <= EXACT_LIMIT) return narrow(<f64> x, rm);
  return roundF32(0, 127 + 63, x, rm);
}
