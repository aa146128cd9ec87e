/**
 * A disk in memory: sparse, in chunks that come with the first write and go with a discard, bounded
 * by a limit on what it may take. For tests, and for small temporary images.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import type { IoVector } from "../io_vector.ts";
import { BlockNode, type DiscardMode } from "../node.ts";
import { type BlockStatus, STATUS_ALLOCATED, STATUS_DATA, STATUS_ZERO } from "../types.ts";

const CHUNK_BYTES = 64 * 1024;
const ALLOCATED_BYTES_MAX = 256 * 1024 * 1024;

/** What a memory node is made of. */
export interface MemoryNodeOptions {
  /** Unique in the graph. */
  nodeName: string;
  /** The disk's size; it begins as zeroes and takes no memory. */
  sizeBytes: number;
  /** False unless given. */
  isReadOnly?: boolean;
  /** Most bytes that it may hold: a write beyond fails with ENOSPC. 256 MiB unless given. */
  allocatedBytesMax?: number;
  /** "unmap" unless given. */
  discard?: DiscardMode;
}

/** Driver "memory". */
export class MemoryNode extends BlockNode {
  readonly #chunks = new Map<number, Uint8Array>();
  readonly #allocatedBytesMax: number;

  /** Takes no memory for content yet. */
  constructor(options: MemoryNodeOptions) {
    super({
      nodeName: options.nodeName,
      driver: "memory",
      sizeBytes: options.sizeBytes,
      isReadOnly: options.isReadOnly ?? false,
      discard: options.discard ?? "unmap",
      handlesFua: true,
    });
    this.#allocatedBytesMax = options.allocatedBytesMax ?? ALLOCATED_BYTES_MAX;
  }

  /** Bytes that it holds now, in whole chunks of 64 KiB. */
  override get allocatedBytes(): number {
    return this.#chunks.size * CHUNK_BYTES;
  }

  /** Zeroes where no chunk is. */
  protected override doRead(offset: number, target: IoVector): void {
    for (const buffer of target.buffers) {
      for (let done = 0; done < buffer.length;) {
        const start = (offset + done) % CHUNK_BYTES;
        const length = Math.min(CHUNK_BYTES - start, buffer.length - done);
        const chunk = this.#chunks.get(Math.floor((offset + done) / CHUNK_BYTES));
        if (chunk === undefined) buffer.fill(0, done, done + length);
        else buffer.set(chunk.subarray(start, start + length), done);
        done += length;
      }
      offset += buffer.length;
    }
  }

  /** All of it, or ENOSPC and nothing. */
  protected override doWrite(offset: number, source: IoVector, _flags: number): void {
    this.#allocate(offset, source.length);
    for (const buffer of source.buffers) {
      for (let done = 0; done < buffer.length;) {
        const start = (offset + done) % CHUNK_BYTES;
        const length = Math.min(CHUNK_BYTES - start, buffer.length - done);
        const chunk = this.#chunks.get(Math.floor((offset + done) / CHUNK_BYTES));
        chunk?.set(buffer.subarray(done, done + length), start);
        done += length;
      }
      offset += buffer.length;
    }
  }

  /** Gives back chunks that are zeroed as a whole. */
  protected override doWriteZeroes(offset: number, length: number, _flags: number): void {
    const end = offset + length;
    for (const [index, chunk] of this.#chunksIn(offset, end)) {
      const chunkStart = index * CHUNK_BYTES;
      const start = Math.max(offset - chunkStart, 0);
      const stop = Math.min(end - chunkStart, CHUNK_BYTES);
      if (start === 0 && (stop === CHUNK_BYTES || end === this.sizeBytes)) {
        this.#chunks.delete(index);
      } else {
        chunk.fill(0, start, stop);
      }
    }
  }

  /** The same as zeroes that may be unmapped. */
  protected override doDiscard(offset: number, length: number): void {
    this.doWriteZeroes(offset, length, 0);
  }

  /** A run of chunks that are all there (data) or all missing (zeroes). */
  protected override doBlockStatus(offset: number, length: number): BlockStatus {
    let index = Math.floor(offset / CHUNK_BYTES);
    const isAllocated = this.#chunks.has(index);
    const end = offset + length;
    // One look per chunk: at most what the request covers, and at most 16,384 of them.
    let at = (index + 1) * CHUNK_BYTES;
    for (let looks = 1; at < end && looks < 16_384; looks++) {
      if (this.#chunks.has(++index) !== isAllocated) break;
      at += CHUNK_BYTES;
    }
    return {
      length: Math.min(at, end) - offset,
      flags: STATUS_ALLOCATED | (isAllocated ? STATUS_DATA : STATUS_ZERO),
    };
  }

  /** What is cut off is zeroed. */
  protected override doResize(sizeBytes: number): void {
    if (sizeBytes < this.sizeBytes) {
      // What is cut off must read as zeroes when the disk grows again.
      this.doWriteZeroes(sizeBytes, this.sizeBytes - sizeBytes, 0);
    }
    this.setSize(sizeBytes);
  }

  /** Gives all chunks back. */
  protected override doClose(): void {
    this.#chunks.clear();
  }

  /** Its limit in bytes. */
  override details(): Record<string, string | number> {
    return { allocatedBytesMax: this.#allocatedBytesMax };
  }

  /** All chunks of a range, or none of them. */
  #allocate(offset: number, length: number): void {
    const missing: number[] = [];
    const last = Math.floor((offset + length - 1) / CHUNK_BYTES);
    for (let index = Math.floor(offset / CHUNK_BYTES); index <= last; index++) {
      if (!this.#chunks.has(index)) missing.push(index);
    }
    if (this.allocatedBytes + missing.length * CHUNK_BYTES > this.#allocatedBytesMax) {
      throw new BlockError(
        "ENOSPC",
        `Node '${this.nodeName}' may hold no more than ${this.#allocatedBytesMax} bytes`,
      );
    }
    for (const index of missing) this.#chunks.set(index, new Uint8Array(CHUNK_BYTES));
  }

  /** The allocated chunks in a range: by walking the range or the chunks, whichever is shorter. */
  *#chunksIn(offset: number, end: number): Generator<[number, Uint8Array]> {
    const first = Math.floor(offset / CHUNK_BYTES);
    const last = Math.floor((end - 1) / CHUNK_BYTES);
    if (last - first >= this.#chunks.size) {
      for (const entry of [...this.#chunks]) {
        if (entry[0] >= first && entry[0] <= last) yield entry;
      }
      return;
    }
    for (let index = first; index <= last; index++) {
      const chunk = this.#chunks.get(index);
      if (chunk !== undefined) yield [index, chunk];
    }
  }
}
