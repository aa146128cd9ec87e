/**
 * The L1 table, in memory, and L2 tables, cached in slices: where the content of each guest cluster
 * is. What the entries say is in l2_entry.ts.
 *
 * An entry of either table whose COPIED bit is set refers to something with a reference count of
 * one: it may be changed in place. An L2 table without it, shared with an internal snapshot, is
 * copied before its first change.
 *
 * Changes stay in memory until `Qcow2Image.commit` writes them in the right order. All steps run
 * under the metadata lock; `cachedSlice` needs it not, since it waits for nothing.
 *
 * @module
 */

import { limits } from "../../limits.ts";
import { settle, type Steps } from "../steps.ts";
import type { ImageContext } from "./context.ts";
import { HI_COPIED, HI_OFFSET_MASK } from "./format.ts";
import type { ImageFile } from "./image_file.ts";
import { MetadataCache, type Slice } from "./metadata_cache.ts";
import { METADATA } from "./overlap.ts";
import { hex, type Refcounts } from "./refcounts.ts";
import { writeSlices } from "./write_slices.ts";

/** What an L2 table needs of the whole image beside ImageContext. */
export interface L2Context extends ImageContext {
  /** Clusters for new tables. */
  readonly refcounts: Refcounts;

  /** Writes all metadata, so that a slice can go. */
  commit(): Steps<void>;

  /** Lowers refcounts once nothing in the file refers to the clusters any more. */
  freeLater(offset: number, length: number, isRequested: boolean): void;
}

/** See the module's head. */
export class L2Tables {
  readonly #context: L2Context;
  readonly #cache: MetadataCache;
  /** Upper and lower half of each entry. */
  #l1: Uint32Array = new Uint32Array(0);
  /** Entries that the file does not have yet: the first and the one after the last. */
  #l1DirtyStart = Infinity;
  #l1DirtyEnd = 0;

  /** `load` follows. */
  constructor(context: L2Context, cacheBytes: number = limits.qcow2L2CacheBytes) {
    this.#context = context;
    this.#cache = new MetadataCache(context.geometry.sliceBytes, cacheBytes);
  }

  /** Entries of the L1 table. */
  get l1Size(): number {
    return this.#l1.length / 2;
  }

  /** A slice waits to be written. */
  get isDirty(): boolean {
    return this.#cache.isDirty;
  }

  /** An L1 entry waits to be written: after the L2 tables. */
  get isL1Dirty(): boolean {
    return this.#l1DirtyEnd > 0;
  }

