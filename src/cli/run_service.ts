/**
 * Starts the service in this process: what `serve` and `demo` have in common.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import type { Settings } from "../config.ts";
import { createApp } from "../http/app.ts";
import { Authenticator, TicketBook } from "../http/auth.ts";
import { startHttpServer } from "../http/server.ts";
import type { NbdTls } from "../machine/messages.ts";
import { relayTextSocket, relayWebSocket } from "../nbd/transports/websocket.ts";
import { VERSION } from "../version.ts";
import type { BuiltInImage } from "../vm/images.ts";
import type { Log } from "../vm/log.ts";
import { openMachines } from "../vm/open_machines.ts";
import { Service } from "../vm/service.ts";
import { readServerTls } from "./tls_files.ts";

/** A service that listens. */
export interface RunningService {
  /** http://HOST:PORT */
  readonly url: string;
  /** What requests must carry; null: nothing. */
  readonly token: string | null;
  /** The token was made just now: nobody has seen it yet. */
  readonly isTokenNew: boolean;
  /** What is behind the HTTP face. */
  readonly service: Service;
  /** Refuses new work, stops machines in order, gives everything back. */
  stop(): Promise<void>;
}

/** Read once: a new certificate needs a new start. */
async function nbdTls(settings: Settings): Promise<{ nbdTls?: NbdTls }> {
  const { nbdTls: mode, nbdTlsCertificates: folder } = settings;
  if (mode === "off" || folder === null) return {};
  const certificate = await readServerTls(folder, settings.nbdTlsVerifyPeer);
  return { nbdTls: { certificate, isRequired: mode === "required" } };
}

const BUILT_IN_IMAGES: readonly BuiltInImage[] = [{
  name: "demo",
  cmdline: "",
  kernelPath: fileURLToPath(new URL("../../tests/guests/demo/demo.elf", import.meta.url)),
}];

/** Starts one. */
export async function startService(settings: Settings, log: Log): Promise<RunningService> {
  const service = await Service.open({
    dataPath: settings.data,
    builtInImages: BUILT_IN_IMAGES,
    ...await openMachines(),
    allowedFolders: settings.allowFolders,
    nbdHost: settings.nbdHost,
    ...await nbdTls(settings),
    log,
  });
  try {
    const { token, isNew } = await chooseToken(settings, service);
    const app = createApp({
      service,
      access: { hosts: allowedHosts(settings), origins: settings.allowOrigins },
      auth: new Authenticator(token, new TicketBook()),
      log,
      version: VERSION,
      publicUrl: settings.publicUrl,
      relayWebSocket,
      relayTextSocket,
    });
    const server = startHttpServer(app, settings);
    log.info("listening on {url}, data in {path}", { url: server.url, path: service.folder.path });
    return {
      url: server.url,
      token,
      isTokenNew: isNew,
      service,
      async stop() {
        service.beginStop();
        await server.close();
        await service[Symbol.asyncDispose]();
      },
    };
  } catch (error) {
    await service[Symbol.asyncDispose]();
    throw error;
  }
}

async function chooseToken(
  settings: Settings,
  service: Service,
): Promise<{ token: string | null; isNew: boolean }> {
  if (!settings.auth) return { token: null, isNew: false };
  if (settings.token !== null) return { token: settings.token, isNew: false };
  return await service.folder.token();
}

/** The names that the operator gave the service, by whatever setting. */
function allowedHosts({ allowHosts, host, publicUrl }: Settings): string[] {
  return [...allowHosts, host, ...(publicUrl === null ? [] : [new URL(publicUrl).hostname])];
}
