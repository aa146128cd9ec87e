/** The command that makes images: blockdev-create. @module */

import { BlockError } from "../../block/errors.ts";
import { type CreateTarget, startCreate } from "../../block/jobs/create.ts";
import type { BlockNode } from "../../block/node.ts";
import type { BlockdevRef, BlockdevTypes } from "../../block/open/blockdev.ts";
import { openNode } from "../../block/open/open_blockdev.ts";
import {
  any,
  bool,
  type Fields,
  int,
  oneOf,
  optional,
  type Parsed,
  type QapiType,
  size,
  str,
  struct,
  union,
  type UnionValue,
} from "../../block/open/qapi.ts";
import { commandOf, type QmpCommand } from "../command.ts";
import type { Monitor } from "../monitor.ts";
import { lookUpNode } from "./blockdev.ts";

const preallocationType = oneOf("PreallocMode", ["off", "metadata", "falloc", "full"]);

const fileFields = {
  filename: str,
  size,
  preallocation: optional(preallocationType),
  nocow: optional(bool),
  "extent-size-hint": optional(size),
} satisfies Fields;

function qcow2Fields(types: BlockdevTypes) {
  return {
    file: types.ref,
    "data-file": optional(types.ref),
    "data-file-raw": optional(bool),
    "extended-l2": optional(bool),
    size,
    version: optional(oneOf("BlockdevQcow2Version", ["v2", "v3"])),
    "backing-file": optional(str),
    "backing-fmt": optional(oneOf("BlockdevDriver", ["file", "qcow2", "raw"])),
    encrypt: optional(any),
    "cluster-size": optional(size),
    preallocation: optional(preallocationType),
    "lazy-refcounts": optional(bool),
    "refcount-bits": optional(int),
    "compression-type": optional(oneOf("Qcow2CompressionType", ["zlib", "zstd"])),
  } satisfies Fields;
}

const base = { driver: oneOf("BlockdevDriver", ["file", "qcow2"]) } satisfies Fields;

/** BlockdevCreateOptions, for the drivers that can create. */
function createType(types: BlockdevTypes): QapiType<UnionValue<Parsed<typeof base>>> {
  return union("BlockdevCreateOptions", {
    base,
    tag: "driver",
    variants: () => new Map<string, Fields>([["file", fileFields], ["qcow2", qcow2Fields(types)]]),
  });
}

function fileTarget(monitor: Monitor, options: Parsed<typeof fileFields>): CreateTarget {
  const { preallocation } = options;
  if (preallocation === "metadata") {
    throw new BlockError("ENOTSUP", "Unsupported preallocation mode 'metadata'");
  }
  return {
    driver: "file",
    filename: options.filename,
    sizeBytes: options.size,
    ...(preallocation === undefined ? {} : { preallocation }),
    mayOpen: (path) => monitor.mayOpen(path),
  };
}

function qcow2Target(
  monitor: Monitor,
  options: Parsed<ReturnType<typeof qcow2Fields>>,
): CreateTarget {
  if (options.encrypt !== undefined) {
    throw new BlockError("ENOTSUP", "Encrypted images are not supported");
  }
  const { version, preallocation } = options;
  const dataFile = options["data-file"];
  const given = <K extends string, T>(name: K, value: T | undefined) =>
    (value === undefined ? {} : { [name]: value }) as Partial<Record<K, T>>;
  return {
    driver: "qcow2",
    file: () => openFile(monitor, options.file),
    sizeBytes: options.size,
    ...given(
      "version",
      version === undefined ? undefined : version === "v2" ? 2 as const : 3 as const,
    ),
    ...given("clusterBytes", options["cluster-size"]),
    ...given("backingFile", options["backing-file"]),
    ...given("backingFormat", options["backing-fmt"]),
    ...given("preallocation", preallocation),
    ...given("hasLazyRefcounts", options["lazy-refcounts"]),
    ...given("refcountBits", options["refcount-bits"]),
    ...given("compressionType", options["compression-type"]),
    ...given("hasExtendedL2", options["extended-l2"]),
    ...given("isDataFileRaw", options["data-file-raw"]),
    ...(dataFile === undefined ? {} : dataFileOptions(monitor, dataFile)),
  };
}

/** The image keeps the name of the file that the node is of. */
function dataFileOptions(monitor: Monitor, dataFile: BlockdevRef) {
  const name = typeof dataFile === "string"
    ? monitor.block.graph.find(dataFile)?.fileName
    : dataFile.variant.filename;
  return {
    dataFile: typeof name === "string" ? name : "",
    dataFileNode: () => openFile(monitor, dataFile),
  };
}

/** The node that is named, or a new one that goes with the job. */
async function openFile(monitor: Monitor, reference: BlockdevRef): Promise<BlockNode> {
  if (typeof reference === "string") {
    return lookUpNode(monitor, { device: reference, nodeName: reference });
  }
  const { graph } = monitor.block;
  const node = await openNode(graph, reference, monitor.context);
  graph.adopt(node);
  return node;
}

/** See the module's head. */
export const createCommands: readonly QmpCommand[] = [
  commandOf(
    "blockdev-create",
    (types) => struct("q_obj_blockdev-create-arg", { "job-id": str, options: createType(types) }),
    (args, monitor) => {
      const { tag, variant } = args.options;
      const target = tag === "file"
        ? fileTarget(monitor, variant as Parsed<typeof fileFields>)
        : qcow2Target(monitor, variant as unknown as Parsed<ReturnType<typeof qcow2Fields>>);
      const job = startCreate(monitor.block, { jobId: args["job-id"], target });
      // What was opened for the job goes with it.
      job.whenConcluded().then(() => monitor.block.graph.sweep());
    },
  ),
];
