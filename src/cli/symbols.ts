/**
 * Names of a guest's functions: from System.map or /proc/kallsyms, or from an ELF file's symbols.
 *
 * @module
 */

/** Where a function, or something else, begins. */
interface SymbolEntry {
  address: bigint;
  /** null: no function. */
  name: string | null;
  /** Where it ends; null: where the next one begins. */
  end: bigint | null;
}

const ELF_MAGIC = 0x7f454c46;
const ELF_HEADER_BYTES = 64;
const SECTION_HEADER_BYTES = 64;
const SYMBOL_BYTES = 24;
const SHT_SYMTAB = 2;
const SHT_DYNSYM = 11;
const STT_NOTYPE = 0;
const STT_FUNC = 2;
/** An address, a letter for the kind, a name; kallsyms adds the module. */
const MAP_LINE = /^([0-9a-f]{1,16}) (\S) (\S+)/i;
/** Assemblers' own names. */
const NO_NAME = /^(\$|\.L|__pi_\$)/;

/** Functions by their address. */
export class SymbolTable {
  readonly #entries: SymbolEntry[];

  private constructor(entries: SymbolEntry[]) {
    this.#entries = entries.sort((a, b) => a.address < b.address ? -1 : +(a.address > b.address));
  }

  /** Reads a file of any of the kinds. Throws a RangeError where it names no function. */
  static parse(bytes: Uint8Array): SymbolTable {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const isElf = bytes.length >= ELF_HEADER_BYTES && view.getUint32(0) === ELF_MAGIC;
    const entries = isElf ? readElfSymbols(bytes, view) : readMap(new TextDecoder().decode(bytes));
    const functions = entries.filter(({ name }) => name !== null);
    if (functions.length === 0) throw new RangeError("it names no function");
    // What a kernel shows to those who may not see its addresses.
    if (functions.every(({ address }) => address === 0n)) {
      throw new RangeError("all addresses are 0: read /proc/kallsyms as root");
    }
    return new SymbolTable(entries);
  }

  /** The function that the address lies in, null where none is known. */
  nameOf(address: bigint): string | null {
    let [low, high] = [0, this.#entries.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#entries[middle]?.address ?? 0n) <= address) low = middle + 1;
      else high = middle;
    }
    // Of several that begin there, the first that is named is as good as any.
    const last = this.#entries[low - 1];
    if (last === undefined) return null;
    let first = low - 1;
    while (this.#entries[first - 1]?.address === last.address) first--;
    const found = this.#entries.slice(first, low).find(({ name }) => name !== null);
    if (found === undefined || (found.end !== null && address >= found.end)) return null;
    return found.name;
  }
}

function readMap(text: string): SymbolEntry[] {
  return text.split("\n").flatMap((line) => {
    const [, address, kind = "", name = ""] = MAP_LINE.exec(line) ?? [];
    if (address === undefined || NO_NAME.test(name)) return [];
    const isFunction = /[tw]/i.test(kind);
    return [{ address: BigInt(`0x${address}`), name: isFunction ? name : null, end: null }];
  });
}

/** Whatever lies outside of the file is left out. */
function readElfSymbols(bytes: Uint8Array, view: DataView): SymbolEntry[] {
  const sections = readSections(view);
  const entries: SymbolEntry[] = [];
  for (const { type, link, offset, size } of sections) {
    const names = sections[link];
    if ((type !== SHT_SYMTAB && type !== SHT_DYNSYM) || names === undefined) continue;
    const table = bytes.subarray(names.offset, names.offset + names.size);
    const end = Math.min(offset + size, bytes.length) - SYMBOL_BYTES;
    for (let at = offset; at <= end; at += SYMBOL_BYTES) {
      const kind = view.getUint8(at + 4) & 15;
      const isDefined = view.getUint16(at + 6, true) !== 0;
      if (!isDefined || (kind !== STT_FUNC && kind !== STT_NOTYPE)) continue;
      const name = readName(table, view.getUint32(at, true));
      if (name === "" || NO_NAME.test(name)) continue;
      const address = view.getBigUint64(at + 8, true);
      const length = view.getBigUint64(at + 16, true);
      entries.push({ address, name, end: length === 0n ? null : address + length });
    }
  }
  return entries;
}

function readSections(view: DataView) {
  const table = Number(view.getBigUint64(40, true));
  const stride = view.getUint16(58, true);
  const count = view.getUint16(60, true);
  const sections: { type: number; link: number; offset: number; size: number }[] = [];
  if (stride < SECTION_HEADER_BYTES) return sections;
  for (let index = 0; index < count; index++) {
    const at = table + index * stride;
    if (!(at + SECTION_HEADER_BYTES <= view.byteLength)) break;
    sections.push({
      type: view.getUint32(at + 4, true),
      offset: Number(view.getBigUint64(at + 24, true)),
      size: Number(view.getBigUint64(at + 32, true)),
      link: view.getUint32(at + 40, true),
    });
  }
  return sections;
}

function readName(table: Uint8Array, offset: number): string {
  const end = table.indexOf(0, offset);
  return end < 0 ? "" : new TextDecoder().decode(table.subarray(offset, end));
}
