/**
 * Driver nbd for the opening of block nodes (src/block/open): blockdev-add's arguments and file
 * names, made into an NbdNode.
 *
 * @module
 */

import type { BlockDriver } from "../block/open/context.ts";
import type { JsonObject } from "../block/open/json.ts";
import {
  bool,
  type Fields,
  inputError,
  oneOf,
  optional,
  type Parsed,
  type QapiType,
  str,
  uint16,
  uint32,
  union,
} from "../block/open/qapi.ts";
import { isNbdFilename, type NbdAddress, parseNbdFilename } from "./address.ts";
import type { ClientTls } from "./transports/tls.ts";

/** InetSocketAddress. */
export const inetFields = {
  host: str,
  port: str,
  numeric: optional(bool),
  to: optional(uint16),
  ipv4: optional(bool),
  ipv6: optional(bool),
  "keep-alive": optional(bool),
  mptcp: optional(bool),
} satisfies Fields;

/** UnixSocketAddress. */
export const unixFields = {
  path: str,
  abstract: optional(bool),
  tight: optional(bool),
} satisfies Fields;

/** A socket's address in QEMU's words (SocketAddress), as this program can have it. */
export const socketAddressType: QapiType<NbdAddress> = socketAddress();

function socketAddress(): QapiType<NbdAddress> {
  const raw = union("SocketAddress", {
    base: { type: oneOf("SocketAddressType", ["inet", "unix"]) },
    tag: "type",
    variants: () => new Map<string, Fields>([["inet", inetFields], ["unix", unixFields]]),
  });
  return {
    parse: (value, place) => addressOf(raw.parse(value, place)),
    shape: raw.shape,
  };
}

/** The address of its parts. Throws a BlockError (EINVAL) on what can't be had. */
export function addressOf(
  { tag, variant }: { tag: string; variant: Record<string, unknown> },
): NbdAddress {
  if (tag === "unix") {
    const { path, abstract } = variant as Parsed<typeof unixFields>;
    if (abstract === true) throw inputError("Abstract unix sockets are not supported");
    return { type: "unix", path };
  }
  const { host, port } = variant as Parsed<typeof inetFields>;
  if (!/^\d{1,5}$/.test(port) || Number(port) > 65535) {
    throw inputError(`port is not a number: '${port}'`);
  }
  return { type: "inet", host: host === "" ? "0.0.0.0" : host, port: Number(port) };
}

const fields = {
  server: socketAddressType,
  export: optional(str),
  "tls-creds": optional(str),
  "tls-hostname": optional(str),
  "x-dirty-bitmap": optional(str),
  "reconnect-delay": optional(uint32),
  "open-timeout": optional(uint32),
} satisfies Fields;

/** Longest string of the protocol. */
const NAME_BYTES_MAX = 4096;

/** What the driver needs of its surroundings. */
export interface NbdDriverOptions {
  /**
   * The credentials of that id, for a server of that name. Throws a BlockError where there are
   * none. Without it TLS is refused.
   */
  clientTls?(id: string, hostname: string): ClientTls;
}

/** The entry for the table of drivers. */
export function createNbdDriver(surroundings: NbdDriverOptions = {}): BlockDriver {
  return {
    name: "nbd",
    fields: () => fields,
    open: async ({ nodeName, options, common, context }) => {
      const parsed = options as Parsed<typeof fields>;
      const { server } = parsed;
      const tlsId = parsed["tls-creds"];
      for (
        const [what, text] of [["export name", parsed.export], [
          "x-dirty-bitmap",
          parsed["x-dirty-bitmap"],
        ]]
      ) {
        if (new TextEncoder().encode(text).length > NAME_BYTES_MAX) {
          throw inputError(`${what} too long to send to server`);
        }
      }
      const hostname = parsed["tls-hostname"] ?? (server.type === "inet" ? server.host : "");
      const tls = tlsId === undefined ? {} : { tls: credentials(tlsId, hostname, surroundings) };
      // Most who have the table never open an export, and the client takes 10 ms to load.
      const { NbdNode } = await import("./nbd_node.ts");
      return await NbdNode.open({
        nodeName,
        server,
        exportName: parsed.export ?? "",
        isReadOnly: common.isReadOnly,
        isAutoReadOnly: common.isAutoReadOnly,
        reconnectDelayMs: (parsed["reconnect-delay"] ?? 0) * 1000,
        openTimeoutMs: (parsed["open-timeout"] ?? 0) * 1000,
        ...tls,
        ...(parsed["x-dirty-bitmap"] === undefined
          ? {}
          : { statusContext: parsed["x-dirty-bitmap"] }),
        ...(context.signal === undefined ? {} : { signal: context.signal }),
        ...(context.clock === undefined ? {} : { clock: context.clock }),
      });
    },
    optionsOfFileName: (filename) => {
      if (!isNbdFilename(filename)) return undefined;
      const { address, exportName, isTls } = parseNbdFilename(filename);
      if (isTls) throw inputError(`'${filename}' needs credentials: name them in a json: name`);
      const server: JsonObject = address.type === "unix"
        ? { type: "unix", path: address.path }
        : { type: "inet", host: address.host, port: String(address.port) };
      return { driver: "nbd", server, ...(exportName === "" ? {} : { export: exportName }) };
    },
  };
}

function credentials(id: string, hostname: string, { clientTls }: NbdDriverOptions): ClientTls {
  if (clientTls === undefined) throw inputError(`No TLS credentials with id '${id}'`);
  return clientTls(id, hostname);
}
