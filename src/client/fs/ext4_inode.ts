/**
 * An inode of ext2, ext3 or ext4: where its blocks are (extents, or the block map before them), its
 * entries where it is a directory, its target where it is a symbolic link.
 *
 * @module
 */

import type { WaitOptions } from "../disk.ts";
import { deviceOf, type FileKind, type FileNode, kindOfMode } from "./node.ts";
import { corrupt, textOf, unsupported, viewOf } from "./source.ts";

/** What an inode needs of its file system. */
export interface InodeContext {
  /** Bytes of a block. */
  readonly blockBytes: number;
  /** Blocks of the file system. */
  readonly blockCount: number;
  /** Reads whole blocks that lie side by side. */
  readBlocks(block: number, count: number, options: WaitOptions): Promise<Uint8Array<ArrayBuffer>>;
  /** The inode of that number. */
  inode(number: number, options: WaitOptions): Promise<FileNode>;
}

/** Neighbouring blocks of a file: on the disk side by side, or a hole. */
interface Run {
  /** First block on the disk, null: reads as zeroes. */
  block: number | null;
  count: number;
}

const FLAG_COMPRESSED = 0x4;
const FLAG_ENCRYPTED = 0x800;
const FLAG_EXTENTS = 0x80000;
const FLAG_INLINE_DATA = 0x10000000;
const EXTENT_MAGIC = 0xf30a;
const EXTENT_DEPTH_MAX = 5;
/** A longer extent is one that was never written. */
const EXTENT_LENGTH_MAX = 32768;
const BLOCK_MAP_OFFSET = 40;
const BLOCK_MAP_BYTES = 60;
const DIRECT_BLOCKS = 12;
const XATTR_MAGIC = 0xea020000;
const XATTR_SYSTEM = 7;
/** A directory of this size has more names than a page could show. */
const DIRECTORY_BYTES_MAX = 1024 * 1024 * 1024;
const READ_BYTES_MAX = 1024 * 1024;

/** See the module's head. */
export class Ext4Inode implements FileNode {
  readonly kind: FileKind;
  readonly sizeBytes: number;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly modifiedAt: Date;
  readonly linkCount: number;
  readonly device: { major: number; minor: number } | null;
  readonly #context: InodeContext;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #flags: number;

