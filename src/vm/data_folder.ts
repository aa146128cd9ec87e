/**
 * The data folder: everything that the service keeps, and the lock that makes it the only one
 * there.
 *
 *   lock             locked while a service runs (flock: gone with its process, however it ends)
 *   token            the bearer token, readable by its owner only
 *   ovis.sqlite      images, machines, disks, fleecings, checkpoints
 *   images/NAME/     kernel, initrd, firmware; .*.tmp: an upload under way
 *   disks/ID/        DISK.raw, DISK.qcow2, ...: the disks of one machine, or one without a machine
 *   scratch/ID/      temporary images of its fleecings: worthless after a crash
 *   sockets/ID.sock  its NBD server; ID.qmp: its monitor
 *
 * A unix socket's path is limited to 107 bytes; where the folder's own is too long, the sockets
 * stand in a private folder under the system's temporary one.
 *
 * @module
 */

import { closeSync, fsyncSync, openSync } from "node:fs";
import { createHash, randomBytes } from "node:crypto";
import { isAbsolute, join, resolve } from "node:path";

/** sun_path of Linux has 108 bytes, one of them the final zero. */
const SOCKET_PATH_BYTES = 107;
/** `/`, eight digits, `.sock`. */
const SOCKET_NAME_BYTES = 14;
const OWNER_ONLY = 0o700;
const TOKEN_BYTES = 24;

/** Another service holds the folder. */
export class FolderInUseError extends Error {
  /** What stands before the message when it is printed. */
  override readonly name = "FolderInUseError";
}

/** An open, locked data folder. */
export class DataFolder implements Disposable {
  readonly #lock: Deno.FsFile;

  private constructor(
    readonly path: string,
    readonly socketDirectory: string,
    lock: Deno.FsFile,
  ) {
    this.#lock = lock;
  }

  /** Makes what is missing and takes the lock. */
  static async open(path: string): Promise<DataFolder> {
    const root = isAbsolute(path) ? path : resolve(path);
    try {
      return await DataFolder.#open(root);
    } catch (error) {
      if (error instanceof FolderInUseError || !(error instanceof Error)) throw error;
      throw new Error(`the data folder ${root} can't be used: ${error.message}`, { cause: error });
    }
  }

  static async #open(root: string): Promise<DataFolder> {
    await Deno.mkdir(root, { recursive: true, mode: OWNER_ONLY });
    const lock = await lockFolder(root);
    try {
      for (const name of ["images", "disks", "scratch", "sockets"]) {
        await Deno.mkdir(join(root, name), { recursive: true, mode: OWNER_ONLY });
      }
      return new DataFolder(root, await chooseSocketDirectory(root), lock);
    } catch (error) {
      lock.close();
      throw error;
    }
  }

  /** The database's file. */
  get storePath(): string {
    return join(this.path, "ovis.sqlite");
  }

  /** All images. */
  get imagesDirectory(): string {
    return join(this.path, "images");
  }

  /** Holds `kernel`, `initrd` and `firmware` of an image, as far as they were uploaded. */
  imageDirectory(name: string): string {
    return join(this.imagesDirectory, name);
  }

  /** All disks. */
  get disksDirectory(): string {
    return join(this.path, "disks");
  }

  /** The disks of one machine, or the files of one disk. */
  diskDirectory(id: string): string {
    return join(this.disksDirectory, id);
  }

  /** A file of a disk: its record names it below `disks`, or in a folder of the operator's. */
  diskPath(file: string): string {
    return isAbsolute(file) ? file : join(this.disksDirectory, file);
  }

  /** The temporary images of all machines. */
  get scratchRoot(): string {
    return join(this.path, "scratch");
  }

  /** The temporary images of one machine. */
  scratchDirectory(id: string): string {
    return join(this.scratchRoot, id);
  }

  /** The unix socket of a machine's NBD server. */
  socketPath(id: string): string {
    return join(this.socketDirectory, `${id}.sock`);
  }

  /** The unix socket of a machine's monitor. */
  monitorPath(id: string): string {
    return join(this.socketDirectory, `${id}.qmp`);
  }

  /** The token of this folder, made at the first call; `isNew` then. */
  async token(): Promise<{ token: string; isNew: boolean }> {
    const path = join(this.path, "token");
    try {
      return { token: (await Deno.readTextFile(path)).trim(), isNew: false };
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
    const token = randomBytes(TOKEN_BYTES).toString("base64url");
    const temporary = `${path}.tmp`;
    await Deno.remove(temporary).catch(ignoreMissing);
    await Deno.writeTextFile(temporary, `${token}\n`, { mode: 0o600, createNew: true });
    syncPath(temporary);
    await Deno.rename(temporary, path);
    syncPath(this.path);
    return { token, isNew: true };
  }

  /** Gives the lock back. */
  [Symbol.dispose](): void {
    this.#lock.close();
  }
}

/** Brings a file, or a folder's list of names, to stable storage. */
export function syncPath(path: string): void {
  const descriptor = openSync(path, "r");
  try {
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

/** For `catch`: a file that is not there is as good as removed. */
export function ignoreMissing(error: unknown): void {
  if (!(error instanceof Deno.errors.NotFound)) throw error;
}

async function lockFolder(root: string): Promise<Deno.FsFile> {
  const path = join(root, "lock");
  const file = await Deno.open(path, { read: true, write: true, create: true, mode: 0o600 });
  try {
    if (!await file.tryLock(true)) {
      const holder = (await Deno.readTextFile(path)).trim();
      throw new FolderInUseError(
        `the data folder ${root} is in use by another Ovis service` +
          (holder === "" ? "" : ` (process ${holder})`) +
          "; stop it first, or choose another folder with --data",
      );
    }
    await file.truncate();
    await file.write(new TextEncoder().encode(`${Deno.pid}\n`));
    return file;
  } catch (error) {
    file.close();
    throw error;
  }
}

async function chooseSocketDirectory(root: string): Promise<string> {
  const own = join(root, "sockets");
  if (new TextEncoder().encode(own).length + SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES) return own;
  const hash = createHash("sha256").update(root).digest("hex").slice(0, 12);
  const path = `/tmp/ovis-${hash}`;
  try {
    await Deno.mkdir(path, { mode: OWNER_ONLY });
  } catch (error) {
    if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
    // Anyone can make folders there: use only one that is ours and closed to others.
    const info = await Deno.lstat(path);
    const isPrivate = ((info.mode ?? 0) & 0o777) === OWNER_ONLY;
    if (!info.isDirectory || !isPrivate || info.uid !== Deno.uid()) {
      throw new Error(`${path}, meant for sockets, belongs to someone else; shorten --data`);
    }
  }
  return path;
}
