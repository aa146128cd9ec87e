/**
 * An open file, as FileNode works on it: by libc where that may be called (libc_file.ts), else by
 * the runtime (node_file.ts).
 *
 * @module
 */

import type { IoVector } from "../io_vector.ts";
import type { LibC } from "./libc.ts";

/** How a file is opened. Symbolic links at the end of `path` are not followed. */
export interface OpenFileOptions {
  /** Where it is. */
  path: string;
  /** For reading alone. */
  isReadOnly: boolean;
  /** It is made, and must not exist; with these permission bits, less those of the umask. */
  createMode?: number;
  /** Past the system's cache: see direct_file.ts. Not where libc may not be called. */
  isDirect?: boolean;
}

/** What the system says about an open file. */
export interface FileStat {
  /** A regular file: "a file"; else what it is, for messages. */
  kind: string;
  /** Its size. */
  sizeBytes: number;
  /** What it takes on the medium. */
  allocatedBytes: number;
  /** Device and inode. */
  identity: string;
}

/** See the module's head. What fails throws an error with a `code` as in errno(3). */
export interface OpenFile {
  /** The operating system's number. */
  readonly fd: number;
  /** What can do more with `fd`; null where libc may not be called. */
  readonly libc: LibC | null;
  /** Fills `target`, and says how far: less than all of it only where the file ends. */
  read(offset: number, target: IoVector): number;
  /** Writes all of `source`. */
  write(offset: number, source: IoVector): void;
  /** Cuts it off, or makes it longer by zeroes. */
  truncate(sizeBytes: number): void;
  /** fdatasync(2). */
  flush(): void;
  /** The same on another thread: what is done meanwhile goes on. */
  flushAside(): Promise<void>;
  /** What it is and takes now. */
  stat(): FileStat;
  /** Once. */
  close(): void;
}
