/**
 * Opens images by file names, as the tools take them: a path, `json:{...}` with blockdev-add's
 * arguments, `nbd://host/export` and its like; with the format that is named, or the one that the
 * file's start says.
 *
 * Who knows only the content of a file can't trust it: a guest may write any header into its raw
 * disk. So a probed raw image says that it was probed (`OpenedImage.isProbed`).
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import type { BlockGraph } from "../graph.ts";
import { IoVector } from "../io_vector.ts";
import type { BlockNode } from "../node.ts";
import { absolutePath, baseName, folderName, isAbsolutePath, joinPath } from "../paths.ts";
import type { Blockdev } from "./blockdev.ts";
import type { HeaderFile, OpenContext } from "./context.ts";
import { isJsonObject, type JsonObject } from "./json.ts";
import { parseJson } from "./json_parser.ts";
import { openNode, parseBlockdev } from "./open_blockdev.ts";
import { inputError } from "./qapi.ts";

/** Bytes at a file's start that probing looks at. */
const PROBE_BYTES = 2048;
/** "LUKS" and two bytes (LUKS1 On-Disk Format Specification, 2.1; LUKS2 has the same). */
const LUKS_MAGIC = [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe];

/** How an image is opened. */
export interface OpenImageOptions {
  /** The format's driver; probed unless given. */
  format?: string;
  /** For reading alone; false unless given. */
  isReadOnly?: boolean;
  /** The image's backing chain is opened too, unless this is false. */
  withBacking?: boolean;
  /** Others may write to it meanwhile. */
  forceShare?: boolean;
  /** The name of the image's node; invented unless given. */
  nodeName?: string;
  /** "unmap" unless given: of the image's node. */
  discard?: "ignore" | "unmap";
  /** "off" unless given. */
  detectZeroes?: "off" | "on" | "unmap";
  /** cache.no-flush: flushes do nothing. */
  ignoresFlush?: boolean;
  /** The host's cache is passed by; false unless given. */
  isDirect?: boolean;
  /** More arguments for the format's driver, in blockdev-add's names. */
  formatOptions?: JsonObject;
}

/** An image that was opened. */
export interface OpenedImage {
  /** The format's node. */
  readonly node: BlockNode;
  /** The format's name. */
  readonly format: string;
  /** Nobody named the format: it was read from the file's start. */
  readonly isProbed: boolean;
}

/** Opens an image. Throws a BlockError and leaves nothing behind where that fails. */
export async function openImage(
  graph: BlockGraph,
  filename: string,
  options: OpenImageOptions,
  context: OpenContext,
): Promise<OpenedImage> {
  const common: JsonObject = { "read-only": options.isReadOnly ?? false };
  if (options.forceShare) common["force-share"] = true;
  const { ignoresFlush = false, isDirect = false } = options;
  if (ignoresFlush || isDirect) common.cache = { "no-flush": ignoresFlush, direct: isDirect };
  const input = fileNameOptions(filename, context);
  const hasFormat = options.format !== undefined;
  // json: with a format at its top is the whole image.
  if (!hasFormat && typeof input.driver === "string" && isFormat(input.driver, context)) {
    const node = await openNode(
      graph,
      parseBlockdev({ ...common, ...own(options), ...input }, context),
      context,
    );
    return { node, format: input.driver, isProbed: false };
  }
  const format = options.format ??
    await probeFormat(parseBlockdev({ ...common, ...input }, context), context);
  const image: JsonObject = { ...common, ...own(options), driver: format, file: input };
  if (options.withBacking === false && supportsBacking(format, context)) image.backing = null;
  const node = await openNode(graph, parseBlockdev(image, context), context);
  return { node, format, isProbed: !hasFormat };
}

function own(options: OpenImageOptions): JsonObject {
  return {
    ...(options.nodeName === undefined ? {} : { "node-name": options.nodeName }),
    discard: options.discard ?? "unmap",
    "detect-zeroes": options.detectZeroes ?? "off",
    ...options.formatOptions,
  };
}

/** Formats and filters stand on other nodes: their arguments have a child. */
function isFormat(driver: string, context: OpenContext): boolean {
  return Object.hasOwn(fieldsOf(driver, context), "file");
}

function supportsBacking(driver: string, context: OpenContext): boolean {
  return Object.hasOwn(fieldsOf(driver, context), "backing");
}

function fieldsOf(driver: string, { drivers }: OpenContext) {
  return drivers.byName.get(driver)?.fields(drivers.types) ?? {};
}

/** blockdev-add's arguments of what a file name names. Throws a BlockError (EINVAL). */
export function fileNameOptions(filename: string, { drivers }: OpenContext): JsonObject {
  if (filename === "") throw inputError("A file name must not be empty");
  if (filename.startsWith("json:")) {
    const object = parseJson(filename.slice("json:".length));
    if (!isJsonObject(object)) throw inputError("Invalid JSON object given");
    return nestDottedKeys(object);
  }
  const protocol = /^([A-Za-z][A-Za-z0-9+.-]*):/.exec(filename)?.[1];
  if (protocol === undefined) return { driver: "file", filename };
  switch (protocol) {
    case "file":
      return { driver: "file", filename: filename.slice("file:".length) };
    case "null-co":
      return { driver: "null-co" };
  }
  for (const { optionsOfFileName } of drivers.byName.values()) {
    const options = optionsOfFileName?.(filename);
    if (options !== undefined) return options;
  }
  throw inputError(`Unknown protocol '${protocol}'`);
}

