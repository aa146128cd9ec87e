/**
 * ISO 9660 (ECMA-119) with Rock Ridge (SUSP 1.12, RRIP 1.12) or Joliet names, read-only.
 *
 * @module
 */

import type { WaitOptions } from "../disk.ts";
import { type FileKind, type FileNode, type FileSystem, kindOfMode } from "./node.ts";
import { type ByteSource, corrupt, readExactly, viewOf } from "./source.ts";

const SECTOR = 2048;
const FIRST_DESCRIPTOR = 16;
const DESCRIPTORS_MAX = 64;
const RECORD_BYTES = 34;
const FLAG_DIRECTORY = 2;
const FLAG_MORE_EXTENTS = 0x80;
const DIRECTORY_BYTES_MAX = 256 * 1024 * 1024;
const CONTINUATIONS_MAX = 32;
const JOLIET = new Set(["%/@", "%/C", "%/E"]);

/** Whether there are volume descriptors; `start` has at least 34 KiB of the disk. */
export function looksLikeIso9660(start: Uint8Array): boolean {
  const at = FIRST_DESCRIPTOR * SECTOR;
  return new TextDecoder("latin1").decode(start.subarray(at + 1, at + 6)) === "CD001";
}

/** Opens it, with the best names that it has. */
export async function openIso9660(
  source: ByteSource,
  options: WaitOptions = {},
): Promise<FileSystem> {
  let primary: Uint8Array | null = null;
  let joliet: Uint8Array | null = null;
  for (let index = 0; index < DESCRIPTORS_MAX; index++) {
    const at = (FIRST_DESCRIPTOR + index) * SECTOR;
    const descriptor = await readExactly(source, at, SECTOR, options);
    if (new TextDecoder("latin1").decode(descriptor.subarray(1, 6)) !== "CD001") break;
    if (descriptor[0] === 255) break;
    if (descriptor[0] === 1) primary ??= descriptor;
    const escape = new TextDecoder("latin1").decode(descriptor.subarray(88, 91));
    if (descriptor[0] === 2 && JOLIET.has(escape)) joliet ??= descriptor;
  }
  if (primary === null) throw corrupt("ISO 9660 without a primary volume descriptor");
  if (viewOf(primary).getUint16(128, true) !== SECTOR) throw corrupt("blocks are not 2 KiB long");
  const plain = new IsoVolume(source, { isJoliet: false, skip: null });
  const skip = await plain.rockRidgeSkip(primary, options);
  const label = textOf(primary.subarray(40, 72), false).trim();
  if (skip !== null || joliet === null) {
    const volume = new IsoVolume(source, { isJoliet: false, skip });
    return { type: "iso9660", label, root: await volume.root(primary, options) };
  }
  const volume = new IsoVolume(source, { isJoliet: true, skip: null });
  return { type: "iso9660", label, root: await volume.root(joliet, options) };
}

function textOf(bytes: Uint8Array, isJoliet: boolean): string {
  return new TextDecoder(isJoliet ? "utf-16be" : "utf-8").decode(bytes);
}

interface Extent {
  offset: number;
  sizeBytes: number;
}

/** What Rock Ridge says about a file. */
interface RockRidge {
  name: string;
  hasName: boolean;
  mode: number | null;
  linkCount: number;
  uid: number;
  gid: number;
  target: string | null;
  modifiedAt: Date | null;
  childSector: number | null;
  isRelocated: boolean;
  device: { major: number; minor: number } | null;
}

class IsoVolume {
  readonly source: ByteSource;
  readonly isJoliet: boolean;
  /** Bytes before the system use entries; null: no Rock Ridge. */
  readonly #skip: number | null;

  constructor(source: ByteSource, options: { isJoliet: boolean; skip: number | null }) {
    this.source = source;
    this.isJoliet = options.isJoliet;
    this.#skip = options.skip;
  }

