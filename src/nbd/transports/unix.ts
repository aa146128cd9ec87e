/**
 * NBD over a unix socket: a listener that hands out byte streams, and the client's connection.
 *
 * @module
 */

import type { ByteStream } from "../byte_stream.ts";
import { ConnStream } from "./conn_stream.ts";
import { acceptAll, type StreamListener } from "./tcp.ts";

/** Only the owner of the service may connect. */
const SOCKET_MODE = 0o600;

/** Listens on a socket file. A file left behind by a server that is gone is replaced. */
export async function listenUnix(
  path: string,
  onStream: (stream: ByteStream) => void,
): Promise<StreamListener> {
  await removeStale(path);
  const listener = Deno.listen({ path, transport: "unix" });
  await Deno.chmod(path, SOCKET_MODE);
  const accepting = acceptAll(
    listener,
    (conn, socket) => onStream(new ConnStream(conn, path, socket)),
  );
  return {
    port: 0,
    close: async () => {
      listener.close();
      // The runtime removes the file when accepting has ended: whoever listens next at this path
      // must not lose its own.
      await accepting;
      removeIfThere(path);
    },
  };
}

/** Connects to a socket file. */
export async function connectUnix(path: string): Promise<ByteStream> {
  return new ConnStream(await Deno.connect({ path, transport: "unix" }), path);
}

/**
 * Removes a socket file that nobody answers on. One that is in use is left: listening then fails.
 */
async function removeStale(path: string): Promise<void> {
  const info = await Deno.lstat(path).catch(() => undefined);
  if (info?.isSocket !== true) return;
  try {
    (await Deno.connect({ path, transport: "unix" })).close();
  } catch (error) {
    if (error instanceof Deno.errors.ConnectionRefused) removeIfThere(path);
  }
}

function removeIfThere(path: string): void {
  try {
    Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}
