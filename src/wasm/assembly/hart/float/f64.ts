/**
 * Arithmetic, comparison and classification of doubles as the D extension defines them, on bit
 * patterns. Conversions are in convert.ts.
 *
 * Each operation has a fast path, the host's own operation, and an exact one in integers.
 * WebAssembly rounds to nearest even and tells no flags, so the host's result is taken when the
 * mode is that and inexact is accrued already, and the result is a normal number other than the
 * least one: then nothing but inexact can have been raised. NaN and infinite operands, overflow,
 * underflow and division by zero all give results outside this range. A finite operand over
 * infinity gives zero. The exact operation, in turn, first asks the host whether the result is
 * exact, by its error or its length: then it is right in every mode and raises nothing, as with
 * whole numbers.
 *
 * Rounding modes are 0..4, resolved by the caller. NaN results are the canonical NaN. Negated forms
 * of the fused operation are the caller's: it flips signs of `a` and `c`.
 */
import { fflags, FLAG_DZ, FLAG_NV, FLAG_NX, raise } from "./flags";
import { RDN, roundF64, shiftRightJam } from "./round";

export const F64_SIGN: u64 = 0x8000_0000_0000_0000;
export const F64_INFINITY: u64 = 0x7ff0_0000_0000_0000;
export const F64_NAN: u64 = 0x7ff8_0000_0000_0000;
const F64_QUIET: u64 = 0x0008_0000_0000_0000;
const F64_HIDDEN: u64 = 0x0010_0000_0000_0000;
const F64_FRACTION: u64 = 0x000f_ffff_ffff_ffff;
const F64_ONE: u64 = 0x3ff0_0000_0000_0000;
const BIAS: i32 = 1023;
/** The least normal number's successor, sign shifted out, and its distance from infinity. */
const PLAIN_LEAST: u64 = (F64_HIDDEN + 1) << 1;
const PLAIN_RANGE: u64 = (F64_INFINITY << 1) - PLAIN_LEAST;

export function isNaN64(a: u64): bool {
  return (a << 1) > (F64_INFINITY << 1);
}

export function isSignalling64(a: u64): bool {
  return isNaN64(a) && (a & F64_QUIET) == 0;
}

function isFinite64(a: u64): bool {
  return (a << 1) < (F64_INFINITY << 1);
}

function isZero64(a: u64): bool {
  return (a << 1) == 0;
}

/** Normal and not the least normal number, which may have been rounded up from below: see above. */
export function isPlain64(a: u64): bool {
  return (a << 1) - PLAIN_LEAST < PLAIN_RANGE;
}

/** May a plain host result be taken as it is? */
function isHostMode(rm: u32): bool {
  return (rm | (~fflags & FLAG_NX)) == 0;
}

function toHost(a: u64): f64 {
  return reinterpret<f64>(a);
}

function toBits(a: f64): u64 {
  return reinterpret<u64>(a);
}

function sign64(a: u64): u32 {
  return <u32> (a >> 63);
}

/** Biased exponent of a finite non-zero number; below 1 for a subnormal one, as if normalised. */
export function exponent64(a: u64): i32 {
  const exp: i32 = <i32> (a >> 52) & 0x7ff;
  return exp == 0 ? 12 - <i32> clz<u64>(a & F64_FRACTION) : exp;
}

/** Significand of a finite non-zero number, normalised to bit 63. The low 11 bits are zero. */
export function significand64(a: u64): u64 {
  const fraction: u64 = a & F64_FRACTION;
  return ((a >> 52) & 0x7ff) == 0 ? fraction << clz<u64>(fraction) : (fraction | F64_HIDDEN) << 11;
}

/** The result of an operation whose operands make it NaN: invalid unless a quiet NaN came in. */
function nanResult(a: u64, b: u64): u64 {
  if (isSignalling64(a) || isSignalling64(b) || !(isNaN64(a) || isNaN64(b))) raise(FLAG_NV);
  return F64_NAN;
}

