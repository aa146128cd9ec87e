/**
 * How large an image of a disk will be: QEMU's rules (block/qcow2.c, qcow2_measure; raw_measure).
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import type { BlockNode } from "../node.ts";
import { MAX_L1_BYTES } from "../qcow2/format.ts";
import { runSteps, type Steps } from "../steps.ts";
import { STATUS_ALLOCATED, STATUS_DATA, STATUS_ZERO } from "../types.ts";
import { DiskStatus, sectorBytes } from "./chain.ts";

/** Bytes of an L1 entry and of a refcount table entry. */
const TABLE_ENTRY_BYTES = 8;
/** Bytes of a bitmap directory entry before its name. */
const BITMAP_ENTRY_BYTES = 24;

/** What comes out, in bytes. */
export interface ImageMeasure {
  /** What the data that is there now takes. */
  required: number;
  /** What it takes when all of the disk is written. */
  fullyAllocated: number;
  /** What the source's persistent bitmaps take beside; null where they can't come along. */
  bitmaps: number | null;
}

/** The options of the new image that matter. */
export interface Qcow2MeasureOptions {
  /** Bytes of a cluster. */
  clusterBytes: number;
  /** Bits of a refcount. */
  refcountBits: number;
  /** With subclusters. */
  hasExtendedL2: boolean;
  /** Version of the format. */
  version: 2 | 3;
  /** The new image has a backing file. */
  hasBackingFile: boolean;
  /** All of the disk is allocated. */
  isPreallocated: boolean;
}

/** A persistent bitmap of the source. */
export interface MeasuredBitmap {
  /** Its name. */
  name: string;
  /** Bytes that a bit stands for. */
  granularity: number;
}

/** A raw image of so many bytes. */
export function measureRaw(sizeBytes: number): ImageMeasure {
  return { required: sizeBytes, fullyAllocated: sizeBytes, bitmaps: null };
}

/**
 * A qcow2 image of a disk, or of an empty one of a size. Throws a BlockError (EINVAL) where the
 * format can't hold it. `bitmaps`: those of the disk, null where it can't have any.
 */
export async function measureQcow2(
  source: BlockNode | number,
  bitmaps: readonly MeasuredBitmap[] | null,
  options: Qcow2MeasureOptions,
): Promise<ImageMeasure> {
  const { clusterBytes } = options;
  const diskBytes = typeof source === "number" ? source : sectorBytes(source);
  const virtualBytes = roundUp(diskBytes, clusterBytes);
  checkSize(virtualBytes, options);
  let data = 0;
  if (options.isPreallocated) data = virtualBytes;
  else if (typeof source !== "number") {
    data = options.hasBackingFile ? virtualBytes : await runSteps(countData(source, clusterBytes));
  }
  const fullyAllocated = allocatedBytes(virtualBytes, options);
  return {
    required: fullyAllocated - virtualBytes + data,
    fullyAllocated,
    bitmaps: bitmaps === null || options.version < 3
      ? null
      : bitmapBytes(bitmaps, diskBytes, clusterBytes),
  };
}

function l2EntryBytes({ hasExtendedL2 }: Qcow2MeasureOptions): number {
  return hasExtendedL2 ? 16 : 8;
}

function checkSize(virtualBytes: number, options: Qcow2MeasureOptions): void {
  const { clusterBytes } = options;
  const l2Entries = clusterBytes / l2EntryBytes(options);
  const l2Tables = Math.ceil(virtualBytes / clusterBytes / l2Entries);
  if (l2Tables * TABLE_ENTRY_BYTES > MAX_L1_BYTES) {
    throw new BlockError(
      "EINVAL",
      "The image size is too large (try using a larger cluster size)",
    );
  }
}

/** Bytes of the clusters that hold data. */
function* countData(source: BlockNode, clusterBytes: number): Steps<number> {
  const status = new DiskStatus(source);
  const end = sectorBytes(source);
  const wanted = STATUS_DATA | STATUS_ALLOCATED;
  let bytes = 0;
  for (let offset = 0; offset < end;) {
    let { length, flags } = yield* status.at(offset, end - offset);
    if ((flags & STATUS_ZERO) === 0 && (flags & wanted) === wanted) {
      length = roundUp(offset + length, clusterBytes) - offset;
      bytes += offset % clusterBytes + length;
    }
    offset += length;
  }
  return bytes;
}

/** The file of a fully allocated image: qcow2_calc_prealloc_size. */
function allocatedBytes(virtualBytes: number, options: Qcow2MeasureOptions): number {
  const { clusterBytes } = options;
  const l2Bytes = l2EntryBytes(options);
  const l2Entries = roundUp(virtualBytes / clusterBytes, clusterBytes / l2Bytes);
  const l1Entries = roundUp(l2Entries * l2Bytes / clusterBytes, clusterBytes / TABLE_ENTRY_BYTES);
  const tables = clusterBytes + l2Entries * l2Bytes + l1Entries * TABLE_ENTRY_BYTES;
  const clusters = (tables + virtualBytes) / clusterBytes;
  return tables + virtualBytes + refcountBytes(clusters, options);
}

/** Refcount blocks and table count themselves too: qcow2_refcount_metadata_size. */
function refcountBytes(
  clusters: number,
  { clusterBytes, refcountBits }: Qcow2MeasureOptions,
): number {
  const perBlock = clusterBytes * 8 / refcountBits;
  let blocks = 0;
  let table = 0;
  for (let before = -1; before !== blocks + table;) {
    before = blocks + table;
    blocks = Math.ceil((clusters + table + blocks) / perBlock);
    table = Math.ceil(blocks / (clusterBytes / TABLE_ENTRY_BYTES));
  }
  return (blocks + table) * clusterBytes;
}

/** As if every bit were stored: qcow2_get_persistent_dirty_bitmap_size. */
function bitmapBytes(
  bitmaps: readonly MeasuredBitmap[],
  diskBytes: number,
  clusterBytes: number,
): number {
  let bytes = 0;
  let directory = 0;
  for (const { name, granularity } of bitmaps) {
    const clusters = Math.ceil(Math.ceil(Math.ceil(diskBytes / granularity) / 8) / clusterBytes);
    bytes += clusters * clusterBytes + roundUp(clusters * TABLE_ENTRY_BYTES, clusterBytes);
    directory += roundUp(BITMAP_ENTRY_BYTES + new TextEncoder().encode(name).length, 8);
  }
  return bytes + roundUp(directory, clusterBytes);
}

function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}
