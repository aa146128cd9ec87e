/**
 * What a session needs of a transport, TCP, unix socket, WebSocket or message port: two directions
 * of bytes, each with back-pressure. One session implementation runs over all of them.
 *
 * @module
 */

import type { FilePart } from "../block/types.ts";

/** The reader's side: what a stream calls. */
export interface ByteSink {
  /**
   * Bytes of the peer, in order; a border between two calls means nothing. Returns whether the sink
   * keeps a reference to them: if not, the stream may fill the same buffer again.
   */
  onData(bytes: Uint8Array): boolean;
  /** The peer sends no more, or the stream is gone. Called once at most, and last. */
  onEnd(reason: StreamEnd): void;
}

/**
 * How a direction ended: `finished`, the peer shut its side down and may still read; `closed`,
 * nothing can be written either.
 */
export type StreamEnd = { kind: "finished" } | { kind: "closed"; message: string };

/** A connection, whatever carries it. */
export interface ByteStream {
  /** Who is there, for messages. */
  readonly peer: string;
  /** Starts delivery. Once. */
  start(sink: ByteSink): void;
  /**
   * Sends bytes; the stream may hold the buffer until it returned, or the promise resolved. One
   * write at a time. Rejects (or throws) when the connection broke.
   */
  write(bytes: Uint8Array): void | Promise<void>;
  /**
   * The same, and the bytes' whole buffer goes with them, where that saves a copy. One like it comes
   * back to `onReturned` when the peer is done with it.
   */
  writeAway?(
    bytes: Uint8Array<ArrayBuffer>,
    onReturned: (buffer: ArrayBuffer) => void,
  ): void | Promise<void>;
  /**
   * Sends a head and, behind it, a part of a file that is not read here, as far as both are taken
   * at once, while nothing is being written. How many bytes were: the rest is to be written. Absent
   * where the stream can't.
   */
  sendFile?: (head: Uint8Array<ArrayBuffer>, part: FilePart & { length: number }) => number;
  /** Stops delivery after the current call of `onData`: the peer's bytes back up on its side. */
  pause(): void;
  /** Goes on with delivery. */
  resume(): void;
  /** Closes both directions once what was written is under way. May be repeated. */
  close(reason: string): void;
  /**
   * From now on everything is TLS, in both directions; only where the stream can be secured. To be
   * called while it is paused and nothing is being written: it resumes.
   */
  startTls?(): void;
}
