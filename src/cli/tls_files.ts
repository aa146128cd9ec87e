/**
 * Certificates in a folder, under the names that QEMU's and nbdkit's tools use.
 *
 * @module
 */

import { join } from "node:path";
import type { ClientTls, ServerTls } from "../nbd/transports/tls.ts";

/** What a server shows; with `mustVerify` also the authorities by which it judges clients. */
export async function readServerTls(folder: string, mustVerify: boolean): Promise<ServerTls> {
  const read = (name: string) => Deno.readTextFile(join(folder, name));
  return {
    cert: await read("server-cert.pem"),
    key: await read("server-key.pem"),
    ...(mustVerify ? { clientCa: await read("ca-cert.pem") } : {}),
  };
}

/** What a client trusts, and shows where the folder has a certificate for it. */
export async function readClientTls(folder: string, hostname: string): Promise<ClientTls> {
  const [ca, cert, key] = await Promise.all(
    ["ca-cert.pem", "client-cert.pem", "client-key.pem"].map((name) =>
      readIfThere(join(folder, name))
    ),
  );
  return {
    hostname,
    ...(ca === undefined ? {} : { ca }),
    ...(cert === undefined || key === undefined ? {} : { cert, key }),
  };
}

async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await Deno.readTextFile(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}
