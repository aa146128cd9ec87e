/**
 * What file systems are read from: bytes by offset, and helpers to take numbers and text out of
 * them. Nothing here trusts the bytes: a disk is what a guest wrote.
 *
 * @module
 */

import type { WaitOptions } from "../disk.ts";

/** A disk, a partition, or a cache over one. RemoteDisk is one. */
export interface ByteSource {
  /** Bytes there are. */
  readonly sizeBytes: number;
  /** Reads `[offset, offset + length)`, which must lie inside. */
  read(offset: number, length: number, options?: WaitOptions): Promise<Uint8Array<ArrayBuffer>>;
}

/** What is wrong with a file system, or what it has that this library can't read. */
export class FileSystemError extends Error {
  /** For whoever prints it. */
  override readonly name = "FileSystemError";

  /**
   * `code`: "corrupt" (it contradicts itself), "unsupported" (a feature), "not-found",
   * "not-a-directory", "is-a-directory", "loop" (too many symbolic links).
   */
  constructor(
    readonly code:
      | "corrupt"
      | "unsupported"
      | "not-found"
      | "not-a-directory"
      | "is-a-directory"
      | "loop",
    message: string,
  ) {
    super(message);
  }
}

/** A part of a source as a source of its own. */
export function slice(source: ByteSource, offset: number, length: number): ByteSource {
  if (offset < 0 || length < 0 || offset + length > source.sizeBytes) {
    throw corrupt(`${length} bytes at ${offset} are not on the disk of ${source.sizeBytes} bytes`);
  }
  return {
    sizeBytes: length,
    read: async (at, count, options) => {
      if (at < 0 || count < 0 || at + count > length) {
        throw corrupt(`${count} bytes at ${at} are not in the partition of ${length} bytes`);
      }
      return await source.read(offset + at, count, options);
    },
  };
}

/** Reads what must be there; what points past the end is the disk's fault. */
export async function readExactly(
  source: ByteSource,
  offset: number,
  length: number,
  options: WaitOptions = {},
): Promise<Uint8Array<ArrayBuffer>> {
  if (!Number.isSafeInteger(offset) || offset < 0 || offset + length > source.sizeBytes) {
    throw corrupt(`a structure points to ${length} bytes at ${offset}, past the end of the disk`);
  }
  return await source.read(offset, length, options);
}

/** The file system contradicts itself. */
export function corrupt(message: string): FileSystemError {
  return new FileSystemError("corrupt", message);
}

/** The file system has a feature that is not known here. */
export function unsupported(message: string): FileSystemError {
  return new FileSystemError("unsupported", message);
}

/** A view for numbers. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** A little-endian 64-bit number that counts or points: beyond 2^53 it is no place on any disk. */
export function getUint64(view: DataView, offset: number): number {
  return view.getUint32(offset, true) + view.getUint32(offset + 4, true) * 2 ** 32;
}

/** Text up to the first NUL, in UTF-8; what is no UTF-8 is shown by replacement characters. */
export function textOf(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
}

/** A table for cyclic redundancy checks of 32 bits, least significant bit first. */
export function crcTable(polynomial: number): Uint32Array {
  return Uint32Array.from({ length: 256 }, (_, byte) => {
    let value = byte;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ polynomial : value >>> 1;
    return value;
  });
}

/** Goes on with a check whose value so far is `crc`, without the final complement. */
export function crcUpdate(table: Uint32Array, crc: number, bytes: Uint8Array): number {
  for (const byte of bytes) crc = (table[(crc ^ byte) & 0xff] ?? 0) ^ (crc >>> 8);
  return crc >>> 0;
}