/**
 * The sum of two numbers that is exactly zero: negative if both are, and rounding down also if
 * their signs differ (IEEE 754-2019, 6.3).
 */
function zeroSum(a: u64, b: u64, rm: u32): u64 {
  return (rm == RDN ? a | b : a & b) & F64_SIGN;
}

// ---- addition ----------------------------------------------------------------------------------

export function f64Add(a: u64, b: u64, rm: u32): u64 {
  const sum: u64 = toBits(toHost(a) + toHost(b));
  if (isHostMode(rm) && isPlain64(sum)) return sum;
  return addExactly(a, b, rm);
}

export function f64Sub(a: u64, b: u64, rm: u32): u64 {
  const difference: u64 = toBits(toHost(a) - toHost(b));
  if (isHostMode(rm) && isPlain64(difference)) return difference;
  // The sign of a NaN does not matter: results are canonical and signalling is another bit.
  return addExactly(a, b ^ F64_SIGN, rm);
}

function addExactly(a: u64, b: u64, rm: u32): u64 {
  const sum: f64 = toHost(a) + toHost(b);
  if (!isFinite64(a) || !isFinite64(b)) return sum != sum ? nanResult(a, b) : toBits(sum);
  // A sum of doubles is a multiple of the least subnormal: it does not underflow to zero.
  if (sum == 0.0) return zeroSum(a, b, rm);
  // Knuth's two-sum: the exact error of a sum, NaN or infinite if something overflows. None: done,
  // in every mode. That settles a zero operand too.
  const addend: f64 = sum - toHost(a);
  if ((toHost(a) - (sum - addend)) + (toHost(b) - addend) == 0.0) return toBits(sum);
  if ((a << 1) < (b << 1)) {
    const greater: u64 = b;
    b = a;
    a = greater;
  }
  const exp: i32 = exponent64(a);
  // Bit 63 is left free for the carry. Ten zero bits below keep the jammed bit away from the result
  // even when subtraction cancels one place; it cancels more only if nothing was shifted out.
  const sigA: u64 = significand64(a) >> 1;
  const sigB: u64 = shiftRightJam(significand64(b) >> 1, <u32> (exp - exponent64(b)));
  const sig: u64 = sign64(a) == sign64(b) ? sigA + sigB : sigA - sigB;
  return roundF64(sign64(a), exp + 1, sig, rm);
}

// ---- multiplication, division, square root ------------------------------------------------------

/**
 * Is the host's product certainly exact? A normal one of at most 53 bits is, in every mode. So
 * numbers that are small integers, or were singles, take no slow path.
 */
function isShortProduct(a: u64, b: u64, product: u64): bool {
  return ctz<u64>(a | F64_HIDDEN) + ctz<u64>(b | F64_HIDDEN) >= 53 && isPlain64(product);
}

/** Upper half of a 128-bit product. */
function multiplyHigh(a: u64, b: u64): u64 {
  const lowA: u64 = a & 0xffff_ffff;
  const lowB: u64 = b & 0xffff_ffff;
  const highA: u64 = a >> 32;
  const highB: u64 = b >> 32;
  const middle: u64 = highA * lowB + ((lowA * lowB) >> 32);
  const carry: u64 = lowA * highB + (middle & 0xffff_ffff);
  return highA * highB + (middle >> 32) + (carry >> 32);
}

export function f64Mul(a: u64, b: u64, rm: u32): u64 {
  const product: u64 = toBits(toHost(a) * toHost(b));
  if (isHostMode(rm) && isPlain64(product)) return product;
  return multiplyExactly(a, b, rm);
}

