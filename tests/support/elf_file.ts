/**
 * ELF files of 64-bit RISC-V as tests need them.
 *
 * @module
 */

const HEADER_BYTES = 0x1000;
const SECTION_BYTES = 64;
const SYMBOL_BYTES = 24;

/** A file with one segment at `base`, readable, writable and executable, where it begins. */
export function makeElf(base: bigint, image: Uint8Array): Uint8Array<ArrayBuffer> {
  const file = new Uint8Array(HEADER_BYTES + image.length);
  const view = new DataView(file.buffer);
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true); // ET_EXEC
  view.setUint16(18, 243, true); // EM_RISCV
  view.setUint32(20, 1, true);
  view.setBigUint64(24, base, true);
  view.setBigUint64(32, 64n, true);
  view.setUint32(48, 5, true); // RVC, double floats
  view.setUint16(52, 64, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, 1, true);
  view.setUint32(64, 1, true); // PT_LOAD
  view.setUint32(68, 7, true);
  view.setBigUint64(72, BigInt(HEADER_BYTES), true);
  view.setBigUint64(80, base, true);
  view.setBigUint64(88, base, true);
  view.setBigUint64(96, BigInt(image.length), true);
  view.setBigUint64(104, BigInt(image.length), true);
  view.setBigUint64(112, BigInt(HEADER_BYTES), true);
  file.set(image, HEADER_BYTES);
  return file;
}

/** The same with a symbol table behind it: functions of `bytes` bytes each. */
export function withSymbols(
  elf: Uint8Array,
  symbols: Record<string, { address: bigint; bytes: number }>,
): Uint8Array<ArrayBuffer> {
  const names = new TextEncoder().encode(`\0${Object.keys(symbols).join("\0")}\0`);
  const entries = Object.entries(symbols);
  const table = elf.length;
  const strings = table + SYMBOL_BYTES * (entries.length + 1);
  const sections = (strings + names.length + 7) & ~7;
  const file = new Uint8Array(sections + 3 * SECTION_BYTES);
  const view = new DataView(file.buffer);
  file.set(elf);
  file.set(names, strings);
  let nameOffset = 1;
  entries.forEach(([name, { address, bytes }], index) => {
    const at = table + SYMBOL_BYTES * (index + 1);
    view.setUint32(at, nameOffset, true);
    file[at + 4] = 0x12; // STB_GLOBAL, STT_FUNC
    view.setUint16(at + 6, 1, true);
    view.setBigUint64(at + 8, address, true);
    view.setBigUint64(at + 16, BigInt(bytes), true);
    nameOffset += name.length + 1;
  });
  view.setBigUint64(40, BigInt(sections), true);
  view.setUint16(58, SECTION_BYTES, true);
  view.setUint16(60, 3, true);
  const setSection = (index: number, type: number, offset: number, size: number) => {
    const at = sections + index * SECTION_BYTES;
    view.setUint32(at + 4, type, true);
    view.setBigUint64(at + 24, BigInt(offset), true);
    view.setBigUint64(at + 32, BigInt(size), true);
    view.setUint32(at + 40, 2, true); // names
  };
  setSection(1, 2, table, strings - table); // SHT_SYMTAB
  setSection(2, 3, strings, names.length); // SHT_STRTAB
  return file;
}
