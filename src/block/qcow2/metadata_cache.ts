/**
 * A cache of pieces ("slices") of metadata tables, by their offset in the file: bounded, least
 * recently used goes first, written back when its owner says so. A slice is the table's bytes as
 * they are in the file, so that loading and writing convert nothing.
 *
 *   load --> clean --markDirty--> dirty --write back--> clean --evict--> gone
 *
 * The owner decides the order of writes (see commit.ts): the cache writes nothing by itself. It may
 * hold one slice more than its bound for each dirty one that its owner can't write right now.
 *
 * @module
 */

import { assert } from "../assert.ts";

/** A piece of a table in memory. */
export class Slice {
  /** The bytes, for access by number. */
  readonly view: DataView;
  /** It differs from the file. */
  isDirty = false;
  /** Neighbours in the order of use; null at the ends. For the cache. */
  newer: Slice | null = null;
  /** See `newer`. */
  older: Slice | null = null;

  /** Made by MetadataCache.put. `offset`: in the file. */
  constructor(readonly offset: number, readonly bytes: Uint8Array) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }
}

/** See the module's head. */
export class MetadataCache {
  readonly #slices = new Map<number, Slice>();
  readonly #dirty = new Set<Slice>();
  readonly #sliceBytes: number;
  readonly #countMax: number;
  #newest: Slice | null = null;
  #oldest: Slice | null = null;

  /** `bytesMax`: its bound; two slices there may be in any case. */
  constructor(sliceBytes: number, bytesMax: number) {
    this.#sliceBytes = sliceBytes;
    this.#countMax = Math.max(Math.floor(bytesMax / sliceBytes), 2);
  }

  /** Slices in memory. */
  get count(): number {
    return this.#slices.size;
  }

  /** Something waits to be written. */
  get isDirty(): boolean {
    return this.#dirty.size > 0;
  }

  /** The slice at that offset, if it is there. It is the most recently used one then. */
  get(offset: number): Slice | undefined {
    const newest = this.#newest;
    if (newest !== null && newest.offset === offset) return newest;
    const slice = this.#slices.get(offset);
    if (slice !== undefined) {
      this.#unlink(slice);
      this.#linkNewest(slice);
    }
    return slice;
  }

  /**
   * The slice that has to be written before another one can come: null where there is room, or is
   * made by forgetting a clean slice.
   */
  makeRoom(): Slice | null {
    while (this.#slices.size >= this.#countMax) {
      const oldest = this.#oldest;
      assert(oldest !== null, "a full cache has an oldest slice");
      if (oldest.isDirty) return oldest;
      this.#drop(oldest);
    }
    return null;
  }

  /** Takes a slice in: bytes as they are in the file, or new and dirty. */
  put(offset: number, bytes: Uint8Array, isDirty: boolean): Slice {
    assert(bytes.length === this.#sliceBytes, "a slice has another size");
    assert(!this.#slices.has(offset), "a slice is loaded twice");
    const slice = new Slice(offset, bytes);
    this.#slices.set(offset, slice);
    this.#linkNewest(slice);
    if (isDirty) this.markDirty(slice);
    return slice;
  }

  /** Its bytes were changed. */
  markDirty(slice: Slice): void {
    if (slice.isDirty) return;
    slice.isDirty = true;
    this.#dirty.add(slice);
  }

  /** Its bytes are in the file. */
  markClean(slice: Slice): void {
    slice.isDirty = false;
    this.#dirty.delete(slice);
  }

  /** All that has to be written, in the order of offsets. */
  dirtySlices(): Slice[] {
    return [...this.#dirty].sort((a, b) => a.offset - b.offset);
  }

  /** Forgets the slices of a table that is no more, also dirty ones. */
  forget(offset: number, length: number): void {
    for (let at = offset; at < offset + length; at += this.#sliceBytes) {
      const slice = this.#slices.get(at);
      if (slice === undefined) continue;
      this.markClean(slice);
      this.#drop(slice);
    }
  }

  /** Forgets everything; nothing may be dirty. */
  clear(): void {
    assert(this.#dirty.size === 0, "dirty metadata is forgotten");
    this.#slices.clear();
    this.#newest = this.#oldest = null;
  }

  #drop(slice: Slice): void {
    this.#slices.delete(slice.offset);
    this.#unlink(slice);
  }

  #unlink(slice: Slice): void {
    if (slice.newer === null) this.#newest = slice.older;
    else slice.newer.older = slice.older;
    if (slice.older === null) this.#oldest = slice.newer;
    else slice.older.newer = slice.newer;
    slice.newer = slice.older = null;
  }

  #linkNewest(slice: Slice): void {
    slice.older = this.#newest;
    if (this.#newest !== null) this.#newest.newer = slice;
    this.#newest = slice;
    this.#oldest ??= slice;
  }
}
