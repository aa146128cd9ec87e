/**
 * Holds the reference counts in an image's file against the references that a scan counted, and the
 * COPIED bits of the active tables against the reference counts. Repairs both in place, where that
 * is possible: counts that are too low are raised, those that are too high lowered. Messages are
 * QEMU's (block/qcow2-refcount.c).
 *
 * @module
 */

import { isZero } from "../../wasm/kernels.ts";
import { settle, type Steps } from "../steps.ts";
import type { CheckReport } from "./check_report.ts";
import type { ScannedImage } from "./check_scan.ts";
import type { ClusterCounter } from "./cluster_counter.ts";
import type { DiskRefcounts } from "./disk_refcounts.ts";
import { HI_COMPRESSED, HI_COPIED, INCOMPAT_DATA_FILE } from "./format.ts";
import { entryOffset } from "./l2_entry.ts";
import { getCount, maxCount, setCount } from "./refcount_entry.ts";

/** What may be repaired. */
export interface Repairs {
  /** Counts that are too high. */
  leaks: boolean;
  /** Counts that are too low. */
  errors: boolean;
}

/** What comparing the counts gave. */
export interface Comparison {
  /** A cluster is in use that no block of refcounts describes, or counts as free. */
  needsRebuild: boolean;
  /** Something was written. */
  isRepaired: boolean;
}

const L1_PIECE_BYTES = 1024 * 1024;

/** Compares all counts, and repairs what `repairs` allows. */
export function* compareRefcounts(
  image: ScannedImage,
  report: CheckReport,
  counts: { references: ClusterCounter; disk: DiskRefcounts },
  repairs: Repairs,
): Steps<Comparison> {
  const { refcountBlockEntries, clusterSize } = image.geometry;
  const result: Comparison = { needsRebuild: false, isRepaired: false };
  // A crash may leave counts of clusters that the file does not even have.
  const end = image.clusterCount + 1;
  let highest = -1;
  for (let first = 0; first < end; first += refcountBlockEntries) {
    const index = first / refcountBlockEntries;
    const blockEnd = first + refcountBlockEntries;
    const block = yield* counts.disk.block(index);
    if (block === null && counts.references.nextUsed(first, blockEnd) === blockEnd) continue;
    yield* report.pause();
    const compared = compareBlock({ image, report, repairs, block, first, end: blockEnd }, counts);
    if (compared.highest >= 0) highest = compared.highest;
    result.needsRebuild ||= compared.needsRebuild;
    if (!compared.isChanged || block === null) continue;
    yield* counts.disk.write(index, block);
    result.isRepaired = true;
  }
  report.statistics.imageEndOffset = (highest + 1) * clusterSize;
  return result;
}

function compareBlock(
  part: {
    image: ScannedImage;
    report: CheckReport;
    repairs: Repairs;
    block: DataView | null;
    first: number;
    end: number;
  },
  { references }: { references: ClusterCounter },
): { highest: number; needsRebuild: boolean; isChanged: boolean } {
  const { report, repairs, block, first } = part;
  const { refcountOrder } = part.image.geometry;
  const { statistics } = report;
  const countMax = maxCount(refcountOrder);
  let [highest, needsRebuild, isChanged] = [-1, false, false];
  for (let cluster = first; cluster < part.end; cluster++) {
    const stored = block === null ? 0 : getCount(block, cluster - first, refcountOrder);
    const counted = references.get(cluster);
    if ((stored > 0 || counted > 0) && cluster <= part.image.clusterCount) highest = cluster;
    if (stored === counted) continue;
    if (stored === 0) needsRebuild = true;
    const isLeak = stored > counted;
    const mayRepair = isLeak ? repairs.leaks : repairs.errors && counted <= countMax;
    const isRepaired = mayRepair && block !== null && stored !== 0;
    report.note(
      `${isRepaired ? "Repairing" : isLeak ? "Leaked" : "ERROR"} cluster ${cluster} ` +
        `refcount=${stored} reference=${counted}`,
    );
    if (isRepaired) {
      setCount(block, cluster - first, refcountOrder, counted);
      isChanged = true;
    }
    if (isLeak) isRepaired ? statistics.leaksFixed++ : statistics.leaks++;
    else isRepaired ? statistics.corruptionsFixed++ : statistics.corruptions++;
  }
  return { highest, needsRebuild, isChanged };
}

