/**
 * Block nodes as query-named-block-nodes and query-block show them: QEMU's BlockDeviceInfo and
 * ImageInfo (block/qapi.c), and the file names under which nodes are known (bdrv_refresh_filename).
 *
 * @module
 */

import type { BlockNode } from "../block/node.ts";
import type { Blockdev } from "../block/open/blockdev.ts";
import { formatJson, isJsonObject, type JsonObject, type JsonValue } from "../block/open/json.ts";
import { resolveBeside } from "../block/open/open_image.ts";
import type { Monitor } from "./monitor.ts";

/** Options that choose what a node shows: with them its file's name does not name the node. */
const STRONG_OPTIONS: Record<string, readonly string[]> = {
  blkdebug: ["inject-error", "config"],
  file: ["filename"],
  nbd: ["server", "export", "tls-creds", "tls-hostname"],
  "null-co": ["size", "read-zeroes"],
  raw: ["offset", "size"],
  throttle: ["throttle-group"],
};

/** Filters of QEMU's: what they filter is shown as if it were behind them. */
const FILTERS = new Set([
  "blkdebug",
  "commit_top",
  "copy-before-write",
  "copy-on-read",
  "mirror_top",
  "throttle",
]);
/** Of these the ones that are known by the name of what they filter. */
const NAMED_AS_FILE = new Set(["commit_top", "copy-before-write", "mirror_top", "snapshot-access"]);

/** BlockDeviceInfo. `isFlat`: images come without those behind them. */
export function describeBlockNode(
  monitor: Monitor,
  node: BlockNode,
  { isFlat }: { isFlat: boolean },
): JsonObject {
  const blockdev = monitor.context.opened.get(node);
  const backing = node.backing?.node ?? null;
  const bitmaps = monitor.block.bitmaps.list(node).reverse().map((bitmap) =>
    bitmapInfo(bitmap.info())
  );
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
  for (let at = behind(node); at !== null; at = behind(at)) depth++;
  return depth;
}

/** What is behind an image, or below a filter. */
function behind(node: BlockNode): BlockNode | null {
  if (node.backing !== null) return node.backing.node;
  return FILTERS.has(node.driver) ? node.children.get("file")?.node ?? null : null;
}

/** ImageInfo. */
function imageInfo(
  monitor: Monitor,
  node: BlockNode,
  { isFlat }: { isFlat: boolean },
): JsonObject {
  const backing = behind(node);
  const { clusterSizeBytes, driver } = node;
  const allocatedBytes = allocatedBytesOf(node);
  const specific = node.imageDetails as JsonObject;
  const backingName = specific["backing-filename"];
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
    ...(typeof backingName === "string"
      ? { "full-backing-filename": fullBackingName(backingName, node) }
      : {}),
    ...specific,
    ...(backing === null || isFlat
      ? {}
      : { "backing-image": imageInfo(monitor, backing, { isFlat }) }),
  };
}

/** Where the backing file is; as the image has it where the image's folder isn't known. */
function fullBackingName(name: string, node: BlockNode): string {
  try {
    return resolveBeside(name, node);
  } catch {
    return name;
  }
}

/** As QEMU's drivers say it: blkdebug says nothing, snapshot-access what is below. */
function allocatedBytesOf(node: BlockNode): number | null {
  if (node.driver === "blkdebug") return null;
  const file = node.children.get("file");
  if (node.driver === "snapshot-access" && file !== undefined) return allocatedBytesOf(file.node);
  return node.allocatedBytes;
}

/** Whether QEMU's driver says more of its images than their size: filters ask what is below. */
function hasImageInfo(node: BlockNode): boolean {
  if (node.driver === "file" || node.driver === "qcow2") return true;
  const file = node.children.get("file");
  return file !== undefined && node.driver !== "snapshot-access" && hasImageInfo(file.node);
}

/** Lists and objects as members with dots in their names, as QEMU keeps options. */
function dotted(name: string, value: JsonValue): JsonObject {
  if (!Array.isArray(value) && !isJsonObject(value)) return { [name]: value };
  const entries = Array.isArray(value) ? [...value.entries()] : Object.entries(value);
  return Object.assign(
    {},
    ...entries.map(([key, member]) => dotted(`${name}.${key}`, member)),
  );
}

/** What a node is known by: the name of its file, or its options as JSON. */
export function fileNameOf(monitor: Monitor, node: BlockNode): string {
  return exactName(monitor, node) ?? `json:${formatJson(fullOptions(monitor, node))}`;
}

function exactName(monitor: Monitor, node: BlockNode): string | null {
  if (node.fileName !== null) return node.fileName;
  const file = node.children.get("file");
  if (file === undefined) return null;
  if (NAMED_AS_FILE.has(node.driver)) return fileNameOf(monitor, file.node);
  if (FILTERS.has(node.driver)) return null;
  const options = monitor.context.opened.get(node)?.variant ?? {};
  const isChanged = (STRONG_OPTIONS[node.driver] ?? []).some((name) => name in options);
  const below = file.node;
  // Opening that file finds this node again only if it lies straight on it.
  if (isChanged || isBackingOverridden(monitor, node) || below.children.size > 0) return null;
  return exactName(monitor, below);
}

/** Whether what is behind an image is not what its header names. */
function isBackingOverridden(monitor: Monitor, node: BlockNode): boolean {
  const named = node.imageDetails["backing-filename"];
  const backing = node.backing?.node ?? null;
  if (typeof named !== "string") return backing !== null;
  return backing === null || fileNameOf(monitor, backing) !== fullBackingName(named, node);
}

function fullOptions(monitor: Monitor, node: BlockNode): JsonObject {
  const blockdev: Blockdev | undefined = monitor.context.opened.get(node);
  const options: JsonObject = { driver: node.driver };
  for (const name of STRONG_OPTIONS[node.driver] ?? []) {
    const value = blockdev?.variant[name];
    if (value !== undefined) Object.assign(options, dotted(name, value as JsonValue));
  }
  if (node.driver === "file" && node.fileName !== null) options.filename = node.fileName;
  const isOverridden = isBackingOverridden(monitor, node);
  if (isOverridden && node.backing === null) options.backing = null;
  for (const edge of node.children.values()) {
    if (edge.name === "backing" && !isOverridden) continue;
    const name = node.driver === "blkdebug" && edge.name === "file" ? "image" : edge.name;
    options[name] = fullOptions(monitor, edge.node);
  }
  return options;
}
