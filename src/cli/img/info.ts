/**
 * `ovis img info`: what an image is; with --backing-chain also those behind it. The JSON is QAPI's
 * BlockGraphInfo.
 *
 * @module
 */

import { sectorBytes, unfiltered } from "../../block/image/chain.ts";
import { resolveBeside } from "../../block/image/names.ts";
import type { BlockNode } from "../../block/node.ts";
import { isJsonObject, type JsonValue } from "../../block/open/json.ts";
import { parseKeyval } from "../../block/open/keyval.ts";
import { fileNameOptions } from "../../block/open/open_image.ts";
import type { Arguments } from "./args.ts";
import { ImgError } from "./errors.ts";
import { prettyJson } from "./json.ts";
import type { ImgCommand } from "./run.ts";
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
import { formatSize } from "./sizes.ts";
import { formatSnapshots, type SnapshotInfo } from "./snapshot_list.ts";

/** Images of a chain, beyond which it is taken for endless. */
const CHAIN_LENGTH_MAX = 200;

/** QAPI's BlockGraphInfo, as far as it is known here. */
interface ImageInfo extends Record<string, unknown> {
  filename: string;
  format: string;
  "virtual-size": number;
  "actual-size"?: number;
  "cluster-size"?: number;
  "dirty-flag"?: boolean;
  "backing-filename"?: string;
  "full-backing-filename"?: string;
  "backing-filename-format"?: string;
  snapshots?: SnapshotInfo[];
  "format-specific"?: { type: string; data: Record<string, unknown> };
  children?: { name: string; info: ImageInfo }[];
}

/** See the module's head. */
export const command: ImgCommand = {
  syntax: {
    usage: "[-f FMT | --image-opts] [--backing-chain] [-U] [--output human|json] FILENAME",
    options: [
      FORMAT_OPTION,
      IMAGE_OPTS_OPTION,
      { name: "backing-chain", short: "b", help: "the images behind it, too" },
      FORCE_SHARE_OPTION,
      OUTPUT_OPTION,
    ],
  },
  run: async (args, output) => {
    const filename = onlyOperand(args);
    const isJson = wantsJson(args);
    const infos = await collect(filename, args);
    if (isJson) output.print(prettyJson(args.has("backing-chain") ? infos : infos[0]));
    else output.print(infos.map((info) => describe(info, "")).join("\n"));
    return 0;
  },
};

/** The image, and with --backing-chain those behind it. */
async function collect(filename: string, args: Arguments): Promise<ImageInfo[]> {
  const infos: ImageInfo[] = [];
  const seen = new Set<string>();
  let options = openOptionsOf(args);
  for (let name: string | undefined = filename; name !== undefined;) {
    if (seen.has(name) || seen.size === CHAIN_LENGTH_MAX) {
      throw new ImgError(`Backing file '${name}' creates an infinite loop.`);
    }
    seen.add(name);
    const info: ImageInfo = await infoOf(name, options);
    infos.push(info);
    if (!args.has("backing-chain")) break;
    name = info["full-backing-filename"];
    options = { format: info["backing-filename-format"], forceShare: args.has("force-share") };
  }
  return infos;
}

function infoOf(name: string, options: ReturnType<typeof openOptionsOf>): Promise<ImageInfo> {
  return ImgSession.run(async (session) => {
    const { node } = await session.open(name, { ...options, withBacking: false });
    const shownName = shownNameOf(name, options.isImageOpts ?? false, session);
    const image = unfiltered(node);
    const info = describeNode(image, shownName);
    const backing = info["backing-filename"];
    if (backing !== undefined) info["full-backing-filename"] = resolveBeside(backing, shownName);
    return info;
  });
}

function describeNode(node: BlockNode, filename: string): ImageInfo {
  const children = [...node.children.values()].filter(({ name }) => name === "file")
    .map((edge) => ({ name: edge.name, info: describeNode(edge.node, filename) }));
  const { allocatedBytes, clusterSizeBytes, driver } = node;
  return {
    children,
    "virtual-size": sectorBytes(node),
    filename,
    format: driver,
    ...(allocatedBytes === null ? {} : { "actual-size": allocatedBytes }),
    ...(driver === "qcow2" && clusterSizeBytes !== null
      ? { "cluster-size": clusterSizeBytes }
      : {}),
    ...(driver === "file" ? { "format-specific": { type: "file", data: {} } } : {}),
    "dirty-flag": false,
    ...node.imageDetails,
  };
}

/** The file's name, where an image is given by options that say no more. */
function shownNameOf(name: string, isImageOpts: boolean, { context }: ImgSession): string {
  if (!isImageOpts && !name.startsWith("json:")) return name;
  const input = isImageOpts ? parseKeyval(name, null) : fileNameOptions(name, context);
  const strong = Object.keys(input).some((key) => key === "offset" || key === "size");
  const file: JsonValue | undefined = input["file"];
  const at = isJsonObject(file) ? file : input;
  const filename = at["filename"];
  if (!strong && typeof filename === "string") return filename;
  return isImageOpts ? `json:${JSON.stringify(input)}` : name;
}

function describe(info: ImageInfo, indent: string): string {
  const isFile = info["format-specific"]?.type === "file" || info.format === "nbd";
  const size = info["virtual-size"];
  const disk = info["actual-size"];
  const lines = [
    `${isFile && indent !== "" ? "filename" : "image"}: ${info.filename}`,
    `${isFile && indent !== "" ? "protocol type" : "file format"}: ${info.format}`,
    `${isFile && indent !== "" ? "file length" : "virtual size"}: ${formatSize(size)} ` +
    `(${size} bytes)`,
    `disk size: ${disk === undefined ? "unavailable" : formatSize(disk)}`,
  ];
  if (info["cluster-size"] !== undefined) lines.push(`cluster_size: ${info["cluster-size"]}`);
  if (info["dirty-flag"]) lines.push("cleanly shut down: no");
  lines.push(...describeBacking(info));
  if (info.snapshots !== undefined && info.snapshots.length > 0) {
    lines.push("Snapshot list:", ...formatSnapshots(info.snapshots));
  }
  const data = info["format-specific"]?.data ?? {};
  if (Object.keys(data).length > 0) {
    lines.push("Format specific information:", ...formatValue(data, 1));
  }
  let text = lines.map((line) => `${indent}${line}\n`).join("");
  for (const child of info.children ?? []) {
    text += `${indent}Child node '/${child.name}':\n${describe(child.info, `${indent}    `)}`;
  }
  return text;
}

function describeBacking(info: ImageInfo): string[] {
  const name = info["backing-filename"];
  if (name === undefined) return [];
  const full = info["full-backing-filename"];
  const lines = [
    `backing file: ${name}${full === undefined || full === name ? "" : ` (actual path: ${full})`}`,
  ];
  const format = info["backing-filename-format"];
  if (format !== undefined) lines.push(`backing file format: ${format}`);
  return lines;
}

/** Nested values as qemu-img shows them: members and items on lines of their own. */
function formatValue(value: object, depth: number): string[] {
  const indent = "    ".repeat(depth);
  const lines: string[] = [];
  for (const [key, member] of Object.entries(value)) {
    const label = Array.isArray(value) ? `[${key}]` : key.replaceAll(/[-_]/g, " ");
    if (typeof member === "object" && member !== null) {
      lines.push(`${indent}${label}:`, ...formatValue(member, depth + 1));
    } else lines.push(`${indent}${label}: ${member}`);
  }
  return lines;
}
