/**
 * The header of a qcow2 image: what stands in its first cluster. Parsing checks every field before
 * it sizes or addresses anything; what comes out can be trusted but for the tables it points to,
 * which may lie behind the end of the file. Error texts are QEMU's (block/qcow2.c).
 *
 *   header (72 bytes, from version 3 on 104 and more) | extensions | backing file name
 *
 * @module
 */

import { BlockError, type BlockErrorCode } from "../errors.ts";
import {
  COMPRESSION_TYPES,
  EXTENSION_BACKING_FORMAT,
  EXTENSION_CRYPTO,
  EXTENSION_DATA_FILE,
  EXTENSION_FEATURE_NAMES,
  HEADER_BYTES,
  HEADER_V2_BYTES,
  HEADER_V3_BYTES,
  INCOMPAT_COMPRESSION,
  INCOMPAT_EXTENDED_L2,
  INCOMPAT_MASK,
  MAX_BACKING_NAME_BYTES,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MAX_REFCOUNT_TABLE_BYTES,
  MAX_SNAPSHOTS,
  MIN_CLUSTER_BITS,
  type Qcow2CompressionType,
  QCOW_MAGIC,
  SNAPSHOT_HEADER_BYTES,
  SUBCLUSTERS_PER_CLUSTER,
} from "./format.ts";
import {
  describeIncompatible,
  encodeExtensions,
  featureNameTable,
  type HeaderExtension,
  parseExtensions,
} from "./header_extensions.ts";

/** Extensions that QEMU writes before the feature names. */
const FIRST_EXTENSIONS: readonly number[] = [
  EXTENSION_CRYPTO,
  EXTENSION_BACKING_FORMAT,
  EXTENSION_DATA_FILE,
];
/** Longest name of a backing file's format, as in QEMU. */
const MAX_BACKING_FORMAT_BYTES = 15;

/** A header, parsed and checked. */
export interface Qcow2Header {
  /** 2 or 3. */
  version: 2 | 3;
  /** The backing file as the image names it, null without one. */
  backingFile: string | null;
  /** log2 of the cluster size. */
  clusterBits: number;
  /** The disk's size as it stands there: QEMU rounds it down to sectors. */
  sizeBytes: number;
  /** 0: none, 1: AES, 2: LUKS. */
  cryptMethod: number;
  /** Entries of the active L1 table. */
  l1Size: number;
  /** Where it is. */
  l1TableOffset: number;
  /** Where the refcount table is. */
  refcountTableOffset: number;
  /** Its size. */
  refcountTableClusters: number;
  /** Internal snapshots. */
  snapshotCount: number;
  /** Where their table is. */
  snapshotsOffset: number;
  /** INCOMPAT_*. */
  incompatibleFeatures: bigint;
  /** COMPAT_*, and bits that nobody here knows. */
  compatibleFeatures: bigint;
  /** AUTOCLEAR_*, and bits that nobody here knows. */
  autoclearFeatures: bigint;
  /** log2 of the refcount width in bits: 0 to 6. */
  refcountOrder: number;
  /** Of compressed clusters. */
  compressionType: Qcow2CompressionType;
  /** What follows the fields known here, up to the extensions. */
  unknownFields: Uint8Array;
  /** In their order. */
  extensions: HeaderExtension[];
}

/** What `parseQcow2Header` allows. */
export interface HeaderParseOptions {
  /** For checking and repairing an image: a bad snapshot table or none of refcounts is let pass. */
  isForCheck?: boolean;
}

/** Bytes of the first cluster that `parseQcow2Header` needs, from the first 104; see there. */
export function headerClusterBytes(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < HEADER_V2_BYTES || view.getUint32(0) !== QCOW_MAGIC) {
    throw new BlockError("EINVAL", "Image is not in qcow2 format");
  }
  const version = view.getUint32(4);
  if (version < 2 || version > 3) {
    throw new BlockError("ENOTSUP", `Unsupported qcow2 version ${version}`);
  }
  const clusterBits = view.getUint32(20);
  if (clusterBits < MIN_CLUSTER_BITS || clusterBits > MAX_CLUSTER_BITS) {
    throw new BlockError("EINVAL", `Unsupported cluster size: 2^${clusterBits}`);
  }
  return 2 ** clusterBits;
}

/**
 * Parses a header. `bytes`: the first cluster, or the whole file where that is shorter. Throws a
 * BlockError on what is wrong, contradicts itself or isn't supported.
 */
