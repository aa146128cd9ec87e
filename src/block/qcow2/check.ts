/**
 * Checks a qcow2 image as `qemu-img check` does, and repairs it: without opening it as a disk, from
 * its file alone. Nobody may write the file meanwhile.
 *
 *   scan: count all references --> compare with the stored counts --> compare COPIED bits
 *     repair: in place, or with new refcount structures where the old ones are beyond repair
 *     then all of it again, which is the result
 *
 * Leaks are clusters that count as used and are not: they cost room, nothing else. Corruptions are
 * wrong references, which a write may make worse. A table that can't be followed makes what only it
 * refers to look unused: then nothing is freed unless everything is to be repaired.
 *
 * @module
 */

import { limits } from "../../limits.ts";
import { BlockError } from "../errors.ts";
import type { BlockNode } from "../node.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import type { MaybePromise } from "../types.ts";
import { compareCopied, compareRefcounts, type Repairs } from "./check_compare.ts";
import { rebuildRefcounts } from "./check_rebuild.ts";
import { type CheckListeners, CheckReport, type Qcow2CheckResult } from "./check_report.ts";
import { ReferenceScan, type ScannedImage } from "./check_scan.ts";
import { ClusterCounter } from "./cluster_counter.ts";
import { DiskRefcounts } from "./disk_refcounts.ts";
import {
  AUTOCLEAR_BITMAPS,
  EXTENSION_BITMAPS,
  INCOMPAT_CORRUPT,
  INCOMPAT_DIRTY,
  MAX_SNAPSHOTS,
} from "./format.ts";
import { type Geometry, geometryOf } from "./geometry.ts";
import {
  encodeQcow2Header,
  headerClusterBytes,
  parseQcow2Header,
  type Qcow2Header,
} from "./header.ts";
import { findExtension, withExtension } from "./header_extensions.ts";
import { ImageFile } from "./image_file.ts";
import {
  encodeSnapshotTable,
  MAX_SNAPSHOT_EXTRA_BYTES,
  MIN_EXTRA_BYTES_V3,
  type SnapshotEntry,
  SnapshotTableReader,
} from "./snapshot_table.ts";

/** Clusters of a file, as in QEMU. */
const MAX_CLUSTERS = 2 ** 31 - 1;
const HEADER_READ_BYTES = 2 * 1024 * 1024;
const INCOMPATIBLE_AT = 72;

/** How an image is checked. */
export interface Qcow2CheckOptions extends CheckListeners {
  /** What is repaired, where the file may be written. Nothing unless given. */
  repair?: "none" | "leaks" | "all";
}

/**
 * Checks the image in `file`. Throws a BlockError where the file can't be read or written, or is no
 * qcow2 image.
 */
export function checkQcow2(
  file: BlockNode,
  options: Qcow2CheckOptions = {},
): MaybePromise<Qcow2CheckResult> {
  return runSteps(check(file, options));
}

function* check(node: BlockNode, options: Qcow2CheckOptions): Steps<Qcow2CheckResult> {
  const repair = options.repair ?? "none";
  const repairs: Repairs = { leaks: repair !== "none", errors: repair === "all" };
  const file = new ImageFile({ node });
  const report = new CheckReport(options);
  const first = new Pass(yield* open(file), report);
  if (!(yield* first.scan(repairs.errors))) return report.statistics;
  const isChanged = yield* first.repair(repairs);
  if (!isChanged) {
    yield* finish(first.image, report.statistics, repair);
    return report.statistics;
  }
  yield* file.trim();
  yield* settle(node.flush());
  // What is left is what another look finds; what that doesn't find was repaired.
  const after = new CheckReport({});
  const second = new Pass(yield* open(file), after);
  yield* second.scan(false);
  yield* second.repair({ leaks: false, errors: false });
  yield* finish(second.image, after.statistics, repair);
  const { corruptions, corruptionsFixed, leaks, leaksFixed } = report.statistics;
  const left = after.statistics;
  return {
    ...left,
    corruptionsFixed: Math.max(corruptions + corruptionsFixed - left.corruptions, 0),
    leaksFixed: Math.max(leaks + leaksFixed - left.leaks, 0),
  };
}

