/**
 * An NBD client that outlives its connection: what was not answered when it broke is sent again on
 * the next one.
 *
 *   connected --broken--> waiting --reconnectDelayMs--> down      (without a delay: down at once)
 *       ^                    |                            |
 *       +-----attempt--------+----------attempt-----------+
 *
 * While `waiting`, requests wait for the next connection; while `down`, they fail at once and each
 * starts an attempt, if none is under way. Attempts follow each other after 1, 2, 4 ... 16 seconds
 * as long as somebody waits. An idle client attempts nothing: it finds out with its next request.
 *
 * All NBD requests may be repeated: none depends on what it finds, and nobody may rely on the order
 * of requests that are in flight together. A server that lost power, rather than its connection,
 * may have forgotten writes that were answered and not flushed; nobody can tell, here as with QEMU.
 *
 * The export must still be what it was: of the same size, and able to do what was promised.
 *
 * @module
 */

import { type Clock, systemClock } from "../block/clock.ts";
import { BlockError, toBlockError } from "../block/errors.ts";
import { type NbdClient, NbdError } from "./client.ts";
import { NbdHandshakeError } from "./client_handshake.ts";
import { NBD_ESHUTDOWN } from "./codec.ts";

/** What such a client is made of. */
export interface ReconnectingClientOptions {
  /** Makes a connection and negotiates the export. */
  connect: (signal: AbortSignal) => Promise<NbdClient>;
  /** Requests wait so long for the next connection before they fail. */
  reconnectDelayMs: number;
  /** The machine's clock unless given. */
  clock?: Clock;
}

const RETRY_MIN_MS = 1_000;
const RETRY_MAX_MS = 16_000;

