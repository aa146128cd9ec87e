/**
 * The NBD server of one I/O worker: listeners, their sessions, and bounds on them.
 *
 * Bounds: on connections; on what all of them hold together (byte_budget.ts); on the time for which
 * a client may do nothing: nbdStallMs in the middle of something, nbdIdleMs otherwise. One timer
 * looks after all sessions, every nbdSweepMs, while there are any. Where the budget is used up and
 * nothing of it came back since the last look, the session that holds most is cut off, so that no
 * client can stop the others by sitting on what it asked for.
 *
 * @module
 */

import { type Clock, systemClock } from "../block/clock.ts";
import type { ExportDirectory } from "../block/export.ts";
import { limits } from "../limits.ts";
import { ByteBudget } from "./byte_budget.ts";
import type { ByteStream } from "./byte_stream.ts";
import { ChunkPool } from "./output_queue.ts";
import { NbdSession, type NbdSessionOptions } from "./session.ts";
import { NbdCounters, type NbdStatistics } from "./statistics.ts";
import { listenTcp, type StreamListener, type TcpAddress } from "./transports/tcp.ts";
import { securableServer, type ServerTls } from "./transports/tls.ts";
import { listenUnix } from "./transports/unix.ts";

/** What a server is made of. */
export interface NbdServerOptions {
  /** The exports that clients of the listeners may open. */
  directory: ExportDirectory;
  /** Largest number of connections at a time, limits.nbdConnectionsPerVm unless told otherwise. */
  connectionsMax?: number;
  /** What they may hold together, limits.nbdBufferedBytesPerVm unless told otherwise. */
  bufferedBytesMax?: number;
  /** A connection is closed. */
  onDisconnect?: () => void;
  /** The machine's clock unless given. */
  clock?: Clock;
}

/** How many connections there are. */
export type NbdConnectionCounts = NbdStatistics["connections"];

/** When a session last did something. */
interface Liveness {
  activity: number;
  sinceMs: number;
}

/** See the module's description. */
export class NbdServer {
  readonly #options: NbdServerOptions;
  readonly #connectionsMax: number;
  readonly #clock: Clock;
  readonly #pool = new ChunkPool();
  readonly #budget: ByteBudget;
  readonly #counters = new NbdCounters();
  readonly #sessions = new Map<NbdSession, Liveness>();
  readonly #listeners: StreamListener[] = [];
  #accepted = 0;
  #refused = 0;
  #cutOff = 0;
  #isClosing = false;
  #cancelSweep: (() => void) | null = null;
  #releasesSeen = 0;

  /** Listens to nothing yet. */
  constructor(options: NbdServerOptions) {
    this.#options = options;
    this.#connectionsMax = options.connectionsMax ?? limits.nbdConnectionsPerVm;
    this.#clock = options.clock ?? systemClock;
    this.#budget = new ByteBudget(options.bufferedBytesMax ?? limits.nbdBufferedBytesPerVm);
  }

  /** How many connections there are and were. */
  get connections(): NbdConnectionCounts {
    return {
      open: this.#sessions.size,
      accepted: this.#accepted,
      refused: this.#refused,
      cutOff: this.#cutOff,
      secured: this.#counters.secured,
    };
  }

  /** Changes whenever a connection or a request comes. */
  get activity(): number {
    return this.#accepted + this.#counters.total;
  }

  /** All figures. */
  get statistics(): NbdStatistics {
    let inFlight = 0;
    for (const session of this.#sessions.keys()) inFlight += session.inFlight;
    return {
      connections: this.connections,
      requests: structuredClone(this.#counters.requests),
      failedRequests: this.#counters.failedRequests,
      inFlight,
      bufferedBytes: this.#budget.usedBytes,
    };
  }

  /**
   * Serves the directory on a TCP address; port 0 for any. With `tls` clients may, or if it is
   * `required` must, secure their connection; without it none can.
   */
  listenTcp(
    address: TcpAddress,
    tls?: { certificate: ServerTls; isRequired: boolean },
  ): TcpAddress {
    const listener = listenTcp(address, (stream) => {
      if (tls === undefined) return this.serve(stream);
      const { certificate, isRequired } = tls;
      return this.#serve(securableServer(stream, certificate), {
        directory: this.#options.directory,
        tlsMode: isRequired ? "required" : "allowed",
      });
    });
    this.#listeners.push(listener);
    return { host: address.host, port: listener.port };
  }

