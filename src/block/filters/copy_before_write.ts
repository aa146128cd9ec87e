/**
 * The copy-before-write filter: keeps its disk as it was when the filter was put in. Old data is
 * copied to the target just before a guest's write would destroy it; the snapshot calls (used by a
 * snapshot-access node) read it there, or from the disk where nothing was written yet.
 *
 *   guest write:  copy what is not copied --> wait for frozen reads there --> the disk
 *                   | failed, or too slow
 *                   +-- break-guest-write: the guest gets the error, the disk is untouched
 *                   +-- break-snapshot: the snapshot is broken for ever, the guest goes on
 *
 *   snapshot read, in pieces:  done:     from the target; nothing waits
 *                              not done: from the disk, "frozen" as long as that takes:
 *                                        guest writes to those clusters wait
 *
 * A guest write that finds all its clusters copied and none of them frozen passes within the call.
 *
 * QEMU sets the done bits of a whole request when all its copies have ended; here each copy sets
 * its own (see cbw_bitmaps.ts). Both are right: until the guest's write, which comes after either,
 * disk and target hold the same there.
 *
 * Snapshot calls look at the state again after they waited: meanwhile the snapshot may have broken
 * (then the disk was perhaps overwritten under the read) or the area may have been discarded (then
 * the target no longer has it).
 *
 * @module
 */

import { limits } from "../../limits.ts";
import type { Kernels } from "../../wasm/kernels.ts";
import { type Bitmap, isPowerOfTwo } from "../bitmap.ts";
import { BusyRanges } from "../busy_ranges.ts";
import { type Clock, systemClock } from "../clock.ts";
import type { BlockEdge } from "../edge.ts";
import { BlockError, toBlockError } from "../errors.ts";
import { backingOf, DiskStatus } from "../image/chain.ts";
import type { IoVector } from "../io_vector.ts";
import { BlockNode, type DiscardMode } from "../node.ts";
import { defaultChildPermissions, parentsFirst, type Permissions } from "../permissions.ts";
import { ScratchBudget } from "../scratch_budget.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import {
  type BlockStatus,
  type ByteRange,
  type MaybePromise,
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  REQ_WRITE_UNCHANGED,
  STATUS_ALLOCATED,
  STATUS_ZERO,
} from "../types.ts";
import { CbwBitmaps } from "./cbw_bitmaps.ts";
import { type BackupCopying, ClusterCopier } from "./cluster_copier.ts";

/** What to give up when old data can't be kept. */
export type OnCbwError = "break-guest-write" | "break-snapshot";

/** What a filter is made of. */
export interface CopyBeforeWriteOptions {
  /** See BlockNodeOptions. */
  nodeName: string;
  /** The active disk. */
  file: BlockNode;
  /** Where old data goes: at least as large as the disk, and no part of it. */
  target: BlockNode;
  /** Where the bitmaps live. */
  kernels: Kernels;
  /** Only what is dirty here is protected and readable; null: everything. Only read, only now. */
  bitmap?: Bitmap | null;
  /** break-guest-write unless given. */
  onCbwError?: OnCbwError;
  /** What a guest's request waits for copies at most; 0 (unless given): no bound. */
  cbwTimeoutSeconds?: number;
  /** 0 or a power of two. */
  minClusterSizeBytes?: number;
  /** "unmap" unless given. */
  discard?: DiscardMode;
  /** What the target may hold; without bound unless given. */
  budget?: ScratchBudget;
  /** For the timeout: the machine's unless given. */
  clock?: Clock;
  /** The target is a job's backup, which copies too by `copyOut`. */
  backup?: BackupCopying | null;
  /** Called once, when the snapshot breaks, with the error of the copy that failed. */
  onBroken?: (error: BlockError) => void;
}

