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

import { type Clock, systemClock } from "../clock.ts";
import { BlockError, toBlockError } from "../errors.ts";
import type { IoVector } from "../io_vector.ts";
import { BlockNode, type DiscardMode } from "../node.ts";
import {
  type BlockStatus,
  type FilePart,
  type MaybePromise,
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
} from "../types.ts";
import { type FileLock, lockFile } from "./file_lock.ts";
import { type DiskFile, type DiskFileOptions, openDiskFile } from "./file_open.ts";
import { FileWindow } from "./file_window.ts";
import { LibC } from "./libc.ts";
import type { OpenFile } from "./open_file.ts";

/** A flush waits within the call for no more unwritten data than this, ... */
const SYNCHRONOUS_FLUSH_BYTES = 1024 * 1024;
/** ... and only while the last one took no longer than this. */
const SYNCHRONOUS_FLUSH_MS = 2;

/** Room is taken for a write from this length on: each time costs a call. */
const ROOM_BYTES_MIN = 256 * 1024;

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
  opened: DiskFile;
  lock: FileLock;
  /** To be closed behind the file. */
  binding: LibC | null;
  /** Why there is no libc. */
  unavailable: string | null;
}

/** Driver "file". */
export class FileNode extends BlockNode {
  /** The file's, without symbolic links. */
  readonly path: string;
  readonly #givenPath: string;
  #file: OpenFile;
  #resources: FileResources;
  readonly #clock: Clock;
  readonly #isTemporary: boolean;
  /** The system's cache is passed by. */
  readonly isDirect: boolean;

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
  #window: FileWindow | null = null;
  /** See `takeRoomAhead`. */
  #takesRoom = false;
  /** From here on the file has grown with its room. */
  #roomStart = Infinity;

