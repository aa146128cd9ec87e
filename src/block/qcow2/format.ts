/**
 * The numbers of the qcow2 format, named as in its specification (QEMU, docs/interop/qcow2.rst),
 * and QEMU's bounds on what an image may ask for.
 *
 * @module
 */

/** "QFI\xfb", the first four bytes. */
export const QCOW_MAGIC = 0x514649fb;

/** Bytes of the version 2 header. */
export const HEADER_V2_BYTES = 72;
/** Bytes that a version 3 header has at least. */
export const HEADER_V3_BYTES = 104;
/** Bytes of the header as QEMU writes it: with the compression type and padding. */
export const HEADER_BYTES = 112;

/** log2 of the smallest cluster. */
export const MIN_CLUSTER_BITS = 9;
/** log2 of the largest cluster. */
export const MAX_CLUSTER_BITS = 21;
/** Subclusters of a cluster, with extended L2 entries. */
export const SUBCLUSTERS_PER_CLUSTER = 32;

/** QEMU's bounds: a level 1 table, a reference count table. */
export const MAX_L1_BYTES = 32 * 1024 * 1024;
/** See MAX_L1_BYTES. */
export const MAX_REFCOUNT_TABLE_BYTES = 8 * 1024 * 1024;
/** Internal snapshots of an image. */
export const MAX_SNAPSHOTS = 65536;
/** Bytes of a snapshot's fixed fields, the least that it takes in the snapshot table. */
export const SNAPSHOT_HEADER_BYTES = 40;
/** Of a backing file's name. */
export const MAX_BACKING_NAME_BYTES = 1023;

/** Incompatible: refcounts were not written and have to be computed anew. */
export const INCOMPAT_DIRTY = 1n << 0n;
/** Incompatible: metadata is known to be wrong. */
export const INCOMPAT_CORRUPT = 1n << 1n;
/** Incompatible: guest data is in another file. */
export const INCOMPAT_DATA_FILE = 1n << 2n;
/** Incompatible: the compression type is not zlib. */
export const INCOMPAT_COMPRESSION = 1n << 3n;
/** Incompatible: L2 entries have subclusters. */
export const INCOMPAT_EXTENDED_L2 = 1n << 4n;
/** All that is understood. */
export const INCOMPAT_MASK = 0x1fn;
/** Compatible: refcounts may be written late. */
export const COMPAT_LAZY_REFCOUNTS = 1n << 0n;
/** Autoclear: the bitmaps extension is consistent with the image. */
export const AUTOCLEAR_BITMAPS = 1n << 0n;
/** Autoclear: the data file can be read as a raw image. */
export const AUTOCLEAR_DATA_FILE_RAW = 1n << 1n;
/** All that is understood. */
export const AUTOCLEAR_MASK = 0x3n;

/** Header extension: the end of them. */
export const EXTENSION_END = 0;
/** Header extension: the backing file's format. */
export const EXTENSION_BACKING_FORMAT = 0xe2792aca;
/** Header extension: names of feature bits. */
export const EXTENSION_FEATURE_NAMES = 0x6803f857;
/** Header extension: LUKS header. */
export const EXTENSION_CRYPTO = 0x0537be77;
/** Header extension: persistent dirty bitmaps. */
export const EXTENSION_BITMAPS = 0x23852875;
/** Header extension: the data file's name. */
export const EXTENSION_DATA_FILE = 0x44415441;

/** L1 and L2 entries, upper half: refcount is exactly one. */
export const HI_COPIED = 0x80000000;
/** L2 entries, upper half: a compressed cluster. */
export const HI_COMPRESSED = 0x40000000;
/** L1 and L2 entries, upper half: bits 32 to 55 of the offset. */
export const HI_OFFSET_MASK = 0x00ffffff;
/** L1 and L2 entries, lower half: bits 9 to 31 of the offset. */
export const LO_OFFSET_MASK = 0xfffffe00;
/** L2 entries, lower half: reads as zeroes (version 3, not with subclusters). */
export const LO_ZERO = 1;

/** Compression type of compressed clusters. */
export type Qcow2CompressionType = "zlib" | "zstd";

/** Compression types by their number in the header. */
export const COMPRESSION_TYPES: readonly Qcow2CompressionType[] = ["zlib", "zstd"];

/** Names of feature bits as QEMU writes them: kind (incompatible, compatible, autoclear), bit. */
export const FEATURE_NAMES: readonly (readonly [kind: number, bit: number, name: string])[] = [
  [0, 0, "dirty bit"],
  [0, 1, "corrupt bit"],
  [0, 2, "external data file"],
  [0, 3, "compression type"],
  [0, 4, "extended L2 entries"],
  [1, 0, "lazy refcounts"],
  [2, 0, "bitmaps"],
  [2, 1, "raw external data"],
];
