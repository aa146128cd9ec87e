/**
 * Driver "qcow2": a disk in a qcow2 image.
 *
 *   open: header parsed -> tables loaded -> (dirty: repaired) -> autoclear bits that nobody here
 *         knows cleared -> node
 *   close: metadata written in order -> marked clean -> the file's surplus taken away
 *
 * Children: "file", the image; "data-file", where guest data is instead; "backing", what is read
 * where the image has nothing. Requests answer within the call where those do.
 *
 * Everything about the format is in image.ts and its neighbours; here are the node's duties.
 *
 * @module
 */

import type { BitmapStore } from "../bitmap_store.ts";
import type { BlockEdge } from "../edge.ts";
import { BlockError } from "../errors.ts";
import type { IoVector } from "../io_vector.ts";
import { BlockNode, type DiscardMode } from "../node.ts";
import { andThen } from "../maybe_promise.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import { type BlockStatus, type MaybePromise, REQ_WRITE_COMPRESSED } from "../types.ts";
import { Qcow2Bitmaps } from "./bitmaps.ts";
import { type Compressor, directCompressors } from "./compress.ts";
import {
  AUTOCLEAR_MASK,
  COMPAT_LAZY_REFCOUNTS,
  EXTENSION_BACKING_FORMAT,
  EXTENSION_DATA_FILE,
  HEADER_V3_BYTES,
  INCOMPAT_CORRUPT,
  INCOMPAT_DATA_FILE,
  INCOMPAT_DIRTY,
} from "./format.ts";
import { headerClusterBytes, parseQcow2Header, type Qcow2Header } from "./header.ts";
import { extensionText, withExtension } from "./header_extensions.ts";
import { Qcow2Image } from "./image.ts";
import { ImageFile } from "./image_file.ts";
import type { PreallocationMode } from "./preallocate.ts";
import { readImage, tryRead } from "./read.ts";
import { describeQcow2Image } from "./image_details.ts";
import { emptyImage, resizeImage } from "./resize.ts";
import { Qcow2Snapshots } from "./snapshots.ts";
import { statusOf } from "./status.ts";
import { tryWrite, writeImage } from "./write.ts";
import { writeCompressed } from "./write_compressed.ts";
import { discardInImage, zeroImage } from "./zero.ts";

/** What `Qcow2Node.open` takes. */
export interface Qcow2NodeOptions {
  /** Unique in the graph. */
  nodeName: string;
  /** The image. */
  file: BlockNode;
  /** The data file of an image that has one. */
  dataFile?: BlockNode | null;
  /** What is read where the image has nothing. The image's own idea of it is not opened here. */
  backing?: BlockNode | null;
  /** Refuses writes; the image isn't changed in any way. */
  isReadOnly: boolean;
  /** "unmap" unless given: then clusters that were given up are discarded in the file too. */
  discard?: DiscardMode;
  /** Compresses clusters that are to be written so; within the call unless given. */
  compressor?: Compressor;
  /** Most memory for L2 tables; that of limits.ts unless given. */
  l2CacheBytes?: number;
  /** Most memory for refcounts; that of limits.ts unless given. */
  refcountCacheBytes?: number;
}

/** A header as it was read. */
export interface OpenImage {
  /** Parsed and checked. */
  header: Qcow2Header;
  /** The first cluster, or the whole file where that is shorter. */
  headerBytes: Uint8Array;
}

/** Driver "qcow2". */
export class Qcow2Node extends BlockNode {
  readonly #image: Qcow2Image;
  readonly #file: BlockEdge;
  readonly #bitmaps: Qcow2Bitmaps;
  readonly #snapshots: Qcow2Snapshots;
  readonly #compressor: Compressor;

