/**
 * The stream under a client: gathers bytes for the handshake, which asks for so many at a time,
 * then passes them on to the client as they come.
 *
 * @module
 */

import type { ByteSink, ByteStream, StreamEnd } from "./byte_stream.ts";
import { type HandshakeChannel, NbdHandshakeError } from "./client_handshake.ts";
import { ChunkPool, OutputQueue } from "./output_queue.ts";

/** What a client hears of its stream. */
export interface ClientLinkEvents {
  /** Bytes of the transmission phase; whether they are kept. */
  onBytes: (bytes: Uint8Array) => boolean;
  /** The connection is gone. */
  onBroken: (message: string) => void;
  /** A write finished. */
  onProgress: () => void;
}

/** Nothing in a handshake is longer. */
const EARLY_BYTES_MAX = 1024 * 1024;

/** See the module's description. */
export class ClientLink implements HandshakeChannel, ByteSink {
  /** What it is over. */
  readonly stream: ByteStream;
  /** What is to be sent. */
  readonly queue: OutputQueue;
  readonly #signal: AbortSignal | undefined;
  readonly #onAbort = () => this.#fail(this.#signal?.reason);
  #buffer = new Uint8Array(0);
  #filled = 0;
  #wanted: { byteCount: number; resolve: (bytes: Uint8Array) => void } | null = null;
  #reject: (error: unknown) => void = () => {};
  #failure: unknown = null;
  #events: ClientLinkEvents | null = null;
  #onProgress: () => void = () => {};

  /** Starts the stream. */
  constructor(stream: ByteStream, signal: AbortSignal | undefined) {
    this.stream = stream;
    this.#signal = signal;
    this.queue = new OutputQueue(stream, new ChunkPool(2), {
      onProgress: () => {
        this.#onProgress();
        this.#events?.onProgress();
      },
      onBroken: (error) => this.#fail(error),
    });
    signal?.addEventListener("abort", this.#onAbort, { once: true });
    if (signal?.aborted === true) this.#onAbort();
    stream.start(this);
  }

  /** The handshake is over: the signal means nothing any more. */
  release(): void {
    this.#signal?.removeEventListener("abort", this.#onAbort);
  }

  /** From now on bytes go to the client. */
  transmit(events: ClientLinkEvents): void {
    this.#events = events;
    if (this.#failure !== null) return events.onBroken(messageOf(this.#failure));
    const early = this.#buffer.subarray(0, this.#filled);
    this.#filled = 0;
    if (early.length > 0) events.onBytes(early);
  }

  /** Resolves when everything sent was written, or nothing can be. */
  async drained(): Promise<void> {
    while (this.queue.pendingBytes > 0 && this.#failure === null) {
      await new Promise<void>((resolve) => this.#onProgress = resolve);
    }
  }

  /** Sends bytes. */
  send(bytes: Uint8Array): void {
    this.queue.append(bytes);
    this.queue.flush();
  }

  /**
   * Secures the stream. What a server sends behind its answer, anybody could have put there.
   */
  async startTls(): Promise<void> {
    await this.drained();
    if (this.#failure !== null) throw this.#failure;
    if (this.#filled > 0) throw new NbdHandshakeError(0, "plain text where TLS should begin");
    if (this.stream.startTls === undefined) {
      throw new NbdHandshakeError(0, "this connection can't be secured");
    }
    this.stream.startTls();
  }

  /** Waits for exactly so many bytes. */
  take(byteCount: number): Promise<Uint8Array> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      this.#wanted = { byteCount, resolve };
      this.#reject = reject;
      this.#giveWanted();
    });
  }

  /** See ByteSink. What comes before it is asked for is kept, up to a bound. */
  onData(bytes: Uint8Array): boolean {
    if (this.#events !== null) return this.#events.onBytes(bytes);
    const end = this.#filled + bytes.length;
    if (end > EARLY_BYTES_MAX) {
      this.#fail(new NbdHandshakeError(0, "the server sends what was not asked for"));
      return false;
    }
    if (end > this.#buffer.length) {
      const grown = new Uint8Array(2 * end);
      grown.set(this.#buffer.subarray(0, this.#filled));
      this.#buffer = grown;
    }
    this.#buffer.set(bytes, this.#filled);
    this.#filled = end;
    this.#giveWanted();
    return false;
  }

  /** From the stream: it ended, and with it every wait. */
  onEnd(end: StreamEnd): void {
    const message = end.kind === "closed" ? end.message : "the server closed the connection";
    this.#fail(new NbdHandshakeError(0, message));
  }

  #giveWanted(): void {
    const wanted = this.#wanted;
    if (wanted === null || this.#filled < wanted.byteCount) return;
    this.#wanted = null;
    const bytes = this.#buffer.slice(0, wanted.byteCount);
    this.#buffer.copyWithin(0, wanted.byteCount, this.#filled);
    this.#filled -= wanted.byteCount;
    wanted.resolve(bytes);
  }

  #fail(error: unknown): void {
    this.#failure ??= error ?? new Error("aborted");
    this.#reject(this.#failure);
    this.#onProgress();
    this.#events?.onBroken(messageOf(this.#failure));
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
