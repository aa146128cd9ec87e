/**
 * The browser library as JavaScript modules, ready to be served: types are taken out of the source
 * files, nothing else. No bundler is needed, since browsers load modules by their relative paths:
 * serve `clientModule(path)` below one prefix as `text/javascript`, and a page imports
 * `PREFIX/src/client/mod.ts`.
 *
 * @module
 */

import { stripTypeScriptTypes } from "node:module";

/** What the library consists of: exactly these files can be had. */
export const CLIENT_MODULES = [
  "src/client/mod.ts",
  "src/client/disk.ts",
  "src/client/web_socket_stream.ts",
  "src/nbd/client.ts",
  "src/nbd/client_handshake.ts",
  "src/nbd/client_link.ts",
  "src/nbd/codec.ts",
  "src/nbd/output_queue.ts",
  "src/nbd/reply_parser.ts",
] as const;

/** The entry point: `clientModule` of this path re-exports the library. */
export const CLIENT_ENTRY = "client.js";

const ROOT = new URL("../../", import.meta.url);

/** The JavaScript of one module; undefined where the path is not one of the library's. */
export async function clientModule(path: string): Promise<string | undefined> {
  if (path === CLIENT_ENTRY) return `export * from "./${CLIENT_MODULES[0]}";\n`;
  const known = CLIENT_MODULES.find((module) => module === path);
  if (known === undefined) return undefined;
  const source = await Deno.readTextFile(new URL(known, ROOT));
  // The runtime has both of Node's modes, its types only know the other.
  return stripTypeScriptTypes(source, { mode: "transform" as "strip" });
}
