/**
 * Opening a disk's file: a regular file and nothing else, inside the folder that the caller allows,
 * with errors that name the path and the reason.
 *
 * @module
 */

import fs from "node:fs";
import path from "node:path";
import { BlockError, toBlockError } from "../errors.ts";

const { O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_RDWR } = fs.constants;

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
  /** Needed with `create`; else the size that the file must have. */
  sizeBytes?: number;
  /** The file must be in this folder or below it, symbolic links followed. */
  directory?: string;
}

/** An open file. */
export interface DiskFile {
  /** The caller closes it. */
  fd: number;
  /** Without symbolic links. */
  path: string;
  /** The file's size when it was opened. */
  sizeBytes: number;
}

/** Opens or makes a file. Throws a BlockError. */
export function openDiskFile(options: DiskFileOptions): DiskFile {
  if (options.path.includes("\0")) throw new BlockError("EINVAL", "A path can't hold a NUL");
  return options.create ? createFile(options) : openExisting(options);
}

function openExisting(options: DiskFileOptions): DiskFile {
  const realPath = attempt(options.path, () => fs.realpathSync(options.path));
  checkInside(realPath, options);
  // Looked at first: opening a device may do something, opening a FIFO may wait.
  checkRegular(attempt(options.path, () => fs.statSync(realPath)), options.path);
  const mode = options.isReadOnly ? O_RDONLY : O_RDWR;
  const fd = attempt(options.path, () => fs.openSync(realPath, mode | O_NOFOLLOW | O_NONBLOCK));
  try {
    const stat = attempt(options.path, () => fs.fstatSync(fd));
    checkRegular(stat, options.path);
    if (options.sizeBytes !== undefined && options.sizeBytes !== stat.size) {
      throw new BlockError(
        "EINVAL",
        `'${options.path}' has ${stat.size} bytes, not ${options.sizeBytes}`,
      );
    }
    return { fd, path: realPath, sizeBytes: stat.size };
  } catch (error) {
    fs.closeSync(fd);
    throw error;
  }
}

function createFile(options: DiskFileOptions): DiskFile {
  const { sizeBytes } = options;
  if (sizeBytes === undefined || !Number.isSafeInteger(sizeBytes) || sizeBytes < 0) {
    throw new BlockError("EINVAL", `'${options.path}' can't be made with a size of ${sizeBytes}`);
  }
  if (options.isReadOnly) throw new BlockError("EINVAL", "A file to be made can't be read-only");
  const parent = attempt(options.path, () => fs.realpathSync(path.dirname(options.path)));
  const realPath = path.join(parent, path.basename(options.path));
  checkInside(realPath, options);
  const fd = attempt(
    options.path,
    () => fs.openSync(realPath, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, options.mode ?? 0o600),
  );
  try {
    attempt(options.path, () => fs.ftruncateSync(fd, sizeBytes));
    return { fd, path: realPath, sizeBytes };
  } catch (error) {
    fs.closeSync(fd);
    fs.unlinkSync(realPath);
    throw error;
  }
}

function checkInside(realPath: string, options: DiskFileOptions): void {
  const { directory } = options;
  if (directory === undefined) return;
  const root = attempt(directory, () => fs.realpathSync(directory));
  if (realPath.startsWith(root.endsWith("/") ? root : `${root}/`)) return;
  throw new BlockError("EPERM", `'${options.path}' is outside of '${directory}'`);
}

function checkRegular(stat: fs.Stats, filePath: string): void {
  if (stat.isFile()) return;
  if (stat.isDirectory()) {
    throw new BlockError("EINVAL", `Could not open '${filePath}': Is a directory`);
  }
  const kind = stat.isBlockDevice()
    ? "a block device"
    : stat.isCharacterDevice()
    ? "a character device"
    : stat.isFIFO()
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
