/**
 * Write-zeroes and discards: changes of L2 entries alone, for whole clusters or subclusters. What
 * is left at the ends of a write-zeroes is zeroed as well where the rest of its cluster reads as
 * zeroes, else written; a discard leaves it alone.
 *
 * The kinds that come out are QEMU's (block/qcow2-cluster.c, zero_in_l2_slice, discard_in_l2_slice):
 *
 *   write-zeroes           host clusters stay:      zero, allocated    (compressed ones go)
 *   with REQ_MAY_UNMAP     host clusters are freed: zero
 *   in version 2           as a discard; written where there is a backing file
 *   discard                host clusters are freed: zero; unallocated in version 2, and what was
 *                          unallocated without a backing file stays so
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import { settle, type Steps } from "../steps.ts";
import { REQ_MAY_UNMAP, REQ_NO_FALLBACK } from "../types.ts";
import { zeroVector } from "../zeroes.ts";
import { HI_COMPRESSED, LO_ZERO } from "./format.ts";
import type { Qcow2Image } from "./image.ts";
import { CLUSTER, findRun } from "./l2_entry.ts";
import { entryIndex, setEntry, subclusterBits } from "./link.ts";
import { checkRun, checkWritable, isSound } from "./lookup.ts";
import type { Slice } from "./metadata_cache.ts";
import { holdRange, readsAsZeroes, waitForGuestWrites, writeImage } from "./write.ts";

const ALL_SUBCLUSTERS = 0xffffffff;
/** After so many pieces of tables the event loop gets a turn. */
const SLICES_PER_TURN = 64;
/** One write of zeroes. */
const PIECE_BYTES = 1024 * 1024;

/** Makes a range read as zeroes. */
export function* zeroImage(
  image: Qcow2Image,
  offset: number,
  length: number,
  flags: number,
): Steps<void> {
  checkWritable(image);
  const { subclusterSize, version } = image.geometry;
  const end = offset + length;
  if (version === 2 && image.backing() !== null) {
    return yield* writeZeroes(image, offset, end, flags);
  }
  const start = Math.min(Math.ceil(offset / subclusterSize) * subclusterSize, end);
  // The disk's end counts as one of a subcluster.
  const stop = end === image.guestSize ? end : Math.max(end - end % subclusterSize, start);
  if (start > offset) yield* zeroPart(image, offset, start, flags);
  if (stop > start) yield* zeroWhole(image, start, stop, flags);
  if (end > stop && stop >= start) yield* zeroPart(image, stop, end, flags);
  if (image.isCommitDue) yield* image.lock.hold(() => image.commit());
}

/** A range within one subcluster. Nobody may write to the rest while that is looked at. */
function* zeroPart(image: Qcow2Image, offset: number, end: number, flags: number): Steps<void> {
  const { subclusterSize } = image.geometry;
  const first = offset - offset % subclusterSize;
  const last = Math.min(first + subclusterSize, image.guestSize);
  const isZeroed = yield* holdRange(image, offset, end, function* () {
    const isRestZero = (yield* readsAsZeroes(image, first, offset - first)) &&
      (yield* readsAsZeroes(image, end, last - end));
    if (isRestZero) yield* zeroWhole(image, first, last, flags, true);
    return isRestZero;
  });
  if (!isZeroed) yield* writeZeroes(image, offset, end, flags);
}

/** Zeroes as data. */
function* writeZeroes(
  image: Qcow2Image,
  offset: number,
  end: number,
  flags: number,
): Steps<void> {
  if ((flags & REQ_NO_FALLBACK) !== 0) {
    throw new BlockError("ENOTSUP", "The image can't zero parts of clusters efficiently");
  }
  for (let at = offset; at < end; at += PIECE_BYTES) {
    yield* writeImage(image, at, zeroVector(Math.min(PIECE_BYTES, end - at)));
  }
}

/** Whole subclusters. `isBusy`: the caller has them in `guestWrites`. */
function* zeroWhole(
  image: Qcow2Image,
  offset: number,
  end: number,
  flags: number,
  isBusy = false,
): Steps<void> {
  if (image.isDataFileRaw) {
    yield* settle(image.dataFile.node.writeZeroes(offset, end - offset, flags));
  }
  // Without zero clusters, and nothing below, what is not there reads as zeroes.
  if (image.geometry.version === 2) return yield* discardEntries(image, offset, end, isBusy);
  if (!image.geometry.isExtended) {
    return yield* zeroClusters(image, offset, end, flags, isBusy);
  }
  const { clusterSize } = image.geometry;
  const start = Math.min(Math.ceil(offset / clusterSize) * clusterSize, end);
  const stop = end === image.guestSize ? end : Math.max(end - end % clusterSize, start);
  if (start > offset) yield* zeroSubclusters(image, offset, start, flags, isBusy);
  if (stop > start) yield* zeroClusters(image, start, stop, flags, isBusy);
  if (end > stop) yield* zeroSubclusters(image, stop, end, flags, isBusy);
}

/** Whole clusters; the disk's end is the end of one. */
function zeroClusters(
  image: Qcow2Image,
  offset: number,
  end: number,
  flags: number,
  isBusy: boolean,
): Steps<void> {
  const { isExtended, l2EntryBytes } = image.geometry;
  const isUnmapped = (flags & REQ_MAY_UNMAP) !== 0;
  return changeEntries(image, offset, end, (slice, index) => {
    const high = slice.view.getUint32(index * l2EntryBytes);
    const low = slice.view.getUint32(index * l2EntryBytes + 4);
    const isFreed = isUnmapped || (high & HI_COMPRESSED) !== 0;
    setEntry(image, slice, index, {
      high: isFreed ? 0 : high,
      low: ((isFreed ? 0 : low) | (isExtended ? 0 : LO_ZERO)) >>> 0,
      zeroes: ALL_SUBCLUSTERS,
      allocated: 0,
    }, isUnmapped);
  }, { isBusy });
}

