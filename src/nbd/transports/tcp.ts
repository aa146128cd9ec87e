/**
 * NBD over TCP: a listener that hands out byte streams, and the client's connection.
 *
 * @module
 */

import type { ByteStream } from "../byte_stream.ts";
import { type AcceptedSocket, AcceptedSockets } from "./accepted_sockets.ts";
import { ConnStream } from "./conn_stream.ts";

/** Where to listen or to connect. Port 0, when listening: any free one. */
export interface TcpAddress {
  /** A name or an address. */
  host: string;
  /** 1 to 65535, or 0. */
  port: number;
}

/** Something that accepts connections. */
export interface StreamListener {
  /** The port, where there is one. */
  readonly port: number;
  /** Stops listening; connections live on. Resolves when the address is free again. */
  close(): Promise<void>;
}

/**
 * Calls `onConn` for each connection, with its socket where that is known, until the listener is
 * closed.
 */
export async function acceptAll(
  listener: Deno.Listener,
  onConn: (conn: Deno.Conn, socket: AcceptedSocket | null) => void,
): Promise<void> {
  const sockets = new AcceptedSockets();
  for (;;) {
    let conn: Deno.Conn;
    try {
      conn = await listener.accept();
    } catch (error) {
      // Closed, or out of descriptors: then the next connection may find one again.
      if (error instanceof Deno.errors.BadResource || error instanceof Deno.errors.Interrupted) {
        sockets.end();
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, ACCEPT_RETRY_MS));
      continue;
    }
    onConn(conn, sockets.find(conn));
  }
}

const ACCEPT_RETRY_MS = 100;

/**
 * A stream over a TCP connection, without Nagle's delay, and with probes that notice a vanished
 * peer.
 */
function tcpStream(conn: Deno.TcpConn, socket: AcceptedSocket | null = null): ByteStream {
  conn.setNoDelay(true);
  conn.setKeepAlive(true);
  const { hostname, port } = conn.remoteAddr;
  return new ConnStream(conn, `${hostname}:${port}`, socket);
}

/** Listens on a TCP address. */
export function listenTcp(
  { host, port }: TcpAddress,
  onStream: (stream: ByteStream) => void,
): StreamListener {
  const listener = Deno.listen({ hostname: host, port, transport: "tcp" });
  const accepting = acceptAll(
    listener,
    (conn, socket) => onStream(tcpStream(conn as Deno.TcpConn, socket)),
  );
  return {
    port: listener.addr.port,
    close: () => {
      listener.close();
      return accepting;
    },
  };
}

/** Connects to a TCP address. */
export async function connectTcp(
  { host, port }: TcpAddress,
  signal?: AbortSignal,
): Promise<ByteStream> {
  const options = { hostname: host, port, transport: "tcp" as const };
  return tcpStream(await Deno.connect(signal === undefined ? options : { ...options, signal }));
}
