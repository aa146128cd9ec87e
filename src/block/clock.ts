/**
 * Time as the block layer sees it: given to whoever needs it, so that tests can stand still and
 * jump.
 *
 * @module
 */

/** A clock and its timers. */
export interface Clock {
  /** Milliseconds since some moment; never goes back. */
  now(): number;
  /** Calls `action` once, `delayMs` from now, unless the returned function is called before. */
  after(delayMs: number, action: () => void): () => void;
}

/** The runtime's timers fire at once for longer delays than this. */
const TIMER_MAX_MS = 2 ** 31 - 1;

/** The machine's clock. */
export const systemClock: Clock = {
  now: () => performance.now(),
  after(delayMs, action) {
    let id: ReturnType<typeof setTimeout>;
    const arm = (leftMs: number): void => {
      const partMs = Math.min(leftMs, TIMER_MAX_MS);
      id = setTimeout(() => leftMs > partMs ? arm(leftMs - partMs) : action(), partMs);
    };
    arm(delayMs);
    return () => clearTimeout(id);
  },
};
