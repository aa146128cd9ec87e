/**
 * Squashfs 4.0, read-only (Linux: Documentation/filesystems/squashfs.rst). Metadata comes in
 * compressed blocks of 8 KiB, data in blocks of the file system's size, tails in shared fragments.
 *
 * @module
 */

import type { WaitOptions } from "../disk.ts";
import { type Decompress, decompressorOf } from "./decompress.ts";
import { deviceOf, type FileKind, type FileNode, type FileSystem } from "./node.ts";
import { type ByteSource, corrupt, getUint64, readExactly, unsupported, viewOf } from "./source.ts";

const MAGIC = 0x73717368;
const METADATA_BYTES = 8192;
const METADATA_STORED = 0x8000;
const DATA_STORED = 1 << 24;
const NO_FRAGMENT = 0xffffffff;
const METADATA_BLOCKS_KEPT = 64;
/** A directory's listing. */
const DIRECTORY_BYTES_MAX = 256 * 1024 * 1024;
const FILE_BLOCKS_MAX = 2 ** 26;
const KINDS: readonly FileKind[] = [
  "directory",
  "file",
  "symlink",
  "block-device",
  "character-device",
  "fifo",
  "socket",
];

interface Superblock {
  blockBytes: number;
  fragmentCount: number;
  idCount: number;
  rootInode: number;
  idTable: number;
  inodeTable: number;
  directoryTable: number;
  fragmentTable: number;
}

/** Whether there is a superblock. */
export function looksLikeSquashfs(start: Uint8Array): boolean {
  return start.length >= 96 && viewOf(start).getUint32(0, true) === MAGIC;
}

/** Opens it. */
export async function openSquashfs(
  source: ByteSource,
  options: WaitOptions = {},
): Promise<FileSystem> {
  const bytes = await readExactly(source, 0, 96, options);
  const view = viewOf(bytes);
  const version = `${view.getUint16(28, true)}.${view.getUint16(30, true)}`;
  if (version !== "4.0") throw unsupported(`squashfs ${version} is not supported`);
  const blockBytes = view.getUint32(12, true);
  const logBlock = view.getUint16(22, true);
  if (logBlock < 12 || logBlock > 20 || blockBytes !== 1 << logBlock) {
    throw corrupt(`blocks of ${blockBytes} bytes`);
  }
  const superblock: Superblock = {
    blockBytes,
    fragmentCount: view.getUint32(16, true),
    idCount: view.getUint16(26, true),
    rootInode: getUint64(view, 32),
    idTable: getUint64(view, 48),
    inodeTable: getUint64(view, 64),
    directoryTable: getUint64(view, 72),
    fragmentTable: getUint64(view, 80),
  };
  const decompress = await decompressorOf(view.getUint16(20, true));
  const volume = new SquashfsVolume(source, superblock, decompress);
  return { type: "squashfs", label: "", root: await volume.inode(superblock.rootInode, options) };
}

/** A place in metadata that is read in order, over the borders of blocks. */
interface Cursor {
  block: number;
  offset: number;
}

class SquashfsVolume {
  readonly superblock: Superblock;
  readonly #source: ByteSource;
  readonly #decompress: Decompress;
  /** By place; `next` is the place of the block behind it. */
  readonly #metadata = new Map<number, { bytes: Uint8Array<ArrayBuffer>; next: number }>();
  #fragment: { index: number; bytes: Uint8Array<ArrayBuffer> } | null = null;

  constructor(source: ByteSource, superblock: Superblock, decompress: Decompress) {
    this.#source = source;
    this.superblock = superblock;
    this.#decompress = decompress;
  }

  /** The inode behind a reference: its block's place in the table, and the place in that. */
  async inode(reference: number, options: WaitOptions): Promise<SquashfsNode> {
    const cursor = {
      block: this.superblock.inodeTable + Math.floor(reference / 65536),
      offset: reference % 65536,
    };
    const header = viewOf(await this.take(cursor, 16, options));
    const type = header.getUint16(0, true);
    const kind = KINDS[(type - 1) % 7];
    if (kind === undefined || type > 14) throw corrupt(`an inode of type ${type}`);
    const common = {
      kind,
      mode: header.getUint16(2, true) & 0o7777,
      uid: await this.#id(header.getUint16(4, true), options),
      gid: await this.#id(header.getUint16(6, true), options),
      modifiedAt: new Date(header.getUint32(8, true) * 1000),
      id: header.getUint32(12, true),
    };
    const facts = await this.#facts(kind, type > 7, cursor, options);
    return new SquashfsNode(this, { ...common, ...facts });
  }

