/**
 * A remote disk, read over NBD.
 *
 * @module
 */

import { NbdClient } from "../nbd/client.ts";
import { NBD_CONTEXT_BASE_ALLOCATION, NBD_STATE_ZERO } from "../nbd/codec.ts";
import { openWebSocket } from "./web_socket_stream.ts";

/** How to get in, and what to open. */
export interface ConnectOptions {
  /**
   * A single-use ticket for this export, or where to get one: a function makes it possible to
   * connect again.
   */
  ticket?: string | (() => Promise<string>);
  /**
   * How often to try again, in a row, when the connection breaks: 8 unless told otherwise, 0 for
   * never. Needs no ticket or a function for tickets.
   */
  reconnectAttempts?: number;
  /** Called before each attempt to connect again; the first is number 1. */
  onReconnect?: (attempt: number, reason: unknown) => void;
  /** The export's name; the one that the URL names unless told otherwise. */
  exportName?: string;
  /** Bytes asked for and not yet here, at most; 4 MiB unless told otherwise. */
  outstandingBytesMax?: number;
  /** Gives the connecting up. */
  signal?: AbortSignal;
}

/** Every wait takes a signal. */
export interface WaitOptions {
  /** Gives the wait up. */
  signal?: AbortSignal;
}

/** A run of the disk's map. */
export interface DiskExtent {
  /** Where it starts. */
  offset: number;
  /** Its bytes, at least 1. */
  length: number;
  /** As the meta context defines them; in `base:allocation`, 1 is a hole and 2 reads as zeroes. */
  flags: number;
}

/** How far a stream has come. */
export interface StreamProgress {
  /** Bytes that were handed on. */
  doneBytes: number;
  /** Bytes that there are. */
  totalBytes: number;
  /** Bytes of those that had to be read; the rest was known to be zeroes. */
  readBytes: number;
}

/** What a stream of the disk is made of. */
export interface StreamOptions extends WaitOptions {
  /** Where to start, 0 unless told otherwise. */
  offset?: number;
  /** How much, up to the end unless told otherwise. */
  length?: number;
  /** Called before each chunk is handed on. */
  onProgress?: (progress: StreamProgress) => void;
}

/** A piece of the disk: its bytes, or null where it is known to be zeroes. */
export interface DiskChunk {
  /** Where it starts. */
  offset: number;
  /** How many bytes it stands for, at least 1. */
  length: number;
  /** Null for zeroes that were not read. */
  bytes: Uint8Array<ArrayBuffer> | null;
}

const MiB = 1024 * 1024;
const OUTSTANDING_BYTES = 4 * MiB;
/** One frame of the server's: the fastest size into browsers. */
const REQUEST_BYTES = 256 * 1024;
const REQUESTS_MAX = 32;
/** What is known to be zeroes costs nothing: longer pieces. */
const ZERO_BYTES = MiB;
/** The map is asked for so much of the disk at a time. */
const MAP_BYTES = 1024 * MiB;
const RECONNECT_ATTEMPTS = 8;
const RECONNECT_DELAY_MS = 100;
const RECONNECT_DELAY_MAX_MS = 5_000;
const CONTEXTS = [NBD_CONTEXT_BASE_ALLOCATION, "x-ovis:access"];

/** Connects to an export's WebSocket (`ws://HOST/v1/exports/NAME/nbd`). */
export async function connect(url: string, options: ConnectOptions = {}): Promise<RemoteDisk> {
  const { ticket, outstandingBytesMax = OUTSTANDING_BYTES, signal } = options;
  const first = await open(url, options, signal);
  const canReconnect = typeof ticket !== "string";
  return new RemoteDisk(first, {
    outstandingBytesMax,
    ...(canReconnect ? { reopen: () => open(url, options) } : {}),
    attempts: options.reconnectAttempts ?? RECONNECT_ATTEMPTS,
    onReconnect: options.onReconnect ?? (() => {}),
  });
}

