/**
 * Where an NBD server is and what to open there, as people write it: the URIs of the NBD project
 * (nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH, and nbds for TLS), and QEMU's older
 * `nbd:HOST:PORT:exportname=NAME` and `nbd:unix:PATH:exportname=NAME`.
 *
 * @module
 */

import { BlockError } from "../block/errors.ts";

/** The port that IANA gave to NBD. */
export const NBD_DEFAULT_PORT = 10809;

/** A server's address, in the words of QEMU's SocketAddress. */
export type NbdAddress =
  | { readonly type: "inet"; readonly host: string; readonly port: number }
  | { readonly type: "unix"; readonly path: string };

/** An export somewhere. */
export interface NbdLocation {
  /** Where the server is. */
  readonly address: NbdAddress;
  /** "" is the default export. */
  readonly exportName: string;
  /** Only over TLS (nbds://). */
  readonly isTls: boolean;
}

/** Whether a file name means an export rather than a file. */
export function isNbdFilename(filename: string): boolean {
  return /^(nbds?(\+(tcp|unix))?:\/\/|nbd:)/.test(filename);
}

/** Understands a URI, or a file name of QEMU's older form. Throws a BlockError (EINVAL). */
export function parseNbdFilename(filename: string): NbdLocation {
  return /^nbds?(\+(tcp|unix))?:\/\//.test(filename) ? parseUri(filename) : parseLegacy(filename);
}

/** The URI of an export. */
export function formatNbdUri({ address, exportName, isTls }: NbdLocation): string {
  const scheme = isTls ? "nbds" : "nbd";
  const name = exportName === "" ? "" : `/${encodePath(exportName)}`;
  if (address.type === "unix") {
    return `${scheme}+unix://${name === "" ? "/" : name}?socket=${encodePath(address.path)}`;
  }
  const host = address.host.includes(":") ? `[${address.host}]` : address.host;
  return `${scheme}://${host}:${address.port}${name}`;
}

/** An address as messages name it. */
export function describeAddress(address: NbdAddress): string {
  return address.type === "unix" ? address.path : `${address.host}:${address.port}`;
}

function parseUri(uri: string): NbdLocation {
  const match = /^(nbds?)(?:\+(tcp|unix))?:\/\/([^/?]*)(\/[^?]*)?(?:\?(.*))?$/.exec(uri);
  if (match === null) throw invalid(uri);
  const [, scheme, transport, authority = "", path = "", query = ""] = match;
  const exportName = decode(path.slice(1), uri);
  const isTls = scheme === "nbds";
  const parameters = new Map(
    query.split("&").filter((part) => part !== "").map((part) => {
      const at = part.indexOf("=");
      return [part.slice(0, at), decode(part.slice(at + 1), uri)] as const;
    }),
  );
  const socket = parameters.get("socket");
  if (transport === "unix") {
    if (authority !== "" || socket === undefined || socket === "" || parameters.size > 1) {
      throw invalid(uri);
    }
    return { address: { type: "unix", path: socket }, exportName, isTls };
  }
  if (parameters.size > 0) throw invalid(uri);
  return { address: parseAuthority(authority, uri), exportName, isTls };
}

function parseAuthority(authority: string, filename: string): NbdAddress {
  const match = /^(?:[^@]*@)?(\[[^\]]+\]|[^:]*)(?::(\d+))?$/.exec(authority);
  if (match === null) throw invalid(filename);
  const host = decode((match[1] ?? "").replace(/^\[|\]$/g, ""), filename);
  const port = match[2] === undefined ? NBD_DEFAULT_PORT : Number(match[2]);
  if (port < 1 || port > 65535) throw invalid(filename);
  return { type: "inet", host: host === "" ? "localhost" : host, port };
}

function parseLegacy(filename: string): NbdLocation {
  const match = /^nbd:(.*?)(?::exportname=(.*))?$/s.exec(filename);
  const server = match?.[1] ?? "";
  const exportName = match?.[2] ?? "";
  if (server.startsWith("unix:")) {
    const path = server.slice("unix:".length);
    if (path === "") throw invalid(filename);
    return { address: { type: "unix", path }, exportName, isTls: false };
  }
  if (!/:\d+$/.test(server)) throw invalid(filename);
  return { address: parseAuthority(server, filename), exportName, isTls: false };
}

function invalid(filename: string): BlockError {
  return new BlockError("EINVAL", `'${filename}' is not an address of an NBD export`);
}

function decode(text: string, filename: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid(filename);
  }
}

/** Percent-encodes what has a meaning in a URI, and leaves slashes readable. */
function encodePath(path: string): string {
  return encodeURIComponent(path).replaceAll("%2F", "/").replaceAll("%3A", ":");
}