/** How a filter stands. */
export interface CopyBeforeWriteInfo {
  /** Unit of copying, in bytes. */
  clusterSizeBytes: number;
  /** Bytes of data that were copied; zeroes do not count. */
  copiedBytes: number;
  /** Clusters that were copied, as data or as zeroes. */
  clustersDone: number;
  /** Clusters that were protected at the start: all of the disk without a bitmap. */
  clustersTotal: number;
  /** Reads that were refused: forbidden, discarded, or broken. */
  refusedReads: number;
  /** Milliseconds that guest requests waited for copies and for readers. */
  guestWaitMs: number;
  /** Bytes of old data that the target holds now. */
  scratchUsedBytes: number;
  /** Why the snapshot can't be read any more, or null. */
  brokenBy: string | null;
}

/** A run of the disk that snapshot readers may read, or may not. */
export interface AccessRun {
  /** Bytes, at least one. */
  length: number;
  /** A reader may not read this. */
  isForbidden: boolean;
}

const CLUSTER_BYTES_MIN = 64 * 1024;
const TIMEOUT_SECONDS_MAX = 2 ** 32 - 1;
/**
 * How far one status looks along the bitmaps: a caller that goes on in short runs pays each time.
 */
const STATUS_CLUSTERS_MAX = 16 * 1024;

/** Driver "copy-before-write". */
export class CopyBeforeWriteNode extends BlockNode {
  readonly #file: BlockEdge;
  readonly #target: BlockEdge;
  readonly #options: CopyBeforeWriteOptions;
  readonly #clock: Clock;
  readonly #budget: ScratchBudget;
  readonly #bitmaps: CbwBitmaps;
  readonly #copier: ClusterCopier;
  /** Snapshot reads and status calls that are at the disk now. */
  readonly #frozen = new BusyRanges();
  /** Wakes guest requests that wait for copies which nobody needs any more. */
  readonly #giveUp = new Set<() => void>();
  readonly #clustersTotal: number;
  /** The disk is the target's backing node: then it ends what `BlockNode.serialise` began. */
  #endSerialising: (() => void) | null = null;
  /** Why there is no snapshot any more: set once. */
  #brokenBy: BlockError | null = null;
  #refusedReads = 0;
  #guestWaitMs = 0;