  /** Serves the directory on a unix socket, which is made with mode 0600. */
  async listenUnix(path: string): Promise<void> {
    this.#listeners.push(await listenUnix(path, (stream) => this.serve(stream)));
  }

  /**
   * Serves one connection, of whatever transport. `directory`: what this client may open, the
   * server's own directory unless told otherwise. Resolves with the reason when it is closed.
   */
  serve(stream: ByteStream, directory = this.#options.directory): Promise<string> {
    return this.#serve(stream, { directory });
  }

  /** Whether a client has the export of that name open. */
  hasClients(exportName: string): boolean {
    return [...this.#sessions.keys()].some((session) => session.exportName === exportName);
  }

  /**
   * An export goes away: sessions on it end. Resolves when no request is in flight on it. The
   * directory must not offer it any more.
   */
  async closeExport(name: string): Promise<void> {
    const sessions = [...this.#sessions.keys()].filter((session) => session.exportName === name);
    await Promise.all(sessions.map((session) => session.shutDown(`export ${name} went away`)));
  }

  /** Stops listening and ends every session. Resolves when all connections are closed. */
  async close(): Promise<void> {
    this.#isClosing = true;
    await Promise.all(this.#listeners.splice(0).map((listener) => listener.close()));
    await Promise.all([...this.#sessions.keys()].map(async (session) => {
      await session.shutDown("the server is stopping");
      await session.closed;
    }));
  }

  #serve(stream: ByteStream, options: NbdSessionOptions): Promise<string> {
    this.#accepted++;
    if (this.#isClosing || this.#sessions.size >= this.#connectionsMax) {
      this.#refused++;
      stream.close("too many connections");
      return Promise.resolve("too many connections");
    }
    const session = new NbdSession(stream, {
      ...options,
      pool: this.#pool,
      budget: this.#budget,
      counters: this.#counters,
    });
    this.#sessions.set(session, { activity: session.activity, sinceMs: this.#clock.now() });
    this.#cancelSweep ??= this.#clock.after(limits.nbdSweepMs, () => this.#sweep());
    session.start();
    session.closed.then(() => this.#forget(session));
    return session.closed;
  }

  #forget(session: NbdSession): void {
    this.#sessions.delete(session);
    if (this.#sessions.size === 0) {
      this.#cancelSweep?.();
      this.#cancelSweep = null;
    }
    this.#options.onDisconnect?.();
  }

  #sweep(): void {
    const now = this.#clock.now();
    for (const [session, seen] of this.#sessions) {
      if (session.activity !== seen.activity || session.inFlight > 0) {
        seen.activity = session.activity;
        seen.sinceMs = now;
        continue;
      }
      const isStalled = session.heldBytes > 0;
      if (now - seen.sinceMs >= (isStalled ? limits.nbdStallMs : limits.nbdIdleMs)) {
        this.#cut(session, isStalled ? "the client stopped in the middle" : "no request for long");
      }
    }
    if (this.#budget.isWanted && this.#budget.releases === this.#releasesSeen) this.#cutLargest();
    this.#releasesSeen = this.#budget.releases;
    this.#cancelSweep = this.#sessions.size === 0
      ? null
      : this.#clock.after(limits.nbdSweepMs, () => this.#sweep());
  }

  #cutLargest(): void {
    let largest: NbdSession | undefined;
    for (const session of this.#sessions.keys()) {
      if (session.heldBytes > (largest?.heldBytes ?? 0)) largest = session;
    }
    if (largest !== undefined) this.#cut(largest, "others wait for what this client holds");
  }

  #cut(session: NbdSession, reason: string): void {
    this.#cutOff++;
    session.cutOff(reason);
  }
}
