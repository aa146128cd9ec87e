/** Commands that start jobs on block nodes: backup, mirror, commit, stream. @module */

import { BlockError } from "../../block/errors.ts";
import { type BackupOptions, startBackup } from "../../block/jobs/backup.ts";
import { startCommit } from "../../block/jobs/commit.ts";
import type { JobOptions } from "../../block/jobs/job.ts";
import { startMirror } from "../../block/jobs/mirror.ts";
import { startStream } from "../../block/jobs/stream.ts";
import type { OnError } from "../../block/jobs/types.ts";
import { BlockNode } from "../../block/node.ts";
import {
  bool,
  type Fields,
  int,
  oneOf,
  optional,
  type Parsed,
  size,
  str,
  struct,
  uint32,
} from "../../block/open/qapi.ts";
import { command, type QmpCommand } from "../command.ts";
import { fileNameOf } from "../block_nodes.ts";
import { QmpError } from "../errors.ts";
import type { Monitor } from "../monitor.ts";
import { lookUpNode } from "./blockdev.ts";

const onErrorType = oneOf("BlockdevOnError", ["report", "ignore", "enospc", "stop", "auto"]);
const syncType = oneOf("MirrorSyncMode", ["top", "full", "none", "incremental", "bitmap"]);

/** BackupPerf. */
const perfFields = {
  "use-copy-range": optional(bool),
  "max-workers": optional(int),
  "max-chunk": optional(int),
  "min-cluster-size": optional(size),
} satisfies Fields;

/** BlockdevBackup. */
export const backupFields = {
  "job-id": optional(str),
  device: str,
  sync: syncType,
  speed: optional(int),
  bitmap: optional(str),
  "bitmap-mode": optional(oneOf("BitmapSyncMode", ["on-success", "never", "always"])),
  compress: optional(bool),
  "on-source-error": optional(onErrorType),
  "on-target-error": optional(onErrorType),
  "auto-finalize": optional(bool),
  "auto-dismiss": optional(bool),
  "filter-node-name": optional(str),
  "discard-source": optional(bool),
  "x-perf": optional(struct("BackupPerf", perfFields)),
  target: str,
} satisfies Fields;

const mirrorFields = {
  "job-id": optional(str),
  device: str,
  target: str,
  replaces: optional(str),
  sync: syncType,
  speed: optional(int),
  granularity: optional(uint32),
  "buf-size": optional(int),
  "on-source-error": optional(onErrorType),
  "on-target-error": optional(onErrorType),
  "filter-node-name": optional(str),
  "copy-mode": optional(oneOf("MirrorCopyMode", ["background", "write-blocking"])),
  "auto-finalize": optional(bool),
  "auto-dismiss": optional(bool),
} satisfies Fields;

const commitFields = {
  "job-id": optional(str),
  device: str,
  "base-node": optional(str),
  base: optional(str),
  "top-node": optional(str),
  top: optional(str),
  "backing-file": optional(str),
  "backing-mask-protocol": optional(bool),
  speed: optional(int),
  "on-error": optional(onErrorType),
  "filter-node-name": optional(str),
  "auto-finalize": optional(bool),
  "auto-dismiss": optional(bool),
} satisfies Fields;

const streamFields = {
  "job-id": optional(str),
  device: str,
  base: optional(str),
  "base-node": optional(str),
  "backing-file": optional(str),
  "backing-mask-protocol": optional(bool),
  bottom: optional(str),
  speed: optional(int),
  "on-error": optional(onErrorType),
  "filter-node-name": optional(str),
  "auto-finalize": optional(bool),
  "auto-dismiss": optional(bool),
} satisfies Fields;

interface CommonArguments {
  "job-id"?: string;
  device: string;
  speed?: number;
  "auto-finalize"?: boolean;
  "auto-dismiss"?: boolean;
  "filter-node-name"?: string;
}

