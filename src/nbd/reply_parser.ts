/**
 * Replies of the transmission phase out of bytes: the client's twin of request_parser.ts, a pure
 * state machine, the same for every split of the input but for where data is cut.
 *
 *   header --simple reply to a read--> data --------+
 *     +------OFFSET_DATA-------> offset --> data ---+--> header
 *     +------other payload-----> payload -----------+
 *     +------no payload-----------------------------+
 *
 * Data is handed on piece by piece as it arrives; a reader copies it to where it belongs. Servers
 * are not trusted either: a payload that is not data is bounded by its type.
 *
 * @module
 */

import {
  decodeString,
  EXTENDED_REPLY_BYTES,
  getUint64,
  joinUint64,
  NBD_EXTENDED_REPLY_MAGIC,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
  NBD_REPLY_TYPE_ERROR,
  NBD_REPLY_TYPE_ERROR_OFFSET,
  NBD_REPLY_TYPE_FLAG_ERROR,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_MAGIC,
  type ReplyStyle,
  SIMPLE_REPLY_BYTES,
  STRING_BYTES_MAX,
  STRUCTURED_REPLY_BYTES,
  viewOf,
} from "./codec.ts";

/** What the next step of a reply is. */
export type ReplyStep =
  | "data" // a piece of content: `data` at `offset`
  | "hole" // `length` zeroes at `offset`
  | "status" // extents of context `contextId`
  | "error" // `errno` and `message`
  | "done" // success, nothing else
  | "more"
  | "violation";

/** One run of a block status reply. */
export interface StatusExtent {
  /** Its bytes, at least 1. */
  length: number;
  /** As the context defines them. */
  flags: number;
}

/** "A server SHOULD NOT send more than 2^20 extents." */
const EXTENTS_MAX = 1 << 20;
const ERROR_BYTES_MAX = 6 + STRING_BYTES_MAX + 8;
const PAYLOAD_START_BYTES = 64 * 1024;
const EMPTY = new Uint8Array(0);

type State = "header" | "offset" | "data" | "payload";

/** See the module's description. */
export class ReplyParser {
  /** The request that this step answers. */
  cookie = 0;
  /** The reply is complete with this step. */
  isLast = false;
  /** Where data or a hole starts. */
  offset = 0;
  /** Bytes of a hole. */
  length = 0;
  /** A piece of content, in the pushed bytes. */
  data: Uint8Array = EMPTY;
  /** Whose extents these are. */
  contextId = 0;
  /** The runs of a block status, in order. */
  extents: StatusExtent[] = [];
  /** NBD_E* of an error. */
  errno = 0;
  /** What the server said to it, or nothing. */
  message = "";
  /** What was wrong, after a violation. */
  violation = "";
  readonly #style: ReplyStyle;
  readonly #readRangeOf: (cookie: number) => { offset: number; length: number } | undefined;
  #state: State = "header";
  #buffer = new Uint8Array(EXTENDED_REPLY_BYTES);
  #filled = 0;
  #wanted = 0;
  #type = 0;
  #isDone = false;
  #left = 0;
  #dataOffset = 0;
  #input: Uint8Array = EMPTY;
  #position = 0;

  /**
   * `readRangeOf`: what a pending read asked for, since a simple reply does not say how long it is.
   */
  constructor(
    style: ReplyStyle,
    readRangeOf: (cookie: number) => { offset: number; length: number } | undefined,
  ) {
    this.#style = style;
    this.#readRangeOf = readRangeOf;
    this.#expectHeader();
  }

  /** More bytes. Only when `next` has answered "more". */
  push(bytes: Uint8Array): void {
    this.#input = bytes;
    this.#position = 0;
  }

