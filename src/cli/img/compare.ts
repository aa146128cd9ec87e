/**
 * `ovis img compare`: whether two disks read the same. Status 0: they do; 1: they differ; 2: one
 * can't be opened; 3: its states can't be asked for; 4: it can't be read.
 *
 * @module
 */

import { compareDisks, CompareError, type Comparison } from "../../block/image/compare.ts";
import type { Arguments } from "./args.ts";
import { ImgError, UsageError } from "./errors.ts";
import { ImgProgress } from "./progress.ts";
import type { ImgCommand, ImgOutput } from "./run.ts";
import {
  errorCodeText,
  FORCE_SHARE_OPTION,
  IMAGE_OPTS_OPTION,
  ImgSession,
  parseCacheMode,
  PROGRESS_OPTION,
  QUIET_OPTION,
} from "./session.ts";

/** See the module's head. */
export const command: ImgCommand = {
  syntax: {
    usage: "[--image-opts | [-f FMT] [-F FMT]] [-s] [-T CACHE] [-U] [-p] [-q]\n" +
      "        FILENAME1 FILENAME2",
    options: [
      QUIET_OPTION,
      PROGRESS_OPTION,
      { name: "a-format", short: "f", value: "FMT", help: "specify the first image's format" },
      { name: "b-format", short: "F", value: "FMT", help: "specify the second image's format" },
      IMAGE_OPTS_OPTION,
      { name: "strict", short: "s", help: "sizes and allocation must be equal, too" },
      { name: "cache", short: "T", value: "CACHE", help: "cache mode of both (writeback)" },
      FORCE_SHARE_OPTION,
    ],
  },
  failureStatus: 2,
  run: async (args, output) => {
    const [first, second, ...more] = args.operands;
    if (first === undefined || second === undefined || more.length > 0) {
      throw new UsageError("Expecting two image file names");
    }
    const names: readonly [string, string] = [first, second];
    const comparison = await compareImages(args, output, names);
    return report(comparison, args, output);
  },
};

function compareImages(
  args: Arguments,
  output: ImgOutput,
  names: readonly [string, string],
): Promise<Comparison> {
  const isImageOpts = args.has("image-opts");
  if (isImageOpts && (args.has("a-format") || args.has("b-format"))) {
    throw new ImgError("--image-opts and --format are mutually exclusive", 2);
  }
  const cache = args.get("cache") ?? "writeback";
  const options = {
    isImageOpts,
    forceShare: args.has("force-share"),
    cache: parseCacheMode(cache, `Invalid source cache option: ${cache}`),
  };
  return ImgSession.run(async (session) => {
    const [first, second] = [
      await session.open(names[0], { ...options, format: args.get("a-format") }).catch(asOpenError),
      await session.open(names[1], { ...options, format: args.get("b-format") }).catch(asOpenError),
    ];
    const progress = new ImgProgress(args, output, "comparing");
    let isDone = false;
    try {
      const comparison = await compareDisks(first.node, second.node, {
        isStrict: args.has("strict"),
        onProgress: progress.report,
      });
      isDone = true;
      return comparison;
    } catch (error) {
      throw describe(error, names);
    } finally {
      progress.end(isDone);
    }
  });
}

function asOpenError(error: unknown): never {
  if (error instanceof ImgError) throw new ImgError(error.message, 2, { cause: error });
  throw error;
}

function describe(error: unknown, names: readonly string[]): unknown {
  if (!(error instanceof CompareError)) return error;
  const name = names[error.disk] ?? "";
  if (error.step === "status") {
    return new ImgError(`Sector allocation test failed for ${name}`, 3, { cause: error });
  }
  const reason = errorCodeText(error.cause);
  return new ImgError(`Error while reading offset ${error.offset} of ${name}: ${reason}`, 4, {
    cause: error,
  });
}

function report(comparison: Comparison, args: Arguments, output: ImgOutput): number {
  const say = (text: string): void => {
    if (!args.has("quiet")) output.print(`${text}\n`);
  };
  switch (comparison.result) {
    case "identical":
      if (!comparison.isSizeEqual) say("Warning: Image size mismatch!");
      say("Images are identical.");
      return 0;
    case "size":
      say("Strict mode: Image size mismatch!");
      return 1;
    case "status":
      say(`Strict mode: Offset ${comparison.offset} block status mismatch!`);
      return 1;
    case "content":
      if (comparison.isBehindEnd) say("Warning: Image size mismatch!");
      say(`Content mismatch at offset ${comparison.offset}!`);
      return 1;
  }
}
