/** Several actions at one moment, and snapshots by overlays. @module */

import { BlockError } from "../../block/errors.ts";
import type { BlockNode } from "../../block/node.ts";
import {
  type Fields,
  list,
  oneOf,
  optional,
  type Parsed,
  str,
  struct,
  union,
} from "../../block/open/qapi.ts";
import { runTransaction, type TransactionAction } from "../../block/transaction.ts";
import { limits } from "../../limits.ts";
import { command, type QmpCommand } from "../command.ts";
import type { Monitor } from "../monitor.ts";
import {
  bitmapAddFields,
  bitmapFields,
  bitmapMergeFields,
  mergeSources,
  nodeOf,
} from "./bitmap.ts";
import { lookUpNode } from "./blockdev.ts";
import { backupFields, backupOptions } from "./job_start.ts";

const snapshotFields = { node: str, overlay: str } satisfies Fields;

/** The members of each action's `data`. */
const DATA: Record<string, Fields> = {
  abort: {},
  "block-dirty-bitmap-add": bitmapAddFields,
  "block-dirty-bitmap-remove": bitmapFields,
  "block-dirty-bitmap-clear": bitmapFields,
  "block-dirty-bitmap-enable": bitmapFields,
  "block-dirty-bitmap-disable": bitmapFields,
  "block-dirty-bitmap-merge": bitmapMergeFields,
  "blockdev-backup": backupFields,
  "blockdev-snapshot": snapshotFields,
};

const variants = new Map<string, Fields>(
  Object.entries(DATA).map(([name, fields]) => [name, { data: struct(`${name}-data`, fields) }]),
);

const actionType = union("TransactionAction", {
  base: { type: oneOf("TransactionActionKind", Object.keys(DATA)) },
  tag: "type",
  variants: () => variants,
});

const propertiesType = struct("TransactionProperties", {
  "completion-mode": optional(oneOf("ActionCompletionMode", ["individual", "grouped"])),
});

/** What carries an action out. Throws a BlockError on what it can't be done with. */
function actionOf(
  monitor: Monitor,
  { tag, data }: { tag: string; data: Record<string, unknown> },
): TransactionAction {
  const bitmap = (): { node: BlockNode; name: string } => {
    const { node, name } = data as Parsed<typeof bitmapFields>;
    return { node: nodeOf(monitor, node), name };
  };
  switch (tag) {
    case "abort":
      return { type: "abort" };
    case "block-dirty-bitmap-add": {
      const { node, ...options } = data as Parsed<typeof bitmapAddFields>;
      return { type: "add", node: lookUpNode(monitor, { device: node, nodeName: node }), options };
    }
    case "block-dirty-bitmap-remove":
      return { type: "remove", ...bitmap() };
    case "block-dirty-bitmap-clear":
      return { type: "clear", ...bitmap() };
    case "block-dirty-bitmap-enable":
      return { type: "enable", ...bitmap() };
    case "block-dirty-bitmap-disable":
      return { type: "disable", ...bitmap() };
    case "block-dirty-bitmap-merge": {
      const args = data as Parsed<typeof bitmapMergeFields>;
      const { node, target } = args;
      return {
        type: "merge",
        node: nodeOf(monitor, node),
        target,
        bitmaps: mergeSources(monitor, args),
      };
    }
    case "blockdev-backup": {
      const args = data as Parsed<typeof backupFields>;
      return { type: "blockdev-backup", options: backupOptions(monitor, args) };
    }
    default:
      return snapshotAction(monitor, data as Parsed<typeof snapshotFields>);
  }
}

function snapshotAction(
  monitor: Monitor,
  { node, overlay }: Parsed<typeof snapshotFields>,
): TransactionAction {
  return {
    type: "blockdev-snapshot",
    options: {
      node: lookUpNode(monitor, { device: node, nodeName: node }),
      overlay: lookUpNode(monitor, { device: overlay, nodeName: overlay }),
      jobs: monitor.block.jobs,
    },
  };
}

/** See the module's head. */
export const transactionCommands: readonly QmpCommand[] = [
  command("transaction", {
    actions: list(actionType),
    properties: optional(propertiesType),
  }, async ({ actions, properties }, monitor) => {
    if (actions.length > limits.transactionActions) {
      throw new BlockError("EINVAL", `More than ${limits.transactionActions} actions`);
    }
    await runTransaction(
      monitor.block,
      actions.map(({ tag, variant }) =>
        actionOf(monitor, { tag, data: variant.data as Record<string, unknown> })
      ),
      { completionMode: properties?.["completion-mode"] ?? "individual" },
    );
  }),
  command("blockdev-snapshot", snapshotFields, async (args, monitor) => {
    await runTransaction(monitor.block, [snapshotAction(monitor, args)]);
  }),
];