function multiplyExactly(a: u64, b: u64, rm: u32): u64 {
  const product: f64 = toHost(a) * toHost(b);
  if (isShortProduct(a, b, toBits(product))) return toBits(product);
  if (!isFinite64(a) || !isFinite64(b) || isZero64(a) || isZero64(b)) {
    return product != product ? nanResult(a, b) : toBits(product);
  }
  const sigA: u64 = significand64(a);
  const sigB: u64 = significand64(b);
  const sig: u64 = multiplyHigh(sigA, sigB) | <u64> (sigA * sigB != 0);
  // Two significands in [1, 2) give a product in [1, 4): bit 127 stands for 2.
  return roundF64(sign64(a) ^ sign64(b), exponent64(a) + exponent64(b) - BIAS + 1, sig, rm);
}

export function f64Div(a: u64, b: u64, rm: u32): u64 {
  const quotient: u64 = toBits(toHost(a) / toHost(b));
  if (isHostMode(rm) && isPlain64(quotient)) return quotient;
  return divideExactly(a, b, rm);
}

/**
 * From a rounded significand of 53 bits, and on which side of it the exact value lies, to an
 * intermediate one. Quotients and roots never lie half-way between two significands, so that a
 * jammed bit next to the rounded one says all that any rounding mode, or a subnormal result, needs.
 */
function correctSignificand(rounded: u64, remainder: i64): u64 {
  return (rounded << 11) + <u64> (<i64> (remainder > 0) - <i64> (remainder < 0));
}

function divideExactly(a: u64, b: u64, rm: u32): u64 {
  const host: f64 = toHost(a) / toHost(b);
  if (isShortProduct(toBits(host), b, a) && host * toHost(b) == toHost(a)) return toBits(host);
  if (!isFinite64(a) || !isFinite64(b) || isZero64(a) || isZero64(b)) {
    if (host != host) return nanResult(a, b);
    if (isZero64(b) && isFinite64(a)) raise(FLAG_DZ);
    return toBits(host);
  }
  const sigA: u64 = significand64(a) >> 11;
  const sigB: u64 = significand64(b) >> 11;
  // The host divides the significands alone, so that nothing overflows. The remainder belonging to
  // its quotient is at most half of the divisor, so that its low 64 bits are all of it.
  const quotient: u64 = toBits(
    toHost((sigA & F64_FRACTION) | F64_ONE) / toHost((sigB & F64_FRACTION) | F64_ONE),
  );
  const isBelowOne: bool = quotient < F64_ONE;
  const sigQ: u64 = (quotient & F64_FRACTION) | F64_HIDDEN;
  const remainder: i64 = <i64> ((sigA << (isBelowOne ? 53 : 52)) - sigQ * sigB);
  const exp: i32 = exponent64(a) - exponent64(b) + BIAS - <i32> isBelowOne;
  const sig: u64 = correctSignificand(sigQ, remainder);
  return roundF64(sign64(a) ^ sign64(b), exp, sig, rm);
}

export function f64Sqrt(a: u64, rm: u32): u64 {
  const root: u64 = toBits(sqrt<f64>(toHost(a)));
  if (isHostMode(rm) && isPlain64(root)) return root;
  return rootExactly(a, rm);
}

function rootExactly(a: u64, rm: u32): u64 {
  const host: f64 = sqrt<f64>(toHost(a));
  if (isShortProduct(toBits(host), toBits(host), a) && host * host == toHost(a)) {
    return toBits(host);
  }
  if (isZero64(a) || !isFinite64(a) || sign64(a) != 0) {
    return host != host ? nanResult(a, a) : toBits(host);
  }
  const sigA: u64 = significand64(a) >> 11;
  const exp: i32 = exponent64(a) - BIAS;
  const isOdd: i32 = exp & 1;
  // As in division: the root of a significand in [1, 4) is in [1, 2), and the difference between
  // its square and the radicand is less than 2^54.
  const radicand: u64 = (sigA & F64_FRACTION) | (isOdd ? F64_ONE + F64_HIDDEN : F64_ONE);
  const sigR: u64 = (toBits(sqrt<f64>(toHost(radicand))) & F64_FRACTION) | F64_HIDDEN;
  const remainder: i64 = <i64> ((sigA << <u64> (52 + isOdd)) - sigR * sigR);
  return roundF64(0, ((exp - isOdd) >> 1) + BIAS, correctSignificand(sigR, remainder), rm);
}

