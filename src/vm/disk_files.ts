/**
 * Files of disks.
 *
 * @module
 */

import { randomBytes } from "node:crypto";
import { ServiceError } from "./errors.ts";
import type { DiskRecord } from "./store.ts";

/** An empty raw disk that takes no room yet, on stable storage. */
export async function makeRawFile(path: string, record: DiskRecord): Promise<void> {
  using file = await Deno.open(path, { write: true, createNew: true, mode: 0o600 });
  try {
    await file.truncate(record.sizeBytes);
  } catch (error) {
    const message = `disk ${record.name} of ${record.sizeBytes} bytes can't be made in the data ` +
      `folder's file system: ${(error as Error).message}`;
    throw new ServiceError("noSpace", message, { cause: error });
  }
  await file.sync();
}

/** For `catch`: a folder that other files are in. */
export function isNotEmpty(error: unknown): boolean {
  return (error as { code?: string }).code === "ENOTEMPTY";
}

/** A path as a record names it: below the folder, else as it is. */
export function relativeTo(directory: string, path: string): string {
  const prefixes = [directory, Deno.realPathSync(directory)].map((prefix) => `${prefix}/`);
  const prefix = prefixes.find((candidate) => path.startsWith(candidate));
  return prefix === undefined ? path : path.slice(prefix.length);
}

/** So many bytes as hexadecimal digits. */
export function randomHex(byteCount: number): string {
  return randomBytes(byteCount).toString("hex");
}
