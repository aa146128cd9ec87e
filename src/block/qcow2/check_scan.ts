/**
 * Counts what an image's metadata refers to: every cluster that the header, L1 and L2 tables,
 * snapshots, bitmaps and the refcount structures themselves name. What is found wrong on the way is
 * reported; messages are QEMU's (block/qcow2-refcount.c).
 *
 * Tables are read one at a time, and an L2 table only once however many entries name it (once for
 * the active disk, once for all snapshots), so that a hostile image costs no more than its size.
 *
 * @module
 */

import { isZero } from "../../wasm/kernels.ts";
import { BlockError } from "../errors.ts";
import { settle, type Steps } from "../steps.ts";
import { STATUS_ZERO } from "../types.ts";
import { parseBitmapExtension, parseDirectory, parseTableEntry } from "./bitmap_directory.ts";
import type { CheckReport } from "./check_report.ts";
import type { ClusterCounter } from "./cluster_counter.ts";
import {
  AUTOCLEAR_BITMAPS,
  EXTENSION_BITMAPS,
  HI_COMPRESSED,
  HI_COPIED,
  INCOMPAT_DATA_FILE,
  LO_ZERO,
  MAX_L1_BYTES,
} from "./format.ts";
import type { Geometry } from "./geometry.ts";
import type { Qcow2Header } from "./header.ts";
import { findExtension } from "./header_extensions.ts";
import type { ImageFile } from "./image_file.ts";
import { compressedExtent, entryOffset } from "./l2_entry.ts";
import { hex } from "./refcounts.ts";
import type { SnapshotEntry } from "./snapshot_table.ts";

const PIECE_BYTES = 1024 * 1024;
/** L1 tables of all snapshots together: those of 65536 snapshots of 4 TiB each. */
const MAX_SNAPSHOT_L1_BYTES = 4 * 1024 ** 3;
/** Bits 56 to 61: reserved in entries of L1 and (standard) L2 tables; the lower half's follow. */
const HI_RESERVED = 0x3f000000;
const LO_L1_RESERVED = 0x1ff;
const LO_L2_RESERVED = 0x1fe;

/** What is scanned. */
export interface ScannedImage {
  /** The image's file. */
  readonly file: ImageFile;
  /** As it stands in the file. */
  readonly header: Qcow2Header;
  /** Sizes. */
  readonly geometry: Geometry;
  /** Of the file: the last one may be short. */
  readonly clusterCount: number;
}

/** A repair of an L2 entry that names nothing good: it shall read as zeroes. */
export type ZeroEntry = (entryAt: number) => Steps<void>;

/** See the module's head. */
export class ReferenceScan {
  readonly #image: ScannedImage;
  readonly #report: CheckReport;
  readonly #references: ClusterCounter;
  readonly #newCounter: () => ClusterCounter;
  readonly #zeroEntry: ZeroEntry | null;
  readonly #hasDataFile: boolean;

  /** `zeroEntry`: null unless the image is repaired. */
  constructor(
    image: ScannedImage,
    report: CheckReport,
    counters: { references: ClusterCounter; create: () => ClusterCounter },
    zeroEntry: ZeroEntry | null,
  ) {
    this.#image = image;
    this.#report = report;
    this.#references = counters.references;
    this.#newCounter = counters.create;
    this.#zeroEntry = zeroEntry;
    this.#hasDataFile = (image.header.incompatibleFeatures & INCOMPAT_DATA_FILE) !== 0n;
  }

  /** Everything but snapshots and refcount structures. */
  *active(): Steps<void> {
    const { header, geometry } = this.#image;
    this.count(0, geometry.clusterSize);
    const tables = this.#newCounter();
    const { l1TableOffset, l1Size } = header;
    this.count(l1TableOffset, l1Size * 8);
    yield* this.#l1Table({ offset: l1TableOffset, size: l1Size }, 1, tables);
    yield* this.#l2Tables(tables, true);
    yield* this.#bitmaps();
  }

