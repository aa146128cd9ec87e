/**
 * The copying of a copy-before-write filter: takes clusters out of the copy bitmap, copies their
 * old data from source to target, and makes them done.
 *
 *   request --> copyRange: run of the copy bitmap --> in flight --> done
 *                  |                                     |
 *                  +-- others' copies: waits,            +-- failed: back into the copy bitmap; the
 *                      looks again                           request that started it fails
 *
 * A request starts all copies of its range before it waits, so that they run in parallel where
 * source or target take their time, within limits for all requests together. Where both answer at
 * once nothing here waits and no promise is made; after some MiB of that the event loop gets a
 * turn.
 *
 * Invariant: copies in flight never overlap, since a copy starts by clearing the copy bits of its
 * clusters, in one go with looking at them. (A range in flight may for a moment be longer than its
 * copy: see `#copyRun`. That only makes others wait.)
 *
 * @module
 */

import { limits } from "../../limits.ts";
import { isZero } from "../../wasm/kernels.ts";
import { type BusyRange, BusyRanges } from "../busy_ranges.ts";
import { BlockError, toBlockError } from "../errors.ts";
import { IoVector } from "../io_vector.ts";
import type { BlockNode } from "../node.ts";
import type { ScratchBudget } from "../scratch_budget.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import {
  type ByteRange,
  type MaybePromise,
  REQ_MAY_UNMAP,
  REQ_WRITE_COMPRESSED,
  STATUS_ZERO,
} from "../types.ts";
import type { CbwBitmaps } from "./cbw_bitmaps.ts";

/** Bytes copied within one call before the event loop gets a turn: some milliseconds. */
const TURN_BYTES = 8 * 1024 * 1024;
/** Of a backup, zeroes are written in larger pieces, since hardly any data is moved. */
const ZERO_RUN_BYTES = 64 * 1024 * 1024;
/** Buffers kept for the next copy. */
const SPARE_BUFFERS = 4;

/** What a copier works on. */
export interface ClusterCopierOptions {
  /** What is still to be copied, and what was; kept up to date here. */
  bitmaps: CbwBitmaps;
  /** The nodes, asked for afresh for each request, since filters come and go. */
  source: () => BlockNode;
  /** Where copies go: written at the offset that the data has on the disk. */
  target: () => BlockNode;
  /** The room that copies may take, shared by all disks of a fleecing. */
  budget: ScratchBudget;
  /** False: nothing is to be copied any more. */
  mayCopy: () => boolean;
  /** Where a job copies too: see BackupCopying. */
  backup?: BackupCopying | null;
}

/** What is different where the target is a backup, which is to hold all of the disk. */
export interface BackupCopying {
  /** Data is written compressed, cluster by cluster of the target. */
  isCompressed: boolean;
  /** The source need not keep what was copied: it is discarded there. */
  discardsSource: boolean;
  /** Whole clusters were copied, by whomever. */
  onCopied: (byteCount: number) => void;
}

/** A copy that failed, at the source or at the target. */
export class CopyError extends BlockError {
  /** `cause`: what failed. */
  constructor(run: ByteRange, cause: BlockError, readonly isRead: boolean) {
    super(
      cause.code,
      `Copying ${run.length} bytes at ${run.offset} before a write failed: ${cause.message}`,
      { cause },
    );
  }
}

/** One request's copies. */
interface Attempt {
  readonly range: ByteRange;
  /** Its own copies in flight. */
  readonly inFlight: Set<BusyRange>;
  /** The first failure of its own copies. */
  failure: BlockError | null;
  copiedBytes: number;
  /** Of these, what was not zeroes. */
  dataBytes: number;
}

/** See the module's head. */
export class ClusterCopier {
  /** Data written to the target; what was written as zeroes does not count. */
  copiedBytes = 0;
  /** Clusters that were copied, as data or as zeroes. */
  clustersDone = 0;

  readonly #options: ClusterCopierOptions;
  readonly #bitmaps: CbwBitmaps;
  readonly #runBytes: number;
  readonly #inFlight = new BusyRanges();
  readonly #spareBuffers: Uint8Array[] = [];

