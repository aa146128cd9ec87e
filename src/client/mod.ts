/**
 * Ovis' browser library: a running machine's frozen disk, read over NBD in a WebSocket.
 *
 * ```ts
 * const disk = await connect("ws://127.0.0.1:8080/v1/exports/NAME/nbd", { ticket });
 * const boot = await disk.read(0, 512);
 * for await (const chunk of disk.chunks()) { ... }
 * await disk.close();
 * ```
 *
 * @module
 */

export {
  connect,
  type ConnectOptions,
  type DiskChunk,
  type DiskExtent,
  RemoteDisk,
  type StreamOptions,
  type StreamProgress,
  type WaitOptions,
} from "./disk.ts";
export { NbdError } from "../nbd/client.ts";
export { NbdHandshakeError } from "../nbd/client_handshake.ts";
