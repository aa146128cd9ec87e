/**
 * Writing compressed clusters. Several share a host cluster, which counts once for each: they are
 * put one behind the other, byte by byte, into clusters that are taken one at a time.
 *
 *   wait for the guest cluster -> compress -> allocate bytes -> write -> link
 *                                    |
 *                                    not smaller -> written as it is
 *
 * What was at the guest cluster before is given up, so that clusters can be written again.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import { IoVector } from "../io_vector.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import type { Compressor } from "./compress.ts";
import type { Qcow2Image } from "./image.ts";
import type { CompressedExtent } from "./l2_entry.ts";
import { linkCompressed } from "./link.ts";
import { checkWritable } from "./lookup.ts";
import { Tasks } from "./tasks.ts";
import { holdRange, writeImage } from "./write.ts";

/** Writes whole clusters, or up to the disk's end. Throws EINVAL on anything else. */
export function* writeCompressed(
  image: Qcow2Image,
  offset: number,
  source: IoVector,
  compressor: Compressor,
): Steps<void> {
  checkWritable(image);
  const { clusterSize } = image.geometry;
  const end = offset + source.length;
  if (offset % clusterSize !== 0 || end % clusterSize !== 0 && end !== image.guestSize) {
    throw new BlockError("EINVAL", "Compressed writes take whole clusters");
  }
  const tasks = new Tasks();
  try {
    for (let at = offset; at < end; at += clusterSize) {
      const part = source.slice(at - offset, Math.min(clusterSize, end - at));
      yield* tasks.add(runSteps(writeCluster(image, at, part, compressor)));
    }
  } finally {
    yield* tasks.finish();
  }
  if (image.isCommitDue) yield* image.lock.hold(() => image.commit());
}

function* writeCluster(
  image: Qcow2Image,
  offset: number,
  source: IoVector,
  compressor: Compressor,
): Steps<void> {
  const { clusterSize } = image.geometry;
  const isDone = yield* holdRange(image, offset, offset + clusterSize, function* () {
    // A short last cluster is filled up with zeroes.
    const [only] = source.buffers;
    let cluster = only;
    // Compressors don't take shared memory, which a guest could change meanwhile.
    if (
      cluster === undefined || cluster.length < clusterSize ||
      cluster.buffer instanceof SharedArrayBuffer
    ) {
      cluster = new Uint8Array(clusterSize);
      source.copyTo(cluster.subarray(0, source.length));
    }
    const packed = yield* settle(compressor.compress(cluster));
    if (packed === null) return false;
    yield* store(image, offset, packed);
    return true;
  });
  if (!isDone) yield* writeImage(image, offset, source);
}

/** Writes compressed bytes and makes the guest cluster refer to them. */
function* store(image: Qcow2Image, offset: number, packed: Uint8Array): Steps<void> {
  const extent = yield* image.lock.hold(() => allocateBytes(image, packed.length));
  let isLinked = false;
  try {
    yield* settle(image.file.node.write(extent.offset, IoVector.of(packed)));
    yield* image.lock.acquire();
    try {
      const slice = yield* image.l2.sliceForWrite(offset);
      linkCompressed(image, offset, extent, slice);
      isLinked = true;
    } finally {
      image.lock.release();
    }
  } finally {
    // Nothing refers to the bytes, neither in memory nor in the file.
    if (!isLinked) {
      image.packedEnd = 0;
      yield* image.lock.hold(() => image.refcounts.lower(extent.offset, extent.length));
    }
  }
}

/** Allocates bytes behind those that were allocated last, or in a new cluster. Under the lock. */
function* allocateBytes(image: Qcow2Image, length: number): Steps<CompressedExtent> {
  const { refcounts } = image;
  const { clusterSize } = image.geometry;
  let start = image.packedEnd;
  const used = start % clusterSize;
  const isFull = used === 0 ||
    (yield* refcounts.get((start - used) / clusterSize)) >= refcounts.countMax;
  if (isFull || length > clusterSize - used) {
    const { offset } = yield* refcounts.allocate(1);
    const isNext = !isFull && offset === start - used + clusterSize;
    if (isNext) yield* refcounts.raise(start, clusterSize - used);
    else start = offset;
  } else {
    yield* refcounts.raise(start, length);
  }
  image.packedEnd = start + length;
  return { offset: start, length };
}