/** `{"file.driver": "file"}`, as json: names may have it, is `{"file": {"driver": "file"}}`. */
function nestDottedKeys(object: JsonObject): JsonObject {
  const nested: JsonObject = Object.create(null);
  for (const [name, value] of Object.entries(object)) {
    const fragments = name.split(".");
    const last = fragments.pop() ?? "";
    let at = nested;
    for (const fragment of fragments) {
      const child = at[fragment] ??= Object.create(null) as JsonObject;
      if (!isJsonObject(child)) throw inputError(`Parameters '${fragment}.*' used inconsistently`);
      at = child;
    }
    at[last] = isJsonObject(value) ? nestDottedKeys(value) : value;
  }
  return nested;
}

/** The format of what a node holds, by its start. */
export async function probeNode(node: BlockNode, context: OpenContext): Promise<string> {
  const start = new Uint8Array(Math.min(PROBE_BYTES, node.sizeBytes));
  await node.read(0, IoVector.of(start));
  if (LUKS_MAGIC.every((byte, index) => start[index] === byte)) {
    throw new BlockError(
      "ENOTSUP",
      "LUKS images are not supported: as format raw they are read as they are, encrypted",
    );
  }
  let best = "raw";
  let bestScore = 0;
  for (const driver of context.drivers.byName.values()) {
    const score = driver.probe?.(start) ?? 0;
    if (score > bestScore) [best, bestScore] = [driver.name, score];
  }
  return best;
}

/** Opens the file alone, for reading and beside others, to look at its start. */
async function probeFormat(file: Blockdev, context: OpenContext): Promise<string> {
  const { BlockGraph } = await import("../graph.ts");
  const graph = new BlockGraph();
  try {
    const base = {
      ...file.base,
      "node-name": "probed",
      "read-only": true,
      "auto-read-only": false,
      "force-share": true,
    };
    return await probeNode(await openNode(graph, { ...file, base }, context), context);
  } finally {
    await graph.close();
  }
}

/** What to open for a file that an image's header names. */
export async function headerFileBlockdev(
  { fileName, format, image }: HeaderFile,
  context: OpenContext,
): Promise<Blockdev> {
  const input = fileNameOptions(resolveBeside(fileName, image), context);
  if (typeof input.driver === "string" && isFormat(input.driver, context)) {
    return parseBlockdev(input, context);
  }
  const driver = format ?? await probeFormat(parseBlockdev(input, context), context);
  return parseBlockdev({ driver, file: input }, context);
}

/** What to open for a file that holds data of an image and no format of its own. */
export function headerDataBlockdev(
  { fileName, image }: HeaderFile,
  context: OpenContext,
): Blockdev {
  return parseBlockdev(fileNameOptions(resolveBeside(fileName, image), context), context);
}

/** A relative name is meant from the folder of the file that holds the image. */
export function resolveBeside(fileName: string, image: BlockNode): string {
  if (fileName.startsWith("json:") || /^[A-Za-z][A-Za-z0-9+.-]*:/.test(fileName)) return fileName;
  if (isAbsolutePath(fileName)) return fileName;
  const imagePath = pathOf(image);
  if (imagePath === null) {
    throw inputError(`'${fileName}' is meant from an image's folder, which isn't known`);
  }
  return joinPath(folderName(imagePath), fileName);
}

/** The path, without symbolic links, of the file that a node is going to be of; null without one. */
export function blockdevPath({ tag, variant }: Blockdev): string | null {
  if (tag === "file" && typeof variant.filename === "string") return realPath(variant.filename);
  const { file } = variant;
  return typeof file === "object" && file !== null ? blockdevPath(file as Blockdev) : null;
}

/** A path without symbolic links; of a file that does not exist without those of its folder. */
export function realPath(filename: string): string {
  if (filename.includes("\0")) throw inputError("A path can't hold a NUL");
  try {
    return Deno.realPathSync(filename);
  } catch {
    // Whatever is wrong is said by the opening: here only its place counts.
    const absolute = absolutePath(filename);
    try {
      return joinPath(Deno.realPathSync(folderName(absolute)), baseName(absolute));
    } catch {
      return absolute;
    }
  }
}

/** The path of the file at the bottom of a node, null where there is none. */
export function pathOf(node: BlockNode): string | null {
  if (node.fileName !== null) return node.driver === "file" ? node.fileName : null;
  for (const edge of node.children.values()) {
    if (edge.role === "filtered" || edge.name === "file") return pathOf(edge.node);
  }
  return null;
}
