/**
 * Compares what two disks read as. Runs that read as zeroes on both are not read.
 *
 * @module
 */

import { isZero } from "../../wasm/kernels.ts";
import { IoVector } from "../io_vector.ts";
import type { BlockNode } from "../node.ts";
import { requestBuffer } from "../request_buffer.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import { type MaybePromise, STATUS_ALLOCATED, STATUS_ZERO } from "../types.ts";
import { type DiskRun, DiskStatus, sectorBytes } from "./chain.ts";

/** What is read of each at once: it stays in the processor's own cache until it is compared. */
const PIECE_BYTES = 256 * 1024;
/** The same where a disk's answers are waited for. */
const REMOTE_PIECE_BYTES = 2 * 1024 * 1024;
/** Where two disks differ is said to this unit, as by qemu-img. */
const SECTOR_BYTES = 512;

/** What came out. */
export type Comparison =
  | { result: "identical"; isSizeEqual: boolean }
  /** A strict comparison found different sizes. */
  | { result: "size" }
  /** A strict comparison found a run that is not in the same state. */
  | { result: "status"; offset: number }
  /** Another content; `isBehindEnd`: where only the longer disk has something. */
  | { result: "content"; offset: number; isBehindEnd: boolean };

/** What could not be read. */
export class CompareError extends Error {
  /** What stands before the message when it is printed. */
  override readonly name = "CompareError";

  /** `step`: what was asked of the disk with that index, 0 or 1. */
  constructor(
    readonly step: "status" | "read",
    readonly disk: number,
    readonly offset: number,
    options: ErrorOptions,
  ) {
    super(options.cause instanceof Error ? options.cause.message : String(options.cause), options);
  }
}

/** How to compare. */
export interface CompareOptions {
  /** Sizes and the states of runs must be the same, too. */
  isStrict: boolean;
  /** Told how far it is. */
  onProgress?: (doneBytes: number, totalBytes: number) => void;
}

/** Compares. Throws a CompareError. */
export async function compareDisks(
  first: BlockNode,
  second: BlockNode,
  options: CompareOptions,
): Promise<Comparison> {
  const isSizeEqual = sectorBytes(first) === sectorBytes(second);
  if (options.isStrict && !isSizeEqual) return { result: "size" };
  const different = await runSteps(new Comparer([first, second], options).compare());
  return different ?? { result: "identical", isSizeEqual };
}

class Comparer {
  readonly #disks: readonly Disk[];
  readonly #options: CompareOptions;

  constructor(nodes: readonly BlockNode[], options: CompareOptions) {
    this.#disks = nodes.map((node, index) => new Disk(node, index));
    this.#options = options;
  }

  *compare(): Steps<Comparison | null> {
    const [first, second] = this.#disks;
    if (first === undefined || second === undefined) return null;
    const common = Math.min(first.sizeBytes, second.sizeBytes);
    const total = Math.max(first.sizeBytes, second.sizeBytes);
    for (let offset = 0; offset < common;) {
      const step = yield* this.#compareAt(offset, common - offset, [first, second]);
      if (step.different !== null) return step.different;
      offset += step.length;
      this.#options.onProgress?.(offset, total);
    }
    const longer = first.sizeBytes > second.sizeBytes ? first : second;
    for (let offset = common; offset < total;) {
      const run = yield* longer.status(offset, total - offset);
      let length = run.length;
      if (isData(run)) {
        length = Math.min(length, longer.pieceBytes);
        const at = firstNonZero(yield* longer.read(offset, length, run));
        if (at >= 0) return { result: "content", offset: offset + at, isBehindEnd: true };
      }
      offset += length;
      this.#options.onProgress?.(offset, total);
    }
    return null;
  }

