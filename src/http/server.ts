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
  /**
   * Takes no more requests; resolves when those under way have ended, or have had their time. What
   * is still open then ends with the process: this runtime can't cut connections off once it was
   * asked to let them end.
   */
  close(): Promise<void>;
}

/** Listens. */
export function startHttpServer(
  app: App,
  options: { host: string; port: number },
): HttpServer {
  const server = listen(app, options);
  const { hostname, port } = server.addr;
  return {
    url: `http://${hostname.includes(":") ? `[${hostname}]` : hostname}:${port}`,
    async close() {
      app.stop();
      let timer: ReturnType<typeof setTimeout> | undefined;
      const patience = new Promise<void>((resolve) => timer = setTimeout(resolve, DRAIN_MS));
      await Promise.race([server.shutdown(), patience]);
      clearTimeout(timer);
    },
  };
}

function listen(
  app: App,
  options: { host: string; port: number },
): Deno.HttpServer<Deno.NetAddr> {
  const { host, port } = options;
  try {
    return Deno.serve(
      { hostname: host, port, onListen: () => {} },
      (request) => app.handle(request),
    );
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new Error(`can't listen on ${host}, port ${port}: ${reason}`, { cause: error });
  }
}