// ---- fused multiplication and addition ----------------------------------------------------------

/**
 * Does the host round a relaxed multiplication and addition once? It must choose the same always.
 * Found out when the module is instantiated: only if fused is (1 + 2^-30)^2 - (1 + 2^-29) not zero.
 */
export const hostFuses: bool =
  multiplyAdd(1.0 + 1.0 / 1073741824.0, -1.0 - 1.0 / 536870912.0) != 0.0;

function multiplyAdd(a: f64, c: f64): f64 {
  return relaxedFma(a, a, c);
}

function relaxedFma(a: f64, b: f64, c: f64): f64 {
  return f64x2.extract_lane(
    f64x2.relaxed_madd(f64x2.splat(a), f64x2.splat(b), f64x2.splat(c)),
    0,
  );
}

/** a * b + c, rounded once. */
export function f64Fma(a: u64, b: u64, c: u64, rm: u32): u64 {
  if (hostFuses && isHostMode(rm)) {
    const fused: u64 = toBits(relaxedFma(toHost(a), toHost(b), toHost(c)));
    if (isPlain64(fused)) return fused;
  }
  return fuseExactly(a, b, c, rm);
}

function fuseExactly(a: u64, b: u64, c: u64, rm: u32): u64 {
  const product: f64 = toHost(a) * toHost(b);
  if (isShortProduct(a, b, toBits(product))) return addExactly(toBits(product), c, rm);
  if (!isFinite64(a) || !isFinite64(b) || !isFinite64(c)) {
    // If the product overflows here though its factors are finite, c is infinite or NaN, and
    // decides.
    const sum: f64 = isFinite64(a) && isFinite64(b) ? toHost(c) : product + toHost(c);
    return sum != sum ? nanFused(a, b, c) : toBits(sum);
  }
  const signP: u32 = sign64(a) ^ sign64(b);
  if (isZero64(a) || isZero64(b)) return isZero64(c) ? zeroSum(toBits(product), c, rm) : c;
  return fuse(a, b, c, signP, rm);
}

/** Infinity times zero is invalid even if a quiet NaN is added (F 2.7). */
function nanFused(a: u64, b: u64, c: u64): u64 {
  const product: f64 = toHost(a) * toHost(b);
  const isInvalid: bool = !isNaN64(a) && !isNaN64(b) && (product != product || !isNaN64(c));
  if (isInvalid || isSignalling64(a) || isSignalling64(b) || isSignalling64(c)) raise(FLAG_NV);
  return F64_NAN;
}

/** The finite, non-zero product's case: 128-bit fixed point, with bit 125 for the product's 1.0. */
function fuse(a: u64, b: u64, c: u64, signP: u32, rm: u32): u64 {
  const sigA: u64 = significand64(a);
  const sigB: u64 = significand64(b) >> 1;
  let exp: i32 = exponent64(a) + exponent64(b) - BIAS;
  // The product is in [1, 4) and ends 21 places above bit 0, the addend 73 places: what is shifted
  // out of the lesser one by alignment is too far below the other's first place for cancellation to
  // bring the jammed bit near the rounding place.
  let highP: u64 = multiplyHigh(sigA, sigB);
  let lowP: u64 = sigA * sigB;
  if (isZero64(c)) return roundF64(signP, exp + 2, highP | <u64> (lowP != 0), rm);
  let highC: u64 = significand64(c) >> 2;
  let lowC: u64 = 0;
  const distance: i32 = exp - exponent64(c);
  if (distance > 0) {
    lowC = shiftLowJam(highC, lowC, <u32> distance);
    highC = distance > 63 ? 0 : highC >> <u64> distance;
  } else if (distance < 0) {
    exp -= distance;
    lowP = shiftLowJam(highP, lowP, <u32> -distance);
    highP = -distance > 63 ? 0 : highP >> <u64> -distance;
  }
  let sign: u32 = signP;
  let high: u64;
  let low: u64;
  if (signP == sign64(c)) {
    low = lowP + lowC;
    high = highP + highC + <u64> (low < lowP);
  } else if (highP >= highC) {
    // If they are equal the addend was not shifted, so that its lower half is zero.
    low = lowP - lowC;
    high = highP - highC - <u64> (lowP < lowC);
  } else {
    sign ^= 1;
    low = lowC - lowP;
    high = highC - highP - <u64> (lowC < lowP);
  }
  if ((high | low) == 0) return rm == RDN ? F64_SIGN : 0;
  return roundWide(sign, exp + 2, high, low, rm);
}

