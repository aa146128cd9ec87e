/**
 * Reading from an image: data from the data file, zeroes, compressed clusters, and what the image
 * does not have from the backing file, which may be shorter or longer than the image.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import type { IoVector } from "../io_vector.ts";
import { settle, type Steps } from "../steps.ts";
import { type MaybePromise, STATUS_ZERO } from "../types.ts";
import { decompressCluster } from "./compress.ts";
import type { Qcow2Image } from "./image.ts";
import { CLUSTER, type ClusterRun, compressedExtent } from "./l2_entry.ts";
import { lookUpCached, lookUpUnlocked } from "./lookup.ts";
import { hex } from "./refcounts.ts";
import { Tasks } from "./tasks.ts";

/**
 * The usual case: data in one piece, found by what is in memory. False where it is something else.
 */
export function tryRead(
  image: Qcow2Image,
  offset: number,
  target: IoVector,
): MaybePromise<void> | false {
  const run = image.scratchRun;
  if (
    !lookUpCached(image, offset, target.length) || run.kind !== CLUSTER.normal ||
    run.length < target.length
  ) return false;
  return readHost(image, run.hostOffset, target);
}

/** Reads whatever there is. */
export function* readImage(image: Qcow2Image, offset: number, target: IoVector): Steps<void> {
  const tasks = new Tasks();
  try {
    for (let done = 0; done < target.length;) {
      yield* lookUpUnlocked(image, offset + done, target.length - done);
      const run = image.scratchRun;
      const part = target.slice(done, run.length);
      const at = offset + done;
      // The run may be another one as soon as somebody else gets a turn.
      done += run.length;
      yield* tasks.add(readRun(image, run, at, part));
    }
  } finally {
    // Nothing goes to the caller's buffers after his request was answered.
    yield* tasks.finish();
  }
}

/** Reads one run; looks at it before it waits. */
function readRun(
  image: Qcow2Image,
  run: ClusterRun,
  offset: number,
  target: IoVector,
): MaybePromise<void> {
  switch (run.kind) {
    case CLUSTER.normal:
      return readHost(image, run.hostOffset, target);
    case CLUSTER.unallocated:
    case CLUSTER.unallocatedHosted:
      return readBacking(image, offset, target);
    case CLUSTER.compressed:
      return readCompressed(image, run, offset, target);
    default:
      return target.fill(0);
  }
}

function readHost(image: Qcow2Image, offset: number, target: IoVector): MaybePromise<void> {
  const request = image.dataFile.readVector(offset, target);
  if (request instanceof Promise) return image.track(offset, target.length, request);
}

/** Reads what the image does not have. */
function readBacking(image: Qcow2Image, offset: number, target: IoVector): MaybePromise<void> {
  const backing = image.backing();
  const size = backing === null ? 0 : backing.sizeBytes;
  const length = Math.max(Math.min(target.length, size - offset), 0);
  if (length < target.length) target.slice(length, target.length - length).fill(0);
  if (backing !== null && length > 0) return backing.read(offset, target.slice(0, length));
}

/** Whether a range that the image does not have reads as zeroes, as far as that is known. */
export function* isBackingZero(image: Qcow2Image, offset: number, length: number): Steps<boolean> {
  const backing = image.backing();
  if (backing === null) return true;
  const end = Math.min(offset + length, backing.sizeBytes);
  while (offset < end) {
    const status = yield* settle(backing.blockStatus(offset, end - offset));
    if ((status.flags & STATUS_ZERO) === 0) return false;
    offset += status.length;
  }
  return true;
}

function readCompressed(
  image: Qcow2Image,
  run: ClusterRun,
  offset: number,
  target: IoVector,
): MaybePromise<void> {
  const { clusterSize } = image.geometry;
  const start = offset & (clusterSize - 1);
  const extent = compressedExtent(run.high, run.low, image.geometry);
  const { lastUnpacked } = image;
  if (lastUnpacked !== null && lastUnpacked.offset === extent.offset) {
    return target.copyFrom(lastUnpacked.bytes.subarray(start, start + target.length));
  }
  if (extent.offset >= image.file.node.sizeBytes) {
    throw new BlockError(
      "EIO",
      `A compressed cluster at ${hex(extent.offset)} is past the end of the file`,
    );
  }
  const packed = new Uint8Array(extent.length);
  const [only] = target.buffers;
  const unpack = (): void => {
    if (only?.length === clusterSize && target.length === clusterSize) {
      // All of it goes to the reader: nothing is left that the next one could want.
      return decompressCluster(image.header.compressionType, packed, only);
    }
    const bytes = new Uint8Array(clusterSize);
    decompressCluster(image.header.compressionType, packed, bytes);
    image.lastUnpacked = { offset: extent.offset, bytes };
    target.copyFrom(bytes.subarray(start, start + target.length));
  };
  const request = image.file.read(extent.offset, packed);
  if (!(request instanceof Promise)) return unpack();
  return image.track(extent.offset, extent.length, request.then(unpack));
}
