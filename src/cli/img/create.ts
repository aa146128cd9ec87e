/**
 * `ovis img create`: makes an image.
 *
 * @module
 */

import { BlockError } from "../../block/errors.ts";
import { sectorBytes } from "../../block/image/chain.ts";
import { createImage } from "../../block/image/create.ts";
import {
  createFormatOf,
  type CreateOptions,
  formatOptions,
  isHelpWanted,
  parseCreateOptions,
  type RawCreateOptions,
} from "../../block/image/create_options.ts";
import { resolveBeside } from "../../block/image/names.ts";
import { joinedOptions, optionHelp, withOldOptions } from "./create_arguments.ts";
import { ImgError, UsageError } from "./errors.ts";
import type { ImgCommand, ImgOutput } from "./run.ts";
import { errorMessage, ImgSession, QUIET_OPTION } from "./session.ts";
import { parseSize } from "./sizes.ts";

/** See the module's head. */
export const command: ImgCommand = {
  syntax: {
    usage: "[-f FMT] [-o FMT_OPTS] [-b BACKING_FILENAME [-F BACKING_FMT]] [-u] [-q]\n" +
      "        FILENAME [SIZE[bkKMGTPE]]",
    options: [
      QUIET_OPTION,
      { name: "format", short: "f", value: "FMT", help: "format of the image (raw)" },
      {
        name: "options",
        short: "o",
        value: "FMT_OPTS",
        help: "options of the format ('-o help' lists them)",
      },
      {
        name: "backing",
        short: "b",
        value: "BACKING_FILENAME",
        help: "what the image does not hold is read from there",
      },
      { name: "backing-format", short: "F", value: "BACKING_FMT", help: "the format of that" },
      { name: "backing-unsafe", short: "u", help: "don't open the backing file" },
    ],
  },
  run: async (args, output) => {
    const [filename, sizeText, ...more] = args.operands;
    const formatName = args.get("format") ?? "raw";
    const given = joinedOptions(args.all("options"));
    if (isHelpWanted(given)) {
      output.print(optionHelp(formatName, filename !== undefined));
      return 0;
    }
    if (filename === undefined) throw new UsageError("Expecting image file name");
    const sizeBytes = sizeText === undefined ? null : parseSize(sizeText, { name: "image size" });
    if (more.length > 0) throw new UsageError(`Unexpected argument: ${more[0]}`);
    try {
      const format = createFormatOf(formatName);
      const options = withOldOptions(format, given, {
        backing: args.get("backing"),
        backingFormat: args.get("backing-format"),
      });
      if (options.has("size") && sizeBytes !== null) {
        throw new BlockError("EINVAL", "The image size must be specified only once");
      }
      await createOne({ filename, options, sizeBytes, isUnsafe: args.has("backing-unsafe") }, {
        format,
        output: args.has("quiet") ? null : output,
      });
    } catch (error) {
      if (!(error instanceof BlockError || error instanceof ImgError)) throw error;
      throw new ImgError(`${filename}: ${errorMessage(error)}`, 1, { cause: error });
    }
    return 0;
  },
};

interface Wanted {
  filename: string;
  options: RawCreateOptions;
  sizeBytes: number | null;
  isUnsafe: boolean;
}

function createOne(
  { filename, options, sizeBytes, isUnsafe }: Wanted,
  { format, output }: { format: "raw" | "qcow2"; output: ImgOutput | null },
): Promise<void> {
  return ImgSession.run(async (session) => {
    const parsed = parseCreateOptions(format, options);
    const checked: CreateOptions = { ...parsed, sizeBytes: sizeBytes ?? parsed.sizeBytes };
    checkBackingNames(filename, checked);
    if (checked.backingFile !== null && !isUnsafe) {
      checked.sizeBytes = await sizeOfBacking(session, filename, checked);
    }
    if (checked.backingFile !== null && checked.backingFormat === null) {
      throw new BlockError("EINVAL", "Backing file specified without backing format");
    }
    if (checked.sizeBytes === null) {
      throw new BlockError("EINVAL", "Image creation needs a size parameter");
    }
    const shown = new Map([...options, ["size", String(checked.sizeBytes)]]);
    output?.print(`Formatting '${filename}', fmt=${format} ${formatOptions(format, shown)}\n`);
    await createImage({ filename, format, options: checked }, session.context);
  });
}

function checkBackingNames(filename: string, { backingFile, backingFormat }: CreateOptions): void {
  if (backingFile === filename) {
    throw new BlockError(
      "EINVAL",
      "Error: Trying to create an image with the same filename as the backing file",
    );
  }
  if (backingFile === null && backingFormat !== null) {
    throw new BlockError("EINVAL", "Backing format cannot be used without backing file");
  }
}

/** Opens the backing file: it must be there, and gives the size where none was said. */
async function sizeOfBacking(
  session: ImgSession,
  filename: string,
  options: CreateOptions,
): Promise<number> {
  const name = resolveBeside(options.backingFile ?? "", filename);
  let node;
  try {
    const image = await session.open(name, {
      format: options.backingFormat ?? undefined,
      withBacking: false,
      forceShare: true,
    });
    if (options.backingFormat === null) {
      throw new ImgError(
        `Backing file specified without backing format\nDetected format of ${image.format}.`,
      );
    }
    node = image.node;
  } catch (error) {
    if (!(error instanceof ImgError) || error.cause === undefined) throw error;
    throw new ImgError(`${errorMessage(error.cause)}\nCould not open backing image.`, 1, {
      cause: error,
    });
  }
  return options.sizeBytes ?? sectorBytes(node);
}
