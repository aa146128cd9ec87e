/**
 * Images: what machines boot from. A record in the store, and up to three files in the image's
 * folder.
 *
 * An upload is written under a temporary name and takes its place by a rename, so that a file is
 * there whole or not at all; a machine that boots meanwhile gets the old one or the new one.
 *
 * @module
 */

import { createHash, randomBytes } from "node:crypto";
import { join } from "node:path";
import { limits } from "../limits.ts";
import type { BootConfig } from "../machine/messages.ts";
import { type DataFolder, ignoreMissing, syncPath } from "./data_folder.ts";
import { ServiceError } from "./errors.ts";
import type { ImageFileRecord, ImagePart, ImageRecord, Store } from "./store.ts";

/** An image that belongs to the program: always there, can't be changed. */
export interface BuiltInImage {
  /** Can't be taken by an uploaded image. */
  name: string;
  /** The kernel's command line. */
  cmdline: string;
  /** Its only file, read and hashed once at the start of the service. */
  kernelPath: string;
}

/** An image as clients see it. */
export interface ImageInfo extends ImageRecord {
  /** Belongs to the program: takes no uploads and can't be removed. */
  isBuiltIn: boolean;
}

/** All images of the service. */
export class Images {
  readonly #folder: DataFolder;
  readonly #store: Store;
  readonly #builtIn: ReadonlyMap<string, BuiltInImage & { sizeBytes: number; sha256: string }>;

  private constructor(
    folder: DataFolder,
    store: Store,
    builtIn: ReadonlyMap<string, BuiltInImage & { sizeBytes: number; sha256: string }>,
  ) {
    this.#folder = folder;
    this.#store = store;
    this.#builtIn = builtIn;
  }

  /** The images of a folder and those of the program. */
  static async open(
    folder: DataFolder,
    store: Store,
    builtIn: readonly BuiltInImage[],
  ): Promise<Images> {
    const known = new Map();
    for (const image of builtIn) {
      const bytes = await Deno.readFile(image.kernelPath);
      const sha256 = createHash("sha256").update(bytes).digest("hex");
      known.set(image.name, { ...image, sizeBytes: bytes.length, sha256 });
    }
    return new Images(folder, store, known);
  }

  /** An image; throws imageNotFound. */
  get(name: string): ImageInfo {
    const image = this.find(name);
    if (image === undefined) {
      throw new ServiceError("imageNotFound", `there is no image named ${name}`);
    }
    return image;
  }

  /** An image, or undefined. */
  find(name: string): ImageInfo | undefined {
    const builtIn = this.#builtIn.get(name);
    if (builtIn !== undefined) return describeBuiltIn(builtIn);
    const record = this.#store.images.get(name);
    return record && { ...record, isBuiltIn: false };
  }

