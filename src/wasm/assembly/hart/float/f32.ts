/**
 * Arithmetic, comparison and classification of singles as the F extension defines them, on bit
 * patterns; NaN boxing is the caller's. Conversions are in convert.ts.
 *
 * A double has more than twice the precision of a single, so every operation is done in doubles and
 * then narrowed once, in the mode asked for. That is exact if the double is on the same side as the
 * exact value of every single, and of every midpoint between two singles (25 bits):
 *   product         48 bits: exact
 *   sum, fused sum  not exact, but the error of the addition is, by Knuth's two-sum (nothing can
 *                   overflow or underflow in a double); with it the sum is rounded to odd, and an
 *                   odd double is neither a single nor a midpoint
 *   quotient        were it inexact and rounded to a number q of 25 bits, then q * b would have 49
 *                   bits and differ from a by at least 2^-49 of it; but rounding errs by 2^-53
 *   root            the same with the square of q
 * `narrow` in convert.ts tells from the double alone which flags to raise. If inexact is accrued
 * already and rounding is to nearest even, the host's single operation is taken: see f64.ts.
 */
import { narrow } from "./convert";
import { fflags, FLAG_DZ, FLAG_NV, FLAG_NX, raise } from "./flags";
import { RDN } from "./round";

export const F32_SIGN: u32 = 0x8000_0000;
export const F32_INFINITY: u32 = 0x7f80_0000;
export const F32_NAN: u32 = 0x7fc0_0000;
const F32_QUIET: u32 = 0x0040_0000;
const F32_HIDDEN: u32 = 0x0080_0000;
const PLAIN_LEAST: u32 = (F32_HIDDEN + 1) << 1;
const PLAIN_RANGE: u32 = (F32_INFINITY << 1) - PLAIN_LEAST;

export function isNaN32(a: u32): bool {
  return (a << 1) > (F32_INFINITY << 1);
}

export function isSignalling32(a: u32): bool {
  return isNaN32(a) && (a & F32_QUIET) == 0;
}

function isInfinite32(a: u32): bool {
  return (a << 1) == (F32_INFINITY << 1);
}

/** Normal and not the least normal number, which may have been rounded up from below. */
export function isPlain32(a: u32): bool {
  return (a << 1) - PLAIN_LEAST < PLAIN_RANGE;
}

function isHostMode(rm: u32): bool {
  return (rm | (~fflags & FLAG_NX)) == 0;
}

function toHost(a: u32): f32 {
  return reinterpret<f32>(a);
}

function toBits(a: f32): u32 {
  return reinterpret<u32>(a);
}

function widen(a: u32): f64 {
  return <f64> reinterpret<f32>(a);
}

/** The result of an operation whose operands make it NaN: invalid unless a quiet NaN came in. */
function nanResult(a: u32, b: u32): u32 {
  if (isSignalling32(a) || isSignalling32(b) || !(isNaN32(a) || isNaN32(b))) raise(FLAG_NV);
  return F32_NAN;
}

// ---- addition ----------------------------------------------------------------------------------

/** Narrows a finite `a + b`, of which `sum` is the nearest double. A zero gets its sign here. */
function narrowSum(a: f64, b: f64, sum: f64, rm: u32): u32 {
  if (sum == 0.0) {
    // IEEE 754-2019, 6.3: negative if both are, and rounding down also if their signs differ.
    const signs: u64 = reinterpret<u64>(a) | reinterpret<u64>(b);
    return rm == RDN ? <u32> (signs >> 63) << 31 : toBits(<f32> sum);
  }
  const addend: f64 = sum - a;
  const error: f64 = (a - (sum - addend)) + (b - addend);
  if (error != 0.0) {
    const bits: u64 = reinterpret<u64>(sum);
    if ((bits & 1) == 0) {
      sum = reinterpret<f64>((error > 0.0) == (sum > 0.0) ? bits + 1 : bits - 1);
    }
  }
  return narrow(sum, rm);
}

export function f32Add(a: u32, b: u32, rm: u32): u32 {
  const sum: u32 = toBits(toHost(a) + toHost(b));
  if (isHostMode(rm) && isPlain32(sum)) return sum;
  return addExactly(a, b, rm);
}

export function f32Sub(a: u32, b: u32, rm: u32): u32 {
  const difference: u32 = toBits(toHost(a) - toHost(b));
  if (isHostMode(rm) && isPlain32(difference)) return difference;
  return addExactly(a, b ^ F32_SIGN, rm);
}

