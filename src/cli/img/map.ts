/**
 * `ovis img map`: which part of a disk is where.
 *
 * @module
 */

import { mapDisk, type MapEntry } from "../../block/image/map.ts";
import type { BlockNode } from "../../block/node.ts";
import { pathOf } from "../../block/open/open_image.ts";
import { runSteps } from "../../block/steps.ts";
import type { Arguments } from "./args.ts";
import { ImgError } from "./errors.ts";
import type { ImgCommand, ImgOutput } from "./run.ts";
import {
  FORCE_SHARE_OPTION,
  FORMAT_OPTION,
  IMAGE_OPTS_OPTION,
  ImgSession,
  onlyOperand,
  openOptionsOf,
  OUTPUT_OPTION,
  wantsJson,
} from "./session.ts";
import { parseSize } from "./sizes.ts";

/** See the module's head. */
export const command: ImgCommand = {
  syntax: {
    usage: "[-f FMT | --image-opts] [--output human|json] [--start-offset OFFSET]\n" +
      "        [--max-length LENGTH] [-U] FILENAME",
    options: [
      FORMAT_OPTION,
      IMAGE_OPTS_OPTION,
      { name: "start-offset", short: "s", value: "OFFSET", help: "where to begin" },
      { name: "max-length", short: "l", value: "LENGTH", help: "how far to look" },
      OUTPUT_OPTION,
      FORCE_SHARE_OPTION,
    ],
  },
  run: (args, output) => {
    const filename = onlyOperand(args);
    const isJson = wantsJson(args);
    const range = rangeOf(args);
    const options = openOptionsOf(args);
    return ImgSession.run(async (session) => {
      const { node } = await session.open(filename, options);
      if (isJson) await printJson(node, range, output);
      else await printTable(node, range, output);
      return 0;
    });
  },
};

interface MapRange {
  start: number;
  end: number;
}

function rangeOf(args: Arguments): MapRange {
  const offset = args.get("start-offset");
  const length = args.get("max-length");
  const start = offset === undefined ? 0 : parseSize(offset, { name: "start offset" });
  return {
    start,
    end: length === undefined ? Infinity : start + parseSize(length, { name: "max length" }),
  };
}

async function printJson(node: BlockNode, range: MapRange, output: ImgOutput): Promise<void> {
  let before = "[";
  await runSteps(mapDisk(node, range, (entry) => {
    output.print(before + formatEntry(entry));
    before = ",\n";
  }));
  output.print("]\n");
}

function formatEntry(entry: MapEntry): string {
  const fields = [
    `"start": ${entry.start}`,
    `"length": ${entry.length}`,
    `"depth": ${entry.depth}`,
    `"present": ${entry.isPresent}`,
    `"zero": ${entry.isZero}`,
    `"data": ${entry.isData}`,
    `"compressed": ${entry.isCompressed}`,
  ];
  if (entry.host !== null) fields.push(`"offset": ${entry.host.offset}`);
  return `{ ${fields.join(", ")}}`;
}

async function printTable(node: BlockNode, range: MapRange, output: ImgOutput): Promise<void> {
  output.print(`${"Offset".padEnd(16)}${"Length".padEnd(16)}${"Mapped to".padEnd(16)}File\n`);
  // Here zeroes and what nobody holds are the same.
  const simplify = (entry: MapEntry): MapEntry =>
    entry.isData && !entry.isZero ? entry : { ...entry, isData: false, isZero: true };
  await runSteps(mapDisk(node, { ...range, simplify }, (entry) => {
    if (!entry.isData || entry.isZero) return;
    if (entry.host === null) {
      throw new ImgError("File contains external, encrypted or compressed clusters.");
    }
    const { start, length, host } = entry;
    const numbers = [start, length, host.offset].map((value) => hex(value).padEnd(16));
    output.print(`${numbers.join("")}${pathOf(host.node) ?? ""}\n`);
  }));
}

/** printf's "%#x". */
function hex(value: number): string {
  return value === 0 ? "0" : `0x${value.toString(16)}`;
}
