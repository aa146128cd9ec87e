/**
 * `ovis img rebase`: gives an image another backing file, or none. What it reads as stays the same,
 * unless it is told (-u) that the new one is as good as the old one.
 *
 * @module
 */

import { toBlockError } from "../../block/errors.ts";
import { chainOf, protocolNode, unfiltered } from "../../block/image/chain.ts";
import { resolveBeside } from "../../block/image/names.ts";
import { copyDifferences, RebaseReadError } from "../../block/image/rebase.ts";
import type { BlockNode } from "../../block/node.ts";
import { pathOf } from "../../block/open/open_image.ts";
import type { Arguments } from "./args.ts";
import { ImgError, UsageError } from "./errors.ts";
import { ImgProgress } from "./progress.ts";
import type { ImgCommand, ImgOutput } from "./run.ts";
import {
  errorCodeText,
  errorMessage,
  FORCE_SHARE_OPTION,
  FORMAT_OPTION,
  type Image,
  IMAGE_OPTS_OPTION,
  ImgSession,
  onlyOperand,
  openOptionsOf,
  parseCacheMode,
  PROGRESS_OPTION,
  QUIET_OPTION,
} from "./session.ts";

/** See the module's head. */
export const command: ImgCommand = {
  syntax: {
    usage: "[-f FMT | --image-opts] [-t CACHE] [-T BACKING_CACHE] [-u] [-c] [-p] [-q] [-U]\n" +
      '        -b BACKING_FILENAME|"" [-F BACKING_FMT] FILENAME',
    options: [
      QUIET_OPTION,
      PROGRESS_OPTION,
      FORMAT_OPTION,
      IMAGE_OPTS_OPTION,
      { name: "cache", short: "t", value: "CACHE", help: "cache mode of the image (writeback)" },
      {
        name: "backing",
        short: "b",
        value: "BACKING_FILENAME",
        help: "the new backing file; an empty one for none",
      },
      { name: "backing-format", short: "F", value: "BACKING_FMT", help: "the format of that" },
      { name: "backing-cache", short: "T", value: "CACHE", help: "its cache mode (writeback)" },
      { name: "backing-unsafe", short: "u", help: "only write the name: copy nothing" },
      { name: "compress", short: "c", help: "compress what is copied" },
      FORCE_SHARE_OPTION,
    ],
  },
  run: async (args, output) => {
    const filename = onlyOperand(args);
    const isUnsafe = args.has("backing-unsafe");
    const backing = args.get("backing");
    if (backing === undefined && !isUnsafe) {
      throw new UsageError("Must specify backing file (-b) or use unsafe mode (-u)");
    }
    const cache = parseCacheMode(args.get("cache") ?? "writeback");
    const backingCache = args.get("backing-cache") ?? "writeback";
    parseCacheMode(backingCache, `Invalid source cache option: ${backingCache}`);
    await ImgSession.run(async (session) => {
      const overlay = await session.open(filename, {
        ...openOptionsOf(args),
        isWritable: true,
        withBacking: !isUnsafe,
        cache,
      });
      if (args.has("compress") && !overlay.node.supportsCompressedWrites) {
        throw new ImgError("Compression not supported for this file format");
      }
      if (!isUnsafe) await copy(session, overlay, { args, output });
      await changeName(overlay, backing || null, args.get("backing-format") ?? null);
    });
    return 0;
  },
};

async function copy(
  session: ImgSession,
  overlay: Image,
  { args, output }: { args: Arguments; output: ImgOutput },
): Promise<void> {
  const backing = args.get("backing") ?? "";
  const { node, isInChain } = backing === ""
    ? { node: null, isInChain: false }
    : await openBacking(session, overlay, { backing, format: args.get("backing-format") });
  const progress = new ImgProgress(args, output, "rebasing");
  let isDone = false;
  try {
    await copyDifferences({
      overlay: overlay.node,
      newBacking: node,
      isInChain,
      isCompressed: args.has("compress"),
      onProgress: progress.report,
    });
    isDone = true;
  } catch (error) {
    const reason = error instanceof RebaseReadError
      ? `${error.message}: ${errorCodeText(error.cause)}`
      : `Error while writing to COW image: ${errorCodeText(error)}`;
    throw new ImgError(reason, 1, { cause: error });
  } finally {
    progress.end(isDone);
  }
}

/** The new backing file: a node of the chain where it is one, else opened. */
async function openBacking(
  session: ImgSession,
  overlay: Image,
  { backing, format }: { backing: string; format: string | undefined },
): Promise<{ node: BlockNode; isInChain: boolean }> {
  const name = resolveBeside(backing, pathOf(protocolNode(overlay.node)) ?? overlay.name);
  let image: Image;
  try {
    image = await session.open(name, { format });
  } catch (error) {
    const cause = error instanceof ImgError ? error.cause : error;
    throw new ImgError(`Could not open new backing file '${name}': ${errorMessage(cause)}`, 1, {
      cause: error,
    });
  }
  const path = pathOf(protocolNode(image.node));
  const inChain = chainOf(overlay.node).slice(1)
    .find((node) => path !== null && pathOf(protocolNode(node)) === path);
  return inChain === undefined
    ? { node: unfiltered(image.node), isInChain: false }
    : { node: inChain, isInChain: true };
}

async function changeName(
  overlay: Image,
  backing: string | null,
  format: string | null,
): Promise<void> {
  try {
    if (backing !== null && format === null) {
      throw new ImgError(
        `Could not change the backing file to '${backing}': backing format must be specified`,
      );
    }
    await unfiltered(overlay.node).changeBackingFile(backing, format);
  } catch (error) {
    if (error instanceof ImgError) throw error;
    const reason = toBlockError(error).code === "ENOSPC"
      ? "No space left in the file header"
      : errorCodeText(error);
    throw new ImgError(`Could not change the backing file to '${backing ?? ""}': ${reason}`, 1, {
      cause: error,
    });
  }
}
