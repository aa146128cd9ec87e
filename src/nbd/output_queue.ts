/**
 * The replies of one connection on their way out. Replies are laid one behind the other into chunks
 * that come from a pool, so that many replies go out in one write and a read's data is read
 * straight into its place. One write is under way at a time; meanwhile the next chunk fills.
 *
 *   current chunk --seal--> segments --write--> stream;  a chunk written goes back to the pool
 *
 * A stream that takes buffers along gets a chunk as it is, and gives one back later.
 *
 * @module
 */

import { viewOf } from "./codec.ts";
import type { FilePart } from "../block/types.ts";
import type { ByteStream } from "./byte_stream.ts";

/** A chunk takes one reply of a 256 KiB read, the request size of most clients, with its header. */
export const CHUNK_DATA_BYTES = 256 * 1024;
const CHUNK_BYTES = CHUNK_DATA_BYTES + 4096;
/**
 * Finished replies up to this size are copied behind others, larger ones are written from where
 * they are.
 */
const COPY_BYTES = 16 * 1024;

/** A buffer of replies. */
export interface Chunk {
  /** The whole buffer; how much of it is filled, its user knows. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The same, for numbers. */
  readonly view: DataView;
}

function createChunk(buffer: ArrayBuffer): Chunk {
  const bytes = new Uint8Array(buffer);
  return { bytes, view: viewOf(bytes) };
}

/** Chunks that nobody uses now, shared by all connections of a server: an idle one holds none. */
export class ChunkPool {
  /** Gives back the buffer of a chunk that went away. */
  readonly giveBuffer: (buffer: ArrayBuffer) => void = (buffer) => this.give(createChunk(buffer));
  readonly #free: Chunk[] = [];
  readonly #freeMax: number;

  /** Keeps at most `freeMax` unused chunks. */
  constructor(freeMax = 16) {
    this.#freeMax = freeMax;
  }

  /** A chunk for the caller alone, with any content; `give` takes it back. */
  take(): Chunk {
    return this.#free.pop() ?? createChunk(new ArrayBuffer(CHUNK_BYTES));
  }

  /** The chunk is used no more. */
  give(chunk: Chunk): void {
    if (chunk.bytes.length === CHUNK_BYTES && this.#free.length < this.#freeMax) {
      this.#free.push(chunk);
    }
  }
}

interface Segment {
  readonly bytes: Uint8Array;
  /** Of `bytes`, also once their buffer went away. */
  readonly byteCount: number;
  /** Goes back to the pool after the write. */
  chunk: Chunk | null;
}

/** What a queue's owner hears. */
export interface OutputQueueEvents {
  /** A write finished: there is room again. */
  onProgress: () => void;
  /** The stream broke; nothing more will be written. */
  onBroken: (error: unknown) => void;
}

/** See the module's description. */
export class OutputQueue {
  readonly #stream: ByteStream;
  readonly #pool: ChunkPool;
  readonly #events: OutputQueueEvents;
  readonly #segments: Segment[] = [];
  #chunk: Chunk | null = null;
  /** Bytes of the current chunk that were sent already. */
  #begin = 0;
  #end = 0;
  #isWriting = false;
  #isBroken = false;
  #pendingBytes = 0;

  /** Writes to `stream`. */
  constructor(stream: ByteStream, pool: ChunkPool, events: OutputQueueEvents) {
    this.#stream = stream;
    this.#pool = pool;
    this.#events = events;
  }

  /** Bytes that were committed and not yet written. */
  get pendingBytes(): number {
    return this.#pendingBytes;
  }

