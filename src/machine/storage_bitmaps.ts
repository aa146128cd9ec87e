/**
 * Changes of dirty bitmaps in the words of messages.ts.
 *
 * @module
 */

import type { BitmapAction } from "../block/bitmap_actions.ts";
import type { BitmapChange } from "./messages.ts";
import type { StorageDisks } from "./storage_disks.ts";

/** In the words of the block layer. Throws ENOENT for disks that are not there. */
export function bitmapAction(change: BitmapChange, disks: StorageDisks): BitmapAction {
  const { node } = disks.get(change.disk);
  switch (change.type) {
    case "bitmap-add": {
      const { name, granularityBytes, isPersistent, isDisabled } = change;
      const options = {
        name,
        persistent: isPersistent ?? node.bitmapStore !== null,
        disabled: isDisabled,
        ...(granularityBytes !== null && { granularity: granularityBytes }),
      };
      return { type: "add", node, options };
    }
    case "bitmap-remove":
      return { type: "remove", node, name: change.name };
    case "bitmap-clear":
      return { type: "clear", node, name: change.name };
    case "bitmap-enable":
      return { type: "enable", node, name: change.name };
    case "bitmap-disable":
      return { type: "disable", node, name: change.name };
    case "bitmap-merge": {
      const bitmaps = change.bitmaps.map(({ disk, name }) => ({
        node: disks.get(disk).node,
        name,
      }));
      return { type: "merge", node, target: change.target, bitmaps };
    }
  }
}
