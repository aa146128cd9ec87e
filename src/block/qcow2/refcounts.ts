/**
 * Reference counts of host clusters, and with them the allocation of clusters.
 *
 *   refcount table (in memory) -> refcount blocks (cached in slices) -> counts of 1 to 64 bits
 *
 * A count may be raised, and written, at any time: if nothing comes to refer to the cluster it is
 * leaked at worst. It may be lowered only when nothing in the file refers to the cluster any more:
 * image.ts sees to that (`freeLater`). So there is no order among refcount blocks and other tables,
 * but for two: a block is in the file before the table that refers to it, the table before the
 * header.
 *
 * All steps run under the metadata lock.
 *
 * @module
 */

import { limits } from "../../limits.ts";
import { BlockError } from "../errors.ts";
import type { Steps } from "../steps.ts";
import { settle } from "../steps.ts";
import type { ByteRange } from "../types.ts";
import type { ImageContext } from "./context.ts";
import { MAX_REFCOUNT_TABLE_BYTES } from "./format.ts";
import { MetadataCache, type Slice } from "./metadata_cache.ts";
import { METADATA } from "./overlap.ts";
import { getCount, maxCount, setCount } from "./refcount_entry.ts";
import { layOutRefcountTable } from "./refcount_table.ts";
import { writeSlices } from "./write_slices.ts";

/** Clusters that were allocated. */
export interface AllocatedRun {
  /** Where the first one is. */
  offset: number;
  /** How many follow each other. */
  clusterCount: number;
  /** Never used since the file grew: they read as zeroes. */
  isFresh: boolean;
}

/** See the module's head. */
export class Refcounts {
  readonly #context: ImageContext;
  readonly #cache: MetadataCache;
  readonly #sliceEntries: number;
  readonly #countMax: number;
  /** Where each block is, 0 where there is none. */
  #table: Float64Array = new Float64Array(0);
  /** Entries of the table that the file does not have yet: the first and the one after the last. */
  #tableDirtyStart = Infinity;
  #tableDirtyEnd = 0;
  /** Clusters before this one are all in use. */
  #freeIndex = 0;
  /** Clusters from this one on have never been used since the file grew over them. */
  #freshIndex: number;

  /** `load` follows. */
  constructor(context: ImageContext, cacheBytes: number = limits.qcow2RefcountCacheBytes) {
    const { geometry, file } = context;
    this.#context = context;
    this.#cache = new MetadataCache(geometry.sliceBytes, cacheBytes);
    this.#sliceEntries = geometry.sliceBytes * 8 / 2 ** geometry.refcountOrder;
    this.#countMax = maxCount(geometry.refcountOrder);
    this.#freshIndex = Math.ceil(file.node.sizeBytes / geometry.clusterSize);
  }

  /** Where each refcount block is, 0 where there is none. */
  get table(): Float64Array {
    return this.#table;
  }

  /** The largest count that there is room for. */
  get countMax(): number {
    return this.#countMax;
  }

  /** Something waits to be written. */
  get isDirty(): boolean {
    return this.#cache.isDirty || this.#tableDirtyEnd > 0;
  }

