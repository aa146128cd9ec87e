/**
 * A bitmap over the bytes of a disk: one bit for each `granularity` bytes, the last one for what is
 * left of the disk. Storage and hot paths are in the kernels module.
 *
 * Everything here speaks in bytes. A range that is set is rounded outwards, since a bit stands for
 * "some of it"; a range that is cleared must be made of whole bits (the disk's end counts as one's
 * end).
 *
 * Invariant: bits beyond the disk's end are clear.
 *
 * @module
 */

import { limits } from "../limits.ts";
import { type KernelExports, type Kernels, storageBytes } from "../wasm/kernels.ts";
import { BlockError } from "./errors.ts";
import type { ByteRange } from "./types.ts";

/** Size and granularity, both in bytes. */
export interface BitmapShape {
  /** The disk's size. */
  sizeBytes: number;
  /** A power of two. */
  granularity: number;
}

/** Whether a number is 1, 2, 4, ... */
export function isPowerOfTwo(value: number): boolean {
  return value >= 1 && 2 ** Math.round(Math.log2(value)) === value;
}

/** See the module's head. */
export class Bitmap implements Disposable {
  /** The disk's size. */
  readonly sizeBytes: number;
  /** Bytes that a bit stands for: a power of two. */
  readonly granularity: number;
  /** How many bits there are. */
  readonly bitCount: number;
  readonly #kernels: Kernels;
  readonly #functions: KernelExports;
  readonly #byteCount: number;
  readonly #shift: number;
  #address: number;