  private constructor(options: Qcow2NodeOptions, { header, headerBytes }: OpenImage) {
    super({
      nodeName: options.nodeName,
      driver: "qcow2",
      sizeBytes: header.sizeBytes - header.sizeBytes % 512,
      isReadOnly: options.isReadOnly,
      clusterSizeBytes: 2 ** header.clusterBits,
      discard: options.discard ?? "unmap",
    });
    this.#file = this.addChild("file", "image", options.file);
    const { dataFile, backing } = options;
    if (backing) this.addChild("backing", "cow", backing);
    this.#image = new Qcow2Image({
      file: this.#file,
      dataFile: dataFile ? this.addChild("data-file", "data", dataFile) : undefined,
      header,
      headerBytes,
      isReadOnly: options.isReadOnly,
      backing: () => this.backing?.node ?? null,
      passesDiscards: () => this.discardMode === "unmap",
      l2CacheBytes: options.l2CacheBytes,
      refcountCacheBytes: options.refcountCacheBytes,
    });
    this.#compressor = options.compressor ?? directCompressors[header.compressionType];
    this.#bitmaps = new Qcow2Bitmaps(this.#image);
    this.#snapshots = new Qcow2Snapshots(this.#image, {
      replacing: () => this.observer?.replacing(),
      resized: () => this.setSize(this.#image.guestSize),
    });
  }

  /** Opens an image. Throws a BlockError, with QEMU's texts, on what is wrong with it. */
  static open(options: Qcow2NodeOptions): MaybePromise<Qcow2Node> {
    return runSteps(Qcow2Node.#open(options));
  }

  static *#open(options: Qcow2NodeOptions): Steps<Qcow2Node> {
    const { file, isReadOnly } = options;
    let opened = yield* readHeader(file);
    checkDataFile(opened.header, options);
    if (!isReadOnly && (opened.header.incompatibleFeatures & INCOMPAT_CORRUPT) !== 0n) {
      throw new BlockError("EPERM", "qcow2: Image is corrupt; cannot be opened read/write");
    }
    if (!isReadOnly && (opened.header.incompatibleFeatures & INCOMPAT_DIRTY) !== 0n) {
      // Hardly an image needs it when it is opened.
      const { checkQcow2 } = yield* settle(import("./check.ts"));
      const { corruptions, checkErrors } = yield* settle(checkQcow2(file, { repair: "all" }));
      if (corruptions > 0 || checkErrors > 0) {
        throw new BlockError("EIO", "Could not repair dirty image");
      }
      opened = yield* readHeader(file);
    }
    const node = new Qcow2Node(options, opened);
    yield* node.#image.load();
    yield* node.#snapshots.load();
    yield* node.#bitmaps.load();
    if (!isReadOnly) yield* node.#becomeWritable();
    return node;
  }

  /** The image's metadata, for what works on it: snapshots, bitmaps, the check. */
  get image(): Qcow2Image {
    return this.#image;
  }

  /** The image's own snapshots. */
  get snapshots(): Qcow2Snapshots {
    return this.#snapshots;
  }

  /** Where persistent bitmaps are kept. */
  override get bitmapStore(): BitmapStore {
    return this.#bitmaps;
  }

  /** The backing file as the image names it, null without one. */
  get backingFile(): string | null {
    return this.#image.header.backingFile;
  }

  /** Its format as the image names it, null where it does not. */
  get backingFormat(): string | null {
    return extensionText(this.#image.header.extensions, EXTENSION_BACKING_FORMAT);
  }

  /** All but those with a data file: QEMU's don't either. */
  override get supportsCompressedWrites(): boolean {
    return !this.#image.hasDataFile;
  }

  /** Always. */
  override get supportsBacking(): boolean {
    return true;
  }

  /** Clusters in use, times their size: what the file takes. */
  override get allocatedBytes(): number | null {
    return this.#file.node.allocatedBytes;
  }

  /** From the image, and where it has nothing from the backing node. */
  protected override doRead(offset: number, target: IoVector): MaybePromise<void> {
    const done = tryRead(this.#image, offset, target);
    return done === false ? runSteps(readImage(this.#image, offset, target)) : done;
  }

  /** In place, or to new clusters. */
  protected override doWrite(offset: number, source: IoVector, flags: number): MaybePromise<void> {
    if (!this.#bitmaps.isMarked) return this.#marked(() => this.doWrite(offset, source, flags));
    if ((flags & REQ_WRITE_COMPRESSED) !== 0) {
      return runSteps(writeCompressed(this.#image, offset, source, this.#compressor));
    }
    const done = tryWrite(this.#image, offset, source);
    return done === false ? runSteps(writeImage(this.#image, offset, source)) : done;
  }

  /** By changes of tables, where whole clusters are concerned: see zero.ts. */
  protected override doWriteZeroes(
    offset: number,
    length: number,
    flags: number,
  ): MaybePromise<void> {
    if (!this.#bitmaps.isMarked) {
      return this.#marked(() => this.doWriteZeroes(offset, length, flags));
    }
    return runSteps(zeroImage(this.#image, offset, length, flags));
  }

  /** Gives up whole clusters: see zero.ts. */
  protected override doDiscard(offset: number, length: number): MaybePromise<void> {
    if (!this.#bitmaps.isMarked) return this.#marked(() => this.doDiscard(offset, length));
    return runSteps(discardInImage(this.#image, offset, length));
  }

  /** Data and metadata, in order. */
  protected override doFlush(): MaybePromise<void> {
    if (this.#image.isReadOnly) return;
    return runSteps(this.#image.flush());
  }

  /** What the image's own tables say: see status.ts. */
  protected override doBlockStatus(offset: number, length: number): MaybePromise<BlockStatus> {
    return runSteps(statusOf(this.#image, offset, length));
  }

  /** Without preallocation. */
  protected override doResize(sizeBytes: number): MaybePromise<void> {
    return runSteps(this.#resize(sizeBytes, "off"));
  }

  /** Resizes, with what is new allocated as asked for. Nothing may be in flight. */
  grow(sizeBytes: number, preallocation: PreallocationMode): MaybePromise<void> {
    if (this.isReadOnly) throw new BlockError("EPERM", "Block node is read-only");
    this.observer?.resizing(sizeBytes);
    return runSteps(this.#resize(sizeBytes, preallocation));
  }

  /** Gives up everything that the image holds, as after a commit. Nothing may be in flight. */
  makeEmpty(): MaybePromise<void> {
    return this.#marked(() => runSteps(emptyImage(this.#image)));
  }

  /** See BlockNode.imageDetails. */
  override get imageDetails(): Record<string, unknown> {
    return describeQcow2Image(this.#image, this.#snapshots.list(), this.#bitmaps.list());
  }

  /** Writes another backing file name, or none, into the header. */
  override changeBackingFile(fileName: string | null, format: string | null): MaybePromise<void> {
    return runSteps(this.#changeBackingFile(fileName, format));
  }

  /** Everything is written before the node becomes read-only. */
  protected override doSetReadOnly(isReadOnly: boolean): MaybePromise<void> {
    return runSteps(this.#setReadOnly(isReadOnly));
  }

  /** Writes everything, also where the image turned out to be corrupt: then as far as it goes. */
  protected override doClose(): MaybePromise<void> {
    if (!this.#image.isReadOnly) return runSteps(this.#finish());
  }

  /** What QEMU's query-block shows as format-specific, by the same names. */
  override details(): Record<string, string | number | boolean | null> {
    const { header, geometry, hasDataFile } = this.#image;
    const details: Record<string, string | number | boolean | null> = {
      compat: header.version === 3 ? "1.1" : "0.10",
      "compression-type": header.compressionType,
      "refcount-bits": 2 ** header.refcountOrder,
      "backing-file": header.backingFile,
      "backing-format": this.backingFormat,
    };
    if (header.version === 2) return details;
    details["lazy-refcounts"] = (header.compatibleFeatures & COMPAT_LAZY_REFCOUNTS) !== 0n;
    details["corrupt"] = this.#image.isCorrupt;
    details["extended-l2"] = geometry.isExtended;
    if (hasDataFile) {
      details["data-file"] = extensionText(header.extensions, EXTENSION_DATA_FILE);
      details["data-file-raw"] = this.#image.isDataFileRaw;
    }
    return details;
  }

  /** The first change since the image was opened, if nobody has loaded its bitmaps to record it. */
  #marked(change: () => MaybePromise<void>): MaybePromise<void> {
    return andThen(this.#bitmaps.markInUse(), change);
  }

  *#resize(sizeBytes: number, preallocation: PreallocationMode): Steps<void> {
    this.#bitmaps.checkResize();
    yield* resizeImage(this.#image, sizeBytes, preallocation);
    this.setSize(sizeBytes);
  }

  *#changeBackingFile(fileName: string | null, format: string | null): Steps<void> {
    const { header, lock } = this.#image;
    const before = { backingFile: header.backingFile, extensions: header.extensions };
    const data = format === null ? null : new TextEncoder().encode(format);
    header.backingFile = fileName;
    header.extensions = withExtension(header.extensions, EXTENSION_BACKING_FORMAT, data);
    try {
      yield* lock.hold(() => this.#image.writeHeader());
    } catch (error) {
      Object.assign(header, before);
      throw error;
    }
    yield* this.#image.flush();
  }

  *#setReadOnly(isReadOnly: boolean): Steps<void> {
    if (isReadOnly) {
      yield* this.#finish();
      this.#image.isReadOnly = true;
      return;
    }
    const { incompatibleFeatures } = this.#image.header;
    if ((incompatibleFeatures & (INCOMPAT_CORRUPT | INCOMPAT_DIRTY)) !== 0n) {
      throw new BlockError("EPERM", "qcow2: Image needs repair; it cannot be made writable");
    }
    this.#image.isReadOnly = false;
    yield* this.#becomeWritable();
  }

  /** Who writes clears the autoclear bits that he doesn't know (specification, "Header"). */
  *#becomeWritable(): Steps<void> {
    const { header, lock } = this.#image;
    if ((header.autoclearFeatures & ~AUTOCLEAR_MASK) === 0n) return;
    header.autoclearFeatures &= AUTOCLEAR_MASK;
    yield* lock.hold(() => this.#image.writeHeader());
  }

  *#finish(): Steps<void> {
    try {
      yield* this.#image.finish();
    } catch (error) {
      // Of a corrupt image nothing more is to be written than could be.
      if (!this.#image.isCorrupt) throw error;
    }
  }
}

/** Reads and parses the header of an image. */
export function* readHeader(file: BlockNode): Steps<OpenImage> {
  const image = new ImageFile({ node: file });
  const start = new Uint8Array(Math.min(HEADER_V3_BYTES, file.sizeBytes));
  yield* settle(image.read(0, start));
  const headerBytes = new Uint8Array(Math.min(headerClusterBytes(start), file.sizeBytes));
  yield* settle(image.read(0, headerBytes));
  return { header: parseQcow2Header(headerBytes), headerBytes };
}

function checkDataFile(header: Qcow2Header, { dataFile }: Qcow2NodeOptions): void {
  const needsOne = (header.incompatibleFeatures & INCOMPAT_DATA_FILE) !== 0n;
  if (needsOne && !dataFile) {
    throw new BlockError("EINVAL", "'data-file' is required for this image");
  }
  if (!needsOne && dataFile) {
    throw new BlockError(
      "EINVAL",
      "'data-file' can only be set for images with an external data file",
    );
  }
}
