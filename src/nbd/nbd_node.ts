/**
 * A disk on another machine: a block node over an NBD client. Everything that it does answers
 * later. Lost connections are replaced (see reconnecting_client.ts).
 *
 * Where the server takes only multiples of a block (NBD_INFO_BLOCK_SIZE), reads are widened, and
 * writes that cut a block read its rest first, one at a time for each block.
 *
 * Where the server allows several connections (NBD_FLAG_CAN_MULTI_CONN), requests are spread over
 * as many as were asked for: what is flushed on one is flushed on all.
 *
 * @module
 */

import { BusyRanges } from "../block/busy_ranges.ts";
import { type Clock, systemClock } from "../block/clock.ts";
import { BlockError, type BlockErrorCode, toBlockError } from "../block/errors.ts";
import { IoVector } from "../block/io_vector.ts";
import { BlockNode, type DiscardMode } from "../block/node.ts";
import {
  type BlockStatus,
  REQ_FUA,
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
} from "../block/types.ts";
import { formatNbdUri, type NbdAddress } from "./address.ts";
import type { ByteStream } from "./byte_stream.ts";
import { NbdClient, NbdError } from "./client.ts";
import { NbdHandshakeError } from "./client_handshake.ts";
import {
  NBD_CONTEXT_BASE_ALLOCATION,
  NBD_EINVAL,
  NBD_ENOSPC,
  NBD_ENOTSUP,
  NBD_EOVERFLOW,
  NBD_EPERM,
  NBD_ESHUTDOWN,
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
  NBD_REP_ERR_UNKNOWN,
  NBD_STATE_HOLE,
  NBD_STATE_ZERO,
} from "./codec.ts";
import { connectNbd } from "./connect.ts";
import type { ClientTls } from "./transports/tls.ts";
import { connectWithin, ReconnectingClient } from "./reconnecting_client.ts";

/** What an NBD node is made of. */
export interface NbdNodeOptions {
  /** Unique in the graph. */
  nodeName: string;
  /** Where the server is. */
  server: NbdAddress;
  /** The default export unless given. */
  exportName?: string;
  /** False unless given; then the export must be writable, unless `isAutoReadOnly`. */
  isReadOnly?: boolean;
  /** An export that is read-only makes the node read-only, instead of an error. */
  isAutoReadOnly?: boolean;
  /** "unmap" unless given. */
  discard?: DiscardMode;
  /** The meta context that block status shows, instead of base:allocation (x-dirty-bitmap). */
  statusContext?: string;
  /** Requests wait so long for a new connection; 0 unless given: they fail with the old one. */
  reconnectDelayMs?: number;
  /** Attempts to open are repeated for so long; 0 unless given: there is one. */
  openTimeoutMs?: number;
  /** Connections, where the server allows several; 1 unless given. */
  connections?: number;
  /** Gives the opening up. */
  signal?: AbortSignal;
  /** TLS or no connection: what is trusted and shown. */
  tls?: ClientTls;
  /** How to reach the server; a socket unless given. */
  connect?: (address: NbdAddress, signal: AbortSignal) => Promise<ByteStream>;
  /** The machine's clock unless given. */
  clock?: Clock;
}

/** Requests that one connection may have in flight, and their bytes. */
const REQUESTS_MAX = 64;
const OUTSTANDING_BYTES_MAX = 32 * 1024 * 1024;

/** Driver "nbd". */
export class NbdNode extends BlockNode {
  readonly #clients: readonly ReconnectingClient[];
  readonly #options: NbdNodeOptions;
  readonly #statusContext: string;
  /** Writes that are under way, where the server takes whole blocks only. */
  readonly #writing = new BusyRanges();
  #turn = 0;

  private constructor(clients: readonly ReconnectingClient[], options: NbdNodeOptions) {
    const client = firstOf(clients).client;
    super({
      nodeName: options.nodeName,
      driver: "nbd",
      sizeBytes: client.sizeBytes,
      isReadOnly: (options.isReadOnly ?? false) || client.isReadOnly,
      discard: options.discard ?? "unmap",
      handlesFua: (client.transmissionFlags & NBD_FLAG_SEND_FUA) !== 0,
    });
    this.#clients = clients;
    this.#options = options;
    this.#statusContext = options.statusContext ?? NBD_CONTEXT_BASE_ALLOCATION;
  }

  /** Connects and negotiates the export. Throws a BlockError. */
  static async open(options: NbdNodeOptions): Promise<NbdNode> {
    const connect = connector(options);
    const clock = options.clock ?? systemClock;
    const clients: ReconnectingClient[] = [];
    const add = (client: NbdClient) => {
      const reconnectDelayMs = options.reconnectDelayMs ?? 0;
      clients.push(new ReconnectingClient(client, { connect, reconnectDelayMs, clock }));
    };
    try {
      const first = await connectWithin(connect, {
        timeoutMs: options.openTimeoutMs ?? 0,
        clock,
        signal: options.signal ?? new AbortController().signal,
      });
      add(first);
      if (first.isReadOnly && options.isReadOnly !== true && options.isAutoReadOnly !== true) {
        throw new BlockError("EACCES", "request on write denied without write permission");
      }
      const canMultiConn = (first.transmissionFlags & NBD_FLAG_CAN_MULTI_CONN) !== 0;
      const more = canMultiConn ? (options.connections ?? 1) - 1 : 0;
      for (let count = 0; count < more; count++) {
        add(await connect(options.signal ?? new AbortController().signal));
      }
      return new NbdNode(clients, options);
    } catch (error) {
      await Promise.all(clients.map((client) => client.close()));
      throw toNodeError(error);
    }
  }

