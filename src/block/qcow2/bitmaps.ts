/**
 * The dirty bitmaps that a qcow2 image keeps: what a node over it offers as `bitmapStore`.
 *
 * New bitmaps are written in full, to clusters of their own, with a new directory, before the
 * header names that: a crash leaves the old ones, which are marked "in use" since before the first
 * change of the disk, and so count as inconsistent.
 *
 *   stored --markInUse--> in use --store--> stored
 *      \----a write while nobody has loaded them: marked all the same, for ever----> in use
 *
 * An extension whose autoclear bit is off was left behind by a program that does not know bitmaps
 * and wrote to the image. Its bitmaps are shown as inconsistent; their clusters are nobody's any
 * more.
 *
 * @module
 */

import { isZero } from "../../wasm/kernels.ts";
import type { Bitmap } from "../bitmap.ts";
import type { BitmapStore, BitmapToStore, StoredBitmap } from "../bitmap_store.ts";
import { BlockError } from "../errors.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import type { ByteRange, MaybePromise } from "../types.ts";
import {
  BITMAP_AUTO,
  BITMAP_IN_USE,
  checkBitmapConstraints,
  directoryBytes,
  type DirectoryEntry,
  encodeBitmapExtension,
  encodeDirectory,
  MAX_BITMAPS,
  MAX_DIRECTORY_BYTES,
  parseBitmapExtension,
  parseDirectory,
  parseTableEntry,
  TABLE_ALL_ONES,
} from "./bitmap_directory.ts";
import { AUTOCLEAR_BITMAPS, EXTENSION_BITMAPS } from "./format.ts";
import { findExtension, withExtension } from "./header_extensions.ts";
import type { Qcow2Image } from "./image.ts";
import { METADATA } from "./overlap.ts";

/** See the module's head. */
export class Qcow2Bitmaps implements BitmapStore {
  readonly #image: Qcow2Image;
  #entries: DirectoryEntry[] = [];
  #directory: ByteRange = { offset: 0, length: 0 };
  /** The extension's clusters are nobody's any more. */
  #isStale = false;
  #isMarked = true;

  /** `load` follows. */
  constructor(image: Qcow2Image) {
    this.#image = image;
  }

