/**
 * Dirty bitmaps: which areas of a node were written since. A backup that knows them reads those
 * only.
 *
 * A bitmap belongs to a node and is known by its name there. While it records ("enabled"), it marks
 * what requests through that node may have changed: after each request ends, also when it failed.
 *
 *   recording <--enable, disable--> not recording
 *   busy: somebody (an export) shows it; it goes on recording, but may not be cleared, removed, ...
 *   inconsistent: it may have missed a change; it can only be removed
 *
 * Names of calls, limits and error texts are QEMU's (block/dirty-bitmap.c,
 * block/monitor/bitmap-qmp-cmds.c).
 *
 * @module
 */

import { limits } from "../limits.ts";
import type { Kernels } from "../wasm/kernels.ts";
import { Bitmap, isPowerOfTwo } from "./bitmap.ts";
import { BlockError } from "./errors.ts";
import type { BlockNode, NodeObserver } from "./node.ts";

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
  /** Somebody shows it. */
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
  /** Stored with the disk: refused, since no driver here can do that. */
  persistent?: boolean;
}

/** Which of a bitmap's states forbid an operation. */
export type BitmapCheck = "modify" | "use" | "remove";

/** A bitmap at a node: its bits, its state and who uses it. */
export class DirtyBitmap {
  /** New writes are marked. */
  isRecording: boolean;
  /** It may have missed a change: only its removal is possible. */
  isInconsistent = false;
  #bits: Bitmap;
  #userCount = 0;

  /** For DirtyBitmaps, which adds it to its node. */
  constructor(readonly node: BlockNode, readonly name: string, bits: Bitmap, isRecording: boolean) {
    this.#bits = bits;
    this.isRecording = isRecording;
  }

  /** What is dirty. Not to be kept: another object takes its place when the bitmap is cleared. */
  get bits(): Bitmap {
    return this.#bits;
  }

  /** Somebody shows it. */
  get isBusy(): boolean {
    return this.#userCount > 0;
  }

  /** What a query shows. */
  info(): DirtyBitmapInfo {
    return {
      name: this.name,
      count: this.isInconsistent ? 0 : this.#bits.countBytes(),
      granularity: this.#bits.granularity,
      recording: this.isRecording && !this.isInconsistent,
      busy: this.isBusy,
      persistent: false,
      inconsistent: this.isInconsistent,
    };
  }

  /**
   * Throws where an operation is refused: `modify` changes the bits, `use` reads them or switches
   * the recording.
   */
  check(check: BitmapCheck): void {
    if (this.isBusy) {
      throw new BlockError(
        "EBUSY",
        `Bitmap '${this.name}' is currently in use by another operation and cannot be used`,
      );
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

  /** Marks what a request may have changed. */
  mark(offset: number, length: number): void {
    if (this.isRecording && !this.isInconsistent) this.#bits.set(offset, length);
  }

  /** Puts other bits in the place of these, which the caller now owns. */
  replaceBits(bits: Bitmap): Bitmap {
    const previous = this.#bits;
    this.#bits = bits;
    return previous;
  }
}

/** The dirty bitmaps of one node. */
class NodeBitmaps implements NodeObserver {
  readonly byName = new Map<string, DirtyBitmap>();
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
        // A node also follows its file's size: then nothing was prepared.
        const bits = prepared?.sizeBytes === sizeBytes ? prepared : bitmap.bits.resized(sizeBytes);
        this.#resized.delete(bitmap);
        bitmap.replaceBits(bits)[Symbol.dispose]();
      } catch (error) {
        if (!(error instanceof BlockError)) throw error;
        bitmap.isInconsistent = true; // no memory for it
      }
    }
    this.#dropResized();
  }

  closed(): void {
    this.#dropResized();
    for (const bitmap of this.byName.values()) bitmap.bits[Symbol.dispose]();
    this.byName.clear();
    this.#node.observer = null;
    this.#forget();
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
    if (options.persistent) {
      throw new BlockError(
        "ENOTSUP",
        `Can't store persistent bitmaps to ${node.nodeName}: Operation not supported`,
      );
    }
    const bitmaps = this.#of(node);
    if (bitmaps.byName.has(name)) {
      throw new BlockError("EINVAL", `Bitmap already exists: ${name}`);
    }
    if (bitmaps.byName.size >= limits.bitmapsPerNode) {
      throw new BlockError("EINVAL", `Node '${node.nodeName}' has too many bitmaps`);
    }
    const bits = new Bitmap(this.#kernels, { sizeBytes: node.sizeBytes, granularity });
    const bitmap = new DirtyBitmap(node, name, bits, options.disabled !== true);
    bitmaps.byName.set(name, bitmap);
    return bitmap;
  }

  /** Throws where it is busy. */
  remove(node: BlockNode, name: string): void {
    const bitmap = this.get(node, name);
    bitmap.check("remove");
    this.detach(bitmap);
    bitmap.bits[Symbol.dispose]();
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