  /** Throws a BlockError on options that contradict each other. */
  constructor(options: CopyBeforeWriteOptions) {
    checkOptions(options);
    const { file, target } = options;
    const clusterSizeBytes = Math.max(
      CLUSTER_BYTES_MIN,
      target.clusterSizeBytes ?? 0,
      options.minClusterSizeBytes ?? 0,
    );
    super({
      nodeName: options.nodeName,
      driver: "copy-before-write",
      sizeBytes: file.sizeBytes,
      isReadOnly: file.isReadOnly,
      clusterSizeBytes,
      discard: options.discard ?? "unmap",
      handlesFua: true,
    });
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#budget = options.budget ?? new ScratchBudget();
    this.#file = this.addChild("file", "filtered", file);
    this.#target = this.addChild("target", "data", target);
    this.#bitmaps = new CbwBitmaps(options.kernels, {
      sizeBytes: file.sizeBytes,
      clusterSizeBytes,
      bitmap: options.bitmap ?? null,
    });
    if (isBackedBy(target, file)) this.#endSerialising = target.serialise();
    this.#clustersTotal = Math.ceil(this.#bitmaps.access.countBytes() / clusterSizeBytes);
    this.#copier = new ClusterCopier({
      bitmaps: this.#bitmaps,
      source: () => this.#file.node,
      target: () => this.#target.node,
      budget: this.#budget,
      mayCopy: () => this.#brokenBy === null,
      backup: options.backup ?? null,
    });
  }

  /** Why the snapshot can't be read any more, or null. */
  get brokenBy(): BlockError | null {
    return this.#brokenBy;
  }

  /** How it stands. */
  info(): CopyBeforeWriteInfo {
    return {
      clusterSizeBytes: this.#bitmaps.clusterSizeBytes,
      copiedBytes: this.#copier.copiedBytes,
      clustersDone: this.#copier.clustersDone,
      clustersTotal: this.#clustersTotal,
      refusedReads: this.#refusedReads,
      guestWaitMs: this.#guestWaitMs,
      scratchUsedBytes: this.#bitmaps.held.countBytes(),
      brokenBy: this.#brokenBy?.message ?? null,
    };
  }

  /**
   * The run that starts at `offset`, of at most `length` bytes, of what may or may not be read.
   * Throws EACCES where the snapshot is broken.
   */
  snapshotAccess(offset: number, length: number): AccessRun {
    this.#checkBroken(offset, length);
    const { access } = this.#bitmaps;
    const isForbidden = !access.isSet(offset);
    const end = isForbidden ? access.nextSet(offset, length) : access.nextClear(offset, length);
    return { length: end - offset, isForbidden };
  }

  // For a backup job.

  /** Clusters that are still to be copied, as a bitmap of this filter's clusters. Only read. */
  get leftToCopy(): Bitmap {
    return this.#bitmaps.copy;
  }

  /**
   * Copies the first run of what is left to copy of whole clusters: a chunk, or more where it is
   * zeroes. Returns how many bytes of it were not. Throws a CopyError where that fails.
   */
  copyOut(range: ByteRange): MaybePromise<number> {
    return this.#copier.copyFirst(range);
  }

  /** The clusters inside of a range need not be copied. */
  forgo(range: ByteRange): void {
    const { offset, length } = this.#bitmaps.inside(range.offset, range.length);
    if (length === 0) return;
    this.#bitmaps.copy.clear(offset, length);
    this.#bitmaps.access.clear(offset, length);
  }

  /** Nothing is left to copy, or being copied. */
  get isAllCopied(): boolean {
    return this.#copier.inFlightCount === 0 && this.#bitmaps.copy.isEmpty();
  }

  /** Waits for the copies in flight, those for the guest included. */
  async whenSettled(): Promise<void> {
    await runSteps(this.#copier.whenSettled({ offset: 0, length: this.sizeBytes }));
  }

  /** Ends the snapshot, then waits for copies in flight. What is left to copy then stays so. */
  async stopCopying(): Promise<void> {
    this.endSnapshot();
    await this.whenSettled();
  }

  /**
   * Ends the snapshot before the filter is taken out: guest requests no longer wait for copies.
   * Copies in flight run on; `close` waits for them.
   */
  endSnapshot(): void {
    this.#end(new BlockError("ESHUTDOWN", "the snapshot was ended"));
  }

  /** The disk's present: passes. */
  protected override doRead(offset: number, target: IoVector): MaybePromise<void> {
    return this.#file.node.read(offset, target);
  }

  /** Waits for the copies of its clusters and for frozen reads there, then passes. */
  protected override doWrite(offset: number, source: IoVector, flags: number): MaybePromise<void> {
    if (this.#isFree(offset, source.length, flags)) {
      return this.#file.node.write(offset, source, flags);
    }
    return runSteps(this.#protected(offset, source.length, () => {
      return this.#file.node.write(offset, source, flags);
    }));
  }

  /** As a write. */
  protected override doWriteZeroes(
    offset: number,
    length: number,
    flags: number,
  ): MaybePromise<void> {
    if (this.#isFree(offset, length, flags)) {
      return this.#file.node.writeZeroes(offset, length, flags);
    }
    return runSteps(this.#protected(offset, length, () => {
      return this.#file.node.writeZeroes(offset, length, flags);
    }));
  }

  /** As a write, unless the disk ignores discards. */
  protected override doDiscard(offset: number, length: number): MaybePromise<void> {
    // What the disk ignores destroys nothing.
    if (this.#file.node.discardMode === "ignore") return;
    if (this.#isFree(offset, length, 0)) return this.#file.node.discard(offset, length);
    return runSteps(this.#protected(offset, length, () => {
      return this.#file.node.discard(offset, length);
    }));
  }

  /** The target is not flushed: it dies with the service. */
  protected override doFlush(): MaybePromise<void> {
    return this.#file.node.flush();
  }

  /** The disk's present: passes. */
  protected override doBlockStatus(offset: number, length: number): MaybePromise<BlockStatus> {
    return this.#file.node.blockStatus(offset, length);
  }

  /** From the target what was copied, from the disk the rest, which is frozen meanwhile. */
  protected override doSnapshotRead(offset: number, target: IoVector): MaybePromise<void> {
    return runSteps(this.#readSnapshot(offset, target));
  }

  /** Of the target where the cluster was copied, else of the disk. */
  protected override doSnapshotBlockStatus(
    offset: number,
    length: number,
  ): MaybePromise<BlockStatus> {
    return runSteps(this.#snapshotStatus(offset, length));
  }

  /** Of clusters that lie in the range as a whole: they can't be read any more. */
  protected override doSnapshotDiscard(offset: number, length: number): MaybePromise<void> {
    return runSteps(this.#discardSnapshot(this.#bitmaps.inside(offset, length)));
  }

  /** Ends the snapshot, waits for copies in flight, gives room and memory back. */
  protected override async doClose(): Promise<void> {
    await this.stopCopying();
    this.#endSerialising?.();
    this.#budget.release(this.#bitmaps.held.countBytes());
    this.#bitmaps[Symbol.dispose]();
  }

  /**
   * The target is ours alone to write. The disk is, once somebody uses the filter: nobody else may
   * change what the filter would not see.
   */
  override childPermissions(edge: BlockEdge, above: Permissions): Permissions {
    const changes = PERM_WRITE | PERM_RESIZE;
    if (edge === this.#target) {
      // Where the disk is the target's backing node, who shares no write to the target shares none
      // to the disk.
      const unshared = this.#endSerialising === null ? changes : PERM_RESIZE;
      return { perm: PERM_CONSISTENT_READ | PERM_WRITE, shared: PERM_ALL & ~unshared };
    }
    const { perm, shared } = defaultChildPermissions(this, edge, above);
    if (this.parents.size === 0) return { perm, shared };
    return { perm: perm | PERM_CONSISTENT_READ, shared: shared & ~changes };
  }

  /** Its settings and its figures. */
  override details(): Record<string, string | number | boolean | null> {
    return {
      onCbwError: this.#options.onCbwError ?? "break-guest-write",
      cbwTimeoutSeconds: this.#options.cbwTimeoutSeconds ?? 0,
      ...this.info(),
    };
  }

  /** Whether a request may pass to the disk as it is. On the path of every guest write. */
  #isFree(offset: number, length: number, flags: number): boolean {
    if (this.#brokenBy !== null || (flags & REQ_WRITE_UNCHANGED) !== 0) return true;
    if (this.#bitmaps.copy.isAnySet(offset, length)) return false;
    if (this.#copier.inFlightCount === 0 && this.#frozen.count === 0) return true;
    const clusters = this.#bitmaps.around(offset, length);
    return !this.#copier.isCopying(clusters) && this.#frozen.overlapping(clusters) === undefined;
  }

  /** A guest's request that has to do or to wait for something before it may reach the disk. */
  *#protected(offset: number, length: number, request: () => MaybePromise<void>): Steps<void> {
    const range = this.#bitmaps.around(offset, length);
    const startMs = this.#clock.now();
    try {
      yield* this.#copyFirst(range);
      yield* this.#whenThawed(range);
    } finally {
      this.#guestWaitMs += this.#clock.now() - startMs;
    }
    yield* settle(request());
  }

  *#copyFirst(range: ByteRange): Steps<void> {
    try {
      const copying = this.#copier.copyRange(range);
      if (copying instanceof Promise) yield* settle(this.#inTime(copying));
    } catch (error) {
      const failure = toBlockError(error);
      if (this.#options.onCbwError !== "break-snapshot") throw failure;
      this.#break(failure);
    }
  }

  /**
   * Waits for copies, but not beyond cbw-timeout nor the snapshot's end. They run on behind, also
   * through drained sections: those would hold the guest as long as the target stalls. They find
   * the disk as it was, since nobody else may change it while the filter stands, nor remove a node;
   * `close` waits for them.
   */
  #inTime(copying: Promise<unknown>): Promise<void> {
    const seconds = this.#options.cbwTimeoutSeconds ?? 0;
    return new Promise((resolve, reject) => {
      const finish = (settle: () => void): void => {
        stopTimer();
        this.#giveUp.delete(giveUp);
        settle();
      };
      const giveUp = (): void => finish(resolve);
      const expire = (): void =>
        finish(() => {
          const message = `Copying before a write took longer than cbw-timeout (${seconds} s)`;
          reject(new BlockError("ETIMEDOUT", message));
        });
      const stopTimer = seconds === 0 ? () => {} : this.#clock.after(seconds * 1000, expire);
      this.#giveUp.add(giveUp);
      copying.then(() => finish(resolve), (error) => finish(() => reject(error)));
    });
  }

  /** Waits until no snapshot call is at the disk in a range. New ones find it done, or broken. */
  *#whenThawed(range: ByteRange): Steps<void> {
    for (;;) {
      const frozen = this.#frozen.overlapping(range);
      if (frozen === undefined) return;
      yield* settle(this.#frozen.whenRemoved(frozen));
    }
  }

  #break(error: BlockError): void {
    if (this.#end(error)) this.#options.onBroken?.(error);
  }

  /** False where it had ended before. */
  #end(error: BlockError): boolean {
    if (this.#brokenBy !== null) return false;
    this.#brokenBy = error;
    for (const giveUp of [...this.#giveUp]) giveUp();
    return true;
  }

  *#readSnapshot(offset: number, target: IoVector): Steps<void> {
    const end = offset + target.length;
    try {
      for (let at = offset; at < end;) {
        this.#checkReadable(at, end - at);
        const { node, length, isFrozen } = this.#place(at, end - at);
        const part = target.slice(at - offset, length);
        yield* this.#waitFor({ offset: at, length }, isFrozen, () => node.read(at, part));
        at += length;
      }
    } catch (error) {
      if (error instanceof BlockError && error.code === "EACCES") {
        this.#refusedReads++;
        // What was read before the refusal is nobody's: it may be the guest's new data.
        target.fill(0);
      }
      throw error;
    }
  }

  *#snapshotStatus(offset: number, length: number): Steps<BlockStatus> {
    const most = STATUS_CLUSTERS_MAX * this.#bitmaps.clusterSizeBytes;
    const readable = this.snapshotAccess(offset, Math.min(length, most));
    if (readable.isForbidden) throw forbidden({ offset, length: readable.length });
    const place = this.#place(offset, readable.length);
    const range = { offset, length: place.length };
    const status = yield* this.#waitFor(range, place.isFrozen, () => {
      return place.node.blockStatus(offset, place.length);
    });
    // What the target holds was put there, be it as zeroes.
    if (!place.isFrozen) return { ...status, flags: status.flags | STATUS_ALLOCATED };
    if ((status.flags & (STATUS_ALLOCATED | STATUS_ZERO)) !== 0) return status;
    const below = backingOf(place.node);
    if (below === null) return status;
    // Nobody writes to what the disk stands on: no write needs to wait for this.
    const run = yield* new DiskStatus(below).at(offset, status.length);
    this.#checkReadable(offset, run.length);
    return { length: run.length, flags: run.flags & ~STATUS_ALLOCATED };
  }

  /**
   * Where the old data at `offset` is, and for how many bytes on, at most `length`, it is there.
   */
  #place(offset: number, length: number): { node: BlockNode; length: number; isFrozen: boolean } {
    const { done } = this.#bitmaps;
    if (done.isSet(offset)) {
      const end = done.nextClear(offset, length);
      return { node: this.#target.node, length: end - offset, isFrozen: false };
    }
    const end = done.nextSet(offset, length);
    return { node: this.#file.node, length: end - offset, isFrozen: true };
  }

  /** Runs a call for the snapshot; after a wait, makes sure that its result is still true. */
  *#waitFor<T>(range: ByteRange, isFrozen: boolean, call: () => MaybePromise<T>): Steps<T> {
    const frozen = isFrozen ? this.#frozen.add(range) : null;
    let result: MaybePromise<T>;
    try {
      result = call();
      if (!(result instanceof Promise)) return result;
      const value = (yield result) as T;
      this.#checkReadable(range.offset, range.length);
      return value;
    } finally {
      if (frozen !== null) this.#frozen.remove(frozen);
    }
  }

  *#discardSnapshot(clusters: ByteRange): Steps<void> {
    const { offset, length } = clusters;
    if (length === 0) return;
    this.#bitmaps.access.clear(offset, length);
    this.#bitmaps.copy.clear(offset, length);
    // A copy in flight there would write to the target after the discard.
    yield* this.#copier.whenSettled(clusters);
    yield* settle(this.#target.node.discard(offset, length));
    this.#budget.release(this.#bitmaps.held.countBytesIn(offset, length));
    this.#bitmaps.held.clear(offset, length);
  }

  /** Throws EACCES unless a snapshot reader may read all of a range. */
  #checkReadable(offset: number, length: number): void {
    this.#checkBroken(offset, length);
    const range = this.#bitmaps.firstForbidden(offset, length);
    if (range !== null) throw forbidden(range);
  }

  #checkBroken(offset: number, length: number): void {
    if (this.#brokenBy === null) return;
    throw new BlockError("EACCES", `The snapshot is broken: ${this.#brokenBy.message}`, {
      cause: this.#brokenBy,
      range: { offset, length },
    });
  }
}