  /** The SP entry of the root's own record says whether, and where, Rock Ridge begins. */
  async rockRidgeSkip(descriptor: Uint8Array, options: WaitOptions): Promise<number | null> {
    const root = descriptor.subarray(156, 156 + RECORD_BYTES);
    const first = await readExactly(this.source, extentOf(root).offset, SECTOR, options);
    const length = first[0] ?? 0;
    const at = RECORD_BYTES;
    const isSp = length >= at + 7 && first[at] === 0x53 && first[at + 1] === 0x50 &&
      first[at + 4] === 0xbe && first[at + 5] === 0xef;
    return isSp ? first[at + 6] ?? 0 : null;
  }

  /** The root directory; Rock Ridge's facts about it stand in its own "." record. */
  async root(descriptor: Uint8Array, options: WaitOptions): Promise<IsoNode> {
    const record = descriptor.subarray(156, 156 + RECORD_BYTES);
    const first = await readExactly(this.source, extentOf(record).offset, SECTOR, options);
    const self = first.subarray(0, Math.max(RECORD_BYTES, first[0] ?? 0));
    return new IsoNode(this, self, [extentOf(record)], await this.rockRidge(self, options));
  }

  /** Reads the system use entries of a record; null where the volume has none. */
  async rockRidge(record: Uint8Array, options: WaitOptions): Promise<RockRidge | null> {
    if (this.#skip === null) return null;
    const nameBytes = record[32] ?? 0;
    // The name is padded to an even place.
    const begin = 33 + nameBytes + (nameBytes % 2 === 0 ? 1 : 0) + this.#skip;
    const facts: RockRidge = {
      name: "",
      hasName: false,
      mode: null,
      linkCount: 1,
      uid: 0,
      gid: 0,
      target: null,
      modifiedAt: null,
      childSector: null,
      isRelocated: false,
      device: null,
    };
    let area: Uint8Array | null = record.subarray(begin);
    const link = new LinkText();
    for (let count = 0; area !== null && count < CONTINUATIONS_MAX; count++) {
      const next = readEntries(area, facts, link);
      if (next === null) break;
      if (next.length > SECTOR) throw corrupt("a continuation area is longer than a sector");
      area = await readExactly(this.source, next.offset, next.length, options);
    }
    facts.target = link.text;
    return facts;
  }
}

/** Takes what a system use area says; returns where it is continued. */
function readEntries(
  area: Uint8Array,
  facts: RockRidge,
  link: LinkText,
): { offset: number; length: number } | null {
  let continued: { offset: number; length: number } | null = null;
  for (let at = 0; at + 4 <= area.length;) {
    const length = area[at + 2] ?? 0;
    if (length < 4 || at + length > area.length) break;
    const entry = area.subarray(at, at + length);
    const view = viewOf(entry);
    const signature = String.fromCharCode(entry[0] ?? 0, entry[1] ?? 0);
    if (signature === "ST") break;
    if (signature === "CE" && length >= 28) {
      continued = {
        offset: view.getUint32(4, true) * SECTOR + view.getUint32(12, true),
        length: view.getUint32(20, true),
      };
    } else readEntry(signature, entry, facts, link);
    at += length;
  }
  return continued;
}

function readEntry(signature: string, entry: Uint8Array, facts: RockRidge, link: LinkText): void {
  const view = viewOf(entry);
  switch (signature) {
    case "NM":
      // Flags 2 and 4 are "." and "..", which are left out anyway.
      facts.hasName = true;
      facts.name += textOf(entry.subarray(5), false);
      break;
    case "PX":
      if (entry.length < 36) break;
      facts.mode = view.getUint32(4, true);
      facts.linkCount = view.getUint32(12, true);
      facts.uid = view.getUint32(20, true);
      facts.gid = view.getUint32(28, true);
      break;
    case "PN":
      if (entry.length >= 20) {
        facts.device = { major: view.getUint32(4, true), minor: view.getUint32(12, true) };
      }
      break;
    case "SL":
      link.add(entry);
      break;
    case "TF":
      facts.modifiedAt = modificationTime(entry) ?? facts.modifiedAt;
      break;
    case "CL":
      if (entry.length >= 12) facts.childSector = view.getUint32(4, true);
      break;
    case "RE":
      facts.isRelocated = true;
      break;
  }
}

/** Components of a symbolic link, which may go on over several entries (RRIP, 4.1.3). */
class LinkText {
  #parts: string[] = [];
  #isContinued = false;
  #hasAny = false;