  /** `bytes`: the inode as it is on the disk. */
  constructor(context: InodeContext, readonly id: number, bytes: Uint8Array<ArrayBuffer>) {
    const view = viewOf(bytes);
    const mode = view.getUint16(0, true);
    this.#context = context;
    this.#bytes = bytes;
    this.#flags = view.getUint32(32, true);
    if ((this.#flags & FLAG_COMPRESSED) !== 0) throw unsupported(`inode ${id} is compressed`);
    // Inode 8, the journal, has no other users than this library; its mode is a file's too.
    this.kind = kindOfMode(mode);
    this.mode = mode & 0o7777;
    this.sizeBytes = view.getUint32(4, true) + view.getUint32(108, true) * 2 ** 32;
    if (!Number.isSafeInteger(this.sizeBytes)) throw corrupt(`inode ${id} has an absurd size`);
    this.uid = view.getUint16(2, true) | view.getUint16(120, true) << 16;
    this.gid = view.getUint16(24, true) | view.getUint16(122, true) << 16;
    this.linkCount = view.getUint16(26, true);
    this.modifiedAt = this.#time(16, 136);
    this.device = this.kind.endsWith("-device") ? this.#deviceNumber() : null;
  }

  async *entries(options: WaitOptions): AsyncGenerator<[string, FileNode]> {
    if (this.sizeBytes > DIRECTORY_BYTES_MAX) throw corrupt(`directory ${this.id} is endless`);
    for await (const block of this.#directoryBlocks(options)) {
      for (const { inode, name } of this.#entriesOf(block)) {
        if (name === "." || name === "..") continue;
        yield [name, await this.#context.inode(inode, options)];
      }
    }
  }

  async read(
    offset: number,
    length: number,
    options: WaitOptions,
  ): Promise<Uint8Array<ArrayBuffer>> {
    if ((this.#flags & FLAG_ENCRYPTED) !== 0) throw unsupported(`inode ${this.id} is encrypted`);
    if ((this.#flags & FLAG_INLINE_DATA) !== 0) {
      return this.#inlineData().slice(offset, offset + length);
    }
    const { blockBytes } = this.#context;
    const result = new Uint8Array(length);
    for (let done = 0; done < length;) {
      const at = offset + done;
      const first = Math.floor(at / blockBytes);
      const wanted = Math.ceil((offset + length) / blockBytes) - first;
      const run = await this.#map(first, options);
      const count = Math.min(run.count, wanted, Math.max(1, READ_BYTES_MAX / blockBytes));
      const skip = at - first * blockBytes;
      const size = Math.min(count * blockBytes - skip, length - done);
      if (run.block !== null) {
        const bytes = await this.#context.readBlocks(run.block, count, options);
        result.set(bytes.subarray(skip, skip + size), done);
      }
      done += size;
    }
    return result;
  }

  async target(options: WaitOptions): Promise<string> {
    const isFast = this.sizeBytes < BLOCK_MAP_BYTES && (this.#flags & FLAG_INLINE_DATA) === 0;
    const bytes = isFast
      ? this.#bytes.subarray(BLOCK_MAP_OFFSET, BLOCK_MAP_OFFSET + this.sizeBytes)
      : await this.read(0, Math.min(this.sizeBytes, 4096), options);
    return textOf(bytes);
  }

  #time(offset: number, extraOffset: number): Date {
    const view = viewOf(this.#bytes);
    const seconds = view.getInt32(offset, true);
    const hasExtra = this.#bytes.length > 128 &&
      128 + view.getUint16(128, true) >= extraOffset + 4;
    const extra = hasExtra ? view.getUint32(extraOffset, true) : 0;
    return new Date((seconds + (extra & 3) * 2 ** 32) * 1000 + Math.floor((extra >>> 2) / 1e6));
  }

  #deviceNumber(): { major: number; minor: number } {
    const view = viewOf(this.#bytes);
    const old = view.getUint32(BLOCK_MAP_OFFSET, true);
    if (old !== 0) return { major: (old >>> 8) & 0xff, minor: old & 0xff };
    return deviceOf(view.getUint32(BLOCK_MAP_OFFSET + 4, true));
  }

  async *#directoryBlocks(options: WaitOptions): AsyncGenerator<Uint8Array> {
    if ((this.#flags & FLAG_INLINE_DATA) !== 0) {
      // The parent's number stands before the entries (ext4, "Inline Directories").
      const bytes = this.#inlineData();
      yield bytes.subarray(4, BLOCK_MAP_BYTES);
      if (bytes.length > BLOCK_MAP_BYTES) yield bytes.subarray(BLOCK_MAP_BYTES);
      return;
    }
    const { blockBytes } = this.#context;
    for (let at = 0; at + blockBytes <= this.sizeBytes; at += blockBytes) {
      yield await this.read(at, blockBytes, options);
    }
  }

  *#entriesOf(block: Uint8Array): Generator<{ inode: number; name: string }> {
    const view = viewOf(block);
    // Interior blocks of a hashed directory look like one empty entry.
    for (let at = 0; at + 8 <= block.length;) {
      const inode = view.getUint32(at, true);
      const length = entryLength(view.getUint16(at + 4, true), this.#context.blockBytes);
      const nameBytes = block[at + 6] ?? 0;
      if (length < 8 || length % 4 !== 0 || at + length > block.length || nameBytes + 8 > length) {
        throw corrupt(`directory ${this.id} has a damaged entry`);
      }
      if (inode !== 0) yield { inode, name: textOf(block.subarray(at + 8, at + 8 + nameBytes)) };
      at += length;
    }
  }

  #inlineData(): Uint8Array<ArrayBuffer> {
    const start = this.#bytes.subarray(BLOCK_MAP_OFFSET, BLOCK_MAP_OFFSET + BLOCK_MAP_BYTES);
    const rest = this.#systemData();
    const all = new Uint8Array(start.length + rest.length);
    all.set(start);
    all.set(rest, start.length);
    return all.slice(0, Math.min(this.sizeBytes, all.length));
  }

  /** The value of the extended attribute "system.data" in the inode's own room. */
  #systemData(): Uint8Array {
    const view = viewOf(this.#bytes);
    const none = new Uint8Array();
    if (this.#bytes.length < 132) return none;
    const begin = 128 + view.getUint16(128, true) + 4;
    if (begin + 16 > this.#bytes.length || view.getUint32(begin - 4, true) !== XATTR_MAGIC) {
      return none;
    }
    for (let at = begin; at + 16 <= this.#bytes.length && view.getUint32(at, true) !== 0;) {
      const nameBytes = this.#bytes[at] ?? 0;
      const name = textOf(this.#bytes.subarray(at + 16, at + 16 + nameBytes));
      if (this.#bytes[at + 1] === XATTR_SYSTEM && name === "data") {
        const from = begin + view.getUint16(at + 2, true);
        return this.#bytes.subarray(from, from + view.getUint32(at + 8, true));
      }
      at += 16 + ((nameBytes + 3) & ~3);
    }
    return none;
  }

  /** Where the file's block `block` is, and how many follow it there. */
  #map(block: number, options: WaitOptions): Promise<Run> {
    return (this.#flags & FLAG_EXTENTS) !== 0
      ? this.#mapByExtents(block, options)
      : this.#mapByPointers(block, options);
  }

  async #mapByExtents(block: number, options: WaitOptions): Promise<Run> {
    let node: Uint8Array = this.#bytes.subarray(
      BLOCK_MAP_OFFSET,
      BLOCK_MAP_OFFSET + BLOCK_MAP_BYTES,
    );
    let depthAbove = EXTENT_DEPTH_MAX + 1;
    let end = 2 ** 32;
    for (;;) {
      const view = viewOf(node);
      const count = view.getUint16(2, true);
      const depth = view.getUint16(6, true);
      if (
        view.getUint16(0, true) !== EXTENT_MAGIC || depth >= depthAbove ||
        12 + 12 * count > node.length
      ) {
        throw corrupt(`inode ${this.id} has a damaged extent tree`);
      }
      depthAbove = depth;
      const { index, nextStart } = findExtent(view, count, block);
      end = Math.min(end, nextStart);
      if (index < 0) return { block: null, count: end - block };
      const at = 12 + 12 * index;
      if (depth === 0) return leafRun(view, at, { block, end });
      const child = view.getUint32(at + 4, true) + view.getUint16(at + 8, true) * 2 ** 32;
      node = await this.#context.readBlocks(child, 1, options);
    }
  }

  async #mapByPointers(block: number, options: WaitOptions): Promise<Run> {
    const perBlock = this.#context.blockBytes / 4;
    let index = block;
    let pointers: Uint8Array = this.#bytes.subarray(
      BLOCK_MAP_OFFSET,
      BLOCK_MAP_OFFSET + BLOCK_MAP_BYTES,
    );
    if (index < DIRECT_BLOCKS) return pointerRun(viewOf(pointers), index, DIRECT_BLOCKS);
    index -= DIRECT_BLOCKS;
    // Single, double and triple indirect blocks stand behind the direct ones.
    for (let level = 1; level <= 3; level++) {
      const covered = perBlock ** level;
      if (index >= covered) {
        index -= covered;
        continue;
      }
      let slot = DIRECT_BLOCKS + level - 1;
      for (let below = level; below > 0; below--) {
        const next = viewOf(pointers).getUint32(4 * slot, true);
        const span = perBlock ** (below - 1);
        if (next === 0) {
          return { block: null, count: perBlock * span - (index % (perBlock * span)) };
        }
        pointers = await this.#context.readBlocks(next, 1, options);
        slot = Math.floor(index / span) % perBlock;
      }
      return pointerRun(viewOf(pointers), slot, perBlock);
    }
    throw corrupt(`inode ${this.id} is longer than a block map can be`);
  }
}

/** In blocks of 64 KiB a length of 16 bits is not enough: its two lowest bits are the highest. */
function entryLength(length: number, blockBytes: number): number {
  if (blockBytes < 65536) return length;
  if (length === 65535 || length === 0) return blockBytes;
  return (length & 65532) | ((length & 3) << 16);
}

/** The last entry that starts at or before `block`, and where the one after it starts. */
function findExtent(
  view: DataView,
  count: number,
  block: number,
): { index: number; nextStart: number } {
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (view.getUint32(12 + 12 * middle, true) <= block) low = middle + 1;
    else high = middle;
  }
  const nextStart = low < count ? view.getUint32(12 + 12 * low, true) : 2 ** 32;
  return { index: low - 1, nextStart };
}

function leafRun(view: DataView, at: number, { block, end }: { block: number; end: number }): Run {
  const first = view.getUint32(at, true);
  const length = view.getUint16(at + 4, true);
  const isWritten = length <= EXTENT_LENGTH_MAX;
  const count = first + (isWritten ? length : length - EXTENT_LENGTH_MAX) - block;
  if (count <= 0) return { block: null, count: end - block };
  const start = view.getUint32(at + 8, true) + view.getUint16(at + 6, true) * 2 ** 32;
  return { block: isWritten ? start + (block - first) : null, count };
}

/** Pointers that go on by one, or are all zero. */
function pointerRun(view: DataView, index: number, slots: number): Run {
  const first = view.getUint32(4 * index, true);
  let count = 1;
  while (index + count < slots) {
    if (view.getUint32(4 * (index + count), true) !== (first === 0 ? 0 : first + count)) break;
    count++;
  }
  return { block: first === 0 ? null : first, count };
}
