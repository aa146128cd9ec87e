/**
 * The sockets behind accepted connections, for what this runtime's connections lack: sending from
 * a file, and a larger send buffer. By libc, on 64-bit Linux, with the permission `--allow-ffi`;
 * without it connections work all the same.
 *
 * The runtime does not tell a connection's descriptor. Between accepting and the next accept of the
 * same listener there is one open socket of its address that no connection known here has: that is
 * it. Where there are several (one that is closed but not gone yet, another listener of the same
 * path), none is taken. A descriptor is used only as long as its connection is not closed, so that
 * it can't have become another one's.
 *
 * @module
 */

import { O_CLOEXEC, openLibrary } from "../../block/drivers/libc.ts";
import type { FilePart } from "../../block/types.ts";
import { limits } from "../../limits.ts";

const SYMBOLS = {
  open: { parameters: ["buffer", "i32"], result: "i32" },
  close: { parameters: ["i32"], result: "i32" },
  getdents64: { parameters: ["i32", "buffer", "usize"], result: "isize" },
  getsockname: { parameters: ["i32", "buffer", "buffer"], result: "i32" },
  getpeername: { parameters: ["i32", "buffer", "buffer"], result: "i32" },
  setsockopt: { parameters: ["i32", "i32", "i32", "buffer", "u32"], result: "i32" },
  send: { parameters: ["i32", "buffer", "usize", "i32"], result: "isize" },
  sendfile: { parameters: ["i32", "i32", "buffer", "usize"], result: "isize" },
} as const;

const O_DIRECTORY = Deno.build.arch === "aarch64" ? 0o40000 : 0o200000;
const AF_UNIX = 1;
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_MORE = 0x8000;
/** Of a struct sockaddr_storage. */
const ADDRESS_BYTES = 128;

const encoder = new TextEncoder();
const DESCRIPTORS = encoder.encode("/proc/self/fd\0");

type Libc = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];

/** What can be done with the socket of a connection as long as that is open. */
export class AcceptedSocket {
  readonly #libc: Libc;
  readonly #fd: number;
  readonly #onReleased: () => void;
  readonly #offset = new BigInt64Array(1);

  /** Made by AcceptedSockets alone. */
  constructor(libc: Libc, fd: number, onReleased: () => void) {
    this.#libc = libc;
    this.#fd = fd;
    this.#onReleased = onReleased;
  }

  /** See ByteStream.sendFile. */
  sendFile(head: Uint8Array<ArrayBuffer>, part: FilePart & { length: number }): number {
    const flags = MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE;
    const sent = Number(this.#libc.send(this.#fd, head, BigInt(head.length), flags));
    if (sent < head.length) return Math.max(sent, 0);
    // The runtime's sockets never wait.
    this.#offset[0] = BigInt(part.offset);
    const count = this.#libc.sendfile(this.#fd, part.fd, this.#offset, BigInt(part.length));
    return sent + Math.max(Number(count), 0);
  }

  /** The connection is about to be closed: nothing more is done with it. Once. */
  release(): void {
    this.#onReleased();
  }
}

/** The sockets of one listener's connections. */
export class AcceptedSockets {
  /** Null once it turned out that there are none to be had. */
  #library: Deno.DynamicLibrary<typeof SYMBOLS> | null = null;
  #isUnavailable = false;
  readonly #open = new Set<number>();
  #isListening = true;
  readonly #address = new Uint8Array(ADDRESS_BYTES);
  readonly #addressLength = new Uint32Array(1);

  /** The socket of a connection that was accepted last and is open; null where it is not known. */
  find(conn: Deno.Conn): AcceptedSocket | null {
    this.#library ??= this.#openLibrary();
    if (this.#library === null) return null;
    const { symbols } = this.#library;
    const found = this.#descriptors(symbols).filter((fd) =>
      !this.#open.has(fd) && this.#isOf(symbols, fd, conn)
    );
    const [fd] = found;
    if (fd === undefined || found.length > 1) return null;
    this.#open.add(fd);
    if (conn.localAddr.transport === "unix") enlarge(symbols, fd);
    return new AcceptedSocket(symbols, fd, () => {
      this.#open.delete(fd);
      this.#closeIfUnused();
    });
  }

  /** No more connections come. */
  end(): void {
    this.#isListening = false;
    this.#closeIfUnused();
  }

  #closeIfUnused(): void {
    if (this.#isListening || this.#open.size > 0) return;
    this.#library?.close();
    this.#library = null;
  }

  #openLibrary(): Deno.DynamicLibrary<typeof SYMBOLS> | null {
    if (this.#isUnavailable) return null;
    const opened = openLibrary((path) => Deno.dlopen(path, SYMBOLS));
    if ("library" in opened) return opened.library;
    this.#isUnavailable = true;
    return null;
  }

  /** All descriptors of this process. */
  #descriptors(libc: Libc): number[] {
    const directory = libc.open(DESCRIPTORS, O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) return [];
    const found: number[] = [];
    const bytes = new Uint8Array(32 * 1024);
    const view = new DataView(bytes.buffer);
    const decoder = new TextDecoder();
    for (;;) {
      const count = Number(libc.getdents64(directory, bytes, BigInt(bytes.length)));
      if (count <= 0) break;
      // struct dirent64: d_ino 8, d_off 8, d_reclen 2, d_type 1, d_name
      for (let at = 0; at < count; at += view.getUint16(at + 16, true)) {
        const fd = Number(decoder.decode(bytes.subarray(at + 19, bytes.indexOf(0, at + 19))));
        if (Number.isInteger(fd) && fd !== directory) found.push(fd);
      }
    }
    libc.close(directory);
    return found;
  }

  /** Whether a descriptor is a socket that can be the connection's. */
  #isOf(libc: Libc, fd: number, conn: Deno.Conn): boolean {
    const { localAddr, remoteAddr } = conn;
    const own = this.#addressBy(libc.getsockname, fd);
    if (own === null) return false;
    if (localAddr.transport === "unix") {
      if (own.family !== AF_UNIX || own.path !== localAddr.path) return false;
      // The listener itself has no peer.
      return this.#addressBy(libc.getpeername, fd) !== null;
    }
    if (own.port !== (localAddr as Deno.NetAddr).port) return false;
    return this.#addressBy(libc.getpeername, fd)?.port === (remoteAddr as Deno.NetAddr).port;
  }

  #addressBy(
    ask: Libc["getsockname"],
    fd: number,
  ): { family: number; port: number; path: string } | null {
    this.#addressLength[0] = ADDRESS_BYTES;
    if (ask(fd, this.#address, this.#addressLength) !== 0) return null;
    const view = new DataView(this.#address.buffer);
    const length = Math.min(this.#addressLength[0], ADDRESS_BYTES);
    const path = new TextDecoder().decode(this.#address.subarray(2, length)).replace(/\0.*$/s, "");
    return { family: view.getUint16(0, true), port: view.getUint16(2), path };
  }
}

/** A unix socket holds 208 KiB before it wants to be waited for; the system may allow more. */
function enlarge(libc: Libc, fd: number): void {
  const value = new Uint32Array([limits.nbdUnixSendBytes]);
  libc.setsockopt(fd, SOL_SOCKET, SO_SNDBUF, value, value.byteLength);
}
