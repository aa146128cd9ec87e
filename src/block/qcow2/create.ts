/**
 * Makes a qcow2 image: the same header and the same places of the tables as QEMU (block/qcow2.c,
 * qcow2_co_create, whose error texts these are).
 *
 *   0: header | 1: refcount table | 2: refcount block | 3: L1 table | preallocated clusters
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import type { BlockNode } from "../node.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import type { MaybePromise } from "../types.ts";
import {
  AUTOCLEAR_DATA_FILE_RAW,
  COMPAT_LAZY_REFCOUNTS,
  EXTENSION_BACKING_FORMAT,
  EXTENSION_DATA_FILE,
  INCOMPAT_COMPRESSION,
  INCOMPAT_DATA_FILE,
  INCOMPAT_EXTENDED_L2,
  MAX_BACKING_NAME_BYTES,
  MAX_CLUSTER_BITS,
  MIN_CLUSTER_BITS,
  type Qcow2CompressionType,
  SUBCLUSTERS_PER_CLUSTER,
} from "./format.ts";
import { encodeQcow2Header, type Qcow2Header } from "./header.ts";
import type { HeaderExtension } from "./header_extensions.ts";
import { Qcow2Image } from "./image.ts";
import { ImageFile } from "./image_file.ts";
import type { PreallocationMode } from "./preallocate.ts";
import { setCount } from "./refcount_entry.ts";
import { resizeImage } from "./resize.ts";

/** What an image is made of. What is left out is as QEMU does it. */
export interface Qcow2CreateOptions {
  /** The disk's size, a multiple of 512. */
  sizeBytes: number;
  /** 2 (compat=0.10) or 3 (compat=1.1), which is the default. */
  version?: 2 | 3;
  /** 512 to 2 MiB, a power of two; 64 KiB unless given. */
  clusterBytes?: number;
  /** Written into the image as it is. Nobody opens it. */
  backingFile?: string | null;
  /** The backing file's format. */
  backingFormat?: string | null;
  /** The name, as the image keeps it, of the file where data shall be, if not in the image. */
  dataFile?: string | null;
  /** That file. */
  dataFileNode?: BlockNode | null;
  /** It is to be a raw image of the disk at any time. */
  isDataFileRaw?: boolean;
  /** L2 entries with subclusters. */
  hasExtendedL2?: boolean;
  /** "off" unless given. */
  preallocation?: PreallocationMode;
  /** Refcounts may be written late. */
  hasLazyRefcounts?: boolean;
  /** 1, 2, 4, 8, 16 (the default), 32 or 64. */
  refcountBits?: number;
  /** Of compressed clusters, "zlib" unless given. */
  compressionType?: Qcow2CompressionType;
}

const DEFAULT_CLUSTER_BYTES = 65536;
const DEFAULT_REFCOUNT_BITS = 16;
const NEEDS_V3 = "compatibility level 1.1 and above (use version=v3 or greater)";

/** Makes an image of whatever `file` holds. Throws a BlockError on options that don't go along. */
export function createQcow2(file: BlockNode, options: Qcow2CreateOptions): MaybePromise<void> {
  checkCreateOptions(options);
  return runSteps(createImage(file, options));
}

function* createImage(file: BlockNode, options: Qcow2CreateOptions): Steps<void> {
  const header = firstHeader(options);
  yield* empty(file);
  const bytes = encodeQcow2Header(header);
  yield* writeFirstTables(file, header, bytes);
  const dataFile = options.dataFileNode ?? null;
  const image = new Qcow2Image({
    file: { node: file },
    dataFile: dataFile === null ? undefined : { node: dataFile },
    header,
    headerBytes: bytes,
    isReadOnly: false,
  });
  yield* image.load();
  yield* resizeImage(image, options.sizeBytes, options.preallocation ?? "off");
  yield* image.finish();
}

/** Whatever was there goes, so that new clusters are known to read as zeroes. */
function* empty(file: BlockNode): Steps<void> {
  try {
    yield* settle(file.resize(0));
  } catch (error) {
    if (!(error instanceof BlockError) || error.code !== "ENOTSUP") throw error;
  }
}

/** An image of a disk of no size. */
function firstHeader(options: Qcow2CreateOptions): Qcow2Header {
  const clusterBytes = options.clusterBytes ?? DEFAULT_CLUSTER_BYTES;
  const compressionType = options.compressionType ?? "zlib";
  const { hasExtendedL2, hasLazyRefcounts, isDataFileRaw } = options;
  let incompatibleFeatures = 0n;
  if (options.dataFileNode) incompatibleFeatures |= INCOMPAT_DATA_FILE;
  if (compressionType !== "zlib") incompatibleFeatures |= INCOMPAT_COMPRESSION;
  if (hasExtendedL2) incompatibleFeatures |= INCOMPAT_EXTENDED_L2;
  return {
    version: options.version ?? 3,
    backingFile: options.backingFile || null,
    clusterBits: Math.log2(clusterBytes),
    sizeBytes: 0,
    cryptMethod: 0,
    l1Size: 0,
    l1TableOffset: 0,
    refcountTableOffset: clusterBytes,
    refcountTableClusters: 1,
    snapshotCount: 0,
    snapshotsOffset: 0,
    incompatibleFeatures,
    compatibleFeatures: hasLazyRefcounts ? COMPAT_LAZY_REFCOUNTS : 0n,
    autoclearFeatures: isDataFileRaw ? AUTOCLEAR_DATA_FILE_RAW : 0n,
    refcountOrder: Math.log2(options.refcountBits ?? DEFAULT_REFCOUNT_BITS),
    compressionType,
    unknownFields: new Uint8Array(0),
    extensions: firstExtensions(options),
  };
}

