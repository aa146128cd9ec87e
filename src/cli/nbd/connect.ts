/**
 * Connections of `ovis nbd info`, `map` and `copy`: what a URI and the options on TLS come to.
 *
 * @module
 */

import { type NbdLocation, parseNbdFilename } from "../../nbd/address.ts";
import { connectNbd } from "../../nbd/connect.ts";
import type { ByteStream } from "../../nbd/byte_stream.ts";
import type { ClientTls } from "../../nbd/transports/tls.ts";
import { readClientTls } from "../tls_files.ts";

/** The options that all of them have. */
export interface ConnectOptions {
  /** What is trusted and shown, for nbds://. */
  tlsCertificates?: string;
  /** The name that the server's certificate must be for. */
  tlsHostname?: string;
}

/** A server, and the export that was named. */
export interface Connection extends NbdLocation {
  /** With nbds:// only. */
  tls: ClientTls | undefined;
}

/** Understands a URI. */
export async function locate(uri: string, options: ConnectOptions): Promise<Connection> {
  const location = parseNbdFilename(uri);
  return { ...location, tls: location.isTls ? await readTls(location, options) : undefined };
}

/** Connects to the server. */
export function connect({ address, tls }: Connection): Promise<ByteStream> {
  return connectNbd(address, { tls });
}

async function readTls({ address }: NbdLocation, options: ConnectOptions): Promise<ClientTls> {
  const folder = options.tlsCertificates;
  const hostname = options.tlsHostname ?? (address.type === "inet" ? address.host : "localhost");
  return folder === undefined ? { hostname } : await readClientTls(folder, hostname);
}
