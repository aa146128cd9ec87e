/**
 * Dirty bitmaps: which areas of a node were written since. A backup that knows them reads those
 * only.
 *
 * A bitmap belongs to a node and is known by its name there. While it records ("enabled"), it marks
 * what requests through that node may have changed: after each request ends, also when it failed.
 *
 *   recording <--enable, disable--> not recording
 *   busy: an export shows it or a job works on it; it goes on recording, but may not be cleared,
 *         removed, ...
 *   read-only: it was loaded from a disk that may not be written
 *   inconsistent: it may have missed a change; it can only be removed
 *
 * A job works on the bits as they are when it starts. What is written meanwhile is recorded by a
 * successor, whose bits take the place of the old ones when the job did its work, or are added to
 * them when it did not:
 *
 *   idle --createSuccessor--> busy --abdicate (the old bits are done with)--> idle
 *                              \----reclaim (they are still needed)--------> idle
 *
 * A persistent bitmap is kept with its disk (see bitmap_store.ts): loaded by whoever opens the
 * node, by `load`; stored when the node is closed or becomes read-only.
 *
 * Names of calls, limits and error texts are QEMU's (block/dirty-bitmap.c,
 * block/monitor/bitmap-qmp-cmds.c).
 *
 * @module
 */

import { limits } from "../limits.ts";
import type { Kernels } from "../wasm/kernels.ts";
import { assert } from "./assert.ts";
import { Bitmap, isPowerOfTwo } from "./bitmap.ts";
import type { BitmapStore, BitmapToStore } from "./bitmap_store.ts";
import { BlockError } from "./errors.ts";
import type { BlockNode, NodeObserver } from "./node.ts";
import { runSteps, settle, type Steps } from "./steps.ts";
import type { MaybePromise } from "./types.ts";

const GRANULARITY_MIN = 512;
const GRANULARITY_MAX = 2 ** 31;
/** Of the default granularity, which is the node's cluster size. */
const DEFAULT_GRANULARITY_MIN = 4096;
const DEFAULT_GRANULARITY_MAX = 65536;

/** What a dirty bitmap is, as a query shows it. */
export interface DirtyBitmapInfo {
  /** Unique on its node. */
  name: string;
  /** Dirty bytes. */
  count: number;
  /** Bytes that a bit stands for. */
  granularity: number;
  /** New writes are marked. */
  recording: boolean;
  /** An export shows it or a job works on it. */
  busy: boolean;
  /** Stored with its disk. */
  persistent: boolean;
  /** It may have missed a change. */
  inconsistent: boolean;
}

/** A new dirty bitmap. */
export interface DirtyBitmapOptions {
  /** 1 to 1023 bytes, unique on its node. */
  name: string;
  /** A power of two, at least 512. The node's cluster size, or 64 KiB, unless given. */
  granularity?: number;
  /** Doesn't record till it is enabled. */
  disabled?: boolean;
  /** Kept with the disk, where its format can do that. */
  persistent?: boolean;
}

/** Which of a bitmap's states forbid an operation. */
export type BitmapCheck = "modify" | "use" | "remove";

/** How a bitmap comes to its node. */
interface DirtyBitmapState {
  isRecording: boolean;
  isPersistent: boolean;
  isReadOnly?: boolean;
  isInconsistent?: boolean;
}

/** A bitmap at a node: its bits, its state and who uses it. */
export class DirtyBitmap {
  /** New writes are marked. */
  isRecording: boolean;
  /** It may have missed a change: only its removal is possible. */
  isInconsistent: boolean;
  /** Its disk may not be written, so that it stays as it is stored. */
  isReadOnly: boolean;
  /** Kept with its disk. */
  readonly isPersistent: boolean;
  #bits: Bitmap;
  #successor: Bitmap | null = null;
  #userCount = 0;

