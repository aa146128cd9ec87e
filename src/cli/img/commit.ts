/**
 * `ovis img commit`: writes what an image holds into the one behind it.
 *
 * @module
 */

import { BlockLayer } from "../../block/block_layer.ts";
import { backingOf, chainOf, protocolNode, unfiltered } from "../../block/image/chain.ts";
import { resolveBeside } from "../../block/image/names.ts";
import { startCommit } from "../../block/jobs/commit.ts";
import type { BlockNode } from "../../block/node.ts";
import { pathOf } from "../../block/open/open_image.ts";
import { Qcow2Node } from "../../block/qcow2/node.ts";
import type { Arguments } from "./args.ts";
import { ImgError } from "./errors.ts";
import { ImgProgress } from "./progress.ts";
import type { ImgCommand, ImgOutput } from "./run.ts";
import {
  errorMessage,
  FORMAT_OPTION,
  type Image,
  IMAGE_OPTS_OPTION,
  ImgSession,
  onlyOperand,
  openOptionsOf,
  parseCacheMode,
  PROGRESS_OPTION,
  QUIET_OPTION,
  warnProbed,
} from "./session.ts";
import { parseSize } from "./sizes.ts";

/** How often the job is asked how far it is. */
const PROGRESS_MS = 100;

/** See the module's head. */
export const command: ImgCommand = {
  syntax: {
    usage: "[-f FMT | --image-opts] [-t CACHE] [-b BASE_IMG] [-d] [-r RATE] [-p] [-q] FILENAME",
    options: [
      QUIET_OPTION,
      PROGRESS_OPTION,
      FORMAT_OPTION,
      IMAGE_OPTS_OPTION,
      { name: "cache", short: "t", value: "CACHE", help: "cache mode (writeback)" },
      { name: "drop", short: "d", help: "don't empty FILENAME afterwards" },
      {
        name: "base",
        short: "b",
        value: "BASE_IMG",
        help: "the image of the chain to write into, if not the next one (implies --drop)",
      },
      { name: "rate", short: "r", value: "RATE", help: "bytes a second at most" },
    ],
  },
  run: async (args, output) => {
    const filename = onlyOperand(args);
    const cache = parseCacheMode(args.get("cache") ?? "writeback");
    const rate = args.get("rate");
    const speed = rate === undefined ? 0 : parseSize(rate, { name: "rate limit" });
    await ImgSession.run(async (session) => {
      const image = await session.open(filename, {
        ...openOptionsOf(args),
        isWritable: true,
        cache,
      });
      warnProbed(output, image);
      const base = baseOf(image, args.get("base"));
      await commit(session, { image, base, speed, args, output });
      if (!args.has("drop") && !args.has("base")) await empty(image);
    });
    if (!args.has("quiet")) output.print("Image committed.\n");
    return 0;
  },
};

function baseOf(image: Image, name: string | undefined): BlockNode {
  if (name === undefined) {
    const next = backingOf(image.node);
    if (next === null) throw new ImgError("Image does not have a backing file");
    return next;
  }
  const wanted = resolveBeside(name, pathOf(protocolNode(image.node)) ?? image.name);
  const real = (path: string): string => {
    try {
      return Deno.realPathSync(path);
    } catch {
      return path;
    }
  };
  const found = chainOf(image.node).slice(1).find((node) =>
    unfiltered(node).fileName === wanted || pathOf(protocolNode(node)) === real(wanted)
  );
  if (found !== undefined) return found;
  throw new ImgError(`Did not find '${name}' in the backing chain of '${image.name}'`);
}

async function commit(
  session: ImgSession,
  { image, base, speed, args, output }: {
    image: Image;
    base: BlockNode;
    speed: number;
    args: Arguments;
    output: ImgOutput;
  },
): Promise<void> {
  const progress = new ImgProgress(args, output, "committing");
  let timer: ReturnType<typeof setInterval> | undefined;
  let isDone = false;
  try {
    const { graph, bitmaps, context } = session;
    const block = new BlockLayer(context.kernels, { graph, bitmaps });
    const { jobs } = block;
    const ready = Promise.withResolvers<void>();
    const forget = jobs.onEvent(({ event }) => {
      if (event === "BLOCK_JOB_READY") ready.resolve();
    });
    const job = await startCommit(block, {
      jobId: "commit",
      device: image.node,
      base,
      speed,
    });
    timer = setInterval(() => {
      progress.report(job.progress.current, job.progress.total);
    }, PROGRESS_MS);
    await Promise.race([ready.promise, job.whenConcluded()]);
    forget();
    // What is ready has nothing more to wait for: nobody writes meanwhile.
    if (job.isReady) job.complete();
    await job.whenConcluded();
    await jobs.close();
    if (job.hasFailed) {
      throw new ImgError(job.error ?? errorMessage(job.failure), 1, { cause: job.failure });
    }
    isDone = true;
  } catch (error) {
    if (error instanceof ImgError) throw error;
    throw new ImgError(errorMessage(error), 1, { cause: error });
  } finally {
    clearInterval(timer);
    progress.end(isDone);
  }
}

/** What was committed, the image no longer has to hold itself. */
async function empty(image: Image): Promise<void> {
  const node = unfiltered(image.node);
  if (node instanceof Qcow2Node) await node.makeEmpty();
}
