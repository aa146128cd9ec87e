/**
 * Finds out what a kernel or firmware file is, and where its parts go in RAM:
 *
 *   gzip, zstd, xz        -> what is inside
 *   EFI zboot (PE, zimg)  -> its payload                     Linux: drivers/firmware/efi/libstub
 *   Image                 -> text_offset, image_size         Linux: riscv/boot-image-header.rst
 *   ELF                   -> its segments, at their physical addresses
 *   anything else binary  -> as it is, at the start of the area (U-Boot's and OpenSBI's .bin)
 *
 * @module
 */

import { BootError, type BootFile } from "./boot_error.ts";
import {
  type Compression,
  decompress,
  detectCompression,
  OutputTooLargeError,
} from "./decompress.ts";
import { type ElfImage, type ElfSegment, isElf, readElf } from "./elf.ts";

/** Bytes that go to a guest physical address, followed by zeroes up to memoryBytes. */
export interface ImagePart {
  /** Where it goes. */
  gpa: number;
  /** What it takes there; never less than there are bytes. */
  memoryBytes: number;
  /** What the file holds of it. */
  bytes: Uint8Array;
}

/** An image that is ready to be copied to RAM. */
export interface BootImage {
  /** In the file's order. */
  parts: ImagePart[];
  /** Guest physical address of the first instruction. */
  entry: number;
  /** First address behind everything. */
  end: number;
}

/** Where an image may lie. */
export interface ImageArea {
  /** What errors name. */
  file: BootFile;
  /** Where it goes unless it has an address of its own. */
  gpa: number;
  /** RAM: nothing lies outside. */
  ramStart: number;
  /** First address behind it. */
  ramEnd: number;
}

const IMAGE_HEADER_BYTES = 64;
const IMAGE_MAGIC2 = 0x05435352; // "RSC\x05"
const IMAGE_ALIGNMENT = 0x20_0000;
const ZBOOT_NAMES: Record<string, Compression> = {
  gzip: "gzip",
  zstd: "zstd",
  xzkern: "xz",
  xz: "xz",
};
/** zboot around an Image, or one compression around another: no more than that. */
const MAX_WRAPPERS = 3;
const TEXT_PROBE_BYTES = 512;

/** Unpacks `bytes` and plans where they go. */
export async function planImage(
  bytes: Uint8Array<ArrayBuffer>,
  area: ImageArea,
): Promise<BootImage> {
  const image = plan(await unwrap(bytes, area), area);
  for (const part of image.parts) {
    const end = part.gpa + part.memoryBytes;
    if (part.gpa < area.ramStart || end > area.ramEnd) {
      const where = `0x${part.gpa.toString(16)} to 0x${end.toString(16)}`;
      throw new BootError("doesNotFit", area.file, `${where} is not inside the machine's memory`);
    }
  }
  if (
    !image.parts.some(({ gpa, memoryBytes }) =>
      gpa <= image.entry && image.entry < gpa + memoryBytes
    )
  ) {
    throw new BootError("damaged", area.file, "the entry point lies outside of what is loaded");
  }
  return image;
}

async function unwrap(bytes: Uint8Array<ArrayBuffer>, area: ImageArea): Promise<Uint8Array> {
  let current = bytes;
  for (let depth = 0;; depth++) {
    const zboot = readZboot(current, area.file);
    const compression = zboot?.compression ?? detectCompression(current);
    if (compression === null) return current;
    if (depth === MAX_WRAPPERS) {
      throw new BootError("unknownFormat", area.file, "compressed too many times");
    }
    current = await expand(zboot?.payload ?? current, { compression, area });
  }
}

async function expand(
  bytes: Uint8Array<ArrayBuffer>,
  how: { compression: Compression; area: ImageArea },
): Promise<Uint8Array<ArrayBuffer>> {
  const { compression, area } = how;
  const maxBytes = area.ramEnd - area.ramStart;
  try {
    return new Uint8Array(await decompress(bytes, { compression, maxBytes }));
  } catch (cause) {
    if (cause instanceof OutputTooLargeError) {
      throw new BootError("doesNotFit", area.file, "larger than the machine's memory", { cause });
    }
    const message = `damaged or truncated ${compression} data`;
    throw new BootError("damaged", area.file, message, { cause });
  }
}

