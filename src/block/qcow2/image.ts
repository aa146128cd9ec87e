/**
 * A qcow2 image: its metadata in memory, and the order in which changes of it reach the file.
 *
 * Tables are changed in memory at once and written by `commit`, so that whatever moment the power
 * fails at, every reference in the file leads to something that is there and counted:
 *
 *   refcount blocks, guest data -> barrier -> L2 tables -> barrier -> L1 entries
 *     -> barrier -> refcounts of what was given up are lowered (in memory, till the next commit)
 *
 * At worst clusters are leaked. With lazy refcounts the image is marked dirty instead of writing
 * refcounts first; they are written at close.
 *
 * Who reads or changes tables holds `lock`. Guest data moves without it:
 *
 *   guestWrites  guest ranges, of whole clusters, whose entries a request is about to change; every
 *                other change there waits, reads don't (they get what was there before)
 *   hostRequests ranges of the data file that a request is working on: clusters that are given up
 *                are not reused before
 *
 * @module
 */

import { limits } from "../../limits.ts";
import { BusyRanges } from "../busy_ranges.ts";
import { BlockError } from "../errors.ts";
import { settle, type Steps } from "../steps.ts";
import type { BlockNode } from "../node.ts";
import type { ByteRange, MaybePromise } from "../types.ts";
import type { L2Context } from "./l2.ts";
import {
  AUTOCLEAR_DATA_FILE_RAW,
  COMPAT_LAZY_REFCOUNTS,
  INCOMPAT_CORRUPT,
  INCOMPAT_DATA_FILE,
  INCOMPAT_DIRTY,
} from "./format.ts";
import { type Geometry, geometryOf } from "./geometry.ts";
import { encodeQcow2Header, type Qcow2Header } from "./header.ts";
import { type FileReference, ImageFile } from "./image_file.ts";
import { ClusterRun, type EntryFormat } from "./l2_entry.ts";
import { L2Tables } from "./l2.ts";
import { MetadataLock } from "./lock.ts";
import { MetadataMap, metadataName } from "./overlap.ts";
import { Refcounts } from "./refcounts.ts";

/** What an image is opened with. */
export interface Qcow2ImageOptions {
  /** Where metadata is, and data unless there is a data file. */
  file: FileReference;
  /** The data file of an image that has one. */
  dataFile?: FileReference | undefined;
  /** As parsed from the file. The image changes it. */
  header: Qcow2Header;
  /** The first bytes of the file, the header with its extensions and more. */
  headerBytes: Uint8Array;
  /** Nothing may be written. */
  isReadOnly: boolean;
  /** What is read where the image has nothing; none unless given. */
  backing?: () => BlockNode | null;
  /** Clusters that a discard gave up are discarded in the file too. */
  passesDiscards?: () => boolean;
  /** Bounds of the caches; those of limits.ts unless given. */
  l2CacheBytes?: number | undefined;
  /** See l2CacheBytes. */
  refcountCacheBytes?: number | undefined;
}

interface PendingFree extends ByteRange {
  /** A discard asked for it: the file may give the space back. */
  isRequested: boolean;
}

/** See the module's head. */
export class Qcow2Image implements L2Context, EntryFormat {
  readonly file: ImageFile;
  /** Where guest data is: `file`, or the external data file. */
  readonly dataFile: ImageFile;
  readonly hasDataFile: boolean;
  readonly header: Qcow2Header;
  readonly geometry: Geometry;
  readonly metadata: MetadataMap;
  readonly refcounts: Refcounts;
  /** L1 and L2 tables. */
  readonly l2: L2Tables;
  /** See the module's head. */
  readonly lock: MetadataLock = new MetadataLock();
  /** See the module's head. */
  readonly guestWrites: BusyRanges = new BusyRanges();
  /** See the module's head. */
  readonly hostRequests: BusyRanges = new BusyRanges();
  /** Nothing may be written. */
  isReadOnly: boolean;
  /** What is read where the image has nothing. */
  readonly backing: () => BlockNode | null;
  /** For lookups that are used before anybody else can make another one. */
  readonly scratchRun: ClusterRun = new ClusterRun();
  /** The compressed cluster that was read last: its offset in the file, its content. */
  lastUnpacked: { offset: number; bytes: Uint8Array } | null = null;
  /** Where the next compressed cluster goes, if its host cluster has room: see there. */
  packedEnd = 0;
  readonly #passesDiscards: () => boolean;
  #headerBytes: Uint8Array;
  #frees: PendingFree[] = [];
  #freeBytes = 0;
  /** Counts what L2 entries may rely on: new references, refcounts that were written. */
  #reliedOn = 0;
  /** How much of it is on stable storage. */
  #stable = 0;

