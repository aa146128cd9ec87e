/**
 * `ovis img measure`: how large the file of an image would be.
 *
 * @module
 */

import { BlockError } from "../../block/errors.ts";
import { sectorBytes } from "../../block/image/chain.ts";
import {
  type CreateFormat,
  createFormatOf,
  parseCreateOptions,
  type RawCreateOptions,
} from "../../block/image/create_options.ts";
import {
  type ImageMeasure,
  type MeasuredBitmap,
  measureQcow2,
  measureRaw,
} from "../../block/image/measure.ts";
import type { BlockNode } from "../../block/node.ts";
import type { Arguments } from "./args.ts";
import { joinedOptions } from "./create_arguments.ts";
import { ImgError } from "./errors.ts";
import { prettyJson } from "./json.ts";
import type { ImgCommand, ImgOutput } from "./run.ts";
import {
  FORCE_SHARE_OPTION,
  FORMAT_OPTION,
  IMAGE_OPTS_OPTION,
  ImgSession,
  openOptionsOf,
  OUTPUT_OPTION,
  wantsJson,
} from "./session.ts";
import { parseSize } from "./sizes.ts";
import { parseSnapshotName } from "./snapshot_names.ts";
import { openSnapshot } from "./snapshots.ts";

/** See the module's head. */
export const command: ImgCommand = {
  syntax: {
    usage: "[-f FMT | --image-opts] [-o OPTIONS] [-O OUTPUT_FMT] [--output human|json]\n" +
      "        [-l SNAPSHOT] [-U] (--size SIZE | FILENAME)",
    options: [
      { name: "target-format", short: "O", value: "FMT", help: "format of the new image (raw)" },
      { name: "size", short: "s", value: "SIZE", help: "of the disk" },
      { name: "options", short: "o", value: "OPTIONS", help: "options of the new image" },
      FORMAT_OPTION,
      IMAGE_OPTS_OPTION,
      { name: "snapshot", short: "l", value: "SNAPSHOT", help: "of an internal snapshot" },
      OUTPUT_OPTION,
      FORCE_SHARE_OPTION,
    ],
  },
  run: async (args, output) => {
    const isJson = wantsJson(args);
    const format = createFormatOf(args.get("target-format") ?? "raw");
    const sizeText = args.get("size");
    const sizeBytes = sizeText === undefined ? null : parseSize(sizeText, { name: "image size" });
    checkOperands(args, sizeBytes);
    const options = joinedOptions(args.all("options"));
    checkOptions(format, options, output);
    const measured = sizeBytes !== null
      ? await measure(sizeBytes, null, { format, options })
      : await measureImage(args, { format, options });
    print(measured, isJson, output);
    return 0;
  },
};

function checkOperands(args: Arguments, sizeBytes: number | null): void {
  const { operands } = args;
  if (operands.length > 1) throw new ImgError("At most one filename argument is allowed.");
  if (
    operands.length === 0 && ["image-opts", "format", "snapshot"].some((name) => args.has(name))
  ) {
    throw new ImgError("--image-opts, -f, and -l require a filename argument.");
  }
  if (operands.length === 0 && sizeBytes === null) {
    throw new ImgError("Either --size N or one filename must be specified.");
  }
  if (operands.length > 0 && sizeBytes !== null) {
    throw new ImgError("--size N cannot be used together with a filename.");
  }
}

interface Made {
  format: CreateFormat;
  options: RawCreateOptions;
}

/** Options that are wrong get two lines, as from qemu-img. */
function checkOptions(format: CreateFormat, options: RawCreateOptions, output: ImgOutput): void {
  try {
    parseCreateOptions(format, options);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    output.printError(`ovis img: ${error.message}\n`);
    throw new ImgError(`Invalid options for file format '${format}'`);
  }
}

function measureImage(args: Arguments, made: Made): Promise<ImageMeasure> {
  return ImgSession.run(async (session) => {
    const image = await session.open(args.operands[0] ?? "", openOptionsOf(args));
    const snapshot = args.get("snapshot");
    const node = snapshot === undefined
      ? image.node
      : await openSnapshot(image, parseSnapshotName(snapshot));
    const stored = image.node.bitmapStore?.list() ?? null;
    return await measure(node, stored, made);
  });
}

async function measure(
  source: BlockNode | number,
  bitmaps: readonly MeasuredBitmap[] | null,
  { format, options: given }: Made,
): Promise<ImageMeasure> {
  if (format === "raw") {
    return measureRaw(
      typeof source === "number" ? Math.ceil(source / 512) * 512 : sectorBytes(source),
    );
  }
  const options = parseCreateOptions(format, given);
  return await measureQcow2(source, bitmaps, {
    clusterBytes: options.clusterBytes,
    refcountBits: options.refcountBits,
    hasExtendedL2: options.hasExtendedL2,
    version: options.version,
    hasBackingFile: options.backingFile !== null,
    isPreallocated: options.preallocation === "falloc" || options.preallocation === "full",
  });
}

function print(measured: ImageMeasure, isJson: boolean, output: ImgOutput): void {
  const { required, fullyAllocated, bitmaps } = measured;
  if (isJson) {
    output.print(prettyJson({
      ...(bitmaps === null ? {} : { bitmaps }),
      required,
      "fully-allocated": fullyAllocated,
    }));
    return;
  }
  output.print(`required size: ${required}\nfully allocated size: ${fullyAllocated}\n`);
  if (bitmaps !== null) output.print(`bitmaps size: ${bitmaps}\n`);
}
