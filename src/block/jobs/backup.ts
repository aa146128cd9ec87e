/**
 * The backup job (QEMU's block/backup.c): copies a disk as it was at one moment to a target, while
 * the guest goes on writing. A copy-before-write filter above the source keeps the moment: what the
 * guest is about to overwrite is copied first, the rest as the job comes to it.
 *
 *   full         everything
 *   top          what the source itself holds, without its backing nodes
 *   bitmap       what is dirty in a bitmap; what becomes of the bitmap says `bitmapMode`
 *   incremental  the same, and the bitmap is clean at the end if all went well
 *   none         nothing but what the guest overwrites (a fleecing), until the job is cancelled
 *
 * The bitmap is busy meanwhile; a successor records. At the end, in each bitmap mode:
 *
 *               success                        failure
 *   on-success  what was written since         all that it had, and what was written since
 *   always      what was written since         what was not copied, and what was written since
 *   never       all that it had, and what was written since
 *
 * The moment is that of `prepareBackup`, in a drained section.
 *
 * @module
 */

import type { BlockLayer } from "../block_layer.ts";
import type { DirtyBitmap } from "../dirty_bitmap.ts";
import { BlockError } from "../errors.ts";
import { CopyBeforeWriteNode, type OnCbwError } from "../filters/copy_before_write.ts";
import { CopyError } from "../filters/cluster_copier.ts";
import type { BlockNode } from "../node.ts";
import { type ByteRange, type MaybePromise, PERM_ALL, STATUS_ALLOCATED } from "../types.ts";
import { unfiltered } from "../image/chain.ts";
import { ChunkRunner } from "./chunks.ts";
import { putAbove } from "./filters.ts";
import type { Job, JobDriver, JobOptions } from "./job.ts";
import type { OnError } from "./types.ts";

/** What of the source is copied: see the module's head. */
export type BackupSync = "full" | "top" | "none" | "incremental" | "bitmap";

/** What becomes of the bitmap at the end: see the module's head. */
export type BitmapMode = "on-success" | "never" | "always";

/** Arguments of blockdev-backup. */
export interface BackupOptions extends JobOptions {
  /** The disk. */
  source: BlockNode;
  /** As large as the source. */
  target: BlockNode;
  /** What of the source is copied. */
  sync: BackupSync;
  /** A bitmap of the source's. */
  bitmap?: string;
  /** Needed with a bitmap, but for sync=incremental. */
  bitmapMode?: BitmapMode;
  /** Compresses, where the target can. */
  compress?: boolean;
  /** Discards at the source what was copied. */
  discardSource?: boolean;
  /** "report" unless given. */
  onSourceError?: OnError;
  /** "report" unless given. */
  onTargetError?: OnError;
  /** What to give up when a guest's write can't be copied: the write (unless given), or the job. */
  onCbwError?: OnCbwError;
  /** What a guest's write waits for copies at most; 0 (unless given): no bound. */
  cbwTimeoutSeconds?: number;
  /** The copy-before-write filter's name. */
  filterNodeName?: string;
  /** Chunks at a time, 64 unless given. */
  maxWorkers?: number;
  /** Largest chunk, 0 (unless given): as the job likes. */
  maxChunkBytes?: number;
  /** 0 or a power of two. */
  minClusterSizeBytes?: number;
}

const WORKERS_DEFAULT = 64;
/** More than these are not used, whatever was asked for. */
const WORKERS_MAX = 1024;
const INT_MAX = 2 ** 31 - 1;
/** How far one look at the source's allocation goes. */
const STATUS_BYTES = 1024 * 1024 * 1024;

/** Starts a backup of the source as it is now. Throws a BlockError and changes nothing. */
export async function startBackup(layer: BlockLayer, options: BackupOptions): Promise<Job> {
  return await layer.graph.drained([options.source], async () => {
    const job = await prepareBackup(layer, options);
    job.start();
    return job;
  });
}

/**
 * A backup of the source as it is now, to be started or cancelled, within a drained section over
 * the source. Throws a BlockError and changes nothing.
 */
export async function prepareBackup(layer: BlockLayer, options: BackupOptions): Promise<Job> {
  const bitmap = checkBitmap(layer, options);
  checkNodes(layer, options);
  const driver = nodeCreated(
    () => new BackupDriver(layer, options, bitmap),
    "Cannot create block-copy-state: ",
  );
  return await driver.prepareJob();
}

/** Says of the making of the filter that it is that which failed, as QEMU does. */
function nodeCreated<T>(create: () => T, what = ""): T {
  try {
    return create();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const message = `Could not create node: ${what}${error.message}`;
    throw new BlockError(error.code, message, { cause: error });
  }
}

