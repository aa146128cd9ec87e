/**
 * Reads ELF files of 64-bit RISC-V as far as loading needs it: the segments and the entry point.
 * Every number in them is checked against the file before it is used.
 *
 * @module
 */

import { BootError, type BootFile } from "./boot_error.ts";

/** A segment to be loaded: bytes of the file, then zeroes up to memoryBytes. */
export interface ElfSegment {
  /** Where it is to lie. */
  physicalAddress: number;
  /** Where the program believes it to be. */
  virtualAddress: number;
  /** What it takes in memory. */
  memoryBytes: number;
  /** What the file holds of it: no more than that. */
  bytes: Uint8Array;
}

/** What there is to load. */
export interface ElfImage {
  /** At least one. */
  segments: ElfSegment[];
  /** Virtual address of the first instruction. */
  entry: number;
}

const ELF_MAGIC = 0x7f454c46;
const ELFCLASS64 = 2;
const ELFDATA2LSB = 1;
const EM_RISCV = 243;
const ET_EXEC = 2;
const ET_DYN = 3;
const PT_LOAD = 1;
const HEADER_BYTES = 64;
const PROGRAM_HEADER_BYTES = 56;
/** No kernel or firmware has nearly as many. */
const MAX_PROGRAM_HEADERS = 256;

/** Whether the file says that it is ELF. */
export function isElf(bytes: Uint8Array): boolean {
  return bytes.length >= 4 && viewOf(bytes).getUint32(0) === ELF_MAGIC;
}

/** Reads the file's headers; `file` is what errors name. Addresses are rounded above 2^53. */
export function readElf(bytes: Uint8Array, file: BootFile): ElfImage {
  if (bytes.length < HEADER_BYTES) throw new BootError("damaged", file, "truncated ELF header");
  const view = viewOf(bytes);
  if (
    bytes[4] !== ELFCLASS64 || bytes[5] !== ELFDATA2LSB || view.getUint16(18, true) !== EM_RISCV
  ) {
    throw new BootError("unknownFormat", file, "an ELF file, but not for 64-bit RISC-V");
  }
  const type = view.getUint16(16, true);
  if (type !== ET_EXEC && type !== ET_DYN) {
    throw new BootError("unknownFormat", file, "an ELF file, but not an executable one");
  }
  const tableOffset = readU64(view, 32);
  const entryBytes = view.getUint16(54, true);
  const entryCount = view.getUint16(56, true);
  if (entryBytes < PROGRAM_HEADER_BYTES || entryCount > MAX_PROGRAM_HEADERS) {
    throw new BootError("damaged", file, "the ELF program headers make no sense");
  }
  if (tableOffset + entryBytes * entryCount > bytes.length) {
    throw new BootError("damaged", file, "ELF program headers lie behind the end of the file");
  }
  const segments: ElfSegment[] = [];
  for (let index = 0; index < entryCount; index++) {
    const segment = readSegment(bytes, { header: tableOffset + index * entryBytes, file });
    if (segment !== null) segments.push(segment);
  }
  if (segments.length === 0) {
    throw new BootError("damaged", file, "an ELF file with nothing to load");
  }
  return { segments, entry: readU64(view, 24) };
}

function readSegment(
  bytes: Uint8Array,
  at: { header: number; file: BootFile },
): ElfSegment | null {
  const { header, file } = at;
  const view = viewOf(bytes);
  if (view.getUint32(header, true) !== PT_LOAD) return null;
  const fileOffset = readU64(view, header + 8);
  const fileBytes = readU64(view, header + 32);
  const memoryBytes = readU64(view, header + 40);
  if (fileOffset + fileBytes > bytes.length) {
    throw new BootError("damaged", file, "an ELF segment lies behind the end of the file");
  }
  if (memoryBytes < fileBytes) {
    throw new BootError("damaged", file, "an ELF segment is larger in the file than in memory");
  }
  if (memoryBytes === 0) return null;
  return {
    virtualAddress: readU64(view, header + 16),
    physicalAddress: readU64(view, header + 24),
    memoryBytes,
    bytes: bytes.subarray(fileOffset, fileOffset + fileBytes),
  };
}

/** Exact below 2^53; larger values stay too large for everything here. */
function readU64(view: DataView, offset: number): number {
  return view.getUint32(offset + 4, true) * 0x1_0000_0000 + view.getUint32(offset, true);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
