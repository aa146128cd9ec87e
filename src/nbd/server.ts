/**
 * The NBD server of one I/O worker: listeners, their sessions, and a bound on them.
 *
 * @module
 */

import type { ExportDirectory } from "../block/export.ts";
import { limits } from "../limits.ts";
import type { ByteStream } from "./byte_stream.ts";
import { ChunkPool } from "./output_queue.ts";
import { NbdSession, type NbdSessionOptions } from "./session.ts";
import { listenTcp, type StreamListener, type TcpAddress } from "./transports/tcp.ts";
import { securableServer, type ServerTls } from "./transports/tls.ts";
import { listenUnix } from "./transports/unix.ts";

/** What a server is made of. */
export interface NbdServerOptions {
  /** The exports that clients of the listeners may open. */
  directory: ExportDirectory;
  /** Largest number of connections at a time, limits.nbdConnectionsPerVm unless told otherwise. */
  connectionsMax?: number;
}

/** How many connections there are. */
export interface NbdConnectionCounts {
  /** Now. */
  open: number;
  /** Since the server was made. */
  accepted: number;
  /** Closed at once, since there were too many. */
  refused: number;
}

/** See the module's description. */
export class NbdServer {
  readonly #options: NbdServerOptions;
  readonly #connectionsMax: number;
  readonly #pool = new ChunkPool();
  readonly #sessions = new Set<NbdSession>();
  readonly #listeners: StreamListener[] = [];
  #accepted = 0;
  #refused = 0;
  #isClosing = false;

  /** Listens to nothing yet. */
  constructor(options: NbdServerOptions) {
    this.#options = options;
    this.#connectionsMax = options.connectionsMax ?? limits.nbdConnectionsPerVm;
  }

  /** How many connections there are and were. */
  get connections(): NbdConnectionCounts {
    return { open: this.#sessions.size, accepted: this.#accepted, refused: this.#refused };
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

  #serve(stream: ByteStream, options: NbdSessionOptions): Promise<string> {
    this.#accepted++;
    if (this.#isClosing || this.#sessions.size >= this.#connectionsMax) {
      this.#refused++;
      stream.close("too many connections");
      return Promise.resolve("too many connections");
    }
    const session = new NbdSession(stream, { ...options, pool: this.#pool });
    this.#sessions.add(session);
    session.start();
    session.closed.then(() => this.#sessions.delete(session));
    return session.closed;
  }

  /** Whether a client has the export of that name open. */
  hasClients(exportName: string): boolean {
    return [...this.#sessions].some((session) => session.exportName === exportName);
  }

  /**
   * An export goes away: sessions on it end. Resolves when no request is in flight on it. The
   * directory must not offer it any more.
   */
  async closeExport(name: string): Promise<void> {
    const sessions = [...this.#sessions].filter((session) => session.exportName === name);
    await Promise.all(sessions.map((session) => session.shutDown(`export ${name} went away`)));
  }

  /** Stops listening and ends every session. Resolves when all connections are closed. */
  async close(): Promise<void> {
    this.#isClosing = true;
    await Promise.all(this.#listeners.splice(0).map((listener) => listener.close()));
    await Promise.all([...this.#sessions].map(async (session) => {
      await session.shutDown("the server is stopping");
      await session.closed;
    }));
  }
}
