/**
 * The target of `ovis img convert`: made, or there already.
 *
 * @module
 */

import { fileExists } from "../../block/drivers/file_open.ts";
import { BlockError } from "../../block/errors.ts";
import { sectorBytes } from "../../block/image/chain.ts";
import { createImage } from "../../block/image/create.ts";
import { createFormatOf, parseCreateOptions } from "../../block/image/create_options.ts";
import { isFileName } from "../../block/image/names.ts";
import type { ConvertSettings } from "./convert_arguments.ts";
import { ImgError } from "./errors.ts";
import { errorMessage, type Image, type ImgSession } from "./session.ts";

/** The target, open. */
export interface Target extends Image {
  /** It reads as zeroes everywhere. */
  isZero: boolean;
}

/** What a failed copy leaves behind. */
export interface MadeTarget {
  /** Its name. */
  filename: string;
  /** It was made for this copy. */
  isMade: boolean;
  /** And was not there before. */
  isNew: boolean;
}

/** Makes the target, unless it is there, and opens it. Tells `made`. */
export async function openTarget(
  session: ImgSession,
  settings: ConvertSettings,
  sources: readonly Image[],
  made: MadeTarget,
): Promise<Target> {
  if (!settings.isTargetThere) await makeTarget(session, settings, sources, made);
  const image = await session.open(settings.target, {
    isImageOpts: settings.isTargetImageOpts,
    format: settings.isTargetImageOpts ? undefined : settings.targetFormat,
    isWritable: true,
    cache: settings.targetCache,
    discard: "unmap",
  });
  const isFile = made.isMade && isFileName(settings.target);
  return { ...image, isZero: settings.isTargetZero || (isFile && !settings.hasBacking) };
}

async function makeTarget(
  session: ImgSession,
  settings: ConvertSettings,
  sources: readonly Image[],
  made: MadeTarget,
): Promise<void> {
  const { target, targetOptions } = settings;
  const format = createFormatOf(settings.targetFormat);
  try {
    const options = parseCreateOptions(format, targetOptions);
    if (settings.isCompressed && format !== "qcow2") {
      throw new ImgError("Compression not supported for this file format");
    }
    if (settings.isCompressed && options.preallocation !== "off") {
      throw new ImgError("Compression and preallocation not supported at the same time");
    }
    const sizeBytes = options.sizeBytes ??
      sources.reduce((sum, { node }) => sum + sectorBytes(node), 0);
    made.isNew = await createImage(
      { filename: target, format, options: { ...options, sizeBytes } },
      session.context,
    );
    made.isMade = true;
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new ImgError(`${target}: error while converting ${format}: ${errorMessage(error)}`, 1, {
      cause: error,
    });
  }
}

/** The error of a copy that failed, with what is left of the target: see `abandonTarget`. */
export function withLeftovers(made: MadeTarget, error: unknown): unknown {
  const left = abandonTarget(made);
  if (left === null || !(error instanceof ImgError)) return error;
  return new ImgError(`${error.message}\n${left}`, error.exitCode, { cause: error });
}

/**
 * After a copy that failed: takes the target away where its file was made for it (null); else says
 * what it is.
 */
export function abandonTarget({ filename, isMade, isNew }: MadeTarget): string | null {
  if (!isMade || !isFileName(filename)) return null;
  if (!isNew) return `'${filename}' holds an incomplete copy`;
  if (fileExists(filename)) Deno.removeSync(filename);
  return null;
}
