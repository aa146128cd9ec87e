/**
 * An external snapshot (QEMU's blockdev-snapshot): an overlay takes the place of a node, which
 * becomes its backing node and is written no more. Everybody who used the node uses the overlay
 * then.
 *
 *   [device] --> [node]      ==>      [device] --> [overlay] --backing--> [node]
 *
 * In steps, for transactions; see transaction.ts.
 *
 * @module
 */

import type { BlockEdge } from "./edge.ts";
import { BlockError } from "./errors.ts";
import type { BlockGraph } from "./graph.ts";
import { followingEdges } from "./jobs/filters.ts";
import type { Jobs } from "./jobs/jobs.ts";
import { BlockNode } from "./node.ts";

/** Arguments of blockdev-snapshot. */
export interface ExternalSnapshotOptions {
  /** What becomes the backing node. */
  node: BlockNode;
  /** A node of the graph without users and without a backing node, or who makes one. */
  overlay: BlockNode | (() => Promise<BlockNode>);
  /** Whose nodes may not be had. */
  jobs: Jobs;
}

/** See the module's head. */
export class ExternalSnapshot {
  readonly #graph: BlockGraph;
  readonly #options: ExternalSnapshotOptions;
  #overlay: BlockNode | null = null;
  /** What leads to the overlay instead of the node. */
  #moved: BlockEdge[] = [];
  #isApplied = false;

  /** Nothing is done yet. */
  constructor(graph: BlockGraph, options: ExternalSnapshotOptions) {
    this.#graph = graph;
    this.#options = options;
  }

  /** The overlay, null before `prepare`. */
  get overlay(): BlockNode | null {
    return this.#overlay;
  }

  /** Makes the overlay, if it isn't there yet. */
  async prepare(): Promise<void> {
    const { overlay } = this.#options;
    this.#overlay = typeof overlay === "function" ? await overlay() : overlay;
  }

  /** The moment, in a drained section over the node. Throws a BlockError and changes nothing. */
  async apply(): Promise<void> {
    const { node, jobs } = this.#options;
    const overlay = this.#checked();
    if (!node.isReadOnly) await node.flush();
    await jobs.beforeReplace(node, overlay);
    const edges = followingEdges(node, overlay);
    await this.#graph.drained([overlay], () => {
      this.#graph.setBacking(overlay, node);
      try {
        this.#graph.replaceChildren(edges, overlay);
      } catch (error) {
        this.#graph.setBacking(overlay, null);
        throw error;
      }
    });
    this.#moved = edges;
    this.#isApplied = true;
  }

  /** Nothing can go wrong any more: the node is to be written no more. */
  async commit(): Promise<void> {
    try {
      await this.#graph.setReadOnly(this.#options.node.nodeName, true);
    } catch (error) {
      // Who may write to it says that it has to stay so.
      if (!(error instanceof BlockError)) throw error;
    }
  }

  /** The way back. An overlay that was made is removed. */
  async undo(): Promise<void> {
    const { node, overlay: given, jobs } = this.#options;
    const overlay = this.#overlay;
    if (overlay === null) return;
    this.#overlay = null;
    if (this.#isApplied) {
      await jobs.beforeReplace(overlay, node);
      await this.#graph.drained([overlay, node], () => {
        this.#graph.replaceChildren(this.#moved, node);
        this.#graph.setBacking(overlay, null);
      });
    }
    if (typeof given === "function") await this.#graph.remove(overlay.nodeName);
  }

  /** The texts are QEMU's (external_snapshot_action, blockdev.c). */
  #checked(): BlockNode {
    const { node, jobs } = this.#options;
    const overlay = this.#overlay;
    if (overlay === null) throw new Error("not prepared");
    jobs.checkFree(node);
    jobs.checkNotBacking(node);
    jobs.checkFree(overlay);
    const inUse = new BlockError("EBUSY", "The overlay is already in use");
    if ([...overlay.parents].some(({ parent }) => !(parent instanceof BlockNode))) throw inUse;
    if (!overlay.supportsBacking) {
      throw new BlockError("EINVAL", "The overlay does not support backing images");
    }
    if (overlay.backing !== null) {
      throw new BlockError("EINVAL", "The overlay already has a backing image");
    }
    if (overlay.parents.size > 0) throw inUse;
    if (overlay.sizeBytes !== node.sizeBytes) {
      throw new BlockError(
        "EINVAL",
        `The overlay has ${overlay.sizeBytes} bytes, '${node.nodeName}' ${node.sizeBytes}`,
      );
    }
    return overlay;
  }
}
