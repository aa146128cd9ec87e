/**
 * Exports behind a WebSocket, as the service has it: the upgrade and the relay on one side of a
 * message port, the session on the other. Beside it the browser library and a page that uses
 * nothing else.
 */
import { CLIENT_ENTRY, clientModule } from "../../src/client/modules.ts";
import type { ExportDirectory } from "../../src/block/export.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { PortStream } from "../../src/nbd/transports/port.ts";
import { NBD_SUBPROTOCOL, relayWebSocket } from "../../src/nbd/transports/websocket.ts";

/** A running server; `url` is its WebSocket's, `page` that of an empty page. */
export interface WebSocketServer extends AsyncDisposable {
  url: string;
  page: string;
  /** Subprotocols that clients offered, one entry for each. */
  offers: string[];
  /** Breaks all connections that there are. */
  cut(): void;
}

/** Serves exports on a free port of 127.0.0.1. */
export function serveOverWebSocket(directory: ExportDirectory): WebSocketServer {
  const server = new NbdServer({ directory });
  const offers: string[] = [];
  const sockets = new Set<WebSocket>();
  const http = Deno.serve(
    { port: 0, hostname: "127.0.0.1", onListen: () => {} },
    async (incoming) => {
      const { pathname } = new URL(incoming.url);
      if (pathname === "/nbd") {
        offers.push(incoming.headers.get("sec-websocket-protocol") ?? "");
        const { socket, response } = Deno.upgradeWebSocket(incoming, { protocol: NBD_SUBPROTOCOL });
        sockets.add(socket);
        const { port1, port2 } = new MessageChannel();
        relayWebSocket(socket, port1);
        server.serve(new PortStream(port2, "browser"));
        return response;
      }
      if (pathname === "/") {
        const html = "<!doctype html><title>disk</title>";
        return new Response(html, { headers: { "content-type": "text/html" } });
      }
      const code = await clientModule(pathname.slice(1));
      if (code === undefined) return new Response("not found", { status: 404 });
      return new Response(code, { headers: { "content-type": "text/javascript" } });
    },
  );
  const origin = `127.0.0.1:${http.addr.port}`;
  return {
    url: `ws://${origin}/nbd`,
    page: `http://${origin}/`,
    offers,
    cut: () => {
      for (const socket of sockets) socket.close(4000, "cut");
      sockets.clear();
    },
    [Symbol.asyncDispose]: async () => {
      await server.close();
      await http.shutdown();
    },
  };
}

/** Where a page of such a server finds the library. */
export const LIBRARY_PATH = `/${CLIENT_ENTRY}`;
