/**
 * Other sizes of an image: a larger L1 table, room set aside, and zeroes where a backing file that
 * is longer than the disk was would appear; or clusters behind the new end given up.
 *
 * Nothing may be in flight. The header with the new size is written last.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import { settle, type Steps } from "../steps.ts";
import { MAX_L1_BYTES } from "./format.ts";
import type { Qcow2Image } from "./image.ts";
import { preallocateRange, type PreallocationMode } from "./preallocate.ts";
import { readsAsZeroes } from "./write.ts";
import { cropImage, zeroImage } from "./zero.ts";

/** Grows or shrinks. Throws a BlockError, with QEMU's texts, and changes nothing. */
export function* resizeImage(
  image: Qcow2Image,
  sizeBytes: number,
  preallocation: PreallocationMode,
): Steps<void> {
  const { header } = image;
  if (sizeBytes % 512 !== 0) {
    throw new BlockError("EINVAL", "The new size must be a multiple of 512");
  }
  // Their size is not in the image, so that they could not be gone back to.
  if (header.snapshotCount > 0 && header.version < 3) {
    throw new BlockError("ENOTSUP", "Can't resize a v2 image which has snapshots");
  }
  if (sizeBytes >= image.guestSize) yield* growImage(image, sizeBytes, preallocation);
  else yield* shrinkImage(image, sizeBytes, preallocation);
}

function* growImage(
  image: Qcow2Image,
  sizeBytes: number,
  preallocation: PreallocationMode,
): Steps<void> {
  const { header } = image;
  const before = header.sizeBytes;
  const start = image.guestSize;
  yield* image.lock.hold(() => growL1(image, sizeBytes));
  header.sizeBytes = sizeBytes;
  try {
    const data = image.dataFile.node;
    if (image.hasDataFile && data.sizeBytes < sizeBytes) yield* settle(data.resize(sizeBytes));
    // A raw data file is all that there is to the disk: entries must not hide a part of it.
    const mode = image.isDataFileRaw && preallocation === "off" ? "metadata" : preallocation;
    if (mode !== "off") {
      yield* image.lock.hold(() => preallocateRange(image, start, sizeBytes, mode));
    }
    yield* zeroNewPart(image, start, sizeBytes);
    yield* image.flush();
    yield* image.lock.hold(() => image.writeHeader());
  } catch (error) {
    header.sizeBytes = before;
    throw error;
  }
}

/** Makes what is new read as zeroes where it would not. */
function* zeroNewPart(image: Qcow2Image, start: number, end: number): Steps<void> {
  const { clusterSize } = image.geometry;
  const backing = image.backing();
  // The rest of the last cluster, and all that a longer backing file has.
  const clusterEnd = Math.min(Math.ceil(start / clusterSize) * clusterSize, end);
  const visibleEnd = Math.min(Math.max(clusterEnd, backing?.sizeBytes ?? 0), end);
  if (visibleEnd <= start) return;
  if (backing !== null && backing.sizeBytes > start) {
    yield* zeroImage(image, start, visibleEnd - start, 0);
  } else if (!(yield* readsAsZeroes(image, start, visibleEnd - start))) {
    yield* zeroImage(image, start, visibleEnd - start, 0);
  }
}

function* shrinkImage(
  image: Qcow2Image,
  sizeBytes: number,
  preallocation: PreallocationMode,
): Steps<void> {
  const { header, geometry } = image;
  if (preallocation !== "off") {
    throw new BlockError("EINVAL", "Preallocation can't be used for shrinking an image");
  }
  const start = Math.ceil(sizeBytes / geometry.clusterSize) * geometry.clusterSize;
  yield* cropImage(image, start, image.guestSize);
  yield* image.lock.acquire();
  try {
    dropTables(image, Math.ceil(sizeBytes / geometry.l2Coverage));
    yield* image.commit();
    header.sizeBytes = sizeBytes;
    yield* image.writeHeader();
    if (image.hasDataFile) yield* image.dataFile.truncate(sizeBytes);
    yield* image.refcounts.dropEmptyBlocks();
    yield* image.file.truncate((yield* image.refcounts.endOfUse()) * geometry.clusterSize);
  } finally {
    image.lock.release();
  }
}

/** Gives up everything that the image holds: the backing file appears. */
export function* emptyImage(image: Qcow2Image): Steps<void> {
  yield* cropImage(image, 0, image.guestSize);
  yield* image.lock.acquire();
  try {
    dropTables(image, 0);
    yield* image.commit();
    yield* image.refcounts.dropEmptyBlocks();
    const end = (yield* image.refcounts.endOfUse()) * image.geometry.clusterSize;
    yield* image.file.truncate(end);
  } finally {
    image.lock.release();
  }
}

/** Gives up the L2 tables from an L1 entry on: nothing refers to clusters in them. */
function dropTables(image: Qcow2Image, l1Start: number): void {
  const { l2, geometry } = image;
  for (let index = l1Start; index < l2.l1Size; index++) {
    const table = l2.tableOffset(index);
    if (table === 0) continue;
    image.freeLater(table, geometry.clusterSize, true);
    l2.setTable(index, 0, false);
  }
}

/** Makes the L1 table reach to a disk's size, at another place in the file. Under the lock. */
export function* growL1(image: Qcow2Image, sizeBytes: number): Steps<void> {
  const { header, geometry, l2, refcounts, file } = image;
  const size = Math.ceil(sizeBytes / geometry.l2Coverage);
  if (size <= l2.l1Size) return;
  if (size * 8 > MAX_L1_BYTES) {
    throw new BlockError(
      "EFBIG",
      "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
    );
  }
  // The new table takes the entries as they are: what they refer to must be in the file.
  yield* image.commit();
  const clusterCount = Math.ceil(size * 8 / geometry.clusterSize);
  const run = yield* refcounts.allocate(clusterCount);
  const bytes = new Uint8Array(size * 8);
  bytes.set(l2.encodeL1(0, l2.l1Size));
  try {
    yield* file.write(run.offset, bytes);
    yield* refcounts.writeBack();
    yield* image.barrier();
  } catch (error) {
    yield* refcounts.lower(run.offset, clusterCount * geometry.clusterSize);
    throw error;
  }
  const { l1TableOffset, l1Size } = header;
  header.l1TableOffset = run.offset;
  header.l1Size = size;
  try {
    yield* image.writeHeader();
  } catch (error) {
    // What the file says now nobody knows: both tables stay, this one in use.
    Object.assign(header, { l1TableOffset, l1Size });
    throw error;
  }
  l2.resizeL1(size);
  if (l1Size > 0) image.freeLater(l1TableOffset, l1Size * 8, false);
  yield* settle(file.node.flush());
}
