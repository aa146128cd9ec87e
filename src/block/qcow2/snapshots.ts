/**
 * Internal snapshots of a qcow2 image: an entry in the snapshot table, with an L1 table of its own.
 * L2 tables and clusters are shared, and counted once for each L1 table that leads to them.
 *
 * Each change is made in an order that a crash at any moment can't turn into harm:
 *
 *   create   count all once more -> COPIED bits cleared -> L1 copy and table -> header
 *   apply    count what the snapshot has -> new active L1 table -> header -> uncount the rest
 *   remove   table without it -> header -> uncount what it had -> COPIED bits set again
 *
 * Clusters may be left counted too high (leaked), and COPIED bits cleared that could be set: a
 * check that repairs leaks puts both right. Nothing that a snapshot has is ever written in place.
 *
 * Call these with nothing in flight: in a drained section that covers the node.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import { limits } from "../../limits.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import type { MaybePromise } from "../types.ts";
import { ClusterCounter } from "./cluster_counter.ts";
import { HI_COMPRESSED, HI_COPIED, MAX_L1_BYTES, MAX_SNAPSHOTS } from "./format.ts";
import type { Qcow2Image } from "./image.ts";
import { compressedExtent, entryOffset } from "./l2_entry.ts";
import { METADATA } from "./overlap.ts";
import {
  encodeSnapshotTable,
  MAX_SNAPSHOT_TABLE_BYTES,
  readSnapshotTable,
  type SnapshotEntry,
} from "./snapshot_table.ts";
import { Turns } from "./turns.ts";

/** A snapshot as a list shows it. */
export interface Qcow2SnapshotInfo {
  /** Unique: usually a number. */
  id: string;
  /** For people. */
  name: string;
  /** When it was made, by the clock of the wall. */
  dateSeconds: number;
  /** The rest of that. */
  dateNanoseconds: number;
  /** How long the machine had run. */
  vmClockNs: bigint;
  /** Bytes of the VM state, 0 where there is none. */
  vmStateBytes: number;
  /** The disk's size then. */
  diskSizeBytes: number;
  /** Instructions that the machine had run, where they were counted. */
  icount: bigint | null;
}

/** A new snapshot. */
export interface Qcow2SnapshotOptions {
  /** For people. */
  name: string;
  /** Unique; the next number unless given. */
  id?: string;
  /** When it is made: milliseconds since 1970. */
  dateMs: number;
  /** How long the machine has run. */
  vmClockNs?: bigint;
}

/** What snapshots need of the node over the image. */
export interface SnapshotOwner {
  /** The disk's content is about to be replaced. Throws to refuse that. */
  replacing(): void;
  /** The disk has another size now. */
  resized(): void;
}

/** A snapshot table that was written. */
interface NewTable {
  entries: SnapshotEntry[];
  offset: number;
  length: number;
}

/** What an L1 table leads to: called for each thing as often as it is referred to. */
type Visit = (offset: number, length: number) => Steps<void>;

/** See the module's head. */
export class Qcow2Snapshots {
  readonly #image: Qcow2Image;
  readonly #owner: SnapshotOwner;
  #entries: SnapshotEntry[] = [];
  #tableBytes = 0;

  /** `load` follows. */
  constructor(image: Qcow2Image, owner: SnapshotOwner) {
    this.#image = image;
    this.#owner = owner;
  }

