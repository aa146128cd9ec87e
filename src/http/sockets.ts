/**
 * WebSockets: upgrading, and knowing all that are open, so that a stop of the service closes them.
 *
 * @module
 */

import { offeredProtocols } from "./auth.ts";
import { HttpError } from "./problem.ts";

/** "Going away" (RFC 6455 section 7.4.1). */
const CLOSE_GOING_AWAY = 1001;
/** Pings go out so often; a peer that does not answer is dropped. */
const IDLE_TIMEOUT_SECONDS = 30;

/** The open WebSockets of the service. */
export class SocketSet {
  readonly #sockets = new Set<WebSocket>();

  /** How many are open. */
  get size(): number {
    return this.#sockets.size;
  }

  /** Answers a request for a WebSocket; `protocol` is echoed if it was offered. */
  upgrade(
    request: Request,
    options: { protocol: string | null },
  ): { socket: WebSocket; response: Response } {
    const { protocol } = options;
    const isEchoed = protocol !== null && offeredProtocols(request).includes(protocol);
    const { socket, response } = upgradeOrRefuse(request, {
      idleTimeout: IDLE_TIMEOUT_SECONDS,
      ...(isEchoed && { protocol }),
    });
    socket.binaryType = "arraybuffer";
    this.#sockets.add(socket);
    socket.addEventListener("close", () => this.#sockets.delete(socket), { once: true });
    return { socket, response };
  }

  /** Closes all with status 1001, since the service stops. */
  closeAll(): void {
    for (const socket of this.#sockets) socket.close(CLOSE_GOING_AWAY, "the service is stopping");
  }
}

/** Throws upgradeRequired unless the request asks for a WebSocket. */
export function requireUpgrade(request: Request): void {
  if (request.headers.get("upgrade")?.toLowerCase() === "websocket") return;
  throw new HttpError("upgradeRequired", "connect with a WebSocket", {
    headers: { upgrade: "websocket", connection: "upgrade" },
  });
}

function upgradeOrRefuse(request: Request, options: Deno.UpgradeWebSocketOptions) {
  try {
    return Deno.upgradeWebSocket(request, options);
  } catch (error) {
    // A header of the handshake is missing or wrong.
    if (!(error instanceof TypeError)) throw error;
    throw new HttpError("upgradeRequired", error.message, { headers: { upgrade: "websocket" } });
  }
}
