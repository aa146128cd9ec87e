/**
 * Data of large reads that the system sends from where it lies in a file (sendfile(2)), without a
 * copy of it here, where the export and the stream allow that.
 *
 * A piece is sent within one call, while nothing else is on its way: what the stream does not take
 * at once is read and written as ever. So no piece outlives the call, whatever becomes of the file.
 * What the socket still holds follows later writes; an export that must not show them, a view of
 * the past, names no files.
 *
 * @module
 */

import type { BlockExport } from "../block/export.ts";
import type { FilePart } from "../block/types.ts";
import type { OutputQueue } from "./output_queue.ts";
import { isZero, type ReplyRange, type ReplyWriter } from "./reply_writer.ts";
import type { NbdRequest } from "./request_parser.ts";

/** Shorter pieces are read: a copy costs less. */
const PIECE_BYTES_MIN = 64 * 1024;
/** A piece that begins with so many zeroes is read: perhaps it is all zeroes. */
const LOOK_BYTES = 4096;

/** See the module's description. */
export class FileSender {
  readonly #export: BlockExport;
  readonly #queue: OutputQueue;
  readonly #replies: ReplyWriter;

  /** `replies` writes into `queue`. */
  constructor(exported: BlockExport, queue: OutputQueue, replies: ReplyWriter) {
    this.#export = exported;
    this.#queue = queue;
    this.#replies = replies;
  }

  /** Whether it is worth while to wait with a range until nothing else is on its way. */
  canSend(offset: number, length: number): boolean {
    return this.#queue.sendsFiles && this.#partOf(offset, length) !== null;
  }

  /** Sends a piece, or does nothing and returns false where it has to be read. */
  send(request: NbdRequest, range: ReplyRange): boolean {
    const { offset, length } = range;
    const part = this.#partOf(offset, length);
    if (part === null) return false;
    const { dataPosition } = this.#replies;
    const chunk = this.#queue.reserve(dataPosition + length);
    const data = chunk.bytes.subarray(dataPosition, dataPosition + length);
    this.#export.read(offset, data.subarray(0, LOOK_BYTES));
    if (isZero(chunk.view, dataPosition, LOOK_BYTES)) return false;
    const sentBytes = this.#replies.dataFile(chunk, request, range, part);
    if (sentBytes === dataPosition + length) return true;
    const done = Math.max(sentBytes - dataPosition, 0);
    try {
      this.#export.read(offset + done, data.subarray(done));
    } catch (error) {
      // The file was cut short, and the header has promised all of it.
      if (sentBytes > 0) this.#queue.abort(error);
      else throw error;
      return true;
    }
    this.#replies.dataRest(range, sentBytes);
    return true;
  }

  #partOf(offset: number, length: number): FilePart | null {
    if (length < PIECE_BYTES_MIN) return null;
    return this.#export.filePart?.(offset, length) ?? null;
  }
}
