/**
 * Writing to an image.
 *
 * Where a guest cluster has a host cluster of its own, data goes there. Else host clusters are
 * allocated, as many in a row as the request needs and there are; the data goes there together with
 * what the request leaves of the first and the last cluster (copy on write); then the L2 entries
 * are changed to refer to them. Until then readers get what was there before.
 *
 *   look up -> in place: write
 *           -> allocate -> (lock released) copy on write and write -> link -> old clusters given up
 *
 * With subclusters only those that the request touches are completed and marked, where the cluster
 * had no host cluster before.
 *
 * @module
 */

import type { BusyRange } from "../busy_ranges.ts";
import { IoVector } from "../io_vector.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import type { MaybePromise } from "../types.ts";
import type { Qcow2Image } from "./image.ts";
import { CLUSTER, type ClusterRun, findRun } from "./l2_entry.ts";
import { linkClusters } from "./link.ts";
import { checkRun, checkWritable, isSound, lookUpCached, lookUpUnlocked } from "./lookup.ts";
import type { Slice } from "./metadata_cache.ts";
import { isBackingZero, readImage } from "./read.ts";
import { Tasks } from "./tasks.ts";

/** Zeroes up to this many are written along with the data, more by a request of their own. */
const MERGED_ZERO_BYTES = 64 * 1024;
const ZEROES = new Uint8Array(MERGED_ZERO_BYTES);

/** Host clusters for a part of a request, which are not linked yet. */
export interface WritePlan {
  /** The guest range of the request's part. */
  offset: number;
  /** Its bytes. */
  length: number;
  /** Guest offset of the first cluster. */
  guestStart: number;
  /** Host offset of the first cluster. */
  hostStart: number;
  /** How many. */
  clusterCount: number;
  /** The host clusters are new: to be freed if anything fails. */
  isNew: boolean;
  /** They read as zeroes. */
  isFresh: boolean;
  /** What has to be there when the entries are changed: guest offsets around the request's part. */
  cowStart: number;
  /** Where that ends. */
  cowEnd: number;
  /** The clusters, in `guestWrites`. */
  busy: BusyRange;
}

/**
 * The usual case: an allocated run, found by what is in memory, that nobody is about to change.
 * False where it is something else.
 */
export function tryWrite(
  image: Qcow2Image,
  offset: number,
  source: IoVector,
): MaybePromise<void> | false {
  const run = image.scratchRun;
  const { length } = source;
  if (
    image.isCorrupt || !lookUpCached(image, offset, length) || run.kind !== CLUSTER.normal ||
    run.length < length || !run.isCopied ||
    image.guestWrites.count > 0 && image.guestWrites.overlapping({ offset, length }) !== undefined
  ) return false;
  return writeInPlace(image, run.hostOffset, source);
}

/** Writes wherever it has to go. */
export function* writeImage(image: Qcow2Image, offset: number, source: IoVector): Steps<void> {
  checkWritable(image);
  const tasks = new Tasks();
  try {
    for (let done = 0; done < source.length;) {
      const at = offset + done;
      const length = yield* startPiece(image, at, source.length - done, (length) => {
        return source.slice(at - offset, length);
      }, tasks);
      done += length;
    }
  } finally {
    yield* tasks.finish();
  }
  if (image.isCommitDue) yield* image.lock.hold(() => image.commit());
}

/** Starts the first part of a write; how many bytes it takes care of. */
function* startPiece(
  image: Qcow2Image,
  offset: number,
  lengthMax: number,
  take: (length: number) => IoVector,
  tasks: Tasks,
): Steps<number> {
  yield* image.lock.acquire();
  let plan: WritePlan | null = null;
  let length = 0;
  let request: MaybePromise<void> = undefined;
  try {
    yield* waitForGuestWrites(image, offset, lengthMax);
    const slice = yield* image.l2.sliceForWrite(offset);
    const run = image.scratchRun;
    findRun(image, slice, offset, lengthMax, run);
    if (!isSound(image, run, offset)) yield* checkRun(image, run, offset, slice);
    if (run.kind === CLUSTER.normal && run.isCopied) {
      length = run.length;
      request = yield* startInPlace(image, run.hostOffset, take(length));
    } else plan = yield* planWrite(image, slice, offset, lengthMax);
  } finally {
    image.lock.release();
  }
  if (plan !== null) {
    length = plan.length;
    request = runSteps(carryOut(image, plan, take(length)));
  }
  yield* tasks.add(request);
  return length;
}

