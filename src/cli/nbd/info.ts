/** What `ovis nbd info` does: nbdinfo's words and order, but for the content, which isn't read. @module */

import {
  describeExports,
  type ExportDescription,
  type ServerDescription,
} from "../../nbd/client_info.ts";
import {
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_ROTATIONAL,
  NBD_FLAG_SEND_CACHE,
  NBD_FLAG_SEND_DF,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
} from "../../nbd/codec.ts";
import { formatNbdUri } from "../../nbd/address.ts";
import { printLine } from "../output.ts";
import { connect, type Connection, type ConnectOptions, locate } from "./connect.ts";

/** The command's options. */
export interface InfoOptions extends ConnectOptions {
  /** For programs. */
  json: boolean;
  /** The size alone. */
  size: boolean;
  /** All exports. */
  list: boolean;
}

const CAPABILITIES: readonly (readonly [string, number])[] = [
  ["is_rotational", NBD_FLAG_ROTATIONAL],
  ["is_read_only", NBD_FLAG_READ_ONLY],
  ["can_cache", NBD_FLAG_SEND_CACHE],
  ["can_df", NBD_FLAG_SEND_DF],
  ["can_fast_zero", NBD_FLAG_SEND_FAST_ZERO],
  ["can_flush", NBD_FLAG_SEND_FLUSH],
  ["can_fua", NBD_FLAG_SEND_FUA],
  ["can_multi_conn", NBD_FLAG_CAN_MULTI_CONN],
  ["can_trim", NBD_FLAG_SEND_TRIM],
  ["can_zero", NBD_FLAG_SEND_WRITE_ZEROES],
];

/** Asks the server and prints its answers. */
export async function showInfo(uri: string, options: InfoOptions): Promise<void> {
  const connection = await locate(uri, options);
  const server = await describeExports(
    await connect(connection),
    options.list ? null : connection.exportName,
    { isTls: connection.isTls },
  );
  if (options.size) {
    for (const { sizeBytes } of server.exports) printLine(`${sizeBytes}`);
  } else if (options.json) {
    printLine(JSON.stringify(toJson(server, connection), null, 2));
  } else {
    showServer(server, connection);
  }
}

function showServer(server: ServerDescription, connection: Connection): void {
  const headers = { simple: "simple", structured: "structured", extended: "extended" };
  printLine(
    `protocol: newstyle-fixed ${server.isTls ? "with" : "without"} TLS, ` +
      `using ${headers[server.style]} packets`,
  );
  for (const one of server.exports) showExport(one, connection);
}

function showExport(one: ExportDescription, connection: Connection): void {
  printLine(`export=${JSON.stringify(one.name)}:`);
  const line = (text: string) => printLine(`\t${text}`);
  if (one.description !== null && one.description !== "") line(`description: ${one.description}`);
  if (one.canonicalName !== null && one.canonicalName !== one.name) {
    line(`canonical_name: ${one.canonicalName}`);
  }
  const size = humanSize(one.sizeBytes);
  line(`export-size: ${one.sizeBytes}${size === null ? "" : ` (${size})`}`);
  line(`uri: ${formatNbdUri({ ...connection, exportName: one.name })}`);
  if (one.contexts.length > 0) {
    line("contexts:");
    for (const context of one.contexts) line(`\t${context}`);
  }
  for (const [name, flag] of CAPABILITIES) {
    line(`${name}: ${(one.transmissionFlags & flag) !== 0}`);
  }
  if (!one.hasBlockSizes) return;
  line(`block_size_minimum: ${one.minimumBlockBytes}`);
  line(`block_size_preferred: ${one.preferredBlockBytes}`);
  line(`block_size_maximum: ${one.payloadBytesMax}`);
}

function toJson(server: ServerDescription, connection: Connection): unknown {
  return {
    protocol: "newstyle-fixed",
    TLS: server.isTls,
    structured: server.style !== "simple",
    extended: server.style === "extended",
    exports: server.exports.map((one) => ({
      "export-name": one.name,
      ...(one.description === null ? {} : { description: one.description }),
      ...(one.canonicalName === null || one.canonicalName === one.name
        ? {}
        : { canonical_name: one.canonicalName }),
      uri: formatNbdUri({ ...connection, exportName: one.name }),
      contexts: one.contexts,
      ...Object.fromEntries(
        CAPABILITIES.map(([name, flag]) => [name, (one.transmissionFlags & flag) !== 0]),
      ),
      ...(one.hasBlockSizes
        ? {
          block_size_minimum: one.minimumBlockBytes,
          block_size_preferred: one.preferredBlockBytes,
          block_size_maximum: one.payloadBytesMax,
        }
        : {}),
      "export-size": one.sizeBytes,
      "export-size-str": humanSize(one.sizeBytes) ?? `${one.sizeBytes}`,
    })),
  };
}

/** As nbdinfo writes sizes: the largest unit of which it is a whole number; null: bytes. */
function humanSize(bytes: number): string | null {
  let size = bytes;
  let unit = 0;
  while (size >= 1024 && size % 1024 === 0 && unit < 6) {
    size /= 1024;
    unit++;
  }
  return unit === 0 ? null : `${size}${"BKMGTPE"[unit]}`;
}
