/**
 * The filter of a stream job, above the node that is filled: the guest's writes and the job's
 * chunks keep out of each other's way, so that a chunk never overwrites what the guest wrote since
 * the job read it.
 *
 * @module
 */

import type { BlockEdge } from "../edge.ts";
import type { IoVector } from "../io_vector.ts";
import { BlockNode } from "../node.ts";
import { defaultChildPermissions, type Permissions } from "../permissions.ts";
import { RangeLock } from "../range_lock.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import {
  type BlockStatus,
  type ByteRange,
  type MaybePromise,
  PERM_RESIZE,
  PERM_WRITE,
} from "../types.ts";

/** Driver "copy-on-read". */
export class CopyOnReadNode extends BlockNode {
  /** Chunks and guest writes. */
  readonly lock = new RangeLock();
  readonly #file: BlockEdge;

  /** `file`: the node that is filled. */
  constructor(options: { nodeName: string; file: BlockNode }) {
    super({
      nodeName: options.nodeName,
      driver: "copy-on-read",
      sizeBytes: options.file.sizeBytes,
      isReadOnly: options.file.isReadOnly,
      handlesFua: true,
    });
    this.#file = this.addChild("file", "filtered", options.file);
  }

  /** Passes. */
  protected override doRead(offset: number, target: IoVector): MaybePromise<void> {
    return this.#file.node.read(offset, target);
  }

  /** Waits for a chunk there. */
  protected override doWrite(offset: number, source: IoVector, flags: number): MaybePromise<void> {
    return runSteps(this.#alone({ offset, length: source.length }, () => {
      return this.#file.node.write(offset, source, flags);
    }));
  }

  /** Waits for a chunk there. */
  protected override doWriteZeroes(
    offset: number,
    length: number,
    flags: number,
  ): MaybePromise<void> {
    return runSteps(this.#alone({ offset, length }, () => {
      return this.#file.node.writeZeroes(offset, length, flags);
    }));
  }

  /** Waits for a chunk there. */
  protected override doDiscard(offset: number, length: number): MaybePromise<void> {
    return runSteps(this.#alone({ offset, length }, () => {
      return this.#file.node.discard(offset, length);
    }));
  }

  /** Passes. */
  protected override doFlush(): MaybePromise<void> {
    return this.#file.node.flush();
  }

  /** Passes. */
  protected override doBlockStatus(offset: number, length: number): MaybePromise<BlockStatus> {
    return this.#file.node.blockStatus(offset, length);
  }

  /** Nobody else may write what the filter would not see. */
  override childPermissions(edge: BlockEdge, above: Permissions): Permissions {
    const { perm, shared } = defaultChildPermissions(this, edge, above);
    if (this.parents.size === 0) return { perm, shared };
    return { perm, shared: shared & ~(PERM_WRITE | PERM_RESIZE) };
  }

  *#alone(range: ByteRange, change: () => MaybePromise<void>): Steps<void> {
    const locked = yield* this.lock.lock(range);
    try {
      yield* settle(change());
    } finally {
      this.lock.unlock(locked);
    }
  }
}
