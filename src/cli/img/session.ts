/**
 * What the commands of `ovis img` share: images opened as their options say, in a block layer that
 * lives as long as the command, and the texts of what goes wrong.
 *
 * @module
 */

import { DirtyBitmaps } from "../../block/dirty_bitmap.ts";
import { LibC } from "../../block/drivers/libc.ts";
import { BlockError, errorText, toBlockError } from "../../block/errors.ts";
import { BlockGraph } from "../../block/graph.ts";
import { unfiltered } from "../../block/image/chain.ts";
import { CompressorPool } from "../../block/image/compressor_pool.ts";
import type { BlockNode } from "../../block/node.ts";
import type { OpenContext } from "../../block/open/context.ts";
import { createDriverTable } from "../../block/open/drivers.ts";
import { openNode, parseBlockdev } from "../../block/open/open_blockdev.ts";
import { isJsonObject, type JsonObject } from "../../block/open/json.ts";
import { fileNameOptions, openImage, probeNode } from "../../block/open/open_image.ts";
import { parseKeyval } from "../../block/open/keyval.ts";
import { createNbdDriver } from "../../nbd/nbd_driver.ts";
import { compileKernels, Kernels } from "../../wasm/kernels.ts";
import type { Arguments, OptionSpec } from "./args.ts";
import { ImgError, UsageError } from "./errors.ts";
import type { ImgOutput } from "./run.ts";

/** -f of commands that read one image. */
export const FORMAT_OPTION: OptionSpec = {
  name: "format",
  short: "f",
  value: "FMT",
  help: "specify the image's format explicitly",
};
/** --image-opts. */
export const IMAGE_OPTS_OPTION: OptionSpec = {
  name: "image-opts",
  help: "FILENAME is a complete image specification (KEY=VALUE,...) instead of a file name",
};
/** -U. */
export const FORCE_SHARE_OPTION: OptionSpec = {
  name: "force-share",
  short: "U",
  help: "open the image also while another process writes to it",
};
/** -q. */
export const QUIET_OPTION: OptionSpec = { name: "quiet", short: "q", help: "quiet operation" };
/** -p. */
export const PROGRESS_OPTION: OptionSpec = {
  name: "progress",
  short: "p",
  help: "show progress",
};
/** --output. */
export const OUTPUT_OPTION: OptionSpec = {
  name: "output",
  value: "human|json",
  help: "how to print (default human)",
};

/** How one image is opened. */
export interface OpenOptions {
  /** Probed unless given. */
  format?: string | undefined;
  /** The name is `KEY=VALUE,...`. */
  isImageOpts?: boolean;
  /** For writing too; false unless given. */
  isWritable?: boolean;
  /** -U */
  forceShare?: boolean;
  /** As -t and -T have it; "writeback" unless given. */
  cache?: CacheMode;
  /** With the backing chain; true unless given. */
  withBacking?: boolean;
  /** "unmap" unless given. */
  discard?: "ignore" | "unmap";
}

/** An image of a command. */
export interface Image {
  /** As it was given. */
  name: string;
  /** Its node. */
  node: BlockNode;
  /** Its format. */
  format: string;
  /** Nobody named the format. */
  isProbed: boolean;
}

/** What a cache mode comes down to. */
export interface CacheMode {
  /** The host's cache is passed by. */
  isDirect: boolean;
  /** Flushes do nothing. */
  ignoresFlush: boolean;
  /** Every write is on stable storage when it is answered. */
  isWritethrough: boolean;
}

const CACHE_MODES: Readonly<Record<string, CacheMode>> = {
  none: { isDirect: true, ignoresFlush: false, isWritethrough: false },
  off: { isDirect: true, ignoresFlush: false, isWritethrough: false },
  writeback: { isDirect: false, ignoresFlush: false, isWritethrough: false },
  unsafe: { isDirect: false, ignoresFlush: true, isWritethrough: false },
  writethrough: { isDirect: false, ignoresFlush: false, isWritethrough: true },
  directsync: { isDirect: true, ignoresFlush: false, isWritethrough: true },
};

