/**
 * A disk in a regular file, by synchronous positional I/O: ten to forty times cheaper on this
 * runtime than asynchronous, straight between the request's buffers and the page cache. It belongs
 * into a worker of its own. A flush of much data or on a slow medium is the exception: it runs
 * beside.
 *
 * With libc (libc.ts: permission `--allow-ffi`) discards punch holes, zeroes are cheap, holes are
 * found, and scattered buffers of shared memory move in one call. Without it zeroes are written,
 * discards do nothing and everything counts as data; `details` says so.
 *
 * A flush that failed may have lost data that the system no longer knows to be unwritten: every
 * later flush fails as well (as in QEMU), until the disk is opened again.
 *
 * @module
 */

import fs from "node:fs";
import { type Clock, systemClock } from "../clock.ts";
import { BlockError, toBlockError } from "../errors.ts";
import type { IoVector } from "../io_vector.ts";
import { BlockNode, type DiscardMode } from "../node.ts";
import {
  type BlockStatus,
  type MaybePromise,
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
} from "../types.ts";
import { type FileLock, lockFile } from "./file_lock.ts";
import { type DiskFile, type DiskFileOptions, openDiskFile } from "./file_open.ts";
import { LibC } from "./libc.ts";

/** A flush waits within the call for no more unwritten data than this, ... */
const SYNCHRONOUS_FLUSH_BYTES = 1024 * 1024;
/** ... and only while the last one took no longer than this. */
const SYNCHRONOUS_FLUSH_MS = 2;

/** What `FileNode.open` takes. */
export interface FileNodeOptions extends DiskFileOptions {
  /** Unique in the graph. */
  nodeName: string;
  /** "unmap" (holes are punched where that is possible) unless given. */
  discard?: DiscardMode;
  /** No lock is taken: others may do with the file what they like. */
  isUnlocked?: boolean;
  /** Nobody needs the content after this node: flushes, also the one of a close, do nothing. */
  isTemporary?: boolean;
  /** What times flushes; the system's unless given. */
  clock?: Clock;
}

/** What a FileNode holds of the system. */
interface FileResources {
  file: DiskFile;
  lock: FileLock;
  libc: LibC | null;
  /** Why there is no libc. */
  unavailable: string | null;
}

/** Driver "file". */
export class FileNode extends BlockNode {
  /** The file's, without symbolic links. */
  readonly path: string;
  readonly #givenPath: string;
  #fd: number;
  readonly #libc: LibC | null;
  #resources: FileResources;
  readonly #clock: Clock;
  readonly #isTemporary: boolean;

  /** A run known to hold data: finding its end again can be slow (tmpfs looks at every page). */
  #dataStart = 0;
  #dataEnd = 0;
  /** Where the hole ended that was found last: a map goes on there, and finds data. */
  #holeEnd = -1;
  #canPunch: boolean;
  #canZeroRange: boolean;
  /** Bytes written since the last flush began. What a former process left unwritten is unknown. */
  #unflushedBytes = Infinity;
  #lastFlushMs = 0;
  #flushing: Promise<void> | null = null;
  #flushError: BlockError | null = null;

  private constructor(options: FileNodeOptions, resources: FileResources) {
    super({
      nodeName: options.nodeName,
      driver: "file",
      sizeBytes: resources.file.sizeBytes,
      isReadOnly: options.isReadOnly,
      discard: options.discard ?? "unmap",
    });
    this.path = resources.file.path;
    this.#givenPath = options.path;
    this.#resources = resources;
    this.#clock = options.clock ?? systemClock;
    this.#isTemporary = options.isTemporary ?? false;
    this.#fd = resources.file.fd;
    this.#libc = resources.libc;
    // A hole past the end changes nothing: only tells whether the file system has holes.
    this.#canPunch = !options.isReadOnly && this.#libc !== null &&
      this.#libc.punchHole(this.#fd, resources.file.sizeBytes, 1);
    this.#canZeroRange = !options.isReadOnly && this.#libc !== null;
  }

  /** Opens or makes the file and locks it. Throws a BlockError. */
  static open(options: FileNodeOptions): FileNode {
    const file = openDiskFile(options);
    const binding = LibC.open();
    const libc = binding instanceof LibC ? binding : null;
    const unavailable = binding instanceof LibC ? null : binding.unavailable;
    try {
      const { isReadOnly } = options;
      const lock: FileLock = options.isUnlocked
        ? { kind: "none", end: () => {} }
        : lockFile({ fd: file.fd, path: file.path, isReadOnly, libc });
      return new FileNode(options, { file, lock, libc, unavailable });
    } catch (error) {
      fs.closeSync(file.fd);
      libc?.close();
      if (options.create) fs.unlinkSync(file.path);
      throw toBlockError(error);
    }
  }

