/**
 * A block node: a disk's content at some level of the graph. Leaf drivers, formats and filters
 * extend BlockNode.
 *
 * The public request methods are the choke point: each checks range, flags and read-only once and
 * then calls the protected `doX`, which therefore never checks again. A node may be used by several
 * parents at once. Requests need not be aligned.
 *
 *   created --BlockGraph.add--> in the graph --BlockGraph.remove--> closed
 *
 * Children are given to `addChild` in the constructor and become edges with permissions when the
 * graph takes the node. The graph, and nobody else, calls the methods under "For the graph".
 *
 * @module
 */

import { assert } from "./assert.ts";
import type { BitmapStore } from "./bitmap_store.ts";
import { BlockEdge, type ChildRole } from "./edge.ts";
import { BlockError } from "./errors.ts";
import type { BlockGraph } from "./graph.ts";
import { IoVector } from "./io_vector.ts";
import { andThen } from "./maybe_promise.ts";
import type {
  BlockNodeOptions,
  DetectZeroes,
  DiscardMode,
  NodeObserver,
  NodeSettings,
} from "./node_types.ts";
import { checkSize } from "./node_types.ts";
import { defaultChildPermissions, type Permissions } from "./permissions.ts";
import {
  type BlockStatus,
  type FilePart,
  type MaybePromise,
  REQ_FUA,
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
  REQ_WRITE_COMPRESSED,
  REQ_WRITE_UNCHANGED,
  STATUS_ALLOCATED,
  STATUS_DATA,
} from "./types.ts";
import { isZero } from "../wasm/kernels.ts";
import { Serialiser } from "./serialiser.ts";
import { writeZeroesByWriting } from "./zeroes.ts";

export type { BlockNodeOptions, DetectZeroes, DiscardMode, NodeObserver, NodeSettings };

const WRITE_FLAGS = REQ_FUA | REQ_WRITE_UNCHANGED;
const ZERO_FLAGS = WRITE_FLAGS | REQ_MAY_UNMAP | REQ_NO_FALLBACK;

/** A node of the block graph. */
export abstract class BlockNode {
  /** The driver's name. */
  readonly driver: string;
  /** Unit of allocation, null where the driver has none. */
  readonly clusterSizeBytes: number | null;

  /** Edges to the nodes that this node uses, by child name. */
  readonly children: ReadonlyMap<string, BlockEdge>;
  /** Edges of those who use this node. */
  readonly parents: ReadonlySet<BlockEdge>;

  readonly #children = new Map<string, BlockEdge>();
  readonly #parents = new Set<BlockEdge>();
  readonly #background = new Set<Promise<unknown>>();
  readonly #handlesFua: boolean;
  readonly #settings: NodeSettings;
  #nodeName: string;
  #sizeBytes: number;
  #graph: BlockGraph | null = null;
  #drainDepth = 0;
  #closing: Promise<void> | null = null;
  #observer: NodeObserver | null = null;
  #serialiser: Serialiser | null = null;
  #serialiserUsers = 0;

