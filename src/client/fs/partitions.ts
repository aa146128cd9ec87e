/**
 * Partition tables: GPT (UEFI Specification 2.10, 5.3) and MBR with logical partitions.
 *
 * @module
 */

import type { WaitOptions } from "../disk.ts";
import {
  type ByteSource,
  crcTable,
  crcUpdate,
  getUint64,
  readExactly,
  textOf,
  viewOf,
} from "./source.ts";

/** One partition. */
export interface Partition {
  /** As Linux numbers it: 1 is the first of the table, logical ones start at 5. */
  number: number;
  /** First byte. */
  offset: number;
  /** Bytes. */
  sizeBytes: number;
  /** GPT: the type's GUID in lower case; MBR: the type in hexadecimal, "0x83". */
  type: string;
  /** GPT's name, "" in an MBR. */
  name: string;
}

/** What a disk is divided into. */
export interface PartitionTable {
  /** "none": the disk is one whole, which may hold a file system. */
  scheme: "gpt" | "mbr" | "none";
  /** In the table's order. */
  partitions: Partition[];
}

const SECTOR = 512;
const ENTRIES_MAX = 1024;
const LOGICAL_MAX = 128;
const CRC = crcTable(0xedb88320);
const EXTENDED = new Set([0x05, 0x0f, 0x85]);
const PROTECTIVE = 0xee;

/** Reads the disk's partition table. Entries that point past the disk's end are left out. */
export async function readPartitions(
  disk: ByteSource,
  options: WaitOptions = {},
): Promise<PartitionTable> {
  if (disk.sizeBytes < SECTOR) return { scheme: "none", partitions: [] };
  const boot = await readExactly(disk, 0, SECTOR, options);
  const entries = mbrEntries(boot);
  if (entries === null) return { scheme: "none", partitions: [] };
  if (entries.some(({ type }) => type === PROTECTIVE)) {
    for (const sectorBytes of [512, 4096]) {
      const partitions = await readGpt(disk, sectorBytes, options);
      if (partitions !== null) return { scheme: "gpt", partitions };
    }
  }
  const partitions = await readMbr(disk, entries, options);
  return { scheme: partitions.length === 0 ? "none" : "mbr", partitions };
}

interface MbrEntry {
  number: number;
  type: number;
  first: number;
  count: number;
}

/** The entries in use; null where the sector is no MBR (a boot sector of FAT looks much like it). */
function mbrEntries(sector: Uint8Array): MbrEntry[] | null {
  const view = viewOf(sector);
  if (view.getUint16(510, true) !== 0xaa55) return null;
  const entries: MbrEntry[] = [];
  for (let index = 0; index < 4; index++) {
    const at = 446 + 16 * index;
    const status = sector[at] ?? 0;
    if (status !== 0 && status !== 0x80) return null;
    const type = sector[at + 4] ?? 0;
    const first = view.getUint32(at + 8, true);
    const count = view.getUint32(at + 12, true);
    if (type !== 0 && count !== 0) entries.push({ number: index + 1, type, first, count });
  }
  return entries;
}

async function readMbr(
  disk: ByteSource,
  entries: MbrEntry[],
  options: WaitOptions,
): Promise<Partition[]> {
  const partitions: Partition[] = [];
  const add = (entry: MbrEntry, number: number): void => {
    const offset = entry.first * SECTOR;
    const sizeBytes = Math.min(entry.count * SECTOR, disk.sizeBytes - offset);
    if (entry.first === 0 || sizeBytes <= 0) return;
    const type = `0x${entry.type.toString(16).padStart(2, "0")}`;
    partitions.push({ number, offset, sizeBytes, type, name: "" });
  };
  for (const entry of entries) {
    if (!EXTENDED.has(entry.type)) add(entry, entry.number);
  }
  const extended = entries.find(({ type }) => EXTENDED.has(type));
  if (extended === undefined) return partitions;
  // A chain of tables: each has one partition, relative to itself, and the next, relative to the
  // extended partition. It may lie, so it is bounded and only goes forward.
  let table = extended.first;
  for (let index = 0; index < LOGICAL_MAX; index++) {
    if ((table + 1) * SECTOR > disk.sizeBytes) break;
    const links = mbrEntries(await readExactly(disk, table * SECTOR, SECTOR, options));
    if (links === null) break;
    const here = links.find(({ type }) => !EXTENDED.has(type));
    if (here !== undefined) add({ ...here, first: table + here.first }, 5 + index);
    const next = links.find(({ type }) => EXTENDED.has(type));
    if (next === undefined || extended.first + next.first <= table) break;
    table = extended.first + next.first;
  }
  return partitions;
}

