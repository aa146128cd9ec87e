/** Multiplication, division and bit manipulation beyond single WebAssembly instructions. */

/** High half of the unsigned 128-bit product. */
export function mulhu(a: u64, b: u64): u64 {
  const aLow = a & 0xffff_ffff;
  const aHigh = a >> 32;
  const bLow = b & 0xffff_ffff;
  const bHigh = b >> 32;
  const middle = aHigh * bLow + ((aLow * bLow) >> 32);
  const middle2 = aLow * bHigh + (middle & 0xffff_ffff);
  return aHigh * bHigh + (middle >> 32) + (middle2 >> 32);
}

/** High half of the signed product. */
export function mulh(a: u64, b: u64): u64 {
  return mulhu(a, b) - (<i64> a < 0 ? b : 0) - (<i64> b < 0 ? a : 0);
}

/** High half of the product of signed `a` and unsigned `b`. */
export function mulhsu(a: u64, b: u64): u64 {
  return mulhu(a, b) - (<i64> a < 0 ? b : 0);
}

// Division (Unpriv 13.2): by zero gives all ones and the dividend; the one overflow gives the
// dividend and 0. WebAssembly would trap on both.

export function div(a: u64, b: u64): u64 {
  if (b + 1 <= 1) return b === 0 ? ~0 : 0 - a;
  return <u64> (<i64> a / <i64> b);
}

export function divu(a: u64, b: u64): u64 {
  return b === 0 ? ~0 : a / b;
}

export function rem(a: u64, b: u64): u64 {
  if (b + 1 <= 1) return b === 0 ? a : 0;
  return <u64> (<i64> a % <i64> b);
}

export function remu(a: u64, b: u64): u64 {
  return b === 0 ? a : a % b;
}

export function divw(a: i32, b: i32): i32 {
  if (<u32> b + 1 <= 1) return b === 0 ? -1 : 0 - a;
  return a / b;
}

export function divuw(a: u32, b: u32): u32 {
  return b === 0 ? ~0 : a / b;
}

export function remw(a: i32, b: i32): i32 {
  if (<u32> b + 1 <= 1) return b === 0 ? a : 0;
  return a % b;
}

export function remuw(a: u32, b: u32): u32 {
  return b === 0 ? a : a % b;
}

/** orc.b: each byte that has a bit set becomes 0xff. */
export function orCombine(a: u64): u64 {
  let result = a;
  result |= (result >> 1) & 0x7f7f_7f7f_7f7f_7f7f;
  result |= (result >> 2) & 0x3f3f_3f3f_3f3f_3f3f;
  result |= (result >> 4) & 0x0f0f_0f0f_0f0f_0f0f;
  return (result & 0x0101_0101_0101_0101) * 0xff;
}