  /** For DirtyBitmaps, which adds it to its node. */
  constructor(
    readonly node: BlockNode,
    readonly name: string,
    bits: Bitmap,
    state: DirtyBitmapState,
  ) {
    this.#bits = bits;
    this.isRecording = state.isRecording;
    this.isPersistent = state.isPersistent;
    this.isReadOnly = state.isReadOnly ?? false;
    this.isInconsistent = state.isInconsistent ?? false;
  }

  /**
   * What is dirty, without what the successor recorded. Not to be kept: another object takes its
   * place when the bitmap is cleared.
   */
  get bits(): Bitmap {
    return this.#bits;
  }

  /** What was written since the successor came, null where there is none. Not to be kept. */
  get successorBits(): Bitmap | null {
    return this.#successor;
  }

  /** An export shows it or a job works on it. */
  get isBusy(): boolean {
    return this.#userCount > 0 || this.#successor !== null;
  }

  /** What a query shows. */
  info(): DirtyBitmapInfo {
    return {
      name: this.name,
      count: this.isInconsistent ? 0 : this.#bits.countBytes(),
      granularity: this.#bits.granularity,
      recording: this.isRecording && !this.isInconsistent,
      busy: this.isBusy,
      persistent: this.isPersistent,
      inconsistent: this.isInconsistent,
    };
  }

  /**
   * Throws where an operation is refused: `modify` changes the bits, `use` reads them or switches
   * the recording, `remove` takes the bitmap away.
   */
  check(check: BitmapCheck): void {
    if (this.isBusy) {
      throw new BlockError(
        "EBUSY",
        `Bitmap '${this.name}' is currently in use by another operation and cannot be used`,
      );
    }
    if (check !== "use" && this.isReadOnly) {
      throw new BlockError("EPERM", `Bitmap '${this.name}' is readonly and cannot be modified`);
    }
    if (check !== "remove") this.checkConsistent();
  }

  /** Throws where it may have missed a change. */
  checkConsistent(): void {
    if (!this.isInconsistent) return;
    throw new BlockError("EINVAL", `Bitmap '${this.name}' is inconsistent and cannot be used`);
  }

  /** Makes the bitmap busy until the returned function is called. */
  use(): () => void {
    this.check("use");
    this.#userCount++;
    let isUsed = true;
    return () => {
      if (isUsed) this.#userCount--;
      isUsed = false;
    };
  }

  /**
   * Makes the bitmap busy for a job, which may read `bits` and clear what it needs no more. Throws
   * where the bitmap is busy, read-only or inconsistent, or there is no memory.
   */
  createSuccessor(): void {
    this.check("modify");
    this.#successor = this.#bits.emptyCopy();
  }

  /** Ends a job that needs the old bits no more: the bitmap has what was written since. */
  abdicate(): void {
    this.#bits[Symbol.dispose]();
    this.#bits = this.#takeSuccessor();
  }

  /** Ends a job after which the old bits count: the bitmap has them and what was written since. */
  reclaim(): void {
    using successor = this.#takeSuccessor();
    this.#bits.merge(successor);
  }

