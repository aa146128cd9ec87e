/**
 * The whole HTTP face as one function from Request to Response: tests need no server.
 *
 * @module
 */

import type { Log } from "../vm/log.ts";
import type { Service } from "../vm/service.ts";
import type { AccessPolicy } from "./access.ts";
import type { Authenticator } from "./auth.ts";
import { Links } from "./links.ts";
import { Metrics } from "./metrics.ts";
import { Router } from "./router.ts";
import { addBitmapRoutes } from "./routes/bitmaps.ts";
import { addCheckpointRoutes } from "./routes/checkpoints.ts";
import { addClientRoutes } from "./routes/client.ts";
import { addConsoleRoutes } from "./routes/console.ts";
import { addDiskRoutes } from "./routes/disks.ts";
import { addEventRoute } from "./routes/events.ts";
import { addExportRoutes, type RelayWebSocket } from "./routes/exports.ts";
import { addFilesPage } from "./routes/files.ts";
import { addFleecingRoutes } from "./routes/fleecings.ts";
import { addImageRoutes } from "./routes/images.ts";
import { addJobRoutes } from "./routes/jobs.ts";
import { addMonitorRoute } from "./routes/monitor.ts";
import { addServiceRoutes } from "./routes/service.ts";
import { addTransactionRoute } from "./routes/transactions.ts";
import { addVmRoutes } from "./routes/vms.ts";
import { SocketSet } from "./sockets.ts";

/** What the face needs. */
export interface AppOptions {
  /** What the face shows. */
  service: Service;
  /** Which hosts and origins may call. */
  access: AccessPolicy;
  /** Checks tokens, issues tickets. */
  auth: Authenticator;
  /** Gets a child named `http`. */
  log: Log;
  /** The program's version, for /v1/info and the OpenAPI document. */
  version: string;
  /** How clients reach the service, where that differs from what their requests say. */
  publicUrl: string | null;
  /** Carries an NBD session between a WebSocket and a machine's worker. */
  relayWebSocket: RelayWebSocket;
  /** The same for a monitor's session, which is text. */
  relayTextSocket: RelayWebSocket;
}

/** The face, ready to be put behind a socket. */
export interface App {
  /** Answers a request; never rejects. */
  handle: (request: Request) => Promise<Response>;
  /** Ends what would go on for ever: followed logs and WebSockets. */
  stop: () => void;
}

/** Makes the face of a service. */
export function createApp(options: AppOptions): App {
  const { service, access, auth, log, version, publicUrl, relayWebSocket } = options;
  const sockets = new SocketSet();
  const stopping = new AbortController();
  const links = new Links(publicUrl);
  const metrics = new Metrics(service, sockets);
  const router = new Router({ access, auth, log: log.getChild("http"), observe: metrics.observe });
  addVmRoutes(router, service, { stopping: stopping.signal });
  addConsoleRoutes(router, service, { sockets, stopping: stopping.signal });
  addFleecingRoutes(router, service, links);
  addCheckpointRoutes(router, service);
  addTransactionRoute(router, service, links);
  addMonitorRoute(router, service, { sockets, relay: options.relayTextSocket });
  addExportRoutes(router, service, { links, auth, sockets, relayWebSocket });
  addDiskRoutes(router, service);
  addBitmapRoutes(router, service);
  addJobRoutes(router, service, { stopping: stopping.signal });
  addEventRoute(router, service, { stopping: stopping.signal });
  addClientRoutes(router);
  addFilesPage(router);
  addImageRoutes(router, service);
  addServiceRoutes(router, service, { metrics, version });
  return {
    handle: router.handler(),
    stop: () => {
      stopping.abort();
      sockets.closeAll();
    },
  };
}