  /** The node is in no graph yet and has no users. */
  constructor(options: BlockNodeOptions) {
    checkSize(options.sizeBytes);
    this.driver = options.driver;
    this.clusterSizeBytes = options.clusterSizeBytes ?? null;
    this.#settings = {
      isReadOnly: options.isReadOnly,
      discard: options.discard ?? "unmap",
      detectZeroes: "off",
      ignoresFlush: false,
    };
    this.children = this.#children;
    this.parents = this.#parents;
    this.#handlesFua = options.handlesFua ?? false;
    this.#nodeName = options.nodeName;
    this.#sizeBytes = options.sizeBytes;
  }

  /** The node refuses writes, whoever asks. */
  get isReadOnly(): boolean {
    return this.#settings.isReadOnly;
  }

  /** What becomes of discards. */
  get discardMode(): DiscardMode {
    return this.#settings.discard;
  }

  /** What all drivers' nodes can be told, as it stands. */
  get settings(): Readonly<NodeSettings> {
    return this.#settings;
  }

  /** The file or address that the node is of, where its driver is of one; null elsewhere. */
  get fileName(): string | null {
    return null;
  }

  /** Its name, unique in its graph. */
  get nodeName(): string {
    return this.#nodeName;
  }

  /** The content's size now. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** As error messages name it. */
  get description(): string {
    return `node '${this.#nodeName}'`;
  }

  /** The edge to what is read where this node holds nothing itself, null where there is none. */
  get backing(): BlockEdge | null {
    return this.#children.get("backing") ?? null;
  }

  /** Whether the node may get a backing node, or lose it, while it stands: see setBacking. */
  get supportsBacking(): boolean {
    return false;
  }

  /** Whether `write` takes REQ_WRITE_COMPRESSED. Filters pass it on, and answer for their child. */
  get supportsCompressedWrites(): boolean {
    return false;
  }

  /** The graph that the node is part of, null before `add` and after `remove`. */
  get graph(): BlockGraph | null {
    return this.#graph;
  }

  // Requests: the choke point.

  /** Reads `target.length` bytes at `offset`. */
  read(offset: number, target: IoVector): MaybePromise<void> {
    this.#checkRange(offset, target.length);
    if (target.length === 0) return;
    if (this.#serialiser !== null) {
      const range = { offset, length: target.length };
      return this.#serialiser.read(range, () => this.doRead(offset, target));
    }
    return this.doRead(offset, target);
  }

  /** Writes. `flags`: REQ_FUA, REQ_WRITE_UNCHANGED, and where supported REQ_WRITE_COMPRESSED. */
  write(offset: number, source: IoVector, flags = 0): MaybePromise<void> {
    this.#checkRange(offset, source.length);
    this.#checkWrite(flags, WRITE_FLAGS | REQ_WRITE_COMPRESSED);
    if ((flags & REQ_WRITE_COMPRESSED) !== 0 && !this.supportsCompressedWrites) {
      throw this.notSupported("compressed writes");
    }
    if (source.length === 0) return;
    if (this.#settings.detectZeroes !== "off" && source.buffers.every(isZero)) {
      return this.writeZeroes(offset, source.length, this.#zeroFlags(flags));
    }
    if (this.#observer !== null) {
      return this.#observed(offset, source.length, () => this.#write(offset, source, flags));
    }
    return this.#write(offset, source, flags);
  }

  /** Makes a range read as zeroes. `flags`: those of `write`, REQ_MAY_UNMAP, REQ_NO_FALLBACK. */
  writeZeroes(offset: number, length: number, flags = 0): MaybePromise<void> {
    this.#checkRange(offset, length);
    this.#checkWrite(flags, ZERO_FLAGS);
    if (length === 0) return;
    if (this.#settings.discard === "ignore") flags &= ~REQ_MAY_UNMAP;
    if (this.#observer !== null) {
      return this.#observed(offset, length, () => this.#writeZeroes(offset, length, flags));
    }
    return this.#writeZeroes(offset, length, flags);
  }

  /** Says that a range's content is no longer needed. What it reads as afterwards is undefined. */
  discard(offset: number, length: number): MaybePromise<void> {
    this.#checkRange(offset, length);
    this.#checkWrite(0, 0);
    if (length === 0 || this.#settings.discard === "ignore") return;
    if (this.#observer !== null) {
      return this.#observed(offset, length, () => this.#discard(offset, length));
    }
    return this.#discard(offset, length);
  }

  /** Everything whose write was answered before is on stable storage when this is answered. */
  flush(): MaybePromise<void> {
    this.#checkOpen();
    if (this.#settings.ignoresFlush) return;
    return this.doFlush();
  }

  /** The state of the run that starts at `offset`, of at most `length` bytes. */
  blockStatus(offset: number, length: number): MaybePromise<BlockStatus> {
    this.#checkRange(offset, length);
    if (length === 0) return { length: 0, flags: 0 };
    if (this.#serialiser !== null) {
      return this.#serialiser.read({ offset, length }, () => this.doBlockStatus(offset, length));
    }
    return this.doBlockStatus(offset, length);
  }

  /** Where a range lies in a file as a read would give it now, null where nowhere or not known. */
  filePart(offset: number, length: number): FilePart | null {
    return this.#serialiser === null ? this.doFilePart(offset, length) : null;
  }

  /** Reads the node's snapshot, where it keeps one. */
  snapshotRead(offset: number, target: IoVector): MaybePromise<void> {
    this.#checkRange(offset, target.length);
    if (target.length === 0) return;
    return this.doSnapshotRead(offset, target);
  }

  /** Block status of the node's snapshot. */
  snapshotBlockStatus(offset: number, length: number): MaybePromise<BlockStatus> {
    this.#checkRange(offset, length);
    if (length === 0) return { length: 0, flags: 0 };
    return this.doSnapshotBlockStatus(offset, length);
  }

  /** Drops a part of the node's snapshot. Allowed on a read-only node: its content stays. */
  snapshotDiscard(offset: number, length: number): MaybePromise<void> {
    this.#checkRange(offset, length);
    if (length === 0) return;
    return this.doSnapshotDiscard(offset, length);
  }

  /** Grows or shrinks the node. Callers hold PERM_RESIZE: see BlockGraph.resize. */
  resize(sizeBytes: number): MaybePromise<void> {
    checkSize(sizeBytes);
    if (this.isReadOnly) throw new BlockError("EPERM", "Image is read-only");
    this.#checkWrite(0, 0);
    if (sizeBytes === this.#sizeBytes) return;
    this.#observer?.resizing(sizeBytes);
    return this.doResize(sizeBytes);
  }

  /** Requests that wait, here or below, for a server to come back, fail now. */
  cancelInFlight(): void {
    for (const { node } of this.#children.values()) node.cancelInFlight();
  }

  // What drivers and filters implement.

  /** Fills `target`, whose length is not 0, with what is at `offset`. */
  protected abstract doRead(offset: number, target: IoVector): MaybePromise<void>;

  /** Not supported by default. `flags` has REQ_FUA only if `handlesFua`. */
  protected doWrite(_offset: number, _source: IoVector, _flags: number): MaybePromise<void> {
    throw this.notSupported("writing");
  }

  /** By default writes zeroes in bounded pieces, so that REQ_NO_FALLBACK is not supported. */
  protected doWriteZeroes(offset: number, length: number, flags: number): MaybePromise<void> {
    if ((flags & REQ_NO_FALLBACK) !== 0) throw this.notSupported("writing zeroes efficiently");
    return writeZeroesByWriting({
      offset,
      length,
      write: (at, zeroes) => this.doWrite(at, zeroes, flags & ~REQ_MAY_UNMAP),
    });
  }

  /** A hint, ignored by default. */
  protected doDiscard(_offset: number, _length: number): MaybePromise<void> {}

  /** By default there is nothing to flush. A filter flushes its child. */
  protected doFlush(): MaybePromise<void> {}

  /** By default all is data of this node. May answer for less than was asked. */
  protected doBlockStatus(_offset: number, length: number): MaybePromise<BlockStatus> {
    return { length, flags: STATUS_DATA | STATUS_ALLOCATED };
  }

  /** By default nowhere. */
  protected doFilePart(_offset: number, _length: number): FilePart | null {
    return null;
  }

  /** Not supported by default. */
  protected doSnapshotRead(_offset: number, _target: IoVector): MaybePromise<void> {
    throw this.notSupported("snapshot reads");
  }

  /** Not supported by default. */
  protected doSnapshotBlockStatus(_offset: number, _length: number): MaybePromise<BlockStatus> {
    throw this.notSupported("snapshot block status");
  }

  /** Not supported by default. */
  protected doSnapshotDiscard(_offset: number, _length: number): MaybePromise<void> {
    throw this.notSupported("snapshot discards");
  }

  /** Must call `setSize` when the new size is in force. */
  protected doResize(_sizeBytes: number): MaybePromise<void> {
    throw this.notSupported("resizing");
  }

  /**
   * Releases what the node holds. Nobody uses the node any more and nothing runs in the background.
   */
  protected doClose(): MaybePromise<void> {}

  /**
   * Makes the node able to write from now, or no longer: a file is opened anew. Nothing is in
   * flight; flushed before. Drivers that need not do anything for that don't implement it.
   */
  protected doSetReadOnly(_isReadOnly: boolean): MaybePromise<void> {}

  /** Requests to this node or above it are being stopped: let those go that the node holds back. */
  protected onDrainBegin(): void {}

  /** The last drained section that covered this node ended. */
  protected onDrainEnd(): void {}

  /** The size of a child changed. A filter follows. */
  protected onChildResized(edge: BlockEdge): void {
    if (edge.role === "filtered") this.setSize(edge.node.sizeBytes);
  }

  /** The permissions this node takes on a child, given what its own parents take and share. */
  childPermissions(edge: BlockEdge, above: Permissions): Permissions {
    return defaultChildPermissions(this, edge, above);
  }

  /** Bytes that the node takes on its medium, null where nobody knows. */
  get allocatedBytes(): number | null {
    for (const edge of this.#children.values()) {
      if (edge.role === "filtered") return edge.node.allocatedBytes;
    }
    return null;
  }

  /** What keeps the node's dirty bitmaps with it, null where nothing can. */
  get bitmapStore(): BitmapStore | null {
    return null;
  }

  /**
   * Writes another backing file name, or none, into the image. What the node reads from now does
   * not change. Not supported by default.
   */
  changeBackingFile(_fileName: string | null, _format: string | null): MaybePromise<void> {
    throw this.notSupported("a backing file");
  }

  /**
   * For formats: members of QEMU's ImageInfo, as `dirty-flag`, `backing-filename`, `snapshots` and
   * `format-specific`.
   */
  get imageDetails(): Record<string, unknown> {
    return {};
  }

  /** Facts about the node for its description: strings, numbers, booleans (see node_info.ts). */
  details(): Record<string, string | number | boolean | null> {
    return {};
  }

  // For drivers and filters.

  /** Declares a child; called in the constructor. Use `edge.node` afresh for every request. */
  protected addChild(name: string, role: ChildRole, node: BlockNode): BlockEdge {
    assert(this.#graph === null, "children are declared before the node is added to a graph");
    assert(!this.#children.has(name), `two children named ${name}`);
    const edge = new BlockEdge(this, name, role, node);
    this.#children.set(name, edge);
    return edge;
  }

  /** Makes drained sections and close wait for work that outlives the request that started it. */
  protected trackBackground(work: Promise<unknown>): void {
    const settled = work.then(() => {}, () => {});
    this.#background.add(settled);
    settled.then(() => this.#background.delete(settled));
  }

  /** The size changed: parents follow. */
  protected setSize(sizeBytes: number): void {
    if (sizeBytes === this.#sizeBytes) return;
    this.#sizeBytes = sizeBytes;
    this.#observer?.resized(sizeBytes);
    for (const edge of this.#parents) {
      if (edge.parent instanceof BlockNode) edge.parent.onChildResized(edge);
    }
  }

  /** The error (ENOTSUP) of a request that the driver can't do. */
  protected notSupported(what: string): BlockError {
    return new BlockError(
      "ENOTSUP",
      `Driver '${this.driver}' (node '${this.#nodeName}') does not support ${what}`,
    );
  }

  /** Whom changes of the content are told, nobody by default. */
  get observer(): NodeObserver | null {
    return this.#observer;
  }

  set observer(observer: NodeObserver | null) {
    this.#observer = observer;
  }

  /**
   * Makes reads and writes of the same bytes wait for each other (see serialiser.ts) until the
   * returned function is called. Nothing may be in flight.
   */
  serialise(): () => void {
    this.#serialiser ??= new Serialiser();
    this.#serialiserUsers++;
    return () => {
      if (--this.#serialiserUsers === 0) this.#serialiser = null;
    };
  }

  // For the graph.

  /** Work that still runs behind answered requests. */
  get backgroundWork(): readonly Promise<unknown>[] {
    return [...this.#background];
  }

  /** Other settings: before the node is added, or by BlockGraph.reopen. */
  configure(settings: Partial<NodeSettings>): void {
    Object.assign(this.#settings, settings);
  }

  /** For BlockGraph.setReadOnly. */
  setReadOnly(isReadOnly: boolean): MaybePromise<void> {
    const tell = (): MaybePromise<void> => this.#observer?.readOnlyChanges(isReadOnly);
    const change = (): MaybePromise<void> => this.doSetReadOnly(isReadOnly);
    return isReadOnly ? andThen(tell(), change) : andThen(change(), tell);
  }

  /** The node became part of `graph` under a name, or left it. */
  setGraph(graph: BlockGraph | null, nodeName: string): void {
    this.#graph = graph;
    this.#nodeName = nodeName;
  }

  /** Somebody uses the node now. */
  addParent(edge: BlockEdge): void {
    this.#parents.add(edge);
  }

  /** Somebody no longer uses the node. */
  removeParent(edge: BlockEdge): void {
    this.#parents.delete(edge);
  }

  /** The node has a child more. */
  attachChild(edge: BlockEdge): void {
    assert(!this.#children.has(edge.name), `two children named ${edge.name}`);
    this.#children.set(edge.name, edge);
  }

  /** The node has a child less. */
  detachChild(edge: BlockEdge): void {
    this.#children.delete(edge.name);
  }

  /** After another node took a child's place. */
  childReplaced(edge: BlockEdge): void {
    this.onChildResized(edge);
  }

  /** A drained section covers the node, or a backend above it. */
  drainBegin(): void {
    if (++this.#drainDepth === 1) this.onDrainBegin();
  }

  /** That section ended. */
  drainEnd(): void {
    assert(this.#drainDepth > 0, "drainEnd without drainBegin");
    if (--this.#drainDepth === 0) this.onDrainEnd();
  }

  /** Closes the node once nobody uses it. May be called again: waits for the same close. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    assert(this.#parents.size === 0, `node '${this.#nodeName}' is closed while in use`);
    while (this.#background.size > 0) await Promise.all(this.#background);
    try {
      await this.#observer?.closed();
    } finally {
      await this.doClose();
    }
  }

  #zeroFlags(flags: number): number {
    const kept = flags & WRITE_FLAGS;
    return this.#settings.detectZeroes === "unmap" ? kept | REQ_MAY_UNMAP : kept;
  }

  #write(offset: number, source: IoVector, flags: number): MaybePromise<void> {
    if ((flags & REQ_FUA) !== 0 && !this.#handlesFua) {
      return andThen(this.#write(offset, source, flags & ~REQ_FUA), () => this.doFlush());
    }
    if (this.#serialiser !== null) {
      const range = { offset, length: source.length };
      return this.#serialiser.write(range, () => this.doWrite(offset, source, flags));
    }
    return this.doWrite(offset, source, flags);
  }

  #writeZeroes(offset: number, length: number, flags: number): MaybePromise<void> {
    if ((flags & REQ_FUA) !== 0 && !this.#handlesFua) {
      return andThen(this.#writeZeroes(offset, length, flags & ~REQ_FUA), () => this.doFlush());
    }
    if (this.#serialiser !== null) {
      const range = { offset, length };
      return this.#serialiser.write(range, () => this.doWriteZeroes(offset, length, flags));
    }
    return this.doWriteZeroes(offset, length, flags);
  }

  #discard(offset: number, length: number): MaybePromise<void> {
    if (this.#serialiser !== null) {
      return this.#serialiser.write({ offset, length }, () => this.doDiscard(offset, length));
    }
    return this.doDiscard(offset, length);
  }

  /** A request that may change the content. A failed one may have changed a part of it. */
  #observed(
    offset: number,
    length: number,
    request: () => MaybePromise<void>,
  ): MaybePromise<void> {
    const ended = (): void => this.#observer?.changed(offset, length);
    let result: MaybePromise<void>;
    try {
      result = request();
    } catch (error) {
      ended();
      throw error;
    }
    if (result instanceof Promise) return result.finally(ended);
    ended();
  }

  #checkOpen(): void {
    if (this.#closing !== null) {
      throw new BlockError("ESHUTDOWN", `Node '${this.#nodeName}' is closed`);
    }
  }

  #checkRange(offset: number, length: number): void {
    // The order of the comparisons also refuses NaN; neither sum nor difference can overflow.
    if (
      !(offset >= 0 && length >= 0 && length <= this.#sizeBytes - offset) ||
      !Number.isSafeInteger(offset) || !Number.isSafeInteger(length)
    ) {
      throw new BlockError(
        "EINVAL",
        `${length} bytes at ${offset} are outside of node '${this.#nodeName}' ` +
          `of ${this.#sizeBytes} bytes`,
      );
    }
    if (this.#closing !== null) this.#checkOpen();
  }

  #checkWrite(flags: number, allowedFlags: number): void {
    if ((flags & ~allowedFlags) !== 0) {
      throw new BlockError("EINVAL", `Request flags 0x${flags.toString(16)} are not valid here`);
    }
    if (this.#settings.isReadOnly) throw new BlockError("EPERM", "Block node is read-only");
    if (this.#closing !== null) this.#checkOpen();
  }
}
