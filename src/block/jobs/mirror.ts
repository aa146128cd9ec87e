/**
 * The mirror job (QEMU's block/mirror.c): makes the target the same as the source and keeps it so
 * while the guest writes, until it is told to let everybody use the target instead (`complete`), or
 * to leave it as it is then (`cancel` without force). Committing the active layer is the same with
 * a backing node of the source as target.
 *
 *   running: what is marked is copied --> nothing is marked: ready --> complete or cancel
 *              ^                                   |
 *              +-- marked again by guest writes <--+
 *
 * The end is in `prepare`: once more what is marked is copied, first beside the guest, then the
 * rest in a drained section, in which the target takes the source's place.
 *
 *   sync full: all is marked at first; top: what the source holds above its backing node; none:
 *   only what is written from now on
 *
 * @module
 */

import { isPowerOfTwo } from "../bitmap.ts";
import type { BlockLayer } from "../block_layer.ts";
import { BlockError } from "../errors.ts";
import { MirrorTopNode } from "../filters/mirror_top.ts";
import { filteredChild } from "../graph.ts";
import { backingOf } from "../image/chain.ts";
import type { LockedRange } from "../range_lock.ts";
import type { BlockNode } from "../node.ts";
import { runSteps, type Steps } from "../steps.ts";
import {
  type ByteRange,
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
} from "../types.ts";
import { ChunkRunner, type ChunkWork } from "./chunks.ts";
import { DataCopier, runKind, TransferError, ZERO_BYTES } from "./data_copier.ts";
import { followingEdges, freeze, putAbove } from "./filters.ts";
import { type Job, type JobDriver, JobFailure, type JobOptions } from "./job.ts";
import type { BlockJobInfo, JobType, OnError } from "./types.ts";

/** Whether guest writes go to the target at once. */
export type CopyMode = "background" | "write-blocking";

/** Arguments of blockdev-mirror. */
export interface MirrorOptions extends JobOptions {
  /** The disk. */
  source: BlockNode;
  /** Of the same size. */
  target: BlockNode;
  /** See the module's head. */
  sync: "full" | "top" | "none";
  /** "background" unless given. */
  copyMode?: CopyMode;
  /** Bytes of a mark; the target's cluster size, of 4 to 64 KiB, unless given. */
  granularity?: number;
  /** Bytes in flight at most; 10 MiB unless given. */
  bufferBytes?: number;
  /** Zeroes are unmapped at the target; true unless given. */
  unmap?: boolean;
  /** The node whose place the target takes in the end; the source unless given. */
  replaces?: BlockNode;
  /** "report" unless given. */
  onSourceError?: OnError;
  /** "report" unless given. */
  onTargetError?: OnError;
  /** The filter's name. */
  filterNodeName?: string;
}

const GRANULARITY_MIN = 512;
const GRANULARITY_MAX = 64 * 1024 * 1024;
const BUFFER_BYTES = 10 * 1024 * 1024;
const CHUNK_BYTES = 1024 * 1024;
const WORKERS_MAX = 16;
/** How long it waits where others hold what it is to copy. */
const WAIT_MS = 100;
/** How far one look at the source's allocation goes. */
const STATUS_BYTES = 1024 * 1024 * 1024;
/** Rounds beside the guest before the guest is held for the rest. */
const LAST_ROUNDS = 8;

/** Starts a mirror. Throws a BlockError and changes nothing. */
export async function startMirror(layer: BlockLayer, options: MirrorOptions): Promise<Job> {
  checkOptions(layer, options);
  const base = options.sync === "top" ? backingOf(options.source) : null;
  return await startMirroring(layer, { ...options, type: "mirror", base });
}

/** A mirror, or the commit of an active layer. */
export interface MirroringOptions extends MirrorOptions {
  /** Under which name. */
  type: JobType & ("mirror" | "commit");
  /** sync=top: what the source has above it. */
  base: BlockNode | null;
  /** At the end, well or not. */
  onEnd?: (isCommitted: boolean) => Promise<void>;
}

/** Starts either. */
export async function startMirroring(layer: BlockLayer, options: MirroringOptions): Promise<Job> {
  const driver = new MirrorDriver(layer, options);
  const job = await layer.graph.drained([options.source], () => driver.prepareJob());
  job.start();
  return job;
}

