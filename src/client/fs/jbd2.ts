/**
 * The journal of ext3 and ext4 (Linux: fs/jbd2, Documentation/filesystems/ext4/journal.rst). A
 * frozen disk is one of a running machine: what the guest committed may stand in the journal alone.
 * It is not written back, as a mount would do; instead the newest committed copy of each block is
 * found, and read in place of the block.
 *
 *   scan: descriptor -> blocks -> commit, descriptor -> ... until a block does not go on with it
 *
 * @module
 */

import type { WaitOptions } from "../disk.ts";
import { crcTable, crcUpdate, unsupported, viewOf } from "./source.ts";

/** The journal as a file. */
export interface JournalFile {
  /** Bytes of a block. */
  readonly blockBytes: number;
  /** Blocks that the file has. */
  readonly blockCount: number;
  /** Reads one block of it. */
  read(block: number, options: WaitOptions): Promise<Uint8Array<ArrayBuffer>>;
}

/** Blocks of the file system whose newest content is in the journal. */
export interface JournalOverlay {
  /** Whether this block's is. */
  has(block: number): boolean;
  /** The content of such a block. */
  read(block: number, options: WaitOptions): Promise<Uint8Array<ArrayBuffer>>;
  /** Blocks that are newer in the journal. */
  readonly size: number;
}

const MAGIC = 0xc03b3998;
const TYPE = { descriptor: 1, commit: 2, superblockV1: 3, superblockV2: 4, revoke: 5 };
const INCOMPAT_REVOKE = 1;
const INCOMPAT_64BIT = 2;
const INCOMPAT_ASYNC_COMMIT = 4;
const INCOMPAT_CSUM_V2 = 8;
const INCOMPAT_CSUM_V3 = 16;
const INCOMPAT_FAST_COMMIT = 32;
const KNOWN = INCOMPAT_REVOKE | INCOMPAT_64BIT | INCOMPAT_ASYNC_COMMIT | INCOMPAT_CSUM_V2 |
  INCOMPAT_CSUM_V3 | INCOMPAT_FAST_COMMIT;
const TAG_ESCAPE = 1;
const TAG_SAME_UUID = 2;
const TAG_LAST = 8;
const HEADER_BYTES = 12;
const CRC32C = crcTable(0x82f63b78);

interface Log {
  readonly file: JournalFile;
  readonly features: number;
  readonly first: number;
  readonly end: number;
  /** What checksums start from; null where there are none. */
  readonly seed: number | null;
}

interface Write {
  block: number;
  logBlock: number;
  isEscaped: boolean;
}

/** The committed state that is not in its place yet. Empty after a clean unmount. */
export async function readJournal(
  file: JournalFile,
  options: WaitOptions = {},
): Promise<JournalOverlay> {
  const found = new Map<number, Write>();
  const bytes = await file.read(0, options);
  const view = viewOf(bytes);
  const type = view.getUint32(4);
  const isKnown = type === TYPE.superblockV1 || type === TYPE.superblockV2;
  if (view.getUint32(0) !== MAGIC || !isKnown) throw unsupported("the journal has no superblock");
  const start = view.getUint32(28);
  if (start !== 0) {
    const log = openLog(file, bytes);
    await replay(log, { block: start, sequence: view.getUint32(24) }, found, options);
  }
  return {
    size: found.size,
    has: (block) => found.has(block),
    read: async (block, wait) => {
      const write = found.get(block);
      if (write === undefined) throw new Error(`block ${block} is not in the journal`);
      const content = await file.read(write.logBlock, wait);
      if (!write.isEscaped) return content;
      // A block that begins like one of the journal's own has its first bytes taken out.
      const copy = content.slice();
      viewOf(copy).setUint32(0, MAGIC);
      return copy;
    },
  };
}

function openLog(file: JournalFile, superblock: Uint8Array<ArrayBuffer>): Log {
  const view = viewOf(superblock);
  const isV2 = view.getUint32(4) === TYPE.superblockV2;
  const features = isV2 ? view.getUint32(40) : 0;
  if ((features & ~KNOWN) !== 0) {
    throw unsupported(`the journal has unknown features 0x${(features & ~KNOWN).toString(16)}`);
  }
  if (view.getUint32(12) !== file.blockBytes) {
    throw unsupported("the journal's blocks are not those of the file system");
  }
  const fastCommitBlocks = (features & INCOMPAT_FAST_COMMIT) !== 0 ? view.getUint32(84) || 256 : 0;
  const end = Math.min(view.getUint32(16), file.blockCount) - fastCommitBlocks;
  const first = view.getUint32(20);
  if (first < 1 || first >= end) throw unsupported("the journal has no room for a log");
  const hasSums = (features & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3)) !== 0;
  const seed = hasSums ? crcUpdate(CRC32C, 0xffffffff, superblock.subarray(48, 64)) : null;
  return { file, features, first, end, seed };
}

