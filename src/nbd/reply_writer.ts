/**
 * Encodes replies into an output queue, in the style that was negotiated ("Simple reply message",
 * "Structured reply chunk message", and the extended one of the EXTENDED_HEADERS extension).
 *
 * @module
 */

import type { Extent } from "../block/export.ts";
import type { FilePart } from "../block/types.ts";
import {
  encodeMessage,
  EXTENDED_REPLY_BYTES,
  NBD_CMD_FLAG_DF,
  NBD_EXTENDED_REPLY_MAGIC,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
  NBD_REPLY_TYPE_ERROR,
  NBD_REPLY_TYPE_ERROR_OFFSET,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_MAGIC,
  type ReplyStyle,
  setUint64,
  SIMPLE_REPLY_BYTES,
  STRUCTURED_REPLY_BYTES,
} from "./codec.ts";
import type { NbdFailure } from "./errno.ts";
import type { Chunk, OutputQueue } from "./output_queue.ts";
import type { NbdRequest } from "./request_parser.ts";

/** The extents of one context, as they go into one chunk. */
export interface ContextExtents {
  /** The id that the client was told. */
  contextId: number;
  /** At least one. */
  extents: readonly Extent[];
}

/** A range of the export that a chunk of a read's reply is about. */
export interface ReplyRange {
  /** Where it starts. */
  offset: number;
  /** Bytes of the export, at least 1. */
  length: number;
  /** The reply ends with this chunk. */
  isLast: boolean;
}

/** See the module's description. */
export class ReplyWriter {
  /** What was negotiated. */
  readonly style: ReplyStyle;
  /** Bytes in front of the data of a read, in one chunk. */
  readonly dataPosition: number;
  /** Requests that were answered with an error. */
  errorCount = 0;
  readonly #queue: OutputQueue;
  readonly #headerBytes: number;

  /** Encodes into `queue`. */
  constructor(queue: OutputQueue, style: ReplyStyle) {
    this.#queue = queue;
    this.style = style;
    this.#headerBytes = style === "simple"
      ? SIMPLE_REPLY_BYTES
      : style === "structured"
      ? STRUCTURED_REPLY_BYTES
      : EXTENDED_REPLY_BYTES;
    this.dataPosition = style === "simple" ? SIMPLE_REPLY_BYTES : this.#headerBytes + 8;
  }

  /** Success of a request without data to return. */
  done(request: NbdRequest): void {
    const { view } = this.#queue.reserve(this.#headerBytes);
    const position = this.#queue.position;
    if (this.style === "simple") this.#simpleHeader(view, position, request, 0);
    else this.#chunkHeader(view, position, request, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, 0);
    this.#queue.commit(this.#headerBytes);
  }

  /** Failure. `offset`: where in the request, if that is known (structured replies to reads). */
  error(request: NbdRequest, failure: NbdFailure, offset?: number): void {
    this.errorCount++;
    if (this.style === "simple") {
      const { view } = this.#queue.reserve(SIMPLE_REPLY_BYTES);
      this.#simpleHeader(view, this.#queue.position, request, failure.errno);
      this.#queue.commit(SIMPLE_REPLY_BYTES);
      return;
    }
    const message = encodeMessage(failure.message);
    const payloadBytes = 6 + message.length + (offset === undefined ? 0 : 8);
    const chunk = this.#queue.reserve(this.#headerBytes + payloadBytes);
    const type = offset === undefined ? NBD_REPLY_TYPE_ERROR : NBD_REPLY_TYPE_ERROR_OFFSET;
    let position = this.#queue.position;
    this.#chunkHeader(chunk.view, position, request, NBD_REPLY_FLAG_DONE, type, payloadBytes);
    position += this.#headerBytes;
    chunk.view.setUint32(position, failure.errno);
    chunk.view.setUint16(position + 4, message.length);
    chunk.bytes.set(message, position + 6);
    if (offset !== undefined) setUint64(chunk.view, position + 6 + message.length, offset);
    this.#queue.commit(this.#headerBytes + payloadBytes);
  }

  /** A run of zeroes in a read. */
  hole(request: NbdRequest, range: ReplyRange): void {
    const { view } = this.#queue.reserve(this.#headerBytes + 12);
    this.#queue.commit(this.#encodeHole(view, this.#queue.position, request, range));
  }

  /** Data of a read that lies in `chunk`, `dataPosition` behind the queue's position. */
  data(chunk: Chunk, request: NbdRequest, range: ReplyRange): void {
    this.#queue.commit(this.#encodeData(chunk.view, this.#queue.position, request, range));
  }

  /**
   * Sends data of a read from where it lies in a file, behind a header that is made in `chunk`. How
   * much of the reply is gone; the rest is to be put into its place, and goes by `dataRest`.
   */
  dataFile(chunk: Chunk, request: NbdRequest, range: ReplyRange, part: FilePart): number {
    this.#encodeDataHeader(chunk.view, this.#queue.position, request, range);
    return this.#queue.sendFile(this.dataPosition, { ...part, length: range.length });
  }

