/**
 * How often each cluster of a file is referred to, counted in memory: a byte for each cluster where
 * something refers to a cluster nearby, four bytes where one counts more than 255 references. A
 * bound on the memory keeps a hostile image, which may claim to have any number of clusters, in
 * check.
 *
 * @module
 */

import { BlockError } from "../errors.ts";

const PAGE_ENTRIES = 4096;
const NARROW_MAX = 0xff;
/** A count that large stays there. */
const COUNT_MAX = 0xffffffff;

/** See the module's head. */
export class ClusterCounter {
  readonly #pages = new Map<number, Uint8Array | Uint32Array>();
  readonly #bytesMax: number;
  #bytes = 0;
  #lastIndex = -1;
  #last: Uint8Array | Uint32Array | null = null;

  /** All counts are 0. */
  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  /** The count of a cluster. */
  get(index: number): number {
    return this.#page(index)?.[index % PAGE_ENTRIES] ?? 0;
  }

  /** Adds to the count of a cluster. Throws ENOSPC at the bound. */
  add(index: number, count: number): void {
    const last = this.#last;
    if (last !== null && (index - index % PAGE_ENTRIES) / PAGE_ENTRIES === this.#lastIndex) {
      const sum = (last[index % PAGE_ENTRIES] ?? 0) + count;
      if (sum <= NARROW_MAX) {
        last[index % PAGE_ENTRIES] = sum;
        return;
      }
    }
    let page = this.#page(index) ?? this.#addPage(index, new Uint8Array(PAGE_ENTRIES));
    const sum = Math.min((page[index % PAGE_ENTRIES] ?? 0) + count, COUNT_MAX);
    if (sum > NARROW_MAX && page instanceof Uint8Array) {
      page = this.#addPage(index, Uint32Array.from(page));
    }
    page[index % PAGE_ENTRIES] = sum;
  }

  /** Takes away what was added before. */
  subtract(index: number, count: number): void {
    const page = this.#page(index);
    if (page !== null) page[index % PAGE_ENTRIES] = (page[index % PAGE_ENTRIES] ?? 0) - count;
  }

  /** The first cluster from `index` on whose count is not 0, below `end`; else `end`. */
  nextUsed(index: number, end: number): number {
    for (let at = index; at < end;) {
      const pageEnd = at - at % PAGE_ENTRIES + PAGE_ENTRIES;
      const page = this.#page(at);
      if (page !== null) {
        for (const stop = Math.min(pageEnd, end); at < stop; at++) {
          if (page[at % PAGE_ENTRIES] !== 0) return at;
        }
      }
      at = pageEnd;
    }
    return end;
  }

  /** The clusters whose count is not 0, in their order. Nothing may be added meanwhile. */
  *used(): Generator<number> {
    for (const number of [...this.#pages.keys()].sort((a, b) => a - b)) {
      const page = this.#pages.get(number);
      if (page === undefined) continue;
      for (let at = 0; at < PAGE_ENTRIES; at++) {
        if (page[at] !== 0) yield number * PAGE_ENTRIES + at;
      }
    }
  }

  #page(index: number): Uint8Array | Uint32Array | null {
    const number = Math.floor(index / PAGE_ENTRIES);
    if (number !== this.#lastIndex) {
      this.#lastIndex = number;
      this.#last = this.#pages.get(number) ?? null;
    }
    return this.#last;
  }

  #addPage<T extends Uint8Array | Uint32Array>(index: number, page: T): T {
    const number = Math.floor(index / PAGE_ENTRIES);
    this.#bytes += page.byteLength - (this.#pages.get(number)?.byteLength ?? 0);
    if (this.#bytes > this.#bytesMax) {
      throw new BlockError("ENOSPC", "The image has too many clusters to be checked");
    }
    this.#pages.set(number, page);
    this.#lastIndex = number;
    this.#last = page;
    return page;
  }
}