  /** All clear. Throws ENOSPC where the memory for bitmaps is used up, EINVAL for too many bits. */
  constructor(kernels: Kernels, shape: BitmapShape) {
    this.sizeBytes = shape.sizeBytes;
    this.granularity = shape.granularity;
    this.bitCount = Math.ceil(shape.sizeBytes / shape.granularity);
    if (this.bitCount > limits.bitmapBits) {
      throw new BlockError("EINVAL", `Granularity ${shape.granularity} is too fine for the disk`);
    }
    this.#shift = Math.round(Math.log2(shape.granularity));
    this.#kernels = kernels;
    this.#functions = kernels.functions;
    this.#byteCount = storageBytes(Math.ceil(this.bitCount / 8));
    const address = kernels.allocate(this.#byteCount);
    if (address === null) throw new BlockError("ENOSPC", "No memory is left for bitmaps");
    this.#address = address;
  }

  /** Gives the storage back; the bitmap can't be used any more. May be repeated. */
  [Symbol.dispose](): void {
    if (this.#address === 0) return;
    this.#kernels.free(this.#address, this.#byteCount);
    this.#address = 0;
  }

  /** Sets every bit that `[offset, offset + length)` touches. */
  set(offset: number, length: number): void {
    const { start, end } = this.#touched(offset, length);
    this.#functions.setRange(this.#live(), start, end);
  }

  /** Clears `[offset, offset + length)`, which must be made of whole bits. */
  clear(offset: number, length: number): void {
    const { start, end } = this.#touched(offset, length);
    const isWhole = offset % this.granularity === 0 &&
      ((offset + length) % this.granularity === 0 || offset + length === this.sizeBytes);
    if (!isWhole) throw new RangeError(`[${offset}, +${length}) is not made of whole bits`);
    this.#functions.clearRange(this.#live(), start, end);
  }

  /** Sets every bit. */
  setAll(): void {
    this.#functions.setRange(this.#live(), 0, this.bitCount);
  }

  /** Clears every bit. */
  clearAll(): void {
    this.#functions.clearRange(this.#live(), 0, this.bitCount);
  }

  /** Whether the bit of the byte at `offset` is set. */
  isSet(offset: number): boolean {
    const { start } = this.#touched(offset, 1);
    return this.#functions.test(this.#live(), start) === 1;
  }

  /** Whether a bit that `[offset, offset + length)` touches is set. */
  isAnySet(offset: number, length: number): boolean {
    // On the path of every guest write: the bit of a range that has only one is looked at directly.
    const start = Math.floor(offset / this.granularity);
    if (length > 0 && Math.floor((offset + length - 1) / this.granularity) === start) {
      if (start >= 0 && start < this.bitCount && this.#address !== 0) {
        return this.#functions.test(this.#address, start) === 1;
      }
    }
    return this.nextSet(offset, length) < offset + length;
  }

  /** Whether all bits that `[offset, offset + length)` touches are set. */
  isAllSet(offset: number, length: number): boolean {
    const { start, end } = this.#touched(offset, length);
    return this.#functions.nextClear(this.#live(), start, end) >>> 0 === end;
  }

  /** Whether no bit is set. */
  isEmpty(): boolean {
    return this.#functions.isZero(this.#live(), this.#byteCount) === 1;
  }

  /** Where the first byte of a set bit is in `[offset, offset + length)`; else that end. */
  nextSet(offset: number, length: number): number {
    const { start, end } = this.#touched(offset, length);
    const index = this.#functions.nextSet(this.#live(), start, end) >>> 0;
    return this.#found(index, offset, length);
  }

  /** Where the first byte of a clear bit is in `[offset, offset + length)`; else that end. */
  nextClear(offset: number, length: number): number {
    const { start, end } = this.#touched(offset, length);
    const index = this.#functions.nextClear(this.#live(), start, end) >>> 0;
    return this.#found(index, offset, length);
  }

  /** The first run of set bits in `[offset, offset + length)`, cut to it, or null. */
  nextRun(offset: number, length: number): ByteRange | null {
    const end = offset + length;
    const start = this.nextSet(offset, length);
    if (start === end) return null;
    return { offset: start, length: this.nextClear(start, end - start) - start };
  }

  /** How many bytes of the disk have their bit set. */
  countBytes(): number {
    return this.countBytesIn(0, this.sizeBytes);
  }

  /** How many bytes have their bit set in a range that is made of whole bits (see `clear`). */
  countBytesIn(offset: number, length: number): number {
    const functions = this.#functions;
    const { start, end } = this.#touched(offset, length);
    const bits = functions.count(this.#live(), start, end) >>> 0;
    if (bits === 0) return 0;
    const isLastSet = end === this.bitCount && functions.test(this.#live(), end - 1) === 1;
    const missing = this.bitCount * this.granularity - this.sizeBytes;
    return bits * this.granularity - (isLastSet ? missing : 0);
  }

  /**
   * Sets every bit some of whose bytes have their bit in `source` set: a projection outwards where
   * the granularities differ. The sizes must be the same.
   */
  merge(source: Bitmap): void {
    if (source.sizeBytes !== this.sizeBytes) throw new RangeError("bitmaps of different disks");
    const functions = this.#functions;
    const [into, from] = [this.#live(), source.#live()];
    const shift = this.#shift - source.#shift;
    if (shift === 0) functions.merge(into, from, this.#byteCount);
    else if (shift > 0) functions.projectCoarser(into, from, source.bitCount, shift);
    else functions.projectFiner(into, this.bitCount, from, source.bitCount, -shift);
  }

  /** Clears every bit that is set in `other`, which must have the same shape. */
  subtract(other: Bitmap): void {
    if (other.sizeBytes !== this.sizeBytes || other.granularity !== this.granularity) {
      throw new RangeError("bitmaps of different shapes");
    }
    this.#functions.andNot(this.#live(), other.#live(), this.#byteCount);
  }

  /** A bitmap of the same shape, all clear. */
  emptyCopy(): Bitmap {
    return new Bitmap(this.#kernels, this);
  }

  /** A copy for a disk of another size: what is beyond either end is lost, what is new is clear. */
  resized(sizeBytes: number): Bitmap {
    const copy = new Bitmap(this.#kernels, { sizeBytes, granularity: this.granularity });
    const functions = this.#functions;
    functions.merge(copy.#live(), this.#live(), Math.min(copy.#byteCount, this.#byteCount));
    functions.clearRange(copy.#live(), copy.bitCount, copy.#byteCount * 8);
    return copy;
  }

  /**
   * The bytes `[start, end)` of the bits, least significant bit first, to be read or written at
   * once: the view does not follow the memory's growth. Bits beyond the disk's end stay clear.
   */
  storage(start: number, end: number): Uint8Array {
    if (!(start >= 0 && start <= end && end <= Math.ceil(this.bitCount / 8))) {
      throw new RangeError(`[${start}, ${end}) is not inside the bitmap's bytes`);
    }
    return this.#kernels.bytes(this.#live() + start, end - start);
  }

  #live(): number {
    if (this.#address === 0) throw new Error("the bitmap was disposed");
    return this.#address;
  }

  /** The bits that a range of bytes touches. */
  #touched(offset: number, length: number): { start: number; end: number } {
    const end = offset + length;
    if (!(offset >= 0 && length >= 0 && end <= this.sizeBytes)) {
      throw new RangeError(`[${offset}, +${length}) is not inside ${this.sizeBytes} bytes`);
    }
    const start = Math.floor(offset / this.granularity);
    return { start, end: length === 0 ? start : Math.floor((end - 1) / this.granularity) + 1 };
  }

  /** A bit's first byte, cut to the range that was searched. */
  #found(index: number, offset: number, length: number): number {
    return Math.min(Math.max(index * this.granularity, offset), offset + length);
  }
}
