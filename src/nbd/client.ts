/**
 * An NBD client over any byte stream: pipelines requests, bounds what is outstanding, and matches
 * replies in whatever order they come. Pure but for timers: also runs in browsers.
 *
 *   waiting --room--> pending (by cookie) --last chunk--> settled
 *
 * A request that is aborted settles at once; its reply is thrown away when it comes. When the
 * connection breaks, everything that waits or is pending fails with the reason.
 *
 * @module
 */

import type { ByteStream } from "./byte_stream.ts";
import {
  type ListedExport,
  listExports,
  negotiate,
  type NegotiatedExport,
} from "./client_handshake.ts";
import { ClientLink } from "./client_link.ts";
import {
  errnoName,
  EXTENDED_REQUEST_BYTES,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_PAYLOAD_LEN,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_CONTEXT_BASE_ALLOCATION,
  NBD_EINVAL,
  NBD_EIO,
  NBD_EXTENDED_REQUEST_MAGIC,
  NBD_FLAG_READ_ONLY,
  NBD_REQUEST_MAGIC,
  type ReplyStyle,
  REQUEST_BYTES,
  setUint64,
} from "./codec.ts";
import type { OutputQueue } from "./output_queue.ts";
import { ReplyParser, type StatusExtent } from "./reply_parser.ts";

/** The server refused a request, or the connection broke (errno NBD_ESHUTDOWN or NBD_EIO). */
export class NbdError extends Error {
  /** For whoever prints it. */
  override readonly name = "NbdError";
  /** `errno`: NBD_E*. */
  constructor(readonly errno: number, message: string) {
    super(message === "" ? errnoName(errno) : message);
  }
}

/** How a client connects and what it keeps to. */
export interface NbdClientOptions {
  /** The default export unless told otherwise. */
  exportName?: string;
  /** Meta contexts to select, `base:allocation` unless told otherwise. */
  contexts?: readonly string[];
  /** The best headers to ask for: "extended" unless told otherwise. */
  style?: ReplyStyle;
  /** TLS, or no connection; the stream must be one that can be secured. */
  isTls?: boolean;
  /** Requests that may be pending at a time, 16 unless told otherwise. */
  requestsMax?: number;
  /** Bytes that may be outstanding at a time, 4 MiB unless told otherwise. */
  outstandingBytesMax?: number;
  /** Longer reads and writes are split, at 1 MiB unless told otherwise. */
  requestBytesMax?: number;
  /** Gives the handshake up. */
  signal?: AbortSignal;
}

/** What every request takes. */
export interface NbdRequestOptions {
  /** Gives the request up. */
  signal?: AbortSignal;
  /** On stable storage before the answer. */
  isFua?: boolean;
}

interface Pending {
  readonly type: number;
  readonly flags: number;
  readonly offset: number;
  readonly length: number;
  /** What a write sends. */
  readonly payload: Uint8Array | null;
  /** Where a read's data goes; null once nobody waits for it any more. */
  target: Uint8Array | null;
  /** A read takes its data wherever it is, without a copy where that can be. */
  isOpen: boolean;
  received: number;
  readonly statuses: Map<string, StatusExtent[]>;
  failure: NbdError | null;
  settle: (error: unknown) => void;
}

const DEFAULT_REQUESTS = 16;
const MiB = 1024 * 1024;
/** A compact request's length has 32 bits; the next lower multiple of 64 KiB. */
const COMPACT_LENGTH_MAX = 0xffff0000;

/** See the module's description. */
export class NbdClient {
  readonly #stream: ByteStream;
  readonly #queue: OutputQueue;
  readonly #negotiated: NegotiatedExport;
  readonly #parser: ReplyParser;
  readonly #requestsMax: number;
  readonly #outstandingBytesMax: number;
  readonly #requestBytesMax: number;
  readonly #pending = new Map<number, Pending>();
  readonly #waiting = new Set<Pending>();
  #outstandingBytes = 0;
  #nextCookie = 1;
  #isFlushing = false;
  #failure: NbdError | null = null;
  #onIdle: () => void = () => {};