  /** Makes room for `length` bytes in a row; they start at `position` of the chunk returned. */
  reserve(length: number): Chunk {
    if (this.#chunk !== null && this.#chunk.bytes.length - this.#end >= length) return this.#chunk;
    this.#seal();
    this.flush();
    this.#chunk = length <= CHUNK_BYTES ? this.#pool.take() : createChunk(new ArrayBuffer(length));
    return this.#chunk;
  }

  /** Where the next reply starts in the current chunk. */
  get position(): number {
    return this.#end;
  }

  /**
   * The first `length` bytes of what was reserved are a reply. `sentBytes`: its beginning that
   * `sendFile` has sent.
   */
  commit(length: number, sentBytes = 0): void {
    this.#begin += sentBytes;
    this.#end += length;
    this.#pendingBytes += length - sentBytes;
  }

  /** Whether the stream takes files, at least once nothing else is on its way. */
  get sendsFiles(): boolean {
    return this.#stream.sendFile !== undefined;
  }

  /**
   * Sends the first `headBytes` of what was reserved, and behind them a part of a file; only while
   * nothing is pending. How many bytes of both are gone: unless all are, the caller puts the rest
   * into its place and commits the whole.
   */
  sendFile(headBytes: number, part: FilePart & { length: number }): number {
    if (this.#chunk === null || this.#isBroken || this.#pendingBytes > 0) return 0;
    return this.#stream.sendFile?.(this.#chunk.bytes.subarray(0, headBytes), part) ?? 0;
  }

  /** Nothing that is queued reaches anybody any more. */
  get isBroken(): boolean {
    return this.#isBroken;
  }

  /** A reply of which a part was sent can't be completed: the stream is of no use any more. */
  abort(error: unknown): void {
    if (this.#isBroken) return;
    this.#isBroken = true;
    this.#events.onBroken(error);
  }

  /**
   * What was reserved is still being filled, by a request that answers later: that request keeps
   * the chunk's rest, the next reply starts a new chunk.
   */
  detach(): void {
    if (this.#chunk !== null && this.#end > 0) {
      this.#enqueue(this.#chunk.bytes.subarray(0, this.#end), null);
    }
    this.#chunk = null;
    this.#end = 0;
  }

  /** Queues finished bytes, which now belong to the queue. */
  append(bytes: Uint8Array): void {
    if (bytes.length <= COPY_BYTES) {
      this.reserve(bytes.length).bytes.set(bytes, this.#end);
      this.commit(bytes.length);
      return;
    }
    this.#seal();
    this.#enqueue(bytes, null);
    this.#pendingBytes += bytes.length;
  }

  /** Starts writing, if nothing is being written. */
  flush(): void {
    while (!this.#isWriting) {
      if (this.#segments.length === 0) this.#seal();
      const segment = this.#segments.shift();
      if (segment === undefined) return;
      if (this.#isBroken) {
        this.#pendingBytes -= segment.byteCount;
        continue;
      }
      try {
        const written = this.#write(segment);
        if (written instanceof Promise) {
          this.#isWriting = true;
          this.#finishLater(written, segment);
          return;
        }
        this.#written(segment);
      } catch (error) {
        this.#break(error, segment);
      }
    }
  }

  #write(segment: Segment): void | Promise<void> {
    const { bytes, chunk } = segment;
    if (chunk === null || bytes.length <= COPY_BYTES || this.#stream.writeAway === undefined) {
      return this.#stream.write(bytes);
    }
    segment.chunk = null;
    const filled = chunk.bytes.subarray(0, segment.byteCount);
    return this.#stream.writeAway(filled, this.#pool.giveBuffer);
  }

  async #finishLater(written: Promise<void>, segment: Segment): Promise<void> {
    try {
      await written;
      this.#isWriting = false;
      this.#written(segment);
    } catch (error) {
      this.#isWriting = false;
      this.#break(error, segment);
    }
    this.flush();
    this.#events.onProgress();
  }

  #written(segment: Segment): void {
    this.#pendingBytes -= segment.byteCount;
    if (segment.chunk !== null) this.#pool.give(segment.chunk);
  }

  #break(error: unknown, segment: Segment): void {
    this.#pendingBytes -= segment.byteCount;
    if (this.#isBroken) return;
    this.#isBroken = true;
    this.#events.onBroken(error);
  }

  #enqueue(bytes: Uint8Array, chunk: Chunk | null): void {
    this.#segments.push({ bytes, byteCount: bytes.length, chunk });
  }

  #seal(): void {
    const chunk = this.#chunk;
    if (chunk === null) return;
    if (this.#end === 0) this.#pool.give(chunk);
    else this.#enqueue(chunk.bytes.subarray(this.#begin, this.#end), chunk);
    this.#chunk = null;
    this.#begin = this.#end = 0;
  }
}