/** Under the lock, which is given back meanwhile: nobody is about to change the range then. */
export function* waitForGuestWrites(
  image: Qcow2Image,
  offset: number,
  length: number,
): Steps<void> {
  const { clusterSize } = image.geometry;
  const start = offset - offset % clusterSize;
  const end = Math.ceil((offset + length) / clusterSize) * clusterSize;
  for (;;) {
    const busy = image.guestWrites.overlapping({ offset: start, length: end - start });
    if (busy === undefined) return;
    image.lock.release();
    yield image.guestWrites.whenRemoved(busy);
    yield* image.lock.acquire();
  }
}

/** Runs steps while nobody else changes the clusters of a range. */
export function* holdRange<T>(
  image: Qcow2Image,
  offset: number,
  end: number,
  steps: () => Steps<T>,
): Steps<T> {
  const { clusterSize } = image.geometry;
  yield* image.lock.acquire();
  yield* waitForGuestWrites(image, offset, end - offset);
  image.lock.release();
  const start = offset - offset % clusterSize;
  const length = Math.ceil((end - start) / clusterSize) * clusterSize;
  const busy = image.guestWrites.add({ offset: start, length });
  try {
    return yield* steps();
  } finally {
    image.guestWrites.remove(busy);
  }
}

/** False where the file has to grow first, or metadata is in the way. */
function writeInPlace(
  image: Qcow2Image,
  hostOffset: number,
  source: IoVector,
): MaybePromise<void> | false {
  const { dataFile } = image;
  if (hostOffset + source.length > dataFile.node.sizeBytes) return false;
  if (!image.hasDataFile && image.metadata.find(hostOffset, source.length) !== 0) return false;
  const request = dataFile.node.write(hostOffset, source);
  if (request instanceof Promise) return image.track(hostOffset, source.length, request);
}

/** The same under the lock: the last cluster of a file need not be there as a whole. */
function* startInPlace(
  image: Qcow2Image,
  hostOffset: number,
  source: IoVector,
): Steps<MaybePromise<void>> {
  if (!image.hasDataFile) yield* image.checkOverlap(hostOffset, source.length);
  yield* image.dataFile.ensure(hostOffset + source.length);
  const request = image.dataFile.node.write(hostOffset, source);
  if (request instanceof Promise) return image.track(hostOffset, source.length, request);
}

/** How clusters get where a write puts them. */
type Placement = "hosted" | "new";

function placementOf(run: ClusterRun): Placement {
  const hasHost = run.kind === CLUSTER.normal || run.kind === CLUSTER.zeroAllocated ||
    run.kind === CLUSTER.unallocatedHosted;
  return hasHost && run.isCopied ? "hosted" : "new";
}

/** Plans the part of a write that one row of host clusters can take. Under the lock. */
function* planWrite(
  image: Qcow2Image,
  slice: Slice,
  offset: number,
  lengthMax: number,
): Steps<WritePlan> {
  const { clusterSize, sliceCoverage } = image.geometry;
  const inCluster = offset & (clusterSize - 1);
  const guestStart = offset - inCluster;
  const first = image.scratchRun;
  const placement = placementOf(first);
  const sliceEnd = guestStart - guestStart % sliceCoverage + sliceCoverage;
  const end = Math.min(offset + lengthMax, sliceEnd);
  let hostStart = first.hostOffset - inCluster;
  let clusterCount = countClusters(image, slice, guestStart, end, { placement, hostStart });
  let isFresh = false;
  if (image.hasDataFile) {
    hostStart = guestStart;
    yield* image.dataFile.ensure(
      Math.min(guestStart + clusterCount * clusterSize, image.guestSize),
    );
  } else if (placement === "new") {
    const run = yield* image.refcounts.allocateUpTo(clusterCount);
    hostStart = run.offset;
    clusterCount = run.clusterCount;
    isFresh = run.isFresh;
  } else {
    yield* image.checkOverlap(hostStart, clusterCount * clusterSize);
    yield* image.file.ensure(hostStart + clusterCount * clusterSize);
  }
  const length = Math.min(end, guestStart + clusterCount * clusterSize) - offset;
  const cowStart = offset - offset % unitAt(image, slice, offset, placement);
  const lastUnit = unitAt(image, slice, offset + length - 1, placement);
  const cowEnd = Math.ceil((offset + length) / lastUnit) * lastUnit;
  return {
    offset,
    length,
    guestStart,
    hostStart,
    clusterCount,
    isNew: placement === "new" && !image.hasDataFile,
    isFresh,
    cowStart,
    cowEnd: image.hasDataFile
      ? Math.min(cowEnd, Math.max(image.guestSize, offset + length))
      : cowEnd,
    busy: image.guestWrites.add({ offset: guestStart, length: clusterCount * clusterSize }),
  };
}

