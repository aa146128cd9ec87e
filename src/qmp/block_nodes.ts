/**
 * Block nodes as query-named-block-nodes and query-block show them: QEMU's BlockDeviceInfo and
 * ImageInfo (block/qapi.c), and the file names under which nodes are known (bdrv_refresh_filename).
 *
 * @module
 */

import type { BlockNode } from "../block/node.ts";
import type { Blockdev } from "../block/open/blockdev.ts";
import { formatJson, type JsonObject, type JsonValue } from "../block/open/json.ts";
import type { Monitor } from "./monitor.ts";

/** Options that choose what a node shows: with them its file's name does not name the node. */
const STRONG_OPTIONS: Record<string, readonly string[]> = {
  blkdebug: ["inject-error", "config"],
  "copy-before-write": ["bitmap", "on-cbw-error", "cbw-timeout", "min-cluster-size"],
  file: ["filename"],
  nbd: ["server", "export", "tls-creds", "tls-hostname"],
  "null-co": ["size", "read-zeroes"],
  raw: ["offset", "size"],
  throttle: ["throttle-group"],
};

/** Filters of QEMU's: they are known by their options, never by their file's name. */
const FILTERS = new Set(["copy-before-write", "throttle", "blkdebug", "snapshot-access"]);

/** BlockDeviceInfo. `isFlat`: images come without those behind them. */
export function describeBlockNode(
  monitor: Monitor,
  node: BlockNode,
  { isFlat }: { isFlat: boolean },
): JsonObject {
  const blockdev = monitor.context.opened.get(node);
  const backing = node.backing?.node ?? null;
  const bitmaps = monitor.block.bitmaps.list(node).map((bitmap) => bitmapInfo(bitmap.info()));
  return {
    file: fileNameOf(monitor, node),
    "node-name": node.nodeName,
    ro: node.isReadOnly,
    drv: node.driver,
    ...(backing === null ? {} : { backing_file: fileNameOf(monitor, backing) }),
    // As in QEMU: the chain is only counted where it is shown.
    backing_file_depth: isFlat ? 0 : chainDepth(node),
    active: true,
    encrypted: false,
    detect_zeroes: node.settings.detectZeroes,
    bps: 0,
    bps_rd: 0,
    bps_wr: 0,
    iops: 0,
    iops_rd: 0,
    iops_wr: 0,
    image: imageInfo(monitor, node, { isFlat }),
    cache: {
      writeback: true,
      direct: blockdev?.base.cache?.direct ?? false,
      "no-flush": node.settings.ignoresFlush,
    },
    write_threshold: 0,
    ...(bitmaps.length === 0 ? {} : { "dirty-bitmaps": bitmaps }),
  };
}

function bitmapInfo(info: {
  name: string;
  count: number;
  granularity: number;
  recording: boolean;
  busy: boolean;
  persistent: boolean;
  inconsistent: boolean;
}): JsonObject {
  const { inconsistent, ...rest } = info;
  return { ...rest, ...(inconsistent ? { inconsistent } : {}) };
}

function chainDepth(node: BlockNode): number {
  let depth = 0;
  for (let at = node.backing; at !== null; at = at.node.backing) depth++;
  return depth;
}

/** ImageInfo. */
function imageInfo(
  monitor: Monitor,
  node: BlockNode,
  { isFlat }: { isFlat: boolean },
): JsonObject {
  const backing = node.backing?.node ?? null;
  const { allocatedBytes, clusterSizeBytes, driver } = node;
  const specific = node.imageDetails as JsonObject;
  return {
    filename: fileNameOf(monitor, node),
    format: driver,
    // QEMU counts sectors.
    "virtual-size": Math.ceil(node.sizeBytes / 512) * 512,
    ...(allocatedBytes === null ? {} : { "actual-size": allocatedBytes }),
    ...(driver === "qcow2" && clusterSizeBytes !== null
      ? { "cluster-size": clusterSizeBytes }
      : {}),
    ...(hasImageInfo(node) ? { "dirty-flag": false } : {}),
    ...(driver === "file" ? { "format-specific": { type: "file", data: {} } } : {}),
    ...specific,
    ...(backing === null || isFlat
      ? {}
      : { "backing-image": imageInfo(monitor, backing, { isFlat }) }),
  };
}

/** Whether QEMU's driver says more of its images than their size: filters ask what is below. */
function hasImageInfo(node: BlockNode): boolean {
  if (node.driver === "file" || node.driver === "qcow2") return true;
  const file = node.children.get("file");
  return file !== undefined && node.driver !== "snapshot-access" && hasImageInfo(file.node);
}

/** What a node is known by: the name of its file, or its options as JSON. */
export function fileNameOf(monitor: Monitor, node: BlockNode): string {
  return exactName(monitor, node) ?? `json:${formatJson(fullOptions(monitor, node))}`;
}

function exactName(monitor: Monitor, node: BlockNode): string | null {
  if (node.fileName !== null) return node.fileName;
  if (FILTERS.has(node.driver)) return null;
  const file = node.children.get("file");
  if (file === undefined) return null;
  const options = monitor.context.opened.get(node)?.variant ?? {};
  const isChanged = (STRONG_OPTIONS[node.driver] ?? []).some((name) => name in options);
  const below = file.node;
  // Opening that file finds this node again only if it lies straight on it.
  if (isChanged || "backing" in options || below.children.size > 0) return null;
  return exactName(monitor, below);
}

function fullOptions(monitor: Monitor, node: BlockNode): JsonObject {
  const blockdev: Blockdev | undefined = monitor.context.opened.get(node);
  const options: JsonObject = { driver: node.driver };
  for (const name of STRONG_OPTIONS[node.driver] ?? []) {
    const value = blockdev?.variant[name];
    if (value !== undefined) options[name] = value as JsonValue;
  }
  if (node.driver === "file" && node.fileName !== null) options.filename = node.fileName;
  for (const edge of node.children.values()) {
    const name = node.driver === "blkdebug" && edge.name === "file" ? "image" : edge.name;
    options[name] = fullOptions(monitor, edge.node);
  }
  return options;
}