/** From the first header, else from its copy at the disk's end; null where neither is sound. */
async function readGpt(
  disk: ByteSource,
  sectorBytes: number,
  options: WaitOptions,
): Promise<Partition[] | null> {
  const lastSector = Math.floor(disk.sizeBytes / sectorBytes) - 1;
  for (const sector of [1, lastSector]) {
    if (sector < 1 || sector > lastSector) continue;
    const header = await readExactly(disk, sector * sectorBytes, sectorBytes, options);
    const partitions = await readGptEntries(disk, header, { sectorBytes, sector, options });
    if (partitions !== null) return partitions;
  }
  return null;
}

async function readGptEntries(
  disk: ByteSource,
  header: Uint8Array,
  { sectorBytes, sector, options }: { sectorBytes: number; sector: number; options: WaitOptions },
): Promise<Partition[] | null> {
  const view = viewOf(header);
  const headerBytes = view.getUint32(12, true);
  if (textOf(header.subarray(0, 8)) !== "EFI PART") return null;
  if (headerBytes < 92 || headerBytes > sectorBytes || getUint64(view, 24) !== sector) return null;
  const sum = view.getUint32(16, true);
  const unsummed = header.slice(0, headerBytes);
  unsummed.fill(0, 16, 20);
  if (crc32(unsummed) !== sum) return null;
  const count = view.getUint32(80, true);
  const entryBytes = view.getUint32(84, true);
  const at = getUint64(view, 72) * sectorBytes;
  if (entryBytes < 128 || entryBytes > 4096 || count > ENTRIES_MAX) return null;
  if (at + count * entryBytes > disk.sizeBytes) return null;
  const table = await readExactly(disk, at, count * entryBytes, options);
  if (crc32(table) !== view.getUint32(88, true)) return null;
  const partitions: Partition[] = [];
  for (let index = 0; index < count; index++) {
    const entry = table.subarray(index * entryBytes, (index + 1) * entryBytes);
    const fields = viewOf(entry);
    const type = guidOf(entry.subarray(0, 16));
    const offset = getUint64(fields, 32) * sectorBytes;
    const sizeBytes = (getUint64(fields, 40) + 1) * sectorBytes - offset;
    if (/^[0-]*$/.test(type) || sizeBytes <= 0 || offset + sizeBytes > disk.sizeBytes) continue;
    const name = new TextDecoder("utf-16le").decode(entry.subarray(56, 128)).replace(/\0.*$/s, "");
    partitions.push({ number: index + 1, offset, sizeBytes, type, name });
  }
  return partitions;
}

function crc32(bytes: Uint8Array): number {
  return ~crcUpdate(CRC, 0xffffffff, bytes) >>> 0;
}

/** The first three parts of a GUID are little-endian (UEFI Specification, appendix A). */
function guidOf(bytes: Uint8Array): string {
  const hex = (from: number, to: number, isReversed: boolean): string => {
    const part = [...bytes.subarray(from, to)];
    if (isReversed) part.reverse();
    return part.map((byte) => byte.toString(16).padStart(2, "0")).join("");
  };
  const parts = [hex(0, 4, true), hex(4, 6, true), hex(6, 8, true), hex(8, 10, false)];
  return [...parts, hex(10, 16, false)].join("-");
}
