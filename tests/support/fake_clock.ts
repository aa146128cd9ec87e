/**
 * A clock that stands still until a test moves it.
 *
 * @module
 */

import { setImmediate } from "node:timers";
import type { Clock } from "../../src/block/clock.ts";

/** Time is what `advance` made it. */
export class FakeClock implements Clock {
  #nowMs = 0;
  #timers: { atMs: number; action: () => void }[] = [];

  now(): number {
    return this.#nowMs;
  }

  after(delayMs: number, action: () => void): () => void {
    const timer = { atMs: this.#nowMs + delayMs, action };
    this.#timers.push(timer);
    return () => {
      this.#timers = this.#timers.filter((other) => other !== timer);
    };
  }

  /** Timers that were neither fired nor cancelled. */
  get timerCount(): number {
    return this.#timers.length;
  }

  /** Moves on within the call. Timers that become due fire with the next `advance`. */
  jump(ms: number): void {
    this.#nowMs += ms;
  }

  /** Moves on, firing due timers in their order, each at its moment; promises settle in between. */
  async advance(ms: number): Promise<void> {
    const endMs = this.#nowMs + ms;
    for (;;) {
      await settleAll();
      const next = this.#timers.reduce(
        (first, timer) => first === null || timer.atMs < first.atMs ? timer : first,
        null as { atMs: number; action: () => void } | null,
      );
      if (next === null || next.atMs > endMs) break;
      this.#timers = this.#timers.filter((other) => other !== next);
      this.#nowMs = Math.max(this.#nowMs, next.atMs);
      next.action();
    }
    this.#nowMs = endMs;
    await settleAll();
  }
}

/** Lets every promise that can settle do so. */
export function settleAll(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
