/**
 * What a copy-before-write filter knows of each cluster:
 *
 *   copy    still to be copied before a write
 *   access  a snapshot reader may read it
 *   done    was copied: the old data is in the target, and stays there
 *   held    its old data takes room in the target (a cluster of zeroes takes none)
 *
 *   copy, access  --copy starts-->  access  --copy ends-->  access, done (, held)
 *        ^                            |
 *        +--------copy fails----------+    (a snapshot discard takes copy, access and held away)
 *
 * Invariants: copy is a subset of access; a cluster of access that is neither in copy nor in done
 * is being copied; held is a subset of done. So a guest may write where there is no copy bit and no
 * copy in flight: what a reader may read there is done, and is read from the target.
 *
 * @module
 */

import type { Kernels } from "../../wasm/kernels.ts";
import { Bitmap } from "../bitmap.ts";
import type { ByteRange } from "../types.ts";

/** What the state of a filter is made of. */
export interface CbwBitmapsOptions {
  /** The disk's size. */
  sizeBytes: number;
  /** Bytes that a bit stands for. */
  clusterSizeBytes: number;
  /** What to protect, in any granularity; null: everything. Only read, only now. */
  bitmap: Bitmap | null;
}

/** See the module's head. */
export class CbwBitmaps implements Disposable {
  /** The disk's size; bits beyond it are never set. */
  readonly sizeBytes: number;
  /** Bytes that a bit stands for, a power of two. */
  readonly clusterSizeBytes: number;
  /** Still to be copied before a write. */
  readonly copy: Bitmap;
  /** A reader may read it. */
  readonly access: Bitmap;
  /** The old data is in the target. */
  readonly done: Bitmap;
  /** It takes room there. */
  readonly held: Bitmap;
  readonly #storage: DisposableStack;

  /** Throws a BlockError where there is no memory for them. */
  constructor(kernels: Kernels, options: CbwBitmapsOptions) {
    this.sizeBytes = options.sizeBytes;
    this.clusterSizeBytes = options.clusterSizeBytes;
    const shape = { sizeBytes: options.sizeBytes, granularity: options.clusterSizeBytes };
    using storage = new DisposableStack();
    this.copy = storage.use(new Bitmap(kernels, shape));
    this.access = storage.use(new Bitmap(kernels, shape));
    this.done = storage.use(new Bitmap(kernels, shape));
    this.held = storage.use(new Bitmap(kernels, shape));
    if (options.bitmap === null) this.access.setAll();
    else this.access.merge(options.bitmap);
    this.copy.merge(this.access);
    this.#storage = storage.move();
  }

  /** Gives the memory of all four back. */
  [Symbol.dispose](): void {
    this.#storage.dispose();
  }

  /** The clusters that a range touches, the last one cut to the disk. */
  around(offset: number, length: number): ByteRange {
    const size = this.clusterSizeBytes;
    const start = offset - offset % size;
    const end = Math.min(Math.ceil((offset + length) / size) * size, this.sizeBytes);
    return { offset: start, length: end - start };
  }

  /**
   * The clusters that lie in a range as a whole, the one at the disk's end being as short as it is.
   */
  inside(offset: number, length: number): ByteRange {
    const size = this.clusterSizeBytes;
    const rangeEnd = offset + length;
    const start = Math.ceil(offset / size) * size;
    const end = rangeEnd === this.sizeBytes ? rangeEnd : rangeEnd - rangeEnd % size;
    return { offset: start, length: Math.max(end - start, 0) };
  }

  /**
   * The copy of these clusters failed: it is to be done again, but for what was discarded since.
   */
  putBack({ offset, length }: ByteRange): void {
    const end = offset + length;
    let run = this.access.nextRun(offset, length);
    while (run !== null) {
      this.copy.set(run.offset, run.length);
      const next = run.offset + run.length;
      run = this.access.nextRun(next, end - next);
    }
  }

  /** The first run of a range that may not be read, or null. */
  firstForbidden(offset: number, length: number): ByteRange | null {
    const end = offset + length;
    const start = this.access.nextClear(offset, length);
    if (start === end) return null;
    return { offset: start, length: this.access.nextSet(start, end - start) - start };
  }
}