  /** `load` follows. */
  constructor(options: Qcow2ImageOptions) {
    this.header = options.header;
    this.geometry = geometryOf(options.header);
    this.isReadOnly = options.isReadOnly;
    this.file = new ImageFile(options.file);
    this.hasDataFile = (options.header.incompatibleFeatures & INCOMPAT_DATA_FILE) !== 0n;
    this.dataFile = options.dataFile === undefined ? this.file : new ImageFile(options.dataFile);
    this.metadata = new MetadataMap(this.geometry.clusterSize);
    this.refcounts = new Refcounts(this, options.refcountCacheBytes);
    this.l2 = new L2Tables(this, options.l2CacheBytes);
    this.backing = options.backing ?? (() => null);
    this.#passesDiscards = options.passesDiscards ?? (() => true);
    this.#headerBytes = options.headerBytes;
  }

  /** Reads the refcount table and the L1 table. */
  *load(): Steps<void> {
    yield* this.refcounts.load();
    yield* this.l2.load();
  }

  /** Bytes of the disk: QEMU rounds the header's size down to sectors. */
  get guestSize(): number {
    return this.header.sizeBytes - this.header.sizeBytes % 512;
  }

  /** The data file has to be a raw image of the disk. */
  get isDataFileRaw(): boolean {
    return this.hasDataFile && (this.header.autoclearFeatures & AUTOCLEAR_DATA_FILE_RAW) !== 0n;
  }

  /** Refcounts may be written late. */
  get hasLazyRefcounts(): boolean {
    return (this.header.compatibleFeatures & COMPAT_LAZY_REFCOUNTS) !== 0n;
  }

  /** Wrong metadata was found: nothing may be written any more. */
  get isCorrupt(): boolean {
    return (this.header.incompatibleFeatures & INCOMPAT_CORRUPT) !== 0n;
  }

  *writeHeader(): Steps<void> {
    const encoded = encodeQcow2Header(this.header);
    const previous = this.#headerBytes;
    const bytes = new Uint8Array(Math.max(encoded.length, headerEnd(previous)));
    bytes.set(encoded);
    let start = 0;
    let end = bytes.length;
    while (start < end && bytes[start] === previous[start]) start++;
    while (end > start && bytes[end - 1] === previous[end - 1]) end--;
    if (start === end) return;
    // Whole sectors, and no more of them than changed: each of them is written or not.
    start -= start % 512;
    end = Math.min(Math.ceil(end / 512) * 512, bytes.length);
    yield* this.file.write(start, bytes.subarray(start, end));
    this.#headerBytes = bytes;
  }

  *barrier(): Steps<void> {
    const before = this.#reliedOn;
    if (this.hasDataFile) yield* settle(this.dataFile.node.flush());
    yield* settle(this.file.node.flush());
    this.#stable = Math.max(this.#stable, before);
  }

  *checkOverlap(offset: number, length: number, ignored = 0): Steps<void> {
    const kinds = this.metadata.find(offset, length, ignored);
    if (kinds === 0) return;
    yield* this.corrupted(
      `Preventing invalid write on metadata (overlaps with ${metadataName(kinds)})`,
    );
  }

  *corrupted(message: string): Steps<never> {
    if (!this.isReadOnly && !this.isCorrupt && this.header.version === 3) {
      this.header.incompatibleFeatures |= INCOMPAT_CORRUPT;
      yield* this.writeHeader();
      yield* settle(this.file.node.flush());
    }
    throw new BlockError("EIO", `qcow2: Image is corrupt: ${message}`);
  }

  reliesOn(): void {
    this.#reliedOn++;
  }

