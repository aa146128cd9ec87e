/**
 * Files by libc: what the runtime's file API lacks (holes, zeroed ranges, image locks, vectored I/O
 * into shared memory in one call), and what would take longer to load than to do there. Needs the
 * permission `--allow-ffi`, 64-bit Linux and glibc.
 *
 * A call says that it did not do its work, or not all of it; `lastError` then has the reason.
 *
 * Opening the library takes milliseconds, since the runtime compiles a way into each function; so
 * all files of a thread share one LibC, which goes with the last of them.
 *
 * @module
 */

import type { FileStat, OpenFileOptions } from "./open_file.ts";

/**
 * Where glibc is, most general first: by name it needs the permission for every library, by path
 * that for this one.
 */
export const LIBC_PATHS: readonly string[] = [
  "libc.so.6",
  `/lib/${Deno.build.arch}-linux-gnu/libc.so.6`,
  "/lib64/libc.so.6",
];

const SYMBOLS = {
  open: { parameters: ["buffer", "i32", "u32"], result: "i32" },
  close: { parameters: ["i32"], result: "i32" },
  statx: { parameters: ["i32", "buffer", "i32", "u32", "buffer"], result: "i32" },
  ftruncate: { parameters: ["i32", "i64"], result: "i32" },
  fdatasync: { parameters: ["i32"], result: "i32" },
  pread: { parameters: ["i32", "buffer", "usize", "i64"], result: "isize" },
  pwrite: { parameters: ["i32", "buffer", "usize", "i64"], result: "isize" },
  preadv: { parameters: ["i32", "buffer", "i32", "i64"], result: "isize" },
  pwritev: { parameters: ["i32", "buffer", "i32", "i64"], result: "isize" },
  fallocate: { parameters: ["i32", "i32", "i64", "i64"], result: "i32" },
  lseek: { parameters: ["i32", "i64", "i32"], result: "i64" },
  copy_file_range: {
    parameters: ["i32", "buffer", "i32", "buffer", "usize", "u32"],
    result: "isize",
  },
  fcntl: { parameters: ["i32", "i32", "buffer"], result: "i32" },
  __errno_location: { parameters: [], result: "pointer" },
  // The runtime's own ways from a pointer to what it points to, and from a buffer to its address,
  // need the permission for every library. memcpy reads the one and returns the other.
  peek: { name: "memcpy", parameters: ["buffer", "pointer", "usize"], result: "pointer" },
  address: { name: "memcpy", parameters: ["buffer", "buffer", "usize"], result: "u64" },
} as const;

/** Those that run on threads of the runtime's. Opened by the first that is called. */
const SYMBOLS_ASIDE = {
  fdatasync: { parameters: ["i32"], result: "i32", nonblocking: true },
} as const;

/** Those that show files in memory. Opened by the first that is called. */
const SYMBOLS_MAPPING = {
  mmap: { parameters: ["u64", "usize", "i32", "i32", "i32", "i64"], result: "u64" },
  madvise: { parameters: ["buffer", "usize", "i32"], result: "i32" },
} as const;

const O_RDONLY = 0;
const O_RDWR = 2;
const O_CREAT = 0o100;
const O_EXCL = 0o200;
const O_NONBLOCK = 0o4000;
const O_NOFOLLOW = Deno.build.arch === "aarch64" ? 0o100000 : 0o400000;
const O_DIRECT = Deno.build.arch === "aarch64" ? 0o200000 : 0o40000;
/** An open file is nothing to programs that are started. */
export const O_CLOEXEC = 0o2000000;

const AT_EMPTY_PATH = 0x1000;
/** STATX_TYPE, STATX_INO, STATX_SIZE, STATX_BLOCKS. */
const STATX_MASK = 0x701;
const STATX_BYTES = 256;
const S_IFMT = 0o170000;
const S_IFREG = 0o100000;

