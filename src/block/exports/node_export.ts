/**
 * An export of a node as it is: a disk's present.
 *
 * @module
 */

import { BlockBackend } from "../backend.ts";
import type { DirtyBitmap } from "../dirty_bitmap.ts";
import { BlockError } from "../errors.ts";
import type { BlockExport, MetaContext } from "../export.ts";
import { SnapshotAccessNode } from "../filters/snapshot_access.ts";
import type { BlockGraph } from "../graph.ts";
import { IoVector } from "../io_vector.ts";
import type { BlockNode } from "../node.ts";
import {
  type FilePart,
  type MaybePromise,
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  REQ_FUA,
} from "../types.ts";
import { allocationDepthContext, diskAllocationContext } from "./disk_contexts.ts";
import {
  accessContext,
  dirtyBitmapContext,
  preferredBlockBytes,
  snapshotAllocationContext,
} from "./meta_contexts.ts";

/** What an export of a node is made of. */
export interface NodeExportOptions {
  /** By which clients open it. */
  name: string;
  /** For people; "" unless given. */
  description?: string;
  /** The node that it shows, part of the graph. */
  nodeName: string;
  /** As messages about permissions name who uses the node; the export's name unless given. */
  userName?: string;
  /** Without it the export is read-only. */
  isWritable?: boolean;
  /** Shown as `qemu:dirty-bitmap:NAME`, and busy as long as the export stands. */
  bitmaps?: readonly DirtyBitmap[];
  /** Shows `qemu:allocation-depth` too. */
  showsDepth?: boolean;
  /** Every write is on stable storage when it is answered. */
  isWritethrough?: boolean;
}

/** See the module's head. */
export class NodeExport implements BlockExport {
  readonly name: string;
  readonly description: string;
  readonly sizeBytes: number;
  readonly isReadOnly: boolean;
  readonly canDiscard: boolean;
  readonly canMultiConn = true;
  readonly preferredBlockBytes: number;
  readonly contexts: readonly MetaContext[];
  readonly #backend: BlockBackend;
  readonly #writeFlags: number;
  readonly #unused: (() => void)[];

  /** Throws a BlockError where the node can't be had, or a bitmap is in use or of another size. */
  constructor(graph: BlockGraph, options: NodeExportOptions) {
    const isWritable = options.isWritable ?? false;
    const bitmaps = options.bitmaps ?? [];
    const node = graph.get(options.nodeName);
    for (const bitmap of bitmaps) {
      bitmap.check("use");
      if (bitmap.bits.sizeBytes === node.sizeBytes) continue;
      throw new BlockError("EINVAL", `Bitmap '${bitmap.name}' is of another size`);
    }
    this.name = options.name;
    this.description = options.description ?? "";
    this.sizeBytes = node.sizeBytes;
    this.isReadOnly = !isWritable;
    this.canDiscard = isWritable;
    this.preferredBlockBytes = preferredBlockBytes(node.clusterSizeBytes);
    this.#writeFlags = options.isWritethrough === true ? REQ_FUA : 0;
    this.#backend = new BlockBackend(graph, {
      name: options.userName ?? options.name,
      nodeName: options.nodeName,
      perm: PERM_CONSISTENT_READ | (isWritable ? PERM_WRITE : 0),
      // Its size is told once, to each client.
      shared: PERM_ALL & ~PERM_RESIZE,
    });
    this.#unused = bitmaps.map((bitmap) => bitmap.use());
    this.contexts = [
      ...contextsOfNode(node, this.#backend),
      ...(options.showsDepth === true ? [allocationDepthContext(this.#backend)] : []),
      ...bitmaps.map(dirtyBitmapContext),
    ];
  }

  read(offset: number, buffer: Uint8Array): MaybePromise<void> {
    return this.#backend.read(offset, IoVector.of(buffer));
  }

  filePart(offset: number, length: number): FilePart | null {
    return this.#backend.filePart(offset, length);
  }

  write(offset: number, data: Uint8Array, flags: number): MaybePromise<void> {
    return this.#backend.write(offset, IoVector.of(data), flags | this.#writeFlags);
  }

  writeZeroes(offset: number, length: number, flags: number): MaybePromise<void> {
    return this.#backend.writeZeroes(offset, length, flags | this.#writeFlags);
  }

  discard(offset: number, length: number): MaybePromise<void> {
    return this.#backend.discard(offset, length);
  }

  flush(): MaybePromise<void> {
    return this.#backend.flush();
  }

  /** Ends the export: later calls fail with ESHUTDOWN, those in flight are waited for. */
  async close(): Promise<void> {
    await this.#backend.release();
    for (const unuse of this.#unused) unuse();
  }
}

/** A snapshot has areas that may not be read: its maps tell, instead of failing. */
function contextsOfNode(node: BlockNode, backend: BlockBackend): MetaContext[] {
  if (!(node instanceof SnapshotAccessNode)) return [diskAllocationContext(backend)];
  const access = (offset: number, length: number) => node.snapshotAccess(offset, length);
  const status = (offset: number, length: number) => backend.blockStatus(offset, length);
  return [snapshotAllocationContext({ access, status }), accessContext(access)];
}
