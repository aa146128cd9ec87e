/**
 * Copies pieces of one node to another for jobs: what reads as zeroes is written as zeroes, without
 * being read where the source says so, and found where it is data.
 *
 * @module
 */

import { isZero } from "../../wasm/kernels.ts";
import { BlockError, toBlockError } from "../errors.ts";
import { DiskStatus } from "../image/chain.ts";
import { IoVector } from "../io_vector.ts";
import type { BlockNode } from "../node.ts";
import { settle, type Steps } from "../steps.ts";
import { type ByteRange, REQ_MAY_UNMAP, STATUS_ALLOCATED, STATUS_ZERO } from "../types.ts";

/** Data that is moved at a time, at most. */
export const COPY_BYTES = 1024 * 1024;
/** Zeroes that are written at a time, at most: hardly anything is moved. */
export const ZERO_BYTES = 64 * 1024 * 1024;

const SPARE_BUFFERS = 16;

/** A copy that failed, at the source or at the target. */
export class TransferError extends BlockError {
  /** `cause`: what failed. */
  constructor(cause: BlockError, readonly isRead: boolean) {
    super(cause.code, cause.message, { cause });
  }
}

/** What is copied, and how. */
export interface Transfer {
  /** Where it is read. */
  source: BlockNode;
  /** Where it is written, at the same offset. */
  target: BlockNode;
  /** Zeroes are looked for in this unit. */
  unit: number;
  /** REQ_* of all writes. */
  flags?: number;
  /** Zeroes may be unmapped; true unless given. */
  mayUnmap?: boolean;
}

/** What a run of a disk is, as far as its nodes say. */
export interface RunKind {
  /** Bytes. */
  length: number;
  /** It reads as zeroes. */
  isZero: boolean;
  /** A node that was looked at decides the content. */
  isAllocated: boolean;
}

/** See the module's head. */
export class DataCopier {
  readonly #buffers: Uint8Array[] = [];

  /**
   * Copies the first part of a range, of one kind: what was copied is the first number of the
   * result, what of it was no zeroes the second. Throws a TransferError.
   */
  *copy(transfer: Transfer, { offset, length }: ByteRange): Steps<[number, number]> {
    const run = yield* runKind(transfer.source, null, { offset, length });
    if (run.isZero) {
      const zeroes = Math.min(run.length, ZERO_BYTES);
      yield* writeZeroes(transfer, offset, zeroes);
      return [zeroes, 0];
    }
    const bytes = Math.min(run.length, COPY_BYTES);
    yield* this.copyData(transfer, { offset, length: bytes });
    return [bytes, bytes];
  }

  /** Copies at most COPY_BYTES without asking what they are. */
  *copyData(transfer: Transfer, { offset, length }: ByteRange): Steps<void> {
    const buffer = this.#buffers.pop() ?? new Uint8Array(COPY_BYTES);
    try {
      const data = buffer.subarray(0, length);
      let isRead = true;
      try {
        yield* settle(transfer.source.read(offset, IoVector.of(data)));
        isRead = false;
        yield* writeData(transfer, offset, data);
      } catch (error) {
        throw failed(error, isRead);
      }
    } finally {
      if (this.#buffers.length < SPARE_BUFFERS) this.#buffers.push(buffer);
    }
  }
}

/** What the run at the start of a range is, of the nodes of a disk above `base`. */
export function* runKind(
  disk: BlockNode,
  base: BlockNode | null,
  { offset, length }: ByteRange,
): Steps<RunKind> {
  try {
    const run = yield* new DiskStatus(disk, base).at(offset, length);
    return {
      length: run.length,
      isZero: (run.flags & STATUS_ZERO) !== 0,
      isAllocated: (run.flags & STATUS_ALLOCATED) !== 0,
    };
  } catch (error) {
    throw failed(error, true);
  }
}

function* writeZeroes(transfer: Transfer, offset: number, length: number): Steps<void> {
  const { target, flags = 0, mayUnmap = true } = transfer;
  try {
    yield* settle(target.writeZeroes(offset, length, flags | (mayUnmap ? REQ_MAY_UNMAP : 0)));
  } catch (error) {
    throw failed(error, false);
  }
}

/** Writes data; whole units of zeroes as such. */
function* writeData(transfer: Transfer, offset: number, data: Uint8Array): Steps<void> {
  const { target, unit, flags = 0 } = transfer;
  for (let start = 0; start < data.length;) {
    const isHole = isZero(data.subarray(start, start + unit));
    let end = Math.min(start + unit, data.length);
    while (end < data.length && isZero(data.subarray(end, end + unit)) === isHole) {
      end = Math.min(end + unit, data.length);
    }
    if (isHole) yield* writeZeroes(transfer, offset + start, end - start);
    else yield* settle(target.write(offset + start, IoVector.of(data.subarray(start, end)), flags));
    start = end;
  }
}

function failed(error: unknown, isRead: boolean): TransferError {
  return error instanceof TransferError ? error : new TransferError(toBlockError(error), isRead);
}