  /** What the snapshots refer to, and their table. */
  *snapshots(entries: readonly SnapshotEntry[], tableBytes: number): Steps<void> {
    const { header, geometry } = this.#image;
    if (header.snapshotCount > 0) this.count(header.snapshotsOffset, tableBytes);
    const l1Tables = new Map<string, { offset: number; size: number; times: number }>();
    let l1Bytes = 0;
    for (const { id, name, l1TableOffset: offset, l1Size: size } of entries) {
      const problem = !Number.isSafeInteger(offset) || offset % geometry.clusterSize !== 0
        ? `l1_offset=${hex(offset)}: L1 table is not cluster aligned`
        : size * 8 > MAX_L1_BYTES
        ? `l1_size=${hex(size)}: L1 table is too large`
        : null;
      if (problem !== null) {
        const corrupted = "snapshot table entry corrupted";
        this.#report.unreadable(`ERROR snapshot ${id} (${name}) ${problem}; ${corrupted}`);
        continue;
      }
      this.count(offset, size * 8);
      const key = `${offset} ${size}`;
      const known = l1Tables.get(key);
      if (known !== undefined) known.times++;
      else {
        l1Tables.set(key, { offset, size, times: 1 });
        l1Bytes += size * 8;
      }
    }
    if (l1Bytes > MAX_SNAPSHOT_L1_BYTES) {
      throw new BlockError("EFBIG", "The L1 tables of the snapshots are too large to be checked");
    }
    const tables = this.#newCounter();
    for (const table of l1Tables.values()) yield* this.#l1Table(table, table.times, tables);
    yield* this.#l2Tables(tables, false);
  }

  /** The refcount table and its blocks: whether they can stay where they are. */
  refcountStructures(table: Float64Array, isReserved: (index: number) => boolean): boolean {
    const { header, geometry, clusterCount } = this.#image;
    this.count(header.refcountTableOffset, header.refcountTableClusters * geometry.clusterSize);
    let isGood = header.refcountTableClusters > 0;
    const bad = (message: string): void => {
      this.#report.corruption(message);
      isGood = false;
    };
    table.forEach((offset, index) => {
      if (isReserved(index)) {
        bad(`ERROR refcount table entry ${index} has reserved bits set`);
      } else if (offset % geometry.clusterSize !== 0) {
        bad(
          `ERROR refcount block ${index} is not cluster aligned; refcount table entry corrupted`,
        );
      } else if (offset / geometry.clusterSize >= clusterCount) {
        bad(`ERROR refcount block ${index} is outside image`);
      } else if (offset !== 0) {
        this.count(offset, geometry.clusterSize);
        const references = this.#references.get(offset / geometry.clusterSize);
        if (references !== 1) bad(`ERROR refcount block ${index} refcount=${references}`);
      }
    });
    return isGood;
  }