/** The arguments that all jobs have. Throws a BlockError. */
function jobOptions(
  monitor: Monitor,
  node: BlockNode,
  args: CommonArguments,
): JobOptions & { filterNodeName?: string } {
  const filterNodeName = args["filter-node-name"];
  return {
    jobId: args["job-id"] ?? defaultJobId(monitor, node),
    ...(args.speed === undefined ? {} : { speed: args.speed }),
    autoFinalize: args["auto-finalize"] ?? true,
    autoDismiss: args["auto-dismiss"] ?? true,
    ...(filterNodeName === undefined ? {} : { filterNodeName }),
  };
}

/** The name of the device that works on the node, "" where none does. */
function deviceName(monitor: Monitor, node: BlockNode): string {
  return monitor.machine?.disks().find(({ backend }) => backend.node === node)?.name ?? "";
}

function defaultJobId(monitor: Monitor, node: BlockNode): string {
  const name = deviceName(monitor, node);
  if (name !== "") return name;
  throw new BlockError("EINVAL", "An explicit job ID is required for this node");
}

/** "auto" is what QEMU makes of it for jobs. */
function onError(policy: Parsed<{ p: typeof onErrorType }>["p"] | undefined): OnError {
  return policy === "auto" ? "enospc" : policy ?? "report";
}

/** A node that nobody but a device, an export or a job uses. Throws a BlockError. */
function rootNode(monitor: Monitor, name: string): BlockNode {
  const node = lookUpNode(monitor, { device: name, nodeName: name });
  for (const { parent } of node.parents) {
    if (parent instanceof BlockNode) throw new BlockError("EINVAL", "Need a root block node");
  }
  return node;
}

/** The same, where clients rely on the class of the error. */
function rootNodeOfDevice(monitor: Monitor, name: string): BlockNode {
  const { graph } = monitor.block;
  const isDevice = monitor.machine?.disks().some((disk) => disk.name === name) ?? false;
  if (!isDevice && graph.find(name) === undefined) {
    throw new QmpError("DeviceNotFound", `Device '${name}' not found`);
  }
  return rootNode(monitor, name);
}

/** A backup's arguments. Throws a BlockError. */
export function backupOptions(
  monitor: Monitor,
  args: Parsed<typeof backupFields>,
): BackupOptions {
  const source = lookUpNode(monitor, { device: args.device, nodeName: args.device });
  const target = lookUpNode(monitor, { device: args.target, nodeName: args.target });
  const perf = args["x-perf"] ?? {};
  return {
    // Of a node without a device QEMU takes the empty name, which is then refused.
    ...jobOptions(monitor, source, {
      ...args,
      "job-id": args["job-id"] ?? deviceName(monitor, source),
    }),
    source,
    target,
    sync: args.sync,
    ...(args.bitmap === undefined ? {} : { bitmap: args.bitmap }),
    ...(args["bitmap-mode"] === undefined ? {} : { bitmapMode: args["bitmap-mode"] }),
    compress: args.compress ?? false,
    discardSource: args["discard-source"] ?? false,
    onSourceError: onError(args["on-source-error"]),
    onTargetError: onError(args["on-target-error"]),
    ...(perf["max-workers"] === undefined ? {} : { maxWorkers: perf["max-workers"] }),
    ...(perf["max-chunk"] === undefined ? {} : { maxChunkBytes: perf["max-chunk"] }),
    ...(perf["min-cluster-size"] === undefined
      ? {}
      : { minClusterSizeBytes: perf["min-cluster-size"] }),
  };
}

async function mirror(args: Parsed<typeof mirrorFields>, monitor: Monitor): Promise<void> {
  const source = rootNode(monitor, args.device);
  const target = lookUpNode(monitor, { device: args.target, nodeName: args.target });
  const { sync, replaces } = args;
  if (sync === "incremental" || sync === "bitmap") {
    throw new BlockError("EINVAL", `Sync mode '${sync}' not supported`);
  }
  await startMirror(monitor.block, {
    ...jobOptions(monitor, source, args),
    source,
    target,
    sync,
    copyMode: args["copy-mode"] ?? "background",
    ...(args.granularity === undefined || args.granularity === 0
      ? {}
      : { granularity: args.granularity }),
    ...(args["buf-size"] === undefined || args["buf-size"] === 0
      ? {}
      : { bufferBytes: args["buf-size"] }),
    ...(replaces === undefined ? {} : { replaces: replacedNode(monitor, replaces) }),
    onSourceError: onError(args["on-source-error"]),
    onTargetError: onError(args["on-target-error"]),
  });
}