/** Compares the COPIED bits of the active L1 table and its L2 tables. True where it wrote. */
export function* compareCopied(
  image: ScannedImage,
  report: CheckReport,
  counts: { disk: DiskRefcounts; createCounter: () => ClusterCounter },
  isRepair: boolean,
): Steps<boolean> {
  const { file, geometry, header } = image;
  const tables = counts.createCounter();
  let isChanged = false;
  for (let at = 0; at < header.l1Size * 8; at += L1_PIECE_BYTES) {
    const bytes = new Uint8Array(Math.min(header.l1Size * 8 - at, L1_PIECE_BYTES));
    yield* settle(file.read(header.l1TableOffset + at, bytes));
    const view = new DataView(bytes.buffer);
    let isPieceChanged = false;
    for (let entry = 0; entry < bytes.length; entry += 8) {
      const high = view.getUint32(entry);
      const table = entryOffset(high, view.getUint32(entry + 4));
      if (table === 0 || table % geometry.clusterSize !== 0 || table >= file.node.sizeBytes) {
        continue;
      }
      tables.add(table / geometry.clusterSize, 1);
      let count = counts.disk.getCached(table / geometry.clusterSize);
      if (count < 0) count = yield* counts.disk.get(table / geometry.clusterSize);
      if ((count === 1) === ((high & HI_COPIED) !== 0)) continue;
      const what = `OFLAG_COPIED L2 cluster: l1_index=${(at + entry) / 8} l1_entry`;
      reportCopied(report, { what, view, at: entry, count }, isRepair);
      isPieceChanged = isRepair;
    }
    if (!isPieceChanged) continue;
    yield* file.write(header.l1TableOffset + at, bytes);
    isChanged = true;
  }
  if ((header.incompatibleFeatures & INCOMPAT_DATA_FILE) !== 0n) return isChanged;
  for (const index of tables.used()) {
    yield* report.pause();
    const isTableChanged = yield* compareTable(image, report, counts.disk, {
      offset: index * geometry.clusterSize,
      isRepair,
    });
    isChanged ||= isTableChanged;
  }
  return isChanged;
}

function* compareTable(
  image: ScannedImage,
  report: CheckReport,
  disk: DiskRefcounts,
  { offset, isRepair }: { offset: number; isRepair: boolean },
): Steps<boolean> {
  const { file, geometry } = image;
  const bytes = new Uint8Array(geometry.clusterSize);
  yield* settle(file.read(offset, bytes));
  if (isZero(bytes)) return false;
  const view = new DataView(bytes.buffer);
  let isChanged = false;
  for (let at = 0; at < bytes.length; at += geometry.l2EntryBytes) {
    const high = view.getUint32(at);
    const host = entryOffset(high, view.getUint32(at + 4));
    if (host === 0 || (high & HI_COMPRESSED) !== 0) continue;
    const cluster = Math.floor(host / geometry.clusterSize);
    let count = disk.getCached(cluster);
    if (count < 0) count = yield* disk.get(cluster);
    if ((count === 1) === ((high & HI_COPIED) !== 0)) continue;
    const what = "OFLAG_COPIED data cluster: l2_entry";
    reportCopied(report, { what, view, at, count }, isRepair);
    isChanged = isRepair;
  }
  if (isChanged) yield* file.write(offset, bytes);
  return isChanged;
}

function reportCopied(
  report: CheckReport,
  found: { what: string; view: DataView; at: number; count: number },
  isRepair: boolean,
): void {
  const { view, at, count } = found;
  const value = view.getBigUint64(at).toString(16);
  report.corruption(
    `${isRepair ? "Repairing" : "ERROR"} ${found.what}=${value} refcount=${count}`,
  );
  if (!isRepair) return;
  const high = view.getUint32(at);
  view.setUint32(at, (count === 1 ? high | HI_COPIED : high & ~HI_COPIED) >>> 0);
  report.corruptionFixed();
}