  /** Counts references to all clusters of a range. */
  count(offset: number, length: number, times = 1): void {
    if (length === 0) return;
    const { clusterSize } = this.#image.geometry;
    const fileBytes = this.#image.file.node.sizeBytes;
    // The last cluster of a file may be short.
    if (offset + length - fileBytes >= clusterSize) {
      this.#report.corruption(
        "ERROR: counting reference for region exceeding the end of the file by one cluster or " +
          `more: offset ${hex(offset)} size ${hex(length)}`,
        times,
      );
      return;
    }
    const end = Math.ceil((offset + length) / clusterSize);
    for (let index = Math.floor(offset / clusterSize); index < end; index++) {
      this.#references.add(index, times);
    }
  }

  /** Counts the L2 tables of an L1 table, which is named `times` times. */
  *#l1Table(
    { offset, size }: { offset: number; size: number },
    times: number,
    tables: ClusterCounter,
  ): Steps<void> {
    const { file, geometry } = this.#image;
    for (let at = 0; at < size * 8; at += PIECE_BYTES) {
      const length = Math.min(size * 8 - at, PIECE_BYTES);
      if (yield* this.#readsAsZeroes(offset + at, length)) continue;
      const bytes = new Uint8Array(length);
      yield* settle(file.read(offset + at, bytes));
      yield* this.#report.pause();
      if (isZero(bytes)) continue;
      const view = new DataView(bytes.buffer);
      for (let entry = 0; entry < length; entry += 8) {
        const high = view.getUint32(entry);
        const low = view.getUint32(entry + 4);
        const table = entryOffset(high, low);
        if (table === 0) continue;
        if ((high & HI_RESERVED) !== 0 || (low & LO_L1_RESERVED) !== 0) {
          this.#report.corruption(
            `ERROR found L1 entry with reserved bits set: ${entryHex(high, low)}`,
          );
        }
        if (table % geometry.clusterSize !== 0) {
          this.#report.unreadable(
            `ERROR l2_offset=${hex(table)}: Table is not cluster aligned; L1 entry corrupted`,
          );
          continue;
        }
        this.count(table, geometry.clusterSize, times);
        const index = table / geometry.clusterSize;
        if (table < file.node.sizeBytes) tables.add(index, times);
        else this.#report.isIncomplete = true;
      }
    }
  }

  /** Counts what L2 tables refer to. */
  *#l2Tables(tables: ClusterCounter, isActive: boolean): Steps<void> {
    const { file, geometry } = this.#image;
    const bytes = new Uint8Array(geometry.clusterSize);
    for (const index of tables.used()) {
      const offset = index * geometry.clusterSize;
      yield* this.#report.pause();
      if (yield* this.#readsAsZeroes(offset, geometry.clusterSize)) continue;
      yield* settle(file.read(offset, bytes));
      if (isZero(bytes)) continue;
      yield* this.#l2Table(bytes, offset, tables.get(index), isActive);
    }
  }

  *#l2Table(bytes: Uint8Array, offset: number, times: number, isActive: boolean): Steps<void> {
    const { clusterSize, l2EntryBytes, isExtended } = this.#image.geometry;
    const statistics = isActive ? this.#report.statistics : null;
    const fileBytes = this.#image.file.node.sizeBytes;
    const view = new DataView(bytes.buffer);
    let nextHost = 0;
    for (let at = 0; at < bytes.length; at += l2EntryBytes) {
      const high = view.getUint32(at);
      const low = view.getUint32(at + 4);
      const zeroBits = isExtended ? view.getUint32(at + 8) : 0;
      const dataBits = isExtended ? view.getUint32(at + 12) : 0;
      if ((high | low | dataBits) === 0) continue;
      if ((high & HI_COMPRESSED) !== 0) {
        const entry = { high, low, index: at / l2EntryBytes, hasBits: (zeroBits | dataBits) !== 0 };
        this.#compressed(entry, times);
        if (statistics === null) continue;
        statistics.allocatedClusters += times;
        statistics.compressedClusters += times;
        statistics.fragmentedClusters += times;
        continue;
      }
      const reserved = isExtended ? LO_L2_RESERVED | LO_ZERO : LO_L2_RESERVED;
      if ((high & HI_RESERVED) !== 0 || (low & reserved) !== 0) {
        this.#report.corruption(
          `ERROR found l2 entry with reserved bits set: ${entryHex(high, low)}`,
        );
      }
      const host = entryOffset(high, low);
      if (host === 0 && !(this.#hasDataFile && (high & HI_COPIED) !== 0)) {
        if (dataBits === 0) continue;
        this.#report.corruption(
          "ERROR: Unallocated cluster has non-zero subcluster allocation map",
        );
        continue;
      }
      const holdsData = isExtended ? dataBits !== 0 : (low & LO_ZERO) === 0;
      const isMixed = (zeroBits & dataBits) !== 0;
      const isBad = isMixed || host % clusterSize !== 0;
      if (isBad && (yield* this.#badHost({ host, isMixed, holdsData, at: offset + at }))) continue;
      if (statistics !== null) {
        statistics.allocatedClusters += times;
        if (nextHost !== 0 && host !== nextHost) statistics.fragmentedClusters += times;
        nextHost = host + clusterSize;
      }
      if (this.#hasDataFile) continue;
      // The usual case, without the looks at a range's ends.
      const isInside = !isBad && host + clusterSize <= fileBytes;
      if (isInside) this.#references.add(host / clusterSize, times);
      else this.count(host, clusterSize, times);
    }
  }

  #compressed(
    entry: { high: number; low: number; index: number; hasBits: boolean },
    times: number,
  ): void {
    const { high, low, index, hasBits } = entry;
    const { offset, length } = compressedExtent(high & ~HI_COPIED, low, this.#image.geometry);
    if ((high & HI_COPIED) !== 0) {
      this.#report.corruption(
        `ERROR: coffset=${hex(offset)}: copied flag must never be set for compressed clusters`,
      );
    }
    const wrong = this.#hasDataFile
      ? "with data file"
      : hasBits
      ? "with non-zero subcluster allocation bitmap"
      : null;
    if (wrong !== null) {
      const value = entryHex(high, low);
      this.#report.corruption(`ERROR compressed cluster ${index} ${wrong}, entry=0x${value}`);
      return;
    }
    this.count(offset, length, times);
  }

  /** An entry that names nothing good: whether it was repaired, or can't be counted. */
  *#badHost(
    entry: { host: number; isMixed: boolean; holdsData: boolean; at: number },
  ): Steps<boolean> {
    const { host, isMixed, holdsData } = entry;
    const isRepaired = this.#zeroEntry !== null && !holdsData;
    const repair = isRepaired ? "Repairing" : "ERROR";
    const where = `offset=${host.toString(16)}: `;
    this.#report.corruption(
      isMixed
        ? `ERROR ${where}Allocated cluster has corrupted subcluster allocation bitmap`
        : holdsData
        ? `ERROR ${where}Data cluster is not properly aligned; L2 entry corrupted.`
        : `${repair} ${where}Preallocated cluster is not properly aligned; L2 entry corrupted.`,
    );
    if (isRepaired && this.#zeroEntry !== null) {
      yield* this.#zeroEntry(entry.at);
      this.#report.corruptionFixed();
      return true;
    }
    return isMixed;
  }

  *#bitmaps(): Steps<void> {
    const { header, file, geometry } = this.#image;
    const { clusterSize } = geometry;
    const extension = findExtension(header.extensions, EXTENSION_BITMAPS);
    if (extension === undefined || (header.autoclearFeatures & AUTOCLEAR_BITMAPS) === 0n) return;
    try {
      const { count, directoryOffset, directoryBytes } = parseBitmapExtension(
        extension.data,
        clusterSize,
      );
      this.count(directoryOffset, directoryBytes);
      const directory = new Uint8Array(directoryBytes);
      yield* settle(file.read(directoryOffset, directory));
      const { sizeBytes } = header;
      let tableBytes = 0;
      for (const entry of parseDirectory(directory, count, { clusterSize, sizeBytes })) {
        tableBytes += entry.tableSize * 8;
        if (tableBytes > file.node.sizeBytes) {
          this.#report.unreadable("ERROR bitmaps: their tables overlap");
          return;
        }
        yield* this.#bitmapTable(entry);
      }
    } catch (error) {
      if (!(error instanceof BlockError) || error.code !== "EINVAL") throw error;
      this.#report.unreadable(`ERROR bitmaps: ${error.message}`);
    }
  }

  *#bitmapTable({ tableOffset, tableSize, name }: {
    tableOffset: number;
    tableSize: number;
    name: string;
  }): Steps<void> {
    const { file, geometry } = this.#image;
    this.count(tableOffset, tableSize * 8);
    for (let at = 0; at < tableSize * 8; at += PIECE_BYTES) {
      const bytes = new Uint8Array(Math.min(tableSize * 8 - at, PIECE_BYTES));
      yield* this.#report.pause();
      if (yield* this.#readsAsZeroes(tableOffset + at, bytes.length)) continue;
      yield* settle(file.read(tableOffset + at, bytes));
      const view = new DataView(bytes.buffer);
      for (let index = 0; index < bytes.length; index += 8) {
        const value = view.getBigUint64(index);
        if (value === 0n) continue;
        const entry = parseTableEntry(value, geometry.clusterSize);
        if (entry === "invalid") {
          this.#report.corruption(`ERROR bitmap '${name}': table entry ${value} is corrupted`);
        } else if (typeof entry === "object") this.count(entry.offset, geometry.clusterSize);
      }
    }
  }

  /** A hole of the file, which need not be read. */
  *#readsAsZeroes(offset: number, length: number): Steps<boolean> {
    const { node } = this.#image.file;
    if (offset >= node.sizeBytes) return true;
    const inside = Math.min(length, node.sizeBytes - offset);
    const status = yield* settle(node.blockStatus(offset, inside));
    return status.length === inside && (status.flags & STATUS_ZERO) !== 0;
  }
}

function entryHex(high: number, low: number): string {
  return (BigInt(high) << 32n | BigInt(low)).toString(16);
}