  private constructor(options: FileNodeOptions, resources: FileResources) {
    super({
      nodeName: options.nodeName,
      driver: "file",
      sizeBytes: resources.opened.sizeBytes,
      isReadOnly: options.isReadOnly,
      discard: options.discard ?? "unmap",
    });
    this.path = resources.opened.path;
    this.#file = resources.opened.file;
    this.#givenPath = options.path;
    this.#resources = resources;
    this.#clock = options.clock ?? systemClock;
    this.#isTemporary = options.isTemporary ?? false;
    this.isDirect = options.isDirect ?? false;
    [this.#canPunch, this.#canZeroRange] = this.#abilities(options.isReadOnly);
  }

  /** Opens or makes the file and locks it. Throws a BlockError. */
  static open(options: FileNodeOptions): FileNode {
    const found = LibC.open();
    const binding = found instanceof LibC ? found : null;
    const unavailable = found instanceof LibC ? null : found.unavailable;
    let opened: DiskFile | null = null;
    try {
      opened = openDiskFile(options, binding);
      const { isReadOnly } = options;
      const lock: FileLock = options.isUnlocked
        ? { kind: "none", end: () => {} }
        : lockFile({ file: opened.file, path: opened.path, isReadOnly });
      return new FileNode(options, { opened, lock, binding, unavailable });
    } catch (error) {
      opened?.file.close();
      binding?.close();
      if (opened !== null && options.create) Deno.removeSync(opened.path);
      throw toBlockError(error);
    }
  }

  /** Within the call. */
  protected override doRead(offset: number, target: IoVector): void {
    let count: number;
    try {
      count = this.#file.read(offset, target);
    } catch (error) {
      throw toBlockError(error);
    }
    if (count < target.length) throw this.#endsBefore();
  }

  /** Within the call. */
  protected override doWrite(offset: number, source: IoVector, _flags: number): void {
    this.#unflushedBytes += source.length;
    if (this.#takesRoom && source.length >= ROOM_BYTES_MIN && offset < this.#roomStart) {
      this.#takeRoom(offset, source.length);
    }
    try {
      this.#file.write(offset, source);
    } catch (error) {
      throw toBlockError(error);
    }
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
        this.#file.flush();
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
      const { libc, fd } = this.#file;
      const run = libc?.runAt(fd, offset, expectsData) ?? null;
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

  /** The bytes of a file lie in it; whoever takes them from there takes the system's cache. */
  protected override doFilePart(offset: number): FilePart | null {
    return this.isDirect ? null : { fd: this.#file.fd, offset };
  }

  /** ftruncate(2): what is new reads as zeroes. */
  protected override doResize(sizeBytes: number): void {
    this.#unflushedBytes = Infinity;
    this.#dataEnd = 0;
    const grownBytes = sizeBytes - this.sizeBytes;
    try {
      if (this.#takesRoom && grownBytes > 0 && this.#takeRoom(this.sizeBytes, grownBytes)) {
        this.#roomStart = Math.min(this.#roomStart, this.sizeBytes);
      } else this.#file.truncate(sizeBytes);
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
    const { lock, opened: before } = this.#resources;
    const open = (isReadOnly: boolean): DiskFile =>
      openDiskFile(
        { path: this.path, isReadOnly, isDirect: this.isDirect },
        this.#resources.binding,
      );
    const opened = open(isReadOnly);
    try {
      if (before.file.stat().identity !== opened.file.stat().identity) {
        throw new BlockError("EIO", `'${this.path}' is another file now`);
      }
    } catch (error) {
      opened.file.close();
      throw toBlockError(error);
    }
    this.#window?.close();
    this.#window = null;
    // Locks belong to the open file, and our own old one would stand in the new one's way.
    before.file.close();
    lock.end();
    const use = (opened: DiskFile, lock: FileLock): void => {
      this.#file = opened.file;
      this.#resources = { ...this.#resources, opened, lock };
    };
    const { path } = this;
    try {
      use(opened, lock.kind === "none" ? lock : lockFile({ file: opened.file, path, isReadOnly }));
    } catch (error) {
      opened.file.close();
      const again = open(!isReadOnly);
      use(again, lockFile({ file: again.file, path, isReadOnly: !isReadOnly }));
      throw error;
    }
    [this.#canPunch, this.#canZeroRange] = this.#abilities(isReadOnly);
  }

  /**
   * Copies from another file within the kernel. False where that can't be done; then a part of the
   * range may have been copied.
   */
  copyFrom(
    source: FileNode,
    { sourceOffset, offset, length }: { sourceOffset: number; offset: number; length: number },
  ): boolean {
    const { libc, fd } = this.#file;
    // The kernel copies by its cache.
    if (libc === null || this.isReadOnly || this.isDirect || source.isDirect) return false;
    if (offset + length > this.sizeBytes || sourceOffset + length > source.sizeBytes) return false;
    this.#unflushedBytes += length;
    this.#forgetData(offset, length);
    const from = { fd: source.#file.fd, offset: sourceOffset };
    return libc.copyRange(from, { fd, offset }, length) === length;
  }

  /**
   * The bytes of a range without a copy: see FileWindow. Null where they have to be read, also
   * where the range is not in the file.
   */
  view(offset: number, length: number, dataBytes = length): Uint8Array | null {
    const { libc, fd } = this.#file;
    if (libc === null || this.isDirect || offset + length > this.sizeBytes) return null;
    this.#window ??= new FileWindow(libc, fd);
    return this.#window.view(offset, length, dataBytes);
  }

  /**
   * From now on room is taken before it is written to: for files that are written from start to
   * end, which is a tenth faster so. Who made the file grow too much has to cut it off.
   */
  takeRoomAhead(): void {
    this.#takesRoom = true;
  }

  /** Its path as it was given. */
  override get fileName(): string {
    return this.#givenPath;
  }

  /** Blocks that the file system gave to the file (st_blocks of stat(2)). */
  override get allocatedBytes(): number {
    return this.#file.stat().allocatedBytes;
  }

  /** Its path, whether holes work and why not, and the kind of its lock. */
  override details(): Record<string, string | number | boolean | null> {
    const { unavailable, lock } = this.#resources;
    const { libc } = this.#file;
    const none = `unsupported: ${unavailable ?? "by the file system"}`;
    return {
      path: this.path,
      holes: libc === null ? none : this.#canPunch ? "supported" : this.isReadOnly ? "found" : none,
      lock: lock.kind,
    };
  }

  #punchHole(offset: number, length: number): boolean {
    const { libc, fd } = this.#file;
    if (!this.#canPunch || libc === null) return false;
    this.#forgetData(offset, length);
    return libc.punchHole(fd, offset, length);
  }

  /** False where there is none, or the file system can't: then writing finds out. */
  #takeRoom(offset: number, length: number): boolean {
    const { libc, fd } = this.#file;
    this.#takesRoom = libc?.allocate(fd, offset, length) ?? false;
    return this.#takesRoom;
  }

  #forgetData(offset: number, length: number): void {
    if (offset < this.#dataEnd && offset + length > this.#dataStart) this.#dataEnd = 0;
  }

  /** Zeroes that stay allocated: in one call, or as a hole that is then allocated again. */
  #zeroRange(offset: number, length: number): boolean {
    const { libc, fd } = this.#file;
    if (libc === null) return false;
    if (this.#canZeroRange) {
      this.#forgetData(offset, length);
      if (libc.zeroRange(fd, offset, length)) return true;
      this.#canZeroRange = false;
    }
    return this.#punchHole(offset, length) && libc.allocate(fd, offset, length);
  }

  async #flushBeside(startMs: number): Promise<void> {
    const before = this.#flushing;
    const flushing = this.#file.flushAside().then(
      () => void (this.#lastFlushMs = this.#clock.now() - startMs),
      (error) => {
        throw this.#flushFailed(error);
      },
    );
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
    this.#window?.close();
    this.#file.close();
    this.#resources.lock.end();
    this.#resources.binding?.close();
  }

  #endsBefore(): BlockError {
    return new BlockError("EIO", `'${this.path}' ends before ${this.sizeBytes} bytes`);
  }

  /** Whether holes can be punched, and ranges zeroed. */
  #abilities(isReadOnly: boolean): [canPunch: boolean, canZeroRange: boolean] {
    const { libc, fd } = this.#file;
    if (isReadOnly || libc === null) return [false, false];
    // A hole past the end changes nothing: only tells whether the file system has holes.
    return [libc.punchHole(fd, this.sizeBytes, 1), true];
  }
}
