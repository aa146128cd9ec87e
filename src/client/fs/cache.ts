/**
 * Random access to a remote disk: blocks are kept, bounded and least recently used first out, and
 * read ahead where somebody reads in order.
 *
 *   absent --fetch--> on its way --> kept --> dropped
 *                         \--failed--> absent
 *
 * Readers of a block that is on its way share it; one that gives up does not take it from the
 * others. Long reads go past the cache.
 *
 * @module
 */

import type { WaitOptions } from "../disk.ts";
import type { ByteSource } from "./source.ts";

/** How much a cache keeps. */
export interface CacheOptions {
  /** Bytes kept, 32 MiB unless told otherwise. */
  cacheBytes?: number;
  /** A block's size, 64 KiB unless told otherwise: the unit of fetching. */
  blockBytes?: number;
  /** How far ahead of somebody who reads in order, at most; 1 MiB unless told otherwise. */
  readAheadBytes?: number;
}

const KiB = 1024;
const MiB = 1024 * KiB;
/** Reads from this length on are not worth keeping. */
const DIRECT_BYTES = MiB;

/** See the module's head. */
export class CachedSource implements ByteSource {
  /** Bytes of the disk. */
  readonly sizeBytes: number;
  readonly #source: ByteSource;
  readonly #blockBytes: number;
  readonly #blocksMax: number;
  readonly #readAheadMax: number;
  /** By block number, the least recently used first. */
  readonly #blocks = new Map<number, Promise<Uint8Array<ArrayBuffer>>>();
  #expectedOffset = -1;
  #readAheadBytes = 0;

  /** Over a disk that does not change. */
  constructor(source: ByteSource, options: CacheOptions = {}) {
    const { cacheBytes = 32 * MiB, blockBytes = 64 * KiB, readAheadBytes = MiB } = options;
    this.sizeBytes = source.sizeBytes;
    this.#source = source;
    this.#blockBytes = blockBytes;
    this.#readAheadMax = readAheadBytes;
    // A read and what is read ahead of it must fit beside each other.
    const needed = Math.ceil((DIRECT_BYTES + readAheadBytes) / blockBytes) + 2;
    this.#blocksMax = Math.max(needed, Math.floor(cacheBytes / blockBytes));
  }

  /** Reads `[offset, offset + length)`. */
  async read(
    offset: number,
    length: number,
    options: WaitOptions = {},
  ): Promise<Uint8Array<ArrayBuffer>> {
    options.signal?.throwIfAborted();
    if (length >= DIRECT_BYTES || offset < 0 || offset + length > this.sizeBytes) {
      return await this.#source.read(offset, length, options);
    }
    const result = new Uint8Array(length);
    if (length === 0) return result;
    const first = Math.floor(offset / this.#blockBytes);
    const last = Math.floor((offset + length - 1) / this.#blockBytes);
    this.#fetch(first, last);
    const blocks: Promise<Uint8Array<ArrayBuffer>>[] = [];
    for (let index = first; index <= last; index++) blocks.push(this.#use(index));
    this.#readAhead(offset, length, last);
    const all = await orAborted(Promise.all(blocks), options.signal);
    all.forEach((block, index) => {
      const at = (first + index) * this.#blockBytes;
      const begin = Math.max(offset, at);
      const end = Math.min(offset + length, at + block.length);
      result.set(block.subarray(begin - at, end - at), begin - offset);
    });
    return result;
  }

  #use(index: number): Promise<Uint8Array<ArrayBuffer>> {
    const block = this.#blocks.get(index);
    if (block === undefined) throw new Error(`block ${index} was dropped while in use`);
    this.#blocks.delete(index);
    this.#blocks.set(index, block);
    return block;
  }

  /** Asks for the blocks that are absent, neighbours by one request. */
  #fetch(first: number, last: number): void {
    for (let index = first; index <= last; index++) {
      if (this.#blocks.has(index)) {
        this.#use(index);
        continue;
      }
      let end = index + 1;
      while (end <= last && !this.#blocks.has(end)) end++;
      this.#request(index, end);
      index = end - 1;
    }
    for (const index of this.#blocks.keys()) {
      if (this.#blocks.size <= this.#blocksMax) break;
      this.#blocks.delete(index);
    }
  }

  #request(first: number, end: number): void {
    const offset = first * this.#blockBytes;
    const length = Math.min(end * this.#blockBytes, this.sizeBytes) - offset;
    const bytes = this.#source.read(offset, length);
    for (let index = first; index < end; index++) {
      const at = (index - first) * this.#blockBytes;
      // A copy, or one block would keep its neighbours.
      const block = bytes.then((all) => all.slice(at, at + this.#blockBytes));
      this.#blocks.set(index, block);
      block.catch(() => {
        if (this.#blocks.get(index) === block) this.#blocks.delete(index);
      });
    }
  }

  #readAhead(offset: number, length: number, last: number): void {
    const isInOrder = offset === this.#expectedOffset;
    this.#expectedOffset = offset + length;
    this.#readAheadBytes = isInOrder
      ? Math.min(this.#readAheadMax, Math.max(2 * this.#readAheadBytes, 2 * this.#blockBytes))
      : 0;
    const blocks = Math.floor(this.#readAheadBytes / this.#blockBytes);
    if (blocks === 0) return;
    const lastOfDisk = Math.ceil(this.sizeBytes / this.#blockBytes) - 1;
    const end = Math.min(last + blocks, lastOfDisk);
    // In large steps, not a block at each read.
    if (end > last && !this.#blocks.has(Math.min(last + Math.ceil(blocks / 2), end))) {
      this.#fetch(last + 1, end);
    }
  }
}

async function orAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return await work;
  let onAbort = () => {};
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal.reason);
    signal.addEventListener("abort", onAbort);
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