/** A cache mode by QEMU's name. Throws an ImgError. */
export function parseCacheMode(name: string, message = `Invalid cache option: ${name}`): CacheMode {
  const mode = Object.hasOwn(CACHE_MODES, name) ? CACHE_MODES[name] : undefined;
  if (mode === undefined) throw new ImgError(message);
  return mode;
}

/** The block nodes of one command. */
export class ImgSession {
  /** The nodes. */
  readonly graph = new BlockGraph();
  /** Their dirty bitmaps. */
  readonly bitmaps: DirtyBitmaps;
  /** For openings. */
  readonly context: OpenContext;

  readonly #compressors = new CompressorPool();
  /** Held open, or every file that is the only one would load it again: 4 ms each time. */
  readonly #libc = LibC.open();

  private constructor(kernels: Kernels) {
    this.bitmaps = new DirtyBitmaps(kernels);
    this.context = {
      drivers: createDriverTable([createNbdDriver()]),
      // Whoever runs the command may open what its user may.
      mayOpen: () => true,
      kernels,
      bitmaps: this.bitmaps,
      throttleGroup: () => undefined,
      opened: new WeakMap(),
      compressor: (type) => this.#compressors.compressor(type),
    };
  }

  /**
   * Runs a command with a block layer of its own, and closes that. An error of the command is
   * thrown on, and not covered up by one of the closing.
   */
  static async run<T>(action: (session: ImgSession) => Promise<T>): Promise<T> {
    const kernels = new Kernels(await compileKernels());
    const session = new ImgSession(kernels);
    let result: T;
    try {
      result = await action(session);
    } catch (error) {
      await session.#close().catch(() => {});
      throw error;
    }
    try {
      await session.#close();
    } catch (error) {
      throw new ImgError(`Error while closing the image: ${errorMessage(error)}`);
    }
    return result;
  }

  /** Opens an image. Throws an ImgError that names it. */
  async open(name: string, options: OpenOptions = {}): Promise<Image> {
    const { format, isImageOpts, isWritable = false, forceShare = false } = options;
    if (isWritable && forceShare) {
      throw new ImgError(
        `Could not open '${name}': force-share=on can only be used with read-only images`,
      );
    }
    try {
      if (isImageOpts) return await this.#openOptions(name, options);
      if (format !== undefined && !this.context.drivers.byName.has(format)) {
        throw new ImgError(`Could not open '${name}': Unknown driver '${format}'`);
      }
      return await this.#openFile(name, { filename: name, options });
    } catch (error) {
      if (error instanceof ImgError) throw error;
      throw new ImgError(`Could not open '${name}': ${errorMessage(error)}`, 1, { cause: error });
    }
  }

  /** Opens the file of an image alone, for who reads its metadata by himself. */
  async openFile(name: string, options: OpenOptions): Promise<{ file: BlockNode; format: string }> {
    const { isImageOpts = false, isWritable = false, forceShare = false } = options;
    if (isWritable && forceShare) {
      throw new ImgError(
        `Could not open '${name}': force-share=on can only be used with read-only images`,
      );
    }
    try {
      const input = isImageOpts ? parseKeyval(name, null) : fileNameOptions(name, this.context);
      const { file: inner, driver } = input;
      const file: JsonObject = isJsonObject(inner) ? inner : input;
      file["read-only"] = isImageOpts ? (isWritable ? "off" : "on") : !isWritable;
      if (forceShare) file["force-share"] = isImageOpts ? "on" : true;
      const blockdev = parseBlockdev(file, this.context, { isKeyval: isImageOpts });
      const node = await openNode(this.graph, blockdev, this.context);
      const named = options.format ??
        (inner !== undefined && typeof driver === "string" ? driver : null);
      return { file: node, format: named ?? await probeNode(node, this.context) };
    } catch (error) {
      throw new ImgError(`Could not open '${name}': ${errorMessage(error)}`, 1, { cause: error });
    }
  }

  /** Takes an image out again. What it holds is written. */
  async close(image: Image): Promise<void> {
    await this.graph.remove(image.node.nodeName);
  }

