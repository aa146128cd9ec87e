/**
 * Options of new images as `-o NAME=VALUE,...` has them: names, values and messages are QEMU's.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import type { Preallocation } from "./resize.ts";

/** Formats that images are made in. */
export type CreateFormat = "raw" | "qcow2";

/** Options by QEMU's names, values as they were written, in the order they were given. */
export type RawCreateOptions = ReadonlyMap<string, string>;

/** Options of a new image, checked. */
export interface CreateOptions {
  /** The disk's size; null where nothing was said. */
  sizeBytes: number | null;
  /** How much of it is allocated at once. */
  preallocation: Preallocation;
  /** As the image is to name it; null for none. */
  backingFile: string | null;
  /** The format of that, as the image is to name it. */
  backingFormat: string | null;
  /** Bytes of a cluster. This and what follows is for qcow2 only. */
  clusterBytes: number;
  /** Version of the format. */
  version: 2 | 3;
  /** Of compressed clusters. */
  compressionType: "zlib" | "zstd";
  /** The file where data is to be, if not in the image. */
  dataFile: string | null;
  /** That is to be a raw image of the disk at any time. */
  isDataFileRaw: boolean;
  /** With subclusters. */
  hasExtendedL2: boolean;
  /** Refcounts may be written late. */
  hasLazyRefcounts: boolean;
  /** Bits of a refcount. */
  refcountBits: number;
}

/** How an option is described. */
export interface OptionDescription {
  /** QEMU's name. */
  name: string;
  /** What its value is. */
  type: "str" | "size" | "bool (on/off)" | "num";
  /** One line. */
  help: string;
  /** What holds where it is not given, where that is shown. */
  fallback?: string;
  /** An option of the file, not of the format. */
  isOfFile?: boolean;
}

const SIZE: OptionDescription = { name: "size", type: "size", help: "Virtual disk size" };

/** In the order in which they are shown when an image is made. */
const OPTIONS: Readonly<Record<CreateFormat, readonly OptionDescription[]>> = {
  raw: [SIZE, {
    name: "preallocation",
    type: "str",
    help: "Preallocation mode (allowed values: off, falloc, full)",
    isOfFile: true,
  }],
  qcow2: [
    { name: "cluster_size", type: "size", help: "qcow2 cluster size", fallback: "65536" },
    { name: "extended_l2", type: "bool (on/off)", help: "Extended L2 tables", fallback: "off" },
    {
      name: "preallocation",
      type: "str",
      help: "Preallocation mode (allowed values: off, metadata, falloc, full)",
    },
    {
      name: "compression_type",
      type: "str",
      help: "Compression method used for image cluster compression",
      fallback: "zlib",
    },
    SIZE,
    { name: "data_file", type: "str", help: "File name of an external data file" },
    {
      name: "data_file_raw",
      type: "bool (on/off)",
      help: "The external data file must stay valid as a raw image",
    },
    { name: "backing_file", type: "str", help: "File name of a base image" },
    { name: "backing_fmt", type: "str", help: "Image format of the base image" },
    { name: "compat", type: "str", help: "Compatibility level (v2 [0.10] or v3 [1.1])" },
    {
      name: "lazy_refcounts",
      type: "bool (on/off)",
      help: "Postpone refcount updates",
      fallback: "off",
    },
    {
      name: "refcount_bits",
      type: "num",
      help: "Width of a reference count entry in bits",
      fallback: "16",
    },
  ],
};

/** The format of that name. Throws a BlockError where none is made by it. */
export function createFormatOf(name: string): CreateFormat {
  if (name === "raw" || name === "qcow2") return name;
  throw new BlockError("EINVAL", `Unknown file format '${name}'`);
}

/** What can be said with -o, by name. `withFile`: also what the file can be told. */
export function describeOptions(format: CreateFormat, withFile: boolean): OptionDescription[] {
  return OPTIONS[format].filter(({ isOfFile }) => withFile || !isOfFile)
    .toSorted((a, b) => a.name < b.name ? -1 : 1);
}

/** Splits `NAME=VALUE,...`; a doubled comma stands for one. Throws a BlockError. */
export function parseOptionList(text: string): Map<string, string> {
  const options = new Map<string, string>();
  if (text === "" || text.startsWith(",") || /(^|[^,])(,,)*,$/.test(text)) {
    throw new BlockError("EINVAL", `Invalid option list: ${text}`);
  }
  for (const part of text.replaceAll(",,", "\0").split(",")) {
    const equals = part.indexOf("=");
    const name = equals < 0 ? part : part.slice(0, equals);
    const value = equals < 0 ? "on" : part.slice(equals + 1);
    options.set(name.replaceAll("\0", ","), value.replaceAll("\0", ","));
  }
  return options;
}