  /** Reads the table that the header names. */
  *load(): Steps<void> {
    const { header, geometry, file, metadata } = this.#context;
    const bytes = new Uint8Array(header.refcountTableClusters * geometry.clusterSize);
    if (header.refcountTableOffset + bytes.length > roundedSize(file.node.sizeBytes, geometry)) {
      throw new BlockError("EIO", "The reference count table is past the end of the file");
    }
    yield* settle(file.read(header.refcountTableOffset, bytes));
    const view = new DataView(bytes.buffer);
    this.#table = new Float64Array(bytes.length / 8);
    for (let index = 0; index < this.#table.length; index++) {
      const low = view.getUint32(index * 8 + 4);
      // The lowest nine bits are reserved.
      const offset = view.getUint32(index * 8) * 2 ** 32 + low - (low & 0x1ff);
      this.#table[index] = offset;
      if (offset !== 0 && this.#isBlock(offset)) metadata.add(METADATA.refcountBlock, offset);
    }
    metadata.setRanges(METADATA.refcountTable, [{
      offset: header.refcountTableOffset,
      length: bytes.length,
    }]);
  }

  /** The count of the cluster of that index. */
  *get(index: number): Steps<number> {
    const slice = yield* this.#slice(index);
    if (slice === null) return 0;
    return getCount(slice.view, index % this.#sliceEntries, this.#context.geometry.refcountOrder);
  }

  /** Raises the count of every cluster that the range touches by one. */
  *raise(offset: number, length: number): Steps<void> {
    const { clusterSize, refcountOrder } = this.#context.geometry;
    const end = Math.ceil((offset + length) / clusterSize);
    for (let index = Math.floor(offset / clusterSize); index < end; index++) {
      const slice = (yield* this.#slice(index)) ?? (yield* this.#sliceOfNewBlock(index));
      const count = getCount(slice.view, index % this.#sliceEntries, refcountOrder);
      if (count >= this.#countMax) {
        throw new BlockError("EINVAL", "A cluster's reference count would be too large");
      }
      setCount(slice.view, index % this.#sliceEntries, refcountOrder, count + 1);
      this.#cache.markDirty(slice);
    }
  }

  /**
   * Lowers the count of every cluster that the range touches by one and tells of those that are
   * free now. Nothing in the file may refer to them any more: see `freeLater` of image.ts.
   */
  *lower(offset: number, length: number): Steps<ByteRange[]> {
    const { clusterSize, refcountOrder } = this.#context.geometry;
    const freed: ByteRange[] = [];
    const end = Math.ceil((offset + length) / clusterSize);
    for (let index = Math.floor(offset / clusterSize); index < end; index++) {
      const slice = yield* this.#slice(index);
      if (slice === null) continue;
      const count = getCount(slice.view, index % this.#sliceEntries, refcountOrder);
      if (count === 0) continue; // it lied before
      setCount(slice.view, index % this.#sliceEntries, refcountOrder, count - 1);
      this.#cache.markDirty(slice);
      if (count > 1) continue;
      this.#freeIndex = Math.min(this.#freeIndex, index);
      const last = freed.at(-1);
      if (last !== undefined && last.offset + last.length === index * clusterSize) {
        last.length += clusterSize;
      } else {
        freed.push({ offset: index * clusterSize, length: clusterSize });
      }
    }
    return freed;
  }

  /**
   * Allocates up to `countMax` clusters that follow each other: the first free ones. The file
   * reaches behind them then.
   */
  *allocateUpTo(countMax: number): Steps<AllocatedRun> {
    const start = yield* this.#findFree(this.#freeIndex);
    const count = yield* this.#countFree(start, countMax);
    const run = yield* this.#take(start, count);
    this.#freeIndex = start + count;
    return run;
  }

  /** Allocates exactly `count` clusters that follow each other. */
  *allocate(count: number): Steps<AllocatedRun> {
    const firstFree = yield* this.#findFree(this.#freeIndex);
    this.#freeIndex = firstFree;
    for (let start = firstFree;;) {
      const found = yield* this.#countFree(start, count);
      if (found === count) {
        const run = yield* this.#take(start, count);
        if (start === firstFree) this.#freeIndex = start + count;
        return run;
      }
      // Many clusters may not fit between the places where blocks would be put one by one.
      if ((yield* this.#slice(start + found)) === null) return yield* this.#allocateBehind(count);
      start = yield* this.#findFree(start + found + 1);
    }
  }

  /** Writes all counts, then the table. A barrier must follow before anything relies on them. */
  *writeBack(): Steps<void> {
    const { file } = this.#context;
    if (this.#cache.isDirty) {
      try {
        yield* writeSlices(this.#context, this.#cache, METADATA.refcountBlock);
      } finally {
        // After the writes: a barrier that began before does not cover them.
        this.#context.reliesOn();
      }
    }
    if (this.#tableDirtyEnd === 0) return;
    yield* this.#context.barrier();
    const start = this.#tableDirtyStart;
    const entries = this.#table.subarray(start, this.#tableDirtyEnd);
    const { refcountTableOffset } = this.#context.header;
    const offset = refcountTableOffset + start * 8;
    yield* this.#context.checkOverlap(offset, entries.length * 8, METADATA.refcountTable);
    yield* file.write(offset, encodeTable(entries));
    this.#context.reliesOn();
    this.#tableDirtyStart = Infinity;
    this.#tableDirtyEnd = 0;
  }

  /** Forgets the cached blocks of a table that was replaced behind our back: all must be clean. */
  *reload(): Steps<void> {
    this.#cache.clear();
    this.#freeIndex = 0;
    yield* this.load();
  }

  /** Gives up the blocks that count nothing but themselves, and writes the rest. */
  *dropEmptyBlocks(): Steps<void> {
    const { clusterSize, refcountBlockEntries } = this.#context.geometry;
    const counted: number[] = [];
    for (let blockIndex = 0; blockIndex < this.#table.length; blockIndex++) {
      const offset = this.#table[blockIndex] ?? 0;
      if (offset === 0 || !(yield* this.#isBlockEmpty(blockIndex))) continue;
      this.#uninstallBlock(blockIndex);
      if (Math.floor(offset / clusterSize / refcountBlockEntries) !== blockIndex) {
        counted.push(offset);
      }
    }
    yield* this.writeBack();
    yield* this.#context.barrier();
    for (const offset of counted) yield* this.lower(offset, clusterSize);
    this.#freeIndex = 0;
  }

  /** Whether a block has no count but its own. */
  *#isBlockEmpty(blockIndex: number): Steps<boolean> {
    const { clusterSize, refcountBlockEntries, refcountOrder } = this.#context.geometry;
    const own = (this.#table[blockIndex] ?? 0) / clusterSize;
    const end = (blockIndex + 1) * refcountBlockEntries;
    for (let index = end - refcountBlockEntries; index < end;) {
      const slice = yield* this.#slice(index);
      if (slice === null) return false;
      for (const stop = index + this.#sliceEntries; index < stop; index++) {
        const count = getCount(slice.view, index % this.#sliceEntries, refcountOrder);
        if (count > (index === own ? 1 : 0)) return false;
      }
    }
    return true;
  }

  /** The first cluster behind all that are in use; looks at all counts from the end on. */
  *endOfUse(): Steps<number> {
    const { refcountBlockEntries, refcountOrder } = this.#context.geometry;
    for (let block = this.#table.length - 1; block >= 0; block--) {
      if (this.#table[block] === 0) continue;
      const first = block * refcountBlockEntries;
      for (let index = first + refcountBlockEntries - 1; index >= first; index--) {
        const slice = yield* this.#slice(index);
        if (slice === null) break;
        if (getCount(slice.view, index % this.#sliceEntries, refcountOrder) > 0) return index + 1;
      }
    }
    return 0;
  }

  /** The slice with a cluster's count, null where no block describes it. */
  *#slice(index: number): Steps<Slice | null> {
    const { refcountBlockEntries, sliceBytes, clusterSize } = this.#context.geometry;
    const blockIndex = Math.floor(index / refcountBlockEntries);
    const block = this.#table[blockIndex] ?? 0;
    if (block === 0) return null;
    const inBlock = Math.floor((index - blockIndex * refcountBlockEntries) / this.#sliceEntries);
    const offset = block + inBlock * sliceBytes;
    const cached = this.#cache.get(offset);
    if (cached !== undefined) return cached;
    if (!this.#isBlock(block)) {
      return yield* this.#context.corrupted(
        block % clusterSize === 0
          ? `Refblock offset ${hex(block)} is past the end of the file`
          : `Refblock offset ${hex(block)} unaligned (reftable index: ${hex(blockIndex)})`,
      );
    }
    yield* this.#makeRoom();
    const bytes = new Uint8Array(sliceBytes);
    yield* settle(this.#context.file.read(offset, bytes));
    return this.#cache.put(offset, bytes, false);
  }

  /** Another slice can come without anything being written. */
  *#makeRoom(): Steps<void> {
    if (this.#cache.makeRoom() === null) return;
    yield* this.writeBack();
    this.#cache.makeRoom();
  }

  /** The first free cluster from `start` on, in a place that a refcount block describes. */
  *#findFree(start: number): Steps<number> {
    const { refcountOrder } = this.#context.geometry;
    for (let index = start;;) {
      const slice = yield* this.#slice(index);
      if (slice === null) {
        // Nothing here is in use: the block that is missing is put right here.
        index = yield* this.#addBlockAt(index);
        continue;
      }
      const end = index - index % this.#sliceEntries + this.#sliceEntries;
      for (; index < end; index++) {
        if (getCount(slice.view, index % this.#sliceEntries, refcountOrder) === 0) return index;
      }
    }
  }

  /** How many clusters are free from `start`, which is, on: up to `countMax`. */
  *#countFree(start: number, countMax: number): Steps<number> {
    const { refcountOrder } = this.#context.geometry;
    for (let count = 1; count < countMax;) {
      const index = start + count;
      // Where no block is yet a run ends: there the block will be.
      const slice = yield* this.#slice(index);
      if (slice === null) return count;
      const end = Math.min(
        index - index % this.#sliceEntries + this.#sliceEntries,
        start + countMax,
      );
      for (let at = index; at < end; at++, count++) {
        if (getCount(slice.view, at % this.#sliceEntries, refcountOrder) !== 0) return count;
      }
    }
    return countMax;
  }

  /** Allocates behind all blocks: those that are needed for it first, then the run. */
  *#allocateBehind(count: number): Steps<AllocatedRun> {
    const { refcountBlockEntries } = this.#context.geometry;
    const blockCount = Math.ceil(count / (refcountBlockEntries - 1));
    let first = this.#blockEnd();
    while (first + blockCount > this.#table.length) {
      yield* this.#growTable();
      first = this.#blockEnd();
    }
    const start = first * refcountBlockEntries;
    try {
      for (let block = 0; block < blockCount; block++) {
        yield* this.#installBlock(first + block, start + block);
      }
      yield* this.#countAsUsed(start, blockCount);
    } catch (error) {
      for (let block = 0; block < blockCount; block++) this.#uninstallBlock(first + block);
      throw error;
    }
    return yield* this.#take(start + blockCount, count);
  }

  /** Counts free clusters as used. */
  *#take(start: number, count: number): Steps<AllocatedRun> {
    const { clusterSize } = this.#context.geometry;
    const offset = start * clusterSize;
    yield* this.#context.checkOverlap(offset, count * clusterSize);
    yield* this.#context.file.ensure(offset + count * clusterSize);
    yield* this.#countAsUsed(start, count);
    const isFresh = start >= this.#freshIndex;
    this.#freshIndex = Math.max(this.#freshIndex, start + count);
    return { offset, clusterCount: count, isFresh };
  }

  *#countAsUsed(start: number, count: number): Steps<void> {
    const { refcountOrder } = this.#context.geometry;
    for (let index = start; index < start + count;) {
      const slice = yield* this.#slice(index);
      if (slice === null) throw new Error("clusters are allocated where no block is");
      const end = Math.min(index - index % this.#sliceEntries + this.#sliceEntries, start + count);
      for (; index < end; index++) {
        setCount(slice.view, index % this.#sliceEntries, refcountOrder, 1);
      }
      this.#cache.markDirty(slice);
    }
  }

  /** Index in the table behind the last block. */
  #blockEnd(): number {
    let end = this.#table.length;
    while (end > 0 && this.#table[end - 1] === 0) end--;
    return end;
  }

  /** A block may be there: aligned, and in the file. */
  #isBlock(offset: number): boolean {
    const { file, geometry } = this.#context;
    return offset < file.node.sizeBytes && offset % geometry.clusterSize === 0;
  }

  /** Puts a missing block, which counts itself, to the cluster of that index. The next index. */
  *#addBlockAt(index: number): Steps<number> {
    const { refcountBlockEntries, refcountOrder } = this.#context.geometry;
    const blockIndex = Math.floor(index / refcountBlockEntries);
    if (blockIndex >= this.#table.length) return yield* this.#growTable();
    // The table must not be written before the block counts itself.
    yield* this.#makeRoom();
    try {
      yield* this.#installBlock(blockIndex, index);
      const slice = yield* this.#slice(index);
      if (slice === null) throw new Error("a block is missing that was just made");
      setCount(slice.view, index % this.#sliceEntries, refcountOrder, 1);
      this.#cache.markDirty(slice);
    } catch (error) {
      // A block that does not count itself would be overwritten.
      this.#uninstallBlock(blockIndex);
      throw error;
    }
    return index + 1;
  }

  /** Makes the cluster `at` the block of that index. Its own count is the caller's affair. */
  *#installBlock(blockIndex: number, at: number): Steps<void> {
    const { clusterSize } = this.#context.geometry;
    const offset = at * clusterSize;
    yield* this.#context.checkOverlap(offset, clusterSize);
    // Zeroes also where they are there already: the file system sets the room aside.
    yield* this.#context.file.writeZeroes(offset, clusterSize);
    this.#freshIndex = Math.max(this.#freshIndex, at + 1);
    this.#setBlock(blockIndex, offset);
    this.#context.metadata.add(METADATA.refcountBlock, offset);
  }

  /** Undoes `installBlock`, if it was done. */
  #uninstallBlock(blockIndex: number): void {
    const offset = this.#table[blockIndex] ?? 0;
    if (offset === 0) return;
    this.#cache.forget(offset, this.#context.geometry.clusterSize);
    this.#setBlock(blockIndex, 0);
    this.#context.metadata.remove(METADATA.refcountBlock, offset);
  }

  #setBlock(blockIndex: number, offset: number): void {
    this.#table[blockIndex] = offset;
    this.#tableDirtyStart = Math.min(this.#tableDirtyStart, blockIndex);
    this.#tableDirtyEnd = Math.max(this.#tableDirtyEnd, blockIndex + 1);
  }

  /** For a cluster in use that no block describes: a bad image, or a hole between blocks. */
  *#sliceOfNewBlock(index: number): Steps<Slice> {
    const { refcountBlockEntries, clusterSize } = this.#context.geometry;
    const blockIndex = Math.floor(index / refcountBlockEntries);
    if (blockIndex >= MAX_REFCOUNT_TABLE_BYTES / 8) throw tooLarge();
    while (blockIndex >= this.#table.length) yield* this.#growTable(blockIndex + 1);
    const { offset } = yield* this.allocate(1);
    const made = yield* this.#slice(index);
    if (made !== null) {
      // The allocation came to the same place and made the block.
      yield* this.lower(offset, clusterSize);
      return made;
    }
    try {
      yield* this.#installBlock(blockIndex, offset / clusterSize);
    } catch (error) {
      yield* this.lower(offset, clusterSize);
      throw error;
    }
    const slice = yield* this.#slice(index);
    if (slice === null) throw new Error("a block is missing that was just made");
    return slice;
  }

  /**
   * Puts a larger table behind everything that the old one can describe, with the blocks that
   * describe it. The next index that may be free.
   */
  *#growTable(entriesMin = 0): Steps<number> {
    const { geometry, header, file, metadata } = this.#context;
    // The new table takes the entries as they are: what they refer to must be in the file.
    yield* this.writeBack();
    const plan = layOutRefcountTable(geometry, Math.max(this.#table.length, entriesMin));
    if (plan.tableClusters * geometry.clusterSize > MAX_REFCOUNT_TABLE_BYTES) throw tooLarge();
    const { clusterSize } = geometry;
    const start = plan.startIndex * clusterSize;
    yield* this.#context.checkOverlap(start, plan.usedClusters * clusterSize);
    yield* file.ensure(start + plan.usedClusters * clusterSize);
    for (let block = 0; block < plan.blockCount; block++) {
      yield* file.write(start + block * clusterSize, plan.encodeBlock(block));
    }
    const table = new Float64Array(plan.tableClusters * clusterSize / 8);
    table.set(this.#table);
    for (let block = 0; block < plan.blockCount; block++) {
      table[plan.firstBlockIndex + block] = start + block * clusterSize;
    }
    const tableOffset = start + plan.blockCount * clusterSize;
    yield* file.write(tableOffset, encodeTable(table));
    yield* this.#context.barrier();
    const previous = {
      offset: header.refcountTableOffset,
      length: header.refcountTableClusters * clusterSize,
    };
    header.refcountTableOffset = tableOffset;
    header.refcountTableClusters = plan.tableClusters;
    try {
      yield* this.#context.writeHeader();
      yield* this.#context.barrier();
    } catch (error) {
      // The table that is in use stays where it was.
      header.refcountTableOffset = previous.offset;
      header.refcountTableClusters = previous.length / clusterSize;
      throw error;
    }
    this.#table = table;
    for (let block = 0; block < plan.blockCount; block++) {
      metadata.add(METADATA.refcountBlock, start + block * clusterSize);
    }
    metadata.setRanges(METADATA.refcountTable, [{
      offset: tableOffset,
      length: table.length * 8,
    }]);
    this.#freshIndex = Math.max(this.#freshIndex, plan.startIndex + plan.usedClusters);
    yield* this.lower(previous.offset, previous.length);
    return plan.startIndex + plan.usedClusters;
  }
}

function roundedSize(sizeBytes: number, { clusterSize }: { clusterSize: number }): number {
  return Math.ceil(sizeBytes / clusterSize) * clusterSize;
}

function encodeTable(entries: Float64Array): Uint8Array {
  const view = new DataView(new ArrayBuffer(entries.length * 8));
  entries.forEach((offset, index) => {
    view.setUint32(index * 8, Math.floor(offset / 2 ** 32));
    view.setUint32(index * 8 + 4, offset % 2 ** 32);
  });
  return new Uint8Array(view.buffer);
}

function tooLarge(): BlockError {
  return new BlockError("EFBIG", "The reference count table would be too large");
}

/** As QEMU writes numbers in messages. */
export function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
