/**
 * The arguments of `ovis img convert`, checked in qemu-img's order and words.
 *
 * @module
 */

import {
  createFormatOf,
  isHelpWanted,
  type RawCreateOptions,
} from "../../block/image/create_options.ts";
import type { Arguments, CommandSyntax } from "./args.ts";
import { joinedOptions, withOldOptions } from "./create_arguments.ts";
import { ImgError } from "./errors.ts";
import type { ImgOutput } from "./run.ts";
import {
  type CacheMode,
  FORCE_SHARE_OPTION,
  IMAGE_OPTS_OPTION,
  type OpenOptions,
  parseCacheMode,
  PROGRESS_OPTION,
  QUIET_OPTION,
  warn,
} from "./session.ts";
import { parseNumber, parseSize, sizeOf } from "./sizes.ts";
import { parseSnapshotName, type SnapshotName } from "./snapshot_names.ts";

/** QEMU's MAX_BUF_SECTORS. */
const SPARSE_BYTES_MAX = 16 * 1024 * 1024;
/** QEMU's MAX_COROUTINES. */
const PARALLEL_MAX = 16;

/** The command's words. */
export const CONVERT_SYNTAX: CommandSyntax = {
  usage: "[-f SRC_FMT | --image-opts] [-T SRC_CACHE] [-l SNAPSHOT] [-U]\n" +
    "        [--bitmaps [--skip-broken-bitmaps]] [--salvage]\n" +
    "        [-O TGT_FMT] [-o TGT_OPTS | --target-image-opts] [-t TGT_CACHE] [-n\n" +
    "        [--target-is-zero]] [-B BACKING_FILENAME [-F BACKING_FMT]] [-c] [-C] [-S SIZE]\n" +
    "        [-r RATE] [-m NUM] [-W] [-p] [-q] SRC_FILENAME [SRC_FILENAME2 [...]] TGT_FILENAME",
  options: [
    QUIET_OPTION,
    PROGRESS_OPTION,
    { name: "source-format", short: "f", value: "SRC_FMT", help: "format of the sources" },
    IMAGE_OPTS_OPTION,
    {
      name: "source-snapshot",
      aliases: ["snapshot"],
      short: "l",
      value: "SNAPSHOT",
      help: "copy an internal snapshot: snapshot.id=ID,snapshot.name=NAME or ID_OR_NAME",
    },
    { name: "source-cache", short: "T", value: "CACHE", help: "cache mode of them (writeback)" },
    { name: "target-format", short: "O", value: "TGT_FMT", help: "format of the target (raw)" },
    { name: "target-image-opts", help: "TGT_FILENAME is KEY=VALUE,... (with -n)" },
    { name: "target-options", short: "o", value: "OPTS", help: "options of the target's format" },
    { name: "compress", short: "c", help: "write compressed clusters (qcow2)" },
    { name: "target-cache", short: "t", value: "CACHE", help: "cache mode of it (unsafe)" },
    { name: "backing", short: "B", value: "FILENAME", help: "the target's backing file" },
    { name: "backing-format", short: "F", value: "FMT", help: "the format of that" },
    { name: "no-create", short: "n", help: "the target is there already" },
    { name: "target-is-zero", help: "and reads as zeroes (with -n)" },
    {
      name: "sparse-size",
      short: "S",
      value: "SIZE",
      help: "so many zeroes in a row are not written (4k); 0: everything is",
    },
    { name: "bitmaps", help: "copy the persistent bitmaps, too" },
    { name: "skip-broken-bitmaps", help: "but for inconsistent ones" },
    FORCE_SHARE_OPTION,
    { name: "rate", short: "r", value: "RATE", help: "bytes a second at most" },
    { name: "parallel", short: "m", value: "NUM", help: "requests in flight (8)" },
    { name: "copy-range-offloading", short: "C", help: "copy within the kernel where possible" },
    { name: "salvage", help: "zeroes for what can't be read" },
    { name: "oob-writes", short: "W", help: "write in any order" },
  ],
};

/** What is to be done. */
export interface ConvertSettings {
  /** Names of the images to copy, one behind the other. */
  sources: readonly string[];
  /** How they are opened. */
  sourceOptions: OpenOptions;
  /** The internal snapshot that is copied instead of the disk. */
  snapshot: SnapshotName | null;
  /** Name of the image to write. */
  target: string;
  /** Its format. */
  targetFormat: string;
  /** Options with which it is made. */
  targetOptions: RawCreateOptions;
  /** Its name is KEY=VALUE,... */
  isTargetImageOpts: boolean;
  /** How it is written. */
  targetCache: CacheMode;
  /** It has a backing file. */
  hasBacking: boolean;
  /** It is not made. */
  isTargetThere: boolean;
  /** It reads as zeroes. */
  isTargetZero: boolean;
  /** Clusters are compressed. */
  isCompressed: boolean;
  /** Zeroes of this length are not written; 0: everything is. */
  sparseBytes: number;
  /** Bytes a second at most, 0: no limit. */
  rateBytes: number;
  /** Chunks in flight. */
  parallel: number;
  /** In any order. */
  isUnordered: boolean;
  /** Within the kernel where possible. */
  usesCopyRange: boolean;
  /** What can't be read becomes zeroes. */
  isSalvaging: boolean;
  /** Persistent bitmaps come along. */
  copiesBitmaps: boolean;
  /** But for inconsistent ones. */
  skipsBrokenBitmaps: boolean;
}