const PROT_READ_WRITE = 3;
const MAP_PRIVATE = 2;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const MADV_WILLNEED = 3;
const MADV_POPULATE_READ = 22;

const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
const FALLOC_FL_ZERO_RANGE = 16;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;
const ENXIO = 6;

/** IOV_MAX of Linux. */
const VECTOR_COUNT_MAX = 1024;
/** Bytes of a struct iovec: pointer and length. */
const VECTOR_BYTES = 16;
/** Bytes of a struct flock: l_type 2, l_whence 2, pad 4, l_start 8, l_len 8, l_pid 4, pad 4. */
const FLOCK_BYTES = 32;

/** Errors that are told apart here, by their numbers on Linux, with strerror(3)'s texts. */
const ERRORS: Readonly<Record<number, readonly [code: string, text: string]>> = {
  1: ["EPERM", "Operation not permitted"],
  2: ["ENOENT", "No such file or directory"],
  5: ["EIO", "Input/output error"],
  9: ["EBADF", "Bad file descriptor"],
  12: ["ENOMEM", "Cannot allocate memory"],
  13: ["EACCES", "Permission denied"],
  16: ["EBUSY", "Device or resource busy"],
  17: ["EEXIST", "File exists"],
  20: ["ENOTDIR", "Not a directory"],
  21: ["EISDIR", "Is a directory"],
  22: ["EINVAL", "Invalid argument"],
  23: ["ENFILE", "Too many open files in system"],
  24: ["EMFILE", "Too many open files"],
  26: ["ETXTBSY", "Text file busy"],
  27: ["EFBIG", "File too large"],
  28: ["ENOSPC", "No space left on device"],
  30: ["EROFS", "Read-only file system"],
  36: ["ENAMETOOLONG", "File name too long"],
  40: ["ELOOP", "Too many levels of symbolic links"],
  95: ["ENOTSUP", "Operation not supported"],
  110: ["ETIMEDOUT", "Connection timed out"],
  122: ["EDQUOT", "Disk quota exceeded"],
};

/** A run of a file, from the offset asked for. */
export interface FileRun {
  /** False: a hole, which reads as zeroes. */
  isData: boolean;
  /** Where the run ends; Infinity for a hole up to the file's end. */
  end: number;
}

/** Opens the C library by `open` where it is and may be opened, or says why that can't be. */
export function openLibrary<T>(
  open: (path: string) => T,
): { library: T } | { unavailable: string } {
  if (Deno.build.os !== "linux") return { unavailable: `no binding for ${Deno.build.os}` };
  let unavailable = "not permitted (--allow-ffi)";
  for (const path of LIBC_PATHS) {
    // Asked first: dlopen would ask the person at the terminal.
    if (Deno.permissions.querySync({ name: "ffi", path }).state !== "granted") continue;
    try {
      return { library: open(path) };
    } catch (error) {
      unavailable = error instanceof Error ? error.message : String(error);
    }
  }
  return { unavailable };
}

/** The calls of libc that this runtime lacks, made on the calling thread. */
export class LibC {
  readonly #path: string;
  readonly #library: Deno.DynamicLibrary<typeof SYMBOLS>;
  #aside: Deno.DynamicLibrary<typeof SYMBOLS_ASIDE> | null = null;
  #mapping: Deno.DynamicLibrary<typeof SYMBOLS_MAPPING> | null = null;
  readonly #vector = new Uint32Array(VECTOR_COUNT_MAX * VECTOR_BYTES / 4);
  /** Addresses of shared buffers, which can neither move nor be detached. */
  readonly #addresses = new WeakMap<SharedArrayBuffer, bigint>();

  /** The one that is open. */
  static #shared: LibC | null = null;
  /** How many opened this one and have not closed it. */
  #users = 1;

  private constructor(path: string) {
    this.#path = path;
    this.#library = Deno.dlopen(path, SYMBOLS);
  }

