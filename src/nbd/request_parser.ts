/**
 * Requests of the transmission phase out of bytes: a pure state machine, the same for every split
 * of the input.
 *
 *   header --refused, with payload--> skip ----+
 *     |                                        |
 *     +----with payload--> payload ------------+--> request --> header
 *     +----without payload---------------------+
 *
 * `push` gives it bytes, then `next` is called until it answers "more". Between two calls the
 * parser refers to the pushed bytes, never copies them, but for a header or payload that is cut by
 * their end. One request object is filled again and again: who needs a request for longer makes a
 * copy.
 *
 * @module
 */

import {
  EXTENDED_REQUEST_BYTES,
  joinUint64,
  NBD_CMD_FLAG_PAYLOAD_LEN,
  NBD_CMD_WRITE,
  NBD_EXTENDED_REQUEST_MAGIC,
  NBD_REQUEST_MAGIC,
  REQUEST_BYTES,
  viewOf,
} from "./codec.ts";
import type { NbdFailure } from "./errno.ts";

/**
 * A request's header; offset and length as safe integers, and the offset as it came, for replies.
 */
export class NbdRequest {
  /** NBD_CMD_FLAG_*. */
  flags = 0;
  /** NBD_CMD_*. */
  type = 0;
  /** The upper half of the cookie. */
  cookieHigh = 0;
  /** The lower half. */
  cookieLow = 0;
  /** The upper half of the offset, as it came. */
  offsetHigh = 0;
  /** The lower half. */
  offsetLow = 0;
  /** The offset, clamped to MAX_SAFE_INTEGER. */
  offset = 0;
  /** Bytes of the export, or of the payload; clamped too. */
  length = 0;
  /** What came behind the header, where the command takes a payload. */
  payload: Uint8Array | null = null;
  /** The payload lies in the pushed bytes, not in a buffer of the parser's. */
  isBorrowed = false;
  /** Why this request must be refused, if it must. Its payload was skipped then. */
  refusal: NbdFailure | null = null;

  /** A copy that outlives the parser's next step, without the payload. */
  copy(): NbdRequest {
    const copy = new NbdRequest();
    copy.flags = this.flags;
    copy.type = this.type;
    copy.cookieHigh = this.cookieHigh;
    copy.cookieLow = this.cookieLow;
    copy.offsetHigh = this.offsetHigh;
    copy.offsetLow = this.offsetLow;
    copy.offset = this.offset;
    copy.length = this.length;
    return copy;
  }
}

/** "more": everything was consumed. "violation": the stream can't be understood any further. */
export type ParserStep = "request" | "more" | "violation";

/** What a parser needs to know. */
export interface RequestParserOptions {
  /** Requests have extended headers. */
  isExtended: boolean;
  /** The longest payload. Beyond it a compact request is refused, an extended one a violation. */
  payloadBytesMax: number;
  /** The reason to refuse a request, looking at its header only. */
  check: (request: NbdRequest) => NbdFailure | null;
}

/** A payload buffer starts no larger than this and grows with what really arrives. */
const PAYLOAD_START_BYTES = 1024 * 1024;

type State = "header" | "skip" | "payload";

const EMPTY = new Uint8Array(0);

/** See the module's description. */
export class RequestParser {
  /** What `next` fills. */
  readonly request = new NbdRequest();
  readonly #options: RequestParserOptions;
  readonly #headerBytes: number;
  readonly #partial = new Uint8Array(EXTENDED_REQUEST_BYTES);
  readonly #partialView = viewOf(this.#partial);
  #partialLength = 0;
  #state: State = "header";
  #input: Uint8Array = EMPTY;
  #view: DataView = viewOf(EMPTY);
  #position = 0;
  #payload: Uint8Array = EMPTY;
  #payloadDone = 0;
  #payloadLength = 0;
  #spare: Uint8Array = EMPTY;

  /** Waits for a header. */
  constructor(options: RequestParserOptions) {
    this.#options = options;
    this.#headerBytes = options.isExtended ? EXTENDED_REQUEST_BYTES : REQUEST_BYTES;
  }

  /** Whether pushed bytes are left to be parsed. */
  get hasInput(): boolean {
    return this.#position < this.#input.length;
  }

  /** Bytes of memory that a payload on its way takes; 0 between requests. */
  get heldBytes(): number {
    return this.#payload.length;
  }

  /** More bytes. Only when the earlier ones are consumed. */
  push(bytes: Uint8Array): void {
    if (this.hasInput) throw new Error("pushed before the earlier bytes were consumed");
    this.#input = bytes;
    this.#view = viewOf(bytes);
    this.#position = 0;
  }