  /** Marks what a request may have changed. */
  mark(offset: number, length: number): void {
    if (!this.isRecording || this.isInconsistent) return;
    (this.#successor ?? this.#bits).set(offset, length);
  }

  /** The node's size changed, and nobody could refuse that. */
  follow(sizeBytes: number): void {
    if (this.isInconsistent) return;
    this.replaceBits(this.#bits.resized(sizeBytes))[Symbol.dispose]();
    if (this.#successor === null) return;
    const successor = this.#successor.resized(sizeBytes);
    this.#successor[Symbol.dispose]();
    this.#successor = successor;
  }

  /** Puts other bits in the place of these, which the caller now owns. */
  replaceBits(bits: Bitmap): Bitmap {
    const previous = this.#bits;
    this.#bits = bits;
    return previous;
  }

  /** Gives the memory back. */
  dispose(): void {
    this.#bits[Symbol.dispose]();
    this.#successor?.[Symbol.dispose]();
  }

  #takeSuccessor(): Bitmap {
    const successor = this.#successor;
    assert(successor !== null, `bitmap '${this.name}' has no successor`);
    this.#successor = null;
    return successor;
  }
}

/** The dirty bitmaps of one node. */
class NodeBitmaps implements NodeObserver {
  readonly byName = new Map<string, DirtyBitmap>();
  /** All that is stored was loaded, so that what is here may take its place. */
  ownsStore = false;
  /** What is stored is out of date, and says so: "in use". */
  isStoreInUse = false;
  readonly #node: BlockNode;
  readonly #forget: () => void;
  /** Allocated before a resize, so that it fails before anything was changed. */
  #resized = new Map<DirtyBitmap, Bitmap>();

  constructor(node: BlockNode, forget: () => void) {
    this.#node = node;
    this.#forget = forget;
  }

  changed(offset: number, length: number): void {
    for (const bitmap of this.byName.values()) bitmap.mark(offset, length);
  }

  resizing(sizeBytes: number): void {
    this.#dropResized();
    for (const bitmap of this.byName.values()) bitmap.check("modify");
    for (const bitmap of this.byName.values()) {
      this.#resized.set(bitmap, bitmap.bits.resized(sizeBytes));
    }
  }

  resized(sizeBytes: number): void {
    for (const bitmap of this.byName.values()) {
      const prepared = this.#resized.get(bitmap);
      try {
        if (prepared?.sizeBytes === sizeBytes) {
          this.#resized.delete(bitmap);
          bitmap.replaceBits(prepared)[Symbol.dispose]();
        } else bitmap.follow(sizeBytes); // a node also follows its file's size, unasked
      } catch (error) {
        if (!(error instanceof BlockError)) throw error;
        bitmap.isInconsistent = true; // no memory for it
      }
    }
    this.#dropResized();
  }

  readOnlyChanges(isReadOnly: boolean): MaybePromise<void> {
    return runSteps(isReadOnly ? this.store() : this.markInUse());
  }

  replacing(): void {
    if (this.byName.size > 0) throw new BlockError("EBUSY", "Device has active dirty bitmaps");
  }

  closed(): MaybePromise<void> {
    return runSteps(this.#close());
  }

  /** Brings the persistent ones to their disk, which may be written until then. */
  *store(): Steps<void> {
    const store = this.#node.bitmapStore;
    if (store === null || !this.isStoreInUse) return;
    const bitmaps = this.persistent();
    yield* settle(store.store(bitmaps.map(toStore)));
    this.isStoreInUse = false;
    for (const bitmap of bitmaps) bitmap.isReadOnly = true;
  }

  /** The way back: the node is written again. */
  *markInUse(): Steps<void> {
    if (!this.ownsStore || this.isStoreInUse) return;
    yield* settle(this.#node.bitmapStore?.markInUse());
    this.isStoreInUse = true;
    for (const bitmap of this.persistent()) bitmap.isReadOnly = false;
  }

  /** Those that are kept with their disk. */
  persistent(): DirtyBitmap[] {
    return [...this.byName.values()].filter(({ isPersistent }) => isPersistent);
  }

  *#close(): Steps<void> {
    try {
      yield* this.store();
    } finally {
      this.#dropResized();
      for (const bitmap of this.byName.values()) bitmap.dispose();
      this.byName.clear();
      this.#node.observer = null;
      this.#forget();
    }
  }

  #dropResized(): void {
    for (const bits of this.#resized.values()) bits[Symbol.dispose]();
    this.#resized.clear();
  }
}

/** The dirty bitmaps of a graph's nodes. */
export class DirtyBitmaps {
  readonly #kernels: Kernels;
  readonly #nodes = new Map<BlockNode, NodeBitmaps>();

  /** `kernels`: where the bits live. */
  constructor(kernels: Kernels) {
    this.#kernels = kernels;
  }

  /** The node's bitmaps, in the order of their coming. */
  list(node: BlockNode): DirtyBitmap[] {
    return [...this.#nodes.get(node)?.byName.values() ?? []];
  }

  /** Throws ENOENT where there is none of that name. */
  get(node: BlockNode, name: string): DirtyBitmap {
    const bitmap = this.#nodes.get(node)?.byName.get(name);
    if (bitmap === undefined) throw new BlockError("ENOENT", `Dirty bitmap '${name}' not found`);
    return bitmap;
  }

  /** A new bitmap, all clean. Throws EINVAL on a bad name or granularity. */
  add(node: BlockNode, options: DirtyBitmapOptions): DirtyBitmap {
    const { name } = options;
    if (name === "") throw new BlockError("EINVAL", "Bitmap name cannot be empty");
    if (new TextEncoder().encode(name).length > limits.bitmapNameBytes) {
      throw new BlockError("EINVAL", `Bitmap name too long: ${name}`);
    }
    const granularity = options.granularity ?? defaultGranularity(node);
    if (granularity < GRANULARITY_MIN || !isPowerOfTwo(granularity)) {
      throw new BlockError("EINVAL", "Granularity must be power of 2 and at least 512");
    }
    if (granularity > GRANULARITY_MAX) {
      throw new BlockError("EINVAL", "Parameter 'granularity' expects uint32_t");
    }
    const bitmaps = this.#of(node);
    if (bitmaps.byName.has(name)) {
      throw new BlockError("EINVAL", `Bitmap already exists: ${name}`);
    }
    if (bitmaps.byName.size >= limits.bitmapsPerNode) {
      throw new BlockError("EINVAL", `Node '${node.nodeName}' has too many bitmaps`);
    }
    const isPersistent = options.persistent ?? false;
    if (isPersistent) {
      const others = bitmaps.persistent().map((other) => other.name);
      checkCanStore(node, { name, granularity }, others);
      if (!bitmaps.ownsStore && node.bitmapStore?.list().length !== 0) {
        throw new BlockError("EBUSY", `The bitmaps of ${node.nodeName} are not loaded`);
      }
      bitmaps.ownsStore = bitmaps.isStoreInUse = true;
    }
    const bits = new Bitmap(this.#kernels, { sizeBytes: node.sizeBytes, granularity });
    const bitmap = new DirtyBitmap(node, name, bits, {
      isRecording: options.disabled !== true,
      isPersistent,
    });
    bitmaps.byName.set(name, bitmap);
    return bitmap;
  }

  /**
   * Loads what is stored with the node, and marks it in use where the node may be written: to be
   * called when a node was opened, before it is used. Throws where a bitmap can't be read.
   */
  load(node: BlockNode): MaybePromise<void> {
    const store = node.bitmapStore;
    if (store === null || store.list().length === 0) return;
    return runSteps(this.#load(node, store));
  }

  /** Throws where it is busy or read-only. What is stored of it is removed within the promise. */
  remove(node: BlockNode, name: string): MaybePromise<void> {
    const bitmap = this.get(node, name);
    bitmap.check("remove");
    this.detach(bitmap);
    return this.drop(bitmap);
  }

  /** Ends a detached bitmap, also its stored version. */
  drop(bitmap: DirtyBitmap): MaybePromise<void> {
    bitmap.dispose();
    if (bitmap.isPersistent) return bitmap.node.bitmapStore?.remove(bitmap.name);
  }

  /** Takes a bitmap from its node, with its bits. */
  detach(bitmap: DirtyBitmap): void {
    this.#nodes.get(bitmap.node)?.byName.delete(bitmap.name);
  }

  /** Gives a detached bitmap back to its node. */
  attach(bitmap: DirtyBitmap): void {
    this.#of(bitmap.node).byName.set(bitmap.name, bitmap);
  }

  /** Makes everything clean. Throws where it is busy or inconsistent. */
  clear(node: BlockNode, name: string): void {
    const bitmap = this.get(node, name);
    bitmap.check("modify");
    bitmap.bits.clearAll();
  }

  /** Makes it record. Throws where it is busy or inconsistent. */
  enable(node: BlockNode, name: string): void {
    const bitmap = this.get(node, name);
    bitmap.check("use");
    bitmap.isRecording = true;
  }

  /** Makes it not record. Throws where it is busy or inconsistent. */
  disable(node: BlockNode, name: string): void {
    const bitmap = this.get(node, name);
    bitmap.check("use");
    bitmap.isRecording = false;
  }

  /** Adds the dirty areas of `sources` to those of `target`, which stays as it was on any error. */
  merge(target: DirtyBitmap, sources: readonly DirtyBitmap[]): void {
    if (sources.length === 0) {
      throw new BlockError("EINVAL", "Parameter 'bitmaps' names no bitmap");
    }
    target.check("modify");
    for (const source of sources) {
      source.check("use");
      if (source.bits.sizeBytes === target.bits.sizeBytes) continue;
      throw new BlockError(
        "EINVAL",
        `Bitmaps are of different sizes (destination size is ${target.bits.sizeBytes}, ` +
          `source size is ${source.bits.sizeBytes}) and can't be merged`,
      );
    }
    for (const source of sources) target.bits.merge(source.bits);
  }

  *#load(node: BlockNode, store: BitmapStore): Steps<void> {
    const bitmaps = this.#of(node);
    for (const stored of store.list()) {
      const { name, granularity, isRecording, isInconsistent } = stored;
      // One that can only be removed takes no memory.
      const sizeBytes = isInconsistent ? 0 : node.sizeBytes;
      const bits = new Bitmap(this.#kernels, { sizeBytes, granularity });
      const { isReadOnly } = node;
      const state = { isRecording, isPersistent: true, isReadOnly, isInconsistent };
      bitmaps.byName.set(name, new DirtyBitmap(node, name, bits, state));
      if (!isInconsistent) yield* settle(store.readBits(name, bits));
    }
    bitmaps.ownsStore = true;
    if (!node.isReadOnly) yield* bitmaps.markInUse();
  }

  #of(node: BlockNode): NodeBitmaps {
    let bitmaps = this.#nodes.get(node);
    if (bitmaps === undefined) {
      bitmaps = new NodeBitmaps(node, () => this.#nodes.delete(node));
      this.#nodes.set(node, bitmaps);
      node.observer = bitmaps;
    }
    return bitmaps;
  }
}

function defaultGranularity(node: BlockNode): number {
  const size = node.clusterSizeBytes ?? DEFAULT_GRANULARITY_MAX;
  return Math.min(Math.max(size, DEFAULT_GRANULARITY_MIN), DEFAULT_GRANULARITY_MAX);
}

/** Throws QEMU's errors where a node can't keep a bitmap. */
function checkCanStore(
  node: BlockNode,
  { name, granularity }: { name: string; granularity: number },
  others: readonly string[],
): void {
  if (node.bitmapStore === null) {
    throw new BlockError(
      "ENOTSUP",
      `Can't store persistent bitmaps to ${node.nodeName}: Operation not supported`,
    );
  }
  try {
    if (node.isReadOnly) throw new BlockError("EPERM", "No write access");
    node.bitmapStore.checkNew({ name, granularity, sizeBytes: node.sizeBytes }, others);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const what = `Can't make bitmap '${name}' persistent in '${node.nodeName}'`;
    throw new BlockError(error.code, `${what}: ${error.message}`, { cause: error });
  }
}

function toStore({ name, bits, isRecording, isInconsistent }: DirtyBitmap): BitmapToStore {
  const { granularity } = bits;
  return { name, granularity, isRecording, isInconsistent, bits };
}
