/**
 * Ext2, ext3 and ext4, read-only (Linux: Documentation/filesystems/ext4). Committed changes that
 * are still in the journal are seen (jbd2.ts). Nothing that the disk says is believed before it was
 * compared with what is possible.
 *
 * @module
 */

import type { WaitOptions } from "../disk.ts";
import { Ext4Inode, type InodeContext } from "./ext4_inode.ts";
import { type JournalOverlay, readJournal } from "./jbd2.ts";
import type { FileSystem } from "./node.ts";
import { type ByteSource, corrupt, readExactly, textOf, unsupported, viewOf } from "./source.ts";

const SUPERBLOCK_OFFSET = 1024;
const SUPERBLOCK_BYTES = 1024;
const MAGIC = 0xef53;
const COMPAT_HAS_JOURNAL = 0x4;
const COMPAT_SPARSE_SUPER2 = 0x200;
const INCOMPAT_JOURNAL_DEV = 0x8;
const INCOMPAT_META_BG = 0x10;
const INCOMPAT_EXTENTS = 0x40;
const INCOMPAT_64BIT = 0x80;
const RO_COMPAT_SPARSE_SUPER = 0x1;
/** Filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, ... */
const INCOMPAT_KNOWN = 0x2 | 0x4 | INCOMPAT_META_BG | INCOMPAT_EXTENTS | INCOMPAT_64BIT | 0x100 |
  0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000;
const INCOMPAT_NAMES: Record<number, string> = { 0x1: "compression", 0x8: "journal_dev" };
const ROOT_INODE = 2;

interface Superblock {
  compat: number;
  incompat: number;
  roCompat: number;
  blockBytes: number;
  blockCount: number;
  firstDataBlock: number;
  blocksPerGroup: number;
  inodeCount: number;
  inodesPerGroup: number;
  inodeBytes: number;
  descriptorBytes: number;
  firstMetaGroup: number;
  backupGroups: [number, number];
  journalInode: number;
  label: string;
}

/** Whether there is a superblock of the family. */
export function looksLikeExt4(start: Uint8Array): boolean {
  return start.length >= 2048 && viewOf(start).getUint16(SUPERBLOCK_OFFSET + 56, true) === MAGIC;
}

/** Opens it. Throws a FileSystemError where it is corrupt or has features that are not known. */
export async function openExt4(
  source: ByteSource,
  options: WaitOptions = {},
): Promise<FileSystem> {
  const bytes = await readExactly(source, SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES, options);
  const superblock = parseSuperblock(bytes, source.sizeBytes);
  const reader = new Ext4Reader(source, superblock);
  const hasJournal = (superblock.compat & COMPAT_HAS_JOURNAL) !== 0;
  if (hasJournal && superblock.journalInode !== 0) await reader.openJournal(options);
  const hasExtents = (superblock.incompat & INCOMPAT_EXTENTS) !== 0;
  return {
    type: hasExtents ? "ext4" : hasJournal ? "ext3" : "ext2",
    label: superblock.label,
    root: await reader.inode(ROOT_INODE, options),
  };
}

function parseSuperblock(bytes: Uint8Array, sizeBytes: number): Superblock {
  const view = viewOf(bytes);
  const incompat = view.getUint32(96, true);
  const unknown = incompat & ~INCOMPAT_KNOWN;
  if (unknown !== 0) {
    const name = INCOMPAT_NAMES[unknown & -unknown] ?? `0x${unknown.toString(16)}`;
    const what = unknown === INCOMPAT_JOURNAL_DEV ? "this is a journal device" : "";
    throw unsupported(what || `the file system has the feature ${name}, which is not supported`);
  }
  const logBlock = view.getUint32(24, true);
  if (logBlock > 6) throw corrupt("the block size is beyond 64 KiB");
  const is64Bit = (incompat & INCOMPAT_64BIT) !== 0;
  const isDynamic = view.getUint32(76, true) >= 1;
  const superblock: Superblock = {
    compat: view.getUint32(92, true),
    incompat,
    roCompat: view.getUint32(100, true),
    blockBytes: 1024 << logBlock,
    blockCount: view.getUint32(4, true) + (is64Bit ? view.getUint32(336, true) * 2 ** 32 : 0),
    firstDataBlock: view.getUint32(20, true),
    blocksPerGroup: view.getUint32(32, true),
    inodeCount: view.getUint32(0, true),
    inodesPerGroup: view.getUint32(40, true),
    inodeBytes: isDynamic ? view.getUint16(88, true) : 128,
    descriptorBytes: is64Bit ? view.getUint16(254, true) : 32,
    firstMetaGroup: view.getUint32(260, true),
    backupGroups: [view.getUint32(588, true), view.getUint32(592, true)],
    journalInode: view.getUint32(224, true),
    label: textOf(bytes.subarray(120, 136)),
  };
  checkSuperblock(superblock, sizeBytes);
  return superblock;
}

