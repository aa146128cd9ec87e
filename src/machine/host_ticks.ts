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

const CALIBRATION_MS = 3;

/**
 * Returns a clock: ticks of 100 ns since TICKS_EPOCH_MS, never going back. Takes 3 ms of busy work.
 */
export function createHostTicks(): () => number {
  // Date.now() lags behind the true time by less than a millisecond, least just after it moves on:
  // the largest difference seen is the best one. Being interrupted only makes a sample smaller.
  let originMs = -Infinity;
  const end = performance.now() + CALIBRATION_MS;
  for (let now = performance.now(); now < end; now = performance.now()) {
    originMs = Math.max(originMs, Date.now() - TICKS_EPOCH_MS - now);
  }
  const originTicks = originMs * TICKS_PER_MS;
  return () => Math.floor(originTicks + performance.now() * TICKS_PER_MS);
}