function addExactly(a: u32, b: u32, rm: u32): u32 {
  const sum: f64 = widen(a) + widen(b);
  if (sum != sum) return nanResult(a, b);
  if (abs<f64>(sum) == Infinity) return toBits(<f32> sum);
  return narrowSum(widen(a), widen(b), sum, rm);
}

/** a * b + c, rounded once. */
export function f32Fma(a: u32, b: u32, c: u32, rm: u32): u32 {
  const product: f64 = widen(a) * widen(b);
  const sum: f64 = product + widen(c);
  if (sum != sum) return nanFused(a, b, c, product);
  if (abs<f64>(sum) == Infinity) return toBits(<f32> sum);
  return narrowSum(product, widen(c), sum, rm);
}

/** Infinity times zero is invalid even if a quiet NaN is added (F 2.7). */
function nanFused(a: u32, b: u32, c: u32, product: f64): u32 {
  const isInvalid: bool = !isNaN32(a) && !isNaN32(b) && (product != product || !isNaN32(c));
  if (isInvalid || isSignalling32(a) || isSignalling32(b) || isSignalling32(c)) raise(FLAG_NV);
  return F32_NAN;
}

// ---- multiplication, division, square root ------------------------------------------------------

export function f32Mul(a: u32, b: u32, rm: u32): u32 {
  const product: u32 = toBits(toHost(a) * toHost(b));
  if (isHostMode(rm) && isPlain32(product)) return product;
  const exact: f64 = widen(a) * widen(b);
  return exact != exact ? nanResult(a, b) : narrow(exact, rm);
}

export function f32Div(a: u32, b: u32, rm: u32): u32 {
  const quotient: u32 = toBits(toHost(a) / toHost(b));
  if (isHostMode(rm) && isPlain32(quotient)) return quotient;
  const wide: f64 = widen(a) / widen(b);
  if (wide != wide) return nanResult(a, b);
  // Two finite singles do not overflow a double: an infinite quotient of one means a zero divisor.
  if (abs<f64>(wide) == Infinity && !isInfinite32(a)) raise(FLAG_DZ);
  return narrow(wide, rm);
}

export function f32Sqrt(a: u32, rm: u32): u32 {
  const root: u32 = toBits(sqrt<f32>(toHost(a)));
  if (isHostMode(rm) && isPlain32(root)) return root;
  const wide: f64 = sqrt<f64>(widen(a));
  return wide != wide ? nanResult(a, a) : narrow(wide, rm);
}

// ---- minimum, maximum, comparison, classification -----------------------------------------------

/** minimumNumber (F 2.2 and later): a NaN loses against a number; -0 is less than +0. */
export function f32Min(a: u32, b: u32): u32 {
  const least: f32 = min<f32>(toHost(a), toHost(b));
  return least == least ? toBits(least) : otherThanNaN(a, b);
}

/** maximumNumber. */
export function f32Max(a: u32, b: u32): u32 {
  const greatest: f32 = max<f32>(toHost(a), toHost(b));
  return greatest == greatest ? toBits(greatest) : otherThanNaN(a, b);
}

function otherThanNaN(a: u32, b: u32): u32 {
  if (isSignalling32(a) || isSignalling32(b)) raise(FLAG_NV);
  if (!isNaN32(a)) return a;
  return isNaN32(b) ? F32_NAN : b;
}

/** Quiet comparison: invalid only for signalling NaN. */
export function f32Eq(a: u32, b: u32): u32 {
  if (isSignalling32(a) || isSignalling32(b)) raise(FLAG_NV);
  return <u32> (toHost(a) == toHost(b));
}

/** Signalling comparison: invalid for any NaN. */
export function f32Lt(a: u32, b: u32): u32 {
  if (isNaN32(a) || isNaN32(b)) raise(FLAG_NV);
  return <u32> (toHost(a) < toHost(b));
}

/** Signalling comparison. */
export function f32Le(a: u32, b: u32): u32 {
  if (isNaN32(a) || isNaN32(b)) raise(FLAG_NV);
  return <u32> (toHost(a) <= toHost(b));
}

/** FCLASS.S's mask (F 2.9, table 30). */
export function f32Classify(a: u32): u32 {
  if (isNaN32(a)) return a & F32_QUIET ? 1 << 9 : 1 << 8;
  const magnitude: u32 = a & ~F32_SIGN;
  // Bits 0..3 are for negative numbers from infinity to zero, 4..7 for positive ones from zero.
  let index: u32 = 0;
  if (magnitude == 0) index = 3;
  else if (magnitude < F32_HIDDEN) index = 2;
  else if (magnitude < F32_INFINITY) index = 1;
  return 1 << (a >> 31 ? index : 7 - index);
}
