/**
 * NBD for tests: bytes written as in the protocol's document, streams without a network, and a
 * session that is fed by hand.
 */
import type { BlockExport, ExportDirectory } from "../../src/block/export.ts";
import type { ByteSink, ByteStream } from "../../src/nbd/byte_stream.ts";
import { concatBytes } from "../../src/nbd/codec.ts";
import { NbdSession, type NbdSessionOptions } from "../../src/nbd/session.ts";
import { directoryOf } from "./memory_export.ts";

/** Bytes of hexadecimal digits and 'quoted' ASCII; white space means nothing. */
export function hex(...texts: string[]): Uint8Array<ArrayBuffer> {
  const bytes: number[] = [];
  for (const [token] of texts.join(" ").matchAll(/'[^']*'|\S+/g)) {
    if (token.startsWith("'")) {
      for (const char of token.slice(1, -1)) bytes.push(char.charCodeAt(0));
    } else {
      if (!/^([0-9a-f]{2})+$/i.test(token)) throw new TypeError(`not hexadecimal: ${token}`);
      for (let at = 0; at < token.length; at += 2) {
        bytes.push(parseInt(token.slice(at, at + 2), 16));
      }
    }
  }
  return Uint8Array.from(bytes);
}

/** The other way, for messages of failed tests: 4 bytes a group. */
export function toHex(bytes: Uint8Array): string {
  const digits = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return (digits.match(/.{1,8}/g) ?? []).join(" ");
}

/** A number as so many big-endian bytes, in hexadecimal. */
export function be(byteCount: number, value: number | bigint): string {
  return BigInt.asUintN(8 * byteCount, BigInt(value)).toString(16).padStart(2 * byteCount, "0");
}

/** A client's option. */
export function option(type: number, data = new Uint8Array(0)): Uint8Array<ArrayBuffer> {
  return concatBytes([hex("'IHAVEOPT'", be(4, type), be(4, data.length)), data]);
}

/** A client's request, compact unless `isExtended`. */
export function request(
  { type, flags = 0, cookie = 1, offset = 0, length = 0, payload, isExtended = false }: {
    type: number;
    flags?: number;
    cookie?: number | bigint;
    offset?: number | bigint;
    length?: number | bigint;
    payload?: Uint8Array;
    isExtended?: boolean;
  },
): Uint8Array<ArrayBuffer> {
  const header = hex(
    isExtended ? "21e41c71" : "25609513",
    be(2, flags),
    be(2, type),
    be(8, cookie),
    be(8, offset),
    be(isExtended ? 8 : 4, payload?.length ?? length),
  );
  return payload === undefined ? header : concatBytes([header, payload]);
}

/** Client flags FIXED_NEWSTYLE and NO_ZEROES. */
export const CLIENT_FLAGS = hex("00000003");

/** NBD_OPT_GO, or NBD_OPT_INFO, of the default export, asking for nothing in particular. */
export function go(type = 7): Uint8Array<ArrayBuffer> {
  return option(type, hex("00000000 0000"));
}

/** NBD_OPT_SET_META_CONTEXT (or LIST) with these queries. */
export function metaContext(type: number, name: string, ...queries: string[]) {
  const counted = (text: string) => `${be(4, text.length)} ${text === "" ? "" : `'${text}'`}`;
  return option(type, hex(counted(name), be(4, queries.length), ...queries.map(counted)));
}

/** A stream whose other end is the test. */
export class FedStream implements ByteStream {
  readonly peer = "test";
  readonly sent: Uint8Array[] = [];
  isPaused = false;
  closedWith: string | null = null;
  /** While true, writes are not finished; `release` finishes what waits. */
  isHolding = false;
  /** Write calls so far. */
  writeCount = 0;
  #sink: ByteSink | null = null;
  #held: (() => void)[] = [];

  start(sink: ByteSink): void {
    this.#sink = sink;
  }

  /**
   * Bytes of the peer. As a real stream does, overwrites the buffer afterwards if it was not kept.
   */
  feed(bytes: Uint8Array): void {
    const buffer = bytes.slice();
    if (this.#sink?.onData(buffer) === false) buffer.fill(0xee);
  }

  /** The peer shuts down its sending side, or vanishes. */
  finish(closed?: string): void {
    this.#sink?.onEnd(
      closed === undefined ? { kind: "finished" } : { kind: "closed", message: closed },
    );
  }

