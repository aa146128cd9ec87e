/**
 * A tree of a volume as a tar archive, made while it is downloaded.
 *
 * @module
 */

import { createTarPacker, type TarHeader, type TarPackController } from "modern-tar";
import type { WaitOptions } from "../disk.ts";
import type { FileNode } from "./node.ts";
import { streamOf, type Volume } from "./volume.ts";

/** How far an archive has come. */
export interface TarProgress {
  /** Files, directories and links that are in it. */
  entryCount: number;
  /** Bytes of files that are in it. */
  fileBytes: number;
  /** Devices, pipes and sockets that were left out: this archive has no place for them. */
  skippedCount: number;
}

/** What an archive is made with. */
export interface TarOptions extends WaitOptions {
  /** Called after each entry. */
  onProgress?: (progress: TarProgress) => void;
}

const PERMISSIONS = 0o7777;

/**
 * The tree at `path` as an archive (POSIX.1-2001 pax), with names relative to `path`, owners by
 * number, symbolic links as they are, and one copy of a file with several names.
 */
export function tarOf(
  volume: Volume,
  path = "/",
  options: TarOptions = {},
): ReadableStream<Uint8Array<ArrayBuffer>> {
  const { readable, controller } = createTarPacker();
  fill(controller, volume, path, options).catch((error) => controller.error(error));
  return readable;
}

async function fill(
  controller: TarPackController,
  volume: Volume,
  path: string,
  options: TarOptions,
): Promise<void> {
  const { onProgress, ...wait } = options;
  const progress: TarProgress = { entryCount: 0, fileBytes: 0, skippedCount: 0 };
  /** First names of files that have several, by id. */
  const names = new Map<number, string>();
  let base: string | null = null;
  for await (const { path: found, node } of volume.walk(path, wait)) {
    wait.signal?.throwIfAborted();
    base ??= found === "/" ? "/" : found.slice(0, found.lastIndexOf("/") + 1);
    const name = found.slice(base.length);
    // The root itself has no name.
    if (name === "") continue;
    const header = await headerOf(node, name, { names, wait });
    if (header === null) progress.skippedCount++;
    else {
      const body = controller.add(header);
      if (header.type === "file") await streamOf(node, wait).pipeTo(body);
      else await body.close();
      progress.entryCount++;
      progress.fileBytes += header.size;
    }
    onProgress?.({ ...progress });
  }
  controller.finalize();
}

async function headerOf(
  node: FileNode,
  name: string,
  { names, wait }: { names: Map<number, string>; wait: WaitOptions },
): Promise<TarHeader | null> {
  const common = {
    name,
    size: 0,
    mode: node.mode & PERMISSIONS,
    uid: node.uid,
    gid: node.gid,
    mtime: node.modifiedAt,
  };
  switch (node.kind) {
    case "directory":
      return { ...common, type: "directory", name: `${name}/` };
    case "symlink":
      return { ...common, type: "symlink", linkname: await node.target(wait) };
    case "file": {
      const first = node.linkCount > 1 ? names.get(node.id) : undefined;
      if (first !== undefined) return { ...common, type: "link", linkname: first };
      if (node.linkCount > 1) names.set(node.id, name);
      return { ...common, type: "file", size: node.sizeBytes };
    }
    default:
      return null;
  }
}