function checkSuperblock(superblock: Superblock, sizeBytes: number): void {
  const { blockBytes, inodeBytes, descriptorBytes, blocksPerGroup, inodesPerGroup } = superblock;
  const isPowerOfTwo = (value: number) => value > 0 && (value & (value - 1)) === 0;
  if (!isPowerOfTwo(inodeBytes) || inodeBytes < 128 || inodeBytes > blockBytes) {
    throw corrupt(`inodes of ${inodeBytes} bytes`);
  }
  if (!isPowerOfTwo(descriptorBytes) || descriptorBytes < 32 || descriptorBytes > blockBytes) {
    throw corrupt(`group descriptors of ${descriptorBytes} bytes`);
  }
  if (blocksPerGroup === 0 || inodesPerGroup === 0) throw corrupt("groups without blocks");
  if (superblock.blockCount * blockBytes > sizeBytes) {
    throw corrupt(
      `the file system has ${superblock.blockCount * blockBytes} bytes, the disk ${sizeBytes}`,
    );
  }
}

/** Blocks and inodes of an open file system. */
class Ext4Reader implements InodeContext {
  readonly blockBytes: number;
  readonly blockCount: number;
  readonly #source: ByteSource;
  readonly #superblock: Superblock;
  #journal: JournalOverlay | null = null;

  constructor(source: ByteSource, superblock: Superblock) {
    this.#source = source;
    this.#superblock = superblock;
    this.blockBytes = superblock.blockBytes;
    this.blockCount = superblock.blockCount;
  }

  /** From here on committed blocks are read from the journal. */
  async openJournal(options: WaitOptions): Promise<void> {
    const file = await this.inode(this.#superblock.journalInode, options);
    this.#journal = await readJournal({
      blockBytes: this.blockBytes,
      blockCount: Math.floor(file.sizeBytes / this.blockBytes),
      read: (block, wait) => file.read(block * this.blockBytes, this.blockBytes, wait),
    }, options);
  }

  /** Reads whole blocks that lie side by side. */
  async readBlocks(
    block: number,
    count: number,
    options: WaitOptions,
  ): Promise<Uint8Array<ArrayBuffer>> {
    if (block < 1 && this.blockBytes === 1024 || block + count > this.blockCount) {
      throw corrupt(`block ${block} of ${this.blockCount} is pointed to`);
    }
    const { blockBytes } = this;
    const bytes = await readExactly(this.#source, block * blockBytes, count * blockBytes, options);
    const journal = this.#journal;
    if (journal === null || journal.size === 0) return bytes;
    for (let index = 0; index < count; index++) {
      if (!journal.has(block + index)) continue;
      bytes.set(await journal.read(block + index, options), index * blockBytes);
    }
    return bytes;
  }

  /** The inode of that number. */
  async inode(number: number, options: WaitOptions): Promise<Ext4Inode> {
    const { inodesPerGroup, inodeCount, inodeBytes } = this.#superblock;
    if (number < 1 || number > inodeCount) throw corrupt(`inode ${number} of ${inodeCount}`);
    const group = Math.floor((number - 1) / inodesPerGroup);
    const index = (number - 1) % inodesPerGroup;
    const table = await this.#inodeTable(group, options);
    const at = index * inodeBytes;
    const block = await this.readBlocks(table + Math.floor(at / this.blockBytes), 1, options);
    const begin = at % this.blockBytes;
    return new Ext4Inode(this, number, block.slice(begin, begin + inodeBytes));
  }

  async #inodeTable(group: number, options: WaitOptions): Promise<number> {
    const { descriptorBytes } = this.#superblock;
    const perBlock = this.blockBytes / descriptorBytes;
    const block = this.#descriptorBlock(Math.floor(group / perBlock), perBlock);
    const bytes = await this.readBlocks(block, 1, options);
    const view = viewOf(bytes);
    const at = (group % perBlock) * descriptorBytes;
    const high = descriptorBytes >= 64 ? view.getUint32(at + 0x28, true) : 0;
    return view.getUint32(at + 8, true) + high * 2 ** 32;
  }

  /** Where the `index`th block of group descriptors is. */
  #descriptorBlock(index: number, perBlock: number): number {
    const { incompat, firstDataBlock, firstMetaGroup, blocksPerGroup } = this.#superblock;
    const isMeta = (incompat & INCOMPAT_META_BG) !== 0 && index >= firstMetaGroup;
    // Behind the superblock, which in blocks of 1 KiB is block 1 whatever the first data block is.
    const superblockAt = Math.floor(SUPERBLOCK_OFFSET / this.blockBytes);
    if (!isMeta || index === 0) return superblockAt + 1 + index;
    const group = index * perBlock;
    return firstDataBlock + group * blocksPerGroup + (this.#hasSuperblock(group) ? 1 : 0);
  }

  #hasSuperblock(group: number): boolean {
    const { compat, roCompat, backupGroups } = this.#superblock;
    if (group === 0) return true;
    if ((compat & COMPAT_SPARSE_SUPER2) !== 0) return backupGroups.includes(group);
    if (group === 1 || (roCompat & RO_COMPAT_SPARSE_SUPER) === 0) return true;
    return [3, 5, 7].some((base) => {
      let power = base;
      while (power < group) power *= base;
      return power === group;
    });
  }
}