  get text(): string | null {
    if (!this.#hasAny) return null;
    const text = this.#parts.join("/");
    return text === "" ? "/" : text;
  }

  add(entry: Uint8Array): void {
    this.#hasAny = true;
    for (let at = 5; at + 2 <= entry.length;) {
      const flags = entry[at] ?? 0;
      const length = entry[at + 1] ?? 0;
      const part = (flags & 2) !== 0
        ? "."
        : (flags & 4) !== 0
        ? ".."
        : (flags & 8) !== 0
        ? ""
        : textOf(entry.subarray(at + 2, at + 2 + length), false);
      if (this.#isContinued) this.#parts.push((this.#parts.pop() ?? "") + part);
      else this.#parts.push(part);
      this.#isContinued = (flags & 1) !== 0;
      at += 2 + length;
    }
  }
}

/** Of the time stamps that an entry has, the flags say which; modification is the second. */
function modificationTime(entry: Uint8Array): Date | null {
  const flags = entry[4] ?? 0;
  if ((flags & 2) === 0) return null;
  const isLong = (flags & 0x80) !== 0;
  const at = 5 + ((flags & 1) !== 0 ? (isLong ? 17 : 7) : 0);
  if (isLong) {
    const text = textOf(entry.subarray(at, at + 14), false);
    const match = /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)$/.exec(text);
    if (match === null) return null;
    const [year = 0, month = 0, day = 0, hour = 0, minute = 0, second = 0] = match.slice(1).map(
      Number,
    );
    return new Date(Date.UTC(year, month - 1, day, hour, minute, second));
  }
  return entry.length >= at + 7 ? recordTime(entry.subarray(at, at + 7)) : null;
}

/** ECMA-119, 9.1.5: the last byte is the zone in quarters of an hour. */
function recordTime(bytes: Uint8Array): Date {
  const [year = 0, month = 0, day = 0, hour = 0, minute = 0, second = 0, zone = 0] = bytes;
  const quarters = zone << 24 >> 24;
  const local = Date.UTC(1900 + year, month - 1, day, hour, minute, second);
  return new Date(local - quarters * 15 * 60_000);
}

function extentOf(record: Uint8Array): Extent {
  const view = viewOf(record);
  // Extended attributes stand before the content (ECMA-119, 9.1.2).
  const sector = view.getUint32(2, true) + (record[1] ?? 0);
  return { offset: sector * SECTOR, sizeBytes: view.getUint32(10, true) };
}

class IsoNode implements FileNode {
  readonly kind: FileKind;
  readonly sizeBytes: number;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly modifiedAt: Date;
  readonly linkCount: number;
  readonly id: number;
  readonly device: { major: number; minor: number } | null;
  readonly #volume: IsoVolume;
  readonly #extents: readonly Extent[];
  readonly #target: string | null;

