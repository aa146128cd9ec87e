/** Commands on exports and the NBD server. @module */

import { BlockError } from "../../block/errors.ts";
import {
  alternate,
  bool,
  type Fields,
  list,
  oneOf,
  optional,
  type Parsed,
  type QapiType,
  str,
  struct,
  uint32,
  union,
} from "../../block/open/qapi.ts";
import type { NbdAddress } from "../../nbd/address.ts";
import { addressOf, inetFields, unixFields } from "../../nbd/nbd_driver.ts";
import { command, commandOf, type QmpCommand } from "../command.ts";
import type { ExportBitmap } from "../exports.ts";
import { bitmapFields } from "./bitmap.ts";

const legacyUnion = union("SocketAddressLegacy", {
  base: { type: oneOf("SocketAddressType", ["inet", "unix"]) },
  tag: "type",
  variants: () =>
    new Map<string, Fields>([
      ["inet", { data: struct("InetSocketAddressWrapper", inetFields) }],
      ["unix", { data: struct("UnixSocketAddressWrapper", unixFields) }],
    ]),
});

/** SocketAddressLegacy: the address in a member `data`. */
const legacyAddress: QapiType<NbdAddress> = {
  parse: (value, place) => {
    const { tag, variant } = legacyUnion.parse(value, place);
    return addressOf({ tag, variant: variant.data as Record<string, unknown> });
  },
  shape: legacyUnion.shape,
};

/** The members beside the address of an NBD server's options. */
export const nbdServerFields = {
  "handshake-max-seconds": optional(uint32),
  "tls-creds": optional(str),
  "tls-authz": optional(str),
  "max-connections": optional(uint32),
} satisfies Fields;

/** How an NBD server is started, whatever form its address was given in. */
export function serverOptions(
  args: Parsed<typeof nbdServerFields> & { addr: NbdAddress },
): { address: NbdAddress; tlsCredentials?: string; connectionsMax?: number } {
  if (args["tls-authz"] !== undefined) {
    throw new BlockError("EINVAL", "'tls-authz' is not supported");
  }
  return {
    address: args.addr,
    ...(args["tls-creds"] === undefined ? {} : { tlsCredentials: args["tls-creds"] }),
    ...(args["max-connections"] === undefined ? {} : { connectionsMax: args["max-connections"] }),
  };
}

const exportBitmap = alternate<ExportBitmap>("BlockDirtyBitmapOrStr", {
  string: () => str,
  object: () => struct("BlockDirtyBitmap", bitmapFields),
});

const nbdFields = {
  name: optional(str),
  description: optional(str),
  bitmaps: optional(list(exportBitmap)),
  "allocation-depth": optional(bool),
} satisfies Fields;

const exportOptions = union("BlockExportOptions", {
  base: {
    type: oneOf("BlockExportType", ["nbd"]),
    id: str,
    "fixed-iothread": optional(bool),
    iothread: optional(str),
    "node-name": str,
    writable: optional(bool),
    writethrough: optional(bool),
    "allow-inactive": optional(bool),
  },
  tag: "type",
  variants: () => new Map<string, Fields>([["nbd", nbdFields]]),
});

/** See the module's head. */
export const exportCommands: readonly QmpCommand[] = [
  command(
    "nbd-server-start",
    { addr: legacyAddress, ...nbdServerFields },
    (args, monitor) => monitor.exports.startServer(serverOptions(args)),
  ),
  command("nbd-server-stop", {}, (_args, monitor) => monitor.exports.stopServer()),
  command("nbd-server-add", {
    device: str,
    name: optional(str),
    description: optional(str),
    writable: optional(bool),
    bitmap: optional(str),
  }, (args, monitor) => {
    const { device, name = device, bitmap, writable } = args;
    monitor.exports.add({
      id: name,
      nodeName: device,
      name,
      ...(args.description === undefined ? {} : { description: args.description }),
      // As QEMU: of a node that can't be written the export is read-only.
      isWritable: (writable ?? false) && !(monitor.block.graph.find(device)?.isReadOnly ?? false),
      bitmaps: bitmap === undefined ? [] : [bitmap],
    });
  }),
  command("nbd-server-remove", {
    name: str,
    mode: optional(oneOf("BlockExportRemoveMode", ["safe", "hard"])),
  }, ({ name, mode }, monitor) => monitor.exports.remove(name, { isHard: mode === "hard" })),
  commandOf("block-export-add", () => exportOptions, ({ base, variant }, monitor) => {
    const { name, description, bitmaps } = variant as Parsed<typeof nbdFields>;
    const { iothread } = base;
    if (iothread !== undefined && monitor.objects.list().get(iothread)?.type !== "iothread") {
      throw new BlockError("ENOENT", `iothread "${iothread}" not found`);
    }
    monitor.exports.add({
      id: base.id,
      nodeName: base["node-name"],
      isWritable: base.writable ?? false,
      isWritethrough: base.writethrough ?? false,
      showsDepth: variant["allocation-depth"] === true,
      ...(name === undefined ? {} : { name }),
      ...(description === undefined ? {} : { description }),
      ...(bitmaps === undefined ? {} : { bitmaps }),
    });
  }),
  command("block-export-del", {
    id: str,
    mode: optional(oneOf("BlockExportRemoveMode", ["safe", "hard"])),
  }, ({ id, mode }, monitor) => monitor.exports.remove(id, { isHard: mode === "hard" })),
  command(
    "query-block-exports",
    {},
    (_args, monitor) =>
      monitor.exports.list().map(({ id, nodeName, isShuttingDown }) => ({
        id,
        type: "nbd",
        "node-name": nodeName,
        "shutting-down": isShuttingDown,
      })),
  ),
];
