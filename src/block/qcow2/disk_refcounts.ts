/**
 * The reference counts of an image as they stand in its file, for checking them: whatever the table
 * says, nothing outside of the file is read, and memory is bounded.
 *
 * @module
 */

import { settle, type Steps } from "../steps.ts";
import type { ScannedImage } from "./check_scan.ts";
import { getCount } from "./refcount_entry.ts";

const CACHE_BYTES = 8 * 1024 * 1024;

/** See the module's head. */
export class DiskRefcounts {
  /** Where each block is, 0 where there is none. */
  readonly table: Float64Array;
  readonly #reserved = new Set<number>();
  readonly #image: ScannedImage;
  readonly #blocks = new Map<number, DataView>();
  readonly #blocksMax: number;
  #last: DataView | null = null;
  #lastIndex = -1;

  private constructor(image: ScannedImage, bytes: Uint8Array) {
    this.#image = image;
    this.#blocksMax = Math.max(Math.floor(CACHE_BYTES / image.geometry.clusterSize), 2);
    this.table = new Float64Array(bytes.length / 8);
    const view = new DataView(bytes.buffer);
    for (let index = 0; index < this.table.length; index++) {
      const low = view.getUint32(index * 8 + 4);
      if ((low & 0x1ff) !== 0) this.#reserved.add(index);
      this.table[index] = view.getUint32(index * 8) * 2 ** 32 + low - (low & 0x1ff);
    }
  }

  /** Reads the table. */
  static *load(image: ScannedImage): Steps<DiskRefcounts> {
    const { header, geometry, file } = image;
    const bytes = new Uint8Array(header.refcountTableClusters * geometry.clusterSize);
    yield* settle(file.read(header.refcountTableOffset, bytes));
    return new DiskRefcounts(image, bytes);
  }

  /** The table's entry has bits set that mean nothing. */
  isReserved = (index: number): boolean => this.#reserved.has(index);

  /** The block of that index as it stands in the file, null where there is none that makes sense. */
  *block(index: number): Steps<DataView | null> {
    const { geometry, file } = this.#image;
    const offset = this.table[index] ?? 0;
    const isGood = offset !== 0 && offset % geometry.clusterSize === 0 &&
      offset < file.node.sizeBytes && !this.#reserved.has(index);
    if (!isGood) return null;
    const cached = this.#blocks.get(offset);
    if (cached !== undefined) return cached;
    const bytes = new Uint8Array(geometry.clusterSize);
    yield* settle(file.read(offset, bytes));
    const [oldest] = this.#blocks.keys();
    if (oldest !== undefined && this.#blocks.size >= this.#blocksMax) this.#blocks.delete(oldest);
    const view = new DataView(bytes.buffer);
    this.#blocks.set(offset, view);
    return view;
  }

  /** The count of a cluster, if its block was the last one that was asked for; else -1. */
  getCached(cluster: number): number {
    const { refcountBlockEntries, refcountOrder } = this.#image.geometry;
    if (this.#last === null || Math.floor(cluster / refcountBlockEntries) !== this.#lastIndex) {
      return -1;
    }
    return getCount(this.#last, cluster % refcountBlockEntries, refcountOrder);
  }

  /** The count of a cluster. */
  *get(cluster: number): Steps<number> {
    const { refcountBlockEntries, refcountOrder } = this.#image.geometry;
    const index = Math.floor(cluster / refcountBlockEntries);
    const block = yield* this.block(index);
    this.#last = block;
    this.#lastIndex = index;
    return block === null ? 0 : getCount(block, cluster % refcountBlockEntries, refcountOrder);
  }

  /** Writes a block that was changed. */
  *write(index: number, block: DataView): Steps<void> {
    yield* this.#image.file.write(this.table[index] ?? 0, new Uint8Array(block.buffer));
  }
}
