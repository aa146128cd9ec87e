/**
 * The bitmaps extension of a qcow2 image as bytes: the header extension, the directory that it
 * leads to, and the tables that the directory's entries lead to. Bounds and error texts are QEMU's
 * (block/qcow2-bitmap.c).
 *
 *   header extension --> directory: entry, entry, ...
 *                                     \--> table: one number for each cluster of bits
 *                                             \--> cluster of bits, or all clear, or all set
 *
 * @module
 */

import { BlockError } from "../errors.ts";

/** Bitmaps of one image. */
export const MAX_BITMAPS = 65535;
/** Bytes of the directory. */
export const MAX_DIRECTORY_BYTES = 1024 * MAX_BITMAPS;
/** log2 of the granularity. */
export const MIN_GRANULARITY_BITS = 9;
/** See MIN_GRANULARITY_BITS. */
export const MAX_GRANULARITY_BITS = 31;
/** Of a name, in bytes. */
export const MAX_BITMAP_NAME_BYTES = 1023;
/** Entries of a table. */
const MAX_TABLE_ENTRIES = 0x8000000;
/** Clusters of bits of one bitmap together, in bytes. */
const MAX_BITMAP_BYTES = 0x20000000;

/** Entry flag: changes may be missing, since somebody has or had the image open. */
export const BITMAP_IN_USE = 1;
/** Entry flag: it records as soon as the image is open. */
export const BITMAP_AUTO = 2;
const RESERVED_FLAGS = 0xfffffffc;
const TYPE_DIRTY_TRACKING = 1;

const EXTENSION_BYTES = 24;
const ENTRY_BYTES = 24;

/** Table entry: all bits are set, where it has no cluster. */
export const TABLE_ALL_ONES = 1n;
const TABLE_OFFSET_MASK = 0x00fffffffffffe00n;

/** What the header extension says. */
export interface BitmapExtension {
  /** Entries of the directory. */
  count: number;
  /** Where the directory is. */
  directoryOffset: number;
  /** Its length. */
  directoryBytes: number;
}

/** An entry of the directory. */
export interface DirectoryEntry {
  /** For people and programs; `nameBytes` as text. */
  name: string;
  /** As it stands in the image, whatever that is. */
  nameBytes: Uint8Array;
  /** Where the table is. */
  tableOffset: number;
  /** Its entries: one for each cluster of bits. */
  tableSize: number;
  /** BITMAP_* */
  flags: number;
  /** log2 of the granularity. */
  granularityBits: number;
}

/** A table entry, decoded. */
export type BitmapTableEntry = { offset: number } | "zeroes" | "ones" | "invalid";

/** The extension's content, checked. */
export function parseBitmapExtension(data: Uint8Array, clusterSize: number): BitmapExtension {
  if (data.length !== EXTENSION_BYTES) fail("bitmaps_ext: Invalid extension length");
  const numbers = view(data);
  const count = numbers.getUint32(0);
  if (numbers.getUint32(4) !== 0) fail("bitmaps_ext: Reserved field is not zero");
  if (count > MAX_BITMAPS) {
    fail(
      `bitmaps_ext: image has ${count} bitmaps, exceeding the QEMU supported maximum of ` +
        `${MAX_BITMAPS}`,
    );
  }
  if (count === 0) fail("found bitmaps extension with zero bitmaps");
  const offset = numbers.getBigUint64(16);
  if (offset % BigInt(clusterSize) !== 0n || offset > Number.MAX_SAFE_INTEGER) {
    fail("bitmaps_ext: invalid bitmap directory offset");
  }
  const bytes = numbers.getBigUint64(8);
  if (bytes > MAX_DIRECTORY_BYTES) {
    fail(
      `bitmaps_ext: bitmap directory size (${bytes}) exceeds the maximum supported size ` +
        `(${MAX_DIRECTORY_BYTES})`,
    );
  }
  return { count, directoryOffset: Number(offset), directoryBytes: Number(bytes) };
}

/** The extension's content. */
export function encodeBitmapExtension(extension: BitmapExtension): Uint8Array {
  const data = new Uint8Array(EXTENSION_BYTES);
  const numbers = view(data);
  numbers.setUint32(0, extension.count);
  numbers.setBigUint64(8, BigInt(extension.directoryBytes));
  numbers.setBigUint64(16, BigInt(extension.directoryOffset));
  return data;
}