  private constructor(link: ClientLink, negotiated: NegotiatedExport, options: NbdClientOptions) {
    this.#stream = link.stream;
    this.#negotiated = negotiated;
    this.#requestsMax = options.requestsMax ?? DEFAULT_REQUESTS;
    this.#outstandingBytesMax = options.outstandingBytesMax ?? 4 * MiB;
    this.#requestBytesMax = Math.min(
      options.requestBytesMax ?? MiB,
      negotiated.payloadBytesMax,
      this.#outstandingBytesMax,
    );
    this.#parser = new ReplyParser(negotiated.style, (cookie) => this.#readRangeOf(cookie));
    this.#queue = link.queue;
    link.transmit({
      onBytes: (bytes) => this.#onBytes(bytes),
      onBroken: (message) => this.#break(message),
      onProgress: () => this.#checkIdle(),
    });
  }

  /** Negotiates an export. Closes the stream if that fails. */
  static async connect(stream: ByteStream, options: NbdClientOptions = {}): Promise<NbdClient> {
    const link = new ClientLink(stream, options.signal);
    try {
      const negotiated = await negotiate(link, {
        exportName: options.exportName ?? "",
        contexts: options.contexts ?? [NBD_CONTEXT_BASE_ALLOCATION],
        style: options.style ?? "extended",
        isTls: options.isTls ?? false,
      });
      link.release();
      return new NbdClient(link, negotiated, options);
    } catch (error) {
      link.release();
      stream.close("the handshake failed");
      throw error;
    }
  }

  /** The exports that a server lists. Uses the stream up. */
  static async list(
    stream: ByteStream,
    { signal, isTls }: Pick<NbdClientOptions, "signal" | "isTls"> = {},
  ): Promise<ListedExport[]> {
    const link = new ClientLink(stream, signal);
    try {
      return await listExports(link, isTls);
    } finally {
      link.release();
      await link.drained();
      stream.close("done");
    }
  }

  /** Bytes of the export. */
  get sizeBytes(): number {
    return this.#negotiated.sizeBytes;
  }

  /** The server refuses everything that changes the export. */
  get isReadOnly(): boolean {
    return (this.#negotiated.transmissionFlags & NBD_FLAG_READ_ONLY) !== 0;
  }

  /** NBD_FLAG_* of the export. */
  get transmissionFlags(): number {
    return this.#negotiated.transmissionFlags;
  }

  /** The headers that were agreed on. */
  get style(): ReplyStyle {
    return this.#negotiated.style;
  }

  /** The meta contexts that the server has of those that were asked for. */
  get contexts(): string[] {
    return [...this.#negotiated.contexts.values()];
  }

  /** Why nothing can be asked any more, null while the connection stands. */
  get failure(): NbdError | null {
    return this.#failure;
  }

  /** Offsets and lengths must be multiples of it. */
  get minimumBlockBytes(): number {
    return this.#negotiated.minimumBlockBytes;
  }

  /** The size of requests that the server likes best, or a multiple. */
  get preferredBlockBytes(): number {
    return this.#negotiated.preferredBlockBytes;
  }

  /**
   * Reads `[offset, offset + length)`. What comes in one piece is handed on where it lies: a part
   * of a buffer that is not much larger.
   */
  async read(
    offset: number,
    length: number,
    options: NbdRequestOptions = {},
  ): Promise<Uint8Array<ArrayBuffer>> {
    checkRange(offset, length, this.sizeBytes);
    if (length > 0 && length <= this.#requestBytesMax) {
      const { target } = await this.#request({ type: NBD_CMD_READ, offset, length }, options);
      // What streams hand out is not shared.
      return target as Uint8Array<ArrayBuffer>;
    }
    const target = new Uint8Array(length);
    await this.readInto(offset, target, options);
    return target;
  }

  /** Fills `target` from `offset` on. What it holds after a failure means nothing. */
  async readInto(
    offset: number,
    target: Uint8Array,
    options: NbdRequestOptions = {},
  ): Promise<void> {
    checkRange(offset, target.length, this.sizeBytes);
    await this.#inPieces(target.length, (from, to) =>
      this.#request(
        { type: NBD_CMD_READ, offset: offset + from, target: target.subarray(from, to) },
        options,
      ));
  }

  /** Writes `data`, which must not change until the promise resolves. */
  async write(offset: number, data: Uint8Array, options: NbdRequestOptions = {}): Promise<void> {
    checkRange(offset, data.length, this.sizeBytes);
    await this.#inPieces(data.length, (from, to) =>
      this.#request(
        { type: NBD_CMD_WRITE, offset: offset + from, payload: data.subarray(from, to) },
        options,
      ));
  }

  /** Writes zeroes. `isFast`: fails with NBD_ENOTSUP rather than being slow. */
  async writeZeroes(
    offset: number,
    length: number,
    options: NbdRequestOptions & { mayUnmap?: boolean; isFast?: boolean } = {},
  ): Promise<void> {
    const flags = (options.mayUnmap === false ? NBD_CMD_FLAG_NO_HOLE : 0) |
      (options.isFast === true ? NBD_CMD_FLAG_FAST_ZERO : 0);
    await this.#ranged({ type: NBD_CMD_WRITE_ZEROES, flags, offset }, length, options);
  }

  /** Gives an area up: what it reads as afterwards is not defined. */
  async trim(offset: number, length: number, options: NbdRequestOptions = {}): Promise<void> {
    await this.#ranged({ type: NBD_CMD_TRIM, offset }, length, options);
  }

  /** Announces that an area will be read. */
  async cache(offset: number, length: number, options: NbdRequestOptions = {}): Promise<void> {
    await this.#ranged({ type: NBD_CMD_CACHE, offset }, length, options);
  }

  /** Makes every write that was answered durable. */
  async flush(options: NbdRequestOptions = {}): Promise<void> {
    await this.#request({ type: NBD_CMD_FLUSH, offset: 0, length: 0 }, options);
  }

  /**
   * Extents from `offset` on, by context: at least one each; together they may cover less than
   * `length`, and the last one more.
   */
  async blockStatus(
    offset: number,
    length: number,
    options: NbdRequestOptions & { isOne?: boolean } = {},
  ): Promise<Map<string, StatusExtent[]>> {
    checkRange(offset, length, this.sizeBytes);
    const isCompact = this.#negotiated.style !== "extended";
    const { statuses } = await this.#request({
      type: NBD_CMD_BLOCK_STATUS,
      flags: options.isOne === true ? NBD_CMD_FLAG_REQ_ONE : 0,
      offset,
      length: isCompact ? Math.min(length, COMPACT_LENGTH_MAX) : length,
    }, options);
    return statuses;
  }

  /** Waits for what is pending, says goodbye and closes. */
  async close(): Promise<void> {
    while (this.#failure === null && !this.#isIdle) {
      await new Promise<void>((resolve) => this.#onIdle = resolve);
    }
    if (this.#failure !== null) return;
    this.#encode(0, { type: NBD_CMD_DISC, flags: 0, offset: 0, length: 0 });
    this.#queue.flush();
    while (this.#failure === null && this.#queue.pendingBytes > 0) {
      await new Promise<void>((resolve) => this.#onIdle = resolve);
    }
    this.#failure ??= new NbdError(NBD_EIO, "this client is closed");
    this.#stream.close("the client is closed");
  }

  get #isIdle(): boolean {
    return this.#pending.size === 0 && this.#waiting.size === 0;
  }

  #checkIdle(): void {
    const onIdle = this.#onIdle;
    this.#onIdle = () => {};
    onIdle();
  }

  /** Runs `action` for each piece of a long request, all pipelined. */
  async #inPieces(
    length: number,
    action: (from: number, to: number) => Promise<unknown>,
  ): Promise<void> {
    if (length <= this.#requestBytesMax) {
      if (length > 0) await action(0, length);
      return;
    }
    const pieces: Promise<unknown>[] = [];
    for (let from = 0; from < length; from += this.#requestBytesMax) {
      pieces.push(action(from, Math.min(length, from + this.#requestBytesMax)));
    }
    const failed = (await Promise.allSettled(pieces)).find(({ status }) => status === "rejected");
    if (failed?.status === "rejected") throw failed.reason;
  }

  /** A request without payload; split only where a compact header has no room for its length. */
  async #ranged(
    request: { type: number; offset: number; flags?: number },
    length: number,
    options: NbdRequestOptions,
  ): Promise<void> {
    checkRange(request.offset, length, this.sizeBytes);
    const max = this.#negotiated.style === "extended" ? length : COMPACT_LENGTH_MAX;
    for (let done = 0; done < length; done += max) {
      const piece = Math.min(max, length - done);
      await this.#request({ ...request, offset: request.offset + done, length: piece }, options);
    }
  }

  #request(
    { type, flags = 0, offset, length, payload = null, target = null }: {
      type: number;
      flags?: number;
      offset: number;
      length?: number;
      payload?: Uint8Array | null;
      target?: Uint8Array | null;
    },
    { signal, isFua = false }: NbdRequestOptions,
  ): Promise<Pending> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    if (signal?.aborted === true) return Promise.reject(signal.reason);
    return new Promise((resolve, reject) => {
      const onAbort = () => {
        pending.target = null;
        pending.isOpen = false;
        this.#waiting.delete(pending);
        reject(signal?.reason);
      };
      const pending: Pending = {
        type,
        flags: flags | (isFua ? NBD_CMD_FLAG_FUA : 0),
        offset,
        length: length ?? payload?.length ?? target?.length ?? 0,
        payload,
        target,
        isOpen: type === NBD_CMD_READ && target === null,
        received: 0,
        statuses: new Map(),
        failure: null,
        settle: (error) => {
          signal?.removeEventListener("abort", onAbort);
          if (error === null) resolve(pending);
          else reject(error);
        },
      };
      signal?.addEventListener("abort", onAbort, { once: true });
      this.#waiting.add(pending);
      this.#sendWaiting();
    });
  }

  #sendWaiting(): void {
    for (const pending of this.#waiting) {
      if (this.#pending.size >= this.#requestsMax) break;
      const cost = costOf(pending);
      const isFull = this.#outstandingBytes + cost > this.#outstandingBytesMax;
      if (isFull && this.#pending.size > 0) break;
      this.#waiting.delete(pending);
      const cookie = this.#nextCookie++;
      this.#pending.set(cookie, pending);
      this.#outstandingBytes += cost;
      this.#encode(cookie, pending);
      if (pending.payload !== null) this.#queue.append(pending.payload);
    }
    if (this.#isFlushing) return;
    // Requests made in one turn of the event loop go out in one write.
    this.#isFlushing = true;
    queueMicrotask(() => {
      this.#isFlushing = false;
      this.#queue.flush();
    });
  }

  #encode(
    cookie: number,
    { type, flags, offset, length }: {
      type: number;
      flags: number;
      offset: number;
      length: number;
    },
  ): void {
    const isExtended = this.#negotiated.style === "extended";
    const byteCount = isExtended ? EXTENDED_REQUEST_BYTES : REQUEST_BYTES;
    const { view } = this.#queue.reserve(byteCount);
    const position = this.#queue.position;
    const payloadFlag = isExtended && type === NBD_CMD_WRITE ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;
    view.setUint32(position, isExtended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
    view.setUint16(position + 4, flags | payloadFlag);
    view.setUint16(position + 6, type);
    setUint64(view, position + 8, cookie);
    setUint64(view, position + 16, offset);
    if (isExtended) setUint64(view, position + 24, length);
    else view.setUint32(position + 24, length);
    this.#queue.commit(byteCount);
  }

  #readRangeOf(cookie: number): { offset: number; length: number } | undefined {
    const pending = this.#pending.get(cookie);
    return pending?.type === NBD_CMD_READ ? pending : undefined;
  }

  /** True where a part of the bytes was handed on. */
  #onBytes(bytes: Uint8Array): boolean {
    let isKept = false;
    this.#parser.push(bytes);
    for (;;) {
      const step = this.#parser.next();
      if (step === "more") return isKept;
      if (step === "violation") return this.#break(`protocol error: ${this.#parser.violation}`);
      const pending = this.#pending.get(this.#parser.cookie);
      if (pending === undefined) return this.#break("protocol error: a reply nobody waits for");
      if (step === "data") isKept = this.#takeData(pending) || isKept;
      else if (step === "hole") this.#takeHole(pending);
      else if (step === "error") {
        pending.failure ??= new NbdError(this.#parser.errno, this.#parser.message);
      } else if (step === "status") {
        const name = this.#negotiated.contexts.get(this.#parser.contextId);
        if (name !== undefined) pending.statuses.set(name, this.#parser.extents);
      }
      if (this.#parser.isLast) this.#finish(this.#parser.cookie, pending);
    }
  }

  /** True where the data is handed on as it is. */
  #takeData(pending: Pending): boolean {
    const { data, offset } = this.#parser;
    pending.received += data.length;
    if (pending.isOpen) {
      pending.isOpen = false;
      if (data.length === pending.length && 2 * data.length >= data.buffer.byteLength) {
        pending.target = data;
        return true;
      }
      pending.target = new Uint8Array(pending.length);
    }
    pending.target?.set(data, offset - pending.offset);
    return false;
  }

  #takeHole(pending: Pending): void {
    const { offset, length } = this.#parser;
    pending.received += length;
    if (pending.isOpen) {
      pending.isOpen = false;
      pending.target = new Uint8Array(pending.length);
      return;
    }
    const from = offset - pending.offset;
    pending.target?.fill(0, from, from + length);
  }

  #finish(cookie: number, pending: Pending): void {
    this.#pending.delete(cookie);
    this.#outstandingBytes -= costOf(pending);
    if (pending.failure === null) {
      const wanted = this.#negotiated.contexts.size;
      if (pending.type === NBD_CMD_READ && pending.received !== pending.length) {
        pending.failure = new NbdError(NBD_EIO, "the server answered less than was asked for");
      } else if (pending.type === NBD_CMD_BLOCK_STATUS && pending.statuses.size < wanted) {
        pending.failure = new NbdError(NBD_EIO, "the server left a meta context out");
      }
    }
    pending.settle(pending.failure);
    this.#sendWaiting();
    if (this.#isIdle) this.#checkIdle();
  }

  /** False: nothing is kept. */
  #break(message: string): false {
    if (this.#failure !== null) return false;
    this.#failure = new NbdError(NBD_EIO, message);
    this.#stream.close(message);
    const all = [...this.#pending.values(), ...this.#waiting];
    this.#pending.clear();
    this.#waiting.clear();
    for (const pending of all) pending.settle(pending.failure ?? this.#failure);
    this.#checkIdle();
    return false;
  }
}

/** Bytes that a request makes wait in either direction. */
function costOf({ payload, type, length }: Pending): number {
  return payload?.length ?? (type === NBD_CMD_READ ? length : 0);
}

function checkRange(offset: number, length: number, sizeBytes: number): void {
  const isGood = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 &&
    length >= 0 && offset + length <= sizeBytes;
  if (!isGood) {
    throw new NbdError(NBD_EINVAL, `${length} bytes at ${offset} are not in the export`);
  }
}
