/**
 * A file seen through memory, piece by piece in order: its bytes as they lie in the system's cache,
 * without a copy of them. Who copies a disk looks at them there and writes them from there, which
 * takes two thirds of the time that reading them first takes.
 *
 *   file    |........[===== window =====]...........|
 *   memory           [pages of a WebAssembly memory ]
 *
 * What can't be read (a bad medium, a file cut off meanwhile) must be found out before anybody
 * looks: a page that isn't there ends the process. So each piece is loaded when it is asked for, and
 * where that fails the caller reads it the usual way and hears the reason.
 *
 * @module
 */

import { requestBuffer } from "../request_buffer.ts";
import type { LibC } from "./libc.ts";

const WINDOW_BYTES = 16 * 1024 * 1024;
/** Where files are laid over memory: a page of the largest size that Linux has on our processors. */
const PAGE_BYTES = 65536;

/** See the module's head. */
export class FileWindow {
  readonly #libc: LibC;
  readonly #fd: number;
  readonly #memory = requestBuffer(WINDOW_BYTES);
  /** Where the window is in the file; -1: nowhere. */
  #start = -1;
  /** How far the system was told to read it. */
  #aheadEnd = 0;
  /** How much of the window was looked at: where it was most, the next one is read as a whole. */
  #seenBytes = 0;

  /** Over an open file, which is closed only after this. */
  constructor(libc: LibC, fd: number) {
    this.#libc = libc;
    this.#fd = fd;
  }

  /**
   * The bytes of a range that lies in the file: null where they have to be read. They are good
   * until the next call, and must not be changed. `dataBytes`: how much data there is from `offset`
   * on; it is read ahead, and large holes are not.
   */
  view(offset: number, length: number, dataBytes = length): Uint8Array | null {
    const first = offset - offset % PAGE_BYTES;
    const end = offset + length;
    if (end - first > WINDOW_BYTES) return null;
    if (this.#start < 0 || first < this.#start || end > this.#start + WINDOW_BYTES) {
      this.#start = -1;
      if (!this.#libc.map(this.#fd, first, this.#memory)) return null;
      const isDense = this.#seenBytes > WINDOW_BYTES / 2;
      this.#start = first;
      this.#seenBytes = 0;
      this.#aheadEnd = 0;
      if (isDense) this.#readAhead(first, Infinity);
    }
    if (end > this.#aheadEnd) this.#readAhead(first, Math.max(offset + dataBytes, end));
    this.#seenBytes += length;
    if (!this.#libc.populate(this.#memory.subarray(first - this.#start, end - this.#start))) {
      return null;
    }
    return this.#memory.subarray(offset - this.#start, end - this.#start);
  }

  #readAhead(offset: number, end: number): void {
    this.#aheadEnd = Math.min(end, this.#start + WINDOW_BYTES);
    const [from, to] = [offset - this.#start, this.#aheadEnd - this.#start];
    this.#libc.readAhead(this.#memory.subarray(from, to));
  }

  /** Views are empty from now on. */
  close(): void {
    if (this.#start < 0) return;
    this.#libc.unmap(this.#memory);
    this.#start = -1;
  }
}