function firstExtensions(options: Qcow2CreateOptions): HeaderExtension[] {
  const text = new TextEncoder();
  const extensions: HeaderExtension[] = [];
  if (options.dataFile) {
    extensions.push({ type: EXTENSION_DATA_FILE, data: text.encode(options.dataFile) });
  }
  if (options.backingFormat) {
    extensions.push({ type: EXTENSION_BACKING_FORMAT, data: text.encode(options.backingFormat) });
  }
  return extensions;
}

/** Header, refcount table and a refcount block for these three. */
function* writeFirstTables(file: BlockNode, header: Qcow2Header, bytes: Uint8Array): Steps<void> {
  const clusterSize = 2 ** header.clusterBits;
  const tables = new Uint8Array(3 * clusterSize);
  const view = new DataView(tables.buffer);
  tables.set(bytes);
  view.setBigUint64(clusterSize, BigInt(2 * clusterSize));
  const block = new DataView(tables.buffer, 2 * clusterSize);
  for (let index = 0; index < 3; index++) setCount(block, index, header.refcountOrder, 1);
  const image = new ImageFile({ node: file });
  yield* image.write(0, tables);
  yield* image.trim();
}

/** Throws a BlockError on options that are wrong or don't go along with each other. */
export function checkCreateOptions(options: Qcow2CreateOptions): void {
  const isV2 = options.version === 2;
  if (options.sizeBytes % 512 !== 0) fail("Image size must be a multiple of 512 bytes");
  checkClusterSize(options);
  checkRefcounts(options);
  if (options.hasLazyRefcounts && isV2) fail(`Lazy refcounts only supported with ${NEEDS_V3}`);
  if ((options.compressionType ?? "zlib") !== "zlib" && isV2) {
    fail(`Non-zlib compression type is only supported with ${NEEDS_V3}`);
  }
  if (options.backingFormat && !options.backingFile) {
    fail("Backing format cannot be used without backing file");
  }
  if (new TextEncoder().encode(options.backingFile ?? "").length > MAX_BACKING_NAME_BYTES) {
    fail("Backing file name too long");
  }
  if (options.backingFile && (options.preallocation ?? "off") !== "off" && !options.hasExtendedL2) {
    fail(
      "Backing file and preallocation can only be used at the same time if extended_l2 is enabled",
    );
  }
  if (options.dataFileNode && isV2) fail(`External data files are only supported with ${NEEDS_V3}`);
  if (options.isDataFileRaw && !options.dataFileNode) fail("data-file-raw requires data-file");
  if (options.isDataFileRaw && options.backingFile) {
    fail("Backing file and data-file-raw cannot be used at the same time");
  }
}

function checkClusterSize({ clusterBytes, hasExtendedL2, version }: Qcow2CreateOptions): void {
  const size = clusterBytes ?? DEFAULT_CLUSTER_BYTES;
  const isValid = Number.isInteger(Math.log2(size)) && size >= 2 ** MIN_CLUSTER_BITS &&
    size <= 2 ** MAX_CLUSTER_BITS;
  if (!isValid) fail("Cluster size must be a power of two between 512 and 2048k");
  if (!hasExtendedL2) return;
  const least = SUBCLUSTERS_PER_CLUSTER * 2 ** MIN_CLUSTER_BITS;
  if (version === 2) fail(`Extended L2 entries are only supported with ${NEEDS_V3}`);
  if (size < least) {
    fail(`Extended L2 entries are only supported with cluster sizes of at least ${least} bytes`);
  }
}

function checkRefcounts(
  { refcountBits = DEFAULT_REFCOUNT_BITS, version }: Qcow2CreateOptions,
): void {
  if (!Number.isInteger(Math.log2(refcountBits)) || refcountBits > 64) {
    fail("Refcount width must be a power of two and may not exceed 64 bits");
  }
  if (version === 2 && refcountBits !== DEFAULT_REFCOUNT_BITS) {
    fail(
      "Different refcount widths than 16 bits require compatibility level 1.1 or above " +
        "(use version=v3 or greater)",
    );
  }
}

function fail(message: string): never {
  throw new BlockError("EINVAL", message);
}
