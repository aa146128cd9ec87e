/**
 * Makes an overlay read the same over another backing file: what would change is copied into it
 * before. The rules are qemu-img's (img_rebase).
 *
 * @module
 */

import { isZero } from "../../wasm/kernels.ts";
import { BlockError } from "../errors.ts";
import { IoVector } from "../io_vector.ts";
import type { BlockNode } from "../node.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import { REQ_WRITE_COMPRESSED, STATUS_ALLOCATED } from "../types.ts";
import { backingOf, DiskStatus, unfiltered } from "./chain.ts";

/** Read at once. */
const PIECE_BYTES = 2 * 1024 * 1024;

/** What to do. */
export interface RebaseOptions {
  /** The image, writable, over its old backing chain. */
  overlay: BlockNode;
  /** What it is to stand on; null: on nothing, so that it holds everything itself. */
  newBacking: BlockNode | null;
  /** `newBacking` is a node of the overlay's own chain. */
  isInChain: boolean;
  /** What is copied is stored compressed. */
  isCompressed: boolean;
  /** Told how far it is. */
  onProgress?: (doneBytes: number, totalBytes: number) => void;
}

/** Copies what the new backing file has otherwise. Throws a BlockError, or a RebaseReadError. */
export async function copyDifferences(options: RebaseOptions): Promise<void> {
  await runSteps(new Rebase(options).run());
}

/** A backing file can't be read. */
export class RebaseReadError extends Error {
  /** What stands before the message when it is printed. */
  override readonly name = "RebaseReadError";

  /** `which`: of the two backing files. */
  constructor(readonly which: "old" | "new", options: ErrorOptions) {
    super(`error while reading from ${which} backing file`, options);
  }
}

class Rebase {
  readonly #options: RebaseOptions;
  readonly #overlay: BlockNode;
  readonly #old: BlockNode | null;
  readonly #unit: number;
  readonly #own: DiskStatus;
  /** The nodes between the overlay and a new backing node of its own chain. */
  readonly #between: DiskStatus | null;

  constructor(options: RebaseOptions) {
    this.#options = options;
    this.#overlay = unfiltered(options.overlay);
    this.#old = backingOf(this.#overlay);
    this.#unit = this.#overlay.clusterSizeBytes ?? 65536;
    this.#own = new DiskStatus(this.#overlay, this.#old);
    this.#between = options.isInChain && this.#old !== null && options.newBacking !== this.#old
      ? new DiskStatus(this.#old, options.newBacking)
      : null;
  }

  *run(): Steps<void> {
    const { onProgress, newBacking, isInChain } = this.#options;
    const old = this.#old;
    const size = this.#overlay.sizeBytes;
    if (isInChain && newBacking === old) return;
    const [before, after] = [new Uint8Array(PIECE_BYTES), new Uint8Array(PIECE_BYTES)];
    for (let offset = 0; offset < size;) {
      const length = yield* this.#unaffected(offset, size - offset);
      if (length > 0) offset += length;
      else {
        const piece = yield* this.#affected(offset, Math.min(PIECE_BYTES, size - offset));
        const [a, b] = [before.subarray(0, piece), after.subarray(0, piece)];
        yield* readPadded(old, offset, a, "old");
        yield* readPadded(newBacking, offset, b, "new");
        yield* this.#writeDifferences(offset, a, b);
        offset += piece;
      }
      onProgress?.(offset, size);
    }
  }

  /** How much from `offset` on reads the same over either backing file. 0: it may differ. */
  *#unaffected(offset: number, length: number): Steps<number> {
    const own = yield* this.#own.at(offset, length);
    if ((own.flags & STATUS_ALLOCATED) !== 0) return own.length;
    const between = this.#between;
    if (between === null || this.#old === null || offset >= this.#old.sizeBytes) return 0;
    const run = yield* between.at(offset, own.length);
    return (run.flags & STATUS_ALLOCATED) === 0 ? run.length : 0;
  }

  /** How much of `length` bytes the overlay itself does not hold. */
  *#affected(offset: number, length: number): Steps<number> {
    return (yield* this.#own.at(offset, length)).length;
  }

  /** Writes the clusters that differ, neighbours together. */
  *#writeDifferences(offset: number, before: Uint8Array, after: Uint8Array): Steps<void> {
    const unit = this.#unit;
    let start = -1;
    for (let at = 0; at < before.length;) {
      const end = Math.min(before.length, at + unit - (offset + at) % unit);
      const isSame =
        globalThis.Buffer.compare(before.subarray(at, end), after.subarray(at, end)) === 0;
      if (isSame && start >= 0) {
        yield* this.#write(offset + start, before.subarray(start, at));
        start = -1;
      } else if (!isSame && start < 0) start = at;
      at = end;
    }
    if (start >= 0) yield* this.#write(offset + start, before.subarray(start));
  }

  *#write(offset: number, data: Uint8Array): Steps<void> {
    if (isZero(data)) {
      yield* settle(this.#overlay.writeZeroes(offset, data.length));
      return;
    }
    const flags = this.#options.isCompressed ? REQ_WRITE_COMPRESSED : 0;
    yield* settle(this.#overlay.write(offset, IoVector.of(data), flags));
  }
}

/** What lies behind a disk's end reads as zeroes. */
function* readPadded(
  node: BlockNode | null,
  offset: number,
  data: Uint8Array,
  which: "old" | "new",
): Steps<void> {
  const length = node === null ? 0 : Math.min(data.length, Math.max(node.sizeBytes - offset, 0));
  data.fill(0, length);
  if (node === null || length === 0) return;
  try {
    yield* settle(node.read(offset, IoVector.of(data.subarray(0, length))));
  } catch (cause) {
    if (!(cause instanceof BlockError)) throw cause;
    throw new RebaseReadError(which, { cause });
  }
}
