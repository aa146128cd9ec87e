/**
 * One NBD connection over any byte stream.
 *
 *   handshake --STARTTLS--> securing --> handshake, from its beginning
 *   handshake --GO, EXPORT_NAME--> transmission --DISC, end, shutdown--> ending --> closed
 *       +--ABORT, violation, deadline------------------------------------^
 *
 * `securing` lasts until all replies are written: what a client sent behind NBD_OPT_STARTTLS without
 * waiting for its answer is thrown away, since anybody could have put it there.
 *
 * `ending` takes no input any more; it waits for the requests in flight, lets the client take the
 * last replies for nbdCloseMs, and closes. Whatever a client does, the session holds one unfinished
 * option or request, the unparsed rest of one input buffer, and a bounded queue of replies.
 *
 * @module
 */

import type { ExportDirectory } from "../block/export.ts";
import { limits } from "../limits.ts";
import type { ByteSink, ByteStream, StreamEnd } from "./byte_stream.ts";
import type { ByteBudget } from "./byte_budget.ts";
import { Handshake, type TlsMode } from "./handshake.ts";
import { ChunkPool, OutputQueue } from "./output_queue.ts";
import type { NbdCounters } from "./statistics.ts";
import { Transmission } from "./transmission.ts";

/** What a session is made of. */
export interface NbdSessionOptions {
  /** The exports that this client may open. */
  directory: ExportDirectory;
  /** Whether TLS may or must be used: "off" unless told otherwise. Else the stream can startTls. */
  tlsMode?: TlsMode;
  /** What all sessions may hold together; without bound unless given. */
  budget?: ByteBudget;
  /** Where requests are counted. */
  counters?: NbdCounters;
  /** Reply buffers, shared with other sessions. */
  pool?: ChunkPool;
  /** Time for the handshake, limits.nbdHandshakeMs unless told otherwise. */
  handshakeMs?: number;
  /** Work before others get a turn, limits.nbdTurnMs unless told otherwise. */
  turnMs?: number;
  /** Time for the client to take the last replies, limits.nbdCloseMs unless told otherwise. */
  closeMs?: number;
}

/** See the module's description. */
export class NbdSession {
  /** Resolves, with the reason, when the connection is closed and no request is in flight. */
  readonly closed: Promise<string>;
  readonly #stream: ByteStream;
  readonly #options: NbdSessionOptions;
  readonly #queue: OutputQueue;
  readonly #handshake: Handshake;
  #transmission: Transmission | null = null;
  #isSecuring = false;
  #activity = 0;
  #isEnding = false;
  #isBroken = false;
  #isClosed = false;
  #reason = "";
  #timer: ReturnType<typeof setTimeout> | undefined;
  #resolveClosed: (reason: string) => void = () => {};
  #idleWaiters: (() => void)[] = [];

  /** Does nothing before `start`. */
  constructor(stream: ByteStream, options: NbdSessionOptions) {
    this.#stream = stream;
    this.#options = options;
    this.#handshake = new Handshake(options.directory, options.tlsMode);
    this.closed = new Promise((resolve) => this.#resolveClosed = resolve);
    this.#queue = new OutputQueue(stream, options.pool ?? new ChunkPool(2), {
      onProgress: () => {
        this.#activity++;
        if (this.#isEnding) clearTimeout(this.#timer);
        this.#pump();
      },
      onBroken: (error) => this.#break(error instanceof Error ? error.message : String(error)),
    });
  }

  /** The export that is open, if one is. */
  get exportName(): string | null {
    return this.#transmission?.exportName ?? null;
  }

  /** Changes whenever bytes come or go. */
  get activity(): number {
    return this.#activity;
  }

  /** Requests that the export has not answered yet. */
  get inFlight(): number {
    return this.#transmission?.inFlight ?? 0;
  }

  /** Bytes of requests and replies that are held for the client. */
  get heldBytes(): number {
    return this.#transmission?.heldBytes ?? this.#queue.pendingBytes;
  }

  /** Ends the connection at once: its client has had its chance. */
  cutOff(reason: string): void {
    this.#break(reason);
  }

