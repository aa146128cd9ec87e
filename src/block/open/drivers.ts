/**
 * The drivers that need nothing but the block layer, with their arguments in QEMU's names. Callers
 * add those that need more (nbd) to the table.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import { isPowerOfTwo } from "../bitmap.ts";
import { DirtyBitmaps } from "../dirty_bitmap.ts";
import { FileNode } from "../drivers/file.ts";
import { RawNode } from "../drivers/raw.ts";
import type { BlockNode } from "../node.ts";
import type { Kernels } from "../../wasm/kernels.ts";
import { blkdebugDriver } from "./blkdebug_driver.ts";
import { type BlockdevTypes, createBlockdevTypes } from "./blockdev.ts";
import type { BlockDriver, DriverTable, OpenContext, OpenRequest } from "./context.ts";
import { realPath } from "./open_image.ts";
import { qcow2Driver } from "./qcow2_driver.ts";
import {
  bool,
  type Fields,
  inputError,
  int,
  oneOf,
  optional,
  type Parsed,
  str,
  struct,
  uint32,
  uint64,
} from "./qapi.ts";

/** The table of the drivers here and of `others`. */
export function createDriverTable(others: readonly BlockDriver[] = []): DriverTable {
  const drivers = [
    fileDriver,
    rawDriver,
    qcow2Driver,
    nullCoDriver,
    throttleDriver,
    copyBeforeWriteDriver,
    snapshotAccessDriver,
    blkdebugDriver,
    ...others,
  ];
  return {
    byName: new Map(drivers.map((driver) => [driver.name, driver])),
    types: createBlockdevTypes(drivers),
  };
}

const fileFields = {
  filename: str,
  "pr-manager": optional(str),
  locking: optional(oneOf("OnOffAuto", ["auto", "on", "off"])),
  aio: optional(oneOf("BlockdevAioOptions", ["threads", "native", "io_uring"])),
  "aio-max-batch": optional(int),
  "drop-cache": optional(bool),
  "x-check-cache-dropped": optional(bool),
} satisfies Fields;

/** aio, drop-cache and the like choose how Linux is used: nothing a reader or writer can see. */
const fileDriver: BlockDriver = {
  name: "file",
  fields: () => fileFields,
  open: ({ nodeName, options, common, context }) => {
    const { filename, locking } = options as Parsed<typeof fileFields>;
    if (options["pr-manager"] !== undefined) throw inputError("'pr-manager' is not supported");
    checkPath(filename, context);
    const open = (isReadOnly: boolean): FileNode =>
      FileNode.open({
        nodeName,
        path: filename,
        isReadOnly,
        isDirect: common.cacheDirect,
        isUnlocked: locking === "off" || (common.forceShare && isReadOnly),
      });
    if (common.isReadOnly || !common.isAutoReadOnly) return open(common.isReadOnly);
    try {
      return open(false);
    } catch (error) {
      if (!(error instanceof BlockError && error.code === "EPERM")) throw error;
      return open(true);
    }
  },
};

/**
 * Throws a BlockError (EPERM) unless the path policy lets the file be opened. Symbolic links are
 * followed first; of a file that does not exist the folder's. FileNode opens what the links led to.
 */
export function checkPath(filename: string, context: OpenContext): void {
  if (context.mayOpen(realPath(filename))) return;
  throw new BlockError(
    "EPERM",
    `Could not open '${filename}': the file is not in an allowed folder`,
  );
}

function fileChild(types: BlockdevTypes) {
  return { file: types.ref } satisfies Fields;
}

type FileChild = Parsed<ReturnType<typeof fileChild>>;

/** Opens the child of a filter or format. */
function openFile({ options, child }: OpenRequest): Promise<BlockNode> {
  return child((options as unknown as FileChild).file);
}

function rawFields(types: BlockdevTypes) {
  return { ...fileChild(types), offset: optional(int), size: optional(int) } satisfies Fields;
}

const rawDriver: BlockDriver = {
  name: "raw",
  fields: rawFields,
  open: async (request) => {
    const { offset, size } = request.options as unknown as Parsed<ReturnType<typeof rawFields>>;
    const { common } = request;
    const file = await openFile(request);
    return new RawNode({
      nodeName: request.nodeName,
      file,
      // Over a file that can't be written it is its users who are refused.
      isReadOnly: common.isReadOnly || (common.isAutoReadOnly && file.isReadOnly),
      ...(offset === undefined ? {} : { offset }),
      ...(size === undefined ? {} : { sizeBytes: size }),
    });
  },
};

