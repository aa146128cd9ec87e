/**
 * Opening a disk's file: a regular file and nothing else, inside the folder that the caller allows,
 * with errors that name the path and the reason.
 *
 * @module
 */

import { BlockError, toBlockError } from "../errors.ts";
import { baseName, folderName, joinPath } from "../paths.ts";
import type { LibC } from "./libc.ts";
import { DirectFile } from "./direct_file.ts";
import { LibcFile } from "./libc_file.ts";
import { NodeFile } from "./node_file.ts";
import type { OpenFile, OpenFileOptions } from "./open_file.ts";

/** What `openDiskFile` takes. */
export interface DiskFileOptions {
  /** May be, or go through, symbolic links where the file exists. */
  path: string;
  /** Opened for reading alone. */
  isReadOnly: boolean;
  /** Makes the file, which must not exist. */
  create?: boolean;
  /** Permission bits of a file that is made, 0600 unless given; the process's umask applies. */
  mode?: number;
  /** Past the system's cache; false unless given. */
  isDirect?: boolean;
  /** Needed with `create`; else the size that the file must have. */
  sizeBytes?: number;
  /** The file must be in this folder or below it, symbolic links followed. */
  directory?: string;
}

/** An open file. */
export interface DiskFile {
  /** The caller closes it. */
  file: OpenFile;
  /** Without symbolic links. */
  path: string;
  /** The file's size when it was opened. */
  sizeBytes: number;
}

/** Opens or makes a file, by libc where it is given. Throws a BlockError. */
export function openDiskFile(options: DiskFileOptions, libc: LibC | null): DiskFile {
  if (options.path.includes("\0")) throw new BlockError("EINVAL", "A path can't hold a NUL");
  return options.create ? createFile(options, libc) : openExisting(options, libc);
}

/** By libc where the runtime's permissions let this file be opened; where not, it says so. */
function openFile(options: OpenFileOptions, libc: LibC | null): OpenFile {
  const { path, isReadOnly, isDirect = false } = options;
  const isGranted = (name: "read" | "write"): boolean =>
    Deno.permissions.querySync({ name, path }).state === "granted";
  const isPermitted = libc !== null && isGranted("read") && (isReadOnly || isGranted("write"));
  if (!isDirect) return isPermitted ? LibcFile.open(libc, options) : NodeFile.open(options);
  if (!isPermitted) throw invalid("passing by the host's cache needs the permission --allow-ffi");
  try {
    return new DirectFile(LibcFile.open(libc, options));
  } catch (error) {
    if ((error as { code?: unknown }).code !== "EINVAL") throw error;
    throw invalid("filesystem does not support O_DIRECT");
  }
}

function invalid(message: string): Error {
  return Object.assign(new Error(message), { code: "EINVAL" });
}

function openExisting(options: DiskFileOptions, libc: LibC | null): DiskFile {
  const { isReadOnly, isDirect = false } = options;
  const path = attempt(options.path, () => Deno.realPathSync(options.path));
  checkInside(path, options);
  // Looked at first: opening a device may do something, opening a FIFO may wait.
  checkRegular(attempt(options.path, () => Deno.statSync(path)), options.path);
  const file = attempt(options.path, () => openFile({ path, isReadOnly, isDirect }, libc));
  try {
    const { kind, sizeBytes } = attempt(options.path, () => file.stat());
    // Another one may have taken its place meanwhile.
    if (kind !== "a file") {
      throw new BlockError("EINVAL", `Could not open '${options.path}': it is ${kind}`);
    }
    if (options.sizeBytes !== undefined && options.sizeBytes !== sizeBytes) {
      throw new BlockError(
        "EINVAL",
        `'${options.path}' has ${sizeBytes} bytes, not ${options.sizeBytes}`,
      );
    }
    return { file, path, sizeBytes };
  } catch (error) {
    file.close();
    throw error;
  }
}

function createFile(options: DiskFileOptions, libc: LibC | null): DiskFile {
  const { sizeBytes } = options;
  if (sizeBytes === undefined || !Number.isSafeInteger(sizeBytes) || sizeBytes < 0) {
    throw new BlockError("EINVAL", `'${options.path}' can't be made with a size of ${sizeBytes}`);
  }
  if (options.isReadOnly) throw new BlockError("EINVAL", "A file to be made can't be read-only");
  const parent = attempt(options.path, () => Deno.realPathSync(folderName(options.path)));
  const path = joinPath(parent, baseName(options.path));
  checkInside(path, options);
  const { mode: createMode = 0o600, isDirect = false } = options;
  const opened = { path, isReadOnly: false, createMode, isDirect };
  const file = attempt(options.path, () => openFile(opened, libc));
  try {
    attempt(options.path, () => file.truncate(sizeBytes));
    return { file, path, sizeBytes };
  } catch (error) {
    file.close();
    Deno.removeSync(path);
    throw error;
  }
}

/** Whether something of that name can be seen. */
export function fileExists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}

function checkInside(realPath: string, options: DiskFileOptions): void {
  const { directory } = options;
  if (directory === undefined) return;
  const root = attempt(directory, () => Deno.realPathSync(directory));
  if (realPath.startsWith(root.endsWith("/") ? root : `${root}/`)) return;
  throw new BlockError("EPERM", `'${options.path}' is outside of '${directory}'`);
}

function checkRegular(stat: Deno.FileInfo, filePath: string): void {
  if (stat.isFile) return;
  if (stat.isDirectory) {
    throw new BlockError("EINVAL", `Could not open '${filePath}': Is a directory`);
  }
  const kind = stat.isBlockDevice
    ? "a block device"
    : stat.isCharDevice
    ? "a character device"
    : stat.isFifo
    ? "a FIFO"
    : "no regular file";
  throw new BlockError("EINVAL", `Could not open '${filePath}': it is ${kind}`);
}

function attempt<T>(filePath: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    throw openError(filePath, error);
  }
}

/** As strerror(3) has them. */
const SYSTEM_REASONS: Record<string, string> = {
  EACCES: "Permission denied",
  EEXIST: "File exists",
  EISDIR: "Is a directory",
  ELOOP: "Too many levels of symbolic links",
  ENAMETOOLONG: "File name too long",
  ENOENT: "No such file or directory",
  ENOSPC: "No space left on device",
  ENOTDIR: "Not a directory",
  EPERM: "Operation not permitted",
  EROFS: "Read-only file system",
};

/** The error of an opening, with the path, in the words of the block layer. */
function openError(filePath: string, error: unknown): BlockError {
  const code = (error as { code?: unknown } | null)?.code;
  // What this process may not is for its user as if the file said no.
  const isDenied = error instanceof Deno.errors.NotCapable;
  const reason = SYSTEM_REASONS[isDenied ? "EACCES" : String(code)] ??
    (error instanceof Error ? error.message : String(error));
  const message = `Could not open '${filePath}': ${reason}`;
  if (isDenied || code === "EROFS" || code === "EACCES") {
    return new BlockError("EPERM", message, { cause: error });
  }
  switch (code) {
    case "EEXIST":
    case "EISDIR":
    case "ELOOP":
    case "ENAMETOOLONG":
    case "ENOTDIR":
      return new BlockError("EINVAL", message, { cause: error });
    default:
      return new BlockError(toBlockError(error).code, message, { cause: error });
  }
}
