/**
 * A machine's shared memory as its I/O worker sees it: typed views, translation of guest physical
 * addresses, and the marks that tell the harts that code was written by DMA.
 *
 * Nothing a guest names is touched before `translate` has said that it lies inside RAM. All numbers
 * in guest structures are little-endian, and so is every host that WebAssembly's engine runs on.
 *
 * @module
 */

import type { HartLayout } from "../wasm/hart.ts";

/** A page with decoded instructions, and one that was written since (CODE_FLAGS in layout.ts). */
const CODE_DECODED = 1;
const CODE_WRITTEN = 2;

/** The shared memory of one machine. */
export class GuestMemory {
  /** All of it. */
  readonly buffer: SharedArrayBuffer;
  /** As bytes. */
  readonly bytes: Uint8Array<SharedArrayBuffer>;
  /** As 16-bit numbers: the indexes of virtqueues. */
  readonly halves: Uint16Array<SharedArrayBuffer>;
  /** As 32-bit numbers: the words of the layout. */
  readonly words: Int32Array<SharedArrayBuffer>;
  /** For numbers that are not aligned. */
  readonly view: DataView<SharedArrayBuffer>;
  /** Size of guest RAM, which is the memory's end. */
  readonly ramBytes: number;
  readonly #ramBase: number;
  readonly #ramGpa: number;
  readonly #codeFlags: number;
  readonly #codeWritesIndex: number;
  readonly #pageShift: number;

  /** Throws a TypeError where the memory is not shared. */
  constructor(readonly memory: WebAssembly.Memory, readonly layout: HartLayout) {
    this.buffer = sharedBufferOf(memory);
    const { buffer } = this;
    this.bytes = new Uint8Array(buffer);
    this.halves = new Uint16Array(buffer);
    this.words = new Int32Array(buffer);
    this.view = new DataView(buffer);
    this.#ramBase = layout.RAM_BASE;
    this.#ramGpa = Number(layout.RAM_GPA);
    this.ramBytes = buffer.byteLength - layout.RAM_BASE;
    this.#codeFlags = layout.CODE_FLAGS;
    this.#codeWritesIndex = layout.CODE_WRITES_WORD >>> 2;
    this.#pageShift = layout.PAGE_SHIFT;
  }

  /**
   * The offset in this memory of guest physical `[gpa, gpa + length)`, -1 unless all of it is RAM.
   * A 64-bit address may have lost low bits as a number: then it lies far outside anyway.
   */
  translate(gpa: number, length: number): number {
    const ramOffset = gpa - this.#ramGpa;
    if (!(ramOffset >= 0 && ramOffset + length <= this.ramBytes)) return -1;
    return this.#ramBase + ramOffset;
  }

  /** A 64-bit number of a guest's structure; exact below 2^53, else too large for anything. */
  readU64(offset: number): number {
    return this.view.getUint32(offset + 4, true) * 0x1_0000_0000 +
      this.view.getUint32(offset, true);
  }

  /**
   * To be called after `[offset, offset + length)` of RAM was written and before the guest can
   * learn of it: decoded pages are marked, and FENCE.I is told to look.
   */
  markWritten(offset: number, length: number): void {
    if (length === 0) return;
    const first = (offset - this.#ramBase) >>> this.#pageShift;
    const last = (offset + length - 1 - this.#ramBase) >>> this.#pageShift;
    let isCode = false;
    for (let flag = this.#codeFlags + first; flag <= this.#codeFlags + last; flag++) {
      if (this.bytes[flag] === CODE_DECODED) {
        Atomics.store(this.bytes, flag, CODE_WRITTEN);
        isCode = true;
      }
    }
    if (isCode) Atomics.add(this.words, this.#codeWritesIndex, 1);
  }

  /**
   * Makes every hart look at its interrupts, after a device changed what its line depends on.
   * Bumped first, so that a hart about to sleep does not; all harts, since any may have the line
   * enabled.
   */
  wakeHarts(): void {
    const { words, layout } = this;
    const hartCount = Math.min(this.loadWord(layout.HART_COUNT), layout.MAX_HARTS);
    for (let hart = 0; hart < hartCount; hart++) {
      const word = (layout.HART_BASE + hart * layout.HART_STRIDE + layout.HART_WAKE_WORD) >>> 2;
      Atomics.add(words, word, 1);
      Atomics.notify(words, word);
    }
  }

  /** Reads the word at a byte offset of the layout, atomically, as an unsigned number. */
  loadWord(offset: number): number {
    return Atomics.load(this.words, offset >>> 2) >>> 0;
  }

  /** Writes the word at a byte offset of the layout, atomically. */
  storeWord(offset: number, value: number): void {
    Atomics.store(this.words, offset >>> 2, value);
  }
}

/** The declared type of a memory's buffer does not know of shared ones. */
function sharedBufferOf(memory: WebAssembly.Memory): SharedArrayBuffer {
  const buffer: unknown = memory.buffer;
  if (!(buffer instanceof SharedArrayBuffer)) throw new TypeError("the memory is not shared");
  return buffer;
}
