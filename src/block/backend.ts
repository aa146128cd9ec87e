/**
 * A block backend: what a device, an export or a job holds of the block graph. It is the root of a
 * path through the graph, states the permissions of its owner, counts requests in flight, and holds
 * new requests back while a drained section covers it.
 *
 *   open --> request, not held -> node, in flight until answered
 *        --> request, held -> queue -> (drained section ends) -> node, in the order of arrival
 *   open --release--> closed: queued requests fail with ESHUTDOWN, those in flight are waited for
 *
 * No request is in flight between the moment a drained section's action starts and its end.
 *
 * @module
 */

import { assert } from "./assert.ts";
import { BlockEdge, type EdgeParent } from "./edge.ts";
import { BlockError } from "./errors.ts";
import type { BlockGraph } from "./graph.ts";
import type { IoVector } from "./io_vector.ts";
import type { BlockNode } from "./node.ts";
import {
  type BlockStatus,
  type FilePart,
  type MaybePromise,
  PERM_RESIZE,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
  REQ_WRITE_UNCHANGED,
} from "./types.ts";

/** What a backend is made of. */
export interface BlockBackendOptions {
  /** For messages and statistics: the device's or the export's name. */
  name: string;
  /** The node that it works on first. */
  nodeName: string;
  /** Permissions (PERM_*) that the owner needs. */
  perm: number;
  /** Permissions that others may have beside it. */
  shared: number;
  /** As error messages name it; made of the name unless given. */
  description?: string;
  /** The edge's name, "root" unless given. */
  edgeName?: string;
}

/** Counters of one kind of request. */
export interface OperationStatistics {
  /** Answered well. */
  count: number;
  /** Their bytes. */
  bytes: number;
  /** Answered with an error. */
  failedCount: number;
}

/** Counters of a backend, since it was made. */
export interface BackendStatistics {
  /** Reads, those of a snapshot included. */
  read: OperationStatistics;
  /** Writes. */
  write: OperationStatistics;
  /** Write-zeroes; their bytes are those made zero. */
  writeZeroes: OperationStatistics;
  /** Discards, those of a snapshot included. */
  discard: OperationStatistics;
  /** Flushes, which have no bytes. */
  flush: OperationStatistics;
}

/** A user of a block node. */
export class BlockBackend implements EdgeParent {
  /** The owner's name, perhaps empty. */
  readonly name: string;
  /** Where its node is. */
  readonly graph: BlockGraph;
  /** The edge to the node. */
  readonly root: BlockEdge;
  /** Its requests so far. */
  readonly statistics: BackendStatistics = {
    read: noOperations(),
    write: noOperations(),
    writeZeroes: noOperations(),
    discard: noOperations(),
    flush: noOperations(),
  };

  /** Block status and snapshot requests: counted in flight, not shown. */
  readonly #other = noOperations();
  readonly #description: string;
  #inFlightCount = 0;
  #drainDepth = 0;
  /** A drained section covers the backend, or its queue is being started. */
  #isHeld = false;
  #isReleased = false;
  #queue: HeldRequest[] = [];
  #idleWaiters: (() => void)[] = [];
  #freeWaiters: (() => void)[] = [];

  /**
   * Takes its permissions at once. Throws a BlockError (EPERM, ENOENT) where it can't have them.
   */
  constructor(graph: BlockGraph, options: BlockBackendOptions) {
    this.name = options.name;
    this.graph = graph;
    this.#description = options.description ??
      (this.name === "" ? "an unnamed block device" : `block device '${this.name}'`);
    const edgeName = options.edgeName ?? "root";
    this.root = new BlockEdge(this, edgeName, "root", graph.get(options.nodeName));
    this.root.perm = options.perm;
    this.root.shared = options.shared;
    graph.attachBackend(this);
  }

  /** The node that it works on: another one after a filter was put in. */
  get node(): BlockNode {
    return this.root.node;
  }

  /** The node's size now. */
  get sizeBytes(): number {
    return this.root.node.sizeBytes;
  }

  get description(): string {
    return this.#description;
  }

  /** Requests that a node is working on. */
  get inFlightCount(): number {
    return this.#inFlightCount;
  }

  /** Requests that wait for a drained section's end. */
  get queuedCount(): number {
    return this.#queue.length;
  }