  /** The export's address; null where that alone does not lead there, over TLS. */
  override get fileName(): string | null {
    const { server, exportName = "", tls } = this.#options;
    if (tls !== undefined) return null;
    return formatNbdUri({ address: server, exportName, isTls: false });
  }

  /** Those that wait for a lost connection: without one they fail. */
  override cancelInFlight(): void {
    for (const client of this.#clients) client.stopWaiting();
  }

  /** Where it is, and how it is connected now. */
  override details(): Record<string, string | number | boolean | null> {
    const { server, exportName = "", tls } = this.#options;
    const { style } = firstOf(this.#clients).client;
    return {
      filename: formatNbdUri({ address: server, exportName, isTls: tls !== undefined }),
      export: exportName,
      headers: style,
      connections: this.#clients.length,
      reconnects: this.#clients.reduce((sum, client) => sum + client.reconnects, 0),
    };
  }

  /** Straight into the buffer, where there is one and no block is cut. */
  protected override doRead(offset: number, target: IoVector): Promise<void> {
    const [single] = target.buffers;
    const isDirect = target.buffers.length === 1 && single !== undefined &&
      this.#isAligned(offset, target.length);
    if (isDirect) return this.#run((client) => client.readInto(offset, single));
    const { start, end } = this.#widen(offset, target.length);
    return this.#run(async (client) => {
      const bytes = await client.read(start, end - start);
      target.copyFrom(bytes.subarray(offset - start, offset - start + target.length));
    });
  }

  /** What cuts a block of the server's reads its rest first. */
  protected override doWrite(offset: number, source: IoVector, flags: number): Promise<void> {
    const isFua = (flags & REQ_FUA) !== 0;
    if (this.#blockBytes === 1) {
      const bytes = flatten(source);
      return this.#run((client) => client.write(offset, bytes, { isFua }));
    }
    return this.#writeBlocks(offset, source, isFua);
  }

  /** By NBD_CMD_WRITE_ZEROES, or by writing where the server or the range can't have that. */
  protected override doWriteZeroes(
    offset: number,
    length: number,
    flags: number,
  ): Promise<void> | void {
    const can = firstOf(this.#clients).client.transmissionFlags;
    const isFast = (flags & REQ_NO_FALLBACK) !== 0;
    const isPossible = (can & NBD_FLAG_SEND_WRITE_ZEROES) !== 0 &&
      (!isFast || (can & NBD_FLAG_SEND_FAST_ZERO) !== 0) && this.#isAligned(offset, length);
    if (!isPossible) return super.doWriteZeroes(offset, length, flags) as Promise<void> | void;
    return this.#run((client) =>
      client.writeZeroes(offset, length, {
        isFua: (flags & REQ_FUA) !== 0,
        mayUnmap: (flags & REQ_MAY_UNMAP) !== 0,
        isFast,
      })
    );
  }