  async #close(): Promise<void> {
    try {
      await this.graph.close();
    } finally {
      if (this.#libc instanceof LibC) this.#libc.close();
      this.#compressors.close();
    }
  }

  async #openFile(
    name: string,
    { filename, options, formatOptions = {} }: {
      filename: string;
      options: OpenOptions;
      formatOptions?: JsonObject;
    },
  ): Promise<Image> {
    const { format } = options;
    const opened = await openImage(this.graph, filename, {
      isReadOnly: !(options.isWritable ?? false),
      forceShare: options.forceShare ?? false,
      discard: options.discard ?? "unmap",
      withBacking: options.withBacking ?? true,
      ignoresFlush: options.cache?.ignoresFlush ?? false,
      isDirect: options.cache?.isDirect ?? false,
      formatOptions,
      ...(format === undefined ? {} : { format }),
    }, this.context);
    return { name, node: opened.node, format: opened.format, isProbed: opened.isProbed };
  }

  async #openOptions(text: string, options: OpenOptions): Promise<Image> {
    const input = parseKeyval(text, null);
    if (input["driver"] === undefined) {
      const { file, ...formatOptions } = input;
      if (file === undefined) throw new BlockError("EINVAL", "Must specify either driver or file");
      const filename = `json:${JSON.stringify(typeof file === "string" ? { driver: file } : file)}`;
      return await this.#openFile(text, { filename, formatOptions, options });
    }
    input["read-only"] ??= options.isWritable ? "off" : "on";
    if (options.forceShare) input["force-share"] = "on";
    const { ignoresFlush = false, isDirect = false } = options.cache ?? {};
    if (ignoresFlush || isDirect) {
      input["cache"] ??= { "no-flush": onOff(ignoresFlush), direct: onOff(isDirect) };
    }
    const blockdev = parseBlockdev(input, this.context, { isKeyval: true });
    const node = await openNode(this.graph, blockdev, this.context);
    return { name: text, node, format: unfiltered(node).driver, isProbed: false };
  }
}

function onOff(isOn: boolean): "on" | "off" {
  return isOn ? "on" : "off";
}

/** The options with which a command opens its image. */
export function openOptionsOf(args: Arguments): OpenOptions {
  if (args.has("image-opts") && args.has("format")) {
    throw new ImgError("--image-opts and --format are mutually exclusive");
  }
  return {
    format: args.get("format"),
    isImageOpts: args.has("image-opts"),
    forceShare: args.has("force-share"),
  };
}

/** The only operand of a command. */
export function onlyOperand(args: Arguments): string {
  const [filename, ...more] = args.operands;
  if (filename === undefined || more.length > 0) {
    throw new UsageError("Expecting one image file name");
  }
  return filename;
}

/** Whether --output=json was given. */
export function wantsJson(args: Arguments): boolean {
  const format = args.get("output") ?? "human";
  if (format !== "human" && format !== "json") {
    throw new UsageError(`--output expects 'human' or 'json' not '${format}'`);
  }
  return format === "json";
}

/** A warning, on the standard error. */
export function warn(output: ImgOutput, message: string): void {
  output.printError(`ovis img: warning: ${message}\n`);
}

/** Says that an image that is going to be written was taken for raw. */
export function warnProbed(output: ImgOutput, image: Image): void {
  if (!image.isProbed || image.format !== "raw") return;
  output.printError(
    `WARNING: Image format was not specified for '${image.name}' and probing guessed raw.\n` +
      "         Automatically detecting the format is dangerous for raw images.\n" +
      "         Specify the 'raw' format explicitly.\n",
  );
}

/** What went wrong, for people. */
export function errorMessage(error: unknown): string {
  const block = toBlockError(error);
  // The runtime's own texts name the call: the C library's text of the error is enough.
  return block.message.replace(/\bE[A-Z]+: [^,']+, \w+.*$/, () => errorText(block.code))
    .replace(/ \(os error \d+\)$/, "");
}

/** The C library's text for an error. */
export function errorCodeText(error: unknown): string {
  return errorText(toBlockError(error).code);
}