async function open(
  url: string,
  options: ConnectOptions,
  signal?: AbortSignal,
): Promise<NbdClient> {
  const { exportName = "", outstandingBytesMax = OUTSTANDING_BYTES } = options;
  const ticket = typeof options.ticket === "function" ? await options.ticket() : options.ticket;
  const protocols = ["nbd"];
  if (ticket !== undefined) protocols.push(`base64url.bearer.authorization.${ticket}`);
  const stream = await openWebSocket(url, protocols, signal);
  return await NbdClient.connect(stream, {
    exportName,
    contexts: CONTEXTS,
    requestsMax: REQUESTS_MAX,
    requestBytesMax: REQUEST_BYTES,
    outstandingBytesMax,
    ...(signal === undefined ? {} : { signal }),
  });
}

/** How a disk keeps its connection. */
export interface RemoteDiskOptions {
  /** Bytes asked for and not yet here, at most. */
  outstandingBytesMax?: number;
  /** Connects again; without it a connection that broke stays so. */
  reopen?: () => Promise<NbdClient>;
  /** How often in a row. */
  attempts?: number;
  /** Called before each attempt. */
  onReconnect?: (attempt: number, reason: unknown) => void;
}

/**
 * An open export. Reading only; errors are NbdErrors with the server's reason.
 *
 *   connected --broke--> connecting again --> connected
 *                             \--no attempt left--> broken, with the reason
 *
 * What was asked for and not answered when the connection broke is asked for again: reading can be
 * repeated, and what is read does not change.
 */
export class RemoteDisk {
  /** Bytes of the disk. */
  readonly sizeBytes: number;
  readonly #outstandingBytesMax: number;
  readonly #options: RemoteDiskOptions;
  #client: NbdClient;
  #reconnecting: Promise<void> | null = null;
  #isClosed = false;

  /** Over a client that is connected. */
  constructor(client: NbdClient, options: RemoteDiskOptions = {}) {
    this.sizeBytes = client.sizeBytes;
    this.#client = client;
    this.#options = options;
    this.#outstandingBytesMax = options.outstandingBytesMax ?? OUTSTANDING_BYTES;
  }

  /** Names of the maps that the server has of this disk, of those that this library knows. */
  get contexts(): string[] {
    return this.#client.contexts;
  }

  /** Reads `[offset, offset + length)`. */
  read(
    offset: number,
    length: number,
    options: WaitOptions = {},
  ): Promise<Uint8Array<ArrayBuffer>> {
    return this.#request((client) => client.read(offset, length, options), options);
  }

  /** The runs of `[offset, offset + length)` in one context, in order and without gaps. */
  async *blockStatus(
    offset: number,
    length: number,
    options: WaitOptions & { context?: string } = {},
  ): AsyncGenerator<DiskExtent> {
    const { context = NBD_CONTEXT_BASE_ALLOCATION, ...wait } = options;
    const end = offset + length;
    let at = offset;
    while (at < end) {
      const asked = Math.min(end - at, MAP_BYTES);
      const runs = (await this.#request((client) => client.blockStatus(at, asked, wait), wait)).get(
        context,
      );
      if (runs === undefined) throw new Error(`this export has no map ${context}`);
      for (const run of runs) {
        const clipped = Math.min(run.length, end - at);
        if (clipped > 0) yield { offset: at, length: clipped, flags: run.flags };
        at += clipped;
      }
    }
  }