  /** By NBD_CMD_TRIM; nothing where the server has none. */
  protected override doDiscard(offset: number, length: number): Promise<void> | void {
    const can = firstOf(this.#clients).client.transmissionFlags;
    if ((can & NBD_FLAG_SEND_TRIM) === 0) return;
    // A hint: what does not fill a block is left.
    const start = Math.ceil(offset / this.#blockBytes) * this.#blockBytes;
    const end = Math.floor((offset + length) / this.#blockBytes) * this.#blockBytes;
    if (end > start) return this.#run((client) => client.trim(start, end - start));
  }

  /** Nothing where the server has no flush. */
  protected override doFlush(): Promise<void> | void {
    const can = firstOf(this.#clients).client.transmissionFlags;
    if ((can & NBD_FLAG_SEND_FLUSH) !== 0) return this.#run((client) => client.flush());
  }

  /** The first run of the meta context; all is data where the server lacks it. */
  protected override doBlockStatus(
    offset: number,
    length: number,
  ): Promise<BlockStatus> | BlockStatus {
    const { contexts } = firstOf(this.#clients).client;
    if (!contexts.includes(this.#statusContext)) {
      return { length, flags: STATUS_DATA | STATUS_ALLOCATED };
    }
    const { start, end } = this.#widen(offset, length);
    return this.#run(async (client) => {
      const answer = await client.blockStatus(start, end - start, { isOne: true });
      const extent = answer.get(this.#statusContext)?.[0];
      const covered = (extent?.length ?? 0) - (offset - start);
      if (extent === undefined || covered <= 0) {
        throw new BlockError("EIO", "the server answered block status with less than a block");
      }
      const data = (extent.flags & NBD_STATE_HOLE) === 0 ? STATUS_DATA : 0;
      const zero = (extent.flags & NBD_STATE_ZERO) !== 0 ? STATUS_ZERO : 0;
      return { length: Math.min(covered, length), flags: data | zero | STATUS_ALLOCATED };
    });
  }

  /** Says goodbye on every connection. */
  protected override async doClose(): Promise<void> {
    await Promise.all(this.#clients.map((client) => client.close()));
  }

  get #blockBytes(): number {
    return firstOf(this.#clients).client.minimumBlockBytes;
  }

  #isAligned(offset: number, length: number): boolean {
    return offset % this.#blockBytes === 0 && length % this.#blockBytes === 0;
  }

  /** The blocks around a range; the last one may end with the export. */
  #widen(offset: number, length: number): { start: number; end: number } {
    const start = offset - offset % this.#blockBytes;
    const end = Math.ceil((offset + length) / this.#blockBytes) * this.#blockBytes;
    return { start, end: Math.min(end, this.sizeBytes) };
  }

  async #writeBlocks(offset: number, source: IoVector, isFua: boolean): Promise<void> {
    const { start, end } = this.#widen(offset, source.length);
    const range = { offset: start, length: end - start };
    for (;;) {
      const other = this.#writing.overlapping(range);
      if (other === undefined) break;
      await this.#writing.whenRemoved(other);
    }
    const busy = this.#writing.add(range);
    try {
      const bytes = new Uint8Array(end - start);
      const block = this.#blockBytes;
      const firstEnd = Math.min(start + block, end);
      const lastStart = Math.max(firstEnd, end - ((end - start) % block || block));
      if (offset > start || offset + source.length < firstEnd) {
        await this.#run((client) => client.readInto(start, bytes.subarray(0, firstEnd - start)));
      }
      if (lastStart < end && offset + source.length < end) {
        await this.#run((client) => client.readInto(lastStart, bytes.subarray(lastStart - start)));
      }
      source.copyTo(bytes.subarray(offset - start, offset - start + source.length));
      await this.#run((client) => client.write(start, bytes, { isFua }));
    } finally {
      this.#writing.remove(busy);
    }
  }

  async #run<T>(request: (client: NbdClient) => Promise<T>): Promise<T> {
    this.#turn = (this.#turn + 1) % this.#clients.length;
    const client = this.#clients[this.#turn] ?? firstOf(this.#clients);
    try {
      return await client.run(request);
    } catch (error) {
      throw toNodeError(error);
    }
  }
}

/** Makes one connection of a node's and negotiates its export. */
function connector(options: NbdNodeOptions): (signal: AbortSignal) => Promise<NbdClient> {
  const { tls } = options;
  const connect = options.connect ??
    ((address: NbdAddress, signal: AbortSignal) => connectNbd(address, { signal, tls }));
  const statusContext = options.statusContext ?? NBD_CONTEXT_BASE_ALLOCATION;
  return async (signal) =>
    await NbdClient.connect(await connect(options.server, signal), {
      exportName: options.exportName ?? "",
      contexts: [statusContext],
      requestsMax: REQUESTS_MAX,
      outstandingBytesMax: OUTSTANDING_BYTES_MAX,
      isTls: tls !== undefined,
      signal,
    });
}

/** The block layer's error for whatever a client or a handshake threw. */
function toNodeError(error: unknown): BlockError {
  if (error instanceof NbdError) return new BlockError(codeOf(error.errno), error.message);
  if (error instanceof NbdHandshakeError) {
    return error.replyType === NBD_REP_ERR_UNKNOWN
      ? new BlockError("ENOENT", `Requested export not available: ${error.message}`)
      : new BlockError("EIO", error.message);
  }
  return toBlockError(error);
}

function codeOf(errno: number): BlockErrorCode {
  switch (errno) {
    case NBD_EPERM:
      return "EPERM";
    case NBD_EINVAL:
    case NBD_EOVERFLOW:
      return "EINVAL";
    case NBD_ENOSPC:
      return "ENOSPC";
    case NBD_ENOTSUP:
      return "ENOTSUP";
    case NBD_ESHUTDOWN:
      return "ESHUTDOWN";
    default:
      return "EIO";
  }
}

/** The bytes of a vector in one buffer that the runtime can send: shared memory is copied. */
function flatten(source: IoVector): Uint8Array {
  const [single] = source.buffers;
  const isSingle = source.buffers.length === 1 && single?.buffer instanceof ArrayBuffer;
  if (isSingle && single !== undefined) return single;
  const bytes = new Uint8Array(source.length);
  source.copyTo(bytes);
  return bytes;
}

function firstOf(clients: readonly ReconnectingClient[]): ReconnectingClient {
  const [first] = clients;
  if (first === undefined) throw new Error("a node without a connection");
  return first;
}