function replacedNode(monitor: Monitor, nodeName: string): BlockNode {
  const node = monitor.block.graph.find(nodeName);
  if (node !== undefined) return node;
  throw new BlockError("ENOENT", `Failed to find node with node-name='${nodeName}'`);
}

/** The node of a chain that is known by a file name. */
function chainNodeByFile(monitor: Monitor, from: BlockNode, name: string): BlockNode | null {
  for (let at: BlockNode | null = from; at !== null;) {
    if (fileNameOf(monitor, at) === name || (at !== from && at.fileName === name)) return at;
    const below: BlockNode | null = at.backing?.node ?? null;
    at = below;
  }
  return null;
}

async function commit(args: Parsed<typeof commitFields>, monitor: Monitor): Promise<void> {
  const device = rootNodeOfDevice(monitor, args.device);
  const top = namedInChain(monitor, device, {
    node: args["top-node"],
    file: args.top,
    names: ["top-node", "top"],
    notFound: (name) => `Top image file ${name} not found`,
  });
  const base = namedInChain(monitor, top ?? device, {
    node: args["base-node"],
    file: args.base,
    names: ["base-node", "base"],
    notFound: (name) => `Can't find '${name}' in the backing chain`,
  });
  await startCommit(monitor.block, {
    ...jobOptions(monitor, device, args),
    device,
    ...(top === null ? {} : { top }),
    ...(base === null ? {} : { base }),
    ...(args["backing-file"] === undefined ? {} : { backingFile: args["backing-file"] }),
    onError: onError(args["on-error"]),
  });
}

function namedInChain(
  monitor: Monitor,
  from: BlockNode,
  wanted: {
    node: string | undefined;
    file: string | undefined;
    names: readonly [string, string];
    notFound: (name: string) => string;
  },
): BlockNode | null {
  const { node, file, names, notFound } = wanted;
  if (node !== undefined && file !== undefined) {
    throw new BlockError("EINVAL", `'${names[0]}' and '${names[1]}' are mutually exclusive`);
  }
  if (node !== undefined) return lookUpNode(monitor, { nodeName: node });
  if (file === undefined) return null;
  const found = chainNodeByFile(monitor, from, file);
  if (found === null) throw new BlockError("EINVAL", notFound(file));
  return found;
}

async function stream(args: Parsed<typeof streamFields>, monitor: Monitor): Promise<void> {
  const device = lookUpNode(monitor, { device: args.device, nodeName: args.device });
  const { bottom } = args;
  if (args.base !== undefined && args["base-node"] !== undefined) {
    throw new BlockError(
      "EINVAL",
      "'base' and 'base-node' cannot be specified at the same time",
    );
  }
  if (bottom !== undefined && (args.base !== undefined || args["base-node"] !== undefined)) {
    const name = args.base === undefined ? "base-node" : "base";
    throw new BlockError("EINVAL", `'bottom' and '${name}' cannot be specified at the same time`);
  }
  const base = namedInChain(monitor, device, {
    node: args["base-node"],
    file: args.base,
    names: ["base-node", "base"],
    notFound: (name) => `Can't find '${name}' in the backing chain`,
  });
  await startStream(monitor.block, {
    ...jobOptions(monitor, device, args),
    device,
    ...(base === null ? {} : { base }),
    ...(bottom === undefined ? {} : { bottom: lookUpNode(monitor, { nodeName: bottom }) }),
    ...(args["backing-file"] === undefined ? {} : { backingFile: args["backing-file"] }),
    onError: onError(args["on-error"]),
  });
}

/** See the module's head. */
export const jobStartCommands: readonly QmpCommand[] = [
  command("blockdev-backup", backupFields, async (args, monitor) => {
    await startBackup(monitor.block, backupOptions(monitor, args));
  }),
  command("blockdev-mirror", mirrorFields, mirror),
  command("block-commit", commitFields, commit),
  command("block-stream", streamFields, stream),
];
