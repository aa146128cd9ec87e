/**
 * Zeroes for drivers that can only write: one constant buffer, bounded requests, and pauses, so
 * that a request of any length neither allocates nor keeps the isolate from its other work.
 *
 * @module
 */

import { IoVector } from "./io_vector.ts";
import type { MaybePromise } from "./types.ts";

const BUFFER_BYTES = 64 * 1024;
/** One write: a vector that repeats the buffer. */
const PIECE_BYTES = 1024 * 1024;
/** After this much the event loop gets a turn. */
const TURN_BYTES = 8 * PIECE_BYTES;

/** Never written: shared by all. */
const PIECE = new IoVector(
  new Array<Uint8Array>(PIECE_BYTES / BUFFER_BYTES).fill(new Uint8Array(BUFFER_BYTES)),
);

/** A vector of `length` zero bytes, at most 1 MiB. Never to be written. */
export function zeroVector(length: number): IoVector {
  return PIECE.slice(0, length);
}

/** What `writeZeroesByWriting` takes. */
export interface ZeroWriteOptions {
  /** First byte. */
  offset: number;
  /** Bytes, any number. */
  length: number;
  /** Writes one piece of at most 1 MiB; called in order, one piece at a time. */
  write: (offset: number, zeroes: IoVector) => MaybePromise<void>;
}

/** Writes a range full of zeroes, piece by piece. */
export function writeZeroesByWriting(options: ZeroWriteOptions): MaybePromise<void> {
  const end = options.offset + options.length;
  const turnEnd = Math.min(end, options.offset + TURN_BYTES);
  let at = options.offset;
  while (at < turnEnd) {
    const length = Math.min(PIECE_BYTES, turnEnd - at);
    const written = options.write(at, zeroVector(length));
    at += length;
    if (written instanceof Promise) return writeRest(written, at, end, options.write);
  }
  if (at < end) return writeRest(nextTurn(), at, end, options.write);
}

async function writeRest(
  before: Promise<void>,
  offset: number,
  end: number,
  write: ZeroWriteOptions["write"],
): Promise<void> {
  await before;
  let inTurn = 0;
  for (let at = offset; at < end; at += PIECE_BYTES) {
    const length = Math.min(PIECE_BYTES, end - at);
    await write(at, zeroVector(length));
    inTurn += length;
    if (inTurn >= TURN_BYTES) {
      await nextTurn();
      inTurn = 0;
    }
  }
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => globalThis.setImmediate(resolve));
}