/** Whole subclusters, but not all, of one cluster. A compressed one has none: data is written. */
function* zeroSubclusters(
  image: Qcow2Image,
  offset: number,
  end: number,
  flags: number,
  isBusy: boolean,
): Steps<void> {
  const { clusterSize } = image.geometry;
  let isCompressed = false;
  yield* changeEntries(image, offset, end, (slice, index) => {
    isCompressed = image.scratchRun.kind === CLUSTER.compressed;
    if (isCompressed) return;
    const { view } = slice;
    const start = offset - offset % clusterSize;
    const bits = subclusterBits(image, offset - start, end - start);
    setEntry(image, slice, index, {
      high: view.getUint32(index * 16),
      low: view.getUint32(index * 16 + 4),
      zeroes: (view.getUint32(index * 16 + 8) | bits) >>> 0,
      allocated: (view.getUint32(index * 16 + 12) & ~bits) >>> 0,
    });
  }, { isBusy });
  if (isCompressed) yield* writeZeroes(image, offset, end, flags);
}

/** Says that whole clusters of a range are no longer needed. */
export function* discardInImage(image: Qcow2Image, offset: number, length: number): Steps<void> {
  checkWritable(image);
  const { clusterSize, version } = image.geometry;
  // Without zero clusters the backing file's content would appear.
  if (version === 2 && image.backing() !== null) return;
  const end = offset + length;
  const start = Math.ceil(offset / clusterSize) * clusterSize;
  const stop = end === image.guestSize ? end : end - end % clusterSize;
  if (stop <= start) return;
  if (image.isDataFileRaw) return yield* zeroWhole(image, start, stop, REQ_MAY_UNMAP);
  if (image.hasDataFile) {
    yield* holdRange(image, start, stop, function* () {
      yield* discardEntries(image, start, stop, true);
      const { node } = image.dataFile;
      const there = Math.min(stop, node.sizeBytes) - start;
      if (there > 0) yield* settle(node.discard(start, there));
    });
  } else yield* discardEntries(image, start, stop, false);
  if (image.isCommitDue) yield* image.lock.hold(() => image.commit());
}

function discardEntries(
  image: Qcow2Image,
  start: number,
  stop: number,
  isBusy: boolean,
): Steps<void> {
  const { version, isExtended } = image.geometry;
  const hasBacking = image.backing() !== null;
  return changeEntries(image, start, stop, (slice, index) => {
    const { kind } = image.scratchRun;
    const isEmpty = kind === CLUSTER.unallocated || kind === CLUSTER.zeroPlain;
    if (isEmpty && !hasBacking) return;
    setEntry(image, slice, index, {
      high: 0,
      low: version === 3 && !isExtended ? LO_ZERO : 0,
      zeroes: ALL_SUBCLUSTERS,
      allocated: 0,
    }, true);
  }, { skipsEmpty: !hasBacking, isBusy });
}

/** Makes whole clusters unallocated: the disk shall end before. */
export function* cropImage(image: Qcow2Image, offset: number, end: number): Steps<void> {
  yield* changeEntries(image, offset, end, (slice, index) => {
    setEntry(image, slice, index, { high: 0, low: 0, zeroes: 0, allocated: 0 }, true);
  }, { skipsEmpty: true });
}

/** Changes the entry of one cluster, whose first run is in `scratchRun`, under the lock. */
type EntryChange = (slice: Slice, index: number) => void;

/** How entries are changed. */
interface ChangeOptions {
  /** Where there is no table none is made. */
  skipsEmpty?: boolean;
  /** The caller has the range in `guestWrites`. */
  isBusy?: boolean;
}

/** Calls `change` for each cluster that a range touches, in tables that may be changed. */
function* changeEntries(
  image: Qcow2Image,
  offset: number,
  end: number,
  change: EntryChange,
  { skipsEmpty = false, isBusy = false }: ChangeOptions,
): Steps<void> {
  const { clusterSize, sliceCoverage, l2Coverage } = image.geometry;
  const run = image.scratchRun;
  for (let at = offset, count = 1; at < end; count++) {
    yield* image.lock.acquire();
    try {
      const sliceEnd = Math.min(at - at % sliceCoverage + sliceCoverage, end);
      if (!isBusy) yield* waitForGuestWrites(image, at, sliceEnd - at);
      if (skipsEmpty && !image.l2.hasTable(at)) {
        at = Math.min(at - at % l2Coverage + l2Coverage, end);
        continue;
      }
      const slice = yield* image.l2.sliceForWrite(at);
      while (at < sliceEnd) {
        findRun(image, slice, at, 1, run);
        if (!isSound(image, run, at)) yield* checkRun(image, run, at, slice);
        change(slice, entryIndex(image, at));
        at = at - at % clusterSize + clusterSize;
      }
      if (image.isCommitDue) yield* image.commit();
    } finally {
      image.lock.release();
    }
    if (count % SLICES_PER_TURN === 0) {
      yield new Promise((resolve) => globalThis.setImmediate(resolve));
    }
  }
}
