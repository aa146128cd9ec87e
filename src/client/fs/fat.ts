/**
 * FAT12, FAT16 and FAT32 with long names, read-only (Microsoft, "FAT32 File System Specification"
 * 1.03).
 *
 * @module
 */

import type { WaitOptions } from "../disk.ts";
import type { FileKind, FileNode, FileSystem } from "./node.ts";
import { type ByteSource, corrupt, readExactly, unsupported, viewOf } from "./source.ts";

const ENTRY_BYTES = 32;
/** A directory has at most 65,536 entries (specification, "FAT Directory Structure"). */
const DIRECTORY_BYTES_MAX = 65536 * ENTRY_BYTES;
const ATTRIBUTE = { readOnly: 0x01, volume: 0x08, directory: 0x10, longName: 0x0f };
const FAT12_CLUSTERS = 4085;
const FAT16_CLUSTERS = 65525;
const LONG_NAME_PARTS_MAX = 20;
const LAST_LONG_PART = 0x40;
const FAT_PAGE_BYTES = 4096;

interface Geometry {
  bits: 12 | 16 | 32;
  fatOffset: number;
  fatBytes: number;
  clusterBytes: number;
  clusterCount: number;
  dataOffset: number;
  /** Of FAT12 and FAT16: a place of its own. */
  rootOffset: number;
  rootBytes: number;
  /** Of FAT32: a chain of clusters. */
  rootCluster: number;
}

/** Whether the boot sector is one of FAT's. */
export function looksLikeFat(start: Uint8Array): boolean {
  if (start.length < 512 || viewOf(start).getUint16(510, true) !== 0xaa55) return false;
  const view = viewOf(start);
  const jump = start[0];
  const sectorBytes = view.getUint16(11, true);
  const perCluster = start[13] ?? 0;
  const fats = start[16] ?? 0;
  return (jump === 0xeb || jump === 0xe9) && [512, 1024, 2048, 4096].includes(sectorBytes) &&
    perCluster > 0 && (perCluster & (perCluster - 1)) === 0 && fats >= 1 && fats <= 4 &&
    view.getUint16(14, true) > 0;
}

/** Opens it. Throws a FileSystemError where it is corrupt. */
export async function openFat(source: ByteSource, options: WaitOptions = {}): Promise<FileSystem> {
  const boot = await readExactly(source, 0, 512, options);
  const geometry = parseBootSector(boot, source.sizeBytes);
  const volume = new FatVolume(source, geometry);
  const root = new FatNode(volume, {
    kind: "directory",
    sizeBytes: 0,
    cluster: geometry.rootCluster,
    isReadOnly: false,
    modifiedAt: new Date(0),
    id: 1,
  });
  let label = new TextDecoder("latin1").decode(
    geometry.bits === 32 ? boot.subarray(71, 82) : boot.subarray(43, 54),
  ).trim();
  if (label === "NO NAME") label = "";
  return { type: `fat${geometry.bits}`, label, root };
}

function parseBootSector(boot: Uint8Array, sizeBytes: number): Geometry {
  const view = viewOf(boot);
  const sectorBytes = view.getUint16(11, true);
  const clusterBytes = sectorBytes * (boot[13] ?? 0);
  const reserved = view.getUint16(14, true);
  const rootBytes = view.getUint16(17, true) * ENTRY_BYTES;
  const fatSectors = view.getUint16(22, true) || view.getUint32(36, true);
  const sectors = view.getUint16(19, true) || view.getUint32(32, true);
  const fatOffset = reserved * sectorBytes;
  const fatBytes = fatSectors * sectorBytes;
  const rootOffset = fatOffset + fatBytes * (boot[16] ?? 0);
  const dataOffset = rootOffset + Math.ceil(rootBytes / sectorBytes) * sectorBytes;
  const end = sectors * sectorBytes;
  if (end > sizeBytes || dataOffset >= end || fatBytes === 0) {
    throw corrupt(`FAT of ${end} bytes on a disk of ${sizeBytes}`);
  }
  // The number of clusters, and nothing else, says which FAT it is.
  const clusterCount = Math.floor((end - dataOffset) / clusterBytes);
  const bits = clusterCount < FAT12_CLUSTERS ? 12 : clusterCount < FAT16_CLUSTERS ? 16 : 32;
  if (Math.ceil(((clusterCount + 2) * bits) / 8) > fatBytes) {
    throw corrupt(`a FAT of ${fatBytes} bytes for ${clusterCount} clusters`);
  }
  const rootCluster = bits === 32 ? view.getUint32(44, true) : 0;
  if (bits === 32 && rootBytes !== 0) throw corrupt("FAT32 with a root directory of its own");
  return {
    bits,
    fatOffset,
    fatBytes,
    clusterBytes,
    clusterCount,
    dataOffset,
    rootOffset,
    rootBytes,
    rootCluster,
  };
}

/** Clusters of an open volume. */
class FatVolume {
  readonly source: ByteSource;
  readonly geometry: Geometry;
  #page: { offset: number; bytes: Uint8Array } | null = null;