class MirrorDriver implements JobDriver {
  readonly type: JobType;
  readonly isBlockJob = true;
  readonly #layer: BlockLayer;
  readonly #options: MirroringOptions;
  readonly #chunks = new ChunkRunner();
  readonly #copier = new DataCopier();
  readonly #filter: MirrorTopNode;
  readonly #granularity: number;
  #job: Job | null = null;
  #cursor = 0;
  #inFlightBytes = 0;
  #shouldComplete = false;
  /** It is too late to cancel the job. */
  #isPivoting = false;
  /** The target did not take a guest's write, and the policy says that this fails the job. */
  #targetFailure: BlockError | null = null;
  #thaw: () => void = () => {};

  constructor(layer: BlockLayer, options: MirroringOptions) {
    this.type = options.type;
    this.#layer = layer;
    this.#options = options;
    this.#granularity = granularityOf(options);
    this.#filter = new MirrorTopNode({
      nodeName: options.filterNodeName ?? "",
      file: options.source,
      kernels: layer.kernels,
      granularity: this.#granularity,
      isCommit: options.type === "commit",
      onChange: () => this.#job?.wake(),
    });
  }

  /** In a drained section over the source. Undoes what it did where it throws. */
  async prepareJob(): Promise<Job> {
    const { graph, jobs } = this.#layer;
    const { source, target, type, copyMode } = this.#options;
    const undo: (() => Promise<void>)[] = [() => this.#filter.close()];
    try {
      const job = jobs.create(this, this.#options);
      undo.push(() => job.discard());
      putAbove(graph, source, this.#filter);
      undo[0] = () => graph.removeFilter(this.#filter);
      const isBelow = type === "commit";
      job.addNode(this.#filter, { name: "main node", perm: 0, shared: PERM_ALL });
      job.addNode(source, { name: "source", perm: 0, shared: PERM_ALL });
      job.addNode(target, {
        name: "target",
        perm: PERM_WRITE | (isBelow ? PERM_RESIZE : 0),
        shared: PERM_WRITE_UNCHANGED |
          (isBelow ? PERM_CONSISTENT_READ | PERM_WRITE : 0),
      });
      if (isBelow) this.#thaw = freeze(source, target);
      if (copyMode === "write-blocking") {
        this.#filter.active = {
          node: () => target,
          failed: (error) => this.#activeWriteFailed(job, error),
        };
      }
      if (this.#options.sync === "full") this.#filter.dirty.setAll();
      this.#job = job;
      return job;
    } catch (error) {
      for (const action of undo.reverse()) await action();
      throw error;
    }
  }

  async run(job: Job): Promise<void> {
    const { source, target, type, sync } = this.#options;
    if (type === "commit" && target.sizeBytes < source.sizeBytes) {
      await job.operate(() => target.resize(source.sizeBytes));
    }
    if (type === "mirror" && target.sizeBytes !== source.sizeBytes) {
      throw new JobFailure("EINVAL", "Source and target image have different sizes");
    }
    this.#updateProgress(job);
    if (sync === "top") await this.#markAllocated(job);
    const work = this.#work(job);
    try {
      for (;;) {
        const hasMore = await this.#chunks.step(job, work);
        if (job.isCancelled) break;
        if (this.#targetFailure !== null) throw this.#targetFailure;
        this.#updateProgress(job);
        if (hasMore) continue;
        if (!this.#filter.dirty.isEmpty()) {
          await job.sleep(WAIT_MS); // a guest's write is where it is to copy
        } else if (!job.isReady) {
          if (await this.#flush(job)) job.becomeReady();
        } else if (this.#shouldComplete || job.isCancelRequested) break;
        else await job.sleep(null);
      }
    } finally {
      await this.#chunks.settle();
    }
  }

  settle(): Promise<void> {
    return this.#chunks.settle();
  }

  complete(job: Job): void {
    const { replaces, source } = this.#options;
    if (replaces !== undefined && replaces.sizeBytes !== source.sizeBytes) {
      throw new BlockError(
        "EINVAL",
        "cannot replace image with a mirror image of different size",
      );
    }
    this.#shouldComplete = true;
    job.wake();
  }

  /** A ready job that is not cancelled by force leaves the target as it is. */
  cancel(job: Job, force: boolean): boolean {
    if (this.#isPivoting) return false;
    const isForced = force || !job.isReady;
    if (isForced) this.#options.target.cancelInFlight();
    return isForced;
  }

  async prepare(job: Job): Promise<void> {
    const { target, replaces: replaced = this.#options.source } = this.#options;
    await this.#catchUp(job);
    await this.#layer.graph.drained([replaced, target], async () => {
      for (let chunk = this.#nextChunk(); chunk !== null; chunk = this.#nextChunk()) {
        await this.#copyLocked(chunk);
      }
      if (this.#targetFailure !== null) throw this.#targetFailure;
      await target.flush();
      if (job.isCancelled) return;
      this.#updateProgress(job);
      if (this.#shouldComplete) await this.#pivot(job);
    });
  }

  async clean(job: Job): Promise<void> {
    this.#filter.stop();
    this.#filter.active = null;
    this.#thaw();
    await job.releaseNodes();
    if (this.#filter.graph !== null) await this.#layer.graph.removeFilter(this.#filter);
    await this.#options.onEnd?.(this.#shouldComplete && !job.hasFailed);
    await this.#layer.graph.sweep();
  }

  details(): Partial<BlockJobInfo> {
    if (this.#options.type !== "mirror") return {};
    return {
      activelySynced: this.#filter.active !== null && this.#filter.graph !== null &&
        this.#filter.dirty.isEmpty() && this.#inFlightBytes === 0,
    };
  }

  /** Copies what was written while the job waited for its end, beside the guest. */
  async #catchUp(job: Job): Promise<void> {
    for (let round = 0; round < LAST_ROUNDS; round++) {
      let left = this.#filter.dirty.countBytes();
      while (left > 0) {
        while (job.isHeld) await job.whenFree();
        const chunk = job.isCancelled ? null : this.#nextChunk();
        if (chunk === null) return;
        left -= chunk.length;
        await job.begin(() => this.#copyLocked(chunk));
      }
    }
  }

  /** The target takes the place of the source, or of another node, in the drained section. */
  async #pivot(job: Job): Promise<void> {
    const { graph } = this.#layer;
    const { source, target, replaces } = this.#options;
    const replaced = replaces ?? source;
    await this.#layer.jobs.beforeReplace(replaced, target);
    this.#isPivoting = true;
    this.#filter.stop();
    this.#thaw();
    await job.releaseNodes();
    graph.replaceChildren(followingEdges(replaced, target), target);
    await graph.removeFilter(this.#filter);
  }

  #work(job: Job): ChunkWork<LockedRange> {
    const { bufferBytes = BUFFER_BYTES, onSourceError, onTargetError } = this.#options;
    const workers = Math.max(1, Math.min(WORKERS_MAX, Math.floor(bufferBytes / CHUNK_BYTES)));
    return {
      workers,
      next: () => this.#nextChunk(),
      copy: (chunk) => this.#copyLocked(chunk),
      failed: (error) => {
        const isRead = error instanceof TransferError && error.isRead;
        const policy = isRead ? onSourceError : onTargetError;
        return job.handleError(policy ?? "report", isRead, error);
      },
    };
  }

  /** The next marked chunk that nobody works on, locked, its mark taken away. */
  #nextChunk(): LockedRange | null {
    const { dirty, sizeBytes } = this.#filter;
    return this.#chunkIn(dirty.nextRun(this.#cursor, sizeBytes - this.#cursor), sizeBytes) ??
      this.#chunkIn(dirty.nextRun(0, this.#cursor), this.#cursor);
  }

  #chunkIn(first: ByteRange | null, end: number): LockedRange | null {
    const { dirty, lock } = this.#filter;
    for (let run = first; run !== null;) {
      const locked = lock.tryLock({
        offset: run.offset,
        length: Math.min(run.length, Math.max(ZERO_BYTES, this.#granularity)),
      });
      if (locked !== null) {
        const whole = this.#filter.around(locked.offset, locked.length);
        locked.length = whole.length;
        dirty.clear(whole.offset, whole.length);
        this.#cursor = locked.offset;
        this.#inFlightBytes += locked.length;
        return locked;
      }
      const held = lock.overlapping({ offset: run.offset, length: 1 });
      const next = held === undefined ? end : held.offset + held.length;
      run = next < end ? dirty.nextRun(next, end - next) : null;
    }
    return null;
  }

  /** Copies what `#nextChunk` gave; what it did not get to is marked again. */
  async #copyLocked(chunk: LockedRange): Promise<number> {
    return await runSteps(this.#copy(chunk));
  }

  *#copy(chunk: LockedRange): Steps<number> {
    const { target, unmap } = this.#options;
    const { source, dirty, lock } = this.#filter;
    const transfer = {
      source,
      target,
      unit: Math.max(this.#granularity, 4096),
      mayUnmap: unmap ?? true,
    };
    const whole = { offset: chunk.offset, length: chunk.length };
    let doneBytes = 0;
    let dataBytes = 0;
    try {
      // All of a mark's chunk, or more of one kind.
      do {
        const rest = { offset: whole.offset + doneBytes, length: whole.length - doneBytes };
        const [copied, data] = yield* this.#copier.copy(transfer, rest);
        doneBytes += copied;
        dataBytes += data;
      } while (doneBytes < Math.min(whole.length, Math.max(CHUNK_BYTES, this.#granularity)));
    } finally {
      // Whole marks: what of one was done is done again.
      doneBytes -= doneBytes === whole.length ? 0 : doneBytes % this.#granularity;
      const left = whole.length - doneBytes;
      if (left > 0) dirty.set(whole.offset + doneBytes, left);
      if (this.#job !== null) this.#job.progress.current += doneBytes;
      this.#inFlightBytes -= whole.length;
      lock.unlock(chunk);
    }
    return dataBytes;
  }

  #updateProgress({ progress }: Job): void {
    progress.total = progress.current + this.#filter.dirty.countBytes() + this.#inFlightBytes;
  }

  /** False where it failed and the job is to try again. */
  async #flush(job: Job): Promise<boolean> {
    try {
      await job.operate(() => this.#options.target.flush());
      return true;
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      const policy = this.#options.onTargetError ?? "report";
      if (job.handleError(policy, false, error) === "report") throw error;
      await job.sleep(WAIT_MS);
      return false;
    }
  }

  #activeWriteFailed(job: Job, error: BlockError): void {
    if (job.isCancelled) return;
    const policy = this.#options.onTargetError ?? "report";
    if (job.handleError(policy, false, error) === "report") this.#targetFailure ??= error;
    job.wake();
  }

  /** sync=top: what the source has above its backing node. */
  async #markAllocated(job: Job): Promise<void> {
    const { source, base } = this.#options;
    const { dirty, sizeBytes } = this.#filter;
    for (let offset = 0; offset < sizeBytes;) {
      await job.pausePoint();
      if (job.isCancelled) return;
      const length = Math.min(sizeBytes - offset, STATUS_BYTES);
      const run = await job.operate(() => runSteps(runKind(source, base, { offset, length })));
      if (run.isAllocated) dirty.set(offset, run.length);
      offset += run.length;
      this.#updateProgress(job);
    }
  }
}

function granularityOf({ granularity, target }: MirrorOptions): number {
  if (granularity) return granularity;
  return Math.min(Math.max(target.clusterSizeBytes ?? 65536, 4096), 65536);
}

/** The texts are QEMU's (blockdev_mirror_common, mirror_start). */
function checkOptions(layer: BlockLayer, options: MirrorOptions): void {
  const { source, target, sync, granularity = 0, bufferBytes = 0, replaces } = options;
  if (!["full", "top", "none"].includes(sync)) {
    throw new BlockError("EINVAL", `Sync mode '${sync}' not supported`);
  }
  if (granularity !== 0 && !(granularity >= GRANULARITY_MIN && granularity <= GRANULARITY_MAX)) {
    throw new BlockError(
      "EINVAL",
      "Parameter 'granularity' expects a value in range [512B, 64MB]",
    );
  }
  if (granularity !== 0 && !isPowerOfTwo(granularity)) {
    throw new BlockError("EINVAL", "Parameter 'granularity' expects a power of 2");
  }
  if (bufferBytes < 0) throw new BlockError("EINVAL", "Invalid parameter 'buf-size'");
  if (source === target) throw new BlockError("EINVAL", "Can't mirror node into itself");
  for (const node of [source, target]) {
    layer.jobs.checkFree(node);
    layer.jobs.checkNotBacking(node);
  }
  if (replaces !== undefined) checkReplaces(source, replaces);
}

/** Only what shows the source's content may be replaced by its mirror. */
function checkReplaces(source: BlockNode, replaces: BlockNode): void {
  for (let node: BlockNode | undefined = source; node !== undefined;) {
    if (node === replaces) return;
    node = filteredChild(node)?.node;
  }
  throw new BlockError(
    "EINVAL",
    `Cannot replace '${replaces.nodeName}' by a node mirrored from '${source.nodeName}', because ` +
      "it cannot be guaranteed that doing so would not lead to an abrupt change of visible data",
  );
}
