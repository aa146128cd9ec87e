/**
 * `ovis img convert`: copies one disk, or several one behind the other, into an image.
 *
 * @module
 */

import { systemClock } from "../../block/clock.ts";
import { BlockError } from "../../block/errors.ts";
import { backingOf, sectorBytes } from "../../block/image/chain.ts";
import { convertDisks, ConvertError } from "../../block/image/convert.ts";
import { RateLimit } from "../../block/jobs/rate_limit.ts";
import type { BlockNode } from "../../block/node.ts";
import type { Arguments } from "./args.ts";
import { CONVERT_SYNTAX, type ConvertSettings, convertSettings } from "./convert_arguments.ts";
import { checkBitmaps, copyBitmaps } from "./convert_bitmaps.ts";
import { openTarget, type Target, withLeftovers } from "./convert_target.ts";
import { optionHelp } from "./create_arguments.ts";
import { ImgError } from "./errors.ts";
import { watchSignals } from "./interrupt.ts";
import { ImgProgress } from "./progress.ts";
import type { ImgCommand, ImgOutput } from "./run.ts";
import { errorCodeText, type Image, ImgSession, warn } from "./session.ts";
import { openSnapshot } from "./snapshots.ts";

/** See the module's head. */
export const command: ImgCommand = {
  syntax: CONVERT_SYNTAX,
  run: async (args, output) => {
    const settings = convertSettings(args, output);
    if (settings === "help") {
      output.print(optionHelp(args.get("target-format") ?? "raw", args.operands.length > 0));
      return 0;
    }
    await convert(settings, args, output);
    return 0;
  },
};

async function convert(
  settings: ConvertSettings,
  args: Arguments,
  output: ImgOutput,
): Promise<void> {
  const made = { filename: settings.target, isMade: false, isNew: false };
  using _signals = watchSignals(made, output);
  try {
    await ImgSession.run(async (session) => {
      const { bitmaps } = session;
      const sources = await openSources(session, settings);
      if (settings.copiesBitmaps) {
        const skipsBroken = settings.skipsBrokenBitmaps;
        checkBitmaps(bitmaps, firstOf(sources).node, { skipsBroken });
      }
      const target = await openTarget(session, settings, sources, made);
      await copy({ settings, args, output }, sources, target);
      if (settings.copiesBitmaps) {
        copyBitmaps(bitmaps, firstOf(sources).node, target.node, {
          skipsBroken: settings.skipsBrokenBitmaps,
          warn: (message) => warn(output, message),
        });
      }
    });
  } catch (error) {
    throw withLeftovers(made, error);
  }
}

async function openSources(session: ImgSession, settings: ConvertSettings): Promise<Image[]> {
  const images: Image[] = [];
  for (const filename of settings.sources) {
    const image = await session.open(filename, settings.sourceOptions);
    images.push(
      settings.snapshot === null ? image : {
        ...image,
        node: await openSnapshot(image, settings.snapshot),
      },
    );
  }
  return images;
}

async function copy(
  { settings, args, output }: { settings: ConvertSettings; args: Arguments; output: ImgOutput },
  sources: readonly Image[],
  target: Target,
): Promise<void> {
  const nodes = sources.map(({ node }) => node);
  checkTarget(nodes, target, settings);
  const progress = new ImgProgress(args, output, "converting");
  let isDone = false;
  try {
    await convertDisks({
      sources: nodes,
      target: target.node,
      sparseBytes: settings.sparseBytes,
      isCompressed: settings.isCompressed,
      isTargetZero: target.isZero,
      targetBacking: settings.hasBacking ? backingOf(target.node) : null,
      parallel: settings.parallel,
      isUnordered: settings.isUnordered,
      usesCopyRange: settings.usesCopyRange,
      onProgress: progress.report,
      ...(settings.rateBytes === 0 ? {} : { throttle: createThrottle(settings.rateBytes) }),
      ...(settings.isSalvaging ? { salvage: (error) => warn(output, describe(error)) } : {}),
    });
    isDone = true;
  } catch (error) {
    if (!(error instanceof ConvertError)) throw error;
    throw new ImgError(describe(error), 1, { cause: error.cause });
  } finally {
    progress.end(isDone);
  }
}

function checkTarget(
  sources: readonly BlockNode[],
  target: Target,
  settings: ConvertSettings,
): void {
  const total = sources.reduce((sum, node) => sum + sectorBytes(node), 0);
  if (sectorBytes(target.node) < total) {
    throw new ImgError("output file is smaller than input file");
  }
  if (settings.isCompressed && !target.node.supportsCompressedWrites) {
    throw new ImgError("Compression not supported for this file format");
  }
}

function describe(error: ConvertError): string {
  const reason = error.cause instanceof BlockError && error.cause.code === "EACCES"
    ? error.message
    : errorCodeText(error.cause);
  switch (error.step) {
    case "status":
      return `error while reading block status at offset ${error.offset}: ${reason}`;
    case "read":
      return `error while reading at byte ${error.offset}: ${reason}`;
    case "write":
      return `error while writing at byte ${error.offset}: ${reason}`;
  }
}

function createThrottle(rateBytes: number): (bytes: number) => Promise<void> {
  const limit = new RateLimit(systemClock);
  limit.speed = rateBytes;
  return async (bytes) => {
    const delayMs = limit.delayMs(bytes);
    if (delayMs > 0) await new Promise<void>((resolve) => systemClock.after(delayMs, resolve));
  };
}

function firstOf(images: readonly Image[]): Image {
  const [image] = images;
  if (image === undefined) throw new ImgError("Must specify image file name");
  return image;
}