/** Lower half of a 128-bit number shifted right by 1 or more; what falls off sticks in bit 0. */
function shiftLowJam(high: u64, low: u64, count: u32): u64 {
  if (count > 63) return shiftRightJam(high, count - 64) | <u64> (low != 0);
  return shiftRightJam(low, count) | (high << <u64> (64 - count));
}

/** `roundF64` for a significand of 128 bits, `exp` being that of bit 127. */
function roundWide(sign: u32, exp: i32, high: u64, low: u64, rm: u32): u64 {
  if (high == 0) return roundF64(sign, exp - 64, low, rm);
  const zeros: u64 = clz<u64>(high);
  if (zeros != 0) {
    high = (high << zeros) | (low >> (64 - zeros));
    low <<= zeros;
  }
  return roundF64(sign, exp - <i32> zeros, high | <u64> (low != 0), rm);
}

// ---- minimum, maximum, comparison, classification -----------------------------------------------

/** minimumNumber (F 2.2 and later): a NaN loses against a number; -0 is less than +0. */
export function f64Min(a: u64, b: u64): u64 {
  const least: f64 = min<f64>(toHost(a), toHost(b));
  return least == least ? toBits(least) : otherThanNaN(a, b);
}

/** maximumNumber. */
export function f64Max(a: u64, b: u64): u64 {
  const greatest: f64 = max<f64>(toHost(a), toHost(b));
  return greatest == greatest ? toBits(greatest) : otherThanNaN(a, b);
}

function otherThanNaN(a: u64, b: u64): u64 {
  if (isSignalling64(a) || isSignalling64(b)) raise(FLAG_NV);
  if (!isNaN64(a)) return a;
  return isNaN64(b) ? F64_NAN : b;
}

/** Quiet comparison: invalid only for signalling NaN. */
export function f64Eq(a: u64, b: u64): u32 {
  if (isSignalling64(a) || isSignalling64(b)) raise(FLAG_NV);
  return <u32> (toHost(a) == toHost(b));
}

/** Signalling comparison: invalid for any NaN. */
export function f64Lt(a: u64, b: u64): u32 {
  if (isNaN64(a) || isNaN64(b)) raise(FLAG_NV);
  return <u32> (toHost(a) < toHost(b));
}

/** Signalling comparison. */
export function f64Le(a: u64, b: u64): u32 {
  if (isNaN64(a) || isNaN64(b)) raise(FLAG_NV);
  return <u32> (toHost(a) <= toHost(b));
}

/** FCLASS.D's mask (F 2.9, table 30). */
export function f64Classify(a: u64): u32 {
  if (isNaN64(a)) return a & F64_QUIET ? 1 << 9 : 1 << 8;
  const magnitude: u64 = a & ~F64_SIGN;
  // Bits 0..3 are for negative numbers from infinity to zero, 4..7 for positive ones from zero.
  let index: u32 = 0;
  if (magnitude == 0) index = 3;
  else if (magnitude < F64_HIDDEN) index = 2;
  else if (magnitude < F64_INFINITY) index = 1;
  return 1 << (sign64(a) ? index : 7 - index);
}
