/**
 * Connecting to an NBD server, by whatever it listens on.
 *
 * @module
 */

import { BlockError } from "../block/errors.ts";
import { describeAddress, type NbdAddress } from "./address.ts";
import type { ByteStream } from "./byte_stream.ts";
import { connectTcp } from "./transports/tcp.ts";
import { type ClientTls, securableClient } from "./transports/tls.ts";
import { connectUnix } from "./transports/unix.ts";

/**
 * Connects; with `tls` the stream can be secured. Throws a BlockError whose text is QEMU's.
 */
export async function connectNbd(
  address: NbdAddress,
  { signal, tls }: { signal?: AbortSignal | undefined; tls?: ClientTls | undefined } = {},
): Promise<ByteStream> {
  try {
    signal?.throwIfAborted();
    const stream = address.type === "unix"
      ? await connectUnix(address.path)
      : await connectTcp(address, signal);
    return tls === undefined ? stream : securableClient(stream, tls);
  } catch (error) {
    if (signal?.aborted === true) throw signal.reason;
    throw new BlockError(
      error instanceof Deno.errors.NotFound ? "ENOENT" : "EIO",
      `Failed to connect to '${describeAddress(address)}': ${reasonOf(error)}`,
      { cause: error },
    );
  }
}

/** The system's words, without the number behind them, for an error of the runtime's. */
function reasonOf(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  return message.replace(/ \(os error \d+\).*$/, "");
}