  /** Reads, see BlockNode.read; counted, and held in a drained section, as all requests here. */
  read(offset: number, target: IoVector): MaybePromise<void> {
    if (this.#isHeld) return this.#hold(() => this.#read(offset, target));
    return this.#read(offset, target);
  }

  /**
   * Where a range lies in a file, null where that is not so or a read would have to wait. It holds
   * until the caller returns to the event loop. What is taken from there is not counted.
   */
  filePart(offset: number, length: number): FilePart | null {
    return this.#isHeld || this.#isReleased ? null : this.root.node.filePart(offset, length);
  }

  /** Writes, see BlockNode.write. Needs PERM_WRITE. */
  write(offset: number, source: IoVector, flags = 0): MaybePromise<void> {
    if (this.#isHeld) return this.#hold(() => this.#write(offset, source, flags));
    return this.#write(offset, source, flags);
  }

  /** Zeroes a range, see BlockNode.writeZeroes. Needs PERM_WRITE. */
  writeZeroes(offset: number, length: number, flags = 0): MaybePromise<void> {
    if (this.#isHeld) return this.#hold(() => this.#writeZeroes(offset, length, flags));
    return this.#writeZeroes(offset, length, flags);
  }

  /** Discards a range, see BlockNode.discard. Needs PERM_WRITE. */
  discard(offset: number, length: number): MaybePromise<void> {
    const { discard } = this.statistics;
    return this.#run(discard, length, () => {
      this.#checkWrite(0);
      return this.root.node.discard(offset, length);
    });
  }

  /** See BlockNode.flush. */
  flush(): MaybePromise<void> {
    return this.#run(this.statistics.flush, 0, () => this.root.node.flush());
  }

  /** See BlockNode.blockStatus. */
  blockStatus(offset: number, length: number): MaybePromise<BlockStatus> {
    return this.#run(this.#other, 0, () => this.root.node.blockStatus(offset, length));
  }

  /** See BlockNode.snapshotRead. Counts as a read. */
  snapshotRead(offset: number, target: IoVector): MaybePromise<void> {
    const { length } = target;
    return this.#run(this.statistics.read, length, () => {
      return this.root.node.snapshotRead(offset, target);
    });
  }

  /** See BlockNode.snapshotBlockStatus. */
  snapshotBlockStatus(offset: number, length: number): MaybePromise<BlockStatus> {
    return this.#run(this.#other, 0, () => this.root.node.snapshotBlockStatus(offset, length));
  }

  /** See BlockNode.snapshotDiscard. Counts as a discard. */
  snapshotDiscard(offset: number, length: number): MaybePromise<void> {
    return this.#run(this.statistics.discard, length, () => {
      return this.root.node.snapshotDiscard(offset, length);
    });
  }

  /** Changes the node's size. Needs PERM_RESIZE. */
  resize(sizeBytes: number): MaybePromise<void> {
    return this.#run(this.#other, 0, () => {
      if ((this.root.perm & PERM_RESIZE) === 0) throw this.#notPermitted("resize");
      return this.root.node.resize(sizeBytes);
    });
  }

  // Operations of several requests, for jobs: what has begun must be able to end while a drained
  // section waits for it, so that the requests of an operation go to the nodes directly.

  /** New operations have to wait: see `whenFree`. */
  get isHeld(): boolean {
    return this.#isHeld;
  }

  /** Resolves when no drained section covers the backend, or it was released. Look again then. */
  whenFree(): Promise<void> {
    if (!this.#isHeld || this.#isReleased) return Promise.resolve();
    return new Promise((resolve) => this.#freeWaiters.push(resolve));
  }

  /** An operation begins, which drained sections wait for. The backend must not be held. */
  beginOperation(): void {
    assert(!this.#isHeld, "an operation begins in a drained section");
    this.#begin();
  }

  /** It ended. */
  endOperation(): void {
    this.#end();
  }

  /** Gives the node back: later and queued requests fail, those in flight are waited for. */
  async release(): Promise<void> {
    if (!this.#isReleased) {
      this.#isReleased = true;
      for (const request of this.#queue.splice(0)) request.reject(this.#released());
      for (const wake of this.#freeWaiters.splice(0)) wake();
    }
    await this.idle();
    this.graph.detachBackend(this);
  }

  // For the graph.

  /** Resolves when nothing is in flight. */
  idle(): Promise<void> {
    if (this.#inFlightCount === 0) return Promise.resolve();
    return new Promise((resolve) => this.#idleWaiters.push(resolve));
  }

  /** A drained section covers the backend. */
  drainBegin(): void {
    this.#drainDepth++;
    this.#isHeld = true;
  }

  /** Starts what was queued, in order, once the last section ended. */
  drainEnd(): void {
    assert(this.#drainDepth > 0, "drainEnd without drainBegin");
    this.#drainDepth--;
    // A request started here may begin another drained section: the rest then waits for that one.
    while (this.#drainDepth === 0 && this.#queue.length > 0) this.#queue.shift()?.start();
    this.#isHeld = this.#drainDepth > 0;
    if (!this.#isHeld) { for (const wake of this.#freeWaiters.splice(0)) wake(); }
  }

  #read(offset: number, target: IoVector): MaybePromise<void> {
    const statistics = this.statistics.read;
    this.#begin();
    let result: MaybePromise<void>;
    try {
      result = this.root.node.read(offset, target);
    } catch (error) {
      this.#fail(statistics);
      throw error;
    }
    return this.#finish(result, statistics, target.length);
  }

  #write(offset: number, source: IoVector, flags: number): MaybePromise<void> {
    const statistics = this.statistics.write;
    this.#begin();
    let result: MaybePromise<void>;
    try {
      this.#checkWrite(flags);
      result = this.root.node.write(offset, source, flags);
    } catch (error) {
      this.#fail(statistics);
      throw error;
    }
    return this.#finish(result, statistics, source.length);
  }

  #writeZeroes(offset: number, length: number, flags: number): MaybePromise<void> {
    const statistics = this.statistics.writeZeroes;
    this.#begin();
    let result: MaybePromise<void>;
    try {
      this.#checkWrite(flags);
      result = this.root.node.writeZeroes(offset, length, flags);
    } catch (error) {
      this.#fail(statistics);
      throw error;
    }
    return this.#finish(result, statistics, length);
  }

  /** The same for requests that are rare enough for a closure. */
  #run<T>(
    statistics: OperationStatistics,
    bytes: number,
    request: () => MaybePromise<T>,
  ): MaybePromise<T> {
    if (this.#isHeld) return this.#hold(() => this.#start(statistics, bytes, request));
    return this.#start(statistics, bytes, request);
  }

  #start<T>(
    statistics: OperationStatistics,
    bytes: number,
    request: () => MaybePromise<T>,
  ): MaybePromise<T> {
    this.#begin();
    let result: MaybePromise<T>;
    try {
      result = request();
    } catch (error) {
      this.#fail(statistics);
      throw error;
    }
    return this.#finish(result, statistics, bytes);
  }

  #hold<T>(request: () => MaybePromise<T>): Promise<T> {
    if (this.#isReleased) throw this.#released();
    return new Promise<T>((resolve, reject) => {
      const start = (): void => {
        try {
          resolve(request());
        } catch (error) {
          reject(error);
        }
      };
      this.#queue.push({ start, reject });
    });
  }

  #begin(): void {
    if (this.#isReleased) throw this.#released();
    this.#inFlightCount++;
  }

  #finish<T>(
    result: MaybePromise<T>,
    statistics: OperationStatistics,
    bytes: number,
  ): MaybePromise<T> {
    if (result instanceof Promise) {
      return result.then((value) => {
        this.#succeed(statistics, bytes);
        return value;
      }, (error) => {
        this.#fail(statistics);
        throw error;
      });
    }
    this.#succeed(statistics, bytes);
    return result;
  }

  #succeed(statistics: OperationStatistics, bytes: number): void {
    statistics.count++;
    statistics.bytes += bytes;
    this.#end();
  }

  #fail(statistics: OperationStatistics): void {
    statistics.failedCount++;
    this.#end();
  }

  #end(): void {
    if (--this.#inFlightCount > 0 || this.#idleWaiters.length === 0) return;
    for (const wake of this.#idleWaiters.splice(0)) wake();
  }

  #checkWrite(flags: number): void {
    const { perm } = this.root;
    if ((perm & PERM_WRITE) !== 0) return;
    if ((flags & REQ_WRITE_UNCHANGED) !== 0 && (perm & PERM_WRITE_UNCHANGED) !== 0) return;
    throw this.#notPermitted("write");
  }

  #notPermitted(permission: string): BlockError {
    return new BlockError(
      "EPERM",
      `${this.description} does not hold permission '${permission}' on ${this.node.description}`,
    );
  }

  #released(): BlockError {
    return new BlockError("ESHUTDOWN", `${this.description} was released`);
  }
}

interface HeldRequest {
  start: () => void;
  reject: (error: BlockError) => void;
}

function noOperations(): OperationStatistics {
  return { count: 0, bytes: 0, failedCount: 0 };
}
