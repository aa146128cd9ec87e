/**
 * `ovis img resize`: gives a disk another size.
 *
 * @module
 */

import { type Preallocation, resizeImage } from "../../block/image/resize.ts";
import { sectorBytes } from "../../block/image/chain.ts";
import type { Arguments } from "./args.ts";
import { ImgError, UsageError } from "./errors.ts";
import type { ImgCommand } from "./run.ts";
import {
  errorMessage,
  FORMAT_OPTION,
  IMAGE_OPTS_OPTION,
  ImgSession,
  openOptionsOf,
  QUIET_OPTION,
  warn,
  warnProbed,
} from "./session.ts";
import { parseSize } from "./sizes.ts";

const PREALLOCATIONS: readonly Preallocation[] = ["off", "metadata", "falloc", "full"];

/** See the module's head. */
export const command: ImgCommand = {
  syntax: {
    usage: "[-f FMT | --image-opts] [--preallocation PREALLOC] [--shrink] [-q]\n" +
      "        FILENAME [+-]SIZE[bkKMGTPE]",
    options: [
      QUIET_OPTION,
      FORMAT_OPTION,
      IMAGE_OPTS_OPTION,
      { name: "shrink", help: "allow the new size to be smaller" },
      {
        name: "preallocation",
        value: "PREALLOC",
        help: "off, metadata, falloc or full: how what is new is allocated",
      },
    ],
    hasNegativeOperands: true,
  },
  run: (args, output) => {
    const { filename, sizeText } = operandsOf(args);
    const preallocation = preallocationOf(args);
    const options = openOptionsOf(args);
    return ImgSession.run(async (session) => {
      const image = await session.open(filename, { ...options, isWritable: true });
      warnProbed(output, image);
      const current = sectorBytes(image.node);
      const sizeBytes = newSize(sizeText, current);
      if (sizeBytes <= 0) throw new ImgError("New image size must be positive");
      if (sizeBytes <= current && preallocation !== "off") {
        throw new ImgError("Preallocation can only be used for growing images");
      }
      if (sizeBytes < current && !args.has("shrink")) {
        output.printError("ovis img: Use the --shrink option to perform a shrink operation.\n");
        warn(
          output,
          "Shrinking an image will delete all data beyond the shrunken image's end. Before " +
            "performing such an operation, make sure there is no important data there.",
        );
        return 1;
      }
      await resizeImage(session.graph, image.node, { sizeBytes, preallocation })
        .catch((error) => {
          throw new ImgError(errorMessage(error), 1, { cause: error });
        });
      if (!args.has("quiet")) output.print("Image resized.\n");
      return 0;
    });
  },
};

function operandsOf(args: Arguments) {
  const [filename, sizeText, ...more] = args.operands;
  if (more.length > 0) throw new UsageError("Extra argument(s) in command line");
  if (filename === undefined || sizeText === undefined) {
    throw new UsageError("Expecting image file name and size");
  }
  return { filename, sizeText };
}

function preallocationOf(args: Arguments): Preallocation {
  const name = args.get("preallocation") ?? "off";
  const found = PREALLOCATIONS.find((candidate) => candidate === name);
  if (found === undefined) throw new ImgError(`Invalid preallocation mode '${name}'`);
  return found;
}

/** "+SIZE" and "-SIZE" are meant from the size that it has. */
function newSize(text: string, current: number): number {
  const sign = /^[+-]/.exec(text)?.[0] ?? "";
  const amount = parseSize(text.slice(sign.length), { name: "image size" });
  const sizeBytes = sign === "+" ? current + amount : sign === "-" ? current - amount : amount;
  return Math.ceil(sizeBytes / 512) * 512;
}
