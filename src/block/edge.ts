/**
 * An edge of the block graph: a parent (a node or a backend) uses a node as its child.
 *
 *   backend --root--> filter --file--> format --file--> driver
 *                        \--target--> ...
 *
 * The graph alone writes `node`, `perm` and `shared`; a parent reads `node` for every request, so
 * that a filter can be put in between two requests.
 *
 * @module
 */

import type { BlockNode } from "./node.ts";
import { PERM_ALL } from "./types.ts";

/**
 * What a child is to its parent. It decides the permissions that the parent takes by default (see
 * childPermissions in permissions.ts) and whether another node may take the child's place.
 *
 * - `root`: the node that a device, an export or a job works on
 * - `filtered`: the parent shows this child's content at the same offsets, in the same size
 * - `image`: the parent keeps its data and metadata in it (a format's file)
 * - `data`: the parent keeps data in it, no metadata
 * - `cow`: what the parent does not hold itself is read from it (a backing node)
 * - `snapshot`: the parent uses the node's snapshot calls only: this very node, no other in its
 * place
 */
export type ChildRole = "root" | "filtered" | "image" | "data" | "cow" | "snapshot";

/** Who may be above a node. */
export interface EdgeParent {
  /** As error messages name it: "node 'x'", "block device 'x'". */
  readonly description: string;
}

/** One use of a node, with the permissions that it takes and shares. */
export class BlockEdge {
  /** The permissions (PERM_*) that the parent takes on the node. */
  perm = 0;
  /** The permissions that the parent lets others take. */
  shared: number = PERM_ALL;
  /** How many jobs rely on this edge: while any does, it leads to no other node. */
  frozenCount = 0;

  /** The edge counts once the graph has it: see BlockGraph. */
  constructor(
    /** Who uses the child. */
    readonly parent: EdgeParent,
    /** The child's name in its parent: "root", "file", "target", "backing". */
    readonly name: string,
    public role: ChildRole,
    /** The child. */
    public node: BlockNode,
  ) {}
}
