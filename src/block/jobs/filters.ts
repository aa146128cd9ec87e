/**
 * Filters that jobs put above a node, as QEMU's bdrv_append does: everybody who used the node uses
 * the filter then. Who stays with the node: jobs (they were given this very node), who uses its
 * snapshot, and what stands below the filter itself (an overlay of the node that is a target).
 *
 * @module
 */

import type { BlockEdge } from "../edge.ts";
import { type BlockGraph, filteredChild } from "../graph.ts";
import { protocolNode, unfiltered } from "../image/chain.ts";
import type { BlockNode } from "../node.ts";
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

/** All nodes of a backing chain from `top` down to and without `base`, filters included. */
export function nodesBetween(top: BlockNode, base: BlockNode | null): BlockNode[] {
  const nodes: BlockNode[] = [];
  for (let node: BlockNode | null = top; node !== null && node !== base;) {
    nodes.push(node);
    node = nextEdge(node)?.node ?? null;
  }
  return nodes;
}

/** The edge to what a node shows where it holds nothing itself. */
function nextEdge(node: BlockNode): BlockEdge | null {
  return node.backing ?? (node.driver === "raw" ? null : filteredChild(node) ?? null);
}

/**
 * Keeps the edges of a chain from `top` down to `base` as they are, until the returned function is
 * called.
 */
export function freeze(top: BlockNode, base: BlockNode | null): () => void {
  const edges = nodesBetween(top, base).flatMap((node) => nextEdge(node) ?? []);
  for (const edge of edges) edge.frozenCount++;
  return () => {
    for (const edge of edges.splice(0)) edge.frozenCount--;
  };
}

/** The name by which an image's header names a backing node, null where it has none. */
export function imageName(node: BlockNode): string | null {
  return protocolNode(node).fileName ?? unfiltered(node).fileName;
}

/** Writes a backing file's name, or none, into the header of `node`, also where it is read-only. */
export async function setBackingFile(
  graph: BlockGraph,
  node: BlockNode,
  to: { name: string; base: BlockNode } | null,
): Promise<void> {
  const image = unfiltered(node);
  const { isReadOnly } = image;
  if (isReadOnly) await graph.setReadOnly(image.nodeName, false);
  try {
    if (to === null) await image.changeBackingFile(null, null);
    else await image.changeBackingFile(to.name, formatName(to.base));
  } finally {
    if (isReadOnly) await graph.setReadOnly(image.nodeName, true);
  }
}

/** A file without a format node is used raw. */
function formatName(node: BlockNode): string {
  const image = unfiltered(node);
  return image.children.has("file") ? image.driver : "raw";
}
