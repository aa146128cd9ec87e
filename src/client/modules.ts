/**
 * The browser library as JavaScript modules, ready to be served: types are taken out of the source
 * files, and names of npm packages become paths. No bundler is needed, since browsers load modules
 * by their relative paths: serve `clientModule(path)` below one prefix as `text/javascript`, and a
 * page imports `PREFIX/src/client/mod.ts`.
 *
 * @module
 */

import { stripTypeScriptTypes } from "node:module";

/** The packages that the library uses, each one module. */
const PACKAGES = ["fzstd", "modern-tar", "xz-decompress"] as const;

/** What the library consists of: exactly these files can be had. */
export const CLIENT_MODULES = [
  "src/client/mod.ts",
  "src/client/disk.ts",
  "src/client/fs/cache.ts",
  "src/client/fs/decompress.ts",
  "src/client/fs/ext4.ts",
  "src/client/fs/ext4_inode.ts",
  "src/client/fs/fat.ts",
  "src/client/fs/iso9660.ts",
  "src/client/fs/jbd2.ts",
  "src/client/fs/node.ts",
  "src/client/fs/partitions.ts",
  "src/client/fs/source.ts",
  "src/client/fs/squashfs.ts",
  "src/client/fs/tar.ts",
  "src/client/fs/volume.ts",
  "src/client/web_socket_stream.ts",
  "src/nbd/client.ts",
  "src/nbd/client_handshake.ts",
  "src/nbd/client_link.ts",
  "src/nbd/codec.ts",
  "src/nbd/output_queue.ts",
  "src/nbd/reply_parser.ts",
  "npm/fzstd.js",
  "npm/modern-tar.js",
  "npm/modern-tar-packer.js",
  "npm/xz-decompress.js",
] as const;

/** The entry point: `clientModule` of this path re-exports the library. */
export const CLIENT_ENTRY = "client.js";

const ROOT = new URL("../../", import.meta.url);
/** The part that modern-tar's entry imports; its name changes with each release. */
const TAR_PACKER = /"(\.\.\/packer-[\w-]+\.js)"/;

/** The JavaScript of one module; undefined where the path is not one of the library's. */
export async function clientModule(path: string): Promise<string | undefined> {
  if (path === CLIENT_ENTRY) return `export * from "./${CLIENT_MODULES[0]}";\n`;
  const known = CLIENT_MODULES.find((module) => module === path);
  if (known === undefined) return undefined;
  if (known.startsWith("npm/")) return await packageModule(known);
  const source = await Deno.readTextFile(new URL(known, ROOT));
  // The runtime has both of Node's modes, its types only know the other.
  const code = stripTypeScriptTypes(source, { mode: "transform" as "strip" });
  const up = "../".repeat(known.split("/").length - 1);
  return PACKAGES.reduce(
    (text, name) => text.replaceAll(`"${name}"`, `"${up}npm/${name}.js"`),
    code,
  );
}

async function packageModule(path: string): Promise<string> {
  switch (path) {
    case "npm/modern-tar.js":
      return (await packageText("modern-tar")).replace(TAR_PACKER, `"./modern-tar-packer.js"`);
    case "npm/modern-tar-packer.js": {
      const packer = TAR_PACKER.exec(await packageText("modern-tar"))?.[1] ?? "";
      return await Deno.readTextFile(new URL(packer, import.meta.resolve("modern-tar")));
    }
    case "npm/xz-decompress.js":
      // A CommonJS module, whose one requirement is a global in browsers.
      return "const module = { exports: {} }, exports = module.exports, " +
        `require = () => globalThis;\n${await packageText("xz-decompress")}\n` +
        "export default module.exports;\n";
    default:
      return await packageText("fzstd");
  }
}

async function packageText(name: (typeof PACKAGES)[number]): Promise<string> {
  return await Deno.readTextFile(new URL(import.meta.resolve(name)));
}
