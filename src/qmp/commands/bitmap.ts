/** Commands on dirty bitmaps. @module */

import type { DirtyBitmap } from "../../block/dirty_bitmap.ts";
import { BlockError } from "../../block/errors.ts";
import type { BlockNode } from "../../block/node.ts";
import {
  alternate,
  bool,
  type Fields,
  list,
  optional,
  type Parsed,
  type QapiType,
  str,
  struct,
  uint32,
} from "../../block/open/qapi.ts";
import { command, type QmpCommand } from "../command.ts";
import type { Monitor } from "../monitor.ts";
import { lookUpNode } from "./blockdev.ts";

/** A bitmap by its node and name: BlockDirtyBitmap. */
export const bitmapFields = { node: str, name: str } satisfies Fields;

/** BlockDirtyBitmapAdd. */
export const bitmapAddFields = {
  node: str,
  name: str,
  granularity: optional(uint32),
  persistent: optional(bool),
  disabled: optional(bool),
} satisfies Fields;

/** A bitmap by its name on the same node, or by node and name. */
export type BitmapOrName = string | { node: string; name: string };

/** BlockDirtyBitmapOrStr. */
export const bitmapOrName: QapiType<BitmapOrName> = alternate<BitmapOrName>(
  "BlockDirtyBitmapOrStr",
  {
    string: () => str,
    object: () => struct("BlockDirtyBitmap", bitmapFields),
  },
);

/** BlockDirtyBitmapMerge. */
export const bitmapMergeFields = {
  node: str,
  target: str,
  bitmaps: list(bitmapOrName),
} satisfies Fields;

/** The node that a command means. Throws a BlockError. */
export function nodeOf(monitor: Monitor, nodeName: string): BlockNode {
  try {
    return lookUpNode(monitor, { device: nodeName, nodeName });
  } catch {
    throw new BlockError("ENOENT", `Node '${nodeName}' not found`);
  }
}

/** The bitmaps that a merge takes. Throws a BlockError. */
export function mergeSources(
  monitor: Monitor,
  { node, bitmaps }: Parsed<typeof bitmapMergeFields>,
): { node: BlockNode; name: string }[] {
  return bitmaps.map((source) =>
    typeof source === "string"
      ? { node: nodeOf(monitor, node), name: source }
      : { node: nodeOf(monitor, source.node), name: source.name }
  );
}

function bitmapOf(monitor: Monitor, { node, name }: { node: string; name: string }): DirtyBitmap {
  return monitor.block.bitmaps.get(nodeOf(monitor, node), name);
}

/** See the module's head. */
export const bitmapCommands: readonly QmpCommand[] = [
  command("block-dirty-bitmap-add", bitmapAddFields, (args, monitor) => {
    const { node, ...options } = args;
    monitor.block.bitmaps.add(lookUpNode(monitor, { device: node, nodeName: node }), options);
  }),
  command(
    "block-dirty-bitmap-remove",
    bitmapFields,
    ({ node, name }, monitor) => monitor.block.bitmaps.remove(nodeOf(monitor, node), name),
  ),
  command(
    "block-dirty-bitmap-clear",
    bitmapFields,
    ({ node, name }, monitor) => monitor.block.bitmaps.clear(nodeOf(monitor, node), name),
  ),
  command(
    "block-dirty-bitmap-enable",
    bitmapFields,
    ({ node, name }, monitor) => monitor.block.bitmaps.enable(nodeOf(monitor, node), name),
  ),
  command(
    "block-dirty-bitmap-disable",
    bitmapFields,
    ({ node, name }, monitor) => monitor.block.bitmaps.disable(nodeOf(monitor, node), name),
  ),
  command("block-dirty-bitmap-merge", bitmapMergeFields, (args, monitor) => {
    const target = bitmapOf(monitor, { node: args.node, name: args.target });
    const sources = mergeSources(monitor, args).map(({ node, name }) =>
      monitor.block.bitmaps.get(node, name)
    );
    monitor.block.bitmaps.merge(target, sources);
  }),
];