/** The header and what follows from it. */
function* open(file: ImageFile): Steps<ScannedImage> {
  const start = new Uint8Array(Math.min(file.node.sizeBytes, HEADER_READ_BYTES));
  yield* settle(file.read(0, start.subarray(0, 512)));
  const headerBytes = start.subarray(0, headerClusterBytes(start.subarray(0, 512)));
  yield* settle(file.read(0, headerBytes));
  const header = parseQcow2Header(headerBytes, { isForCheck: true });
  const geometry = geometryOf(header);
  const clusterCount = Math.ceil(file.node.sizeBytes / geometry.clusterSize);
  if (clusterCount > MAX_CLUSTERS) {
    throw new BlockError("EFBIG", "The image's file is too large to be checked");
  }
  return { file, header, geometry, clusterCount };
}

/** One look at an image. */
class Pass {
  readonly image: ScannedImage;
  readonly #report: CheckReport;
  readonly #references = newCounter();
  #disk: DiskRefcounts | null = null;
  #hasGoodStructures = true;
  /** The snapshot table as it should be, where it is not. */
  #snapshotTable: SnapshotEntry[] | null = null;
  #snapshotTableBytes = 0;

  constructor(image: ScannedImage, report: CheckReport) {
    this.image = image;
    this.#report = report;
  }

