/**
 * Images that a worker opens and makes. It opens what its configuration names and what that is
 * backed by, in the folders that it may use and nowhere else; nothing is probed, but where an
 * image's header does not say the format of what it is backed by.
 *
 * @module
 */

import type { BlockLayer } from "../block/block_layer.ts";
import { FileNode } from "../block/drivers/file.ts";
import { fileExists } from "../block/drivers/file_open.ts";
import { BlockError } from "../block/errors.ts";
import { BlockGraph } from "../block/graph.ts";
import type { BlockNode } from "../block/node.ts";
import type { DriverTable, OpenContext } from "../block/open/context.ts";
import { createDriverTable } from "../block/open/drivers.ts";
import { openImage } from "../block/open/open_image.ts";
import { baseName, folderName } from "../block/paths.ts";
import type { DiskConfig, NewImage, StorageConfig } from "./messages.ts";

/** Opens and makes images of a worker. */
export class StorageImages {
  readonly #block: BlockLayer;
  readonly #folders: readonly string[];
  readonly #files: readonly string[];
  readonly #drivers: DriverTable = createDriverTable();
  readonly #opened: OpenContext["opened"] = new WeakMap();

  /** In the folders that `config` names. */
  constructor(block: BlockLayer, config: StorageConfig) {
    this.#block = block;
    const { writableFolders, readableFolders, scratchDirectory, disks } = config;
    this.#folders = [...writableFolders, ...readableFolders, scratchDirectory].flatMap(withReal);
    this.#files = disks.flatMap(({ path }) => withReal(path));
  }

  /** A disk's image with its chain, part of the graph. Throws a BlockError. */
  async open(config: DiskConfig, nodeName: string): Promise<BlockNode> {
    const { path, format, isReadOnly } = config;
    const options = { format, isReadOnly, nodeName };
    const { node } = await openImage(this.#block.graph, path, options, this.context);
    return node;
  }

  /** A new image, part of the graph. Its backing file is named in it, not opened. */
  async make(image: NewImage): Promise<BlockNode> {
    await this.create(image);
    try {
      const options = { format: image.format, withBacking: false };
      const { node } = await openImage(this.#block.graph, image.path, options, this.context);
      return node;
    } catch (error) {
      Deno.removeSync(image.path);
      throw error;
    }
  }

  /** A new image's file, on stable storage. Throws a BlockError and leaves nothing. */
  async create(image: NewImage): Promise<void> {
    const { path, format, sizeBytes } = image;
    if (!this.mayOpen(path)) throw new BlockError("EPERM", `'${path}' may not be made here`);
    const graph = new BlockGraph();
    const isRaw = format === "raw";
    const file = graph.add(
      FileNode.open({
        nodeName: "file",
        path,
        isReadOnly: false,
        create: true,
        sizeBytes: isRaw ? sizeBytes : 0,
      }),
    );
    try {
      if (!isRaw) {
        const { createQcow2 } = await import("../block/qcow2/create.ts");
        await createQcow2(file, qcow2Options(image));
      }
      await file.flush();
      await graph.close();
      syncFolder(folderName(path));
    } catch (error) {
      await graph.close().catch(() => {});
      Deno.removeSync(path);
      throw error;
    }
  }

  /** Removes what `make` made, if it is there. Its node must be closed. */
  discard(path: string): void {
    if (fileExists(path)) Deno.removeSync(path);
  }

  /** The path policy. */
  mayOpen(path: string): boolean {
    return this.#files.includes(path) ||
      this.#folders.some((folder) => path.startsWith(`${folder}/`));
  }

  /** For whoever opens nodes by QEMU's arguments: the monitor. */
  get context(): OpenContext {
    const { kernels, bitmaps } = this.#block;
    return {
      drivers: this.#drivers,
      mayOpen: (path) => this.mayOpen(path),
      kernels,
      bitmaps,
      opened: this.#opened,
      throttleGroup: () => undefined,
    };
  }
}

function qcow2Options({ path, sizeBytes, clusterSizeBytes, backing }: NewImage) {
  return {
    sizeBytes,
    ...(clusterSizeBytes !== null && { clusterSize: clusterSizeBytes }),
    ...(backing !== null && {
      backingFile: nameBeside(path, backing.path),
      backingFormat: backing.format,
    }),
  };
}

/** A backing file in the same folder is named without it, so that the folder may move. */
function nameBeside(path: string, other: string): string {
  return folderName(path) === folderName(other) ? baseName(other) : other;
}

/** The name of a new file is on stable storage. */
function syncFolder(path: string): void {
  using folder = Deno.openSync(path);
  folder.syncSync();
}

/** Where symbolic links lead counts as well. */
function withReal(path: string): string[] {
  try {
    return [path, Deno.realPathSync(path)];
  } catch {
    return [path];
  }
}
