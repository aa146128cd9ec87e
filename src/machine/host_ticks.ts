/**
 * The host's clock in ticks of mtime, the same in every worker of the process.
 *
 * `performance.now()` is monotonic and fine-grained, but its origin is each worker's own, and
 * Deno's `performance.timeOrigin` differs between workers by milliseconds. So each worker finds out
 * where its `performance.now()` stands on the wall clock, which they share.
 *
 * @module
 */

/** mtime's frequency, 10 MHz, as ticks a millisecond. */
export const TICKS_PER_MS = 10_000;

/**
 * Ticks are counted from here, so that they are exact as numbers until 2048: 2020-01-01 00:00 UTC.
 */
export const TICKS_EPOCH_MS = 1_577_836_800_000;

/** A step of the wall clock was seen sharply if the reading before it is no older than this. */
const SHARP_MS = 0.02;
/**
 * Sharp steps come once a millisecond unless the machine is very busy; then the best one counts.
 */
const CALIBRATION_MS_MAX = 50;

/**
 * Returns a clock: ticks of 100 ns since TICKS_EPOCH_MS, never going back. Takes about 1 ms of busy
 * work.
 */
export function createHostTicks(): () => number {
  const originTicks = findOriginMs() * TICKS_PER_MS;
  return () => Math.floor(originTicks + performance.now() * TICKS_PER_MS);
}

/** Where performance.now() is 0, in milliseconds since TICKS_EPOCH_MS. */
function findOriginMs(): number {
  // Date.now() counts whole milliseconds: it is exact just when it moves on. The largest difference
  // seen is the best one, since being interrupted only makes a sample smaller.
  let originMs = -Infinity;
  let lastMs = performance.now();
  let lastWallMs = Date.now();
  const end = lastMs + CALIBRATION_MS_MAX;
  while (lastMs < end) {
    const nowMs = performance.now();
    const wallMs = Date.now();
    originMs = Math.max(originMs, wallMs - TICKS_EPOCH_MS - nowMs);
    const isSharp = performance.now() - lastMs < SHARP_MS;
    if (wallMs !== lastWallMs && isSharp) break;
    lastMs = nowMs;
    lastWallMs = wallMs;
  }
  return originMs;
}