  /** The next step; the fields say the rest. */
  next(): ReplyStep {
    for (;;) {
      if (this.#state === "data") return this.#takeData();
      if (!this.#fill()) return "more";
      const step = this.#state === "header"
        ? this.#takeHeader()
        : this.#state === "offset"
        ? this.#takeOffset()
        : this.#takePayload();
      if (step !== "more") return step;
    }
  }

  #expectHeader(): void {
    this.#state = "header";
    this.#filled = 0;
    // A structured reply's first word tells whether it is one: simple replies may come between.
    this.#wanted = this.#style === "extended" ? EXTENDED_REPLY_BYTES : SIMPLE_REPLY_BYTES;
  }

  #expect(state: State, byteCount: number): void {
    this.#state = state;
    this.#filled = 0;
    this.#wanted = byteCount;
  }

  /** Gathers `#wanted` bytes; the buffer grows with what really arrives. */
  #fill(): boolean {
    const take = Math.min(this.#wanted - this.#filled, this.#input.length - this.#position);
    const end = this.#filled + take;
    if (end > this.#buffer.length) {
      const size = Math.max(end, 2 * this.#buffer.length, PAYLOAD_START_BYTES);
      const grown = new Uint8Array(Math.min(this.#wanted, size));
      grown.set(this.#buffer.subarray(0, this.#filled));
      this.#buffer = grown;
    }
    this.#buffer.set(this.#input.subarray(this.#position, this.#position + take), this.#filled);
    this.#position += take;
    this.#filled = end;
    return end === this.#wanted;
  }

  #takeHeader(): ReplyStep {
    const view = viewOf(this.#buffer);
    const magic = view.getUint32(0);
    if (this.#style === "extended") {
      if (magic !== NBD_EXTENDED_REPLY_MAGIC) return this.#fail("a reply without its magic number");
      const length = joinUint64(view.getUint32(24), view.getUint32(28));
      return this.#takeChunkHeader(view, length);
    }
    if (magic === NBD_SIMPLE_REPLY_MAGIC) return this.#takeSimple(view);
    if (magic !== NBD_STRUCTURED_REPLY_MAGIC || this.#style === "simple") {
      return this.#fail("a reply without its magic number");
    }
    if (this.#wanted < STRUCTURED_REPLY_BYTES) {
      this.#wanted = STRUCTURED_REPLY_BYTES;
      return "more";
    }
    return this.#takeChunkHeader(view, view.getUint32(16));
  }

  #takeSimple(view: DataView): ReplyStep {
    this.cookie = joinUint64(view.getUint32(8), view.getUint32(12));
    this.errno = view.getUint32(4);
    this.isLast = true;
    this.#isDone = true;
    this.#expectHeader();
    if (this.errno !== 0) {
      this.message = "";
      return "error";
    }
    const range = this.#readRangeOf(this.cookie);
    if (range === undefined || range.length === 0) return "done";
    if (this.#style !== "simple") return this.#fail("a simple reply to a read");
    this.#dataOffset = range.offset;
    this.#left = range.length;
    this.#state = "data";
    return this.#takeData();
  }

  #takeChunkHeader(view: DataView, length: number): ReplyStep {
    this.#isDone = (view.getUint16(4) & NBD_REPLY_FLAG_DONE) !== 0;
    this.isLast = this.#isDone;
    this.#type = view.getUint16(6);
    this.cookie = joinUint64(view.getUint32(8), view.getUint32(12));
    const problem = lengthProblem(this.#type, length);
    if (problem !== "") return this.#fail(problem);
    if (this.#type === NBD_REPLY_TYPE_NONE) {
      this.#expectHeader();
      return this.#isDone ? "done" : this.#fail("NBD_REPLY_TYPE_NONE that ends nothing");
    }
    if (this.#type === NBD_REPLY_TYPE_OFFSET_DATA) {
      this.#left = length - 8;
      this.#expect("offset", 8);
    } else {
      this.#expect("payload", length);
    }
    return "more";
  }

  #takeOffset(): ReplyStep {
    this.#dataOffset = getUint64(viewOf(this.#buffer), 0);
    const range = this.#readRangeOf(this.cookie);
    if (range === undefined || !isWithin(this.#dataOffset, this.#left, range)) {
      return this.#fail("data that was not asked for");
    }
    this.#state = "data";
    return "more";
  }

  #takeData(): ReplyStep {
    const take = Math.min(this.#left, this.#input.length - this.#position);
    if (take === 0) return "more";
    this.offset = this.#dataOffset;
    this.data = this.#input.subarray(this.#position, this.#position + take);
    this.#position += take;
    this.#dataOffset += take;
    this.#left -= take;
    this.isLast = this.#isDone && this.#left === 0;
    if (this.#left === 0) this.#expectHeader();
    return "data";
  }

  #takePayload(): ReplyStep {
    const view = viewOf(this.#buffer.subarray(0, this.#filled));
    const length = this.#filled;
    this.#expectHeader();
    if ((this.#type & NBD_REPLY_TYPE_FLAG_ERROR) !== 0) return this.#takeError(view);
    if (this.#type === NBD_REPLY_TYPE_OFFSET_HOLE) {
      this.offset = getUint64(view, 0);
      this.length = view.getUint32(8);
      const range = this.#readRangeOf(this.cookie);
      const isGood = range !== undefined && isWithin(this.offset, this.length, range);
      return isGood ? "hole" : this.#fail("a hole that was not asked for");
    }
    return this.#takeStatus(view, length);
  }

  #takeStatus(view: DataView, length: number): ReplyStep {
    this.contextId = view.getUint32(0);
    this.extents = [];
    if (this.#type === NBD_REPLY_TYPE_BLOCK_STATUS_EXT) {
      if (view.getUint32(4) * 16 + 8 !== length) return this.#fail("extents that are miscounted");
      for (let at = 8; at < length; at += 16) {
        this.extents.push({ length: getUint64(view, at), flags: getUint64(view, at + 8) });
      }
    } else {
      for (let at = 4; at < length; at += 8) {
        this.extents.push({ length: view.getUint32(at), flags: view.getUint32(at + 4) });
      }
    }
    return this.extents.every((extent) => extent.length > 0)
      ? "status"
      : this.#fail("an extent of no bytes");
  }

  #takeError(view: DataView): ReplyStep {
    this.errno = view.getUint32(0);
    const messageBytes = view.getUint16(4);
    if (this.errno === 0 || 6 + messageBytes > view.byteLength) {
      return this.#fail("an error chunk that contradicts itself");
    }
    const start = view.byteOffset + 6;
    this.message = decodeString(new Uint8Array(view.buffer, start, messageBytes)) ?? "";
    return "error";
  }

  #fail(reason: string): ReplyStep {
    this.violation = reason;
    return "violation";
  }
}

function isWithin(offset: number, length: number, range: { offset: number; length: number }) {
  return length > 0 && offset >= range.offset && offset + length <= range.offset + range.length;
}

/** What is wrong with a chunk's length, judged by its type ("Structured reply types"). */
function lengthProblem(type: number, length: number): string {
  const isGood = type === NBD_REPLY_TYPE_NONE
    ? length === 0
    : type === NBD_REPLY_TYPE_OFFSET_DATA
    ? length >= 9 && length <= Number.MAX_SAFE_INTEGER - 1
    : type === NBD_REPLY_TYPE_OFFSET_HOLE
    ? length === 12
    : type === NBD_REPLY_TYPE_BLOCK_STATUS
    ? length >= 12 && length % 8 === 4 && length <= 4 + 8 * EXTENTS_MAX
    : type === NBD_REPLY_TYPE_BLOCK_STATUS_EXT
    ? length >= 24 && length % 16 === 8 && length <= 8 + 16 * EXTENTS_MAX
    : type === NBD_REPLY_TYPE_ERROR
    ? length >= 6 && length <= ERROR_BYTES_MAX
    : type === NBD_REPLY_TYPE_ERROR_OFFSET
    ? length >= 14 && length <= ERROR_BYTES_MAX
    : (type & NBD_REPLY_TYPE_FLAG_ERROR) !== 0 && length >= 6 && length <= ERROR_BYTES_MAX;
  return isGood ? "" : `a chunk of type ${type} with ${length} bytes`;
}
