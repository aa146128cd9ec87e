/**
 * Driver qcow2 for the opening of block nodes: its arguments in QEMU's names, and the files that an
 * image's header names: the backing file and the data file.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import type { BlockNode } from "../node.ts";
import {
  EXTENSION_BACKING_FORMAT,
  EXTENSION_DATA_FILE,
  INCOMPAT_DATA_FILE,
  QCOW_MAGIC,
} from "../qcow2/format.ts";
import type { Qcow2Header } from "../qcow2/header.ts";
import { extensionText } from "../qcow2/header_extensions.ts";
import { runSteps } from "../steps.ts";
import type { BlockdevTypes } from "./blockdev.ts";
import type { BlockDriver, OpenRequest } from "./context.ts";
import {
  alternate,
  any,
  bool,
  type Fields,
  inputError,
  int,
  oneOf,
  optional,
  type Parsed,
  struct,
} from "./qapi.ts";

const OVERLAP_CHECKS = ["none", "constant", "cached", "all"] as const;

/** Which structures are checked against overlap is not for choice: all of them are. */
const overlapFlags = struct("Qcow2OverlapCheckFlags", {
  template: optional(oneOf("Qcow2OverlapCheckMode", OVERLAP_CHECKS)),
  "main-header": optional(bool),
  "active-l1": optional(bool),
  "active-l2": optional(bool),
  "refcount-table": optional(bool),
  "refcount-block": optional(bool),
  "snapshot-table": optional(bool),
  "inactive-l1": optional(bool),
  "inactive-l2": optional(bool),
  "bitmap-directory": optional(bool),
});

function fields(types: BlockdevTypes) {
  return {
    file: types.ref,
    backing: optional(types.refOrNull),
    "lazy-refcounts": optional(bool),
    "pass-discard-request": optional(bool),
    "pass-discard-snapshot": optional(bool),
    "pass-discard-other": optional(bool),
    "discard-no-unref": optional(bool),
    "overlap-check": optional(alternate<unknown>("Qcow2OverlapChecks", {
      string: () => oneOf("Qcow2OverlapCheckMode", OVERLAP_CHECKS),
      object: () => overlapFlags,
    })),
    "cache-size": optional(int),
    "l2-cache-size": optional(int),
    "l2-cache-entry-size": optional(int),
    "refcount-cache-size": optional(int),
    "cache-clean-interval": optional(int),
    encrypt: optional(any),
    "data-file": optional(types.ref),
  } satisfies Fields;
}

type Options = Parsed<ReturnType<typeof fields>>;

/** How sure probing is of the magic number. */
const PROBE_SCORE = 100;
/** Of an image's caches, whatever was asked for. */
const CACHE_BYTES_MAX = 256 * 1024 * 1024;

/** See the module's head. */
export const qcow2Driver: BlockDriver = {
  name: "qcow2",
  fields,
  probe: (start) => {
    if (start.length < 8) return 0;
    const view = new DataView(start.buffer, start.byteOffset, start.byteLength);
    return view.getUint32(0) === QCOW_MAGIC && view.getUint32(4) >= 2 ? PROBE_SCORE : 0;
  },
  open: async (request) => {
    const { nodeName, common, child } = request;
    const options = request.options as unknown as Options;
    if (options.encrypt !== undefined) throw inputError("Encrypted images are not supported");
    const { Qcow2Node, readHeader } = await import("../qcow2/node.ts");
    const file = await child(options.file);
    if (file.isReadOnly && !common.isReadOnly && !common.isAutoReadOnly) {
      throw new BlockError("EPERM", "Block node is read-only");
    }
    const { header } = await runSteps(readHeader(file));
    const dataFile = await openDataFile(request, { options, file, header });
    const backing = await openBacking(request, { options, file, header });
    const compressor = request.context.compressor?.(header.compressionType);
    return await Qcow2Node.open({
      nodeName,
      file,
      dataFile,
      backing,
      isReadOnly: common.isReadOnly || (common.isAutoReadOnly && file.isReadOnly),
      ...cacheSizes(options),
      ...(compressor === undefined ? {} : { compressor }),
    });
  },
};

interface Image {
  options: Options;
  file: BlockNode;
  header: Qcow2Header;
}

function backingOf(header: Qcow2Header): { fileName: string; format: string | null } | null {
  if (header.backingFile === null) return null;
  const format = extensionText(header.extensions, EXTENSION_BACKING_FORMAT);
  return { fileName: header.backingFile, format };
}

async function openBacking(
  { child, backingFile }: OpenRequest,
  { options, file, header }: Image,
): Promise<BlockNode | null> {
  const { backing } = options;
  if (backing === null) return null;
  if (backing !== undefined) return await child(backing, { isBacking: true });
  const named = backingOf(header);
  if (named === null || named.fileName === "") return null;
  try {
    return await backingFile({ ...named, image: file });
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(error.code, `Could not open backing file: ${error.message}`, {
      cause: error,
    });
  }
}

async function openDataFile(
  { child, dataFile }: OpenRequest,
  { options, file, header }: Image,
): Promise<BlockNode | null> {
  const given = options["data-file"];
  if (given !== undefined) return await child(given);
  if ((header.incompatibleFeatures & INCOMPAT_DATA_FILE) === 0n) return null;
  const fileName = extensionText(header.extensions, EXTENSION_DATA_FILE);
  if (fileName === null) throw inputError("'data-file' is required for this image");
  return await dataFile({ fileName, format: null, image: file });
}

function cacheSizes(options: Options): { l2CacheBytes?: number; refcountCacheBytes?: number } {
  const bounded = (bytes: number): number => Math.min(Math.max(bytes, 0), CACHE_BYTES_MAX);
  const l2 = options["l2-cache-size"] ?? options["cache-size"];
  const refcounts = options["refcount-cache-size"];
  return {
    ...(l2 === undefined ? {} : { l2CacheBytes: bounded(l2) }),
    ...(refcounts === undefined ? {} : { refcountCacheBytes: bounded(refcounts) }),
  };
}
