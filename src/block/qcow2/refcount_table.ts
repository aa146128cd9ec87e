/**
 * Where a larger refcount table goes: behind all clusters that the old one can describe, together
 * with the refcount blocks that describe the table and themselves.
 *
 *   startIndex: block | block | ... | table cluster | table cluster | ... : usedClusters
 *
 * @module
 */

import type { Geometry } from "./geometry.ts";
import { setCount } from "./refcount_entry.ts";

/** The plan for a larger table. */
export interface RefcountTablePlan {
  /** The first cluster of it all. */
  startIndex: number;
  /** Index in the table of the first new block. */
  firstBlockIndex: number;
  /** New blocks. */
  blockCount: number;
  /** Of the new table, which follows the blocks. */
  tableClusters: number;
  /** Blocks and table. */
  usedClusters: number;
  /** The bytes of one of the blocks. */
  encodeBlock(block: number): Uint8Array;
}

/** Plans a table with more than `entryCount` entries, by half at least. */
export function layOutRefcountTable(geometry: Geometry, entryCount: number): RefcountTablePlan {
  const { clusterSize, refcountBlockEntries, refcountOrder } = geometry;
  const startIndex = entryCount * refcountBlockEntries;
  let blockCount = 1;
  for (;;) {
    const entries = Math.ceil((entryCount + blockCount) * 3 / 2);
    const tableClusters = Math.ceil(entries * 8 / clusterSize);
    const usedClusters = blockCount + tableClusters;
    if (usedClusters > blockCount * refcountBlockEntries) {
      blockCount++;
      continue;
    }
    const encodeBlock = (block: number): Uint8Array => {
      const bytes = new Uint8Array(clusterSize);
      const view = new DataView(bytes.buffer);
      const count = Math.min(usedClusters - block * refcountBlockEntries, refcountBlockEntries);
      for (let index = 0; index < count; index++) setCount(view, index, refcountOrder, 1);
      return bytes;
    };
    const plan = { startIndex, firstBlockIndex: entryCount, blockCount, tableClusters };
    return { ...plan, usedClusters, encodeBlock };
  }
}
