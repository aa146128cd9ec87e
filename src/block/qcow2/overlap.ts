/**
 * Where an image's metadata lies, so that nothing is written over it by mistake: an image whose
 * reference counts lie would else destroy itself. Asked before every write, at a cost that depends
 * on the length of the write alone.
 *
 * It knows what QEMU's overlap-check=cached knows: header, active and inactive L1 tables, active L2
 * tables, refcount table and blocks, snapshot table, bitmap directory. Level 2 tables and refcount
 * blocks, of which there are many, are in a hash table by cluster; the rest is a few ranges.
 *
 * @module
 */

import type { ByteRange } from "../types.ts";

/** What may lie somewhere; the names are QEMU's. Powers of two, since a bad image may mix them. */
export const METADATA = {
  header: 1,
  activeL1: 2,
  activeL2: 4,
  refcountTable: 8,
  refcountBlock: 16,
  snapshotTable: 32,
  inactiveL1: 64,
  bitmapDirectory: 128,
} as const;

const NAMES: readonly (readonly [number, string])[] = [
  [METADATA.header, "qcow2_header"],
  [METADATA.activeL1, "active L1 table"],
  [METADATA.activeL2, "active L2 table"],
  [METADATA.refcountTable, "refcount table"],
  [METADATA.refcountBlock, "refcount block"],
  [METADATA.snapshotTable, "snapshot table"],
  [METADATA.inactiveL1, "inactive L1 table"],
  [METADATA.bitmapDirectory, "bitmap directory"],
];

/** The name of the first kind in a set of them. */
export function metadataName(kinds: number): string {
  return NAMES.find(([kind]) => (kinds & kind) !== 0)?.[1] ?? "metadata";
}

/** See the module's head. */
export class MetadataMap {
  readonly #clusterSize: number;
  readonly #clusters = new ClusterKinds();
  readonly #ranges = new Map<number, readonly ByteRange[]>();
  /** The ranges in one list, for the check. */
  #flat: { kind: number; start: number; end: number }[] = [];

  /** Knows the header only. */
  constructor(clusterSize: number) {
    this.#clusterSize = clusterSize;
    this.setRanges(METADATA.header, [{ offset: 0, length: clusterSize }]);
  }

  /** The tables of a kind that has few: these and no others. */
  setRanges(kind: number, ranges: readonly ByteRange[]): void {
    this.#ranges.set(kind, ranges);
    this.#flat = [];
    for (const [kind, list] of this.#ranges) {
      for (const { offset, length } of list) {
        if (length === 0) continue;
        const end = Math.ceil((offset + length) / this.#clusterSize) * this.#clusterSize;
        this.#flat.push({ kind, start: offset, end });
      }
    }
  }

  /** A cluster holds a table of `kind` (active L2, refcount block). */
  add(kind: number, offset: number): void {
    this.#clusters.set(this.#index(offset), kind);
  }

  /** A cluster holds no table any more. */
  remove(kind: number, offset: number): void {
    this.#clusters.clear(this.#index(offset), kind);
  }

  /** The kinds of metadata, but `ignored`, in a range: 0 where it may be written. */
  find(offset: number, length: number, ignored = 0): number {
    const end = offset + length;
    for (const range of this.#flat) {
      if (range.start < end && offset < range.end && (range.kind & ignored) === 0) {
        return range.kind;
      }
    }
    const last = this.#index(end - 1);
    for (let index = this.#index(offset); index <= last; index++) {
      const kinds = this.#clusters.get(index) & ~ignored;
      if (kinds !== 0) return kinds;
    }
    return 0;
  }

  #index(offset: number): number {
    return (offset - (offset & (this.#clusterSize - 1))) / this.#clusterSize;
  }
}

const EMPTY = -1;
const INITIAL_CAPACITY = 64;

/** Cluster index -> kinds: open addressing in two typed arrays, since a bad image has millions. */
class ClusterKinds {
  #keys = new Float64Array(INITIAL_CAPACITY).fill(EMPTY);
  #kinds = new Uint8Array(INITIAL_CAPACITY);
  #count = 0;

  get(key: number): number {
    return this.#kinds[this.#slot(key)] ?? 0;
  }

  set(key: number, kind: number): void {
    let slot = this.#slot(key);
    if (this.#keys[slot] === EMPTY) {
      if (++this.#count * 2 > this.#keys.length) {
        this.#grow();
        slot = this.#slot(key);
      }
      this.#keys[slot] = key;
    }
    this.#kinds[slot] = (this.#kinds[slot] ?? 0) | kind;
  }

  /** The key stays, with no kind, until the table grows. */
  clear(key: number, kind: number): void {
    const slot = this.#slot(key);
    this.#kinds[slot] = (this.#kinds[slot] ?? 0) & ~kind;
  }

  /** Where the key is, or would be. */
  #slot(key: number): number {
    const mask = this.#keys.length - 1;
    let slot = Math.imul(key | 0, 0x9e3779b1) >>> 7 & mask;
    for (;;) {
      const found = this.#keys[slot];
      if (found === key || found === EMPTY) return slot;
      slot = (slot + 1) & mask;
    }
  }

  #grow(): void {
    const keys = this.#keys;
    const kinds = this.#kinds;
    this.#keys = new Float64Array(keys.length * 2).fill(EMPTY);
    this.#kinds = new Uint8Array(keys.length * 2);
    this.#count = 1; // the one that is about to come
    for (let at = 0; at < keys.length; at++) {
      const key = keys[at] ?? EMPTY;
      if (key === EMPTY || kinds[at] === 0) continue;
      const slot = this.#slot(key);
      this.#keys[slot] = key;
      this.#kinds[slot] = kinds[at] ?? 0;
      this.#count++;
    }
  }
}
