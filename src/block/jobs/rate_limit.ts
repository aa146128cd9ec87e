/**
 * A job's speed limit (QEMU's include/qemu/ratelimit.h): what may be moved in a slice of time. Who
 * goes beyond waits for as many slices as that was worth, so that a burst is never larger than one
 * slice and one chunk.
 *
 * @module
 */

import type { Clock } from "../clock.ts";

const SLICE_MS = 100;

/** See the module's head. */
export class RateLimit {
  /** Bytes a second, 0: no limit. */
  #speed = 0;
  #sliceStartMs = 0;
  #sliceEndMs = 0;
  #dispatched = 0;
  readonly #clock: Clock;

  /** Without a limit at first. */
  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Bytes a second, 0: no limit. */
  get speed(): number {
    return this.#speed;
  }

  set speed(speed: number) {
    this.#speed = speed;
    if (speed === 0) this.#sliceEndMs = 0;
  }

  /** Bytes were moved. Returns how long to wait before the next are. */
  delayMs(bytes: number): number {
    if (this.#speed === 0) return 0;
    const nowMs = this.#clock.now();
    const quota = Math.max(this.#speed * SLICE_MS / 1000, 1);
    if (this.#sliceEndMs <= nowMs) {
      this.#sliceStartMs = nowMs;
      this.#sliceEndMs = nowMs + SLICE_MS;
      this.#dispatched = 0;
    }
    this.#dispatched += bytes;
    if (this.#dispatched < quota) return 0;
    this.#sliceEndMs = this.#sliceStartMs + SLICE_MS * this.#dispatched / quota;
    return this.#sliceEndMs - nowMs;
  }
}
