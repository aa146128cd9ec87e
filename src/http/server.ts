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
  const server = listen(app, { ...options, signal: cutOff.signal });
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

function listen(
  app: App,
  options: { host: string; port: number; signal: AbortSignal },
): Deno.HttpServer<Deno.NetAddr> {
  const { host, port, signal } = options;
  try {
    return Deno.serve(
      { hostname: host, port, signal, onListen: () => {} },
      (request) => app.handle(request),
    );
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new Error(`can't listen on ${host}, port ${port}: ${reason}`, { cause: error });
  }
}