  /** Up to `limit` images whose names come after `after`, by name. */
  list(options: { after: string; limit: number }): ImageInfo[] {
    const own = this.#store.images.list(options).map((record) => ({ ...record, isBuiltIn: false }));
    const builtIn = [...this.#builtIn.values()].filter(({ name }) => name > options.after)
      .map(describeBuiltIn);
    return [...own, ...builtIn].sort((a, b) => a.name < b.name ? -1 : 1).slice(0, options.limit);
  }

  /** A new image without files. */
  create(name: string, options: { cmdline: string }): ImageInfo {
    const record: ImageRecord = {
      name,
      cmdline: options.cmdline,
      createdAt: new Date().toISOString(),
      files: {},
    };
    if (this.#builtIn.has(name) || !this.#store.images.insert(name, record)) {
      throw new ServiceError("nameTaken", `there is an image named ${name} already`);
    }
    return { ...record, isBuiltIn: false };
  }

  /**
   * Puts a file in its place; whoever breaks off, `source` failing included, leaves nothing behind.
   */
  async putFile(
    name: string,
    part: ImagePart,
    source: ReadableStream<Uint8Array>,
  ): Promise<ImageFileRecord> {
    this.#requireOwn(name);
    const directory = this.#folder.imageDirectory(name);
    Deno.mkdirSync(directory, { recursive: true, mode: 0o700 });
    const temporary = join(directory, `.${part}.${randomBytes(6).toString("hex")}.tmp`);
    try {
      const file = await writeStream(temporary, source);
      // No await from here on: the image can't be deleted between the check and the change.
      const record = this.#requireOwn(name);
      Deno.renameSync(temporary, join(directory, part));
      syncPath(directory);
      const { isBuiltIn: _, ...stored } = record;
      this.#store.images.put(name, { ...stored, files: { ...record.files, [part]: file } });
      return file;
    } catch (error) {
      await Deno.remove(temporary).catch(ignoreMissing);
      this.#requireOwn(name); // it may have been deleted meanwhile, with its folder
      throw error;
    }
  }

  /** Removes an image; `users`: machines that refer to it, which forbid that. */
  async remove(name: string, options: { users: readonly string[] }): Promise<void> {
    this.#requireOwn(name);
    if (options.users.length > 0) {
      const [first, ...others] = options.users;
      throw new ServiceError(
        "imageInUse",
        `image ${name} is used by machine ${first}` +
          (others.length > 0 ? ` and ${others.length} more` : ""),
      );
    }
    // Out of sight under a name that the next start cleans up, then the record, then the bytes.
    const doomed = join(
      this.#folder.imagesDirectory,
      `.deleted-${randomBytes(6).toString("hex")}`,
    );
    try {
      Deno.renameSync(this.#folder.imageDirectory(name), doomed);
    } catch (error) {
      ignoreMissing(error);
    }
    this.#store.images.remove(name);
    await Deno.remove(doomed, { recursive: true }).catch(ignoreMissing);
  }

  /** The files to boot from; throws imageIncomplete if there is nothing to run. */
  bootConfig(name: string): BootConfig {
    const builtIn = this.#builtIn.get(name);
    if (builtIn !== undefined) {
      const { kernelPath, cmdline } = builtIn;
      return { kernel: kernelPath, initrd: null, firmware: null, cmdline };
    }
    const { files, cmdline } = this.get(name);
    if (files.kernel === undefined && files.firmware === undefined) {
      throw new ServiceError(
        "imageIncomplete",
        `image ${name} has neither a kernel nor a firmware; upload one with ` +
          `PUT /v1/images/${name}/files/kernel`,
      );
    }
    const pathOf = (part: ImagePart) =>
      files[part] === undefined ? null : join(this.#folder.imageDirectory(name), part);
    return {
      kernel: pathOf("kernel"),
      initrd: pathOf("initrd"),
      firmware: pathOf("firmware"),
      cmdline,
    };
  }

  #requireOwn(name: string): ImageInfo {
    if (this.#builtIn.has(name)) {
      throw new ServiceError("imageBuiltIn", `image ${name} is built in and can't be changed`);
    }
    return this.get(name);
  }
}

function describeBuiltIn(
  image: BuiltInImage & { sizeBytes: number; sha256: string },
): ImageInfo {
  return {
    name: image.name,
    cmdline: image.cmdline,
    createdAt: new Date(0).toISOString(),
    files: { kernel: { sizeBytes: image.sizeBytes, sha256: image.sha256 } },
    isBuiltIn: true,
  };
}

async function writeStream(
  path: string,
  source: ReadableStream<Uint8Array>,
): Promise<ImageFileRecord> {
  using file = await Deno.open(path, { write: true, createNew: true, mode: 0o600 });
  const hash = createHash("sha256");
  let sizeBytes = 0;
  for await (const chunk of explainBreaks(source)) {
    sizeBytes += chunk.length;
    if (sizeBytes > limits.bootFileBytes) {
      throw new ServiceError("tooLarge", `the file is larger than ${limits.bootFileBytes} bytes`);
    }
    hash.update(chunk);
    for (let done = 0; done < chunk.length;) done += await file.write(chunk.subarray(done));
  }
  if (sizeBytes === 0) throw new ServiceError("outOfRange", "the file is empty");
  await file.sync();
  return { sizeBytes, sha256: hash.digest("hex") };
}

/** A source that fails is a client that went away. */
async function* explainBreaks(source: ReadableStream<Uint8Array>): AsyncIterable<Uint8Array> {
  try {
    yield* source;
  } catch (error) {
    throw new ServiceError("bodyBroken", "the upload broke off", { cause: error });
  }
}
