/**
 * Two bitmaps. Storage and addresses as in bits.ts; `byteCount` is the storage's length, a multiple
 * of 16. Source and target may be the same bitmap.
 */

import { nextClear, nextSet, setRange } from "./bits";

/** target |= source */
export function merge(target: usize, source: usize, byteCount: u32): void {
  for (let i: usize = 0; i < <usize> byteCount; i += 16) {
    v128.store(target + i, v128.or(v128.load(target + i), v128.load(source + i)));
  }
}

/** target &= ~source */
export function andNot(target: usize, source: usize, byteCount: u32): void {
  for (let i: usize = 0; i < <usize> byteCount; i += 16) {
    v128.store(target + i, v128.andnot(v128.load(target + i), v128.load(source + i)));
  }
}

/**
 * Sets in `target`, whose bits stand for 2^shift bits of `source` each, every bit one of whose
 * source bits is set. Other bits of the target stay as they are.
 */
export function projectCoarser(
  target: usize,
  source: usize,
  sourceCount: u32,
  shift: u32,
): void {
  let at: u32 = nextSet(source, 0, sourceCount);
  while (at < sourceCount) {
    const first: u32 = at >> shift;
    // A run of source bits is one run of target bits; both ends round outwards.
    const runEnd: u32 = nextClear(source, at, sourceCount);
    const end: u32 = ((runEnd - 1) >> shift) + 1;
    setRange(target, first, end);
    const next: u32 = end << shift;
    if (next >= sourceCount) return;
    at = nextSet(source, next, sourceCount);
  }
}

/**
 * Sets in `target`, 2^shift of whose bits stand for one bit of `source`, every bit whose source bit
 * is set. Other bits of the target stay as they are.
 */
export function projectFiner(
  target: usize,
  targetCount: u32,
  source: usize,
  sourceCount: u32,
  shift: u32,
): void {
  let at: u32 = nextSet(source, 0, sourceCount);
  while (at < sourceCount) {
    const runEnd: u32 = nextClear(source, at, sourceCount);
    const end: u64 = <u64> runEnd << <u64> shift;
    setRange(target, at << shift, end < <u64> targetCount ? <u32> end : targetCount);
    at = nextSet(source, runEnd, sourceCount);
  }
}