  /** Reads the table. Throws where it is beyond QEMU's bounds. */
  *load(): Steps<void> {
    const { entries, tableBytes } = yield* readSnapshotTable(this.#image.file, this.#image.header);
    this.#entries = entries;
    this.#tableBytes = tableBytes;
    this.#describe();
  }

  /** In the order of the table. */
  list(): Qcow2SnapshotInfo[] {
    return this.#entries.map((entry) => ({
      id: entry.id,
      name: entry.name,
      dateSeconds: entry.dateSeconds,
      dateNanoseconds: entry.dateNanoseconds,
      vmClockNs: entry.vmClockNs,
      vmStateBytes: entry.vmStateBytes,
      diskSizeBytes: entry.diskSizeBytes,
      icount: entry.icount,
    }));
  }

  /** The snapshot of that id, else of that name. */
  find(idOrName: string): Qcow2SnapshotInfo | undefined {
    return this.#find(idOrName);
  }

  /** Keeps the disk as it is now. Throws EINVAL where the id is taken. */
  create(options: Qcow2SnapshotOptions): MaybePromise<void> {
    return runSteps(this.#image.lock.hold(() => this.#create(options)));
  }

  /** Makes the disk what it was. */
  apply(idOrName: string): MaybePromise<void> {
    return runSteps(this.#image.lock.hold(() => this.#apply(idOrName)));
  }

  /** Forgets a snapshot. */
  remove(idOrName: string): MaybePromise<void> {
    return runSteps(this.#image.lock.hold(() => this.#remove(idOrName)));
  }

  /** Shows a snapshot through an image that is read-only, till it is closed. */
  show(idOrName: string): MaybePromise<void> {
    return runSteps(this.#image.lock.hold(() => this.#show(idOrName)));
  }

  *#create(options: Qcow2SnapshotOptions): Steps<void> {
    const image = this.#image;
    const { l2, geometry } = image;
    const id = options.id ?? this.#nextId();
    this.#checkSupported();
    if (this.#entries.length >= MAX_SNAPSHOTS) {
      throw new BlockError("EFBIG", "The image has too many snapshots");
    }
    if (this.#entries.some((entry) => entry.id === id)) {
      throw new BlockError("EINVAL", `There is a snapshot '${id}' already`);
    }
    yield* image.commit();
    const l1 = { offset: image.header.l1TableOffset, size: l2.l1Size };
    const clusterCount = Math.ceil(l1.size * 8 / geometry.clusterSize);
    const offset = clusterCount === 0 ? 0 : (yield* image.refcounts.allocate(clusterCount)).offset;
    const entry: SnapshotEntry = {
      l1TableOffset: offset,
      l1Size: l1.size,
      id,
      name: options.name,
      dateSeconds: Math.floor(options.dateMs / 1000),
      dateNanoseconds: Math.floor(options.dateMs % 1000 * 1e6),
      vmClockNs: options.vmClockNs ?? 0n,
      vmStateBytes: 0,
      diskSizeBytes: image.guestSize,
      icount: null,
      unknownExtra: new Uint8Array(),
      extraBytes: 0,
    };
    let isCounted = false;
    let table: NewTable | null = null;
    try {
      table = yield* this.#writeTable([...this.#entries, entry]);
      yield* this.#raiseAll(l1);
      isCounted = true;
      yield* image.refcounts.writeBack();
      yield* image.barrier();
      yield* this.#clearCopied();
      yield* image.commit();
      if (clusterCount > 0) yield* image.file.write(offset, this.#paddedL1());
    } catch (error) {
      if (isCounted) yield* this.#visit(l1, giveUp(image));
      image.freeLater(offset, clusterCount * geometry.clusterSize, false);
      if (table !== null) image.freeLater(table.offset, table.length, false);
      throw error;
    }
    yield* this.#switchTable(table);
  }

  #paddedL1(): Uint8Array {
    const { l2, geometry } = this.#image;
    const length = Math.ceil(l2.l1Size * 8 / geometry.clusterSize) * geometry.clusterSize;
    const bytes = new Uint8Array(length);
    bytes.set(l2.encodeL1(0, l2.l1Size));
    return bytes;
  }

  *#apply(idOrName: string): Steps<void> {
    const image = this.#image;
    const { header, geometry, l2 } = image;
    const entry = this.#get(idOrName);
    const size = Math.max(entry.l1Size, Math.ceil(entry.diskSizeBytes / geometry.l2Coverage));
    const isLarge = !Number.isSafeInteger(entry.diskSizeBytes) || size * 8 > MAX_L1_BYTES;
    if (isLarge) throw new BlockError("EFBIG", "The snapshot's disk is too large");
    this.#owner.replacing();
    yield* image.commit();
    const active = { offset: header.l1TableOffset, size: l2.l1Size };
    const kept = { offset: entry.l1TableOffset, size: entry.l1Size };
    yield* this.#raiseAll(kept);
    const bytes = new Uint8Array(Math.max(size, 1) * 8);
    yield* settle(image.file.read(kept.offset, bytes.subarray(0, kept.size * 8)));
    const clusterCount = Math.ceil(bytes.length / geometry.clusterSize);
    const { offset } = yield* image.refcounts.allocate(clusterCount);
    yield* this.#clearCopiedOf(kept, bytes);
    yield* image.file.write(offset, bytes);
    yield* image.refcounts.writeBack();
    yield* image.barrier();

    // One sector of the header: the table's place and size and the disk's size change together.
    header.l1TableOffset = offset;
    header.l1Size = size;
    header.sizeBytes = entry.diskSizeBytes;
    yield* image.writeHeader();
    yield* image.barrier();
    yield* this.#visit(active, giveUp(image));
    if (active.size > 0) image.freeLater(active.offset, active.size * 8, false);
    yield* l2.load();
    yield* image.commit();
    yield* this.#setCopied();
    yield* image.commit();
    yield* image.barrier();
    this.#owner.resized();
  }

  *#remove(idOrName: string): Steps<void> {
    const image = this.#image;
    const entry = this.#get(idOrName);
    yield* image.commit();
    const rest = this.#entries.filter((other) => other !== entry);
    yield* this.#switchTable(yield* this.#writeTable(rest));
    const l1 = { offset: entry.l1TableOffset, size: entry.l1Size };
    yield* this.#visit(l1, giveUp(image));
    if (l1.size > 0) image.freeLater(l1.offset, l1.size * 8, false);
    yield* image.commit();
    yield* this.#setCopied();
    yield* image.commit();
    yield* image.barrier();
  }

  *#show(idOrName: string): Steps<void> {
    const { header, isReadOnly, l2, geometry } = this.#image;
    const entry = this.#get(idOrName);
    if (!isReadOnly) {
      throw new BlockError("EPERM", "The image must be read-only to show a snapshot");
    }
    if (entry.l1Size < Math.ceil(entry.diskSizeBytes / geometry.l2Coverage)) {
      throw new BlockError("EINVAL", "The snapshot's L1 table is too small");
    }
    header.l1TableOffset = entry.l1TableOffset;
    header.l1Size = entry.l1Size;
    header.sizeBytes = entry.diskSizeBytes;
    yield* l2.load();
    this.#owner.resized();
  }

  #find(idOrName: string): SnapshotEntry | undefined {
    return this.#entries.find(({ id }) => id === idOrName) ??
      this.#entries.find(({ name }) => name === idOrName);
  }

  /** The snapshot, whose L1 table can be read. */
  #get(idOrName: string): SnapshotEntry {
    const entry = this.#find(idOrName);
    if (entry === undefined) throw new BlockError("ENOENT", "Can't find the snapshot");
    this.#checkSupported();
    const { l1TableOffset, l1Size } = entry;
    if (l1Size * 8 > MAX_L1_BYTES) throw new BlockError("EFBIG", "Snapshot L1 table too large");
    if (
      !Number.isSafeInteger(l1TableOffset) ||
      l1TableOffset % this.#image.geometry.clusterSize !== 0
    ) throw new BlockError("EINVAL", "Snapshot L1 table offset invalid");
    return entry;
  }

  #checkSupported(): void {
    if (!this.#image.hasDataFile) return;
    throw new BlockError("ENOTSUP", "Snapshots of images with a data file are not supported");
  }

  #nextId(): string {
    let last = 0;
    for (const { id } of this.#entries) last = Math.max(last, parseInt(id) || 0);
    return String(last + 1);
  }

  /** Writes a table of these entries, which nothing leads to yet. */
  *#writeTable(entries: SnapshotEntry[]): Steps<NewTable> {
    const { refcounts, file, geometry } = this.#image;
    const bytes = encodeSnapshotTable(entries);
    if (bytes.length > MAX_SNAPSHOT_TABLE_BYTES) {
      throw new BlockError("EFBIG", "Snapshot table is too big");
    }
    if (entries.length === 0) return { entries, offset: 0, length: 0 };
    const { offset } = yield* refcounts.allocate(Math.ceil(bytes.length / geometry.clusterSize));
    yield* file.write(offset, bytes);
    return { entries, offset, length: bytes.length };
  }

  /** Makes the header name a table, and frees the old one. */
  *#switchTable({ entries, offset, length }: NewTable): Steps<void> {
    const image = this.#image;
    const { header } = image;
    const previous = { offset: header.snapshotsOffset, length: this.#tableBytes };
    yield* image.refcounts.writeBack();
    yield* image.barrier();
    header.snapshotsOffset = offset;
    header.snapshotCount = entries.length;
    // Whatever becomes of the header now: it names this table when it is written next.
    this.#entries = entries;
    this.#tableBytes = length;
    this.#describe();
    yield* image.writeHeader();
    yield* image.barrier();
    if (previous.length > 0) image.freeLater(previous.offset, previous.length, false);
    yield* image.commit();
  }

  /** Where the tables are, for the overlap check. */
  #describe(): void {
    const { metadata, header } = this.#image;
    const table = { offset: header.snapshotsOffset, length: this.#tableBytes };
    metadata.setRanges(METADATA.snapshotTable, [table]);
    metadata.setRanges(
      METADATA.inactiveL1,
      this.#entries.map(({ l1TableOffset, l1Size }) => ({
        offset: l1TableOffset,
        length: l1Size * 8,
      })),
    );
  }

  /** Counts all that an L1 table leads to once more; nothing, where that fails. */
  *#raiseAll(l1: { offset: number; size: number }): Steps<void> {
    const { refcounts } = this.#image;
    let raised = 0;
    try {
      yield* this.#visit(l1, function* (offset, length) {
        yield* refcounts.raise(offset, length);
        raised++;
      });
    } catch (error) {
      yield* this.#visit(l1, function* (offset, length) {
        if (raised-- > 0) yield* refcounts.lower(offset, length);
      });
      throw error;
    }
  }

  /** Visits all that an L1 table in the file leads to: clusters first, then their L2 table. */
  *#visit({ offset, size }: { offset: number; size: number }, visit: Visit): Steps<void> {
    const { file, geometry } = this.#image;
    const { clusterSize, l2EntryBytes } = geometry;
    const l1 = new Uint8Array(size * 8);
    yield* settle(file.read(offset, l1));
    const l1View = new DataView(l1.buffer);
    const table = new Uint8Array(clusterSize);
    const view = new DataView(table.buffer);
    const turns = new Turns();
    const seen = new ClusterCounter(limits.qcow2CheckBytes);
    for (let index = 0; index < size; index++) {
      const tableOffset = entryOffset(l1View.getUint32(index * 8), l1View.getUint32(index * 8 + 4));
      if (tableOffset === 0) continue;
      yield* this.#checkTable(tableOffset);
      // Else a hostile table could make this take for ever.
      if (seen.get(tableOffset / clusterSize) > 0) {
        yield* this.#image.corrupted(`L2 table 0x${tableOffset.toString(16)} is used twice`);
      }
      seen.add(tableOffset / clusterSize, 1);
      yield* settle(file.read(tableOffset, table));
      for (let at = 0; at < table.length; at += l2EntryBytes) {
        const high = view.getUint32(at);
        const low = view.getUint32(at + 4);
        if ((high & HI_COMPRESSED) !== 0) {
          const extent = compressedExtent(high & ~HI_COPIED, low, geometry);
          yield* visit(extent.offset, extent.length);
          continue;
        }
        const host = entryOffset(high, low);
        if (host === 0) continue;
        if (host % clusterSize !== 0 || host >= file.node.sizeBytes) {
          yield* this.#image.corrupted(`Cluster offset 0x${host.toString(16)} makes no sense`);
        }
        yield* visit(host, clusterSize);
      }
      yield* visit(tableOffset, clusterSize);
      yield* turns.next();
    }
  }

  *#checkTable(offset: number): Steps<void> {
    const { file, geometry } = this.#image;
    if (offset % geometry.clusterSize === 0 && offset < file.node.sizeBytes) return;
    yield* this.#image.corrupted(`L2 table offset 0x${offset.toString(16)} makes no sense`);
  }

  /** Clears the COPIED bits of the active tables: all of it is about to be shared. */
  *#clearCopied(): Steps<void> {
    yield* this.#eachActiveSlice(function* (view, at) {
      const high = view.getUint32(at);
      if ((high & HI_COPIED) === 0 || (high & HI_COMPRESSED) !== 0) return false;
      view.setUint32(at, (high & ~HI_COPIED) >>> 0);
      return true;
    });
    const { l2 } = this.#image;
    for (let index = 0; index < l2.l1Size; index++) {
      if (l2.isTableCopied(index)) l2.setTable(index, l2.tableOffset(index), false);
    }
  }

  /** Sets the COPIED bits of the active tables where nobody shares what they refer to. */
  *#setCopied(): Steps<void> {
    const { l2, refcounts, geometry } = this.#image;
    const { clusterSize } = geometry;
    for (let index = 0; index < l2.l1Size; index++) {
      const table = l2.tableOffset(index);
      if (table === 0 || l2.isTableCopied(index)) continue;
      yield* this.#checkTable(table);
      if ((yield* refcounts.get(table / clusterSize)) === 1) l2.setTable(index, table, true);
    }
    yield* this.#eachActiveSlice(function* (view, at) {
      const high = view.getUint32(at);
      if ((high & (HI_COPIED | HI_COMPRESSED)) !== 0) return false;
      const host = entryOffset(high, view.getUint32(at + 4));
      if (host === 0 || (yield* refcounts.get(Math.floor(host / clusterSize))) !== 1) return false;
      view.setUint32(at, (high | HI_COPIED) >>> 0);
      return true;
    });
  }

  /** Calls `change` for every entry of the active L2 tables: whether it changed the entry. */
  *#eachActiveSlice(change: (view: DataView, at: number) => Steps<boolean>): Steps<void> {
    const { l2, geometry } = this.#image;
    const { l2Coverage, sliceCoverage, sliceBytes, l2EntryBytes } = geometry;
    const turns = new Turns();
    const seen = new ClusterCounter(limits.qcow2CheckBytes);
    for (let index = 0; index < l2.l1Size; index++) {
      const cluster = Math.floor(l2.tableOffset(index) / geometry.clusterSize);
      if (cluster === 0 || seen.get(cluster) > 0) continue;
      seen.add(cluster, 1);
      const end = (index + 1) * l2Coverage;
      for (let guest = index * l2Coverage; guest < end; guest += sliceCoverage) {
        const slice = yield* l2.slice(guest);
        if (slice === null) break;
        let isChanged = false;
        for (let at = 0; at < sliceBytes; at += l2EntryBytes) {
          if (yield* change(slice.view, at)) isChanged = true;
        }
        if (isChanged) l2.markDirty(slice);
        yield* turns.next();
      }
    }
  }

  /**
   * Clears the COPIED bits in the L2 tables of a snapshot that is becoming active, in the file, and
   * in `l1`, its L1 table in memory. Others may have left them.
   */
  *#clearCopiedOf({ size }: { size: number }, l1: Uint8Array): Steps<void> {
    const { file, geometry } = this.#image;
    const l1View = new DataView(l1.buffer);
    const table = new Uint8Array(geometry.clusterSize);
    const view = new DataView(table.buffer);
    const turns = new Turns();
    for (let index = 0; index < size; index++) {
      const high = l1View.getUint32(index * 8);
      const offset = entryOffset(high, l1View.getUint32(index * 8 + 4));
      l1View.setUint32(index * 8, (high & ~HI_COPIED) >>> 0);
      if (offset === 0) continue;
      yield* turns.next();
      yield* settle(file.read(offset, table));
      let isChanged = false;
      for (let at = 0; at < table.length; at += geometry.l2EntryBytes) {
        const entry = view.getUint32(at);
        if ((entry & HI_COPIED) === 0 || (entry & HI_COMPRESSED) !== 0) continue;
        view.setUint32(at, (entry & ~HI_COPIED) >>> 0);
        isChanged = true;
      }
      if (!isChanged) continue;
      yield* this.#image.checkOverlap(offset, table.length, METADATA.activeL2);
      yield* file.write(offset, table);
    }
  }
}

/** Clusters that no longer belong to an L1 table. */
function giveUp(image: Qcow2Image): Visit {
  return function* (offset, length) {
    image.freeLater(offset, length, false);
    if (image.isCommitDue) yield* image.commit();
  };
}