  /**
   * The disk in order, in chunks of at most 1 MiB; zeroes that the map knows are not transferred.
   * Data comes in chunks as large as a request, which are handed on where they arrived.
   */
  async *chunks(options: StreamOptions = {}): AsyncGenerator<DiskChunk> {
    const { offset = 0, length = this.sizeBytes - offset, onProgress, signal } = options;
    const wait = signal === undefined ? {} : { signal };
    const ahead: { chunk: DiskChunk; bytes: Promise<Uint8Array<ArrayBuffer> | null> }[] = [];
    const progress: StreamProgress = { doneBytes: 0, totalBytes: length, readBytes: 0 };
    const pieces = this.#pieces(offset, length, wait);
    let isAtEnd = false;
    for (;;) {
      while (!isAtEnd && ahead.length * REQUEST_BYTES < this.#outstandingBytesMax) {
        const next = await pieces.next();
        if (next.done === true) {
          isAtEnd = true;
          break;
        }
        const { isZero, ...range } = next.value;
        const bytes = isZero ? Promise.resolve(null) : this.read(range.offset, range.length, wait);
        // Its turn comes later; until then nobody awaits it.
        bytes.catch(() => {});
        ahead.push({ chunk: { ...range, bytes: null }, bytes });
      }
      const first = ahead.shift();
      if (first === undefined) return;
      const { chunk } = first;
      chunk.bytes = await first.bytes;
      progress.doneBytes += chunk.length;
      if (chunk.bytes !== null) progress.readBytes += chunk.length;
      onProgress?.({ ...progress });
      yield chunk;
    }
  }

  /** The disk as a stream of bytes, zeroes included, read as it is consumed. */
  stream(options: StreamOptions = {}): ReadableStream<Uint8Array<ArrayBuffer>> {
    const chunks = this.chunks(options);
    return new ReadableStream({
      async pull(controller) {
        const { done, value } = await chunks.next();
        if (done === true) controller.close();
        else controller.enqueue(value.bytes ?? new Uint8Array(value.length));
      },
      async cancel() {
        await chunks.return(undefined);
      },
    }, { highWaterMark: 0 });
  }

  /** Waits for what is under way and closes the connection. */
  close(): Promise<void> {
    this.#isClosed = true;
    return this.#client.close();
  }

  /** Asks, and asks again over the next connection where this one breaks first. */
  async #request<T>(
    ask: (client: NbdClient) => Promise<T>,
    { signal }: WaitOptions,
  ): Promise<T> {
    for (;;) {
      const client = this.#client;
      try {
        return await ask(client);
      } catch (error) {
        if (client.failure === null || this.#isClosed || signal?.aborted) throw error;
        // Another request may have connected again already.
        if (client !== this.#client) continue;
        this.#reconnecting ??= this.#reconnect(error).finally(() => this.#reconnecting = null);
        await this.#reconnecting;
      }
    }
  }

  async #reconnect(reason: unknown): Promise<void> {
    const { reopen, attempts = 0, onReconnect } = this.#options;
    let last = reason;
    for (let attempt = 1; reopen !== undefined && attempt <= attempts; attempt++) {
      onReconnect?.(attempt, last);
      try {
        const client = await reopen();
        if (client.sizeBytes === this.sizeBytes && !this.#isClosed) {
          this.#client = client;
          return;
        }
        await client.close();
        throw new Error("the export is another one now");
      } catch (error) {
        last = error;
      }
      if (this.#isClosed || attempt === attempts) break;
      const delayMs = Math.min(RECONNECT_DELAY_MAX_MS, RECONNECT_DELAY_MS * 2 ** (attempt - 1));
      await new Promise((resolve) => setTimeout(resolve, delayMs));
    }
    throw last;
  }

  async *#pieces(
    offset: number,
    length: number,
    wait: WaitOptions,
  ): AsyncGenerator<{ offset: number; length: number; isZero: boolean }> {
    const hasMap = this.contexts.includes(NBD_CONTEXT_BASE_ALLOCATION);
    const runs = hasMap ? this.blockStatus(offset, length, wait) : [{ offset, length, flags: 0 }];
    for await (const run of runs) {
      const isZero = (run.flags & NBD_STATE_ZERO) !== 0;
      const pieceBytes = isZero ? ZERO_BYTES : REQUEST_BYTES;
      for (let done = 0; done < run.length; done += pieceBytes) {
        const piece = Math.min(pieceBytes, run.length - done);
        yield { offset: run.offset + done, length: piece, isZero };
      }
    }
  }
}