  /** Takes bytes at the cursor, which moves on. */
  async take(
    cursor: Cursor,
    length: number,
    options: WaitOptions,
  ): Promise<Uint8Array<ArrayBuffer>> {
    const result = new Uint8Array(length);
    for (let done = 0; done < length;) {
      const { bytes, next } = await this.#metadataBlock(cursor.block, options);
      if (cursor.offset > bytes.length) throw corrupt("metadata ends early");
      const part = bytes.subarray(cursor.offset, cursor.offset + length - done);
      result.set(part, done);
      done += part.length;
      cursor.offset += part.length;
      if (done < length) {
        if (bytes.length < METADATA_BYTES) throw corrupt("metadata ends early");
        cursor.block = next;
        cursor.offset = 0;
      }
    }
    return result;
  }

  /** A block of a file's data; `size` is the word that the inode has for it. */
  async dataBlock(
    offset: number,
    size: number,
    options: WaitOptions,
  ): Promise<Uint8Array<ArrayBuffer>> {
    const { blockBytes } = this.superblock;
    const stored = size & (DATA_STORED - 1);
    if (stored > blockBytes) throw corrupt("a block is longer than it may be");
    const bytes = await readExactly(this.#source, offset, stored, options);
    return (size & DATA_STORED) !== 0 ? bytes : await this.#decompress(bytes, blockBytes);
  }

  /** A block of tails. */
  async fragment(index: number, options: WaitOptions): Promise<Uint8Array<ArrayBuffer>> {
    if (this.#fragment?.index === index) return this.#fragment.bytes;
    const { fragmentTable, fragmentCount } = this.superblock;
    if (index >= fragmentCount) throw corrupt(`fragment ${index} of ${fragmentCount}`);
    const entry = viewOf(await this.#tableEntry(fragmentTable, index, 16, options));
    const bytes = await this.dataBlock(getUint64(entry, 0), entry.getUint32(8, true), options);
    this.#fragment = { index, bytes };
    return bytes;
  }

  async #facts(
    kind: FileKind,
    isExtended: boolean,
    cursor: Cursor,
    options: WaitOptions,
  ): Promise<KindFacts> {
    const take = async (length: number) => viewOf(await this.take(cursor, length, options));
    if (kind === "directory") {
      const view = await take(isExtended ? 24 : 16);
      return isExtended
        ? directory(view.getUint32(0, true), view.getUint32(4, true), {
          block: view.getUint32(8, true),
          offset: view.getUint16(18, true),
        })
        : directory(view.getUint32(4, true), view.getUint16(8, true), {
          block: view.getUint32(0, true),
          offset: view.getUint16(10, true),
        });
    }
    if (kind === "file") return await this.#fileFacts(isExtended, cursor, options);
    const view = await take(kind === "symlink" ? 8 : kind.endsWith("-device") ? 8 : 4);
    const linkCount = view.getUint32(0, true);
    if (kind === "symlink") {
      const length = view.getUint32(4, true);
      if (length > 65536) throw corrupt("a symbolic link is endless");
      const target = new TextDecoder().decode(await this.take(cursor, length, options));
      return { linkCount, sizeBytes: length, target };
    }
    if (!kind.endsWith("-device")) return { linkCount, sizeBytes: 0 };
    return { linkCount, sizeBytes: 0, device: deviceOf(view.getUint32(4, true)) };
  }

  async #fileFacts(
    isExtended: boolean,
    cursor: Cursor,
    options: WaitOptions,
  ): Promise<KindFacts> {
    const view = viewOf(await this.take(cursor, isExtended ? 40 : 16, options));
    const start = isExtended ? getUint64(view, 0) : view.getUint32(0, true);
    const sizeBytes = isExtended ? getUint64(view, 8) : view.getUint32(12, true);
    const linkCount = isExtended ? view.getUint32(24, true) : 1;
    const fragment = view.getUint32(isExtended ? 28 : 4, true);
    const fragmentOffset = view.getUint32(isExtended ? 32 : 8, true);
    const hasFragment = fragment !== NO_FRAGMENT;
    const { blockBytes } = this.superblock;
    const blocks = hasFragment
      ? Math.floor(sizeBytes / blockBytes)
      : Math.ceil(sizeBytes / blockBytes);
    if (blocks > FILE_BLOCKS_MAX) throw corrupt(`a file of ${sizeBytes} bytes`);
    return {
      linkCount,
      sizeBytes,
      file: {
        start,
        blocks,
        sizesAt: { ...cursor },
        fragment: hasFragment ? { index: fragment, offset: fragmentOffset } : null,
      },
    };
  }

  async #id(index: number, options: WaitOptions): Promise<number> {
    const { idTable, idCount } = this.superblock;
    if (index >= idCount) throw corrupt(`user or group ${index} of ${idCount}`);
    return viewOf(await this.#tableEntry(idTable, index, 4, options)).getUint32(0, true);
  }

  /** An entry of a table whose metadata blocks are listed at `table`. */
  async #tableEntry(
    table: number,
    index: number,
    entryBytes: number,
    options: WaitOptions,
  ): Promise<Uint8Array<ArrayBuffer>> {
    const at = index * entryBytes;
    const slot = table + 8 * Math.floor(at / METADATA_BYTES);
    const place = viewOf(await readExactly(this.#source, slot, 8, options));
    const cursor = { block: getUint64(place, 0), offset: at % METADATA_BYTES };
    return await this.take(cursor, entryBytes, options);
  }

  async #metadataBlock(
    place: number,
    options: WaitOptions,
  ): Promise<{ bytes: Uint8Array<ArrayBuffer>; next: number }> {
    const kept = this.#metadata.get(place);
    if (kept !== undefined) return kept;
    const header = viewOf(await readExactly(this.#source, place, 2, options)).getUint16(0, true);
    const stored = header & (METADATA_STORED - 1);
    if (stored > METADATA_BYTES) throw corrupt("a metadata block is longer than it may be");
    const raw = await readExactly(this.#source, place + 2, stored, options);
    const isStored = (header & METADATA_STORED) !== 0;
    const bytes = isStored ? raw : await this.#decompress(raw, METADATA_BYTES);
    if (bytes.length === 0) throw corrupt("an empty metadata block");
    const block = { bytes, next: place + 2 + stored };
    this.#metadata.set(place, block);
    for (const oldest of this.#metadata.keys()) {
      if (this.#metadata.size <= METADATA_BLOCKS_KEPT) break;
      this.#metadata.delete(oldest);
    }
    return block;
  }
}

interface KindFacts {
  linkCount: number;
  sizeBytes: number;
  target?: string;
  device?: { major: number; minor: number };
  directory?: { bytes: number; place: Cursor };
  file?: {
    start: number;
    blocks: number;
    sizesAt: Cursor;
    fragment: { index: number; offset: number } | null;
  };
}

/** A directory's size counts three bytes for "." and ".." that are not there. */
function directory(linkCount: number, size: number, place: Cursor): KindFacts {
  return { linkCount, sizeBytes: 0, directory: { bytes: Math.max(0, size - 3), place } };
}

interface NodeFacts extends KindFacts {
  kind: FileKind;
  mode: number;
  uid: number;
  gid: number;
  modifiedAt: Date;
  id: number;
}

class SquashfsNode implements FileNode {
  readonly kind: FileKind;
  readonly sizeBytes: number;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly modifiedAt: Date;
  readonly linkCount: number;
  readonly id: number;
  readonly device: { major: number; minor: number } | null;
  readonly #volume: SquashfsVolume;
  readonly #facts: NodeFacts;
  /** Places and size words of the file's blocks, once they were read. */
  #blocks: { places: Float64Array; sizes: Uint32Array } | null = null;
  #lastBlock: { index: number; bytes: Uint8Array } | null = null;

  constructor(volume: SquashfsVolume, facts: NodeFacts) {
    this.#volume = volume;
    this.#facts = facts;
    this.kind = facts.kind;
    this.sizeBytes = facts.sizeBytes;
    this.mode = facts.mode;
    this.uid = facts.uid;
    this.gid = facts.gid;
    this.modifiedAt = facts.modifiedAt;
    this.linkCount = facts.linkCount;
    this.id = facts.id;
    this.device = facts.device ?? null;
  }

  async *entries(options: WaitOptions): AsyncGenerator<[string, FileNode]> {
    const { directory } = this.#facts;
    if (directory === undefined) return;
    if (directory.bytes > DIRECTORY_BYTES_MAX) throw corrupt("a directory is endless");
    const cursor = {
      block: this.#volume.superblock.directoryTable + directory.place.block,
      offset: directory.place.offset,
    };
    for (let left = directory.bytes; left > 0;) {
      const header = viewOf(await this.#volume.take(cursor, 12, options));
      const count = header.getUint32(0, true) + 1;
      const block = header.getUint32(4, true);
      if (count > 256) throw corrupt("a directory has a damaged header");
      left -= 12;
      for (let index = 0; index < count; index++) {
        const entry = viewOf(await this.#volume.take(cursor, 8, options));
        const length = entry.getUint16(6, true) + 1;
        if (length > 256) throw corrupt("a directory has a damaged entry");
        const name = new TextDecoder().decode(await this.#volume.take(cursor, length, options));
        left -= 8 + length;
        if (left < 0) throw corrupt("a directory is longer than its inode says");
        const reference = block * 65536 + entry.getUint16(0, true);
        yield [name, await this.#volume.inode(reference, options)];
      }
    }
  }

  async read(
    offset: number,
    length: number,
    options: WaitOptions,
  ): Promise<Uint8Array<ArrayBuffer>> {
    const { blockBytes } = this.#volume.superblock;
    const result = new Uint8Array(length);
    for (let done = 0; done < length;) {
      const at = offset + done;
      const index = Math.floor(at / blockBytes);
      const block = await this.#block(index, options);
      const skip = at - index * blockBytes;
      const size = Math.min(blockBytes - skip, length - done);
      // A block of null is a hole.
      if (block !== null) {
        if (block.length < skip + size) throw corrupt("a block is shorter than its file");
        result.set(block.subarray(skip, skip + size), done);
      }
      done += size;
    }
    return result;
  }

  target(): Promise<string> {
    return Promise.resolve(this.#facts.target ?? "");
  }

  async #block(index: number, options: WaitOptions): Promise<Uint8Array | null> {
    const { file } = this.#facts;
    if (file === undefined) throw corrupt("this is no file");
    if (this.#lastBlock?.index === index) return this.#lastBlock.bytes;
    const { blockBytes } = this.#volume.superblock;
    if (index >= file.blocks) {
      if (file.fragment === null) throw corrupt("a file is longer than its blocks");
      const bytes = await this.#volume.fragment(file.fragment.index, options);
      const end = file.fragment.offset + this.sizeBytes - file.blocks * blockBytes;
      return bytes.subarray(file.fragment.offset, end);
    }
    const { places, sizes } = await this.#blockTable(file, options);
    const size = sizes[index] ?? 0;
    if (size === 0) return null;
    const bytes = await this.#volume.dataBlock(places[index] ?? 0, size, options);
    this.#lastBlock = { index, bytes };
    return bytes;
  }

  async #blockTable(
    file: NonNullable<KindFacts["file"]>,
    options: WaitOptions,
  ): Promise<{ places: Float64Array; sizes: Uint32Array }> {
    if (this.#blocks !== null) return this.#blocks;
    const words: number[] = [];
    const cursor = { ...file.sizesAt };
    // Piece by piece: memory follows what is really there, not what the inode says.
    while (words.length < file.blocks) {
      const count = Math.min(1024, file.blocks - words.length);
      const view = viewOf(await this.#volume.take(cursor, 4 * count, options));
      for (let index = 0; index < count; index++) words.push(view.getUint32(4 * index, true));
    }
    const places = new Float64Array(words.length);
    let place = file.start;
    words.forEach((word, index) => {
      places[index] = place;
      place += word & (DATA_STORED - 1);
    });
    this.#blocks = { places, sizes: Uint32Array.from(words) };
    return this.#blocks;
  }
}