  constructor(source: ByteSource, geometry: Geometry) {
    this.source = source;
    this.geometry = geometry;
  }

  /** Where a cluster's bytes are. */
  offsetOf(cluster: number): number {
    const { clusterCount, dataOffset, clusterBytes } = this.geometry;
    if (cluster < 2 || cluster >= clusterCount + 2) throw corrupt(`cluster ${cluster} is used`);
    return dataOffset + (cluster - 2) * clusterBytes;
  }

  /** The cluster after this one, null: it is the last. */
  async next(cluster: number, options: WaitOptions): Promise<number | null> {
    const { bits } = this.geometry;
    if (bits === 12) {
      const at = cluster + (cluster >>> 1);
      const pair = await this.#byte(at, options) | await this.#byte(at + 1, options) << 8;
      const value = cluster & 1 ? pair >>> 4 : pair & 0xfff;
      return value >= 0xff8 ? null : value;
    }
    const at = cluster * (bits / 8);
    const { bytes, offset } = await this.#pageAt(at, options);
    const view = viewOf(bytes);
    if (bits === 16) {
      const value = view.getUint16(at - offset, true);
      return value >= 0xfff8 ? null : value;
    }
    const value = view.getUint32(at - offset, true) & 0x0fffffff;
    return value >= 0x0ffffff8 ? null : value;
  }

  async #byte(at: number, options: WaitOptions): Promise<number> {
    const { bytes, offset } = await this.#pageAt(at, options);
    return bytes[at - offset] ?? 0;
  }

  async #pageAt(
    at: number,
    options: WaitOptions,
  ): Promise<{ offset: number; bytes: Uint8Array }> {
    const offset = at - at % FAT_PAGE_BYTES;
    if (this.#page?.offset === offset) return this.#page;
    const { fatOffset, fatBytes } = this.geometry;
    const length = Math.min(FAT_PAGE_BYTES, fatBytes - offset);
    const bytes = await readExactly(this.source, fatOffset + offset, length, options);
    this.#page = { offset, bytes };
    return this.#page;
  }
}

interface FatFacts {
  kind: FileKind;
  sizeBytes: number;
  cluster: number;
  isReadOnly: boolean;
  modifiedAt: Date;
  id: number;
}

class FatNode implements FileNode {
  readonly kind: FileKind;
  readonly sizeBytes: number;
  readonly mode: number;
  readonly uid = 0;
  readonly gid = 0;
  readonly modifiedAt: Date;
  readonly linkCount = 1;
  readonly id: number;
  readonly device = null;
  readonly #volume: FatVolume;
  readonly #first: number;
  /** The chain as far as it was followed. */
  readonly #chain: number[] = [];

  constructor(volume: FatVolume, facts: FatFacts) {
    this.#volume = volume;
    this.#first = facts.cluster;
    this.kind = facts.kind;
    this.sizeBytes = facts.sizeBytes;
    this.mode = (facts.kind === "directory" ? 0o755 : 0o644) & (facts.isReadOnly ? 0o555 : 0o777);
    this.modifiedAt = facts.modifiedAt;
    this.id = facts.id;
  }