/** The directory's entries, checked. `count`: how many there must be. */
export function parseDirectory(
  bytes: Uint8Array,
  count: number,
  image: { clusterSize: number; sizeBytes: number },
): DirectoryEntry[] {
  const numbers = view(bytes);
  const entries = new Map<string, DirectoryEntry>();
  let seen = 0;
  for (let at = 0; at < bytes.length;) {
    if (at + ENTRY_BYTES > bytes.length) fail("Broken bitmap directory");
    if (++seen > count) fail("More bitmaps found than specified in header extension");
    const nameBytes = numbers.getUint16(at + 18);
    const extraBytes = numbers.getUint32(at + 20);
    const end = at + entryBytes(nameBytes + extraBytes);
    if (end > bytes.length) fail("Broken bitmap directory");
    if (extraBytes !== 0) fail("Bitmap extra data is not supported");
    const name = bytes.slice(at + ENTRY_BYTES, at + ENTRY_BYTES + nameBytes);
    const entry: DirectoryEntry = {
      name: new TextDecoder().decode(name),
      nameBytes: name,
      tableOffset: Number(numbers.getBigUint64(at)),
      tableSize: numbers.getUint32(at + 8),
      flags: numbers.getUint32(at + 12),
      granularityBits: numbers.getUint8(at + 17),
    };
    const isTracking = numbers.getUint8(at + 16) === TYPE_DIRTY_TRACKING;
    if (
      !isTracking || nameBytes === 0 || nameBytes > MAX_BITMAP_NAME_BYTES ||
      !isSane(entry, image)
    ) {
      fail(`Bitmap '${entry.name}' doesn't satisfy the constraints`);
    }
    if (entries.has(entry.name)) fail(`Bitmap already exists: ${entry.name}`);
    entries.set(entry.name, entry);
    at = end;
  }
  if (seen !== count) fail("Less bitmaps found than specified in header extension");
  return [...entries.values()];
}

function isSane(
  entry: DirectoryEntry,
  { clusterSize, sizeBytes }: { clusterSize: number; sizeBytes: number },
): boolean {
  if (
    !Number.isSafeInteger(entry.tableOffset) || entry.tableOffset === 0 ||
    entry.tableOffset % clusterSize !== 0 ||
    entry.tableSize === 0 || entry.tableSize > MAX_TABLE_ENTRIES ||
    entry.granularityBits < MIN_GRANULARITY_BITS ||
    entry.granularityBits > MAX_GRANULARITY_BITS || (entry.flags & RESERVED_FLAGS) !== 0
  ) return false;
  const byteCount = entry.tableSize * clusterSize;
  if (byteCount > MAX_BITMAP_BYTES) return false;
  return (entry.flags & BITMAP_IN_USE) !== 0 ||
    sizeBytes <= byteCount * 8 * 2 ** entry.granularityBits;
}

/** The directory as it stands in an image. */
export function encodeDirectory(entries: readonly DirectoryEntry[]): Uint8Array {
  let length = 0;
  for (const { nameBytes } of entries) length += entryBytes(nameBytes.length);
  const bytes = new Uint8Array(length);
  const numbers = view(bytes);
  let at = 0;
  for (const entry of entries) {
    numbers.setBigUint64(at, BigInt(entry.tableOffset));
    numbers.setUint32(at + 8, entry.tableSize);
    numbers.setUint32(at + 12, entry.flags);
    numbers.setUint8(at + 16, TYPE_DIRTY_TRACKING);
    numbers.setUint8(at + 17, entry.granularityBits);
    numbers.setUint16(at + 18, entry.nameBytes.length);
    bytes.set(entry.nameBytes, at + ENTRY_BYTES);
    at += entryBytes(entry.nameBytes.length);
  }
  return bytes;
}

/** How long the directory of bitmaps with these names is. */
export function directoryBytes(names: readonly string[]): number {
  const encoder = new TextEncoder();
  return names.reduce((sum, name) => sum + entryBytes(encoder.encode(name).length), 0);
}

/** A table entry as it stands in an image. */
export function parseTableEntry(entry: bigint, clusterSize: number): BitmapTableEntry {
  const offset = entry & TABLE_OFFSET_MASK;
  if (offset !== 0n) {
    const isValid = (entry & ~TABLE_OFFSET_MASK) === 0n && offset % BigInt(clusterSize) === 0n;
    return isValid ? { offset: Number(offset) } : "invalid";
  }
  if (entry === TABLE_ALL_ONES) return "ones";
  return entry === 0n ? "zeroes" : "invalid";
}

/** Throws (ENOTSUP) where the format has no room for a bitmap. */
export function checkBitmapConstraints(
  bitmap: { name: string; granularity: number; sizeBytes: number },
  clusterSize: number,
): void {
  const { granularity, sizeBytes } = bitmap;
  const refuse = (message: string): never => {
    throw new BlockError("ENOTSUP", message);
  };
  if (new TextEncoder().encode(bitmap.name).length > MAX_BITMAP_NAME_BYTES) {
    refuse(`Name length exceeds maximum (${MAX_BITMAP_NAME_BYTES} characters)`);
  }
  if (granularity < 2 ** MIN_GRANULARITY_BITS) {
    refuse(`Granularity is under minimum (${2 ** MIN_GRANULARITY_BITS} bytes)`);
  }
  if (granularity > 2 ** MAX_GRANULARITY_BITS) {
    refuse(`Granularity exceeds maximum (${2 ** MAX_GRANULARITY_BITS} bytes)`);
  }
  const byteCount = Math.ceil(Math.ceil(sizeBytes / granularity) / 8);
  if (byteCount > MAX_BITMAP_BYTES || byteCount > MAX_TABLE_ENTRIES * clusterSize) {
    refuse("Too much space will be occupied by the bitmap. Use larger granularity");
  }
}

function entryBytes(variableBytes: number): number {
  return Math.ceil((ENTRY_BYTES + variableBytes) / 8) * 8;
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function fail(message: string): never {
  throw new BlockError("EINVAL", message);
}
