/**
 * The filter of a commit job, above the top of what is committed: it changes nothing, and lets the
 * job write to the base below while the chain is in use.
 *
 * @module
 */

import type { BlockEdge } from "../edge.ts";
import type { IoVector } from "../io_vector.ts";
import { BlockNode } from "../node.ts";
import type { Permissions } from "../permissions.ts";
import { type BlockStatus, type MaybePromise, PERM_ALL } from "../types.ts";

/** Driver "commit_top". */
export class CommitTopNode extends BlockNode {
  readonly #file: BlockEdge;

  /** `file`: the top of what is committed. */
  constructor(options: { nodeName: string; file: BlockNode }) {
    super({
      nodeName: options.nodeName,
      driver: "commit_top",
      sizeBytes: options.file.sizeBytes,
      isReadOnly: true,
    });
    this.#file = this.addChild("file", "filtered", options.file);
  }

  /** Passes. */
  protected override doRead(offset: number, target: IoVector): MaybePromise<void> {
    return this.#file.node.read(offset, target);
  }

  /** Passes. */
  protected override doBlockStatus(offset: number, length: number): MaybePromise<BlockStatus> {
    return this.#file.node.blockStatus(offset, length);
  }

  /** Nothing is taken, everything is shared: who reads through the chain reads the same all along. */
  override childPermissions(): Permissions {
    return { perm: 0, shared: PERM_ALL };
  }
}
