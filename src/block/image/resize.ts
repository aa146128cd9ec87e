/**
 * Another size for an image, with what is new allocated as asked for.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import type { BlockGraph } from "../graph.ts";
import { IoVector } from "../io_vector.ts";
import type { BlockNode } from "../node.ts";
import { Qcow2Node } from "../qcow2/node.ts";
import { zeroVector } from "../zeroes.ts";
import { unfiltered } from "./chain.ts";

/** How much of an image is allocated before it is written. */
export type Preallocation = "off" | "metadata" | "falloc" | "full";

/** Written at once. */
const PIECE_BYTES = 1024 * 1024;

/** Resizes. The node must not be read-only. Throws a BlockError. */
export async function resizeImage(
  graph: BlockGraph,
  node: BlockNode,
  { sizeBytes, preallocation }: { sizeBytes: number; preallocation: Preallocation },
): Promise<void> {
  const image = unfiltered(node);
  if (preallocation === "off") return await graph.resize(node.nodeName, sizeBytes);
  if (image instanceof Qcow2Node) return await image.grow(sizeBytes, preallocation);
  if (preallocation === "metadata") {
    throw new BlockError("ENOTSUP", "Unsupported preallocation mode: metadata");
  }
  const before = node.sizeBytes;
  await graph.resize(node.nodeName, sizeBytes);
  try {
    await allocateZeroes(node, { offset: before, length: sizeBytes - before }, preallocation);
  } catch (error) {
    await graph.resize(node.nodeName, before);
    throw error;
  }
}

/** Allocates a range that reads as zeroes already. */
export async function allocateZeroes(
  node: BlockNode,
  { offset, length }: { offset: number; length: number },
  preallocation: "falloc" | "full",
): Promise<void> {
  // Zeroes that may not unmap stay allocated.
  if (preallocation === "falloc") return await node.writeZeroes(offset, length);
  const end = offset + length;
  for (let at = offset; at < end; at += PIECE_BYTES) {
    await node.write(at, new IoVector(zeroVector(Math.min(PIECE_BYTES, end - at)).buffers));
  }
}
