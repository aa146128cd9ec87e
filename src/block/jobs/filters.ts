/**
 * Filters that jobs put above a node, as QEMU's bdrv_append does: everybody who used the node uses
 * the filter then. Who stays with the node: jobs (they were given this very node), who uses its
 * snapshot, and what stands below the filter itself (an overlay of the node that is a target).
 *
 * @module
 */

import type { BlockEdge } from "../edge.ts";
import type { BlockGraph } from "../graph.ts";
import { BlockNode } from "../node.ts";
import { parentsFirst } from "../permissions.ts";
import { JobBackend } from "./job_backend.ts";

/** The edges that follow when `filter`, or what stands in its place, is put above `node`. */
export function followingEdges(node: BlockNode, filter: BlockNode): BlockEdge[] {
  const below = new Set<unknown>(parentsFirst([filter]));
  return [...node.parents].filter(({ parent, role }) => {
    return role !== "snapshot" && !(parent instanceof JobBackend) && !below.has(parent);
  });
}

/**
 * Puts a new filter above a node, which a drained section covers. Throws a BlockError and leaves
 * the graph as it was, the filter in nobody's hands but the caller's.
 */
export function putAbove(graph: BlockGraph, node: BlockNode, filter: BlockNode): void {
  const edges = followingEdges(node, filter);
  graph.addAbove(filter, edges);
}

/** All nodes of a chain of backing nodes from `top` down to and without `base`, filters included. */
export function nodesBetween(top: BlockNode, base: BlockNode | null): BlockNode[] {
  const nodes: BlockNode[] = [];
  for (let node: BlockNode | null = top; node !== null && node !== base;) {
    nodes.push(node);
    const edge: BlockEdge | null = node.backing ??
      [...node.children.values()].find(({ role }) => role === "filtered") ?? null;
    node = edge?.node ?? null;
  }
  return nodes;
}