function forbidden(range: ByteRange): BlockError {
  return new BlockError(
    "EACCES",
    `Permission denied: ${range.length} bytes at ${range.offset} are not part of the snapshot ` +
      "(outside of its bitmap, or discarded)",
    { range },
  );
}

function checkOptions(options: CopyBeforeWriteOptions): void {
  const { file, target, bitmap } = options;
  const seconds = options.cbwTimeoutSeconds ?? 0;
  if (!Number.isInteger(seconds) || seconds < 0 || seconds > TIMEOUT_SECONDS_MAX) {
    throw new BlockError("EINVAL", "Parameter 'cbw-timeout' expects uint32_t");
  }
  const clusterBytes = options.minClusterSizeBytes ?? 0;
  if (clusterBytes !== 0 && !isPowerOfTwo(clusterBytes)) {
    throw new BlockError("EINVAL", "min-cluster-size needs to be a power of 2");
  }
  if (clusterBytes > limits.cbwClusterBytes) {
    const most = limits.cbwClusterBytes;
    throw new BlockError("EINVAL", `min-cluster-size may be at most ${most} bytes`);
  }
  const disk = new Set(parentsFirst([file]));
  if (storageOf(target).some((node) => disk.has(node))) {
    throw new BlockError("EINVAL", `Target '${target.nodeName}' is the disk itself`);
  }
  if (target.isReadOnly) throw new BlockError("EPERM", "Block node is read-only");
  if (target.sizeBytes < file.sizeBytes) {
    throw new BlockError(
      "EINVAL",
      `Target '${target.nodeName}' has ${target.sizeBytes} bytes, ` +
        `which is less than the ${file.sizeBytes} of '${file.nodeName}'`,
    );
  }
  if (bitmap && bitmap.sizeBytes !== file.sizeBytes) {
    throw new BlockError("EINVAL", `The bitmap is of another size than '${file.nodeName}'`);
  }
}

/** A node and all below that hold its own data, without its backing nodes. */
function storageOf(node: BlockNode): BlockNode[] {
  const below = [...node.children.values()].filter(({ role }) => role !== "cow");
  return [node, ...below.flatMap((edge) => storageOf(edge.node))];
}

/** Whether a node reads from the disk, or from a node whose content the disk shows. */
function isBackedBy(node: BlockNode, disk: BlockNode): boolean {
  const below = new Set(parentsFirst([node]));
  return storageOf(disk).some((part) => below.has(part));
}
