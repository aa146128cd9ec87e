/**
 * Preallocation: entries for a range of the disk before anything is written there, and with
 * `falloc` and `full` also the room for it.
 *
 * @module
 */

import { settle, type Steps } from "../steps.ts";
import { writeZeroesByWriting } from "../zeroes.ts";
import type { Qcow2Image } from "./image.ts";
import { CLUSTER, findRun } from "./l2_entry.ts";
import { linkClusters } from "./link.ts";
import type { Slice } from "./metadata_cache.ts";

/**
 * How much is allocated before it is written: nothing; clusters, as holes of the file; clusters
 * that the file system has set aside; clusters full of zeroes.
 */
export type PreallocationMode = "off" | "metadata" | "falloc" | "full";

/** After so many pieces of tables the event loop gets a turn. */
const SLICES_PER_TURN = 64;

/**
 * Allocates what is unallocated in a range, which reads as zeroes, or with subclusters as the
 * backing file. Under the lock; nobody may write meanwhile.
 */
export function* preallocateRange(
  image: Qcow2Image,
  start: number,
  end: number,
  mode: Exclude<PreallocationMode, "off">,
): Steps<void> {
  const { clusterSize, sliceCoverage } = image.geometry;
  if (image.hasDataFile) {
    yield* image.dataFile.ensure(image.guestSize);
    if (mode !== "metadata") yield* fill(image, start, end - start, mode);
  }
  for (let at = start - start % clusterSize, count = 1; at < end; count++) {
    const sliceEnd = Math.min(at - at % sliceCoverage + sliceCoverage, end);
    while (at < sliceEnd) {
      const slice = yield* image.l2.sliceForWrite(at);
      const clusterCount = countUnallocated(image, slice, at, sliceEnd);
      if (clusterCount === 0) at += clusterSize;
      else at += (yield* allocateRun(image, slice, at, clusterCount, mode)) * clusterSize;
    }
    if (count % SLICES_PER_TURN === 0) {
      yield new Promise((resolve) => globalThis.setImmediate(resolve));
    }
  }
}

/** Clusters from `offset` on that have no entry. */
function countUnallocated(image: Qcow2Image, slice: Slice, offset: number, end: number): number {
  const { clusterSize } = image.geometry;
  let count = 0;
  for (let at = offset; at < end; at += clusterSize, count++) {
    findRun(image, slice, at, clusterSize, image.scratchRun);
    const { kind, length } = image.scratchRun;
    if (kind !== CLUSTER.unallocated || length < clusterSize) break;
  }
  return count;
}

/** Allocates and links up to `count` clusters; how many. */
function* allocateRun(
  image: Qcow2Image,
  slice: Slice,
  guestStart: number,
  count: number,
  mode: Exclude<PreallocationMode, "off">,
): Steps<number> {
  const { clusterSize, isExtended } = image.geometry;
  let hostStart = guestStart;
  let clusterCount = count;
  if (!image.hasDataFile) {
    const run = yield* image.refcounts.allocateUpTo(count);
    hostStart = run.offset;
    clusterCount = run.clusterCount;
    const length = clusterCount * clusterSize;
    try {
      if (mode !== "metadata") yield* fill(image, hostStart, length, mode);
      else if (!run.isFresh) yield* image.file.writeZeroes(hostStart, length);
    } catch (error) {
      yield* image.refcounts.lower(hostStart, length);
      throw error;
    }
  }
  const length = clusterCount * clusterSize;
  // Subclusters stay unallocated: their host cluster waits for them.
  const covered = isExtended ? 0 : length;
  linkClusters(image, {
    guestStart,
    hostStart,
    clusterCount,
    cowStart: guestStart,
    cowEnd: guestStart + covered,
  }, slice);
  return clusterCount;
}

/** Makes the file system set room aside, or writes zeroes. */
function* fill(
  image: Qcow2Image,
  offset: number,
  length: number,
  mode: "falloc" | "full",
): Steps<void> {
  const { node } = image.dataFile;
  const count = Math.min(length, node.sizeBytes - offset);
  // Zeroes that may not unmap stay allocated.
  if (mode === "falloc") return yield* settle(node.writeZeroes(offset, count));
  yield* settle(writeZeroesByWriting({
    offset,
    length: count,
    write: (at, zeroes) => node.write(at, zeroes),
  }));
}