  /** Counts all references. False where something keeps it from that. */
  *scan(isRepair: boolean): Steps<boolean> {
    const { header, geometry } = this.image;
    const counters = { references: this.#references, create: newCounter };
    const zeroEntry = isRepair ? (at: number) => this.#zeroEntry(at) : null;
    const scan = new ReferenceScan(this.image, this.#report, counters, zeroEntry);
    const { statistics } = this.#report;
    statistics.totalClusters = Math.ceil(
      Math.floor(header.sizeBytes / 512) * 512 / geometry.clusterSize,
    );
    const snapshots = yield* this.#readSnapshots();
    if (snapshots === null) return false;
    yield* scan.active();
    yield* scan.snapshots(snapshots, this.#snapshotTableBytes);
    this.#disk = yield* DiskRefcounts.load(this.image);
    this.#hasGoodStructures = scan.refcountStructures(this.#disk.table, this.#disk.isReserved);
    return true;
  }

  /** Compares, and repairs what is allowed. True where something was written. */
  *repair(allowed: Repairs): Steps<boolean> {
    const { image } = this;
    const report = this.#report;
    const disk = this.#disk;
    if (disk === null) return false;
    const { statistics, isIncomplete } = report;
    const fixedByScan = statistics.corruptionsFixed > 0;
    const mayRebuild = allowed.errors;
    const isBroken = !this.#hasGoodStructures || this.#snapshotTable !== null;
    const repairs = {
      leaks: allowed.leaks && (allowed.errors || !isIncomplete) && !(mayRebuild && isBroken),
      errors: allowed.errors && !isBroken,
    };
    const counts = { references: this.#references, disk };
    const result = yield* compareRefcounts(image, report, counts, repairs);
    if (mayRebuild && (isBroken || result.needsRebuild)) {
      report.note("Rebuilding refcount structure");
      yield* settle(image.file.node.flush());
      yield* rebuildRefcounts(image, report, {
        references: this.#references,
        oldClusters: this.#oldClusters(disk),
        snapshotTable: this.#snapshotTable === null ? null : {
          bytes: encodeSnapshotTable(this.#snapshotTable),
          count: this.#snapshotTable.length,
        },
      });
      const rebuilt = yield* DiskRefcounts.load(image);
      yield* compareCopied(image, report, { disk: rebuilt, createCounter: newCounter }, true);
      return true;
    }
    if (result.isRepaired) yield* settle(image.file.node.flush());
    const isSafe = statistics.checkErrors + statistics.corruptions + statistics.leaks === 0;
    const isRepair = allowed.errors || allowed.leaks && isSafe;
    const copied = { disk, createCounter: newCounter };
    const isCopiedChanged = yield* compareCopied(image, report, copied, isRepair);
    return fixedByScan || result.isRepaired || isCopiedChanged;
  }

  /** The snapshots; null where their table can't be found. */
  *#readSnapshots(): Steps<SnapshotEntry[] | null> {
    const { header, geometry, file } = this.image;
    const report = this.#report;
    if (header.snapshotCount === 0) return [];
    const { snapshotsOffset: offset } = header;
    const problem = header.snapshotCount > MAX_SNAPSHOTS
      ? "Snapshot table too large"
      : !Number.isSafeInteger(offset) || offset % geometry.clusterSize !== 0
      ? "Snapshot table offset invalid"
      : null;
    if (problem !== null) {
      report.statistics.checkErrors++;
      report.note(`ERROR ${problem}`);
      return null;
    }
    const entries: SnapshotEntry[] = [];
    const reader = new SnapshotTableReader(file, offset);
    let isGood = true;
    for (let index = 0; index < header.snapshotCount; index++) {
      const bytesBefore = reader.tableBytes;
      let entry: SnapshotEntry;
      try {
        entry = yield* reader.nextLenient(header.sizeBytes);
      } catch (error) {
        if (!(error instanceof BlockError) || error.code !== "EFBIG") throw error;
        report.unreadable(`ERROR ${error.message}: ${header.snapshotCount - index} snapshots lost`);
        this.#snapshotTableBytes = bytesBefore;
        this.#snapshotTable = entries;
        return entries;
      }
      entries.push(entry);
      this.#snapshotTableBytes = reader.tableBytes;
      const wrong = entry.extraBytes > MAX_SNAPSHOT_EXTRA_BYTES
        ? "has too much extra metadata"
        : header.version === 3 && entry.extraBytes < MIN_EXTRA_BYTES_V3
        ? "is incomplete"
        : null;
      if (wrong === null) continue;
      report.corruption(`ERROR snapshot table entry ${index} ${wrong}`);
      isGood = false;
    }
    if (!isGood) this.#snapshotTable = entries;
    return entries;
  }

  /** What a rebuild frees, as often as the scan counted it. */
  *#oldClusters(disk: DiskRefcounts): Generator<number> {
    const { header, geometry, clusterCount } = this.image;
    const { clusterSize } = geometry;
    const ranges = [
      [header.refcountTableOffset, header.refcountTableClusters * clusterSize],
      ...(this.#snapshotTable === null ? [] : [[header.snapshotsOffset, this.#snapshotTableBytes]]),
    ] as const;
    for (const [offset = 0, length = 0] of ranges) {
      const isCounted = offset + length - this.image.file.node.sizeBytes < clusterSize;
      if (length === 0 || !isCounted) continue;
      const end = Math.ceil((offset + length) / clusterSize);
      for (let index = offset / clusterSize; index < end; index++) yield index;
    }
    for (const [index, offset] of disk.table.entries()) {
      const cluster = offset / clusterSize;
      const isCounted = offset !== 0 && Number.isInteger(cluster) && cluster < clusterCount &&
        !disk.isReserved(index);
      if (isCounted) yield cluster;
    }
  }

  /** Makes an L2 entry that names nothing good read as zeroes. */
  *#zeroEntry(at: number): Steps<void> {
    const { geometry, file } = this.image;
    const entry = new DataView(new ArrayBuffer(geometry.l2EntryBytes));
    if (geometry.isExtended) entry.setUint32(8, 0xffffffff);
    else entry.setUint32(4, 1);
    yield* file.write(at, new Uint8Array(entry.buffer));
  }
}

/** The image is good now: its header says so too. */
function* finish(
  { file, header }: { file: ImageFile; header: Qcow2Header; geometry: Geometry },
  { checkErrors, corruptions }: Qcow2CheckResult,
  repair: "none" | "leaks" | "all",
): Steps<void> {
  if (repair === "none" || checkErrors + corruptions > 0) return;
  // Nothing in the image leads to bitmaps that a stranger's write has made worthless: see the scan.
  const isStale = (header.autoclearFeatures & AUTOCLEAR_BITMAPS) === 0n &&
    findExtension(header.extensions, EXTENSION_BITMAPS) !== undefined;
  if (isStale) {
    header.extensions = withExtension(header.extensions, EXTENSION_BITMAPS, null);
    yield* file.write(0, encodeQcow2Header(header));
    yield* settle(file.node.flush());
  }
  const cleared = header.incompatibleFeatures & ~(INCOMPAT_DIRTY | INCOMPAT_CORRUPT);
  if (cleared === header.incompatibleFeatures) return;
  const field = new DataView(new ArrayBuffer(8));
  field.setBigUint64(0, cleared);
  yield* settle(file.node.flush());
  yield* file.write(INCOMPATIBLE_AT, new Uint8Array(field.buffer));
  yield* settle(file.node.flush());
}

function newCounter(): ClusterCounter {
  return new ClusterCounter(limits.qcow2CheckBytes);
}