  /** Compares a run from `offset`: how much, and what differs. */
  *#compareAt(
    offset: number,
    length: number,
    [first, second]: readonly [Disk, Disk],
  ): Steps<{ length: number; different: Comparison | null }> {
    const one = yield* first.status(offset, length);
    const two = yield* second.status(offset, length);
    const both = Math.min(one.length, two.length);
    if (this.#options.isStrict && !isSameState(one, two)) {
      return { length: 0, different: { result: "status", offset } };
    }
    if (!isData(one) && !isData(two)) return { length: both, different: null };
    const piece = Math.min(both, Math.max(first.pieceBytes, second.pieceBytes));
    let at: number;
    if (!isData(one)) at = firstNonZero(yield* second.read(offset, piece, two));
    else if (!isData(two)) at = firstNonZero(yield* first.read(offset, piece, one));
    else {
      // One file has one window.
      const isOneFile = one.host?.node === two.host?.node;
      // Both are on their way before either is waited for.
      const [a, b] = [
        start(first.read(offset, piece, one)),
        start(second.read(offset, piece, isOneFile ? null : two)),
      ];
      at = firstDifference(yield* settle(a()), yield* settle(b()));
    }
    if (at < 0) return { length: piece, different: null };
    const different: Comparison = { result: "content", offset: offset + at, isBehindEnd: false };
    return { length: piece, different };
  }
}

class Disk {
  readonly #node: BlockNode;
  readonly #index: number;
  readonly #status: DiskStatus;
  readonly #buffer: Uint8Array;
  #pieceBytes = PIECE_BYTES;

  constructor(node: BlockNode, index: number) {
    this.#node = node;
    this.#index = index;
    this.#status = new DiskStatus(node);
    this.#buffer = requestBuffer(REMOTE_PIECE_BYTES);
  }

  /** How much to read at once. */
  get pieceBytes(): number {
    return this.#pieceBytes;
  }

  /** In whole sectors. */
  get sizeBytes(): number {
    return sectorBytes(this.#node);
  }

  *status(offset: number, length: number): Steps<DiskRun> {
    try {
      return yield* this.#status.at(offset, length);
    } catch (cause) {
      throw new CompareError("status", this.#index, offset, { cause });
    }
  }

  /** `run`: where it lies, if it may be looked at there. */
  *read(offset: number, length: number, run: DiskRun | null): Steps<Uint8Array> {
    const seen = run && this.#status.view(run.host, length, run.length);
    if (seen !== null) return seen;
    const piece = this.#buffer.subarray(0, length);
    const present = piece.subarray(0, Math.max(this.#node.sizeBytes - offset, 0));
    piece.fill(0, present.length);
    try {
      const request = this.#node.read(offset, IoVector.of(present));
      if (request instanceof Promise) this.#pieceBytes = REMOTE_PIECE_BYTES;
      yield* settle(request);
    } catch (cause) {
      throw new CompareError("read", this.#index, offset, { cause });
    }
    return piece;
  }
}

/** Starts steps; the function gives what comes of them, or throws. */
function start<T>(steps: Steps<T>): () => MaybePromise<T> {
  try {
    const result = runSteps(steps);
    // An error of the other one must not leave this one's unheard.
    if (result instanceof Promise) result.catch(() => {});
    return () => result;
  } catch (error) {
    return () => {
      throw error;
    };
  }
}

/** Whether a run has to be read. */
function isData({ flags }: DiskRun): boolean {
  return (flags & STATUS_ALLOCATED) !== 0 && (flags & STATUS_ZERO) === 0;
}

function isSameState(one: DiskRun, two: DiskRun): boolean {
  return one.flags === two.flags && (one.host === null) === (two.host === null);
}

/** The first sector that differs, -1 where none does. */
function firstDifference(a: Uint8Array, b: Uint8Array): number {
  return firstSector(
    a.length,
    (start, end) => globalThis.Buffer.compare(a.subarray(start, end), b.subarray(start, end)) === 0,
  );
}

/** The first sector that is not zero, -1 where all are. */
function firstNonZero(data: Uint8Array): number {
  return firstSector(data.length, (start, end) => isZero(data.subarray(start, end)));
}

/** The first sector of `length` bytes for which `isFine` is false, found by halving. */
function firstSector(length: number, isFine: (start: number, end: number) => boolean): number {
  if (isFine(0, length)) return -1;
  let [start, end] = [0, length];
  while (end - start > SECTOR_BYTES) {
    const sectors = Math.ceil((end - start) / SECTOR_BYTES);
    const middle = start + (sectors >> 1) * SECTOR_BYTES;
    if (isFine(start, middle)) start = middle;
    else end = middle;
  }
  return start;
}
