/**
 * Makes images: a file, where it is one, and the format in it. A file that is there already is
 * emptied first, under the same lock as if it were written.
 *
 * @module
 */

import { FileNode } from "../drivers/file.ts";
import { fileExists } from "../drivers/file_open.ts";
import { BlockError } from "../errors.ts";
import { BlockGraph } from "../graph.ts";
import type { BlockNode } from "../node.ts";
import type { OpenContext } from "../open/context.ts";
import { absolutePath } from "../paths.ts";
import { openNode, parseBlockdev } from "../open/open_blockdev.ts";
import { fileNameOptions } from "../open/open_image.ts";
import { createQcow2 } from "../qcow2/create.ts";
import type { CreateFormat, CreateOptions } from "./create_options.ts";
import { allocateZeroes } from "./resize.ts";

/** Permission bits of a new file, as those of qemu-img. */
const NEW_FILE_MODE = 0o644;
const SECTOR_BYTES = 512;

/** What is made. */
export interface ImageToCreate {
  /** A path, or the address of an export that is there already. */
  filename: string;
  /** The format. */
  format: CreateFormat;
  /** Its options; the size must be set. */
  options: CreateOptions;
}

/**
 * Makes an image. Throws a BlockError; a file that was not there before is then not there after.
 * False: the image is in something that was there before.
 */
export async function createImage(image: ImageToCreate, context: OpenContext): Promise<boolean> {
  const { options } = image;
  if (options.sizeBytes === null) {
    throw new BlockError("EINVAL", "Image creation needs a size parameter");
  }
  const place = await openPlace(image.filename, context);
  try {
    let dataPlace: Place | null = null;
    try {
      if (options.dataFile !== null) {
        dataPlace = await openPlace(options.dataFile, context);
      }
      await format(image, place.node, dataPlace?.node ?? null);
      await dataPlace?.close();
    } catch (error) {
      await dataPlace?.abandon();
      throw error;
    }
    await place.close();
    return place.isNew;
  } catch (error) {
    await place.abandon();
    throw error;
  }
}

/** Something that an image can be put into. */
interface Place {
  node: BlockNode;
  /** The file was made for it. */
  isNew: boolean;
  close(): Promise<void>;
  /** Closes it; takes a new file away. */
  abandon(): Promise<void>;
}

async function openPlace(filename: string, context: OpenContext): Promise<Place> {
  const input = fileNameOptions(filename, context);
  const { filename: filePath } = input;
  if (input["driver"] === "file" && typeof filePath === "string") {
    return openFile(filePath, context);
  }
  const graph = new BlockGraph();
  // The image's bytes alone: what was in there does not matter.
  const node = await openNode(graph, parseBlockdev(input, context), context);
  const close = (): Promise<void> => graph.close();
  return { node, isNew: false, close, abandon: () => close().catch(() => {}) };
}

function openFile(filePath: string, context: OpenContext): Place {
  if (!context.mayOpen(absolutePath(filePath))) {
    throw new BlockError("EPERM", `Could not create '${filePath}': not in an allowed folder`);
  }
  const isNew = !fileExists(filePath);
  const base = { nodeName: "file", path: filePath, isReadOnly: false };
  let node: FileNode;
  try {
    node = isNew
      ? FileNode.open({ ...base, create: true, sizeBytes: 0, mode: NEW_FILE_MODE })
      : FileNode.open(base);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(error.code, error.message.replace(/^Could not open/, "Could not create"), {
      cause: error,
    });
  }
  const close = (): Promise<void> => node.close();
  return {
    node,
    isNew,
    close,
    async abandon() {
      await close().catch(() => {});
      if (isNew) Deno.removeSync(filePath);
    },
  };
}

async function format(
  { format, options }: ImageToCreate,
  file: BlockNode,
  dataFile: BlockNode | null,
): Promise<void> {
  const isFile = file.driver === "file";
  const sizeBytes = Math.ceil((options.sizeBytes ?? 0) / SECTOR_BYTES) * SECTOR_BYTES;
  if (format === "qcow2") return await formatQcow2(file, dataFile, { ...options, sizeBytes });
  if (options.preallocation === "metadata") {
    throw new BlockError("ENOTSUP", "Unsupported preallocation mode 'metadata'");
  }
  if (!isFile) {
    if (file.sizeBytes >= sizeBytes) return;
    throw new BlockError(
      "ENOTSUP",
      `The existing target has ${file.sizeBytes} bytes, the image needs ${sizeBytes}`,
    );
  }
  await file.resize(0);
  await file.resize(sizeBytes);
  if (options.preallocation !== "off") {
    await allocateZeroes(file, { offset: 0, length: sizeBytes }, options.preallocation);
  }
}

async function formatQcow2(
  file: BlockNode,
  dataFile: BlockNode | null,
  options: CreateOptions & { sizeBytes: number },
): Promise<void> {
  await createQcow2(file, { ...options, dataFileNode: dataFile });
}
