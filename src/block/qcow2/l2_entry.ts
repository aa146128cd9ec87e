/**
 * What L2 entries say (qcow2 specification, "Level 2 tables"): the kind of a guest cluster, or of a
 * subcluster, and runs of the same kind.
 *
 *   standard:  63 COPIED | 62 compressed | 55..9 host offset | 0 reads as zeroes
 *   extended:  the same without bit 0, then 32 bits "reads as zeroes", 32 bits "is allocated"
 *
 * @module
 */

import { HI_COMPRESSED, HI_COPIED, HI_OFFSET_MASK, LO_ZERO } from "./format.ts";
import type { Geometry } from "./geometry.ts";
import type { Slice } from "./metadata_cache.ts";

/** The kind of a cluster or subcluster. */
export const CLUSTER = {
  /** Read from the backing file; no host cluster. */
  unallocated: 0,
  /** Reads as zeroes; no host cluster. */
  zeroPlain: 1,
  /** Reads as zeroes; its host cluster holds whatever. */
  zeroAllocated: 2,
  /** A subcluster read from the backing file, in a cluster that has a host cluster. */
  unallocatedHosted: 3,
  /** Data in its host cluster. */
  normal: 4,
  /** Compressed data. */
  compressed: 5,
  /** An entry that makes no sense. */
  invalid: 6,
} as const;

/** One of CLUSTER. */
export type ClusterKind = typeof CLUSTER[keyof typeof CLUSTER];

/** A run of guest bytes of one kind that lie one after the other in the host file too. */
export class ClusterRun {
  /** Its kind. */
  kind: ClusterKind = CLUSTER.unallocated;
  /** Bytes from the guest offset asked for on. */
  length = 0;
  /** Where that offset is in the host file: for kinds that have a host cluster. */
  hostOffset = 0;
  /** The host clusters belong to this guest cluster alone. */
  isCopied = false;
  /** The halves of the first entry. */
  high = 0;
  /** See `high`. */
  low = 0;
}

/** Where a compressed cluster is. */
export interface CompressedExtent {
  /** First byte. */
  offset: number;
  /** Bytes, at most: up to the end of the last sector. */
  length: number;
}

/** What a compressed entry says. */
export function compressedExtent(high: number, low: number, geometry: Geometry): CompressedExtent {
  // The sector count is in the topmost bits below bit 62; below it is the offset.
  const bits = 62 - geometry.compressedSectorBits - 32;
  const offset = (high & (2 ** bits - 1)) * 2 ** 32 + low;
  const sectors = (high & ~(HI_COPIED | HI_COMPRESSED)) >>> bits;
  return { offset, length: (sectors + 1) * 512 - offset % 512 };
}

/** The halves of an entry for a compressed cluster. */
export function compressedEntry(
  { offset, length }: CompressedExtent,
  geometry: Geometry,
): { high: number; low: number } {
  const bits = 62 - geometry.compressedSectorBits - 32;
  const sectors = Math.floor((offset + length - 1) / 512) - Math.floor(offset / 512);
  const high = (HI_COMPRESSED | sectors * 2 ** bits | Math.floor(offset / 2 ** 32)) >>> 0;
  return { high, low: offset % 2 ** 32 };
}

/** The host offset in an entry that is not compressed. */
export function entryOffset(high: number, low: number): number {
  return (high & HI_OFFSET_MASK) * 2 ** 32 + low - (low & 0x1ff);
}

/** The kind of a standard entry. `hasDataFile`: then offset 0 is one like any other. */
function standardKind(high: number, low: number, hasDataFile: boolean): ClusterKind {
  if ((high & HI_COMPRESSED) !== 0) return CLUSTER.compressed;
  const hasHost = (high & HI_OFFSET_MASK) !== 0 || low >= 512 ||
    hasDataFile && (high & HI_COPIED) !== 0;
  if ((low & LO_ZERO) !== 0) return hasHost ? CLUSTER.zeroAllocated : CLUSTER.zeroPlain;
  return hasHost ? CLUSTER.normal : CLUSTER.unallocated;
}

/** What kind of entries an image has, beside its geometry. */
export interface EntryFormat {
  /** Sizes. */
  readonly geometry: Geometry;
  /** Data is in another file. */
  readonly hasDataFile: boolean;
}

/**
 * Finds the run that starts at `guestOffset`, at most `lengthMax` bytes of it, within one slice,
 * and writes it to `run`.
 */
export function findRun(
  format: EntryFormat,
  slice: Slice,
  guestOffset: number,
  lengthMax: number,
  run: ClusterRun,
): void {
  if (format.geometry.isExtended) findExtendedRun(format, slice, guestOffset, lengthMax, run);
  else findStandardRun(format, slice, guestOffset, lengthMax, run);
}

