/**
 * Gives an image new reference counts, for a check that found the old ones beyond repair: a new
 * table and new blocks, in clusters that neither the image nor the old ones use, written in full
 * before the header names them. A crash before that leaves the image as it was.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import { settle, type Steps } from "../steps.ts";
import type { CheckReport } from "./check_report.ts";
import type { ScannedImage } from "./check_scan.ts";
import type { ClusterCounter } from "./cluster_counter.ts";
import { MAX_REFCOUNT_TABLE_BYTES } from "./format.ts";
import { maxCount, setCount } from "./refcount_entry.ts";

/** Where the header says where the refcount table is, and how many clusters it has. */
const HEADER_TABLE_AT = 48;
const HEADER_TABLE_BYTES = 12;
/** The same for the snapshot table: count and offset. */
const HEADER_SNAPSHOTS_AT = 60;
const HEADER_SNAPSHOTS_BYTES = 12;

/** What a rebuild is made from. */
export interface RebuildPlan {
  /** References to clusters, the old structures' own among them. Changed to the new state. */
  references: ClusterCounter;
  /** Clusters of the old structures, as often as they were counted. */
  oldClusters: Iterable<number>;
  /** A new snapshot table in place of the old one, whose clusters are among the old ones. */
  snapshotTable: { bytes: Uint8Array; count: number } | null;
}

/** See the module's head. */
export function* rebuildRefcounts(
  image: ScannedImage,
  report: CheckReport,
  plan: RebuildPlan,
): Steps<void> {
  const { file, header, geometry } = image;
  const { clusterSize, refcountBlockEntries, refcountOrder } = geometry;
  const { references } = plan;
  const space = new FreeSpace(references, image.clusterCount);
  const snapshots = plan.snapshotTable;
  const snapshotClusters = Math.ceil((snapshots?.bytes.length ?? 0) / clusterSize);
  const snapshotIndex = snapshotClusters > 0 ? space.take(snapshotClusters) : 0;
  const { blocks, tableIndex, tableClusters } = layOut(space, image);
  for (const cluster of plan.oldClusters) references.subtract(cluster, 1);

  const table = new DataView(new ArrayBuffer(tableClusters * clusterSize));
  for (const [block, cluster] of blocks) {
    yield* report.pause();
    const bytes = new DataView(new ArrayBuffer(clusterSize));
    const first = block * refcountBlockEntries;
    const end = first + refcountBlockEntries;
    for (
      let at = references.nextUsed(first, end);
      at < end;
      at = references.nextUsed(at + 1, end)
    ) {
      const count = Math.min(references.get(at), maxCount(refcountOrder));
      setCount(bytes, at - first, refcountOrder, count);
    }
    yield* file.write(cluster * clusterSize, new Uint8Array(bytes.buffer));
    table.setBigUint64(block * 8, BigInt(cluster * clusterSize));
  }
  yield* file.write(tableIndex * clusterSize, new Uint8Array(table.buffer));
  if (snapshots !== null) yield* file.write(snapshotIndex * clusterSize, snapshots.bytes);
  yield* settle(file.node.flush());

  const fields = new DataView(new ArrayBuffer(HEADER_TABLE_BYTES + HEADER_SNAPSHOTS_BYTES));
  fields.setBigUint64(0, BigInt(tableIndex * clusterSize));
  fields.setUint32(8, tableClusters);
  if (snapshots !== null) {
    fields.setUint32(HEADER_TABLE_BYTES, snapshots.count);
    fields.setBigUint64(HEADER_TABLE_BYTES + 4, BigInt(snapshotIndex * clusterSize));
    header.snapshotCount = snapshots.count;
    header.snapshotsOffset = snapshotIndex * clusterSize;
  }
  header.refcountTableOffset = tableIndex * clusterSize;
  header.refcountTableClusters = tableClusters;
  // One write within a sector: the two are next to each other in the header.
  const length = snapshots === null ? HEADER_TABLE_BYTES : HEADER_SNAPSHOTS_AT - HEADER_TABLE_AT +
    HEADER_SNAPSHOTS_BYTES;
  yield* file.write(HEADER_TABLE_AT, new Uint8Array(fields.buffer, 0, length));
  yield* settle(file.node.flush());
}

/** Clusters that nothing uses, taken from the front. */
class FreeSpace {
  /** Behind the last cluster in use. */
  end: number;
  readonly references: ClusterCounter;
  #next = 1;

  constructor(references: ClusterCounter, clusterCount: number) {
    this.references = references;
    this.end = clusterCount + 1;
  }

  take(count: number): number {
    let start = this.#next;
    for (;;) {
      const used = this.references.nextUsed(start, start + count);
      if (used === start + count) break;
      start = used + 1;
    }
    for (let at = start; at < start + count; at++) this.references.add(at, 1);
    if (count === 1) this.#next = start + 1;
    this.end = Math.max(this.end, start + count);
    return start;
  }

  giveBack(start: number, count: number): void {
    for (let at = start; at < start + count; at++) this.references.subtract(at, 1);
  }
}

/** Finds places for a block wherever clusters are in use, and for the table. */
function layOut(
  space: FreeSpace,
  { geometry }: ScannedImage,
): { blocks: Map<number, number>; tableIndex: number; tableClusters: number } {
  const { clusterSize, refcountBlockEntries } = geometry;
  const blocks = new Map<number, number>();
  let last = 0;
  const describeAll = (): void => {
    for (let isDone = false; !isDone;) {
      isDone = true;
      let at = space.references.nextUsed(0, space.end);
      while (at < space.end) {
        const block = Math.floor(at / refcountBlockEntries);
        if (!blocks.has(block)) {
          blocks.set(block, space.take(1));
          isDone = false;
        }
        last = Math.max(last, block);
        at = space.references.nextUsed((block + 1) * refcountBlockEntries, space.end);
      }
    }
  };
  describeAll();
  for (let spare = 1;; spare *= 2) {
    const tableClusters = Math.ceil((last + spare) * 8 / clusterSize);
    if (tableClusters * clusterSize > MAX_REFCOUNT_TABLE_BYTES) {
      throw new BlockError("EFBIG", "The reference count table would be too large");
    }
    const tableIndex = space.take(tableClusters);
    describeAll();
    if ((last + 1) * 8 <= tableClusters * clusterSize) return { blocks, tableIndex, tableClusters };
    space.giveBack(tableIndex, tableClusters);
  }
}
