/**
 * `ovis img dd`: copies a part of a disk into a new image. `count` blocks from the start of the
 * input, as far as they are not skipped: qemu-img's rule, not dd's.
 *
 * @module
 */

import { RawNode } from "../../block/drivers/raw.ts";
import { BlockError } from "../../block/errors.ts";
import { sectorBytes } from "../../block/image/chain.ts";
import { convertDisks, ConvertError } from "../../block/image/convert.ts";
import { createImage } from "../../block/image/create.ts";
import {
  type CreateFormat,
  createFormatOf,
  parseCreateOptions,
} from "../../block/image/create_options.ts";
import type { Arguments } from "./args.ts";
import { withLeftovers } from "./convert_target.ts";
import { ImgError } from "./errors.ts";
import { watchSignals } from "./interrupt.ts";
import type { ImgCommand, ImgOutput } from "./run.ts";
import {
  errorCodeText,
  errorMessage,
  FORCE_SHARE_OPTION,
  FORMAT_OPTION,
  IMAGE_OPTS_OPTION,
  ImgSession,
  openOptionsOf,
} from "./session.ts";
import { parseSize } from "./sizes.ts";

/** QEMU's bound of a block. */
const BLOCK_BYTES_MAX = 2 ** 31 - 1;
/** What zeroes are worth leaving out. */
const SPARSE_BYTES = 4096;

/** See the module's head. */
export const command: ImgCommand = {
  syntax: {
    usage: "[-f FMT | --image-opts] [-O OUTPUT_FMT] [-U]\n" +
      "        [bs=BLOCK_SIZE] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT",
    options: [
      FORMAT_OPTION,
      IMAGE_OPTS_OPTION,
      {
        name: "output-format",
        short: "O",
        value: "OUTPUT_FMT",
        help: "format of the output (raw)",
      },
      FORCE_SHARE_OPTION,
    ],
  },
  run: async (args, output) => {
    const operands = operandsOf(args);
    const format = formatOf(args.get("output-format") ?? "raw");
    const made = { filename: operands.output, isMade: false, isNew: false };
    using _signals = watchSignals(made, output);
    try {
      await copy(operands, { args, format, output, made });
    } catch (error) {
      throw withLeftovers(made, error);
    }
    return 0;
  },
};

interface Operands {
  input: string;
  output: string;
  blockBytes: number;
  count: number | null;
  skip: number;
}

function operandsOf(args: Arguments): Operands {
  const values = new Map<string, string>();
  for (const operand of args.operands) {
    const [, name, value] = /^([a-z]+)=(.*)$/s.exec(operand) ?? [];
    if (name === undefined || !["if", "of", "bs", "count", "skip"].includes(name)) {
      throw new ImgError(`unrecognized operand ${operand.replace(/=.*$/s, "")}`);
    }
    values.set(name, value ?? "");
  }
  const number = (name: string, bounds: { min?: number; max?: number } = {}): number | null => {
    const text = values.get(name);
    return text === undefined ? null : parseSize(text, { name, ...bounds });
  };
  const blockBytes = number("bs", { min: 1, max: BLOCK_BYTES_MAX }) ?? 512;
  const [count, skip] = [number("count"), number("skip") ?? 0];
  const [input, output] = [values.get("if"), values.get("of")];
  if (input === undefined || output === undefined) {
    throw new ImgError("Must specify both input and output files");
  }
  return { input, output, blockBytes, count, skip };
}

function formatOf(name: string): CreateFormat {
  try {
    return createFormatOf(name);
  } catch {
    throw new ImgError("Unknown file format");
  }
}

interface CopyContext {
  args: Arguments;
  format: CreateFormat;
  output: ImgOutput;
  made: { filename: string; isMade: boolean; isNew: boolean };
}

function copy(
  { input, output: target, blockBytes, count, skip }: Operands,
  { args, format, output, made }: CopyContext,
): Promise<void> {
  return ImgSession.run(async (session) => {
    const source = await session.open(input, openOptionsOf(args));
    const all = sectorBytes(source.node);
    const end = count === null ? all : Math.min(all, count * blockBytes);
    const start = skip * blockBytes;
    const isBeyond = start > end;
    const length = isBeyond ? 0 : end - start;
    const options = { ...parseCreateOptions(format, new Map()), sizeBytes: length };
    made.isNew = await createImage({ filename: target, format, options }, session.context)
      .catch((error) => {
        if (!(error instanceof BlockError)) throw error;
        const reason = errorMessage(error);
        throw new ImgError(`${target}: error while creating output image: ${reason}`);
      });
    made.isMade = true;
    const { node } = await session.open(target, { format, isWritable: true });
    if (isBeyond) {
      output.printError(`ovis img: ${input}: cannot skip to specified offset\n`);
      return;
    }
    const { graph } = session;
    const sizeBytes = Math.min(length, source.node.sizeBytes - start);
    const part = graph.add(
      new RawNode({ nodeName: "", file: source.node, offset: start, sizeBytes, isReadOnly: true }),
    );
    await convertDisks({
      sources: [part],
      target: node,
      sparseBytes: SPARSE_BYTES,
      isTargetZero: true,
      parallel: 8,
    }).catch((error) => {
      if (!(error instanceof ConvertError)) throw error;
      const reason = errorCodeText(error.cause);
      throw new ImgError(
        error.step === "write"
          ? `error while writing to output image file: ${reason}`
          : `error while reading from input image file: ${reason}`,
      );
    });
  });
}