  /** What `dataFile` did not send of a reply is in its place. */
  dataRest({ length }: ReplyRange, sentBytes: number): void {
    this.#queue.commit(this.dataPosition + length, sentBytes);
  }

  /** Data of a read in a buffer of its own, at `dataPosition`. The buffer becomes the queue's. */
  dataFrame(frame: Uint8Array, request: NbdRequest, range: ReplyRange): void {
    const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
    this.#queue.append(frame.subarray(0, this.#encodeData(view, 0, request, range)));
  }

  /** One chunk for each context, in their order ("NBD_REPLY_TYPE_BLOCK_STATUS"). */
  blockStatus(request: NbdRequest, contexts: readonly ContextExtents[]): void {
    contexts.forEach(({ contextId, extents }, index) => {
      const flags = index === contexts.length - 1 ? NBD_REPLY_FLAG_DONE : 0;
      const isExtended = this.style === "extended";
      const payloadBytes = isExtended ? 8 + 16 * extents.length : 4 + 8 * extents.length;
      const type = isExtended ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT : NBD_REPLY_TYPE_BLOCK_STATUS;
      const { view } = this.#queue.reserve(this.#headerBytes + payloadBytes);
      let position = this.#queue.position;
      this.#chunkHeader(view, position, request, flags, type, payloadBytes);
      position += this.#headerBytes;
      view.setUint32(position, contextId);
      if (isExtended) view.setUint32(position + 4, extents.length);
      position += isExtended ? 8 : 4;
      for (const extent of extents) {
        if (isExtended) {
          setUint64(view, position, extent.length);
          setUint64(view, position + 8, extent.flags);
          position += 16;
        } else {
          view.setUint32(position, extent.length);
          view.setUint32(position + 4, extent.flags);
          position += 8;
        }
      }
      this.#queue.commit(this.#headerBytes + payloadBytes);
    });
  }

  /**
   * Puts the header in front of data that is already in place; a hole instead, if that is all
   * zeroes.
   */
  #encodeData(view: DataView, position: number, request: NbdRequest, range: ReplyRange): number {
    if (this.style === "simple") {
      this.#simpleHeader(view, position, request, 0);
      return SIMPLE_REPLY_BYTES + range.length;
    }
    const mayHole = (request.flags & NBD_CMD_FLAG_DF) === 0;
    if (mayHole && isZero(view, position + this.dataPosition, range.length)) {
      return this.#encodeHole(view, position, request, range);
    }
    this.#encodeDataHeader(view, position, request, range);
    return this.dataPosition + range.length;
  }

  #encodeDataHeader(
    view: DataView,
    position: number,
    request: NbdRequest,
    range: ReplyRange,
  ): void {
    const flags = range.isLast ? NBD_REPLY_FLAG_DONE : 0;
    const payloadBytes = 8 + range.length;
    this.#chunkHeader(view, position, request, flags, NBD_REPLY_TYPE_OFFSET_DATA, payloadBytes);
    setUint64(view, position + this.#headerBytes, range.offset);
  }

  #encodeHole(view: DataView, position: number, request: NbdRequest, range: ReplyRange): number {
    const flags = range.isLast ? NBD_REPLY_FLAG_DONE : 0;
    this.#chunkHeader(view, position, request, flags, NBD_REPLY_TYPE_OFFSET_HOLE, 12);
    setUint64(view, position + this.#headerBytes, range.offset);
    view.setUint32(position + this.#headerBytes + 8, range.length);
    return this.#headerBytes + 12;
  }

  #simpleHeader(view: DataView, position: number, request: NbdRequest, errno: number): void {
    view.setUint32(position, NBD_SIMPLE_REPLY_MAGIC);
    view.setUint32(position + 4, errno);
    view.setUint32(position + 8, request.cookieHigh);
    view.setUint32(position + 12, request.cookieLow);
  }

  #chunkHeader(
    view: DataView,
    position: number,
    request: NbdRequest,
    flags: number,
    type: number,
    payloadBytes: number,
  ): void {
    const isExtended = this.style === "extended";
    view.setUint32(position, isExtended ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC);
    view.setUint16(position + 4, flags);
    view.setUint16(position + 6, type);
    view.setUint32(position + 8, request.cookieHigh);
    view.setUint32(position + 12, request.cookieLow);
    if (isExtended) {
      view.setUint32(position + 16, request.offsetHigh);
      view.setUint32(position + 20, request.offsetLow);
      view.setUint32(position + 24, 0);
      view.setUint32(position + 28, payloadBytes);
    } else {
      view.setUint32(position + 16, payloadBytes);
    }
  }
}

/** Whether `length` bytes are all zero. Data that is not ends the loop at once, nearly always. */
export function isZero(view: DataView, position: number, length: number): boolean {
  const end = position + length;
  let at = position;
  for (; at + 16 <= end; at += 16) {
    if (
      (view.getInt32(at, true) | view.getInt32(at + 4, true) | view.getInt32(at + 8, true) |
        view.getInt32(at + 12, true)) !== 0
    ) return false;
  }
  for (; at < end; at++) {
    if (view.getUint8(at) !== 0) return false;
  }
  return true;
}
