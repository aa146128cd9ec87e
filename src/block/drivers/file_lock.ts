/**
 * Locks on image files, so that nobody writes an image that another one has open: another machine,
 * another process of ours, or QEMU's tools.
 *
 * With libc these are QEMU's own locks (block/file-posix.c): byte 100 + i of the file is locked,
 * shared, by each who uses permission i, byte 200 + i by each who does not let others use it.
 * Before he goes on, everyone looks for a holder of the opposite byte. The locks belong to the open
 * file and end with it. Without libc it is flock(2), which knows only readers and writers, and QEMU
 * nothing of it.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import { PERM_CONSISTENT_READ, PERM_RESIZE, PERM_WRITE } from "../types.ts";
import { permissionNames } from "../permissions.ts";
import type { LibC } from "./libc.ts";
import type { OpenFile } from "./open_file.ts";

const USED_BASE = 100;
const UNSHARED_BASE = 200;
const PERMISSION_COUNT = 4;

/** What is known of a file's lock. */
export type LockKind = "ofd" | "flock" | "none";

/** What `lockFile` takes. */
export interface LockOptions {
  /** The open file: by libc, or flock(2) is used. */
  file: OpenFile;
  /** Its path, for flock and for messages. */
  path: string;
  /** Others may then read it too, and nobody may write it. */
  isReadOnly: boolean;
}

/** A lock. `end` after the file was closed. */
export interface FileLock {
  /** "ofd": QEMU's byte locks; "flock": flock(2); "none": this file can't be locked. */
  kind: LockKind;
  /** Gives back what the lock holds beside the file. */
  end(): void;
}

/**
 * Locks an image. Throws a BlockError (EBUSY) where somebody uses it in a way that does not go
 * along.
 */
export function lockFile(options: LockOptions): FileLock {
  const { libc } = options.file;
  if (libc !== null) {
    const isLocked = lockBytes(libc, options);
    return { kind: isLocked ? "ofd" : "none", end: () => {} };
  }
  return lockWhole(options);
}

function lockBytes(libc: LibC, { file, path, isReadOnly }: LockOptions): boolean {
  const { fd } = file;
  const used = PERM_CONSISTENT_READ | (isReadOnly ? 0 : PERM_WRITE | PERM_RESIZE);
  const unshared = PERM_WRITE | PERM_RESIZE;
  for (let bit = 0; bit < PERMISSION_COUNT; bit++) {
    const perm = 1 << bit;
    if ((used & perm) !== 0 && !libc.lockByte(fd, USED_BASE + bit)) return false;
    if ((unshared & perm) !== 0 && !libc.lockByte(fd, UNSHARED_BASE + bit)) return false;
  }
  for (let bit = 0; bit < PERMISSION_COUNT; bit++) {
    const perm = 1 << bit;
    if ((used & perm) !== 0 && libc.isLocked(fd, UNSHARED_BASE + bit)) {
      throw inUse(path, `"${permissionNames(perm)}" lock`);
    }
    if ((unshared & perm) !== 0 && libc.isLocked(fd, USED_BASE + bit)) {
      throw inUse(path, `shared "${permissionNames(perm)}" lock`);
    }
  }
  return true;
}

function lockWhole({ path, isReadOnly }: LockOptions): FileLock {
  const file = Deno.openSync(path, { read: true, write: !isReadOnly });
  try {
    if (!file.tryLockSync(!isReadOnly)) throw inUse(path, isReadOnly ? "shared lock" : "lock");
    return { kind: "flock", end: () => file.close() };
  } catch (error) {
    file.close();
    if (error instanceof BlockError) throw error;
    return { kind: "none", end: () => {} };
  }
}

function inUse(path: string, lock: string): BlockError {
  return new BlockError(
    "EBUSY",
    `Failed to get ${lock}: is another process using the image [${path}]?`,
  );
}