  constructor(
    volume: IsoVolume,
    record: Uint8Array,
    extents: readonly Extent[],
    facts: RockRidge | null,
  ) {
    const isDirectory = ((record[25] ?? 0) & FLAG_DIRECTORY) !== 0;
    const plainMode = isDirectory ? 0o040555 : 0o100444;
    const mode = facts?.mode ?? plainMode;
    this.#volume = volume;
    this.#extents = extents;
    this.#target = facts?.target ?? null;
    this.kind = typeof facts?.childSector === "number" ? "directory" : kindOfMode(mode);
    this.mode = mode & 0o7777;
    this.uid = facts?.uid ?? 0;
    this.gid = facts?.gid ?? 0;
    this.linkCount = facts?.linkCount ?? 1;
    this.modifiedAt = facts?.modifiedAt ?? recordTime(record.subarray(18, 25));
    this.device = facts?.device ?? null;
    this.sizeBytes = this.kind === "symlink"
      ? (this.#target ?? "").length
      : extents.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    this.id = (extents[0]?.offset ?? 0) / SECTOR;
  }

  async *entries(options: WaitOptions): AsyncGenerator<[string, FileNode]> {
    const seen = new Set<string>();
    let extents: Extent[] = [];
    for await (const record of this.#records(options)) {
      extents.push(extentOf(record));
      // A file of more than 4 GiB has several records, the last without the flag.
      if (((record[25] ?? 0) & FLAG_MORE_EXTENTS) !== 0) continue;
      const whole = extents;
      extents = [];
      const facts = await this.#volume.rockRidge(record, options);
      if (facts?.isRelocated) continue;
      const name = facts?.hasName ? facts.name : plainName(record, this.#volume.isJoliet);
      if (seen.has(name)) continue;
      seen.add(name);
      yield [name, await this.#child(record, whole, facts, options)];
    }
  }

  async read(
    offset: number,
    length: number,
    options: WaitOptions,
  ): Promise<Uint8Array<ArrayBuffer>> {
    const result = new Uint8Array(length);
    let begin = 0;
    for (const extent of this.#extents) {
      const from = Math.max(offset, begin);
      const to = Math.min(offset + length, begin + extent.sizeBytes);
      if (from < to) {
        const at = extent.offset + from - begin;
        result.set(await readExactly(this.#volume.source, at, to - from, options), from - offset);
      }
      begin += extent.sizeBytes;
    }
    return result;
  }

  target(): Promise<string> {
    return Promise.resolve(this.#target ?? "");
  }

  async *#records(options: WaitOptions): AsyncGenerator<Uint8Array> {
    if (this.sizeBytes > DIRECTORY_BYTES_MAX) throw corrupt("a directory is endless");
    let number = 0;
    for (let at = 0; at < this.sizeBytes; at += SECTOR) {
      const length = Math.min(SECTOR, this.sizeBytes - at);
      const sector = await this.read(at, length, options);
      // Records do not cross sectors; the rest of a sector is zero.
      for (let offset = 0; offset < length;) {
        const size = sector[offset] ?? 0;
        if (size === 0) break;
        const nameBytes = sector[offset + 32] ?? 0;
        if (size < RECORD_BYTES || offset + size > length || 33 + nameBytes > size) {
          throw corrupt("a directory has a damaged record");
        }
        // The first two are "." and "..".
        if (number++ >= 2) yield sector.subarray(offset, offset + size);
        offset += size;
      }
    }
  }

  async #child(
    record: Uint8Array,
    extents: Extent[],
    facts: RockRidge | null,
    options: WaitOptions,
  ): Promise<IsoNode> {
    const sector = facts?.childSector ?? null;
    if (sector === null) return new IsoNode(this.#volume, record, extents, facts);
    // A directory too deep for ISO 9660 was moved; its own "." record has its size.
    const moved = await readExactly(this.#volume.source, sector * SECTOR, SECTOR, options);
    const self = moved.subarray(0, Math.max(RECORD_BYTES, moved[0] ?? 0));
    const own = await this.#volume.rockRidge(self, options);
    return new IsoNode(this.#volume, self, [extentOf(self)], own);
  }
}

/** Without the version number, and without the dot of an empty extension. */
function plainName(record: Uint8Array, isJoliet: boolean): string {
  const name = textOf(record.subarray(33, 33 + (record[32] ?? 0)), isJoliet);
  return name.replace(/;\d+$/, "").replace(/\.$/, "");
}
