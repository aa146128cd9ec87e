/**
 * The listening socket in front of the HTTP face.
 *
 * @module
 */

import type { App } from "./app.ts";

/** How long requests under way may take when the service stops. */
const DRAIN_MS = 5_000;

/** A listening server. */
export interface HttpServer {
  /** Where it is reached: http://HOST:PORT. */
  readonly url: string;
  /** Takes no more requests; resolves when those under way have ended or were cut off. */
  close(): Promise<void>;
}

/** Listens. */
export function startHttpServer(
  app: App,
  options: { host: string; port: number },
): HttpServer {
  const cutOff = new AbortController();
  const server = Deno.serve({
    hostname: options.host,
    port: options.port,
    signal: cutOff.signal,
    onListen: () => {},
  }, (request) => app.handle(request));
  const { hostname, port } = server.addr;
  return {
    url: `http://${hostname.includes(":") ? `[${hostname}]` : hostname}:${port}`,
    async close() {
      app.stop();
      const timer = setTimeout(() => cutOff.abort(), DRAIN_MS);
      await server.shutdown();
      clearTimeout(timer);
    },
  };
}