/** Attempts to connect until one succeeds or `timeoutMs` has passed: then the last error. */
export async function connectWithin(
  connect: (signal: AbortSignal) => Promise<NbdClient>,
  { timeoutMs, clock, signal }: { timeoutMs: number; clock: Clock; signal: AbortSignal },
): Promise<NbdClient> {
  const deadline = clock.now() + timeoutMs;
  for (let delayMs = RETRY_MIN_MS;; delayMs = Math.min(2 * delayMs, RETRY_MAX_MS)) {
    const leftMs = deadline - clock.now();
    const attempt = new AbortController();
    const onAbort = () => attempt.abort(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    if (signal.aborted) onAbort();
    const cancel = timeoutMs > 0 ? clock.after(leftMs, () => attempt.abort(timedOut())) : () => {};
    try {
      return await connect(attempt.signal);
    } catch (error) {
      if (signal.aborted || deadline - clock.now() <= 0 || isFinal(error)) throw error;
    } finally {
      cancel();
      signal.removeEventListener("abort", onAbort);
    }
    await sleep(clock, Math.min(delayMs, deadline - clock.now()), signal);
  }
}

/** See the module's description. */
export class ReconnectingClient {
  readonly #options: ReconnectingClientOptions;
  readonly #clock: Clock;
  readonly #abort = new AbortController();
  readonly #sizeBytes: number;
  readonly #transmissionFlags: number;
  #client: NbdClient;
  #attempt: Promise<void> | null = null;
  /** When requests stop waiting for a connection; null while there is one. */
  #deadline: number | null = null;
  /** Lets requests go that wait for a connection. */
  #stopWaiting = Promise.withResolvers<void>();
  #lastError: unknown = null;
  #reconnects = 0;

  /** Takes over a connection that stands. */
  constructor(client: NbdClient, options: ReconnectingClientOptions) {
    this.#client = client;
    this.#sizeBytes = client.sizeBytes;
    this.#transmissionFlags = client.transmissionFlags;
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
  }

  /** The present connection, which may be broken: for what was negotiated. */
  get client(): NbdClient {
    return this.#client;
  }

  /** How often the connection was replaced. */
  get reconnects(): number {
    return this.#reconnects;
  }

  /** Runs a request, on another connection again if this one breaks under it. */
  async run<T>(request: (client: NbdClient) => Promise<T>): Promise<T> {
    for (;;) {
      const client = await this.#connected();
      try {
        return await request(client);
      } catch (error) {
        if (!isBroken(client, error)) throw error;
        this.#noticeBroken(client, error);
        // Without a delay, and when closed, a request fails with its connection.
        if (this.#options.reconnectDelayMs === 0 || this.#abort.signal.aborted) throw error;
      }
    }
  }

  /** Requests that wait for a connection fail, now and until there is one again. */
  stopWaiting(): void {
    if (this.#deadline === null) return;
    this.#deadline = this.#clock.now();
    this.#stopWaiting.resolve();
    this.#stopWaiting = Promise.withResolvers();
  }

  /** Says goodbye. Requests that wait fail. */
  async close(): Promise<void> {
    this.#abort.abort(new BlockError("ESHUTDOWN", "this client is closed"));
    await this.#attempt;
    await this.#client.close();
  }

  /** The connection, waited for at most until the deadline. */
  #connected(): NbdClient | Promise<NbdClient> {
    if (this.#client.failure !== null) this.#noticeBroken(this.#client, this.#client.failure);
    return this.#deadline === null ? this.#client : this.#awaitConnection(this.#deadline);
  }

  async #awaitConnection(deadline: number): Promise<NbdClient> {
    this.#abort.signal.throwIfAborted();
    this.#attempt ??= this.#reconnect().finally(() => this.#attempt = null);
    if (this.#clock.now() < deadline) {
      let cancel = () => {};
      const timeout = new Promise<void>((resolve) => {
        cancel = this.#clock.after(deadline - this.#clock.now(), resolve);
      });
      await Promise.race([this.#attempt, timeout, this.#stopWaiting.promise]);
      cancel();
    }
    if (this.#deadline === null) return this.#client;
    throw this.#lastError;
  }

  #noticeBroken(client: NbdClient, error: unknown): void {
    if (client !== this.#client || this.#deadline !== null) return;
    this.#lastError = error;
    this.#deadline = this.#clock.now() + this.#options.reconnectDelayMs;
    // A server that is stopping has not closed the connection yet.
    void client.close();
  }

  /** Attempts until one succeeds or nobody waits any more. Never rejects. */
  async #reconnect(): Promise<void> {
    const { signal } = this.#abort;
    const leftMs = () => (this.#deadline ?? 0) - this.#clock.now();
    for (let delayMs = RETRY_MIN_MS; !signal.aborted; delayMs *= 2) {
      try {
        this.#client = this.#checked(await this.#options.connect(signal));
        this.#reconnects++;
        this.#deadline = null;
        return;
      } catch (error) {
        this.#lastError = error;
      }
      if (leftMs() <= 0) return;
      await sleep(this.#clock, Math.min(delayMs, RETRY_MAX_MS, leftMs()), signal).catch(() => {});
    }
  }

  /** What was promised to users of the node has to be true of the new connection too. */
  #checked(client: NbdClient): NbdClient {
    const lost = this.#transmissionFlags & ~client.transmissionFlags & PROMISED_FLAGS;
    const isReadOnlyNow = client.isReadOnly && (this.#transmissionFlags & FLAG_READ_ONLY) === 0;
    if (client.sizeBytes === this.#sizeBytes && lost === 0 && !isReadOnlyNow) return client;
    void client.close();
    throw new BlockError("EIO", "the server's export is not the one that was open before");
  }
}

/** NBD_FLAG_READ_ONLY; those that a user of the export may rely on: FLUSH, FUA, TRIM, ZEROES. */
const FLAG_READ_ONLY = 1 << 1;
const PROMISED_FLAGS = (1 << 2) | (1 << 3) | (1 << 5) | (1 << 6);

/** Whether a request failed with its connection, rather than by the server's answer. */
function isBroken(client: NbdClient, error: unknown): boolean {
  return client.failure !== null && error === client.failure ||
    error instanceof NbdError && error.errno === NBD_ESHUTDOWN;
}

/** The server answered and will answer the same again. */
function isFinal(error: unknown): boolean {
  return error instanceof NbdHandshakeError && error.replyType !== 0 ||
    error instanceof BlockError && error.code === "EINVAL";
}

function timedOut(): BlockError {
  return toBlockError(new BlockError("ETIMEDOUT", "the NBD server did not answer in time"));
}

function sleep(clock: Clock, delayMs: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const cancel = clock.after(delayMs, () => {
      signal.removeEventListener("abort", onAbort);
      resolve();
    });
    const onAbort = () => {
      cancel();
      reject(signal.reason);
    };
    signal.addEventListener("abort", onAbort, { once: true });
    if (signal.aborted) onAbort();
  });
}