function findStandardRun(
  { geometry, hasDataFile }: EntryFormat,
  slice: Slice,
  guestOffset: number,
  lengthMax: number,
  run: ClusterRun,
): void {
  const { clusterSize, sliceEntries } = geometry;
  const { view } = slice;
  const inCluster = guestOffset & (clusterSize - 1);
  let index = (guestOffset - inCluster) / clusterSize % sliceEntries;
  const high = view.getUint32(index * 8);
  const low = view.getUint32(index * 8 + 4);
  const kind = standardKind(high, low, hasDataFile);
  const isCopied = (high & HI_COPIED) !== 0;
  const hasHost = kind === CLUSTER.normal || kind === CLUSTER.zeroAllocated;
  const host = hasHost ? entryOffset(high, low) : 0;
  let length = clusterSize - inCluster;
  if (kind !== CLUSTER.compressed) {
    while (length < lengthMax && ++index < sliceEntries) {
      const nextHigh = view.getUint32(index * 8);
      const nextLow = view.getUint32(index * 8 + 4);
      if (standardKind(nextHigh, nextLow, hasDataFile) !== kind) break;
      if (hasHost) {
        if (entryOffset(nextHigh, nextLow) !== host + inCluster + length) break;
        if ((nextHigh & HI_COPIED) !== 0 !== isCopied) break;
      }
      length += clusterSize;
    }
  }
  run.kind = kind;
  run.length = length < lengthMax ? length : lengthMax;
  run.hostOffset = host + inCluster;
  run.isCopied = isCopied;
  run.high = high;
  run.low = low;
}

/** The kind of one subcluster, whose bits in the two bitmaps are given. */
function subclusterKind(hasHost: boolean, isZero: boolean, isAllocated: boolean): ClusterKind {
  if (isZero && isAllocated) return CLUSTER.invalid;
  if (isZero) return hasHost ? CLUSTER.zeroAllocated : CLUSTER.zeroPlain;
  if (isAllocated) return hasHost ? CLUSTER.normal : CLUSTER.invalid;
  return hasHost ? CLUSTER.unallocatedHosted : CLUSTER.unallocated;
}

function findExtendedRun(
  { geometry, hasDataFile }: EntryFormat,
  slice: Slice,
  guestOffset: number,
  lengthMax: number,
  run: ClusterRun,
): void {
  const { clusterSize, sliceEntries, subclusterSize, subclusterCount } = geometry;
  const { view } = slice;
  const inCluster = guestOffset & (clusterSize - 1);
  let index = (guestOffset - inCluster) / clusterSize % sliceEntries;
  let sub = Math.floor(inCluster / subclusterSize);
  run.high = view.getUint32(index * 16);
  run.low = view.getUint32(index * 16 + 4);
  run.isCopied = (run.high & HI_COPIED) !== 0;
  if ((run.high & HI_COMPRESSED) !== 0) {
    const isPlain = view.getUint32(index * 16 + 8) === 0 && view.getUint32(index * 16 + 12) === 0;
    run.kind = isPlain ? CLUSTER.compressed : CLUSTER.invalid;
    run.length = Math.min(clusterSize - inCluster, lengthMax);
    run.hostOffset = 0;
    return;
  }
  const first = entryOffset(run.high, run.low);
  const hasHost = first !== 0 || hasDataFile && run.isCopied;
  let kind: ClusterKind | null = null;
  let length = -(inCluster & (subclusterSize - 1));
  for (;;) {
    const zeroes = view.getUint32(index * 16 + 8);
    const allocated = view.getUint32(index * 16 + 12);
    for (; sub < subclusterCount && length < lengthMax; sub++) {
      const next = subclusterKind(
        hasHost,
        (zeroes >>> sub & 1) !== 0,
        (allocated >>> sub & 1) !== 0,
      );
      kind ??= next;
      if (next !== kind) break;
      length += subclusterSize;
    }
    if (sub < subclusterCount || length >= lengthMax || ++index >= sliceEntries) break;
    const high = view.getUint32(index * 16);
    const low = view.getUint32(index * 16 + 4);
    if ((high & HI_COMPRESSED) !== 0 || (high & HI_COPIED) !== 0 !== run.isCopied) break;
    const offset = entryOffset(high, low);
    if (hasHost ? offset !== first + inCluster + length : offset !== 0) break;
    sub = 0;
  }
  run.kind = kind ?? CLUSTER.unallocated;
  run.length = Math.min(length, lengthMax);
  run.hostOffset = hasHost ? first + inCluster : 0;
}
