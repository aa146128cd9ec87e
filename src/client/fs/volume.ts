/**
 * A file system as people use it: paths, symbolic links, directories, files as streams, whole trees
 * as archives; over any of the drivers.
 *
 * @module
 */

import type { StreamProgress, WaitOptions } from "../disk.ts";
import { CachedSource, type CacheOptions } from "./cache.ts";
import { looksLikeExt4, openExt4 } from "./ext4.ts";
import { looksLikeFat, openFat, refuseExFat } from "./fat.ts";
import { looksLikeIso9660, openIso9660 } from "./iso9660.ts";
import type { FileInfo, FileNode, FileSystem } from "./node.ts";
import { type ByteSource, FileSystemError } from "./source.ts";
import { looksLikeSquashfs, openSquashfs } from "./squashfs.ts";

/** A name in a directory. */
export interface DirectoryEntry extends FileInfo {
  /** As it stands in the directory. */
  readonly name: string;
  /** From the root, beginning with a slash. */
  readonly path: string;
}

/** How a path is followed. */
export interface PathOptions extends WaitOptions {
  /** The last name of the path may be a symbolic link that is meant itself. */
  noFollow?: boolean;
}

/** What a file is streamed with. */
export interface FileStreamOptions extends WaitOptions {
  /** Where to start, 0 unless told otherwise. */
  offset?: number;
  /** How much, up to the end unless told otherwise. */
  length?: number;
  /** Called before each chunk is handed on. */
  onProgress?: (progress: StreamProgress) => void;
}

const MiB = 1024 * 1024;
const CHUNK_BYTES = MiB;
/** As in Linux: more symbolic links on the way are taken for a loop. */
const SYMLINKS_MAX = 40;
const DEPTH_MAX = 256;
/** Enough to recognise them all: ISO 9660's descriptors begin at 32 KiB. */
const PROBE_BYTES = 34 * 1024;

/**
 * Opens the file system that a disk or a partition holds. Throws a FileSystemError ("unsupported")
 * where none is recognised.
 */
export async function openVolume(
  source: ByteSource,
  options: WaitOptions & CacheOptions = {},
): Promise<Volume> {
  const cached = new CachedSource(source, options);
  const wait = options.signal === undefined ? {} : { signal: options.signal };
  const start = await cached.read(0, Math.min(PROBE_BYTES, cached.sizeBytes), wait);
  if (looksLikeExt4(start)) return new Volume(await openExt4(cached, wait));
  if (looksLikeSquashfs(start)) return new Volume(await openSquashfs(cached, wait));
  // A disk image that starts from both has an MBR before its ISO 9660.
  if (looksLikeIso9660(start)) return new Volume(await openIso9660(cached, wait));
  refuseExFat(start);
  if (looksLikeFat(start)) return new Volume(await openFat(cached, wait));
  throw new FileSystemError("unsupported", "no file system that is known here");
}

/** An open file system. */
export class Volume {
  /** "ext2", "ext3", "ext4", "fat12", "fat16", "fat32", "iso9660" or "squashfs". */
  readonly type: string;
  /** Its name, "" where it has none. */
  readonly label: string;
  readonly #root: FileNode;

  /** Over a driver's file system. */
  constructor(fileSystem: FileSystem) {
    this.type = fileSystem.type;
    this.label = fileSystem.label;
    this.#root = fileSystem.root;
  }