/** Checks the arguments; "help" where the options of a format are asked for. */
export function convertSettings(args: Arguments, output: ImgOutput): ConvertSettings | "help" {
  const options = joinedOptions(args.all("target-options"));
  if (isHelpWanted(options)) return "help";
  const sources = args.operands.slice(0, -1);
  const target = args.operands.at(-1);
  checkCombinations(args, output);
  if (target === undefined || sources.length === 0) {
    throw new ImgError("Must specify image file name");
  }
  if (args.has("source-snapshot") && sources.length > 1) {
    throw new ImgError("No support for concatenating multiple snapshot");
  }
  const targetFormat = args.get("target-format") ?? "raw";
  const isTargetThere = args.has("no-create");
  const targetOptions = isTargetThere
    ? options
    : withOldOptions(createFormatOf(targetFormat), options, {
      backing: args.get("backing"),
      backingFormat: args.get("backing-format"),
    });
  const hasBacking = args.has("backing") || targetOptions.has("backing_file");
  checkBacking({ hasBacking, sources, isTargetThere, targetOptions, args });
  const sourceCache = args.get("source-cache") ?? "writeback";
  const targetCache = args.get("target-cache") ?? "unsafe";
  const snapshot = args.get("source-snapshot");
  return {
    sources,
    sourceOptions: {
      format: args.get("source-format"),
      isImageOpts: args.has("image-opts"),
      forceShare: args.has("force-share"),
      cache: parseCacheMode(sourceCache, `Invalid source cache option: ${sourceCache}`),
    },
    snapshot: snapshot === undefined ? null : parseSnapshotName(snapshot),
    target,
    targetFormat,
    targetOptions,
    isTargetImageOpts: args.has("target-image-opts"),
    targetCache: parseCacheMode(targetCache),
    hasBacking,
    isTargetThere,
    isTargetZero: args.has("target-is-zero"),
    isCompressed: args.has("compress"),
    sparseBytes: sparseBytesOf(args),
    rateBytes: rateOf(args),
    parallel: parallelOf(args),
    isUnordered: args.has("oob-writes"),
    usesCopyRange: args.has("copy-range-offloading"),
    isSalvaging: args.has("salvage"),
    copiesBitmaps: args.has("bitmaps"),
    skipsBrokenBitmaps: args.has("skip-broken-bitmaps"),
  };
}

function checkCombinations(args: Arguments, output: ImgOutput): void {
  const refuse = (condition: boolean, message: string): void => {
    if (condition) throw new ImgError(message);
  };
  const copiesRange = args.has("copy-range-offloading");
  refuse(
    args.has("image-opts") && args.has("source-format"),
    "--image-opts and --format are mutually exclusive",
  );
  refuse(
    args.has("skip-broken-bitmaps") && !args.has("bitmaps"),
    "Use of --skip-broken-bitmaps requires --bitmaps",
  );
  refuse(
    copiesRange && args.has("compress"),
    "Cannot enable copy offloading when -c is used",
  );
  refuse(copiesRange && args.has("sparse-size"), "Cannot enable copy offloading when -S is used");
  refuse(copiesRange && args.has("salvage"), "Cannot use copy offloading in salvaging mode");
  refuse(
    args.has("target-image-opts") && !args.has("no-create"),
    "--target-image-opts requires use of -n flag",
  );
  refuse(
    args.has("target-image-opts") && args.has("target-format"),
    "--image-opts and --format are mutually exclusive",
  );
  refuse(
    args.has("target-is-zero") && !args.has("no-create"),
    "--target-is-zero requires use of -n flag",
  );
  refuse(
    args.has("bitmaps") && args.operands.length > 2,
    "Copying bitmaps only possible with single source",
  );
  if (args.has("no-create") && args.has("target-options")) {
    warn(output, "-o has no effect when skipping image creation");
  }
}

function checkBacking(given: {
  hasBacking: boolean;
  sources: readonly string[];
  isTargetThere: boolean;
  targetOptions: RawCreateOptions;
  args: Arguments;
}): void {
  const { hasBacking, sources, isTargetThere, targetOptions, args } = given;
  if (!hasBacking) return;
  if (sources.length > 1) {
    throw new ImgError(
      "Having a backing file for the target makes no sense when concatenating multiple input images",
    );
  }
  if (args.has("target-is-zero")) {
    throw new ImgError("Cannot use --target-is-zero when the destination image has a backing file");
  }
  if (!isTargetThere && !targetOptions.has("backing_fmt")) {
    throw new ImgError("Use of backing file requires explicit backing format");
  }
}

function sparseBytesOf(args: Arguments): number {
  const text = args.get("sparse-size");
  // Data that moves within the kernel is not looked at.
  if (text === undefined) return args.has("copy-range-offloading") ? 1 : 4096;
  const value = sizeOf(text);
  if (value === null) {
    throw new ImgError(`Invalid buffer size for sparse output specified: '${text}'.`);
  }
  if (value < 0n || value > BigInt(SPARSE_BYTES_MAX) || value % 512n !== 0n) {
    throw new ImgError(
      "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to " +
        `${SPARSE_BYTES_MAX}. Select 0 to disable sparse detection (fully allocates output).`,
    );
  }
  return Number(value);
}

function rateOf(args: Arguments): number {
  const text = args.get("rate");
  return text === undefined ? 0 : parseSize(text, { name: "rate limit" });
}

function parallelOf(args: Arguments): number {
  const text = args.get("parallel");
  if (text === undefined) return 8;
  return parseNumber(text, { name: "number of coroutines", min: 1, max: PARALLEL_MAX });
}
