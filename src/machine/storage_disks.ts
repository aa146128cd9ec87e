/**
 * The disks of an I/O worker: for each a chain of images, and a backend on the active one.
 *
 *   [device, or nobody] -- backend --> (filters) --> active image --backing--> ... --> lowest image
 *                                                      |file
 *                                                      v
 *                                                    file
 *
 * Filters come between backend and image, and another image becomes the active one, under drain;
 * who holds the backend does not notice.
 *
 * @module
 */

import { BlockBackend } from "../block/backend.ts";
import type { BlockLayer } from "../block/block_layer.ts";
import type { DirtyBitmaps } from "../block/dirty_bitmap.ts";
import { FileNode } from "../block/drivers/file.ts";
import { BlockError } from "../block/errors.ts";
import type { BlockGraph } from "../block/graph.ts";
import type { BlockNode } from "../block/node.ts";
import {
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
} from "../block/types.ts";
import type { ChainEntry, DiskConfig, DiskInfo } from "./messages.ts";
import type { StorageImages } from "./storage_images.ts";

/** How disks are opened. */
export interface StorageDisksOptions {
  /** Where their nodes and bitmaps go. */
  block: BlockLayer;
  /** Opens them. */
  images: StorageImages;
  /** A guest writes: else the backends only read. */
  hasGuest: boolean;
}

/** A disk with what is open of it. */
export class StorageDisk {
  /** Filters between the backend and the images are passed over. */
  get node(): BlockNode {
    return imageBelow(this.backend.node);
  }

  /** A disk that was opened. */
  constructor(
    /** As the worker was told. */
    readonly config: DiskConfig,
    /** What the guest writes through; a disk without one is read through it. */
    readonly backend: BlockBackend,
  ) {}

  /** As it stands. */
  describe(bitmaps: DirtyBitmaps): DiskInfo {
    const { node, config } = this;
    return {
      name: config.name,
      sizeBytes: node.sizeBytes,
      clusterSizeBytes: node.clusterSizeBytes,
      allocatedBytes: node.allocatedBytes,
      isReadOnly: config.isReadOnly,
      chain: [...chainOf(node)].map(describeImage),
      bitmaps: bitmaps.list(node).map((bitmap) => bitmap.info()),
    };
  }
}

/** All disks of a worker, in the order of its configuration. */
export class StorageDisks {
  /** In the order of the configuration. */
  readonly list: readonly StorageDisk[];
  readonly #graph: BlockGraph;

  private constructor(graph: BlockGraph, list: StorageDisk[]) {
    this.#graph = graph;
    this.list = list;
  }

  /** Opens all, or none: throws a BlockError. */
  static async open(configs: DiskConfig[], options: StorageDisksOptions): Promise<StorageDisks> {
    const disks: StorageDisk[] = [];
    try {
      for (const [index, config] of configs.entries()) {
        disks.push(await openDisk(config, { ...options, index }));
      }
    } catch (error) {
      await closeDisks(disks, options.block.graph).catch(() => {});
      throw error;
    }
    return new StorageDisks(options.block.graph, disks);
  }

  /** A disk by name. Throws a BlockError (ENOENT). */
  get(name: string): StorageDisk {
    const disk = this.list.find(({ config }) => config.name === name);
    if (disk === undefined) throw new BlockError("ENOENT", `there is no disk named ${name}`);
    return disk;
  }

  /** The disk whose chain has a node, or undefined. */
  ofNode(node: BlockNode): StorageDisk | undefined {
    return this.list.find((disk) => [...chainOf(disk.node)].includes(node));
  }

  /** Flushes and closes everything. */
  close(): Promise<void> {
    return closeDisks(this.list, this.#graph);
  }
}

/** The image below filters: what a disk is. */
export function imageBelow(node: BlockNode): BlockNode {
  for (const edge of node.children.values()) {
    if (edge.role === "filtered" && node.driver !== "raw") return imageBelow(edge.node);
  }
  return node;
}

/** An image and all that it is backed by. */
export function* chainOf(node: BlockNode): Generator<BlockNode> {
  for (let image: BlockNode | undefined = node; image !== undefined;) {
    yield image;
    const backing = image.children.get("backing");
    image = backing === undefined ? undefined : imageBelow(backing.node);
  }
}

function describeImage(node: BlockNode): ChainEntry {
  const file = node.children.get("file")?.node;
  return {
    nodeName: node.nodeName,
    driver: node.driver,
    path: file instanceof FileNode ? file.path : null,
    sizeBytes: node.sizeBytes,
  };
}

async function openDisk(
  config: DiskConfig,
  options: StorageDisksOptions & { index: number },
): Promise<StorageDisk> {
  const { block: { graph }, images, hasGuest, index } = options;
  const node = await images.open(config, `disk-${index}`);
  try {
    if (node.sizeBytes < config.sizeBytes) {
      const { path, sizeBytes } = config;
      throw new BlockError("EINVAL", `'${path}' has ${node.sizeBytes} bytes, not ${sizeBytes}`);
    }
    const isWriter = hasGuest && !config.isReadOnly;
    const backend = new BlockBackend(graph, {
      name: config.name,
      nodeName: node.nodeName,
      perm: PERM_CONSISTENT_READ | (isWriter ? PERM_WRITE : 0),
      shared: PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED | PERM_RESIZE |
        (isWriter ? 0 : PERM_WRITE),
    });
    return new StorageDisk(config, backend);
  } catch (error) {
    await removeChain(graph, node);
    throw error;
  }
}

/** Takes a node out that nobody uses any more, and then what only it used. */
export async function removeChain(graph: BlockGraph, node: BlockNode): Promise<void> {
  if (node.graph !== graph || node.parents.size > 0) return;
  const children = [...node.children.values()].map((edge) => edge.node);
  await graph.remove(node.nodeName);
  for (const child of children) await removeChain(graph, child);
}

/** Flushes first, so that a failed flush is reported; closes whatever happens. */
async function closeDisks(disks: readonly StorageDisk[], graph: BlockGraph): Promise<void> {
  const failures: unknown[] = [];
  const attempt = async (action: () => unknown): Promise<void> => {
    try {
      await action();
    } catch (error) {
      failures.push(error);
    }
  };
  for (const { backend, config } of disks) {
    if (!config.isReadOnly) await attempt(() => backend.flush());
    const { node } = backend;
    await attempt(() => backend.release());
    await attempt(() => removeChain(graph, node));
  }
  if (failures.length > 0) throw failures[0];
}