  /** Reads the directory. Throws EINVAL where it is not one. */
  *load(): Steps<void> {
    const { header, metadata } = this.#image;
    const extension = findExtension(header.extensions, EXTENSION_BITMAPS);
    if (extension === undefined || header.version < 3) return;
    this.#isStale = (header.autoclearFeatures & AUTOCLEAR_BITMAPS) === 0n;
    try {
      yield* this.#read(extension.data);
    } catch (error) {
      if (!this.#isStale || !(error instanceof BlockError)) throw error;
    }
    this.#setEntries(this.#entries);
    if (this.#isStale) this.#directory = { offset: 0, length: 0 };
    else metadata.setRanges(METADATA.bitmapDirectory, [this.#directory]);
  }

  /** The disk may change without a stored bitmap being wrong: none of them counts as consistent. */
  get isMarked(): boolean {
    return this.#isMarked;
  }

  /** Throws where a stored bitmap would not follow a new size of the disk. */
  checkResize(): void {
    if (this.#isMarked) return;
    throw new BlockError(
      "ENOTSUP",
      "Cannot resize qcow2 with persistent bitmaps that were not loaded into memory",
    );
  }

  list(): readonly StoredBitmap[] {
    return this.#entries.map(({ name, granularityBits, flags }) => ({
      name,
      granularity: 2 ** granularityBits,
      isRecording: (flags & BITMAP_AUTO) !== 0,
      isInconsistent: this.#isStale || (flags & BITMAP_IN_USE) !== 0,
    }));
  }

  checkNew(
    bitmap: { name: string; granularity: number; sizeBytes: number },
    others: readonly string[],
  ): void {
    const refuse = (message: string): never => {
      throw new BlockError("ENOTSUP", message);
    };
    // Without autoclear bits nobody could tell that a stranger wrote to the image.
    if (this.#image.header.version < 3) refuse("Cannot store dirty bitmaps in qcow2 v2 files");
    checkBitmapConstraints(bitmap, this.#image.geometry.clusterSize);
    if (others.length + 1 > MAX_BITMAPS) {
      refuse("Maximum number of persistent bitmaps is already reached");
    }
    if (directoryBytes([...others, bitmap.name]) > MAX_DIRECTORY_BYTES) {
      refuse("Not enough space in the bitmap directory");
    }
  }

  readBits(name: string, bits: Bitmap): MaybePromise<void> {
    return runSteps(this.#image.lock.hold(() => this.#readBits(name, bits)));
  }

  markInUse(): MaybePromise<void> {
    if (this.isMarked) return;
    return runSteps(this.#image.lock.hold(() => this.mark()));
  }

  store(bitmaps: readonly BitmapToStore[]): MaybePromise<void> {
    if (bitmaps.length === 0 && this.#entries.length === 0) return;
    return runSteps(this.#image.lock.hold(() => this.#store(bitmaps)));
  }

  remove(name: string): MaybePromise<void> {
    return runSteps(this.#image.lock.hold(() => this.#remove(name)));
  }

  /**
   * What `markInUse` does, for one who holds the lock: before the first change of the disk and of
   * its size.
   */
  *mark(): Steps<void> {
    if (this.isMarked) return;
    const marked = this.#entries.map((entry) => ({ ...entry, flags: entry.flags | BITMAP_IN_USE }));
    // In place: each entry is marked or not, and nothing of the disk has changed yet.
    const { offset, length } = this.#directory;
    yield* this.#image.checkOverlap(offset, length, METADATA.bitmapDirectory);
    yield* this.#image.file.write(offset, encodeDirectory(marked));
    yield* this.#image.barrier();
    this.#setEntries(marked);
  }

  #setEntries(entries: DirectoryEntry[]): void {
    this.#entries = entries;
    this.#isMarked = this.#isStale ||
      entries.every(({ flags }) => (flags & BITMAP_IN_USE) !== 0);
  }

  *#read(data: Uint8Array): Steps<void> {
    const { geometry, file, guestSize: sizeBytes } = this.#image;
    const { clusterSize } = geometry;
    const extension = parseBitmapExtension(data, clusterSize);
    const { directoryOffset: offset, directoryBytes: length, count } = extension;
    if (offset + length > file.node.sizeBytes) {
      throw new BlockError("EINVAL", "Failed to read bitmap directory");
    }
    const bytes = new Uint8Array(length);
    yield* settle(file.read(offset, bytes));
    this.#entries = parseDirectory(bytes, count, { clusterSize, sizeBytes });
    this.#directory = { offset, length };
  }

  *#readBits(name: string, bits: Bitmap): Steps<void> {
    const { file, geometry } = this.#image;
    const { clusterSize } = geometry;
    const entry = this.#entries.find((candidate) => candidate.name === name);
    const byteCount = Math.ceil(bits.bitCount / 8);
    if (entry === undefined || entry.tableSize !== Math.ceil(byteCount / clusterSize)) {
      throw unreadable(name, "its table has another size");
    }
    const table = yield* this.#readTable(entry);
    const piece = new Uint8Array(clusterSize);
    for (const [index, value] of table.entries()) {
      const start = index * clusterSize;
      const end = Math.min(start + clusterSize, byteCount);
      const cluster = parseTableEntry(value, clusterSize);
      if (cluster === "zeroes") continue;
      if (cluster === "invalid") throw unreadable(name, "its table is damaged");
      if (cluster === "ones") {
        const first = start * 8 * bits.granularity;
        bits.set(first, Math.min(end * 8 * bits.granularity, bits.sizeBytes) - first);
        continue;
      }
      if (cluster.offset >= file.node.sizeBytes) {
        throw unreadable(name, "a part of it is past the end of the file");
      }
      yield* settle(file.read(cluster.offset, piece));
      bits.storage(start, end).set(piece.subarray(0, end - start));
    }
    // What a stranger wrote behind the last bit.
    const extraBits = byteCount * 8 - bits.bitCount;
    const [last] = bits.storage(byteCount - 1, byteCount);
    bits.storage(byteCount - 1, byteCount)[0] = (last ?? 0) & (0xff >> extraBits);
  }

  *#store(bitmaps: readonly BitmapToStore[]): Steps<void> {
    const previous = this.#isStale ? [] : this.#entries;
    const entries: DirectoryEntry[] = [];
    const allocated: ByteRange[] = [];
    try {
      for (const bitmap of bitmaps) {
        const kept = bitmap.isInconsistent && previous.find(({ name }) => name === bitmap.name);
        entries.push(kept || (yield* this.#write(bitmap, allocated)));
      }
      yield* this.#switch(entries, allocated);
    } catch (error) {
      for (const { offset, length } of allocated) this.#image.freeLater(offset, length, false);
      throw error;
    }
    for (const entry of previous) {
      if (!entries.includes(entry)) yield* this.#free(entry);
    }
    yield* this.#image.commit();
  }

  *#remove(name: string): Steps<void> {
    const entry = this.#entries.find((candidate) => candidate.name === name);
    if (entry === undefined) return;
    const rest = this.#entries.filter((other) => other !== entry);
    if (this.#isStale) {
      this.#entries = rest; // nothing leads to it but what the next change of the header drops
      return;
    }
    const allocated: ByteRange[] = [];
    try {
      yield* this.#switch(rest, allocated);
    } catch (error) {
      for (const { offset, length } of allocated) this.#image.freeLater(offset, length, false);
      throw error;
    }
    yield* this.#free(entry);
    yield* this.#image.commit();
  }

  /** Writes a bitmap's clusters and table, with nothing that leads there yet. */
  *#write(bitmap: BitmapToStore, allocated: ByteRange[]): Steps<DirectoryEntry> {
    const { file, geometry } = this.#image;
    const { clusterSize } = geometry;
    const { name, granularity, bits, isRecording, isInconsistent } = bitmap;
    // One without bits has a table all the same: the format demands it.
    const byteCount = isInconsistent ? 1 : Math.ceil(bits.bitCount / 8);
    const tableSize = Math.max(Math.ceil(byteCount / clusterSize), 1);
    const table = new DataView(new ArrayBuffer(tableSize * 8));
    let run = { offset: 0, clusterCount: 0 };
    for (let index = 0; index < tableSize && !isInconsistent; index++) {
      const start = index * clusterSize;
      const end = Math.min(start + clusterSize, byteCount);
      const isInside = end * 8 <= bits.bitCount;
      if (isZero(bits.storage(start, end))) continue;
      const first = start * 8 * granularity;
      if (
        isInside && bits.isAllSet(first, Math.min(end * 8 * granularity, bits.sizeBytes) - first)
      ) {
        table.setBigUint64(index * 8, TABLE_ALL_ONES);
        continue;
      }
      if (run.clusterCount === 0) run = yield* this.#allocate(tableSize - index, allocated);
      const cluster = new Uint8Array(clusterSize);
      cluster.set(bits.storage(start, end));
      yield* file.write(run.offset, cluster);
      table.setBigUint64(index * 8, BigInt(run.offset));
      run = { offset: run.offset + clusterSize, clusterCount: run.clusterCount - 1 };
    }
    this.#giveBack(run, allocated);
    const tableOffset = yield* this.#writeTable(new Uint8Array(table.buffer), allocated);
    const flags = (isRecording ? BITMAP_AUTO : 0) | (isInconsistent ? BITMAP_IN_USE : 0);
    const nameBytes = new TextEncoder().encode(name);
    const granularityBits = Math.log2(granularity);
    return { name, nameBytes, tableOffset, tableSize, flags, granularityBits };
  }

  /** Makes the header name a directory of these entries. `allocated`: emptied when it does. */
  *#switch(entries: DirectoryEntry[], allocated: ByteRange[]): Steps<void> {
    const image = this.#image;
    const { header } = image;
    const previous = this.#directory;
    let next: ByteRange = { offset: 0, length: 0 };
    let data: Uint8Array | null = null;
    if (entries.length > 0) {
      const bytes = encodeDirectory(entries);
      next = { offset: yield* this.#writeTable(bytes, allocated), length: bytes.length };
      const count = entries.length;
      data = encodeBitmapExtension({
        count,
        directoryOffset: next.offset,
        directoryBytes: next.length,
      });
    }
    yield* image.refcounts.writeBack();
    yield* image.barrier();
    // Whatever becomes of the header now: clusters that it may refer to are rather leaked.
    allocated.length = 0;
    header.extensions = withExtension(header.extensions, EXTENSION_BITMAPS, data);
    if (data === null) header.autoclearFeatures &= ~AUTOCLEAR_BITMAPS;
    else header.autoclearFeatures |= AUTOCLEAR_BITMAPS;
    yield* image.writeHeader();
    yield* image.barrier();
    image.metadata.setRanges(METADATA.bitmapDirectory, [next]);
    this.#directory = next;
    this.#isStale = false;
    this.#setEntries(entries);
    if (previous.length > 0) image.freeLater(previous.offset, previous.length, false);
  }

  /** Writes something small to whole clusters of its own. Where that is. */
  *#writeTable(bytes: Uint8Array, allocated: ByteRange[]): Steps<number> {
    const { clusterSize } = this.#image.geometry;
    const clusterCount = Math.ceil(bytes.length / clusterSize);
    const { offset } = yield* this.#image.refcounts.allocate(clusterCount);
    allocated.push({ offset, length: clusterCount * clusterSize });
    const clusters = new Uint8Array(clusterCount * clusterSize);
    clusters.set(bytes);
    yield* this.#image.file.write(offset, clusters);
    return offset;
  }

  *#allocate(
    countMax: number,
    allocated: ByteRange[],
  ): Steps<{ offset: number; clusterCount: number }> {
    const { clusterSize } = this.#image.geometry;
    const { offset, clusterCount } = yield* this.#image.refcounts.allocateUpTo(countMax);
    allocated.push({ offset, length: clusterCount * clusterSize });
    return { offset, clusterCount };
  }

  /** The rest of a run that was not needed, which is the last one that was allocated. */
  #giveBack(run: { offset: number; clusterCount: number }, allocated: ByteRange[]): void {
    const last = allocated.at(-1);
    if (run.clusterCount === 0 || last === undefined) return;
    const length = run.clusterCount * this.#image.geometry.clusterSize;
    this.#image.freeLater(run.offset, length, false);
    last.length -= length;
  }

  /** Gives up the clusters of an entry that nothing refers to any more. */
  *#free(entry: DirectoryEntry): Steps<void> {
    const { clusterSize } = this.#image.geometry;
    for (const value of yield* this.#readTable(entry)) {
      const cluster = parseTableEntry(value, clusterSize);
      if (typeof cluster === "object") this.#image.freeLater(cluster.offset, clusterSize, false);
    }
    this.#image.freeLater(entry.tableOffset, entry.tableSize * 8, false);
  }

  *#readTable({ tableOffset, tableSize }: DirectoryEntry): Steps<BigUint64Array> {
    const bytes = new Uint8Array(tableSize * 8);
    yield* settle(this.#image.file.read(tableOffset, bytes));
    const view = new DataView(bytes.buffer);
    return BigUint64Array.from({ length: tableSize }, (_, index) => view.getBigUint64(index * 8));
  }
}

function unreadable(name: string, reason: string): BlockError {
  return new BlockError("EINVAL", `Could not read bitmap '${name}' from image: ${reason}`);
}