const nullCoFields = {
  size: optional(int),
  "latency-ns": optional(uint64),
  "read-zeroes": optional(bool),
} satisfies Fields;

const NULL_CO_BYTES = 1024 ** 3;

const nullCoDriver: BlockDriver = {
  name: "null-co",
  fields: () => nullCoFields,
  open: async ({ nodeName, options, common, context }) => {
    const parsed = options as Parsed<typeof nullCoFields>;
    const size = parsed.size ?? NULL_CO_BYTES;
    if (size < 0) throw inputError(`Invalid size ${size}`);
    const { NullCoNode } = await import("../drivers/null_co.ts");
    return new NullCoNode({
      nodeName,
      sizeBytes: size,
      isReadOnly: common.isReadOnly,
      readZeroes: parsed["read-zeroes"] ?? false,
      latencyMs: (parsed["latency-ns"] ?? 0) / 1e6,
      ...(context.clock === undefined ? {} : { clock: context.clock }),
    });
  },
};

function throttleFields(types: BlockdevTypes) {
  return { "throttle-group": str, ...fileChild(types) } satisfies Fields;
}

const throttleDriver: BlockDriver = {
  name: "throttle",
  fields: throttleFields,
  open: async (request) => {
    const name = (request.options as unknown as Parsed<ReturnType<typeof throttleFields>>)[
      "throttle-group"
    ];
    const file = await openFile(request);
    const group = request.context.throttleGroup(name);
    if (group === undefined) throw inputError(`Throttle group '${name}' does not exist`);
    const { ThrottleNode } = await import("../filters/throttle.ts");
    return new ThrottleNode({ nodeName: request.nodeName, file, group });
  },
};

function cbwFields(types: BlockdevTypes) {
  return {
    ...fileChild(types),
    target: types.ref,
    bitmap: optional(struct("BlockDirtyBitmap", { node: str, name: str })),
    "on-cbw-error": optional(oneOf("OnCbwError", ["break-guest-write", "break-snapshot"])),
    "cbw-timeout": optional(uint32),
    "min-cluster-size": optional(uint64),
  } satisfies Fields;
}

const copyBeforeWriteDriver: BlockDriver = {
  name: "copy-before-write",
  fields: cbwFields,
  open: async (request) => {
    const { nodeName, child, graph, context } = request;
    const options = request.options as unknown as Parsed<ReturnType<typeof cbwFields>>;
    const file = await openFile(request);
    const target = await child(options.target);
    const { bitmap } = options;
    const minClusterSize = options["min-cluster-size"] ?? 0;
    if (minClusterSize !== 0 && !isPowerOfTwo(minClusterSize)) {
      throw inputError("Cannot create block-copy-state: min-cluster-size needs to be a power of 2");
    }
    const { CopyBeforeWriteNode } = await import("../filters/copy_before_write.ts");
    return new CopyBeforeWriteNode({
      nodeName,
      file,
      target,
      kernels: context.kernels,
      bitmap: bitmap === undefined ? null : cbwBitmap(bitmap),
      onCbwError: options["on-cbw-error"] ?? "break-guest-write",
      cbwTimeoutSeconds: options["cbw-timeout"] ?? 0,
      minClusterSizeBytes: minClusterSize,
      ...(context.clock === undefined ? {} : { clock: context.clock }),
    });

    function cbwBitmap({ node, name }: { node: string; name: string }) {
      const found = context.bitmaps.get(graph.get(node), name);
      try {
        found.checkConsistent();
      } catch (error) {
        throw inputError(
          "Cannot create block-copy-state: Failed to merge bitmap " +
            `'${name}' to internal copy-bitmap: ${(error as Error).message}`,
        );
      }
      return found.bits;
    }
  },
};

const snapshotAccessDriver: BlockDriver = {
  name: "snapshot-access",
  fields: fileChild,
  open: async (request) => {
    const file = await openFile(request);
    const { SnapshotAccessNode } = await import("../filters/snapshot_access.ts");
    return new SnapshotAccessNode({ nodeName: request.nodeName, file });
  },
};

/** The surroundings of a tool that its user lets open everything. */
export function localContext(
  options: { kernels: Kernels; drivers?: readonly BlockDriver[]; bitmaps?: DirtyBitmaps },
): OpenContext {
  return {
    drivers: createDriverTable(options.drivers),
    mayOpen: () => true,
    kernels: options.kernels,
    bitmaps: options.bitmaps ?? new DirtyBitmaps(options.kernels),
    opened: new WeakMap(),
    throttleGroup: () => undefined,
  };
}
