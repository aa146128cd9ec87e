/**
 * The addresses that answers name.
 *
 * @module
 */

import type { MachineDriver } from "../vm/driver.ts";
import type { ExportInfo } from "../vm/export_directory.ts";

/** Makes addresses of exports. */
export class Links {
  /**
   * `publicUrl`: how clients reach the service, where that differs from what their requests say.
   */
  constructor(readonly publicUrl: string | null) {}

  /** The addresses of an export. */
  of(
    info: ExportInfo,
    options: { request: Request; nbd: MachineDriver["nbd"] | null },
  ): { nbd: string | null; nbdUnix: string | null; websocket: string; content: string } {
    const { nbd } = options;
    const url = new URL(options.request.url);
    const base = (this.publicUrl ?? url.origin).replace(/\/$/, "");
    const path = `${base}/v1/exports/${info.name}`;
    return {
      nbd: nbd &&
        `${nbd.isTlsRequired ? "nbds" : "nbd"}://${
          nbdHost(nbd.host, url.hostname)
        }:${nbd.port}/${info.name}`,
      nbdUnix: nbd && `nbd+unix:///${info.name}?socket=${encodePath(nbd.socketPath)}`,
      websocket: `${path.replace(/^http/, "ws")}/nbd`,
      content: `${path}/content`,
    };
  }
}

function encodePath(path: string): string {
  return path.split("/").map(encodeURIComponent).join("/");
}

/** A server that listens everywhere is reached where the request came. */
function nbdHost(host: string, requestHost: string): string {
  if (host === "0.0.0.0" || host === "::") return requestHost;
  return host.includes(":") ? `[${host}]` : host;
}
