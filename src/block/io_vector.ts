/**
 * A scatter-gather list: the buffers of one request, in order. Guest requests come in segments of
 * guest RAM; network requests are one buffer. Drivers move data directly between these buffers and
 * the medium.
 *
 * @module
 */

/** The buffers of one request. Immutable; the bytes behind it are not. */
export class IoVector {
  /** Bytes in all buffers together. */
  readonly length: number;

  /** `buffers`: in the order of the bytes; any may be empty. Kept, not copied. */
  constructor(readonly buffers: readonly Uint8Array[]) {
    let length = 0;
    for (const buffer of buffers) length += buffer.length;
    this.length = length;
  }

  /** A vector of one buffer. */
  static of(buffer: Uint8Array): IoVector {
    return new IoVector([buffer]);
  }

  /** The part `[offset, offset + length)`, over the same bytes. */
  slice(offset: number, length: number): IoVector {
    if (offset === 0 && length === this.length) return this;
    const parts: Uint8Array[] = [];
    let skip = offset;
    let left = length;
    for (const buffer of this.buffers) {
      if (left === 0) break;
      if (skip >= buffer.length) {
        skip -= buffer.length;
        continue;
      }
      const take = Math.min(buffer.length - skip, left);
      parts.push(buffer.subarray(skip, skip + take));
      skip = 0;
      left -= take;
    }
    return new IoVector(parts);
  }

  /** Copies `source` in, starting at `offset` of the vector. */
  copyFrom(source: Uint8Array, offset = 0): void {
    let done = 0;
    for (const part of this.slice(offset, source.length).buffers) {
      part.set(source.subarray(done, done + part.length));
      done += part.length;
    }
  }

  /** Copies the vector's bytes out into `target`, starting at `offset` of the vector. */
  copyTo(target: Uint8Array, offset = 0): void {
    let done = 0;
    for (const part of this.slice(offset, target.length).buffers) {
      target.set(part, done);
      done += part.length;
    }
  }

  /** Sets every byte to `value`. */
  fill(value: number): void {
    for (const buffer of this.buffers) buffer.fill(value);
  }
}
