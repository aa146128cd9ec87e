/**
 * An export of a snapshot: a disk's past, as a snapshot-access node shows it. It can't be written,
 * but what was read may be discarded, so that it is no longer kept.
 *
 * @module
 */

import { BlockBackend } from "../backend.ts";
import type { DirtyBitmap } from "../dirty_bitmap.ts";
import { BlockError } from "../errors.ts";
import type { BlockExport, MetaContext } from "../export.ts";
import type { SnapshotAccessNode } from "../filters/snapshot_access.ts";
import type { BlockGraph } from "../graph.ts";
import { IoVector } from "../io_vector.ts";
import { type MaybePromise, PERM_ALL, PERM_CONSISTENT_READ } from "../types.ts";
import {
  accessContext,
  dirtyBitmapContext,
  preferredBlockBytes,
  snapshotAllocationContext,
} from "./meta_contexts.ts";

/** What an export of a snapshot is made of. */
export interface SnapshotExportOptions {
  /** By which clients open it. */
  name: string;
  /** For people; "" unless given. */
  description?: string;
  /** Part of the graph. */
  node: SnapshotAccessNode;
  /** Shown as `qemu:dirty-bitmap:NAME`, and busy as long as the export stands. */
  bitmaps?: readonly DirtyBitmap[];
}

/** See the module's head. */
export class SnapshotExport implements BlockExport {
  readonly name: string;
  readonly description: string;
  readonly sizeBytes: number;
  readonly isReadOnly = true;
  readonly canDiscard = true;
  readonly canMultiConn = true;
  readonly preferredBlockBytes: number;
  readonly contexts: readonly MetaContext[];
  readonly #backend: BlockBackend;
  readonly #unused: (() => void)[];

  /** Throws a BlockError where a bitmap is in use. */
  constructor(graph: BlockGraph, options: SnapshotExportOptions) {
    const { node } = options;
    const bitmaps = options.bitmaps ?? [];
    for (const bitmap of bitmaps) bitmap.check("use");
    this.name = options.name;
    this.description = options.description ?? "";
    this.sizeBytes = node.sizeBytes;
    this.preferredBlockBytes = preferredBlockBytes(node.clusterSizeBytes);
    const backend = new BlockBackend(graph, {
      name: options.name,
      nodeName: node.nodeName,
      perm: PERM_CONSISTENT_READ,
      shared: PERM_ALL,
    });
    this.#backend = backend;
    this.#unused = bitmaps.map((bitmap) => bitmap.use());
    const access = (offset: number, length: number) => node.snapshotAccess(offset, length);
    const status = (offset: number, length: number) => backend.blockStatus(offset, length);
    this.contexts = [
      snapshotAllocationContext({ access, status }),
      accessContext(access),
      ...bitmaps.map(dirtyBitmapContext),
    ];
  }

  read(offset: number, buffer: Uint8Array): MaybePromise<void> {
    return this.#backend.read(offset, IoVector.of(buffer));
  }

  write(): never {
    throw this.#readOnly();
  }

  writeZeroes(): never {
    throw this.#readOnly();
  }

  discard(offset: number, length: number): MaybePromise<void> {
    return this.#backend.snapshotDiscard(offset, length);
  }

  flush(): MaybePromise<void> {
    return this.#backend.flush();
  }

  /** Ends the export: later calls fail with ESHUTDOWN, those in flight are waited for. */
  async close(): Promise<void> {
    await this.#backend.release();
    for (const unuse of this.#unused) unuse();
  }

  #readOnly(): BlockError {
    return new BlockError("EPERM", `Export '${this.name}' is read-only`);
  }
}
