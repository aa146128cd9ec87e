/**
 * Loads kernels.wasm: bitmaps in a WebAssembly memory of their own, and the zero test.
 *
 * One instance per worker. It owns its memory, hands out pieces of it and takes them back; pieces
 * are zeroed when they are handed out. The memory grows as needed up to a bound and never shrinks.
 *
 *   0 .. 4095        unused (an address of 0 is never handed out)
 *   4096 .. length   pieces, each at a multiple of 16 and a multiple of 16 long; the free ones are
 *                    in a list by address in which no two touch
 *
 * @module
 */

import { limits } from "../limits.ts";

/** The functions of the module. Addresses, bits and results as in assembly/kernels. */
export interface KernelExports {
  /** Sets the bits `[start, end)`. */
  setRange(bits: number, start: number, end: number): void;
  /** Clears the bits `[start, end)`. */
  clearRange(bits: number, start: number, end: number): void;
  /** The bit: 0 or 1. */
  test(bits: number, index: number): number;
  /** The first set bit, or `end`: as a signed 32-bit number, so apply `>>> 0`. */
  nextSet(bits: number, start: number, end: number): number;
  /** The first clear bit, or `end`: as a signed 32-bit number, so apply `>>> 0`. */
  nextClear(bits: number, start: number, end: number): number;
  /** How many are set: as a signed 32-bit number, so apply `>>> 0`. */
  count(bits: number, start: number, end: number): number;
  /** target |= source */
  merge(target: number, source: number, byteCount: number): void;
  /** target &= ~source */
  andNot(target: number, source: number, byteCount: number): void;
  /** Adds source to a target whose bits stand for 2^shift of its bits each. */
  projectCoarser(target: number, source: number, sourceCount: number, shift: number): void;
  /** Adds source to a target 2^shift of whose bits stand for one of its bits. */
  projectFiner(
    target: number,
    targetCount: number,
    source: number,
    sourceCount: number,
    shift: number,
  ): void;
  /** 1 if all bytes are zero, else 0. */
  isZero(address: number, byteCount: number): number;
}

const PAGE_BYTES = 65536;
const FIRST_ADDRESS = 4096;
const ALIGNMENT = 16;
const WASM_URL = new URL("./build/kernels.wasm", import.meta.url);

/** Compiles the module that `deno task build` made. */
export async function compileKernels(): Promise<WebAssembly.Module> {
  return await WebAssembly.compile(await Deno.readFile(WASM_URL));
}

interface FreePiece {
  address: number;
  byteCount: number;
}

/** An instance of the module with its memory. */
export class Kernels {
  /** Addresses are those that `allocate` returned. */
  readonly functions: KernelExports;
  readonly #memory: WebAssembly.Memory;
  readonly #maxPages: number;
  /** By address; neighbours never touch. */
  readonly #free: FreePiece[] = [];
  #usedBytes = 0;

  /** `maxBytes`: what the memory may grow to. */
  constructor(module: WebAssembly.Module, options: { maxBytes?: number } = {}) {
    const maxBytes = options.maxBytes ?? limits.bitmapMemoryBytes;
    this.#maxPages = Math.ceil((FIRST_ADDRESS + maxBytes) / PAGE_BYTES);
    // Shared because all modules are built that way; nobody else has this memory.
    this.#memory = new WebAssembly.Memory({ initial: 1, maximum: this.#maxPages, shared: true });
    const { exports } = new WebAssembly.Instance(module, { env: { memory: this.#memory } });
    // Copied into an object of a fixed shape: looking into `exports` takes longer than the calls.
    this.functions = { ...exports as unknown as KernelExports };
    this.#free.push({ address: FIRST_ADDRESS, byteCount: PAGE_BYTES - FIRST_ADDRESS });
  }

  /** Bytes handed out and not yet taken back. */
  get usedBytes(): number {
    return this.#usedBytes;
  }

  /** A zeroed piece of at least `byteCount` bytes, or null where the memory's bound is reached. */
  allocate(byteCount: number): number | null {
    const size = storageBytes(byteCount);
    let index = this.#free.findIndex((piece) => piece.byteCount >= size);
    if (index < 0) {
      if (!this.#grow(size)) return null;
      index = this.#free.length - 1;
    }
    const piece = this.#free[index];
    if (piece === undefined) throw new Error("the free list lost a piece");
    const address = piece.address;
    if (piece.byteCount === size) this.#free.splice(index, 1);
    else {
      piece.address += size;
      piece.byteCount -= size;
    }
    this.#usedBytes += size;
    this.bytes(address, size).fill(0);
    return address;
  }

  /** Takes back what `allocate(byteCount)` returned. */
  free(address: number, byteCount: number): void {
    const size = storageBytes(byteCount);
    this.#usedBytes -= size;
    let index = this.#free.findIndex((piece) => piece.address > address);
    if (index < 0) index = this.#free.length;
    const before = this.#free[index - 1];
    const after = this.#free[index];
    if (before !== undefined && before.address + before.byteCount > address) {
      throw new Error(`piece at ${address} was freed twice`);
    }
    this.#free.splice(index, 0, { address, byteCount: size });
    if (after !== undefined) this.#join(index, index + 1);
    if (before !== undefined) this.#join(index - 1, index);
  }

  /** The bytes of a piece. Not to be kept: the view does not follow the memory's growth. */
  bytes(address: number, byteCount: number): Uint8Array {
    return new Uint8Array(this.#memory.buffer, address, byteCount);
  }

  /** Makes the last free piece `size` long, or makes one. False at the bound. */
  #grow(size: number): boolean {
    const end = this.#memory.buffer.byteLength;
    const last = this.#free.at(-1);
    const atEnd = last !== undefined && last.address + last.byteCount === end ? last.byteCount : 0;
    const pages = Math.ceil((size - atEnd) / PAGE_BYTES);
    if (end / PAGE_BYTES + pages > this.#maxPages) return false;
    try {
      this.#memory.grow(pages);
    } catch (error) {
      if (error instanceof RangeError) return false; // the system has no room
      throw error;
    }
    this.#free.push({ address: end, byteCount: pages * PAGE_BYTES });
    if (atEnd > 0) this.#join(this.#free.length - 2, this.#free.length - 1);
    return true;
  }

  /** Makes the free pieces at `first` and `second`, neighbours in the list, one if they touch. */
  #join(first: number, second: number): void {
    const [a, b] = [this.#free[first], this.#free[second]];
    if (a === undefined || b === undefined || a.address + a.byteCount !== b.address) return;
    a.byteCount += b.byteCount;
    this.#free.splice(second, 1);
  }
}

/** What a piece of `byteCount` bytes takes. */
export function storageBytes(byteCount: number): number {
  return Math.max(ALIGNMENT, Math.ceil(byteCount / ALIGNMENT) * ALIGNMENT);
}

const ZEROES = new Uint8Array(65536);

/**
 * Whether every byte is zero, for a view on any memory (guest RAM, a reply's buffer). The runtime's
 * own comparison reads 50 GB/s, as fast as the kernel inside its memory; copying there first makes
 * 19, a loop over BigUint64Array 11.
 */
export function isZero(view: Uint8Array): boolean {
  // Data shows itself at once: then the comparison, which takes 8 ms to load, is not needed.
  const start = Math.min(view.length, 8);
  for (let at = 0; at < start; at++) if (view[at] !== 0) return false;
  for (let offset = 0; offset < view.length; offset += ZEROES.length) {
    const part = view.subarray(offset, offset + ZEROES.length);
    if (globalThis.Buffer.compare(part, ZEROES.subarray(0, part.length)) !== 0) return false;
  }
  return true;
}
