/** Commands that show block nodes and the devices on them. @module */

import type { JsonObject } from "../../block/open/json.ts";
import { bool, optional } from "../../block/open/qapi.ts";
import { describeBlockNode } from "../block_nodes.ts";
import { command, type QmpCommand } from "../command.ts";
import type { QmpDisk } from "../machine.ts";
import type { Monitor } from "../monitor.ts";

function describeDisk(monitor: Monitor, { name, qdev, backend }: QmpDisk): JsonObject {
  return {
    device: name,
    qdev,
    type: "unknown",
    removable: false,
    locked: false,
    "io-status": "ok",
    inserted: describeBlockNode(monitor, backend.node, { isFlat: false }),
  };
}

/** See the module's head. */
export const queryCommands: readonly QmpCommand[] = [
  command("query-named-block-nodes", { flat: optional(bool) }, ({ flat }, monitor) =>
    // The newest first, as QEMU has them.
    monitor.block.graph.list().reverse().map((node) =>
      describeBlockNode(monitor, node, { isFlat: flat ?? false })
    )),
  command(
    "query-block",
    {},
    (_args, monitor) => (monitor.machine?.disks() ?? []).map((disk) => describeDisk(monitor, disk)),
  ),
];
