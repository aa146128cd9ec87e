/** 1 if the `byteCount` bytes at `address`, which may be anywhere, are all zero; else 0. */
export function isZero(address: usize, byteCount: u32): u32 {
  let at: usize = address;
  const end: usize = address + <usize> byteCount;
  while (at + 64 <= end) {
    const low: v128 = v128.or(v128.load(at), v128.load(at, 16));
    const high: v128 = v128.or(v128.load(at, 32), v128.load(at, 48));
    if (v128.any_true(v128.or(low, high))) return 0;
    at += 64;
  }
  while (at + 8 <= end) {
    if (load<u64>(at) != 0) return 0;
    at += 8;
  }
  while (at < end) {
    if (load<u8>(at) != 0) return 0;
    at += 1;
  }
  return 1;
}
