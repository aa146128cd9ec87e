/**
 * `ovis img check`: whether an image's metadata is right, and repairs of it. Status 0: it is; 1: the
 * check itself failed; 2: errors; 3: leaked clusters only; 63: the format has no check.
 *
 * @module
 */

import { protocolNode } from "../../block/image/chain.ts";
import { checkQcow2, type Qcow2CheckOptions } from "../../block/qcow2/check.ts";
import type { Qcow2CheckResult } from "../../block/qcow2/check_report.ts";
import { ImgError, UsageError } from "./errors.ts";
import { prettyJson } from "./json.ts";
import type { ImgCommand, ImgOutput } from "./run.ts";
import {
  errorMessage,
  FORCE_SHARE_OPTION,
  FORMAT_OPTION,
  IMAGE_OPTS_OPTION,
  ImgSession,
  onlyOperand,
  openOptionsOf,
  OUTPUT_OPTION,
  parseCacheMode,
  QUIET_OPTION,
  wantsJson,
} from "./session.ts";

const UNSUPPORTED_STATUS = 63;

type Repair = NonNullable<Qcow2CheckOptions["repair"]>;

/** See the module's head. */
export const command: ImgCommand = {
  syntax: {
    usage: "[-f FMT | --image-opts] [-T CACHE] [-r leaks|all] [-U] [-q]\n" +
      "        [--output human|json] FILENAME",
    options: [
      QUIET_OPTION,
      FORMAT_OPTION,
      IMAGE_OPTS_OPTION,
      { name: "cache", short: "T", value: "CACHE", help: "cache mode (writeback)" },
      { name: "repair", short: "r", value: "leaks|all", help: "repair what is found" },
      FORCE_SHARE_OPTION,
      OUTPUT_OPTION,
    ],
  },
  run: async (args, output) => {
    const filename = onlyOperand(args);
    const isJson = wantsJson(args);
    const repair = repairOf(args.get("repair"));
    const cacheName = args.get("cache") ?? "writeback";
    const cache = parseCacheMode(cacheName, `Invalid source cache option: ${cacheName}`);
    const isQuiet = args.has("quiet");
    return await ImgSession.run(async (session) => {
      const options = { ...openOptionsOf(args), cache, isWritable: repair !== "none" };
      const { file, format } = await session.openFile(filename, options);
      if (format !== "qcow2") {
        output.printError("ovis img: This image format does not support checks\n");
        return UNSUPPORTED_STATUS;
      }
      const onIssue = (message: string): void => output.printError(`${message}\n`);
      let result = await run(() => checkQcow2(protocolNode(file), { repair, onIssue }));
      if (result.leaksFixed > 0 || result.corruptionsFixed > 0) {
        const { leaksFixed, corruptionsFixed } = result;
        if (!isJson && !isQuiet) output.print(describeRepairs(result));
        result = {
          ...await run(() => checkQcow2(protocolNode(file), { onIssue })),
          leaksFixed,
          corruptionsFixed,
        };
      }
      if (isJson) output.print(prettyJson(jsonOf(result, { filename, format })));
      else if (!isQuiet) output.print(describe(result));
      return statusOf(result, output);
    });
  },
};

function repairOf(text: string | undefined): Repair {
  if (text === undefined) return "none";
  if (text === "leaks" || text === "all") return text;
  throw new UsageError(`--repair (-r) expects 'leaks' or 'all' not '${text}'`);
}

async function run(
  check: () => ReturnType<typeof checkQcow2>,
): Promise<Qcow2CheckResult> {
  try {
    return await check();
  } catch (error) {
    throw new ImgError(`Check failed: ${errorMessage(error)}`, 1, { cause: error });
  }
}

function statusOf(result: Qcow2CheckResult, output: ImgOutput): number {
  if (result.checkErrors > 0) {
    output.printError("ovis img: Check failed\n");
    return 1;
  }
  return result.corruptions > 0 ? 2 : result.leaks > 0 ? 3 : 0;
}

function describeRepairs({ leaksFixed, corruptionsFixed }: Qcow2CheckResult): string {
  return "The following inconsistencies were found and repaired:\n\n" +
    `    ${leaksFixed} leaked clusters\n    ${corruptionsFixed} corruptions\n\n` +
    "Double checking the fixed image now...\n";
}

function describe(result: Qcow2CheckResult): string {
  const { corruptions, leaks, checkErrors } = result;
  const lines: string[] = [];
  if (corruptions + leaks + checkErrors === 0) lines.push("No errors were found on the image.");
  if (corruptions > 0) {
    lines.push(
      "",
      `${corruptions} errors were found on the image.`,
      "Data may be corrupted, or further writes to the image may corrupt it.",
    );
  }
  if (leaks > 0) {
    lines.push(
      "",
      `${leaks} leaked clusters were found on the image.`,
      "This means waste of disk space, but no harm to data.",
    );
  }
  if (checkErrors > 0) {
    lines.push("", `${checkErrors} internal errors have occurred during the check.`);
  }
  const { totalClusters, allocatedClusters, fragmentedClusters, compressedClusters } = result;
  if (totalClusters > 0 && allocatedClusters > 0) {
    const percent = (part: number, whole: number): string => (part * 100 / whole).toFixed(2);
    lines.push(
      `${allocatedClusters}/${totalClusters} = ${percent(allocatedClusters, totalClusters)}% ` +
        `allocated, ${percent(fragmentedClusters, allocatedClusters)}% fragmented, ` +
        `${percent(compressedClusters, allocatedClusters)}% compressed clusters`,
    );
  }
  if (result.imageEndOffset > 0) lines.push(`Image end offset: ${result.imageEndOffset}`);
  return `${lines.join("\n")}\n`;
}

/** QAPI's ImageCheck: numbers that are 0 are left out. */
function jsonOf(
  result: Qcow2CheckResult,
  { filename, format }: { filename: string; format: string },
): Record<string, unknown> {
  const numbers: Record<string, number> = {
    "image-end-offset": result.imageEndOffset,
    corruptions: result.corruptions,
    leaks: result.leaks,
    "corruptions-fixed": result.corruptionsFixed,
    "leaks-fixed": result.leaksFixed,
    "total-clusters": result.totalClusters,
    "allocated-clusters": result.allocatedClusters,
    "fragmented-clusters": result.fragmentedClusters,
    "compressed-clusters": result.compressedClusters,
  };
  const present = Object.entries(numbers).filter(([, value]) => value !== 0);
  return {
    ...Object.fromEntries(present),
    "check-errors": result.checkErrors,
    filename,
    format,
  };
}
