/**
 * Writes flattened device trees (Devicetree Specification 0.4, chapter 5), version 17.
 *
 *   header | memory reservation block (empty) | structure block | strings block
 *
 * @module
 */

/** A property's value: nothing, a string or several, 32-bit cells, a 64-bit number, bytes. */
export type DeviceTreeValue = true | string | string[] | number[] | bigint | Uint8Array;

/** A node, with its children in order. */
export interface DeviceTreeNode {
  /** Name with unit address ("uart@10000000"); empty for the root. */
  name: string;
  /** In order. */
  properties: Record<string, DeviceTreeValue>;
  /** In order. */
  children: DeviceTreeNode[];
}

const FDT_MAGIC = 0xd00dfeed;
const FDT_VERSION = 17;
const FDT_LAST_COMPATIBLE_VERSION = 16;
const FDT_BEGIN_NODE = 1;
const FDT_END_NODE = 2;
const FDT_PROP = 3;
const FDT_END = 9;
const HEADER_BYTES = 40;
const RESERVATION_BYTES = 16; // the end mark alone

/** Splits a 64-bit number into two cells, high first. */
export function cellsOf(value: number): [number, number] {
  return [Math.floor(value / 0x1_0000_0000), value % 0x1_0000_0000];
}

/** The blob of the tree under `root`. */
export function writeDeviceTree(root: DeviceTreeNode): Uint8Array<ArrayBuffer> {
  const strings = new StringTable();
  const structure = new ByteWriter();
  writeNode(root, structure, strings);
  structure.cell(FDT_END);

  const structureOffset = HEADER_BYTES + RESERVATION_BYTES;
  const stringsOffset = structureOffset + structure.length;
  const blob = new ByteWriter();
  const header = [
    FDT_MAGIC,
    stringsOffset + strings.bytes.length,
    structureOffset,
    stringsOffset,
    HEADER_BYTES,
    FDT_VERSION,
    FDT_LAST_COMPATIBLE_VERSION,
    0, // boot hart
    strings.bytes.length,
    structure.length,
  ];
  for (const cell of header) blob.cell(cell);
  blob.bytes(new Uint8Array(RESERVATION_BYTES));
  blob.bytes(structure.finish());
  blob.bytes(strings.bytes.finish());
  return blob.finish();
}

function writeNode(node: DeviceTreeNode, structure: ByteWriter, strings: StringTable): void {
  structure.cell(FDT_BEGIN_NODE);
  structure.string(node.name);
  structure.align();
  for (const [name, value] of Object.entries(node.properties)) {
    const bytes = encodeValue(value);
    structure.cell(FDT_PROP);
    structure.cell(bytes.length);
    structure.cell(strings.offsetOf(name));
    structure.bytes(bytes);
    structure.align();
  }
  for (const child of node.children) writeNode(child, structure, strings);
  structure.cell(FDT_END_NODE);
}

function encodeValue(value: DeviceTreeValue): Uint8Array {
  if (value instanceof Uint8Array) return value;
  const writer = new ByteWriter();
  if (typeof value === "string") writer.string(value);
  else if (typeof value === "bigint") {
    writer.cell(Number(value >> 32n));
    writer.cell(Number(value & 0xffff_ffffn));
  } else if (Array.isArray(value)) {
    for (const item of value) {
      if (typeof item === "string") writer.string(item);
      else writer.cell(item);
    }
  }
  return writer.finish();
}

/** Property names, each once, by their offset in the strings block. */
class StringTable {
  readonly bytes = new ByteWriter();
  readonly #offsets = new Map<string, number>();

  offsetOf(name: string): number {
    const known = this.#offsets.get(name);
    if (known !== undefined) return known;
    const offset = this.bytes.length;
    this.#offsets.set(name, offset);
    this.bytes.string(name);
    return offset;
  }
}

/** Collects big-endian cells, strings and bytes. */
class ByteWriter {
  #buffer = new Uint8Array(256);
  length = 0;

  cell(value: number): void {
    this.#reserve(4);
    new DataView(this.#buffer.buffer).setUint32(this.length, value);
    this.length += 4;
  }

  string(text: string): void {
    this.bytes(new TextEncoder().encode(`${text}\0`));
  }

  bytes(bytes: Uint8Array): void {
    this.#reserve(bytes.length);
    this.#buffer.set(bytes, this.length);
    this.length += bytes.length;
  }

  /** Fills up to a multiple of four bytes. */
  align(): void {
    this.bytes(new Uint8Array(-this.length & 3));
  }

  finish(): Uint8Array<ArrayBuffer> {
    return this.#buffer.slice(0, this.length);
  }

  #reserve(count: number): void {
    if (this.length + count <= this.#buffer.length) return;
    const larger = new Uint8Array(Math.max(2 * this.#buffer.length, this.length + count));
    larger.set(this.#buffer.subarray(0, this.length));
    this.#buffer = larger;
  }
}
