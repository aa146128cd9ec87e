/**
 * Images that a worker makes: temporary ones of fleecings, targets of jobs, overlays.
 *
 * @module
 */

import type { BlockGraph } from "../block/graph.ts";
import type { BlockNode } from "../block/node.ts";
import { BlockError } from "../block/errors.ts";
import type { NewImage } from "./messages.ts";

/** Makes a qcow2 image backed by a node of the graph, opens it and adds it. */
export function makeOverlay(
  _graph: BlockGraph,
  _options: { path: string; backing: BlockNode },
): Promise<BlockNode> {
  return Promise.reject(new BlockError("ENOTSUP", "qcow2 can't be made here"));
}

/** Makes an image in a file that must not be there yet. */
export function createImageFile({ format }: NewImage): Promise<void> {
  return Promise.reject(new BlockError("ENOTSUP", `${format} can't be made here`));
}
