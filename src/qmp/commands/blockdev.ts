/** Commands that add, change and delete block nodes. @module */

import { BlockError } from "../../block/errors.ts";
import { BlockNode } from "../../block/node.ts";
import { openNode } from "../../block/open/open_blockdev.ts";
import { reopenNodes } from "../../block/open/reopen.ts";
import { int, list, optional, str } from "../../block/open/qapi.ts";
import { command, commandOf, type QmpCommand } from "../command.ts";
import type { Monitor } from "../monitor.ts";

/** A node by a device's name or its own. Throws a BlockError in QEMU's words. */
export function lookUpNode(
  monitor: Monitor,
  names: { device?: string | undefined; nodeName?: string | undefined },
): BlockNode {
  const { device, nodeName } = names;
  if (device !== undefined) {
    const disk = monitor.machine?.disks().find(({ name, qdev }) =>
      name === device || qdev === device
    );
    if (disk !== undefined) return disk.backend.node;
  }
  const node = monitor.block.graph.find(nodeName ?? "") ??
    monitor.block.graph.find(device ?? "");
  if (node !== undefined) return node;
  throw new BlockError(
    "ENOENT",
    `Cannot find device='${device ?? ""}' nor node-name='${nodeName ?? ""}'`,
  );
}

async function deleteNode(monitor: Monitor, nodeName: string): Promise<void> {
  const { graph, jobs } = monitor.block;
  const node = graph.find(nodeName);
  if (node === undefined) {
    throw new BlockError("ENOENT", `Failed to find node with node-name='${nodeName}'`);
  }
  const hasBackend = graph.listBackends().some((backend) => backend.node === node);
  jobs.checkFree(node);
  if (hasBackend) throw new BlockError("EBUSY", `Node ${nodeName} is in use`);
  for (const { parent, role } of node.parents) {
    if (role !== "cow" || !(parent instanceof BlockNode)) continue;
    throw new BlockError(
      "EBUSY",
      `Node '${nodeName}' is busy: node is used as backing hd of '${parent.nodeName}'`,
    );
  }
  if (!monitor.nodes.has(node)) {
    throw new BlockError("EPERM", `Node ${nodeName} is not owned by the monitor`);
  }
  if (node.parents.size > 0) throw new BlockError("EBUSY", `Block device ${nodeName} is in use`);
  monitor.nodes.delete(node);
  await graph.remove(nodeName);
}

/** See the module's head. */
export const blockdevCommands: readonly QmpCommand[] = [
  commandOf("blockdev-add", (types) => types.options, async (blockdev, monitor) => {
    if (blockdev.base["node-name"] === undefined) {
      throw new BlockError("EINVAL", "'node-name' must be specified for the root node");
    }
    const { graph } = monitor.block;
    monitor.nodes.add(await openNode(graph, blockdev, monitor.context));
  }),
  command("blockdev-reopen", (types) => ({ options: list(types.options) }), (args, monitor) => {
    return reopenNodes(monitor.block.graph, args.options, monitor.context);
  }),
  command("blockdev-del", { "node-name": str }, (args, monitor) => {
    return deleteNode(monitor, args["node-name"]);
  }),
  command("block_resize", {
    device: optional(str),
    "node-name": optional(str),
    size: int,
  }, async (args, monitor) => {
    const node = lookUpNode(monitor, { device: args.device, nodeName: args["node-name"] });
    if (args.size < 0) throw new BlockError("EINVAL", "Parameter 'size' expects a >0 size");
    monitor.block.jobs.checkFree(node);
    await monitor.block.graph.resize(node.nodeName, args.size);
  }),
];