/** Finds the committed transactions, from the oldest on; a later write of a block counts. */
async function replay(
  log: Log,
  start: { block: number; sequence: number },
  found: Map<number, Write>,
  options: WaitOptions,
): Promise<void> {
  const revoked = new Map<number, number>();
  const committed: { sequence: number; writes: Write[] }[] = [];
  let { block, sequence } = start;
  let writes: Write[] = [];
  let revokes: number[] = [];
  if (block < log.first || block >= log.end) return;
  // The log is a ring: more blocks than it has cannot be part of it.
  for (let seen = 0; seen < log.end - log.first; seen++) {
    const bytes = await log.file.read(block, options);
    const view = viewOf(bytes);
    if (view.getUint32(0) !== MAGIC || view.getUint32(8) !== sequence) break;
    const type = view.getUint32(4);
    if (type === TYPE.descriptor) {
      for (const tag of tagsOf(log, bytes)) {
        block = next(log, block);
        seen++;
        writes.push({ ...tag, logBlock: block });
      }
    } else if (type === TYPE.revoke) {
      revokes.push(...revokesOf(log, bytes));
    } else if (type === TYPE.commit) {
      if (!isWhole(log, bytes)) break;
      committed.push({ sequence, writes });
      for (const gone of revokes) revoked.set(gone, sequence);
      writes = [];
      revokes = [];
      sequence = (sequence + 1) >>> 0;
    } else break;
    block = next(log, block);
  }
  for (const transaction of committed) {
    for (const write of transaction.writes) {
      const revokedBy = revoked.get(write.block);
      // Sequence numbers wrap around.
      if (revokedBy !== undefined && ((revokedBy - transaction.sequence) | 0) >= 0) continue;
      found.set(write.block, write);
    }
  }
}

function next(log: Log, block: number): number {
  return block + 1 < log.end ? block + 1 : log.first;
}

function* tagsOf(log: Log, bytes: Uint8Array): Generator<{ block: number; isEscaped: boolean }> {
  const view = viewOf(bytes);
  const isV3 = (log.features & INCOMPAT_CSUM_V3) !== 0;
  const is64Bit = (log.features & INCOMPAT_64BIT) !== 0;
  const isV2 = (log.features & INCOMPAT_CSUM_V2) !== 0;
  const tagBytes = isV3 ? 16 : 8 + (isV2 ? 2 : 0) + (is64Bit ? 4 : 0);
  const end = bytes.length - (log.seed === null ? 0 : 4);
  for (let at = HEADER_BYTES; at + tagBytes <= end;) {
    const flags = isV3 ? view.getUint32(at + 4) : view.getUint16(at + 6);
    const high = is64Bit ? view.getUint32(at + 8) : 0;
    const block = view.getUint32(at) + high * 2 ** 32;
    yield { block, isEscaped: (flags & TAG_ESCAPE) !== 0 };
    if ((flags & TAG_LAST) !== 0) return;
    at += tagBytes + ((flags & TAG_SAME_UUID) !== 0 ? 0 : 16);
  }
}

function* revokesOf(log: Log, bytes: Uint8Array): Generator<number> {
  const view = viewOf(bytes);
  const is64Bit = (log.features & INCOMPAT_64BIT) !== 0;
  const end = Math.min(view.getUint32(HEADER_BYTES), bytes.length - (log.seed === null ? 0 : 4));
  const step = is64Bit ? 8 : 4;
  for (let at = HEADER_BYTES + 4; at + step <= end; at += step) {
    yield is64Bit ? view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4) : view.getUint32(at);
  }
}

/** A commit block is written last; one whose sum is wrong ends the log as if it were not there. */
function isWhole(log: Log, commit: Uint8Array<ArrayBuffer>): boolean {
  if (log.seed === null) return true;
  const copy = commit.slice();
  const sum = viewOf(copy).getUint32(16);
  copy.fill(0, 16, 20);
  return crcUpdate(CRC32C, log.seed, copy) === sum;
}