/** Clusters from `guestStart` up to `end` that are all placed alike, one behind the other. */
function countClusters(
  image: Qcow2Image,
  slice: Slice,
  guestStart: number,
  end: number,
  like: { placement: Placement; hostStart: number },
): number {
  const { clusterSize } = image.geometry;
  const run = image.scratchRun;
  let count = 1;
  for (let at = guestStart + clusterSize; at < end; at += clusterSize, count++) {
    findRun(image, slice, at, clusterSize, run);
    // What makes no sense is found when its turn comes.
    if (!isSound(image, run, at) || placementOf(run) !== like.placement) break;
    if (like.placement === "hosted" && run.hostOffset !== like.hostStart + at - guestStart) break;
    // Data in place needs no plan.
    if (like.placement === "hosted" && run.kind === CLUSTER.normal) break;
  }
  return count;
}

/**
 * What has to be complete around an end of the request's part: a subcluster, or the whole cluster
 * where its host cluster takes the place of one that held something. 1: it is complete.
 */
function unitAt(image: Qcow2Image, slice: Slice, offset: number, placement: Placement): number {
  const { clusterSize, subclusterSize, isExtended } = image.geometry;
  if (!isExtended) return clusterSize;
  const run = image.scratchRun;
  findRun(image, slice, offset, 1, run);
  if (placement === "hosted") return run.kind === CLUSTER.normal ? 1 : subclusterSize;
  const isEmpty = run.kind === CLUSTER.unallocated || run.kind === CLUSTER.zeroPlain;
  return isEmpty ? subclusterSize : clusterSize;
}

/** Copies, writes and links; gives the new clusters back where that fails. */
function* carryOut(image: Qcow2Image, plan: WritePlan, source: IoVector): Steps<void> {
  let isLinked = false;
  try {
    yield* writeWithCopies(image, plan, source);
    yield* image.lock.acquire();
    try {
      const slice = yield* image.l2.sliceForWrite(plan.guestStart);
      linkClusters(image, plan, slice);
      isLinked = true;
    } finally {
      image.lock.release();
    }
  } finally {
    try {
      if (!isLinked && plan.isNew) yield* giveBack(image, plan);
    } finally {
      image.guestWrites.remove(plan.busy);
    }
  }
}

/** Nothing refers to the clusters, neither in memory nor in the file. */
function* giveBack(image: Qcow2Image, plan: WritePlan): Steps<void> {
  const length = plan.clusterCount * image.geometry.clusterSize;
  yield* image.lock.hold(() => image.refcounts.lower(plan.hostStart, length));
}

/** Writes the data, with what has to stand before and behind it, in one request if possible. */
function* writeWithCopies(image: Qcow2Image, plan: WritePlan, source: IoVector): Steps<void> {
  const { node } = image.dataFile;
  const hostOf = plan.hostStart - plan.guestStart;
  const end = plan.offset + plan.length;
  let start = plan.offset;
  const buffers = [...source.buffers];
  if (plan.cowStart < plan.offset) {
    const length = plan.offset - plan.cowStart;
    const copy = yield* oldContent(image, plan, plan.cowStart, length);
    if (copy === "zeroes") yield* settle(node.writeZeroes(plan.cowStart + hostOf, length));
    else if (copy !== null) {
      buffers.unshift(copy);
      start = plan.cowStart;
    }
  }
  if (end < plan.cowEnd) {
    const copy = yield* oldContent(image, plan, end, plan.cowEnd - end);
    if (copy === "zeroes") yield* settle(node.writeZeroes(end + hostOf, plan.cowEnd - end));
    else if (copy !== null) buffers.push(copy);
  }
  const vector = buffers.length === source.buffers.length ? source : new IoVector(buffers);
  yield* settle(node.write(start + hostOf, vector));
}

/**
 * The content around a request's part, to be written along with it. null: the host cluster has it;
 * "zeroes": too many of them to be written along.
 */
function* oldContent(
  image: Qcow2Image,
  plan: WritePlan,
  offset: number,
  length: number,
): Steps<Uint8Array | "zeroes" | null> {
  if (yield* readsAsZeroes(image, offset, length)) {
    if (plan.isFresh) return null;
    return length <= ZEROES.length ? ZEROES.subarray(0, length) : "zeroes";
  }
  const bytes = new Uint8Array(length);
  yield* readImage(image, offset, IoVector.of(bytes));
  return bytes;
}

/** Whether a range is known to read as zeroes. */
export function* readsAsZeroes(image: Qcow2Image, offset: number, length: number): Steps<boolean> {
  const end = offset + length;
  while (offset < end) {
    yield* lookUpUnlocked(image, offset, end - offset);
    const { kind, length } = image.scratchRun;
    if (kind === CLUSTER.unallocated || kind === CLUSTER.unallocatedHosted) {
      if (!(yield* isBackingZero(image, offset, length))) return false;
    } else if (kind !== CLUSTER.zeroPlain && kind !== CLUSTER.zeroAllocated) return false;
    offset += length;
  }
  return true;
}
