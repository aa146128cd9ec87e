/**
 * `ovis img bitmap`: changes a persistent dirty bitmap of an image: the operations in the order in
 * which they are given.
 *
 * @module
 */

import type { DirtyBitmaps } from "../../block/dirty_bitmap.ts";
import type { BlockNode } from "../../block/node.ts";
import type { Arguments } from "./args.ts";
import { ImgError } from "./errors.ts";
import type { ImgCommand } from "./run.ts";
import {
  errorMessage,
  FORMAT_OPTION,
  type Image,
  IMAGE_OPTS_OPTION,
  ImgSession,
  openOptionsOf,
} from "./session.ts";
import { parseSize } from "./sizes.ts";

const OPERATIONS = ["add", "remove", "clear", "enable", "disable", "merge"];

/** See the module's head. */
export const command: ImgCommand = {
  syntax: {
    usage: "(--merge SOURCE | --add | --remove | --clear | --enable | --disable)...\n" +
      "        [-b SRC_FILENAME [-F SRC_FMT]] [-g GRANULARITY] [-f FMT | --image-opts]\n" +
      "        FILENAME BITMAP",
    options: [
      FORMAT_OPTION,
      IMAGE_OPTS_OPTION,
      { name: "add", help: "make it; it records from now on" },
      { name: "granularity", short: "g", value: "SIZE", help: "with --add: bytes of a bit" },
      { name: "remove", help: "remove it" },
      { name: "clear", help: "make everything clean" },
      { name: "enable", help: "record what is written from now on" },
      { name: "disable", help: "don't" },
      { name: "merge", value: "SOURCE", help: "add what is dirty in the bitmap SOURCE" },
      { name: "source-file", short: "b", value: "FILENAME", help: "with --merge: where that is" },
      { name: "source-format", short: "F", value: "FMT", help: "the format of that" },
    ],
  },
  run: async (args) => {
    check(args);
    const [filename = "", name = ""] = args.operands;
    const text = args.get("granularity");
    const granularity = text === undefined
      ? null
      : parseSize(text, { name: "granularity", min: 1 });
    await ImgSession.run(async (session) => {
      const target = await session.open(filename, {
        ...openOptionsOf(args),
        isWritable: true,
        withBacking: false,
      });
      const sourceFile = args.get("source-file");
      const source = sourceFile === undefined ? target : await session.open(sourceFile, {
        format: args.get("source-format"),
        withBacking: false,
      });
      for (const option of args.options) {
        if (!OPERATIONS.includes(option.name)) continue;
        const change = { name, granularity, source, sourceName: option.value };
        await apply(session.bitmaps, target, { operation: option.name, ...change });
      }
    });
    return 0;
  },
};

function check(args: Arguments): void {
  const refuse = (condition: boolean, message: string): void => {
    if (condition) throw new ImgError(message);
  };
  refuse(
    !args.options.some((option) => OPERATIONS.includes(option.name)),
    "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
  );
  refuse(args.operands.length !== 2, "Expecting filename and bitmap name");
  refuse(args.has("granularity") && !args.has("add"), "granularity only supported with --add");
  refuse(args.has("source-format") && !args.has("source-file"), "-F only supported with -b");
  refuse(
    args.has("source-file") && !args.has("merge"),
    "Merge bitmap source file only supported with --merge",
  );
}

interface BitmapChange {
  operation: string;
  name: string;
  granularity: number | null;
  source: Image;
  sourceName: string;
}

async function apply(
  bitmaps: DirtyBitmaps,
  target: Image,
  change: BitmapChange,
): Promise<void> {
  const { operation, name } = change;
  try {
    await applyOne(bitmaps, target.node, change);
  } catch (error) {
    throw new ImgError(
      `Operation ${operation} on bitmap ${name} failed: ${errorMessage(error)}`,
      1,
      {
        cause: error,
      },
    );
  }
}

async function applyOne(
  bitmaps: DirtyBitmaps,
  node: BlockNode,
  { operation, name, granularity, source, sourceName }: BitmapChange,
): Promise<void> {
  switch (operation) {
    case "add":
      bitmaps.add(node, {
        name,
        persistent: true,
        ...(granularity === null ? {} : { granularity }),
      });
      break;
    case "remove":
      await bitmaps.remove(node, name);
      break;
    case "clear":
      bitmaps.clear(node, name);
      break;
    case "enable":
      bitmaps.enable(node, name);
      break;
    case "disable":
      bitmaps.disable(node, name);
      break;
    case "merge":
      bitmaps.merge(bitmaps.get(node, name), [bitmaps.get(source.node, sourceName)]);
      break;
  }
}