  /** Gives a payload buffer back, once its request is done with it, to be filled again. */
  recycle(payload: Uint8Array): void {
    const whole = new Uint8Array(payload.buffer);
    if (whole.length <= PAYLOAD_START_BYTES && whole.length > this.#spare.length) {
      this.#spare = whole;
    }
  }

  /** Fills `request` with the next one. */
  next(): ParserStep {
    if (this.#state === "header") {
      if (!this.#takeHeader()) return "more";
      if (this.#payloadLength < 0) return "violation";
      if (this.#payloadLength === 0) return "request";
      if (this.request.refusal !== null) {
        this.#state = "skip";
      } else if (this.#input.length - this.#position >= this.#payloadLength) {
        const end = this.#position + this.#payloadLength;
        this.request.payload = this.#input.subarray(this.#position, end);
        this.request.isBorrowed = true;
        this.#position = end;
        return "request";
      } else {
        this.#state = "payload";
        this.#startPayload();
      }
    }
    const isWhole = this.#state === "skip" ? this.#skip() : this.#fillPayload();
    if (!isWhole) return "more";
    this.#state = "header";
    return "request";
  }

  /** Decodes the next header and checks it; false where it is not all there. */
  #takeHeader(): boolean {
    const available = this.#input.length - this.#position;
    if (this.#partialLength === 0 && available >= this.#headerBytes) {
      this.#decode(this.#view, this.#position);
      this.#position += this.#headerBytes;
      return true;
    }
    const take = Math.min(available, this.#headerBytes - this.#partialLength);
    this.#partial.set(
      this.#input.subarray(this.#position, this.#position + take),
      this.#partialLength,
    );
    this.#position += take;
    this.#partialLength += take;
    if (this.#partialLength < this.#headerBytes) return false;
    this.#partialLength = 0;
    this.#decode(this.#partialView, 0);
    return true;
  }

  /** Fills `request`, and `#payloadLength`: -1 for a violation. */
  #decode(view: DataView, position: number): void {
    const { isExtended, payloadBytesMax, check } = this.#options;
    const request = this.request;
    const magic = isExtended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC;
    if (view.getUint32(position) !== magic) {
      this.#payloadLength = -1;
      return;
    }
    request.flags = view.getUint16(position + 4);
    request.type = view.getUint16(position + 6);
    request.cookieHigh = view.getUint32(position + 8);
    request.cookieLow = view.getUint32(position + 12);
    request.offsetHigh = view.getUint32(position + 16);
    request.offsetLow = view.getUint32(position + 20);
    request.offset = joinUint64(request.offsetHigh, request.offsetLow);
    request.length = isExtended
      ? joinUint64(view.getUint32(position + 24), view.getUint32(position + 28))
      : view.getUint32(position + 24);
    request.payload = null;
    request.isBorrowed = false;
    // A write has one whether its flag says so or not: QEMU's client (10.0) leaves the flag out, and
    // its server puts up with that.
    const hasPayload = request.type === NBD_CMD_WRITE ||
      (isExtended && (request.flags & NBD_CMD_FLAG_PAYLOAD_LEN) !== 0);
    this.#payloadLength = hasPayload ? request.length : 0;
    // A payload beyond the maximum is a reason to disconnect (extended headers, "Request message").
    if (isExtended && this.#payloadLength > payloadBytesMax) this.#payloadLength = -1;
    else request.refusal = check(request);
    this.#payloadDone = 0;
  }

  #skip(): boolean {
    const available = this.#input.length - this.#position;
    const take = Math.min(available, this.#payloadLength - this.#payloadDone);
    this.#position += take;
    this.#payloadDone += take;
    return this.#payloadDone === this.#payloadLength;
  }

  #startPayload(): void {
    const start = Math.min(this.#payloadLength, PAYLOAD_START_BYTES);
    if (this.#spare.length >= start) {
      this.#payload = this.#spare;
      this.#spare = EMPTY;
    } else {
      this.#payload = new Uint8Array(start);
    }
  }

  #fillPayload(): boolean {
    const available = this.#input.length - this.#position;
    const take = Math.min(available, this.#payloadLength - this.#payloadDone);
    const end = this.#payloadDone + take;
    if (end > this.#payload.length) {
      const grown = new Uint8Array(
        Math.min(this.#payloadLength, Math.max(end, 2 * this.#payload.length)),
      );
      grown.set(this.#payload.subarray(0, this.#payloadDone));
      this.#payload = grown;
    }
    this.#payload.set(
      this.#input.subarray(this.#position, this.#position + take),
      this.#payloadDone,
    );
    this.#position += take;
    this.#payloadDone = end;
    if (end < this.#payloadLength) return false;
    this.request.payload = this.#payload.subarray(0, this.#payloadLength);
    this.#payload = EMPTY;
    return true;
  }
}
