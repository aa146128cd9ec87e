/**
 * snapshot-access: a node that shows the snapshot of the node below, a copy-before-write filter.
 * Its content can be read and discarded, never written. Over a node that keeps no snapshot it
 * opens, and every request but a flush fails with ENOTSUP. Several may stand over one filter.
 *
 * It offers the snapshot calls as well as the plain ones: the same, but a snapshot discard is
 * allowed to a user who may not write.
 *
 * @module
 */

import type { BlockEdge } from "../edge.ts";
import type { IoVector } from "../io_vector.ts";
import { BlockNode } from "../node.ts";
import type { BlockStatus, MaybePromise } from "../types.ts";
import { type AccessRun, CopyBeforeWriteNode } from "./copy_before_write.ts";

/** What a snapshot-access node is made of. */
export interface SnapshotAccessOptions {
  /** Unique in the graph. */
  nodeName: string;
  /** The node whose snapshot it shows. */
  file: BlockNode;
}

/** Driver "snapshot-access". */
export class SnapshotAccessNode extends BlockNode {
  readonly #file: BlockEdge;

  /** Has the size of `file`. */
  constructor(options: SnapshotAccessOptions) {
    super({
      nodeName: options.nodeName,
      driver: "snapshot-access",
      sizeBytes: options.file.sizeBytes,
      // Not so that it could be written, but so that it can be discarded.
      isReadOnly: false,
    });
    this.#file = this.addChild("file", "snapshot", options.file);
  }

  /** What may be read: see CopyBeforeWriteNode. All of it, where the node below can't tell. */
  snapshotAccess(offset: number, length: number): AccessRun {
    const { node } = this.#file;
    if (node instanceof CopyBeforeWriteNode) return node.snapshotAccess(offset, length);
    return { length, isForbidden: false };
  }

  /** A snapshot read of the node below. */
  protected override doRead(offset: number, target: IoVector): MaybePromise<void> {
    return this.#file.node.snapshotRead(offset, target);
  }

  /** The snapshot's block status. */
  protected override doBlockStatus(offset: number, length: number): MaybePromise<BlockStatus> {
    return this.#file.node.snapshotBlockStatus(offset, length);
  }

  /** A snapshot discard: what was read need no longer be kept. */
  protected override doDiscard(offset: number, length: number): MaybePromise<void> {
    return this.#file.node.snapshotDiscard(offset, length);
  }

  /** The past can't be written. */
  protected override doWriteZeroes(): never {
    throw this.notSupported("writing");
  }

  /** The same as a read. */
  protected override doSnapshotRead(offset: number, target: IoVector): MaybePromise<void> {
    return this.#file.node.snapshotRead(offset, target);
  }

  /** The same as the block status. */
  protected override doSnapshotBlockStatus(
    offset: number,
    length: number,
  ): MaybePromise<BlockStatus> {
    return this.#file.node.snapshotBlockStatus(offset, length);
  }

  /** The same as a discard. */
  protected override doSnapshotDiscard(offset: number, length: number): MaybePromise<void> {
    return this.#file.node.snapshotDiscard(offset, length);
  }
}