export function parseQcow2Header(bytes: Uint8Array, options: HeaderParseOptions = {}): Qcow2Header {
  const clusterSize = headerClusterBytes(bytes);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const isV3 = view.getUint32(4) === 3;
  if (isV3 && bytes.length < HEADER_V3_BYTES) fail("Could not read qcow2 header");
  const headerLength = isV3 ? view.getUint32(100) : HEADER_V2_BYTES;
  if (isV3 && headerLength < HEADER_V3_BYTES) fail("qcow2 header too short");
  if (headerLength > clusterSize) fail("qcow2 header exceeds cluster size");
  if (headerLength > bytes.length) fail("Could not read unknown qcow2 header fields");
  const backing = view.getBigUint64(8);
  if (backing > BigInt(clusterSize)) fail("Invalid backing file offset");
  const backingOffset = Number(backing);
  const extensionsEnd = Math.min(backingOffset || clusterSize, bytes.length);
  const parts = () => parseExtensions(bytes.subarray(headerLength, extensionsEnd));
  const incompatibleFeatures = isV3 ? view.getBigUint64(72) : 0n;
  const compressionType = parseCompression(bytes, headerLength, incompatibleFeatures);
  checkFeatures(incompatibleFeatures, parts);
  const header: Qcow2Header = {
    version: isV3 ? 3 : 2,
    backingFile: parseBackingName(bytes, backingOffset, view.getUint32(16)),
    clusterBits: Math.log2(clusterSize),
    sizeBytes: safe(view.getBigUint64(24), "EFBIG", "Image is too big"),
    cryptMethod: view.getUint32(32),
    l1Size: view.getUint32(36),
    l1TableOffset: 0,
    refcountTableOffset: 0,
    refcountTableClusters: view.getUint32(56),
    snapshotCount: view.getUint32(60),
    snapshotsOffset: 0,
    incompatibleFeatures,
    compatibleFeatures: isV3 ? view.getBigUint64(80) : 0n,
    autoclearFeatures: isV3 ? view.getBigUint64(88) : 0n,
    refcountOrder: isV3 ? view.getUint32(96) : 4,
    compressionType,
    unknownFields: bytes.slice(Math.min(HEADER_BYTES, headerLength), headerLength),
    extensions: [],
  };
  checkEncoding(header, clusterSize);
  placeTables(header, view, options);
  header.extensions = parts();
  checkExtensions(header);
  return header;
}

function parseCompression(
  bytes: Uint8Array,
  headerLength: number,
  features: bigint,
): Qcow2CompressionType {
  const number = headerLength > HEADER_V3_BYTES ? bytes[HEADER_V3_BYTES] ?? 0 : 0;
  const type = COMPRESSION_TYPES[number];
  if (type === undefined) {
    throw new BlockError("ENOTSUP", `qcow2: unknown compression type: ${number}`);
  }
  const isSet = (features & INCOMPAT_COMPRESSION) !== 0n;
  if (isSet !== (type !== "zlib")) {
    fail(`qcow2: Compression type incompatible feature bit must ${isSet ? "not " : ""}be set`);
  }
  return type;
}

function checkFeatures(features: bigint, parts: () => HeaderExtension[]): void {
  const unknown = features & ~INCOMPAT_MASK;
  if (unknown === 0n) return;
  let extensions: HeaderExtension[] = [];
  try {
    extensions = parts();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error; // without a table the bits have no names
  }
  throw new BlockError(
    "ENOTSUP",
    `Unsupported qcow2 feature(s): ${describeIncompatible(extensions, unknown)}`,
  );
}

function checkEncoding(header: Qcow2Header, clusterSize: number): void {
  if ((header.incompatibleFeatures & INCOMPAT_EXTENDED_L2) !== 0n) {
    const size = clusterSize / SUBCLUSTERS_PER_CLUSTER;
    if (size < 2 ** MIN_CLUSTER_BITS) fail(`Unsupported subcluster size: ${size}`);
  }
  if (header.refcountOrder > 6) {
    fail("Reference count entry width too large; may not exceed 64 bits");
  }
  if (header.cryptMethod > 2) fail(`Unsupported encryption method ${header.cryptMethod}`);
  if (header.cryptMethod !== 0) {
    const name = header.cryptMethod === 1 ? "AES-CBC" : "LUKS";
    throw new BlockError("ENOTSUP", `${name} encrypted qcow2 images are not supported`);
  }
}

/** Where the tables are: all of them checked as QEMU's qcow2_validate_table does. */
function placeTables(header: Qcow2Header, view: DataView, options: HeaderParseOptions): void {
  const clusterSize = 2 ** header.clusterBits;
  if (header.refcountTableClusters === 0 && !options.isForCheck) {
    fail("Image does not contain a reference count table");
  }
  header.refcountTableOffset = tableOffset(view, 48, clusterSize, {
    name: "Reference count table",
    bytes: header.refcountTableClusters * clusterSize,
    bytesMax: MAX_REFCOUNT_TABLE_BYTES,
  });
  if (options.isForCheck) {
    header.snapshotsOffset = Number(view.getBigUint64(64));
  } else {
    header.snapshotsOffset = tableOffset(view, 64, clusterSize, {
      name: "Snapshot table",
      bytes: header.snapshotCount * SNAPSHOT_HEADER_BYTES,
      bytesMax: MAX_SNAPSHOTS * SNAPSHOT_HEADER_BYTES,
    });
  }
  header.l1TableOffset = tableOffset(view, 40, clusterSize, {
    name: "Active L1 table",
    bytes: header.l1Size * 8,
    bytesMax: MAX_L1_BYTES,
  });
  const isExtended = (header.incompatibleFeatures & INCOMPAT_EXTENDED_L2) !== 0n;
  const l2Bytes = clusterSize * (clusterSize / (isExtended ? 16 : 8));
  const needed = Math.ceil(header.sizeBytes / l2Bytes);
  if (needed > 0x7fffffff) throw new BlockError("EFBIG", "Image is too big");
  if (header.l1Size < needed) fail("L1 table is too small");
}