  /** What is at a path. */
  async stat(path: string, options: PathOptions = {}): Promise<FileInfo> {
    return infoOf((await this.#find(path, options)).node);
  }

  /** The names in a directory, in its own order. */
  async *list(path: string, options: WaitOptions = {}): AsyncGenerator<DirectoryEntry> {
    const found = await this.#find(path, options);
    if (found.node.kind !== "directory") {
      throw new FileSystemError("not-a-directory", `${path} is not a directory`);
    }
    const above = found.path === "/" ? "" : found.path;
    for await (const [name, node] of found.node.entries(options)) {
      yield { ...infoOf(node), name, path: `${above}/${name}` };
    }
  }

  /** Where a symbolic link leads, as it is written. */
  async readLink(path: string, options: WaitOptions = {}): Promise<string> {
    const { node } = await this.#find(path, { ...options, noFollow: true });
    if (node.kind !== "symlink") {
      throw new FileSystemError("not-found", `${path} is not a symbolic link`);
    }
    return await node.target(options);
  }

  /** Opens a file. */
  async open(path: string, options: WaitOptions = {}): Promise<VolumeFile> {
    const { node } = await this.#find(path, options);
    if (node.kind === "directory") {
      throw new FileSystemError("is-a-directory", `${path} is a directory`);
    }
    if (node.kind !== "file") throw new FileSystemError("not-found", `${path} is not a file`);
    return new VolumeFile(node);
  }

  /**
   * Everything below a path and itself, parents before children, symbolic links not followed. A
   * directory that can be reached twice is a loop that only a damaged file system has.
   */
  async *walk(path = "/", options: WaitOptions = {}): AsyncGenerator<WalkEntry> {
    const found = await this.#find(path, { ...options, noFollow: true });
    yield* walkFrom(found.path, found.node, { options, above: [] });
  }

  async #find(path: string, options: PathOptions): Promise<{ path: string; node: FileNode }> {
    const parts = path.split("/").filter((part) => part !== "" && part !== ".");
    const stack: { name: string; node: FileNode }[] = [];
    const top = () => stack.at(-1)?.node ?? this.#root;
    for (let links = 0; parts.length > 0;) {
      const name = parts.shift() ?? "";
      if (name === "..") {
        stack.pop();
        continue;
      }
      const node = await lookUp(top(), name, { path, options });
      if (node.kind !== "symlink" || (parts.length === 0 && options.noFollow === true)) {
        stack.push({ name, node });
        continue;
      }
      if (++links > SYMLINKS_MAX) {
        throw new FileSystemError("loop", `${path} leads through too many symbolic links`);
      }
      const target = await node.target(options);
      if (target.startsWith("/")) stack.length = 0;
      parts.unshift(...target.split("/").filter((part) => part !== "" && part !== "."));
    }
    return { path: `/${stack.map(({ name }) => name).join("/")}`, node: top() };
  }
}

/** What a walk comes by. */
export interface WalkEntry {
  /** From the root, beginning with a slash. */
  readonly path: string;
  /** The node itself: its facts and its content. */
  readonly node: FileNode;
}

/** A file of a volume. */
export class VolumeFile {
  /** What is known about it. */
  readonly info: FileInfo;
  readonly #node: FileNode;

  /** Over a node that is a file. */
  constructor(node: FileNode) {
    this.#node = node;
    this.info = infoOf(node);
  }

  /** Reads up to `length` bytes at `offset`; less at the file's end. */
  async read(
    offset: number,
    length: number,
    options: WaitOptions = {},
  ): Promise<Uint8Array<ArrayBuffer>> {
    const size = Math.max(0, Math.min(length, this.info.sizeBytes - offset));
    return await this.#node.read(offset, size, options);
  }

  /** Its content, or a part of it, read as it is consumed. */
  stream(options: FileStreamOptions = {}): ReadableStream<Uint8Array<ArrayBuffer>> {
    return streamOf(this.#node, options);
  }
}

/** The content of a file node as a stream. */
export function streamOf(
  node: FileNode,
  options: FileStreamOptions = {},
): ReadableStream<Uint8Array<ArrayBuffer>> {
  const { offset = 0, length = node.sizeBytes - offset, onProgress, signal } = options;
  const wait = signal === undefined ? {} : { signal };
  const end = Math.min(node.sizeBytes, offset + length);
  let at = offset;
  return new ReadableStream({
    async pull(controller) {
      if (at >= end) return controller.close();
      const bytes = await node.read(at, Math.min(CHUNK_BYTES, end - at), wait);
      at += bytes.length;
      const doneBytes = at - offset;
      onProgress?.({ doneBytes, totalBytes: end - offset, readBytes: doneBytes });
      controller.enqueue(bytes);
    },
  }, { highWaterMark: 0 });
}

async function lookUp(
  directory: FileNode,
  name: string,
  { path, options }: { path: string; options: WaitOptions },
): Promise<FileNode> {
  if (directory.kind !== "directory") {
    throw new FileSystemError("not-a-directory", `${path}: something before ${name} is a file`);
  }
  for await (const [each, node] of directory.entries(options)) {
    if (each === name) return node;
  }
  throw new FileSystemError("not-found", `${path}: there is no ${name}`);
}

async function* walkFrom(
  path: string,
  node: FileNode,
  { options, above }: { options: WaitOptions; above: number[] },
): AsyncGenerator<WalkEntry> {
  yield { path, node };
  if (node.kind !== "directory") return;
  if (above.includes(node.id) || above.length >= DEPTH_MAX) {
    throw new FileSystemError("corrupt", `${path} contains itself`);
  }
  const prefix = path === "/" ? "" : path;
  for await (const [name, child] of node.entries(options)) {
    yield* walkFrom(`${prefix}/${name}`, child, { options, above: [...above, node.id] });
  }
}

function infoOf(node: FileNode): FileInfo {
  const { kind, sizeBytes, mode, uid, gid, modifiedAt, linkCount, id, device } = node;
  return { kind, sizeBytes, mode, uid, gid, modifiedAt, linkCount, id, device };
}
