/**
 * Names of images in other images.
 *
 * @module
 */

import { isAbsolutePath } from "../paths.ts";

/** Whether a name is no path: `json:{...}`, `nbd://...`. */
export function hasProtocol(name: string): boolean {
  return /^[A-Za-z][A-Za-z0-9+.-]*:/.test(name);
}

/**
 * The name of an image that another one names: a relative path is meant from that one's folder. It
 * stays as it was written as far as possible, as in QEMU.
 */
export function resolveBeside(name: string, image: string): string {
  if (name === "" || hasProtocol(name) || isAbsolutePath(name) || hasProtocol(image)) return name;
  const slash = image.lastIndexOf("/");
  return image.slice(0, slash + 1) + name;
}

/** Whether a name is that of a file. */
export function isFileName(name: string): boolean {
  return !hasProtocol(name) || name.startsWith("file:");
}
