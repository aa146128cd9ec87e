/**
 * From a guest offset to what is there: runs of clusters of one kind, checked for sense.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import type { Steps } from "../steps.ts";
import type { Qcow2Image } from "./image.ts";
import { CLUSTER, ClusterRun, entryOffset, findRun } from "./l2_entry.ts";
import type { Slice } from "./metadata_cache.ts";
import { hex } from "./refcounts.ts";

/** Whether the run lies where its kind allows it to: else `checkRun` says what is wrong. */
export function isSound(image: Qcow2Image, run: ClusterRun, guestOffset: number): boolean {
  switch (run.kind) {
    case CLUSTER.unallocated:
    case CLUSTER.compressed:
      return !(image.hasDataFile && run.kind === CLUSTER.compressed);
    case CLUSTER.invalid:
      return false;
    case CLUSTER.zeroPlain:
      return image.geometry.version === 3;
    default:
      if (image.geometry.version === 2 && run.kind !== CLUSTER.normal) return false;
      return image.hasDataFile
        ? run.hostOffset === guestOffset
        : ((run.hostOffset ^ guestOffset) & (image.geometry.clusterSize - 1)) === 0 &&
          run.hostOffset + run.length <= Number.MAX_SAFE_INTEGER;
  }
}

/** Throws, and marks the image corrupt, where an entry makes no sense. The texts are QEMU's. */
export function* checkRun(
  image: Qcow2Image,
  run: ClusterRun,
  guestOffset: number,
  slice: Slice,
): Steps<void> {
  if (isSound(image, run, guestOffset)) return;
  const { clusterSize, l2EntryBytes } = image.geometry;
  const index = Math.floor(guestOffset / clusterSize) % (clusterSize / l2EntryBytes);
  const where = `(L2 offset: ${hex(slice.offset - slice.offset % clusterSize)}, ` +
    `L2 index: ${hex(index)})`;
  const host = run.hostOffset - guestOffset % clusterSize;
  if (run.kind === CLUSTER.invalid || run.kind === CLUSTER.compressed) {
    yield* image.corrupted(`Invalid cluster entry found ${where}`);
  }
  if (image.geometry.version === 2 && run.kind !== CLUSTER.normal) {
    yield* image.corrupted(`Zero cluster entry found in pre-v3 image ${where}`);
  }
  if (image.hasDataFile) {
    yield* image.corrupted(
      `External data file host cluster offset ${hex(host)} does not match guest cluster ` +
        `offset: ${hex(guestOffset - guestOffset % clusterSize)}, L2 index: ${hex(index)})`,
    );
  }
  yield* image.corrupted(
    `Cluster allocation offset ${hex(entryOffset(run.high, run.low))} unaligned ${where}`,
  );
}

/**
 * Finds the run at `offset` by what is in memory: it is in `image.scratchRun`, checked. False where
 * the tables have to be read first, or make no sense.
 */
export function lookUpCached(image: Qcow2Image, offset: number, lengthMax: number): boolean {
  const slice = image.l2.cachedSlice(offset);
  if (slice === undefined) return findEmptyRun(image, offset, lengthMax);
  findRun(image, slice, offset, lengthMax, image.scratchRun);
  return isSound(image, image.scratchRun, offset);
}

/**
 * Finds the run at `offset`, under the lock: in `image.scratchRun`, till the next step. Returns its
 * slice, null where there is no L2 table.
 */
export function* lookUp(image: Qcow2Image, offset: number, lengthMax: number): Steps<Slice | null> {
  const slice = yield* image.l2.slice(offset);
  const run = image.scratchRun;
  if (slice !== null) {
    findRun(image, slice, offset, lengthMax, run);
    if (!isSound(image, run, offset)) yield* checkRun(image, run, offset, slice);
    return slice;
  }
  findEmptyRun(image, offset, lengthMax);
  return null;
}

/** The run up to the next L2 table. False where there is a table for `offset`. */
function findEmptyRun(image: Qcow2Image, offset: number, lengthMax: number): boolean {
  const { l2Coverage } = image.geometry;
  let length = 0;
  while (length < lengthMax && !image.l2.hasTable(offset + length)) {
    length += l2Coverage - (offset + length) % l2Coverage;
  }
  if (length === 0) return false;
  const run = image.scratchRun;
  run.kind = CLUSTER.unallocated;
  run.length = Math.min(length, lengthMax);
  run.hostOffset = 0;
  run.isCopied = false;
  run.high = run.low = 0;
  return true;
}

/** `lookUp` for those who don't hold the lock; it is taken only where tables have to be read. */
export function* lookUpUnlocked(
  image: Qcow2Image,
  offset: number,
  lengthMax: number,
): Steps<void> {
  if (lookUpCached(image, offset, lengthMax)) return;
  yield* image.lock.acquire();
  try {
    yield* lookUp(image, offset, lengthMax);
  } finally {
    image.lock.release();
  }
}

/** Throws where nothing may be written because wrong metadata was found. */
export function checkWritable(image: Qcow2Image): void {
  if (!image.isCorrupt) return;
  throw new BlockError("EIO", "qcow2: Image is corrupt; it can't be written");
}
