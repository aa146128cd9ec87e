/**
 * Ranges of a disk on which only one may work at a time: a job's chunks and a guest's writes.
 *
 * @module
 */

import { type BusyRange, BusyRanges } from "./busy_ranges.ts";
import { settle, type Steps } from "./steps.ts";
import type { ByteRange } from "./types.ts";

/** A range that is held. */
export type LockedRange = BusyRange;

/** See the module's head. */
export class RangeLock {
  readonly #held = new BusyRanges();

  /** How many ranges are held. */
  get count(): number {
    return this.#held.count;
  }

  /** Waits until a range is free and takes it. */
  *lock(range: ByteRange): Steps<LockedRange> {
    for (;;) {
      const held = this.#held.overlapping(range);
      if (held === undefined) return this.#held.add(range);
      yield* settle(this.#held.whenRemoved(held));
    }
  }

  /** Takes what is free of a range from its start on; null where nothing is. */
  tryLock({ offset, length }: ByteRange): LockedRange | null {
    let end = offset + length;
    for (;;) {
      const held = this.#held.overlapping({ offset, length: end - offset });
      if (held === undefined) break;
      if (held.offset <= offset) return null;
      end = held.offset;
    }
    return this.#held.add({ offset, length: end - offset });
  }

  /** Any held range that has a byte of `range`. */
  overlapping(range: ByteRange): LockedRange | undefined {
    return this.#held.overlapping(range);
  }

  /** Gives a range back. */
  unlock(range: LockedRange): void {
    this.#held.remove(range);
  }
}
