/**
 * Rounding of exact intermediate results to a format, for both formats and all rounding modes; the
 * only place that raises overflow, underflow and, but for the fast paths, inexact.
 *
 * An intermediate result is a triple:
 *   sign  0 or 1
 *   exp   biased exponent, of the target format's bias, of the significand's bit 63; any i32
 *   sig   significand; bit 0 is sticky: it is set if anything below it was cut off ("jammed").
 * A jammed bit 0 stands for "somewhere strictly between", which is enough for every rounding mode
 * as long as it is below the rounding bit. Both formats drop at least 11 bits.
 */
import { FLAG_NX, FLAG_OF, FLAG_UF, raise } from "./flags";

// Rounding modes as in an instruction's rm field (F 2.2, table 27), DYN resolved by the caller.
/** To nearest, ties to even. */
export const RNE: u32 = 0;
/** Towards zero. */
export const RTZ: u32 = 1;
/** Down, towards minus infinity. */
export const RDN: u32 = 2;
/** Up, towards plus infinity. */
export const RUP: u32 = 3;
/** To nearest, ties to the greater magnitude. */
export const RMM: u32 = 4;

/** Shifts right; what falls off sticks in bit 0. `count` may be any number. */
export function shiftRightJam(sig: u64, count: u32): u64 {
  if (count == 0) return sig;
  if (count > 63) return <u64> (sig != 0);
  return (sig >> <u64> count) | <u64> ((sig << <u64> (64 - count)) != 0);
}

/**
 * What is added below the last kept place before cutting off, where `drop` bits are cut: half a
 * unit for the two nearest modes, all but one for away from zero, nothing for towards zero.
 */
function increment(sign: u32, rm: u32, drop: u32): u64 {
  if (rm == RNE || rm == RMM) return <u64> 1 << <u64> (drop - 1);
  const isAway: bool = sign ? rm == RDN : rm == RUP;
  return isAway ? (<u64> 1 << <u64> drop) - 1 : 0;
}

/**
 * Rounds a non-zero intermediate result, normalising it first, to a format of `fractionBits` (23 or
 * 52) whose infinity is `infinity`. Returns the magnitude; the caller puts the sign before it.
 */
export function roundMagnitude(
  sign: u32,
  exp: i32,
  sig: u64,
  rm: u32,
  fractionBits: u32,
  infinity: u64,
): u64 {
  const zeros: u64 = clz<u64>(sig);
  sig <<= zeros;
  exp -= <i32> zeros;
  const drop: u32 = 63 - fractionBits;
  const mask: u64 = (<u64> 1 << <u64> drop) - 1;
  const added: u64 = increment(sign, rm, drop);
  const expMax: i32 = <i32> (infinity >> <u64> fractionBits) - 1;
  let isTiny: bool = false;
  if (exp < 1) {
    // Tininess is detected after rounding, as if the exponent were unbounded (F 2.2): a number just
    // below the least normal one is not tiny if full precision would round it up to that.
    isTiny = exp < 0 || sig + added >= sig;
    sig = shiftRightJam(sig, <u32> (1 - exp));
    exp = 1;
  }
  let result: u64 = infinity;
  if (exp <= expMax) {
    const rest: u64 = sig & mask;
    let kept: u64 = (sig >> <u64> drop) + ((rest + added) >> <u64> drop);
    // A tie went up: back to even, which clears the bit that the carry set or leaves it clear.
    if (rm == RNE && rest == added) kept &= ~(<u64> 1);
    // Bit 63 is the implicit one and counts as one in the exponent field; a subnormal number lacks
    // it, and a carry out of the significand lands in the exponent by itself.
    result = (<u64> (exp - 1) << <u64> fractionBits) + kept;
    if (result < infinity) {
      if (rest != 0) raise(isTiny ? FLAG_UF | FLAG_NX : FLAG_NX);
      return result;
    }
  }
  raise(FLAG_OF | FLAG_NX);
  return added != 0 ? infinity : infinity - 1;
}

/** `roundMagnitude` to a double, with its sign. */
export function roundF64(sign: u32, exp: i32, sig: u64, rm: u32): u64 {
  return (<u64> sign << 63) | roundMagnitude(sign, exp, sig, rm, 52, 0x7ff0_0000_0000_0000);
}

/** `roundMagnitude` to a single, with its sign. */
export function roundF32(sign: u32, exp: i32, sig: u64, rm: u32): u32 {
  return (sign << 31) | <u32> roundMagnitude(sign, exp, sig, rm, 23, 0x7f80_0000);
}