  /** Copies nothing until it is asked to. */
  constructor(options: ClusterCopierOptions) {
    this.#options = options;
    this.#bitmaps = options.bitmaps;
    this.#runBytes = Math.max(limits.cbwCopyBytes, options.bitmaps.clusterSizeBytes);
  }

  /** Copies in flight, those of answered requests included. */
  get inFlightCount(): number {
    return this.#inFlight.count;
  }

  /** Whether a copy in these whole clusters is in flight. */
  isCopying(range: ByteRange): boolean {
    return this.#inFlight.overlapping(range) !== undefined;
  }

  /**
   * Copies what is left to copy of these whole clusters, and waits for others' copies there. Throws
   * or rejects with a CopyError where a copy of its own failed. Returns how many bytes of data it
   * copied.
   */
  copyRange(range: ByteRange): MaybePromise<number> {
    return runSteps(this.#copyRange(newAttempt(range)));
  }

  /** The same for the first run in a range, which may be shorter than the range. */
  copyFirst(range: ByteRange): MaybePromise<number> {
    return runSteps(this.#copyFirst(newAttempt(range)));
  }

  /** Waits for the copies in flight in a range. */
  *whenSettled(range: ByteRange): Steps<void> {
    for (;;) {
      const busy = this.#inFlight.overlapping(range);
      if (busy === undefined) return;
      yield* settle(this.#inFlight.whenRemoved(busy));
    }
  }

  *#copyFirst(attempt: Attempt): Steps<number> {
    const run = this.#nextRun(attempt.range);
    if (run !== null) yield* this.#copyRun(attempt, run);
    if (attempt.failure !== null) throw attempt.failure;
    return attempt.dataBytes;
  }

  *#copyRange(attempt: Attempt): Steps<number> {
    const { range } = attempt;
    let turnEndBytes = TURN_BYTES;
    for (;;) {
      const run = attempt.failure === null ? this.#nextRun(range) : null;
      if (run === null) {
        const [own] = attempt.inFlight;
        const busy = attempt.failure === null ? this.#inFlight.overlapping(range) : own;
        if (busy === undefined) break;
        // Its clusters may be to copy again afterwards: then the next round takes them.
        yield* settle(this.#inFlight.whenRemoved(busy));
        continue;
      }
      const first = this.#inFlight.first();
      if (first !== undefined && this.#inFlight.count >= limits.cbwCopyCount) {
        yield* settle(this.#inFlight.whenRemoved(first));
        continue;
      }
      // Its end is seen by `attempt` and by the range that is in flight till then.
      const ended = runSteps(this.#copyRun(attempt, run));
      if (!(ended instanceof Promise) && attempt.copiedBytes >= turnEndBytes) {
        turnEndBytes = attempt.copiedBytes + TURN_BYTES;
        yield* settle(new Promise<void>((resolve) => globalThis.setImmediate(resolve)));
      }
    }
    if (attempt.failure !== null) throw attempt.failure;
    return attempt.dataBytes;
  }

  /** The next clusters to copy, not yet taken. */
  #nextRun({ offset, length }: ByteRange): ByteRange | null {
    if (!this.#options.mayCopy()) return null;
    const run = this.#bitmaps.copy.nextRun(offset, length);
    const most = this.#options.backup ? Math.max(this.#runBytes, ZERO_RUN_BYTES) : this.#runBytes;
    if (run !== null) run.length = Math.min(run.length, most);
    return run;
  }

  /** Copies a run, or its first clusters where the run is of two kinds. Never throws. */
  *#copyRun(attempt: Attempt, run: ByteRange): Steps<void> {
    const { copy } = this.#bitmaps;
    copy.clear(run.offset, run.length);
    const busy = this.#inFlight.add(run);
    attempt.inFlight.add(busy);
    // Whose fault it is if something fails now.
    const at = { source: true };
    try {
      const status = yield* settle(this.#options.source().blockStatus(run.offset, run.length));
      const isHole = (status.flags & STATUS_ZERO) !== 0 && this.#wholeBytes(status.length, run) > 0;
      const length = isHole ? this.#wholeBytes(status.length, run) : Math.min(
        this.#bitmaps.around(run.offset, status.length).length,
        run.length,
        this.#runBytes,
      );
      if (length < run.length) {
        this.#bitmaps.putBack({ offset: run.offset + length, length: run.length - length });
        busy.length = run.length = length;
      }
      if (isHole) {
        at.source = false;
        yield* this.#copyZeroes(run);
      } else {
        yield* this.#copyData(run, at);
        attempt.dataBytes += run.length;
      }
      this.#bitmaps.done.set(run.offset, run.length);
      this.clustersDone += Math.ceil(run.length / this.#bitmaps.clusterSizeBytes);
      attempt.copiedBytes += run.length;
      yield* this.#copiedForBackup(run);
    } catch (error) {
      attempt.failure ??= new CopyError(run, toBlockError(error), at.source);
      this.#bitmaps.putBack(run);
    } finally {
      // After everything else, since whoever waits goes on from what it finds then.
      attempt.inFlight.delete(busy);
      this.#inFlight.remove(busy);
    }
  }

  *#copiedForBackup({ offset, length }: ByteRange): Steps<void> {
    const { backup, source } = this.#options;
    if (!backup) return;
    backup.onCopied(length);
    if (!backup.discardsSource) return;
    try {
      yield* settle(source().discard(offset, length));
    } catch (error) {
      if (!(error instanceof BlockError)) throw error; // a discard is a hint
    }
  }

  /** What of the first `length` bytes of a run is made of whole clusters. */
  #wholeBytes(length: number, run: ByteRange): number {
    if (length >= run.length) return run.length;
    return this.#bitmaps.inside(run.offset, length).length;
  }

  *#copyZeroes({ offset, length }: ByteRange): Steps<void> {
    yield* settle(this.#options.target().writeZeroes(offset, length, REQ_MAY_UNMAP));
  }

  *#copyData(run: ByteRange, at: { source: boolean }): Steps<void> {
    const { budget, backup } = this.#options;
    if (!budget.reserve(run.length)) {
      at.source = false;
      throw new BlockError(
        "ENOSPC",
        `the temporary images may hold no more than ${budget.maxBytes} bytes`,
      );
    }
    const buffer = this.#spareBuffers.pop() ?? new Uint8Array(limits.cbwCopyBytes);
    try {
      const end = run.offset + run.length;
      for (let offset = run.offset; offset < end; offset += buffer.length) {
        const piece = buffer.subarray(0, Math.min(buffer.length, end - offset));
        at.source = true;
        yield* settle(this.#options.source().read(offset, IoVector.of(piece)));
        at.source = false;
        if (backup) yield* this.#writeBackup(offset, piece, backup.isCompressed);
        else yield* settle(this.#options.target().write(offset, IoVector.of(piece)));
      }
      this.#bitmaps.held.set(run.offset, run.length);
      this.copiedBytes += run.length;
    } catch (error) {
      budget.release(run.length);
      throw error;
    } finally {
      if (this.#spareBuffers.length < SPARE_BUFFERS) this.#spareBuffers.push(buffer);
    }
  }

  /** Writes clusters that hold only zeroes as such. */
  *#writeBackup(offset: number, piece: Uint8Array, isCompressed: boolean): Steps<void> {
    const target = this.#options.target();
    const unit = this.#bitmaps.clusterSizeBytes;
    for (let start = 0; start < piece.length;) {
      const isHole = isZero(piece.subarray(start, start + unit));
      let end = Math.min(start + unit, piece.length);
      while (end < piece.length && !isCompressed) {
        if (isZero(piece.subarray(end, end + unit)) !== isHole) break;
        end = Math.min(end + unit, piece.length);
      }
      const part = piece.subarray(start, end);
      if (isHole) {
        yield* settle(target.writeZeroes(offset + start, part.length, REQ_MAY_UNMAP));
      } else {
        const flags = isCompressed ? REQ_WRITE_COMPRESSED : 0;
        yield* settle(target.write(offset + start, IoVector.of(part), flags));
      }
      start = end;
    }
  }
}

function newAttempt(range: ByteRange): Attempt {
  return { range, inFlight: new Set(), failure: null, copiedBytes: 0, dataBytes: 0 };
}