/** The compressed payload of an EFI zboot image; null if `bytes` are not one. */
function readZboot(
  bytes: Uint8Array<ArrayBuffer>,
  file: BootFile,
): { payload: Uint8Array<ArrayBuffer>; compression: Compression } | null {
  if (bytes.length < IMAGE_HEADER_BYTES || readText(bytes, 0, 2) !== "MZ") return null;
  if (readText(bytes, 4, 4) !== "zimg") return null;
  const view = viewOf(bytes);
  const offset = view.getUint32(8, true);
  const length = view.getUint32(12, true);
  if (offset + length > bytes.length) {
    throw new BootError("damaged", file, "truncated: the zboot payload lies behind the end");
  }
  const name = readText(bytes, 24, 32);
  const compression = ZBOOT_NAMES[name];
  if (compression === undefined) {
    throw new BootError("unsupportedCompression", file, `zboot image with ${JSON.stringify(name)}`);
  }
  return { payload: bytes.subarray(offset, offset + length), compression };
}

function plan(bytes: Uint8Array, area: ImageArea): BootImage {
  if (isElf(bytes)) return planElf(readElf(bytes, area.file), area);
  const header = bytes.length >= IMAGE_HEADER_BYTES ? viewOf(bytes) : null;
  if (header?.getUint32(56, true) === IMAGE_MAGIC2) return planLinux(bytes, area);
  if (bytes.length === 0) throw new BootError("unknownFormat", area.file, "the file is empty");
  if (looksLikeText(bytes)) throw new BootError("unknownFormat", area.file, "this is a text file");
  if (readText(bytes, 0, 2) === "MZ") {
    throw new BootError("unknownFormat", area.file, "an EFI program that is no RISC-V kernel");
  }
  return toImage([{ gpa: area.gpa, memoryBytes: bytes.length, bytes }], area.gpa);
}

/** A Linux Image goes to its text offset from an aligned address; its BSS must be free too. */
function planLinux(bytes: Uint8Array, area: ImageArea): BootImage {
  const view = viewOf(bytes);
  const textOffset = readU64(view, 8);
  const imageBytes = readU64(view, 16);
  const base = Math.floor(area.gpa / IMAGE_ALIGNMENT) * IMAGE_ALIGNMENT;
  const gpa = area.ramStart + textOffset >= area.gpa ? area.ramStart + textOffset : base;
  const memoryBytes = Math.max(bytes.length, imageBytes);
  return toImage([{ gpa, memoryBytes, bytes }], gpa);
}

/**
 * Segments go to their physical addresses. A kernel whose addresses start below RAM (Linux's
 * vmlinux counts them from 0) is moved as a whole to the area.
 */
function planElf(elf: ElfImage, area: ImageArea): BootImage {
  const lowest = Math.min(...elf.segments.map((segment) => segment.physicalAddress));
  const shift = lowest < area.ramStart ? area.gpa - lowest : 0;
  const parts = elf.segments.map(({ physicalAddress, memoryBytes, bytes }) => ({
    gpa: physicalAddress + shift,
    memoryBytes,
    bytes,
  }));
  const home = elf.segments.find((segment) => holds(segment, elf.entry));
  const entry = home === undefined
    ? elf.entry
    : home.physicalAddress + (elf.entry - home.virtualAddress) + shift;
  return toImage(parts, entry);
}

/** The entry point is a virtual address. */
function holds(segment: ElfSegment, entry: number): boolean {
  return segment.virtualAddress <= entry && entry < segment.virtualAddress + segment.memoryBytes;
}

function toImage(parts: ImagePart[], entry: number): BootImage {
  return { parts, entry, end: Math.max(...parts.map(({ gpa, memoryBytes }) => gpa + memoryBytes)) };
}

/** Nothing that a processor executes starts with so many printable characters. */
function looksLikeText(bytes: Uint8Array): boolean {
  return bytes.subarray(0, TEXT_PROBE_BYTES).every((byte) =>
    byte >= 0x20 && byte !== 0x7f || byte === 0x09 || byte === 0x0a || byte === 0x0d
  );
}

/** The text at `offset`, up to a zero byte. */
function readText(bytes: Uint8Array, offset: number, length: number): string {
  const text = String.fromCharCode(...bytes.subarray(offset, offset + length));
  const end = text.indexOf("\0");
  return end < 0 ? text : text.slice(0, end);
}

/** Exact below 2^53; larger values stay too large for everything here. */
function readU64(view: DataView, offset: number): number {
  return view.getUint32(offset + 4, true) * 0x1_0000_0000 + view.getUint32(offset, true);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