  /** Opens the library, or says why it can't. */
  static open(): LibC | { unavailable: string } {
    if (LibC.#shared !== null) {
      LibC.#shared.#users++;
      return LibC.#shared;
    }
    const opened = openLibrary((path) => new LibC(path));
    if ("unavailable" in opened) return opened;
    LibC.#shared = opened.library;
    return opened.library;
  }

  /** Unloads the library, if nobody else has it open; no call of the caller's may follow. */
  close(): void {
    if (--this.#users > 0) return;
    LibC.#shared = null;
    this.#library.close();
    this.#aside?.close();
    this.#mapping?.close();
  }

  /** Opens or makes a regular file; -1 where that fails. */
  openFile({ path, isReadOnly, createMode, isDirect }: OpenFileOptions): number {
    const flags = (isReadOnly ? O_RDONLY : O_RDWR) | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC |
      (createMode === undefined ? 0 : O_CREAT | O_EXCL) | (isDirect ? O_DIRECT : 0);
    const name = new TextEncoder().encode(`${path}\0`);
    return this.#library.symbols.open(name, flags, createMode ?? 0);
  }

  /** Closes a file. */
  closeFile(fd: number): void {
    this.#library.symbols.close(fd);
  }

  /** What the system says about an open file, null where it says nothing. */
  stat(fd: number): FileStat | null {
    const bytes = new Uint8Array(STATX_BYTES);
    const { statx } = this.#library.symbols;
    if (statx(fd, new Uint8Array(1), AT_EMPTY_PATH, STATX_MASK, bytes) !== 0) return null;
    const view = new DataView(bytes.buffer);
    const [inode, size, blocks] = [32, 40, 48].map((at) => Number(view.getBigUint64(at, true)));
    const device = `${view.getUint32(136, true)}:${view.getUint32(140, true)}`;
    return {
      kind: (view.getUint16(28, true) & S_IFMT) === S_IFREG ? "a file" : "no regular file",
      sizeBytes: size ?? 0,
      allocatedBytes: (blocks ?? 0) * 512,
      identity: `${device}:${inode}`,
    };
  }

  /** Whether a file has that size now. */
  truncate(fd: number, sizeBytes: number): boolean {
    return this.#library.symbols.ftruncate(fd, BigInt(sizeBytes)) === 0;
  }

  /** fdatasync(2): whether it said that all is on the medium. */
  flush(fd: number): boolean {
    return this.#library.symbols.fdatasync(fd) === 0;
  }

  /** The same on another thread. The reason of a failure is not known. */
  async flushAside(fd: number): Promise<boolean> {
    return await this.#symbolsAside().fdatasync(fd) === 0;
  }

  /** Why the last call on this thread failed, with `code` as in errno(3). */
  lastError(): Error & { code: string } {
    const errno = this.#errno();
    const [code, text] = ERRORS[errno] ?? ["EIO", "Unknown error"];
    return Object.assign(new Error(`${text} (os error ${errno})`), { code });
  }

  /** Reads at `offset`. The count read; below that asked for: not all, for whatever reason. */
  read(fd: number, buffers: readonly Uint8Array[], offset: number): number {
    const [only] = buffers;
    if (buffers.length === 1 && only !== undefined) {
      return Math.max(this.readOne(fd, only, offset), 0);
    }
    if (!this.#fillVector(buffers)) return 0;
    const { preadv } = this.#library.symbols;
    return Math.max(Number(preadv(fd, this.#vector, buffers.length, BigInt(offset))), 0);
  }

  /** Writes at `offset`. The count written; below that given: not all, for whatever reason. */
  write(fd: number, buffers: readonly Uint8Array[], offset: number): number {
    const [only] = buffers;
    if (buffers.length === 1 && only !== undefined) {
      return Math.max(this.writeOne(fd, only, offset), 0);
    }
    if (!this.#fillVector(buffers)) return 0;
    const { pwritev } = this.#library.symbols;
    return Math.max(Number(pwritev(fd, this.#vector, buffers.length, BigInt(offset))), 0);
  }

  /** As `read`, into one buffer; -1 for a failure. */
  readOne(fd: number, buffer: Uint8Array, offset: number): number {
    const { pread } = this.#library.symbols;
    return Number(pread(fd, toView(buffer), BigInt(buffer.length), BigInt(offset)));
  }

  /** As `write`, from one buffer; -1 for a failure. */
  writeOne(fd: number, buffer: Uint8Array, offset: number): number {
    const { pwrite } = this.#library.symbols;
    return Number(pwrite(fd, toView(buffer), BigInt(buffer.length), BigInt(offset)));
  }

  /** Frees a range: it reads as zeroes. Whether that worked. */
  punchHole(fd: number, offset: number, length: number): boolean {
    return this.#allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
  }

  /** Makes a range read as zeroes and keeps it allocated. Whether that worked. */
  zeroRange(fd: number, offset: number, length: number): boolean {
    return this.#allocate(fd, FALLOC_FL_ZERO_RANGE, offset, length);
  }

  /** Allocates what is a hole in a range. Whether that worked. */
  allocate(fd: number, offset: number, length: number): boolean {
    return this.#allocate(fd, 0, offset, length);
  }

  /**
   * Copies within the kernel, sharing the blocks where the file system can. The count copied; below
   * that asked for: not all, for whatever reason.
   */
  copyRange(
    source: { fd: number; offset: number },
    target: { fd: number; offset: number },
    length: number,
  ): number {
    const from = new BigInt64Array([BigInt(source.offset)]);
    const to = new BigInt64Array([BigInt(target.offset)]);
    const copy = this.#library.symbols.copy_file_range;
    for (let done = 0; done < length;) {
      const count = Number(copy(source.fd, from, target.fd, to, BigInt(length - done), 0));
      if (count <= 0) return done;
      done += count;
    }
    return length;
  }

  /**
   * Lays what the file has from `offset` on over whole pages of memory, which must be those of a
   * WebAssembly memory. Whether that worked. Writes there don't reach the file. Where the file has
   * nothing, reading ends the process: see `populate`.
   */
  map(fd: number, offset: number, pages: Uint8Array): boolean {
    return this.#map(pages, MAP_PRIVATE | MAP_FIXED, fd, offset);
  }

  /** Has whole pages that a file was laid over read from the medium, and does not wait for it. */
  readAhead(pages: Uint8Array): void {
    this.#symbolsMapping().madvise(toView(pages), BigInt(pages.length), MADV_WILLNEED);
  }

  /** Makes pages that `map` laid a file over memory like any other again: zeroes. */
  unmap(pages: Uint8Array): void {
    this.#map(pages, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0);
  }

  /** Loads whole pages that a file was laid over. False where they can't be read. */
  populate(pages: Uint8Array): boolean {
    const { madvise } = this.#symbolsMapping();
    return madvise(toView(pages), BigInt(pages.length), MADV_POPULATE_READ) === 0;
  }

  /**
   * Whether `offset` holds data or is in a hole, and how far; null where nobody can say. One call
   * less where data is expected and found.
   */
  runAt(fd: number, offset: number, expectsData = false): FileRun | null {
    const { lseek } = this.#library.symbols;
    if (expectsData) {
      const hole = Number(lseek(fd, BigInt(offset), SEEK_HOLE));
      if (hole > offset) return { isData: true, end: hole };
    }
    const data = Number(lseek(fd, BigInt(offset), SEEK_DATA));
    if (data < 0) return this.#errno() === ENXIO ? { isData: false, end: Infinity } : null;
    if (data > offset) return { isData: false, end: data };
    const hole = Number(lseek(fd, BigInt(offset), SEEK_HOLE));
    return hole > offset ? { isData: true, end: hole } : null;
  }

  /**
   * Takes a shared lock on one byte of the open file description. Several holders of one byte get
   * along: who looks for them asks `isLocked`. False: this file can't be locked.
   */
  lockByte(fd: number, offset: number): boolean {
    return this.#lock(fd, F_OFD_SETLK, F_RDLCK, offset) !== null;
  }

  /** Whether another open file description holds a lock on the byte. */
  isLocked(fd: number, offset: number): boolean {
    const type = this.#lock(fd, F_OFD_GETLK, F_WRLCK, offset);
    return type !== null && type !== F_UNLCK;
  }

  #allocate(fd: number, mode: number, offset: number, length: number): boolean {
    return this.#library.symbols.fallocate(fd, mode, BigInt(offset), BigInt(length)) === 0;
  }

  /** The type that the call left in its struct flock, null if it failed. */
  #lock(fd: number, command: number, type: number, offset: number): number | null {
    const flock = new DataView(new ArrayBuffer(FLOCK_BYTES));
    flock.setInt16(0, type, true);
    flock.setBigInt64(8, BigInt(offset), true);
    flock.setBigInt64(16, 1n, true);
    const buffer = new Uint8Array(flock.buffer);
    if (this.#library.symbols.fcntl(fd, command, buffer) !== 0) return null;
    return flock.getInt16(0, true);
  }

  #symbolsAside(): Deno.DynamicLibrary<typeof SYMBOLS_ASIDE>["symbols"] {
    this.#aside ??= Deno.dlopen(this.#path, SYMBOLS_ASIDE);
    return this.#aside.symbols;
  }

  #map(pages: Uint8Array, flags: number, fd: number, offset: number): boolean {
    const view = toView(pages);
    const address = this.#library.symbols.address(view, view, 0n);
    const { mmap } = this.#symbolsMapping();
    const length = BigInt(pages.length);
    return mmap(address, length, PROT_READ_WRITE, flags, fd, BigInt(offset)) === address;
  }

  #symbolsMapping(): Deno.DynamicLibrary<typeof SYMBOLS_MAPPING>["symbols"] {
    this.#mapping ??= Deno.dlopen(this.#path, SYMBOLS_MAPPING);
    return this.#mapping.symbols;
  }

  #errno(): number {
    const { __errno_location, peek } = this.#library.symbols;
    const value = new Int32Array(1);
    peek(value, __errno_location(), BigInt(value.byteLength));
    return value[0] ?? 0;
  }

  /**
   * Writes the iovec array. False where a buffer is not in shared memory, or there are too many.
   */
  #fillVector(buffers: readonly Uint8Array[]): boolean {
    if (buffers.length > VECTOR_COUNT_MAX) return false;
    let at = 0;
    let memory: ArrayBufferLike | null = null;
    let low = 0;
    let high = 0;
    for (const buffer of buffers) {
      if (buffer.buffer !== memory) {
        memory = buffer.buffer;
        if (!(memory instanceof SharedArrayBuffer)) return false;
        const address = this.#addressOf(memory);
        low = Number(address & 0xffff_ffffn);
        high = Number(address >> 32n);
      }
      const sum = low + buffer.byteOffset;
      this.#vector[at] = sum;
      this.#vector[at + 1] = high + Math.floor(sum / 2 ** 32);
      this.#vector[at + 2] = buffer.length;
      this.#vector[at + 3] = 0;
      at += VECTOR_BYTES / 4;
    }
    return true;
  }

  #addressOf(memory: SharedArrayBuffer): bigint {
    let address = this.#addresses.get(memory);
    if (address === undefined) {
      const view = toView(new Uint8Array(memory));
      address = this.#library.symbols.address(view, view, 0n);
      this.#addresses.set(memory, address);
    }
    return address;
  }
}

/** The binding takes views of shared memory; its types know only of others. */
function toView(buffer: Uint8Array<ArrayBufferLike>): Uint8Array<ArrayBuffer> {
  return buffer as Uint8Array<ArrayBuffer>;
}