class BackupDriver implements JobDriver {
  readonly type = "backup";
  readonly isBlockJob = true;
  readonly #layer: BlockLayer;
  readonly #options: BackupOptions;
  readonly #bitmap: DirtyBitmap | null;
  readonly #chunks = new ChunkRunner();
  readonly #filter: CopyBeforeWriteNode;
  #job: Job | null = null;
  /** Where the next chunk is looked for. */
  #cursor = 0;

  constructor(layer: BlockLayer, options: BackupOptions, bitmap: DirtyBitmap | null) {
    this.#layer = layer;
    this.#options = options;
    this.#bitmap = bitmap;
    const isLimited = options.sync === "bitmap" || options.sync === "incremental";
    this.#filter = new CopyBeforeWriteNode({
      nodeName: options.filterNodeName ?? "",
      file: options.source,
      target: options.target,
      kernels: layer.kernels,
      bitmap: isLimited ? bitmap?.bits ?? null : null,
      minClusterSizeBytes: options.minClusterSizeBytes ?? 0,
      clock: layer.clock,
      onCbwError: options.onCbwError ?? "break-guest-write",
      cbwTimeoutSeconds: options.cbwTimeoutSeconds ?? 0,
      onBroken: () => this.#job?.wake(),
      backup: {
        isCompressed: options.compress ?? false,
        discardsSource: options.discardSource ?? false,
        onCopied: (byteCount) => this.#copied(byteCount),
      },
    });
  }

  /** Undoes what it did where it throws. */
  async prepareJob(): Promise<Job> {
    const { graph, jobs } = this.#layer;
    const { source, target, sync } = this.#options;
    const undo: (() => MaybePromise<void>)[] = [() => this.#filter.close()];
    try {
      this.#checkChunks();
      const job = jobs.create(this, this.#options);
      undo.push(() => job.discard());
      if (this.#bitmap !== null) {
        this.#bitmap.createSuccessor();
        undo.push(() => this.#bitmap?.reclaim());
      }
      nodeCreated(() => putAbove(graph, source, this.#filter));
      job.addNode(this.#filter, { name: "main node", perm: 0, shared: PERM_ALL });
      job.addNode(target, { name: "target", perm: 0, shared: PERM_ALL });
      job.progress.total = sync === "none"
        ? source.sizeBytes
        : this.#filter.leftToCopy.countBytes();
      this.#job = job;
      return job;
    } catch (error) {
      for (const action of undo.reverse()) await action();
      throw error;
    }
  }

  cancel(): boolean {
    this.#options.target.cancelInFlight();
    return true;
  }

  async run(job: Job): Promise<void> {
    const { sync } = this.#options;
    if (sync === "none") {
      while (!job.isCancelled && this.#filter.brokenBy === null) await job.sleep(null);
      return this.#checkBroken();
    }
    if (sync === "top") await this.#forgoUnallocated(job);
    do {
      await this.#copyAll(job);
      // A guest's write may be about to copy the last clusters; where that fails, they are left.
      await this.#filter.whenSettled();
      this.#checkBroken();
    } while (!job.isCancelled && !this.#filter.isAllCopied);
  }

  async #copyAll(job: Job): Promise<void> {
    const { maxWorkers = WORKERS_DEFAULT } = this.#options;
    await this.#chunks.run(job, {
      workers: Math.min(maxWorkers, WORKERS_MAX),
      next: () => this.#nextChunk(),
      copy: (chunk) => this.#filter.copyOut(chunk),
      failed: (error) => {
        const isRead = error instanceof CopyError && error.isRead;
        const { onSourceError = "report", onTargetError = "report" } = this.#options;
        return job.handleError(isRead ? onSourceError : onTargetError, isRead, error);
      },
    });
  }

  settle(): Promise<void> {
    return this.#chunks.settle();
  }

  commit(): void {
    const bitmap = this.#bitmap;
    if (bitmap === null) return;
    if (this.#bitmapMode === "never") bitmap.reclaim();
    else bitmap.abdicate();
  }

  async abort(): Promise<void> {
    // From now on no guest waits for a copy.
    await this.#filter.stopCopying();
    const bitmap = this.#bitmap;
    if (bitmap === null) return;
    if (this.#bitmapMode !== "always") return bitmap.reclaim();
    bitmap.abdicate();
    bitmap.bits.merge(this.#filter.leftToCopy);
  }

  async clean(job: Job): Promise<void> {
    this.#filter.endSnapshot();
    await job.releaseNodes();
    await this.#layer.graph.removeFilter(this.#filter);
  }

  get #bitmapMode(): BitmapMode {
    return this.#options.bitmapMode ?? "on-success";
  }

  #checkBroken(): void {
    if (this.#filter.brokenBy !== null) throw this.#filter.brokenBy;
  }

  #nextChunk(): ByteRange | null {
    if (this.#filter.brokenBy !== null) return null;
    const { leftToCopy, sizeBytes } = this.#filter;
    let run = leftToCopy.nextRun(this.#cursor, sizeBytes - this.#cursor);
    // What failed, or was put back, is behind.
    if (run === null && this.#cursor > 0) run = leftToCopy.nextRun(0, this.#cursor);
    if (run === null) return null;
    // The filter takes a chunk of it, or more where it is zeroes; what it takes is no longer left.
    const { maxChunkBytes = 0 } = this.#options;
    const whole = maxChunkBytes - maxChunkBytes % (this.#filter.clusterSizeBytes ?? 1);
    if (whole > 0) run.length = Math.min(run.length, whole);
    this.#cursor = run.offset;
    return run;
  }

  #copied(byteCount: number): void {
    if (this.#job !== null) this.#job.progress.current += byteCount;
  }

  /** sync=top: what the source does not hold itself is in the target's backing node too. */
  async #forgoUnallocated(job: Job): Promise<void> {
    const node = unfiltered(this.#options.source);
    const { progress } = job;
    for (let offset = 0; offset < node.sizeBytes;) {
      await job.pausePoint();
      if (job.isCancelled) return;
      const length = Math.min(node.sizeBytes - offset, STATUS_BYTES);
      const status = await job.operate(() => node.blockStatus(offset, length));
      if ((status.flags & STATUS_ALLOCATED) === 0) {
        this.#filter.forgo({ offset, length: status.length });
        progress.total = progress.current + this.#filter.leftToCopy.countBytes();
      }
      offset += status.length;
    }
  }

  #checkChunks(): void {
    const { maxChunkBytes = 0 } = this.#options;
    const clusterBytes = this.#filter.clusterSizeBytes ?? 1;
    if (maxChunkBytes === 0 || maxChunkBytes >= clusterBytes) return;
    throw new BlockError(
      "EINVAL",
      `Required max-chunk (${maxChunkBytes}) is less than backup cluster size (${clusterBytes})`,
    );
  }
}

/** The bitmap that the options name. The texts are QEMU's (do_backup_common, blockdev.c). */
function checkBitmap(layer: BlockLayer, options: BackupOptions): DirtyBitmap | null {
  const { source, sync, bitmap: name, bitmapMode: mode } = options;
  if ((sync === "bitmap" || sync === "incremental") && name === undefined) {
    throw new BlockError("EINVAL", `must provide a valid bitmap name for '${sync}' sync mode`);
  }
  if (sync === "incremental" && mode !== undefined && mode !== "on-success") {
    throw new BlockError(
      "EINVAL",
      "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
    );
  }
  if (name === undefined) {
    if (mode === undefined) return null;
    throw new BlockError("EINVAL", "Cannot specify bitmap sync mode without a bitmap");
  }
  const bitmap = layer.bitmaps.list(source).find((each) => each.name === name);
  if (bitmap === undefined) {
    throw new BlockError("ENOENT", `Bitmap '${name}' could not be found`);
  }
  if (mode === undefined && sync !== "incremental") {
    throw new BlockError("EINVAL", "Bitmap sync mode must be given when providing a bitmap");
  }
  bitmap.check(mode === "never" ? "use" : "modify");
  if (sync === "none") {
    throw new BlockError(
      "EINVAL",
      "sync mode 'none' does not produce meaningful bitmap outputs",
    );
  }
  if (mode === "never" && sync !== "bitmap") {
    throw new BlockError(
      "EINVAL",
      `Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '${sync}'`,
    );
  }
  return bitmap;
}

/** The texts are QEMU's (backup_job_create, block/backup.c). */
function checkNodes(layer: BlockLayer, options: BackupOptions): void {
  const { source, target, compress, maxWorkers = 1, maxChunkBytes = 0 } = options;
  if (source === target) throw new BlockError("EINVAL", "Source and target cannot be the same");
  if (compress && !target.supportsCompressedWrites) {
    // The name of a drive is that of a device with a name, which nobody has any more.
    throw new BlockError("EINVAL", "Compression is not supported for this drive ");
  }
  layer.jobs.checkFree(source);
  layer.jobs.checkFree(target);
  if (maxWorkers < 1 || maxWorkers > INT_MAX) {
    throw new BlockError("EINVAL", `max-workers must be between 1 and ${INT_MAX}`);
  }
  if (maxChunkBytes < 0) {
    throw new BlockError(
      "EINVAL",
      "max-chunk must be zero (which means no limit) or positive",
    );
  }
  if (source.sizeBytes !== target.sizeBytes) {
    throw new BlockError("EINVAL", "Source and target image have different sizes");
  }
}
