/**
 * `ovis img bench`: how long requests of one kind take, as many in flight as asked for.
 *
 * @module
 */

import { type RequestBench, runRequestBench } from "../../block/image/request_bench.ts";
import type { Arguments } from "./args.ts";
import { ImgError } from "./errors.ts";
import type { ImgCommand, ImgOutput } from "./run.ts";
import {
  errorCodeText,
  FORCE_SHARE_OPTION,
  FORMAT_OPTION,
  IMAGE_OPTS_OPTION,
  ImgSession,
  onlyOperand,
  openOptionsOf,
  parseCacheMode,
  QUIET_OPTION,
  warnProbed,
} from "./session.ts";
import { parseNumber, parseSize } from "./sizes.ts";

/** INT_MAX: QEMU's bound of all numbers here. */
const INT_MAX = 2 ** 31 - 1;
/** A request's buffer is that large at most: what one process may hold with depth 1. */
const AIO_BACKENDS: readonly string[] = ["threads", "native", "io_uring"];

/** See the module's head. */
export const command: ImgCommand = {
  syntax: {
    usage: "[-f FMT | --image-opts] [-t CACHE] [-c COUNT] [-d DEPTH] [-o OFFSET]\n" +
      "        [-s BUFFER_SIZE] [-S STEP_SIZE] [-i AIO] [-n] [-w [--pattern PATTERN]\n" +
      "        [--flush-interval INTERVAL [--no-drain]]] [-q] [-U] FILENAME",
    options: [
      QUIET_OPTION,
      FORMAT_OPTION,
      IMAGE_OPTS_OPTION,
      { name: "cache", short: "t", value: "CACHE", help: "cache mode (writeback)" },
      { name: "count", short: "c", value: "COUNT", help: "number of requests (75000)" },
      { name: "depth", short: "d", value: "DEPTH", help: "requests in flight (64)" },
      { name: "offset", short: "o", value: "OFFSET", help: "where the first request goes (0)" },
      { name: "buffer-size", short: "s", value: "SIZE", help: "bytes of a request (4k)" },
      { name: "step-size", short: "S", value: "SIZE", help: "from one request to the next" },
      { name: "aio", short: "i", value: "AIO", help: "taken, and of no meaning here" },
      { name: "native", short: "n", help: "taken, and of no meaning here" },
      { name: "write", short: "w", help: "write instead of reading" },
      { name: "pattern", value: "BYTE", help: "what is written, instead of zeroes" },
      { name: "flush-interval", value: "COUNT", help: "flush after so many writes" },
      { name: "no-drain", help: "don't wait for the writes before a flush" },
      FORCE_SHARE_OPTION,
    ],
  },
  run: (args, output) => {
    const filename = onlyOperand(args);
    const bench = benchOf(args);
    const cacheName = args.get("cache") ?? "writeback";
    const cache = parseCacheMode(cacheName, "Invalid cache mode");
    return ImgSession.run(async (session) => {
      const options = { ...openOptionsOf(args), isWritable: bench.isWrite, cache };
      const image = await session.open(filename, options);
      const { node } = image;
      if (bench.isWrite) warnProbed(output, image);
      announce(bench, args, output);
      const startMs = performance.now();
      await runRequestBench(node, { ...bench, isWritethrough: cache.isWritethrough })
        .catch((error) => {
          throw new ImgError(`Failed request: ${errorCodeText(error)}`, 1, { cause: error });
        });
      const seconds = (performance.now() - startMs) / 1000;
      if (!args.has("quiet")) output.print(`Run completed in ${seconds.toFixed(3)} seconds.\n`);
      return 0;
    });
  },
};

function benchOf(args: Arguments): RequestBench {
  const number = (name: string, what: string, fallback: number): number => {
    const text = args.get(name);
    return text === undefined ? fallback : parseNumber(text, { name: what, min: 1, max: INT_MAX });
  };
  const size = (name: string, what: string): number | undefined => {
    const text = args.get(name);
    return text === undefined ? undefined : parseSize(text, { name: what, min: 1, max: INT_MAX });
  };
  const aio = args.get("aio");
  if (aio !== undefined && !AIO_BACKENDS.includes(aio)) {
    throw new ImgError(`Invalid aio option: ${aio}`);
  }
  const offset = args.get("offset");
  const pattern = args.get("pattern");
  const bufferBytes = size("buffer-size", "buffer size") ?? 4096;
  const bench: RequestBench = {
    isWrite: args.has("write"),
    count: number("count", "request count", 75000),
    depth: number("depth", "queue depth", 64),
    offset: offset === undefined ? 0 : parseSize(offset, { name: "offset" }),
    bufferBytes,
    stepBytes: size("step-size", "step size") ?? bufferBytes,
    pattern: pattern === undefined ? 0 : parseNumber(pattern, { name: "pattern byte", max: 255 }),
    flushInterval: flushIntervalOf(args),
    isDrained: !args.has("no-drain"),
    isWritethrough: false,
  };
  if (bench.flushInterval > 0 && !bench.isWrite) {
    throw new ImgError("--flush-interval is only available in write tests");
  }
  if (bench.flushInterval > 0 && bench.flushInterval < bench.depth) {
    throw new ImgError("Flush interval can't be smaller than depth");
  }
  return bench;
}

function flushIntervalOf(args: Arguments): number {
  const text = args.get("flush-interval");
  return text === undefined ? 0 : parseNumber(text, { name: "flush interval", max: INT_MAX });
}

function announce(bench: RequestBench, args: Arguments, output: ImgOutput): void {
  if (args.has("quiet")) return;
  output.print(
    `Sending ${bench.count} ${bench.isWrite ? "write" : "read"} requests, ` +
      `${bench.bufferBytes} bytes each, ${bench.depth} in parallel ` +
      `(starting at offset ${bench.offset}, step size ${bench.stepBytes})\n`,
  );
  if (bench.flushInterval > 0) {
    output.print(
      `Sending ${
        bench.isDrained ? "" : "non-draining "
      }flush every ${bench.flushInterval} requests\n`,
    );
  }
}
