/**
 * A qcow2 image as QEMU describes it: the members of ImageInfo that are the format's own, and
 * ImageInfoSpecificQCow2 (qapi/block-core.json).
 *
 * @module
 */

import type { StoredBitmap } from "../bitmap_store.ts";
import {
  COMPAT_LAZY_REFCOUNTS,
  EXTENSION_BACKING_FORMAT,
  EXTENSION_DATA_FILE,
  INCOMPAT_DIRTY,
} from "./format.ts";
import { extensionText } from "./header_extensions.ts";
import type { Qcow2Image } from "./image.ts";
import type { Qcow2SnapshotInfo } from "./snapshots.ts";

const NS_PER_SECOND = 1_000_000_000n;

/** Describes an image. What there is none of is left out. */
export function describeQcow2Image(
  image: Qcow2Image,
  snapshots: readonly Qcow2SnapshotInfo[],
  bitmaps: readonly StoredBitmap[],
): Record<string, unknown> {
  const { header } = image;
  const backingFormat = extensionText(header.extensions, EXTENSION_BACKING_FORMAT);
  return {
    "dirty-flag": (header.incompatibleFeatures & INCOMPAT_DIRTY) !== 0n,
    ...(header.backingFile === null ? {} : { "backing-filename": header.backingFile }),
    ...(backingFormat === null ? {} : { "backing-filename-format": backingFormat }),
    ...(snapshots.length === 0 ? {} : { snapshots: snapshots.map(describeSnapshot) }),
    "format-specific": { type: "qcow2", data: describeFormat(image, bitmaps) },
  };
}

function describeFormat(
  image: Qcow2Image,
  bitmaps: readonly StoredBitmap[],
): Record<string, unknown> {
  const { header, geometry } = image;
  const common = {
    compat: header.version === 3 ? "1.1" : "0.10",
    "compression-type": header.compressionType,
  };
  const refcountBits = 2 ** header.refcountOrder;
  if (header.version === 2) return { ...common, "refcount-bits": refcountBits };
  return {
    ...common,
    "lazy-refcounts": (header.compatibleFeatures & COMPAT_LAZY_REFCOUNTS) !== 0n,
    ...(bitmaps.length === 0 ? {} : { bitmaps: bitmaps.map(describeBitmap) }),
    "refcount-bits": refcountBits,
    ...(image.hasDataFile
      ? {
        "data-file": extensionText(header.extensions, EXTENSION_DATA_FILE),
        "data-file-raw": image.isDataFileRaw,
      }
      : {}),
    corrupt: image.isCorrupt,
    "extended-l2": geometry.isExtended,
  };
}

function describeSnapshot(snapshot: Qcow2SnapshotInfo): Record<string, unknown> {
  return {
    id: snapshot.id,
    name: snapshot.name,
    "vm-state-size": snapshot.vmStateBytes,
    "date-sec": snapshot.dateSeconds,
    "date-nsec": snapshot.dateNanoseconds,
    "vm-clock-sec": Number(snapshot.vmClockNs / NS_PER_SECOND),
    "vm-clock-nsec": Number(snapshot.vmClockNs % NS_PER_SECOND),
    ...(snapshot.icount === null ? {} : { icount: Number(snapshot.icount) }),
  };
}

function describeBitmap(bitmap: StoredBitmap): Record<string, unknown> {
  return {
    flags: [
      ...(bitmap.isInconsistent ? ["in-use"] : []),
      ...(bitmap.isRecording ? ["auto"] : []),
    ],
    name: bitmap.name,
    granularity: bitmap.granularity,
  };
}
