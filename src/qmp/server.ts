/**
 * The clients of a monitor: sessions on unix sockets and on streams that others accepted.
 *
 * @module
 */

import { limits } from "../limits.ts";
import type { ByteStream } from "../nbd/byte_stream.ts";
import type { StreamListener } from "../nbd/transports/tcp.ts";
import { listenUnix } from "../nbd/transports/unix.ts";
import type { Monitor } from "./monitor.ts";
import { QmpSession, type QmpSessionOptions } from "./session.ts";

/** See the module's head. */
export class QmpServer {
  readonly #monitor: Monitor;
  readonly #sessions = new Set<QmpSession>();
  readonly #listeners: StreamListener[] = [];

  /** Listens to nothing yet. */
  constructor(monitor: Monitor) {
    this.#monitor = monitor;
  }

  /** Serves one connection. Resolves when it is closed. */
  serve(stream: ByteStream, options: QmpSessionOptions = {}): Promise<void> {
    if (this.#sessions.size >= limits.qmpSessions) {
      stream.close("too many monitors");
      return Promise.resolve();
    }
    const session = new QmpSession(stream, this.#monitor, options);
    this.#sessions.add(session);
    session.closed.then(() => this.#sessions.delete(session));
    return session.closed;
  }

  /** Serves a unix socket, which is made with mode 0600. */
  async listenUnix(path: string, options: QmpSessionOptions = {}): Promise<void> {
    this.#listeners.push(await listenUnix(path, (stream) => this.serve(stream, options)));
  }

  /** Stops listening and ends all sessions, once their answers are under way. */
  async close(): Promise<void> {
    await Promise.all(this.#listeners.splice(0).map((listener) => listener.close()));
    const sessions = [...this.#sessions];
    for (const session of sessions) session.close("the monitor is closing");
    await Promise.all(sessions.map((session) => session.closed));
  }
}