  /** Greets the client and serves it. Once. */
  start(): void {
    this.#timer = setTimeout(
      () => this.#end("the handshake took too long"),
      this.#options.handshakeMs ?? limits.nbdHandshakeMs,
    );
    const sink: ByteSink = {
      onData: (bytes) => this.#onData(bytes),
      onEnd: (end) => this.#onEnd(end),
    };
    this.#stream.start(sink);
    this.#queue.append(this.#handshake.takeOutput());
    this.#queue.flush();
  }

  /**
   * Ends the session: requests that were received are answered, with NBD_ESHUTDOWN unless they are
   * in flight, and the connection is closed. Resolves when no request is in flight any more.
   */
  async shutDown(reason: string): Promise<void> {
    this.#transmission?.shutDown();
    this.#transmission?.pump();
    this.#end(reason);
    if (this.#transmission === null || this.#transmission.inFlight === 0) return;
    await new Promise<void>((resolve) => this.#idleWaiters.push(resolve));
  }

  #onData(bytes: Uint8Array): boolean {
    this.#activity++;
    if (this.#isEnding || this.#isSecuring) return false;
    let rest = bytes;
    if (this.#transmission === null) {
      const consumed = this.#handshake.receive(bytes);
      const output = this.#handshake.takeOutput();
      if (output.length > 0) this.#queue.append(output);
      const outcome = this.#handshake.outcome;
      if (outcome === null || outcome.kind !== "transmission") {
        this.#queue.flush();
        if (outcome?.kind === "close") this.#end(outcome.reason);
        else if (outcome?.kind === "startTls") this.#beginSecuring();
        return false;
      }
      clearTimeout(this.#timer);
      const { turnMs, budget, counters } = this.#options;
      this.#transmission = new Transmission(
        {
          ...outcome,
          ...(turnMs === undefined ? {} : { turnMs }),
          ...(budget === undefined ? {} : { budget }),
          ...(counters === undefined ? {} : { counters }),
        },
        this.#queue,
        () => this.#pump(),
      );
      rest = bytes.subarray(consumed);
    }
    this.#transmission.push(rest);
    this.#pump();
    return this.#transmission.keepsInput;
  }

  #beginSecuring(): void {
    this.#isSecuring = true;
    this.#stream.pause();
    this.#secureIfWritten();
  }

  #secureIfWritten(): void {
    if (this.#queue.pendingBytes > 0) return;
    this.#isSecuring = false;
    this.#handshake.secured();
    if (this.#options.counters !== undefined) this.#options.counters.secured++;
    this.#stream.startTls?.();
  }

  /** A client that shut down its sending side is still answered what it asked for. */
  #onEnd(end: StreamEnd): void {
    if (end.kind === "closed") this.#break(end.message);
    else this.#end("the client closed the connection");
  }

  /** Executes what waits, then finds out whether to take more input or to close. */
  #pump(): void {
    if (this.#isSecuring && !this.#isEnding) return this.#secureIfWritten();
    const transmission = this.#transmission;
    transmission?.account();
    if (transmission !== null && !this.#isBroken) {
      if (!transmission.pump()) this.#end("a request without its magic number, or too long");
      else if (transmission.isDisconnecting) this.#end("the client disconnected");
    }
    if (transmission !== null && transmission.inFlight === 0) {
      for (const wake of this.#idleWaiters.splice(0)) wake();
    }
    if (this.#isEnding) this.#closeIfDone();
    else if (transmission?.isBlocked === true) this.#stream.pause();
    else this.#stream.resume();
  }

  #end(reason: string): void {
    if (this.#isEnding) return;
    this.#isEnding = true;
    this.#reason = reason;
    clearTimeout(this.#timer);
    this.#stream.pause();
    this.#closeIfDone();
  }

  /** Nothing can be sent any more. Requests in flight finish, for nobody. */
  #break(message: string): void {
    if (this.#isBroken) return;
    this.#isBroken = true;
    if (!this.#isEnding) {
      this.#isEnding = true;
      this.#reason = message;
    }
    clearTimeout(this.#timer);
    this.#stream.close(this.#reason);
    this.#closeIfDone();
  }

  #closeIfDone(): void {
    if (this.#isClosed || (this.#transmission?.inFlight ?? 0) > 0) return;
    const isBusy = this.#queue.pendingBytes > 0 ||
      (this.#transmission !== null && !this.#transmission.isDisconnecting &&
        this.#transmission.isBlocked);
    clearTimeout(this.#timer);
    if (!this.#isBroken && isBusy) {
      this.#timer = setTimeout(
        () => this.#break(`${this.#reason}; the last replies were not read`),
        this.#options.closeMs ?? limits.nbdCloseMs,
      );
      return;
    }
    this.#isClosed = true;
    this.#transmission?.release();
    this.#stream.close(this.#reason);
    this.#resolveClosed(this.#reason);
  }
}