  freeLater(offset: number, length: number, isRequested: boolean): void {
    this.#freeBytes += length;
    const last = this.#frees.at(-1);
    // Neighbours in whole clusters are one range; parts of clusters count each.
    const mask = this.geometry.clusterSize - 1;
    if (
      last !== undefined && last.isRequested === isRequested &&
      last.offset + last.length === offset && ((offset | length | last.offset) & mask) === 0
    ) {
      last.length += length;
    } else {
      this.#frees.push({ offset, length, isRequested });
    }
  }

  /** More waits to be freed than should: a commit is due. */
  get isCommitDue(): boolean {
    return this.#freeBytes > limits.qcow2FreeBytes ||
      this.#frees.length > limits.qcow2FreeRanges;
  }

  *commit(): Steps<void> {
    if (this.hasLazyRefcounts) yield* this.#markDirty();
    else yield* this.refcounts.writeBack();
    if (this.l2.isDirty || this.l2.isL1Dirty) {
      if (this.#reliedOn > this.#stable) yield* this.barrier();
      yield* this.l2.writeBack();
      if (this.l2.isL1Dirty) {
        yield* this.barrier();
        yield* this.l2.writeBackL1();
      }
    }
    if (this.#frees.length > 0) yield* this.#free();
  }

  /** Everything that was written, and the metadata that leads to it, to stable storage. */
  *flush(): Steps<void> {
    yield* this.lock.hold(() => this.commit());
    // Others may go on with tables meanwhile.
    yield* this.barrier();
  }

  /** Writes everything, refcounts too, and takes away what the file grew ahead. */
  *finish(): Steps<void> {
    yield* this.lock.acquire();
    try {
      yield* this.commit();
      yield* this.refcounts.writeBack();
      yield* this.barrier();
      yield* this.#markClean();
      yield* this.file.trim();
      yield* this.barrier();
    } finally {
      this.lock.release();
    }
  }

  /** A request to the data file: while it runs its clusters can't be reused. */
  track(offset: number, length: number, request: MaybePromise<void>): MaybePromise<void> {
    if (!(request instanceof Promise)) return;
    const range = this.hostRequests.add({ offset, length });
    return request.finally(() => this.hostRequests.remove(range));
  }

  /** Lowers the refcounts of what nothing in the file refers to any more. */
  *#free(): Steps<void> {
    const frees = this.#frees;
    this.#frees = [];
    this.#freeBytes = 0;
    yield* this.barrier();
    for (const { offset, length, isRequested } of frees) {
      if (!this.hasDataFile) yield* this.#waitForRequests(offset, length);
      for (const freed of yield* this.refcounts.lower(offset, length)) {
        this.lastUnpacked = null;
        if (this.packedEnd >= freed.offset && this.packedEnd <= freed.offset + freed.length) {
          this.packedEnd = 0;
        }
        if (isRequested && this.#passesDiscards()) {
          yield* settle(discardIn(this.file, freed));
        }
      }
    }
  }

  *#waitForRequests(offset: number, length: number): Steps<void> {
    for (;;) {
      const busy = this.hostRequests.overlapping({ offset, length });
      if (busy === undefined) return;
      yield this.hostRequests.whenRemoved(busy);
    }
  }

  /** Before the first L2 entry that refers to clusters whose refcounts are not written. */
  *#markDirty(): Steps<void> {
    if (!this.refcounts.isDirty) return;
    if ((this.header.incompatibleFeatures & INCOMPAT_DIRTY) !== 0n) return;
    this.header.incompatibleFeatures |= INCOMPAT_DIRTY;
    yield* this.writeHeader();
    this.reliesOn();
  }

  *#markClean(): Steps<void> {
    if ((this.header.incompatibleFeatures & INCOMPAT_DIRTY) === 0n) return;
    this.header.incompatibleFeatures &= ~INCOMPAT_DIRTY;
    yield* this.writeHeader();
  }
}

/** A discard of what lies in the file. */
function discardIn(file: ImageFile, { offset, length }: ByteRange): MaybePromise<void> {
  const count = Math.min(length, file.node.sizeBytes - offset);
  if (count > 0) return file.node.discard(offset, count);
}

/** Where bytes that are not zero end in what was read of the first cluster. */
function headerEnd(bytes: Uint8Array): number {
  let end = bytes.length;
  while (end > 0 && bytes[end - 1] === 0) end--;
  return end;
}
