/**
 * The filter of a mirror job, above its source: notes what the guest writes, and in write-blocking
 * mode writes it to the target too.
 *
 *   background:      guest write --> source, then marked: the job copies it (again)
 *   write-blocking:  guest write --> source --> target; waits for the job's chunk there, and the
 *                    job for it. What the target does not take is marked.
 *
 * Invariant: what is neither marked nor being worked on is the same on both sides (as far as the
 * job's mode says that it has to be). A mark of a chunk goes when its copy starts and is set when a
 * write in it ends, so that a write that a copy may have missed is always marked.
 *
 * @module
 */

import type { Kernels } from "../../wasm/kernels.ts";
import { Bitmap } from "../bitmap.ts";
import type { BlockEdge } from "../edge.ts";
import { type BlockError, toBlockError } from "../errors.ts";
import type { IoVector } from "../io_vector.ts";
import { BlockNode } from "../node.ts";
import { defaultChildPermissions, type Permissions } from "../permissions.ts";
import { RangeLock } from "../range_lock.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import {
  type BlockStatus,
  type ByteRange,
  type MaybePromise,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  REQ_FUA,
} from "../types.ts";

/** What a filter is made of. */
export interface MirrorTopOptions {
  /** See BlockNodeOptions. */
  nodeName: string;
  /** The job's source. */
  file: BlockNode;
  /** Where the marks live. */
  kernels: Kernels;
  /** Bytes of a mark: a power of two. */
  granularity: number;
  /** The target is below the source, where the job writes: an active commit. */
  isCommit: boolean;
  /** There is something new for the job. */
  onChange: () => void;
}

/** Where guest writes go too, in write-blocking mode. */
export interface ActiveTarget {
  /** The target. */
  node: () => BlockNode;
  /** It did not take a write, which is marked then. */
  failed: (error: BlockError) => void;
}

/** Driver "mirror_top". */
export class MirrorTopNode extends BlockNode {
  /** What the target lacks. */
  readonly dirty: Bitmap;
  /** Chunks and, in write-blocking mode, guest writes that are being worked on. */
  readonly lock = new RangeLock();
  /** Null: background mode. */
  active: ActiveTarget | null = null;
  readonly #file: BlockEdge;
  readonly #options: MirrorTopOptions;
  #isStopped = false;

  /** Nothing is marked. */
  constructor(options: MirrorTopOptions) {
    const { file, kernels, granularity } = options;
    super({
      nodeName: options.nodeName,
      driver: "mirror_top",
      sizeBytes: file.sizeBytes,
      isReadOnly: file.isReadOnly,
      handlesFua: true,
    });
    this.#options = options;
    this.#file = this.addChild("file", "filtered", file);
    this.dirty = new Bitmap(kernels, { sizeBytes: file.sizeBytes, granularity });
  }

  /** The job's source: what it reads. */
  get source(): BlockNode {
    return this.#file.node;
  }

  /** From now on nothing is marked, nor written to the target. */
  stop(): void {
    this.#isStopped = true;
  }

  /** The marks' chunks that a range touches. */
  around(offset: number, length: number): ByteRange {
    const { granularity } = this.#options;
    const start = offset - offset % granularity;
    const end = Math.min(Math.ceil((offset + length) / granularity) * granularity, this.sizeBytes);
    return { offset: start, length: end - start };
  }

  /** Passes. */
  protected override doRead(offset: number, target: IoVector): MaybePromise<void> {
    return this.#file.node.read(offset, target);
  }

  /** See the module's head. */
  protected override doWrite(offset: number, source: IoVector, flags: number): MaybePromise<void> {
    const range = { offset, length: source.length };
    return this.#change(
      range,
      () => this.#file.node.write(offset, source, flags),
      (target) => target.write(offset, source, flags & ~REQ_FUA),
    );
  }

  /** See the module's head. */
  protected override doWriteZeroes(
    offset: number,
    length: number,
    flags: number,
  ): MaybePromise<void> {
    return this.#change(
      { offset, length },
      () => this.#file.node.writeZeroes(offset, length, flags),
      (target) => target.writeZeroes(offset, length, flags & ~REQ_FUA),
    );
  }

  /** Is always marked: what a discarded area reads as is each node's own affair. */
  protected override doDiscard(offset: number, length: number): MaybePromise<void> {
    return this.#change({ offset, length }, () => this.#file.node.discard(offset, length), null);
  }

  /** The target is flushed by the job. */
  protected override doFlush(): MaybePromise<void> {
    return this.#file.node.flush();
  }

  /** Passes. */
  protected override doBlockStatus(offset: number, length: number): MaybePromise<BlockStatus> {
    return this.#file.node.blockStatus(offset, length);
  }

  /** Gives the marks back. */
  protected override doClose(): void {
    this.dirty[Symbol.dispose]();
  }

  /** Nobody else may change what the filter would not see, but for the job that commits. */
  override childPermissions(edge: BlockEdge, above: Permissions): Permissions {
    const { perm, shared } = defaultChildPermissions(this, edge, above);
    if (this.#isStopped || this.parents.size === 0) return { perm, shared };
    // The chain reads no consistent disk in the middle of a commit, only through this filter.
    if (this.#options.isCommit) {
      return { perm: perm & ~PERM_CONSISTENT_READ, shared: shared | PERM_WRITE | PERM_RESIZE };
    }
    return { perm, shared: shared & ~(PERM_WRITE | PERM_RESIZE) };
  }

  #change(
    range: ByteRange,
    change: () => MaybePromise<void>,
    copy: ((target: BlockNode) => MaybePromise<void>) | null,
  ): MaybePromise<void> {
    if (this.#isStopped) return change();
    const { active } = this;
    if (active === null || copy === null) return runSteps(this.#changeAndMark(range, change));
    return runSteps(this.#changeBoth(range, change, () => copy(active.node()), active));
  }

  *#changeAndMark(range: ByteRange, change: () => MaybePromise<void>): Steps<void> {
    try {
      yield* settle(change());
    } finally {
      this.#mark(range);
    }
  }

  *#changeBoth(
    range: ByteRange,
    change: () => MaybePromise<void>,
    copy: () => MaybePromise<void>,
    active: ActiveTarget,
  ): Steps<void> {
    const locked = yield* this.lock.lock(this.around(range.offset, range.length));
    let isSame = false;
    try {
      yield* settle(change());
      try {
        yield* settle(copy());
        isSame = true;
      } catch (error) {
        active.failed(toBlockError(error));
      }
    } finally {
      if (isSame) this.#unmarkInside(range);
      else this.dirty.set(range.offset, range.length);
      this.lock.unlock(locked);
      this.#options.onChange();
    }
  }

  #mark({ offset, length }: ByteRange): void {
    this.dirty.set(offset, length);
    this.#options.onChange();
  }

  /** Whole chunks are the same now; what else of a chunk was different still is. */
  #unmarkInside({ offset, length }: ByteRange): void {
    const { granularity } = this.#options;
    const end = offset + length;
    const first = Math.ceil(offset / granularity) * granularity;
    const last = end === this.sizeBytes ? end : end - end % granularity;
    if (last > first) this.dirty.clear(first, last - first);
  }
}
