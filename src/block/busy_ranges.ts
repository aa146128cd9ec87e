/**
 * The ranges of a disk that somebody is working on now, for others to wait for. Ranges may overlap;
 * there are as many as there are requests in flight, so a list is searched faster than a tree.
 *
 * @module
 */

import type { ByteRange } from "./types.ts";

/** A range that is being worked on. Its end may be drawn in while it is. */
export interface BusyRange extends ByteRange {
  /** Resolves when the range is no longer busy; made by the first who waits. */
  removal: PromiseWithResolvers<void> | null;
}

/** See the module's head. */
export class BusyRanges {
  readonly #ranges: BusyRange[] = [];

  /** How many there are. */
  get count(): number {
    return this.#ranges.length;
  }

  /** A new busy range: a copy of what is given. */
  add({ offset, length }: ByteRange): BusyRange {
    const range: BusyRange = { offset, length, removal: null };
    this.#ranges.push(range);
    return range;
  }

  /** Wakes those who wait for it. */
  remove(range: BusyRange): void {
    const index = this.#ranges.indexOf(range);
    if (index < 0) throw new Error("the range is not busy");
    const last = this.#ranges.pop();
    if (last !== undefined && last !== range) this.#ranges[index] = last;
    range.removal?.resolve();
  }

  /** Any busy range, or undefined. */
  first(): BusyRange | undefined {
    return this.#ranges[0];
  }

  /** Any busy range that has a byte of `[offset, offset + length)`, or undefined. */
  overlapping({ offset, length }: ByteRange): BusyRange | undefined {
    for (const range of this.#ranges) {
      if (range.offset < offset + length && offset < range.offset + range.length) return range;
    }
    return undefined;
  }

  /** Waits until `range`, which is busy, no longer is. */
  whenRemoved(range: BusyRange): Promise<void> {
    range.removal ??= Promise.withResolvers<void>();
    return range.removal.promise;
  }
}
