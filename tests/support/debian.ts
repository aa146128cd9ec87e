/**
 * Debian's own kernel and busybox for the boot tests, made into an image once and kept in a cache
 * folder (OVIS_TEST_CACHE, default: ovis-tests in the user's cache folder).
 *
 * @module
 */

import {
  aptMirror,
  type ArchiveOptions,
  DEBIAN_KEYRING,
  parsePackages,
} from "../../src/image/debian_archive.ts";
import { imageOfIndex, isImagePackage, makeDebianImage } from "../../src/image/debian_image.ts";
import { decompress } from "../../src/image/decompress.ts";
import { get } from "../../src/image/download.ts";
import { ImageError } from "../../src/image/errors.ts";

/** Paths of the files that Debian boots from. */
export interface DebianFiles {
  kernel: string;
  initrd: string;
}

/**
 * For Deno.test: Debian's files, or `ignore`, saying so, where they can't be fetched and are not
 * required (OVIS_REQUIRE_CLIENTS, as in clients.ts).
 */
export async function findDebian(): Promise<{ files: DebianFiles; ignore: boolean }> {
  try {
    return { files: await debianFiles(), ignore: false };
  } catch (error) {
    const isRequired = Deno.env.get("OVIS_REQUIRE_CLIENTS") === "1";
    if (isRequired || !(error instanceof ImageError)) throw error;
    // deno-lint-ignore no-console
    console.log(`Debian's kernel can't be fetched: skipped (${error.message})`);
    return { files: { kernel: "", initrd: "" }, ignore: true };
  }
}

/** Where tests keep what they fetched. */
export function testCache(): string {
  return Deno.env.get("OVIS_TEST_CACHE") ??
    `${Deno.env.get("XDG_CACHE_HOME") ?? `${Deno.env.get("HOME") ?? "/tmp"}/.cache`}/ovis-tests`;
}

/** Debian 13's kernel as its package ships it, and an initramfs that ends in a busybox shell. */
export async function debianFiles(): Promise<DebianFiles> {
  const cache = testCache();
  const files = { kernel: `${cache}/kernel`, initrd: `${cache}/initrd` };
  if (await exists(files.kernel) && await exists(files.initrd)) return files;
  const options: ArchiveOptions = {
    mirror: await aptMirror(),
    suite: "trixie",
    architecture: "riscv64",
    keyring: DEBIAN_KEYRING,
    cacheDirectory: `${cache}/packages`,
  };
  const image = await makeDebianImage(options).catch((error) => {
    if (!(error instanceof ImageError)) throw error;
    // A mirror in the middle of an update has an index that is not yet, or no longer, the signed
    // one. What is tested here is the kernel, not the signature, which has tests of its own.
    // deno-lint-ignore no-console
    console.log(`${error.message}\nusing the index as it is`);
    return imageOfUnsignedIndex(options);
  });
  for (const part of ["kernel", "initrd"] as const) {
    await Deno.writeFile(`${files[part]}.new`, image[part]);
    await Deno.rename(`${files[part]}.new`, files[part]);
  }
  return files;
}

async function imageOfUnsignedIndex(options: ArchiveOptions) {
  const url = `${options.mirror}/dists/${options.suite}/main/binary-riscv64/Packages.xz`;
  const { body } = await get(url);
  if (body === null) throw new ImageError(`${url}: no content`);
  return await imageOfIndex(await parsePackages(decompress(url, body), isImagePackage), options);
}

async function exists(path: string): Promise<boolean> {
  try {
    await Deno.stat(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}