  async *entries(options: WaitOptions): AsyncGenerator<[string, FileNode]> {
    const names = new LongNames();
    for await (const { at, bytes } of this.#directoryParts(options)) {
      for (let offset = 0; offset + ENTRY_BYTES <= bytes.length; offset += ENTRY_BYTES) {
        const entry = bytes.subarray(offset, offset + ENTRY_BYTES);
        if (entry[0] === 0) return;
        const attributes = entry[11] ?? 0;
        if (entry[0] === 0xe5) names.clear();
        else if ((attributes & ATTRIBUTE.longName) === ATTRIBUTE.longName) names.add(entry);
        else {
          const name = names.take(entry);
          if ((attributes & ATTRIBUTE.volume) !== 0 || name === "." || name === "..") continue;
          yield [name, this.#child(entry, at + offset)];
        }
      }
    }
  }

  async read(
    offset: number,
    length: number,
    options: WaitOptions,
  ): Promise<Uint8Array<ArrayBuffer>> {
    const { clusterBytes } = this.#volume.geometry;
    const result = new Uint8Array(length);
    for (let done = 0; done < length;) {
      const at = offset + done;
      const index = Math.floor(at / clusterBytes);
      const wanted = Math.ceil((offset + length) / clusterBytes) - index;
      const { place, count } = await this.#run(index, wanted, options);
      const skip = at - index * clusterBytes;
      const size = Math.min(count * clusterBytes - skip, length - done);
      result.set(await readExactly(this.#volume.source, place + skip, size, options), done);
      done += size;
    }
    return result;
  }

  target(): Promise<string> {
    return Promise.reject(corrupt("FAT has no symbolic links"));
  }

  /** Where cluster `index` of the chain is, and how many up to `wanted` lie behind it. */
  async #run(
    index: number,
    wanted: number,
    options: WaitOptions,
  ): Promise<{ place: number; count: number }> {
    const first = await this.#cluster(index, options);
    if (first === null) throw corrupt("a file is longer than its chain of clusters");
    let count = 1;
    while (count < wanted && await this.#cluster(index + count, options) === first + count) count++;
    return { place: this.#volume.offsetOf(first), count };
  }

  async #cluster(index: number, options: WaitOptions): Promise<number | null> {
    const chain = this.#chain;
    if (chain.length === 0) chain.push(this.#first);
    while (chain.length <= index) {
      const next = await this.#volume.next(chain.at(-1) ?? 0, options);
      if (next === null) return null;
      if (chain.length > this.#volume.geometry.clusterCount) throw corrupt("a chain has a loop");
      this.#volume.offsetOf(next);
      chain.push(next);
    }
    return chain[index] ?? null;
  }

  async *#directoryParts(
    options: WaitOptions,
  ): AsyncGenerator<{ at: number; bytes: Uint8Array }> {
    const { source, geometry } = this.#volume;
    if (this.#first === 0) {
      const { rootOffset: at, rootBytes } = geometry;
      yield { at, bytes: await readExactly(source, at, rootBytes, options) };
      return;
    }
    for (let index = 0; index * geometry.clusterBytes < DIRECTORY_BYTES_MAX; index++) {
      const cluster = await this.#cluster(index, options);
      if (cluster === null) return;
      const at = this.#volume.offsetOf(cluster);
      yield { at, bytes: await readExactly(source, at, geometry.clusterBytes, options) };
    }
  }

  #child(entry: Uint8Array, at: number): FatNode {
    const view = viewOf(entry);
    const attributes = entry[11] ?? 0;
    const isDirectory = (attributes & ATTRIBUTE.directory) !== 0;
    const high = this.#volume.geometry.bits === 32 ? view.getUint16(20, true) : 0;
    const sizeBytes = isDirectory ? 0 : view.getUint32(28, true);
    const cluster = high * 65536 + view.getUint16(26, true);
    if (isDirectory || sizeBytes > 0) this.#volume.offsetOf(cluster);
    return new FatNode(this.#volume, {
      kind: isDirectory ? "directory" : "file",
      sizeBytes,
      cluster,
      isReadOnly: (attributes & ATTRIBUTE.readOnly) !== 0,
      modifiedAt: timeOf(view.getUint16(24, true), view.getUint16(22, true)),
      // The place of its entry: there are no inodes.
      id: at / ENTRY_BYTES,
    });
  }
}

/** The parts of a long name stand before its entry, the last first. */
class LongNames {
  #parts: string[] = [];
  #checksum = -1;
  #expected = 0;

  clear(): void {
    this.#parts = [];
    this.#expected = 0;
  }

  add(entry: Uint8Array): void {
    const order = entry[0] ?? 0;
    const number = order & 0x3f;
    if ((order & LAST_LONG_PART) !== 0) {
      this.clear();
      this.#checksum = entry[13] ?? -1;
      this.#expected = number;
    }
    if (number === 0 || number > LONG_NAME_PARTS_MAX || number !== this.#expected) {
      return this.clear();
    }
    this.#expected--;
    const decode = (from: number, to: number) =>
      new TextDecoder("utf-16le").decode(entry.subarray(from, to));
    this.#parts.unshift(decode(1, 11) + decode(14, 26) + decode(28, 32));
  }

  /** The name of an entry: the long one, if it is whole and belongs to this entry. */
  take(entry: Uint8Array): string {
    const long = this.#parts.join("").replace(/\0.*$/s, "");
    const isWhole = long !== "" && this.#expected === 0 && checksumOf(entry) === this.#checksum;
    this.clear();
    return isWhole ? long : shortName(entry);
  }
}

function checksumOf(entry: Uint8Array): number {
  let sum = 0;
  for (const byte of entry.subarray(0, 11)) sum = (((sum & 1) << 7) + (sum >>> 1) + byte) & 0xff;
  return sum;
}

function shortName(entry: Uint8Array): string {
  const bytes = entry.slice(0, 11);
  if (bytes[0] === 0x05) bytes[0] = 0xe5;
  const flags = entry[12] ?? 0;
  const decode = (from: number, to: number, isLower: boolean): string => {
    const text = new TextDecoder("latin1").decode(bytes.subarray(from, to)).trimEnd();
    return isLower ? text.toLowerCase() : text;
  };
  // Windows NT keeps names that are all lower case so.
  const base = decode(0, 8, (flags & 0x08) !== 0);
  const extension = decode(8, 11, (flags & 0x10) !== 0);
  return extension === "" ? base : `${base}.${extension}`;
}

function timeOf(date: number, time: number): Date {
  return new Date(Date.UTC(
    1980 + (date >>> 9),
    Math.max(0, ((date >>> 5) & 15) - 1),
    Math.max(1, date & 31),
    time >>> 11,
    (time >>> 5) & 63,
    (time & 31) * 2,
  ));
}

/** The refusal of exFAT, which is another format. */
export function refuseExFat(start: Uint8Array): void {
  if (new TextDecoder("latin1").decode(start.subarray(3, 11)) === "EXFAT   ") {
    throw unsupported("exFAT is not supported");
  }
}