function tableOffset(
  view: DataView,
  field: number,
  clusterSize: number,
  table: { name: string; bytes: number; bytesMax: number },
): number {
  if (table.bytes > table.bytesMax) {
    throw new BlockError("EFBIG", `${table.name} too large`);
  }
  const offset = safe(view.getBigUint64(field), "EINVAL", `${table.name} offset invalid`);
  if (offset % clusterSize !== 0 || offset > Number.MAX_SAFE_INTEGER - table.bytes) {
    fail(`${table.name} offset invalid`);
  }
  return offset;
}

function parseBackingName(bytes: Uint8Array, offset: number, length: number): string | null {
  if (offset === 0) return null;
  const clusterSize = headerClusterBytes(bytes);
  if (length > Math.min(MAX_BACKING_NAME_BYTES, clusterSize - offset)) {
    fail("Backing file name too long");
  }
  if (offset + length > bytes.length) fail("Could not read backing file name");
  const name = new TextDecoder().decode(bytes.subarray(offset, offset + length));
  return name === "" ? null : name;
}

function checkExtensions(header: Qcow2Header): void {
  for (const { type, data } of header.extensions) {
    if (type === EXTENSION_BACKING_FORMAT && data.length > MAX_BACKING_FORMAT_BYTES) {
      fail(`ERROR: ext_backing_format: len=${data.length} too large (>=16)`);
    }
  }
}

/**
 * The header as it stands in an image: fields, extensions, backing file name. The table of feature
 * names is brought up to date; as in QEMU small clusters, or full ones, have none.
 * Throws a BlockError (ENOSPC) where all the rest does not fit a cluster.
 */
export function encodeQcow2Header(header: Qcow2Header): Uint8Array {
  const isV3 = header.version === 3;
  const name = new TextEncoder().encode(header.backingFile ?? "");
  const length = isV3 ? HEADER_BYTES + header.unknownFields.length : HEADER_V2_BYTES;
  const clusterSize = 2 ** header.clusterBits;
  let extensions = encodeExtensions(orderedExtensions(header, isV3 && clusterSize > 4096));
  if (length + extensions.length + name.length > clusterSize) {
    extensions = encodeExtensions(orderedExtensions(header, false));
  }
  const nameOffset = length + extensions.length;
  if (nameOffset + name.length > clusterSize) {
    throw new BlockError("ENOSPC", "The qcow2 header has no room for that in its cluster");
  }
  const bytes = new Uint8Array(nameOffset + name.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, QCOW_MAGIC);
  view.setUint32(4, header.version);
  if (name.length > 0) view.setBigUint64(8, BigInt(nameOffset));
  view.setUint32(16, name.length);
  view.setUint32(20, header.clusterBits);
  view.setBigUint64(24, BigInt(header.sizeBytes));
  view.setUint32(32, header.cryptMethod);
  view.setUint32(36, header.l1Size);
  view.setBigUint64(40, BigInt(header.l1TableOffset));
  view.setBigUint64(48, BigInt(header.refcountTableOffset));
  view.setUint32(56, header.refcountTableClusters);
  view.setUint32(60, header.snapshotCount);
  view.setBigUint64(64, BigInt(header.snapshotsOffset));
  if (isV3) {
    view.setBigUint64(72, header.incompatibleFeatures);
    view.setBigUint64(80, header.compatibleFeatures);
    view.setBigUint64(88, header.autoclearFeatures);
    view.setUint32(96, header.refcountOrder);
    view.setUint32(100, length);
    bytes[HEADER_V3_BYTES] = COMPRESSION_TYPES.indexOf(header.compressionType);
    bytes.set(header.unknownFields, HEADER_BYTES);
  }
  bytes.set(extensions, length);
  bytes.set(name, nameOffset);
  return bytes;
}

/** The feature names stand behind the backing format, as QEMU writes them. */
function orderedExtensions(header: Qcow2Header, hasNames: boolean): HeaderExtension[] {
  const rest = header.extensions.filter(({ type }) => type !== EXTENSION_FEATURE_NAMES);
  if (!hasNames) return rest;
  const first = rest.filter(({ type }) => FIRST_EXTENSIONS.includes(type));
  return [
    ...first,
    featureNameTable(),
    ...rest.filter(({ type }) => !FIRST_EXTENSIONS.includes(type)),
  ];
}

function safe(value: bigint, code: BlockErrorCode, message: string): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new BlockError(code, message);
  return Number(value);
}

function fail(message: string): never {
  throw new BlockError("EINVAL", message);
}