  /** Reads the L1 table that the header names. Forgets all L2 tables, which must be clean. */
  *load(): Steps<void> {
    const { header, file, metadata } = this.#context;
    for (let index = 0; index < this.l1Size; index++) {
      const offset = this.#offsetOf(index);
      if (offset !== 0) metadata.remove(METADATA.activeL2, offset);
    }
    this.#cache.clear();
    const bytes = new Uint8Array(header.l1Size * 8);
    yield* settle(file.read(header.l1TableOffset, bytes));
    const view = new DataView(bytes.buffer);
    this.#l1 = new Uint32Array(bytes.length / 4);
    for (let at = 0; at < this.#l1.length; at++) this.#l1[at] = view.getUint32(at * 4);
    this.#describe();
  }

  /** The offset of the L2 table of that index, 0 where there is none. */
  tableOffset(l1Index: number): number {
    return this.#offsetOf(l1Index);
  }

  /** Whether the L2 table of that index belongs to the active L1 table alone. */
  isTableCopied(l1Index: number): boolean {
    // A bad image may have the bit where there is no table.
    return ((this.#l1[l1Index * 2] ?? 0) & HI_COPIED) !== 0 && this.#offsetOf(l1Index) !== 0;
  }

  /** Changes an L1 entry in memory: another table, or none (0). */
  setTable(l1Index: number, offset: number, isCopied: boolean): void {
    const { metadata, geometry } = this.#context;
    const previous = this.#offsetOf(l1Index);
    if (previous !== 0) metadata.remove(METADATA.activeL2, previous);
    if (previous !== 0 && previous !== offset) this.#cache.forget(previous, geometry.clusterSize);
    if (offset !== 0) metadata.add(METADATA.activeL2, offset);
    this.#l1[l1Index * 2] = (Math.floor(offset / 2 ** 32) | (isCopied ? HI_COPIED : 0)) >>> 0;
    this.#l1[l1Index * 2 + 1] = offset % 2 ** 32;
    this.#l1DirtyStart = Math.min(this.#l1DirtyStart, l1Index);
    this.#l1DirtyEnd = Math.max(this.#l1DirtyEnd, l1Index + 1);
  }

  /** The slice that describes a guest offset, if it is in memory. */
  cachedSlice(guestOffset: number): Slice | undefined {
    const { l2Coverage, sliceCoverage, sliceBytes } = this.#context.geometry;
    const inTable = guestOffset % l2Coverage;
    const table = this.#offsetOf((guestOffset - inTable) / l2Coverage);
    if (table === 0) return undefined;
    return this.#cache.get(table + Math.floor(inTable / sliceCoverage) * sliceBytes);
  }

  /** Whether there is an L2 table for a guest offset. */
  hasTable(guestOffset: number): boolean {
    return this.#offsetOf(Math.floor(guestOffset / this.#context.geometry.l2Coverage)) !== 0;
  }

  /** The slice that describes a guest offset, null where no L2 table does. */
  *slice(guestOffset: number): Steps<Slice | null> {
    const l1Index = Math.floor(guestOffset / this.#context.geometry.l2Coverage);
    const table = this.#offsetOf(l1Index);
    if (table === 0) return null;
    const offset = this.#sliceOffset(guestOffset);
    const cached = this.#cache.get(offset);
    if (cached !== undefined) return cached;
    yield* this.#checkTable(l1Index, table);
    return yield* this.#addSlice(offset, this.#context.file);
  }

  /** Where the slice for a guest offset is, in a table that there is. */
  #sliceOffset(guestOffset: number): number {
    const { l2Coverage, sliceCoverage, sliceBytes } = this.#context.geometry;
    const l1Index = Math.floor(guestOffset / l2Coverage);
    const inTable = guestOffset - l1Index * l2Coverage;
    return this.#offsetOf(l1Index) + Math.floor(inTable / sliceCoverage) * sliceBytes;
  }

  /** The slice that describes a guest offset, in a table that may be changed; made if need be. */
  *sliceForWrite(guestOffset: number): Steps<Slice> {
    const l1Index = Math.floor(guestOffset / this.#context.geometry.l2Coverage);
    if (!this.isTableCopied(l1Index)) {
      const isEmpty = this.#offsetOf(l1Index) === 0;
      yield* this.#ownTable(l1Index);
      // What was just made needs not be read.
      if (isEmpty) return yield* this.#addSlice(this.#sliceOffset(guestOffset), null);
    }
    const slice = yield* this.slice(guestOffset);
    if (slice === null) throw new Error("an L2 table is missing that was just made");
    return slice;
  }

  /** Its entries were changed. */
  markDirty(slice: Slice): void {
    this.#cache.markDirty(slice);
  }

  /** Writes all changed slices. What their entries refer to must be on stable storage. */
  writeBack(): Steps<void> {
    return writeSlices(this.#context, this.#cache, METADATA.activeL2);
  }

  /** Writes the changed entries of the L1 table. Their L2 tables must be on stable storage. */
  *writeBackL1(): Steps<void> {
    if (this.#l1DirtyEnd === 0) return;
    const start = this.#l1DirtyStart;
    const bytes = this.encodeL1(start, this.#l1DirtyEnd);
    const offset = this.#context.header.l1TableOffset + start * 8;
    yield* this.#context.checkOverlap(offset, bytes.length, METADATA.activeL1);
    yield* this.#context.file.write(offset, bytes);
    this.#l1DirtyStart = Infinity;
    this.#l1DirtyEnd = 0;
  }

  /** A part of the L1 table as it stands in the file. */
  encodeL1(start: number, end: number): Uint8Array {
    const view = new DataView(new ArrayBuffer((end - start) * 8));
    for (let at = start * 2; at < end * 2; at++) {
      view.setUint32((at - start * 2) * 4, this.#l1[at] ?? 0);
    }
    return new Uint8Array(view.buffer);
  }

  /**
   * Takes an L1 table of another size, whose place and size the header has already: the entries
   * that both have stay. What is cut off must be empty.
   */
  resizeL1(size: number): void {
    const l1 = new Uint32Array(size * 2);
    l1.set(this.#l1.subarray(0, size * 2));
    this.#l1 = l1;
    this.#l1DirtyEnd = Math.min(this.#l1DirtyEnd, size);
    this.#describe();
  }

  #describe(): void {
    const { metadata, header, geometry } = this.#context;
    metadata.setRanges(METADATA.activeL1, [{
      offset: header.l1TableOffset,
      length: this.l1Size * 8,
    }]);
    for (let index = 0; index < this.l1Size; index++) {
      const offset = this.#offsetOf(index);
      if (offset !== 0 && offset % geometry.clusterSize === 0) {
        metadata.add(METADATA.activeL2, offset);
      }
    }
  }

  #offsetOf(l1Index: number): number {
    const low = this.#l1[l1Index * 2 + 1] ?? 0;
    const high = (this.#l1[l1Index * 2] ?? 0) & HI_OFFSET_MASK;
    // The lowest nine bits are reserved.
    return high * 2 ** 32 + low - (low & 0x1ff);
  }

  *#checkTable(l1Index: number, table: number): Steps<void> {
    const { file, geometry } = this.#context;
    if (table % geometry.clusterSize !== 0) {
      yield* this.#context.corrupted(
        `L2 table offset ${hex(table)} unaligned (L1 index: ${hex(l1Index)})`,
      );
    }
    if (table >= file.node.sizeBytes) {
      yield* this.#context.corrupted(
        `L2 table offset ${hex(table)} past the end of the file (L1 index: ${hex(l1Index)})`,
      );
    }
  }

  /** Puts a slice into the cache: from the file, or an empty one. */
  *#addSlice(offset: number, file: ImageFile | null): Steps<Slice> {
    if (this.#cache.makeRoom() !== null) {
      yield* this.#context.commit();
      this.#cache.makeRoom();
    }
    const bytes = new Uint8Array(this.#context.geometry.sliceBytes);
    if (file !== null) yield* settle(file.read(offset, bytes));
    return this.#cache.put(offset, bytes, false);
  }

  /** Gives the L1 entry a table of its own: an empty one, or a copy of the one that is shared. */
  *#ownTable(l1Index: number): Steps<void> {
    const { file, geometry, refcounts } = this.#context;
    const shared = this.#offsetOf(l1Index);
    if (shared !== 0) yield* this.#checkTable(l1Index, shared);
    const { offset } = yield* refcounts.allocate(1);
    try {
      if (shared !== 0) {
        const bytes = new Uint8Array(geometry.clusterSize);
        yield* settle(file.read(shared, bytes));
        yield* file.write(offset, bytes);
      } else {
        // Also where they are there already: the file system sets the room aside, so that what the
        // guest was told to be written can be found again when the disk is full.
        yield* file.writeZeroes(offset, geometry.clusterSize);
      }
    } catch (error) {
      yield* refcounts.lower(offset, geometry.clusterSize);
      throw error;
    }
    this.setTable(l1Index, offset, true);
    if (shared !== 0) this.#context.freeLater(shared, geometry.clusterSize, false);
  }
}