/** Whether an option list asks for help. */
export function isHelpWanted(options: RawCreateOptions): boolean {
  return options.has("help") || options.has("?");
}

/** The options as they are shown when an image is made: given ones and defaults. */
export function formatOptions(format: CreateFormat, options: RawCreateOptions): string {
  const shown: string[] = [];
  for (const { name, fallback, type } of OPTIONS[format]) {
    const value = options.get(name) ?? fallback;
    if (value === undefined) continue;
    const isSize = type === "size" && options.has(name);
    shown.push(`${name}=${isSize ? parseSizeOption(name, value) : quote(value)}`);
  }
  return shown.join(" ");
}

/** A value as it can be written with -o. */
function quote(value: string): string {
  return value.replaceAll(",", ",,");
}

/** Checks the options of an image. Throws a BlockError (EINVAL). */
export function parseCreateOptions(format: CreateFormat, options: RawCreateOptions): CreateOptions {
  const known = new Set(OPTIONS[format].map(({ name }) => name));
  for (const name of options.keys()) {
    if (!known.has(name)) {
      throw new BlockError(
        "EINVAL",
        name === "backing_file"
          ? `Backing file not supported for file format '${format}'`
          : name === "backing_fmt"
          ? `Backing format not supported for file format '${format}'`
          : `Invalid parameter '${name}'`,
      );
    }
  }
  const size = options.get("size");
  return {
    sizeBytes: size === undefined ? null : parseSizeOption("size", size),
    preallocation: oneOf(options, "preallocation", ["off", "metadata", "falloc", "full"]),
    backingFile: options.get("backing_file") || null,
    backingFormat: options.get("backing_fmt") ?? null,
    clusterBytes: parseSizeOption("cluster_size", options.get("cluster_size") ?? "65536"),
    version: versionOf(options),
    compressionType: oneOf(options, "compression_type", ["zlib", "zstd"]),
    dataFile: options.get("data_file") ?? null,
    isDataFileRaw: isOn(options, "data_file_raw"),
    hasExtendedL2: isOn(options, "extended_l2"),
    hasLazyRefcounts: isOn(options, "lazy_refcounts"),
    refcountBits: numberOf(options, "refcount_bits", 16),
  };
}

function versionOf(options: RawCreateOptions): 2 | 3 {
  const compat = oneOf(options, "compat", ["1.1", "0.10", "v2", "v3"]);
  return compat === "0.10" || compat === "v2" ? 2 : 3;
}

/** The first of `values` is the default. */
function oneOf<V extends string>(
  options: RawCreateOptions,
  name: string,
  values: readonly [V, ...V[]],
): V {
  const value = options.get(name) ?? values[0];
  const found = values.find((candidate) => candidate === value);
  if (found !== undefined) return found;
  throw new BlockError("EINVAL", `Parameter '${name}' does not accept value '${value}'`);
}

function isOn(options: RawCreateOptions, name: string): boolean {
  const value = options.get(name) ?? "off";
  if (["on", "yes", "true", "y"].includes(value)) return true;
  if (["off", "no", "false", "n"].includes(value)) return false;
  throw new BlockError("EINVAL", `Parameter '${name}' expects 'on' or 'off'`);
}

function numberOf(options: RawCreateOptions, name: string, fallback: number): number {
  const value = options.get(name);
  if (value === undefined) return fallback;
  if (/^\d+$/.test(value)) return Number(value);
  throw new BlockError("EINVAL", `Parameter '${name}' expects a number`);
}

const UNITS = "BKMGTPE";

/** A size with an optional suffix. */
function parseSizeOption(name: string, text: string): number {
  const match = /^(\d+)(?:\.(\d+))?([bkmgtpe])?$/i.exec(text);
  const unit = 1024 ** Math.max(UNITS.indexOf((match?.[3] ?? "B").toUpperCase()), 0);
  const value = match === null ? NaN : Number(`${match[1]}.${match[2] ?? "0"}`) * unit;
  if (Number.isNaN(value) || value >= 2 ** 64 || (unit === 1 && match?.[2] !== undefined)) {
    throw new BlockError(
      "EINVAL",
      `Parameter '${name}' expects a non-negative number below 2^64\n` +
        "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n" +
        "and exabytes, respectively.",
    );
  }
  return Math.round(value);
}
