/**
 * A disk as a chain of images: its own node and the backing nodes below it. What a reader gets at
 * an offset comes from the first node of the chain that has it.
 *
 * The rules are QEMU's (block/io.c, bdrv_co_block_status_above): where nobody has it, or where the
 * next node ends before the offset, it reads as zeroes.
 *
 * @module
 */

import { FileNode } from "../drivers/file.ts";
import type { BlockNode } from "../node.ts";
import { settle, type Steps } from "../steps.ts";
import { type BlockStatus, STATUS_ALLOCATED, STATUS_DATA, STATUS_ZERO } from "../types.ts";

const SECTOR_BYTES = 512;

/** A disk's size in whole sectors, as QEMU counts it: what a last one lacks reads as zeroes. */
export function sectorBytes(node: BlockNode): number {
  return Math.ceil(node.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES;
}

/** The state of a run of a disk. */
export interface DiskRun {
  /** Bytes that share the rest. */
  length: number;
  /** STATUS_* flags. STATUS_ALLOCATED: a node that was looked at decides the content. */
  flags: number;
  /** How many backing nodes further down that is; that of the last node where nobody has it. */
  depth: number;
  /** Where the bytes lie as they are, if they do so anywhere. */
  host: { node: BlockNode; offset: number } | null;
}

/** Looks for runs of a disk, from its own node down to but without `base`. */
export class DiskStatus {
  readonly #nodes: readonly BlockNode[];
  /** No filter is in the chain that requests would pass. */
  readonly #isPlain: boolean;
  /** Nodes whose own file may have holes in what they call data (preallocated metadata). */
  readonly #sparse = new Map<BlockNode, boolean>();

  /** `base`: a node of the chain; null for the whole chain. */
  constructor(top: BlockNode, base: BlockNode | null = null) {
    const nodes: BlockNode[] = [];
    let isPlain = top === unfiltered(top);
    for (let node: BlockNode | null = unfiltered(top); node !== null && node !== base;) {
      nodes.push(node);
      const below: BlockNode | null = backingOf(node);
      isPlain &&= below === null || node.backing?.node === below;
      node = below;
    }
    this.#nodes = nodes;
    this.#isPlain = isPlain;
  }

  /** The run that starts at `offset`. */
  *at(offset: number, length: number): Steps<DiskRun> {
    let left = length;
    for (const [depth, node] of this.#nodes.entries()) {
      if (offset >= node.sizeBytes) {
        // A backing node that ends before: what lies behind its end counts as its zeroes. So does
        // the rest of the last sector.
        const host = depth === 0 ? ownHost(node, offset) : null;
        return { length: left, flags: STATUS_ZERO | STATUS_ALLOCATED, depth, host };
      }
      const run = yield* this.#statusOf(node, offset, Math.min(left, node.sizeBytes - offset));
      if (
        (run.flags & (STATUS_ALLOCATED | STATUS_ZERO)) !== 0 || depth === this.#nodes.length - 1
      ) {
        return { length: run.length, flags: run.flags, depth, host: run.host ?? null };
      }
      left = run.length;
    }
    return { length: left, flags: 0, depth: 0, host: null };
  }

  /**
   * The first bytes of a run, whose length is `runBytes`, as they lie in a file, without reading
   * them: see FileNode.view. Null where they have to be read.
   */
  view(host: DiskRun["host"], length: number, runBytes: number): Uint8Array | null {
    if (host === null || !this.#isPlain || !(host.node instanceof FileNode)) return null;
    return host.node.view(host.offset, length, runBytes);
  }

  /** What one node says, completed by what its file and its place in the chain say. */
  *#statusOf(node: BlockNode, offset: number, length: number): Steps<BlockStatus> {
    const status = yield* settle(node.blockStatus(offset, length));
    const isAllocated = (status.flags & STATUS_ALLOCATED) !== 0;
    // Where nothing is below, nodes that can have a backing node say themselves that it reads as
    // zeroes. Others that don't have it (a snapshot of a disk with a chain) get it from elsewhere.
    if (!isAllocated) return { length: status.length, flags: status.flags };
    const host = status.host ?? ownHost(node, offset);
    if (host === null) return status;
    const isData = (status.flags & (STATUS_DATA | STATUS_ZERO)) === STATUS_DATA;
    if (isData && this.#isSparse(node)) {
      const below = yield* settle(host.node.blockStatus(host.offset, status.length));
      const flags = status.flags | (below.flags & STATUS_ZERO);
      return { length: below.length, flags, host };
    }
    return { ...status, host };
  }

  /** QEMU's guess (qcow2_detect_metadata_preallocation), from the sizes alone. */
  #isSparse(node: BlockNode): boolean {
    const known = this.#sparse.get(node);
    if (known !== undefined) return known;
    let isSparse = false;
    const file = node.children.get("data-file")?.node ?? node.children.get("file")?.node;
    const cluster = node.clusterSizeBytes;
    const allocated = file?.allocatedBytes ?? null;
    if (file !== undefined && cluster !== null && allocated !== null && node.driver !== "raw") {
      const real = Math.floor(allocated / cluster);
      const threshold = Math.max(Math.floor(real * 10 / 9), real + 2);
      isSparse = file.sizeBytes / cluster >= threshold;
    }
    this.#sparse.set(node, isSparse);
    return isSparse;
  }
}

/** The node below filters that show the same content. A raw node is a format, no filter. */
export function unfiltered(node: BlockNode): BlockNode {
  let at = node;
  while (at.driver !== "raw") {
    const filtered = [...at.children.values()].find(({ role }) => role === "filtered");
    if (filtered === undefined) break;
    at = filtered.node;
  }
  return at;
}

/** The next node of the chain, filters left out; null at its end. */
export function backingOf(node: BlockNode): BlockNode | null {
  const edge = unfiltered(node).backing;
  return edge === null ? null : unfiltered(edge.node);
}

/** The nodes of a disk's chain from the top, filters left out. */
export function chainOf(top: BlockNode): BlockNode[] {
  const nodes: BlockNode[] = [];
  for (let node: BlockNode | null = unfiltered(top); node !== null; node = backingOf(node)) {
    nodes.push(node);
  }
  return nodes;
}

/** The node that holds an image's bytes: its child "file", or itself. */
export function protocolNode(node: BlockNode): BlockNode {
  const image = unfiltered(node);
  return image.children.get("file")?.node ?? image;
}

/** Where raw nodes and leaves have what they show. */
function ownHost(node: BlockNode, offset: number): { node: BlockNode; offset: number } | null {
  if (node.children.size === 0) return { node, offset };
  if (node.driver !== "raw") return null;
  const file = node.children.get("file")?.node;
  const start = node.details()["offset"];
  return file === undefined ? null : { node: file, offset: offset + Number(start ?? 0) };
}
