/**
 * Changes of L2 entries: what a guest cluster refers to from now, and that what it referred to
 * before is given up. Nothing here waits: entries change in memory at one moment.
 *
 * @module
 */

import type { Qcow2Image } from "./image.ts";
import { HI_COMPRESSED, HI_COPIED, LO_ZERO } from "./format.ts";
import {
  compressedEntry,
  type CompressedExtent,
  compressedExtent,
  entryOffset,
} from "./l2_entry.ts";
import type { Slice } from "./metadata_cache.ts";

/** Clusters that were written and shall be referred to. */
export interface LinkPlan {
  /** Guest offset of the first cluster. */
  guestStart: number;
  /** Host offset of the first cluster. */
  hostStart: number;
  /** All in one slice. */
  clusterCount: number;
  /** The guest range that the host clusters hold: subclusters outside keep their kind. */
  cowStart: number;
  /** Where it ends. */
  cowEnd: number;
}

/** Makes entries refer to host clusters of their own. */
export function linkClusters(image: Qcow2Image, plan: LinkPlan, slice: Slice): void {
  const { clusterSize, isExtended, l2EntryBytes } = image.geometry;
  const { view } = slice;
  const index = entryIndex(image, plan.guestStart);
  for (let count = 0; count < plan.clusterCount; count++) {
    const at = (index + count) * l2EntryBytes;
    const host = plan.hostStart + count * clusterSize;
    const high = view.getUint32(at);
    const low = view.getUint32(at + 4);
    const keepsHost = (high & HI_COMPRESSED) === 0 && entryOffset(high, low) === host;
    if (!keepsHost) giveUp(image, high, low, false);
    view.setUint32(at, (Math.floor(host / 2 ** 32) | HI_COPIED) >>> 0);
    view.setUint32(at + 4, host % 2 ** 32);
    if (!isExtended) continue;
    const start = plan.guestStart + count * clusterSize;
    const bits = subclusterBits(image, plan.cowStart - start, plan.cowEnd - start);
    view.setUint32(at + 8, (view.getUint32(at + 8) & ~bits) >>> 0);
    view.setUint32(at + 12, (view.getUint32(at + 12) | bits) >>> 0);
  }
  image.l2.markDirty(slice);
  image.reliesOn();
}

/** Makes an entry refer to a compressed cluster, whose host clusters were counted for that. */
export function linkCompressed(
  image: Qcow2Image,
  guestStart: number,
  extent: CompressedExtent,
  slice: Slice,
): void {
  const { high, low } = compressedEntry(extent, image.geometry);
  setEntry(image, slice, entryIndex(image, guestStart), { high, low, zeroes: 0, allocated: 0 });
  image.reliesOn();
}

/** All of an L2 entry. The last two only with subclusters. */
export interface EntryValue {
  /** Bits 32 to 63. */
  high: number;
  /** Bits 0 to 31. */
  low: number;
  /** Subclusters that read as zeroes. */
  zeroes: number;
  /** Subclusters that are in the host cluster. */
  allocated: number;
}

/** Sets an entry; host clusters that it no longer refers to are given up. */
export function setEntry(
  image: Qcow2Image,
  slice: Slice,
  index: number,
  value: EntryValue,
  isRequested = false,
): void {
  const { isExtended, l2EntryBytes } = image.geometry;
  const { view } = slice;
  const at = index * l2EntryBytes;
  const high = view.getUint32(at);
  const low = view.getUint32(at + 4);
  const isKept = ((high ^ value.high) & ~HI_COPIED) === 0 &&
    (low & ~LO_ZERO) === (value.low & ~LO_ZERO);
  if (!isKept) giveUp(image, high, low, isRequested);
  view.setUint32(at, value.high);
  view.setUint32(at + 4, value.low);
  if (isExtended) {
    view.setUint32(at + 8, value.zeroes);
    view.setUint32(at + 12, value.allocated);
  }
  image.l2.markDirty(slice);
}

/** Index in its slice of the entry for a guest offset. */
export function entryIndex(image: Qcow2Image, guestOffset: number): number {
  const { clusterSize, sliceEntries } = image.geometry;
  return Math.floor(guestOffset / clusterSize) % sliceEntries;
}

/** The bits of subclusters that the bytes [start, end), counted from a cluster's start, touch. */
export function subclusterBits(image: Qcow2Image, start: number, end: number): number {
  const { subclusterSize, subclusterCount } = image.geometry;
  const first = Math.max(Math.floor(start / subclusterSize), 0);
  const last = Math.min(Math.ceil(end / subclusterSize), subclusterCount);
  if (last <= first) return 0;
  return (2 ** last - 2 ** first) >>> 0;
}

/** An entry no longer refers to its host clusters. */
function giveUp(image: Qcow2Image, high: number, low: number, isRequested: boolean): void {
  const { clusterSize } = image.geometry;
  if ((high & HI_COMPRESSED) !== 0) {
    const { offset, length } = compressedExtent(high, low, image.geometry);
    image.freeLater(offset, length, isRequested);
    return;
  }
  const host = entryOffset(high, low);
  // In a data file every cluster has its place for ever.
  if (host !== 0 && !image.hasDataFile) image.freeLater(host, clusterSize, isRequested);
}
