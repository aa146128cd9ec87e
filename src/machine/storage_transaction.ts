/**
 * Transactions of a worker's disks: several actions at one moment, all or none.
 *
 * @module
 */

import type { BlockLayer } from "../block/block_layer.ts";
import { type BitmapAction, runBitmapTransaction } from "../block/bitmap_transaction.ts";
import { BlockError } from "../block/errors.ts";
import type { BitmapChange, TransactionAction, TransactionResult } from "./messages.ts";
import type { StorageDisks } from "./storage_disks.ts";
import type { StorageFleecings } from "./storage_fleecings.ts";

/** What actions work on. */
export interface TransactionSurroundings {
  /** Held still meanwhile. */
  block: BlockLayer;
  disks: StorageDisks;
  fleecings: StorageFleecings;
}

/** Carries out all, or none: then throws the error of the one that failed. */
export async function carryOut(
  actions: readonly TransactionAction[],
  { block: { graph, bitmaps }, disks, fleecings }: TransactionSurroundings,
): Promise<TransactionResult[]> {
  const changes: BitmapAction[] = [];
  const others = [];
  for (const action of actions) {
    if (action.type === "abort") changes.push({ type: "abort" });
    else if (isBitmapChange(action)) changes.push(toBitmapAction(action, disks));
    else others.push(action);
  }
  const [other, ...more] = others;
  if (other === undefined) {
    const nodes = disks.list.map(({ node }) => node);
    await graph.drained(nodes, () => runBitmapTransaction(bitmaps, changes));
    return actions.map(() => null);
  }
  if (other.type !== "fleecing" || more.length > 0) {
    throw new BlockError("ENOTSUP", `a transaction can't have ${other.type} in it`);
  }
  const fleecing = await fleecings.start(other, changes);
  return actions.map((action) => action === other ? { fleecing } : null);
}

function isBitmapChange(action: TransactionAction): action is BitmapChange {
  return action.type.startsWith("bitmap-");
}

/** In the words of the block layer. Throws ENOENT for disks that are not there. */
export function toBitmapAction(change: BitmapChange, disks: StorageDisks): BitmapAction {
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