  write(bytes: Uint8Array): void | Promise<void> {
    this.writeCount++;
    this.sent.push(bytes.slice());
    if (this.isHolding) return new Promise((resolve) => this.#held.push(resolve));
  }

  release(): void {
    for (const resolve of this.#held.splice(0)) resolve();
  }

  pause(): void {
    this.isPaused = true;
  }

  resume(): void {
    this.isPaused = false;
  }

  close(reason: string): void {
    this.closedWith ??= reason;
  }

  /** What was sent since the last call. */
  take(): Uint8Array<ArrayBuffer> {
    return concatBytes(this.sent.splice(0));
  }
}

/** A session over a FedStream. */
export function startSession(
  exports: BlockExport | ExportDirectory,
  options: Partial<NbdSessionOptions> = {},
): { stream: FedStream; session: NbdSession } {
  const stream = new FedStream();
  const directory = "find" in exports ? exports : directoryOf(exports);
  // A FedStream feeds on while it is paused: a turn never ends here unless a test wants it to.
  const session = new NbdSession(stream, { directory, turnMs: Infinity, ...options });
  session.start();
  return { stream, session };
}

/** A session in its transmission phase, its handshake's output taken. */
export function startTransmission(
  exports: BlockExport | ExportDirectory,
  { style = "structured", contexts = [], ...options }: Partial<NbdSessionOptions> & {
    style?: "simple" | "structured" | "extended";
    contexts?: string[];
  } = {},
): { stream: FedStream; session: NbdSession } {
  const started = startSession(exports, options);
  const { stream } = started;
  stream.feed(CLIENT_FLAGS);
  if (style === "structured") stream.feed(option(8));
  if (style === "extended") stream.feed(option(11));
  if (contexts.length > 0) stream.feed(metaContext(10, "", ...contexts));
  stream.feed(go());
  stream.take();
  return started;
}

/** Two streams that are each other's peer, in memory. Delivery is a microtask later. */
export function streamPair(): [ByteStream, ByteStream] {
  const left = new PairedStream();
  const right = new PairedStream();
  left.peers = [right];
  right.peers = [left];
  return [left, right];
}

class PairedStream implements ByteStream {
  readonly peer = "pair";
  /** The other one. */
  peers: PairedStream[] = [];
  #sink: ByteSink | null = null;
  #arrived: { bytes: Uint8Array; taken: () => void }[] = [];
  #isPaused = false;
  #isClosed = false;

  start(sink: ByteSink): void {
    this.#sink = sink;
    this.deliver();
  }

  write(bytes: Uint8Array): Promise<void> {
    if (this.#isClosed) return Promise.reject(new Error("closed"));
    const copy = bytes.slice();
    return new Promise((resolve) => {
      for (const peer of this.peers) peer.arrive(copy, resolve);
    });
  }

  pause(): void {
    this.#isPaused = true;
  }

  resume(): void {
    if (!this.#isPaused) return;
    this.#isPaused = false;
    queueMicrotask(() => this.deliver());
  }

  close(reason: string): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    for (const { taken } of this.#arrived.splice(0)) taken();
    for (const peer of this.peers) queueMicrotask(() => peer.peerClosed(reason));
  }

  arrive(bytes: Uint8Array, taken: () => void): void {
    if (this.#isClosed) return taken();
    this.#arrived.push({ bytes, taken });
    queueMicrotask(() => this.deliver());
  }

  deliver(): void {
    while (this.#sink !== null && !this.#isPaused && !this.#isClosed) {
      const next = this.#arrived.shift();
      if (next === undefined) return;
      this.#sink.onData(next.bytes);
      next.taken();
    }
  }

  peerClosed(reason: string): void {
    if (this.#isClosed) return;
    this.#isPaused = false;
    this.deliver();
    this.#isClosed = true;
    this.#sink?.onEnd({ kind: "closed", message: reason });
  }
}

/** A seeded generator of numbers in [0, 1): mulberry32. */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** Bytes that differ from place to place and hold no long run of zeroes. */
export function pattern(length: number, seed = 1): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; at++) bytes[at] = ((at * 31) ^ (at >> 8) ^ (seed * 97)) & 0xff | 1;
  return bytes;
}
