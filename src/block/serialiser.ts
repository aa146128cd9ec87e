/**
 * Makes the reads and the writes of the same bytes of a node wait for each other, so that a read
 * sees a write as a whole or not at all, also where the node reads from its backing node what it
 * does not hold itself (QEMU's serialising requests, block/io.c).
 *
 * That is what an overlay needs into which copy-before-write puts the old data of the overlay's own
 * backing node: a read that went down to the backing node must have ended before the copy has,
 * since then the guest's new data comes there.
 *
 * A write waits for the reads that were there before it; later ones wait for the write.
 *
 * @module
 */

import { BusyRanges } from "./busy_ranges.ts";
import { runSteps, settle, type Steps } from "./steps.ts";
import type { ByteRange, MaybePromise } from "./types.ts";

/** See the module's head. */
export class Serialiser {
  readonly #reads = new BusyRanges();
  readonly #writes = new BusyRanges();

  /** Runs a read, or whatever else only looks. */
  read<T>(range: ByteRange, request: () => MaybePromise<T>): MaybePromise<T> {
    return runSteps(this.#runRead(range, request));
  }

  /** Runs a write, or whatever else changes something. */
  write<T>(range: ByteRange, request: () => MaybePromise<T>): MaybePromise<T> {
    return runSteps(this.#runWrite(range, request));
  }

  *#runRead<T>(range: ByteRange, request: () => MaybePromise<T>): Steps<T> {
    yield* whenNone(this.#writes, range);
    const busy = this.#reads.add(range);
    try {
      return yield* settle(request());
    } finally {
      this.#reads.remove(busy);
    }
  }

  *#runWrite<T>(range: ByteRange, request: () => MaybePromise<T>): Steps<T> {
    const busy = this.#writes.add(range);
    try {
      yield* whenNone(this.#reads, range);
      return yield* settle(request());
    } finally {
      this.#writes.remove(busy);
    }
  }
}

function* whenNone(ranges: BusyRanges, range: ByteRange): Steps<void> {
  for (;;) {
    const busy = ranges.overlapping(range);
    if (busy === undefined) return;
    yield* settle(ranges.whenRemoved(busy));
  }
}
