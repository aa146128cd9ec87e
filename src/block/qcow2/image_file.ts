/**
 * The file below an image, as metadata uses it: what lies behind its end reads as zeroes, since
 * writers of images need not fill up the last cluster, and it grows ahead of what is written, in
 * large steps, since each step costs a call.
 *
 * Growing happens under the metadata lock; `trim`, at close, takes the surplus away again.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import { IoVector } from "../io_vector.ts";
import type { BlockNode } from "../node.ts";
import { settle, type Steps } from "../steps.ts";
import type { MaybePromise } from "../types.ts";

const GROWTH_BYTES_MIN = 1024 * 1024;
const GROWTH_BYTES_MAX = 64 * 1024 * 1024;

/** Whatever leads to the node: an edge, whose node may be replaced, or just this node. */
export interface FileReference {
  /** Read afresh for every request. */
  readonly node: BlockNode;
}

/** See the module's head. */
export class ImageFile {
  readonly #reference: FileReference;
  /** What the image needs of the file; the file may be longer by the growth ahead. */
  #usedBytes: number;
  #hasGrown = false;

  /** The file as it is now. */
  constructor(reference: FileReference) {
    this.#reference = reference;
    this.#usedBytes = reference.node.sizeBytes;
  }

  /** The node below, as it is now. */
  get node(): BlockNode {
    return this.#reference.node;
  }

  /** Fills `target`; zeroes behind the end. */
  read(offset: number, target: Uint8Array): MaybePromise<void> {
    const { node } = this;
    const count = Math.max(Math.min(target.length, node.sizeBytes - offset), 0);
    if (count === target.length) return node.read(offset, IoVector.of(target));
    target.fill(0, count);
    if (count > 0) return node.read(offset, IoVector.of(target.subarray(0, count)));
  }

  /** The same for a vector. */
  readVector(offset: number, target: IoVector): MaybePromise<void> {
    const { node } = this;
    const count = Math.max(Math.min(target.length, node.sizeBytes - offset), 0);
    if (count === target.length) return node.read(offset, target);
    target.slice(count, target.length - count).fill(0);
    if (count > 0) return node.read(offset, target.slice(0, count));
  }

  /** Writes metadata, where need be behind the end. Under the lock. */
  *write(offset: number, source: Uint8Array): Steps<void> {
    yield* this.ensure(offset + source.length);
    yield* settle(this.node.write(offset, IoVector.of(source)));
  }

  /** Makes a range read as zeroes. Under the lock. */
  *writeZeroes(offset: number, length: number): Steps<void> {
    yield* this.ensure(offset + length);
    yield* settle(this.node.writeZeroes(offset, length));
  }

  /** Makes the file reach to `end` at least. Under the lock. */
  *ensure(end: number): Steps<void> {
    if (end > this.#usedBytes) this.#usedBytes = end;
    const { node } = this;
    if (end <= node.sizeBytes) return;
    const ahead = Math.min(Math.max(end / 8, GROWTH_BYTES_MIN), GROWTH_BYTES_MAX);
    const wanted = Math.floor((end + ahead) / 65536) * 65536;
    try {
      yield* settle(node.resize(Math.max(end, wanted)));
    } catch (error) {
      // A fixed size: a raw part of something, a device.
      if (!(error instanceof BlockError) || error.code !== "ENOTSUP") throw error;
      throw new BlockError("ENOSPC", `The image can't grow: ${error.message}`, { cause: error });
    }
    this.#hasGrown = true;
  }

  /** Makes the file as long as `sizeBytes`, or shorter, where nothing behind is used any more. */
  *truncate(sizeBytes: number): Steps<void> {
    this.#usedBytes = Math.min(this.#usedBytes, sizeBytes);
    if (sizeBytes < this.node.sizeBytes) yield* settle(this.node.resize(sizeBytes));
  }

  /** Takes away what the file grew ahead. */
  *trim(): Steps<void> {
    if (!this.#hasGrown || this.node.sizeBytes <= this.#usedBytes) return;
    this.#hasGrown = false;
    yield* settle(this.node.resize(this.#usedBytes));
  }
}