  /** By libc into all buffers at once; what that did not do, one by one. */
  protected override doRead(offset: number, target: IoVector): void {
    const done = this.#libc?.read(this.#fd, target.buffers, offset) ?? 0;
    if (done === target.length) return;
    this.#readRest(offset + done, target.slice(done, target.length - done));
  }

  /** By libc from all buffers at once; what that did not do, one by one. */
  protected override doWrite(offset: number, source: IoVector, _flags: number): void {
    this.#unflushedBytes += source.length;
    const done = this.#libc?.write(this.#fd, source.buffers, offset) ?? 0;
    if (done === source.length) return;
    this.#writeRest(offset + done, source.slice(done, source.length - done));
  }

  /** By a hole or a range of zeroes where the file system has them, else by writing. */
  protected override doWriteZeroes(
    offset: number,
    length: number,
    flags: number,
  ): MaybePromise<void> {
    this.#unflushedBytes += length;
    if ((flags & REQ_MAY_UNMAP) !== 0) {
      if (this.#punchHole(offset, length)) return;
    } else if (this.#zeroRange(offset, length)) {
      return;
    }
    if ((flags & REQ_NO_FALLBACK) !== 0) throw this.notSupported("writing zeroes efficiently");
    return super.doWriteZeroes(offset, length, flags);
  }

  /** Punches a hole; where that can't be done, does nothing. */
  protected override doDiscard(offset: number, length: number): void {
    this.#unflushedBytes += length;
    this.#punchHole(offset, length);
  }

  /**
   * fdatasync(2): within the call while that is quick, else beside it. Once failed, always fails.
   */
  protected override doFlush(): MaybePromise<void> {
    if (this.#flushError !== null) throw this.#flushError;
    if (this.isReadOnly || this.#isTemporary) return;
    const bytes = this.#unflushedBytes;
    // Nothing new: what was written before is flushed, or on its way.
    if (bytes === 0) return this.#flushing ?? undefined;
    this.#unflushedBytes = 0;
    const startMs = this.#clock.now();
    if (
      bytes <= SYNCHRONOUS_FLUSH_BYTES && this.#lastFlushMs <= SYNCHRONOUS_FLUSH_MS &&
      this.#flushing === null
    ) {
      try {
        fs.fdatasyncSync(this.#fd);
      } catch (error) {
        throw this.#flushFailed(error);
      }
      this.#lastFlushMs = this.#clock.now() - startMs;
      return;
    }
    return this.#flushBeside(startMs);
  }

  /** Asks for holes (lseek(2), SEEK_DATA) and remembers the last run of data. */
  protected override doBlockStatus(offset: number, length: number): BlockStatus {
    let isData = true;
    let end = Infinity;
    if (offset >= this.#dataStart && offset < this.#dataEnd) {
      end = this.#dataEnd;
    } else {
      const expectsData = offset === this.#holeEnd;
      const run = this.#libc?.runAt(this.#fd, offset, expectsData) ?? null;
      if (run !== null) {
        ({ isData, end } = run);
        this.#holeEnd = isData ? -1 : end;
        if (isData) {
          this.#dataStart = offset;
          this.#dataEnd = end;
        }
      }
    }
    return {
      length: Math.min(length, end - offset),
      flags: STATUS_ALLOCATED | (isData ? STATUS_DATA : STATUS_ZERO),
    };
  }

  /** ftruncate(2): what is new reads as zeroes. */
  protected override doResize(sizeBytes: number): void {
    this.#unflushedBytes = Infinity;
    this.#dataEnd = 0;
    try {
      fs.ftruncateSync(this.#fd, sizeBytes);
    } catch (error) {
      throw toBlockError(error);
    }
    this.setSize(sizeBytes);
  }

  /** Flushes, then closes the file and with it ends its lock, also where the flush failed. */
  protected override doClose(): MaybePromise<void> {
    let flushed: MaybePromise<void>;
    try {
      flushed = this.settings.ignoresFlush ? undefined : this.doFlush();
    } catch (error) {
      this.#release();
      throw error;
    }
    if (flushed instanceof Promise) return flushed.finally(() => this.#release());
    this.#release();
  }

  /** Opens the same file the other way; the lock on it follows. */
  protected override doSetReadOnly(isReadOnly: boolean): void {
    const { libc, unavailable, lock, file } = this.#resources;
    const opened = openDiskFile({ path: this.path, isReadOnly });
    try {
      const [before, now] = [fs.fstatSync(file.fd), fs.fstatSync(opened.fd)];
      if (before.ino !== now.ino || before.dev !== now.dev) {
        throw new BlockError("EIO", `'${this.path}' is another file now`);
      }
    } catch (error) {
      fs.closeSync(opened.fd);
      throw toBlockError(error);
    }
    // Locks belong to the open file, and our own old one would stand in the new one's way.
    fs.closeSync(file.fd);
    lock.end();
    this.#fd = opened.fd;
    try {
      const newLock = lock.kind === "none"
        ? lock
        : lockFile({ fd: opened.fd, path: this.path, isReadOnly, libc });
      this.#resources = { file: opened, lock: newLock, libc, unavailable };
    } catch (error) {
      fs.closeSync(opened.fd);
      const again = openDiskFile({ path: this.path, isReadOnly: !isReadOnly });
      this.#fd = again.fd;
      const oldLock = lockFile({ fd: again.fd, path: this.path, isReadOnly: !isReadOnly, libc });
      this.#resources = { file: again, lock: oldLock, libc, unavailable };
      throw error;
    }
    this.#canPunch = !isReadOnly && libc !== null && libc.punchHole(this.#fd, this.sizeBytes, 1);
    this.#canZeroRange = !isReadOnly && libc !== null;
  }

  /**
   * Copies from another file within the kernel. False where that can't be done; then a part of the
   * range may have been copied.
   */
  copyFrom(
    source: FileNode,
    { sourceOffset, offset, length }: { sourceOffset: number; offset: number; length: number },
  ): boolean {
    if (this.#libc === null || this.isReadOnly) return false;
    if (offset + length > this.sizeBytes || sourceOffset + length > source.sizeBytes) return false;
    this.#unflushedBytes += length;
    this.#forgetData(offset, length);
    const from = { fd: source.#fd, offset: sourceOffset };
    return this.#libc.copyRange(from, { fd: this.#fd, offset }, length) === length;
  }

  /** Its path as it was given. */
  override get fileName(): string {
    return this.#givenPath;
  }

  /** Blocks that the file system gave to the file (st_blocks of stat(2)). */
  override get allocatedBytes(): number {
    return fs.fstatSync(this.#fd).blocks * 512;
  }

  /** Its path, whether holes work and why not, and the kind of its lock. */
  override details(): Record<string, string | number | boolean | null> {
    const { libc, unavailable, lock } = this.#resources;
    const none = `unsupported: ${unavailable ?? "by the file system"}`;
    return {
      path: this.path,
      holes: libc === null ? none : this.#canPunch ? "supported" : this.isReadOnly ? "found" : none,
      lock: lock.kind,
    };
  }

  #punchHole(offset: number, length: number): boolean {
    if (!this.#canPunch || this.#libc === null) return false;
    this.#forgetData(offset, length);
    return this.#libc.punchHole(this.#fd, offset, length);
  }

  #forgetData(offset: number, length: number): void {
    if (offset < this.#dataEnd && offset + length > this.#dataStart) this.#dataEnd = 0;
  }

  /** Zeroes that stay allocated: in one call, or as a hole that is then allocated again. */
  #zeroRange(offset: number, length: number): boolean {
    if (this.#libc === null) return false;
    if (this.#canZeroRange) {
      this.#forgetData(offset, length);
      if (this.#libc.zeroRange(this.#fd, offset, length)) return true;
      this.#canZeroRange = false;
    }
    return this.#punchHole(offset, length) && this.#libc.allocate(this.#fd, offset, length);
  }

  async #flushBeside(startMs: number): Promise<void> {
    const before = this.#flushing;
    const flushing = new Promise<void>((resolve, reject) => {
      fs.fdatasync(this.#fd, (error) => {
        if (error) return reject(this.#flushFailed(error));
        this.#lastFlushMs = this.#clock.now() - startMs;
        resolve();
      });
    });
    // Who finds nothing new to flush waits for all that are under way, and fails if one of them
    // did.
    const all = Promise.allSettled([before, flushing]).then(() => {
      if (this.#flushError !== null) throw this.#flushError;
    });
    this.#flushing = all;
    try {
      await all;
    } finally {
      if (this.#flushing === all) this.#flushing = null;
    }
  }

  #flushFailed(error: unknown): BlockError {
    this.#flushError ??= toBlockError(error);
    return this.#flushError;
  }

  #release(): void {
    fs.closeSync(this.#fd);
    this.#resources.lock.end();
    this.#libc?.close();
  }

  #readRest(offset: number, target: IoVector): void {
    try {
      for (const buffer of target.buffers) {
        for (let done = 0; done < buffer.length;) {
          const count = fs.readSync(this.#fd, buffer, done, buffer.length - done, offset + done);
          if (count === 0) {
            throw new BlockError("EIO", `'${this.path}' ends before ${this.sizeBytes} bytes`);
          }
          done += count;
        }
        offset += buffer.length;
      }
    } catch (error) {
      throw toBlockError(error);
    }
  }

  #writeRest(offset: number, source: IoVector): void {
    try {
      for (const buffer of source.buffers) {
        for (let done = 0; done < buffer.length;) {
          const count = fs.writeSync(this.#fd, buffer, done, buffer.length - done, offset + done);
          if (count === 0) throw new BlockError("EIO", `'${this.path}' takes no more data`);
          done += count;
        }
        offset += buffer.length;
      }
    } catch (error) {
      throw toBlockError(error);
    }
  }
}
