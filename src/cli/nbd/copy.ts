/** What `ovis nbd copy` does. @module */

import { BlockError } from "../../block/errors.ts";
import { FileNode } from "../../block/drivers/file.ts";
import { NullCoNode } from "../../block/drivers/null_co.ts";
import { RawNode } from "../../block/drivers/raw.ts";
import { BlockGraph } from "../../block/graph.ts";
import { convertDisks } from "../../block/image/convert.ts";
import { IoVector } from "../../block/io_vector.ts";
import type { BlockNode } from "../../block/node.ts";
import { isNbdFilename } from "../../nbd/address.ts";
import { NbdNode } from "../../nbd/nbd_node.ts";
import { Progress } from "../progress.ts";
import { type ConnectOptions, locate } from "./connect.ts";

/** The command's options. */
export interface CopyOptions extends ConnectOptions {
  /** To a server that allows several; 4 unless given. */
  connections?: number;
  /** In flight on each; 16 unless given. */
  requests?: number;
  /** Holes need not be written. */
  destinationIsZero: boolean;
  /** Zeroes are written, holes aren't made. */
  allocated: boolean;
  /** What was written is on stable storage at the end. */
  flush: boolean;
  /** A bar. */
  progress: boolean;
}

const SECTOR_BYTES = 512;
/** As nbdcopy has them. */
const CONNECTIONS = 4;
const REQUESTS = 16;
/** Zeroes of this length within data become holes, as with nbdcopy. */
const SPARSE_BYTES = 4096;

/** Copies all of `source`; a destination that is a file gets its size, another must be as large. */
export async function copy(
  source: string,
  destination: string,
  options: CopyOptions,
): Promise<void> {
  const graph = new BlockGraph();
  const progress = options.progress ? new Progress() : null;
  try {
    const from = graph.add(await openEnd(source, "source", options));
    const to = graph.add(await openDestination(destination, from.sizeBytes, options));
    if (to.sizeBytes < from.sizeBytes) {
      throw new BlockError("ENOSPC", `'${destination}' is smaller than '${source}'`);
    }
    const isNewFile = to instanceof FileNode;
    const tailStart = from.sizeBytes - from.sizeBytes % SECTOR_BYTES;
    await convertDisks({
      // The engine copies whole sectors.
      sources: [graph.add(new RawNode({ nodeName: "sectors", file: from, sizeBytes: tailStart }))],
      target: to,
      sparseBytes: options.allocated ? 0 : SPARSE_BYTES,
      isTargetZero: !options.allocated && (isNewFile || options.destinationIsZero),
      parallel: (options.connections ?? CONNECTIONS) * (options.requests ?? REQUESTS),
      isUnordered: true,
      onProgress: (done, total) => progress?.report(`${source} to ${destination}`, done, total),
    });
    const tail = IoVector.of(new Uint8Array(from.sizeBytes - tailStart));
    await from.read(tailStart, tail);
    await to.write(tailStart, tail);
    if (options.flush) await to.flush();
  } finally {
    progress?.end();
    await graph.close();
  }
}

/** The destination: an export, null:, or a file that becomes as large as the source. */
async function openDestination(
  name: string,
  sizeBytes: number,
  options: CopyOptions,
): Promise<BlockNode> {
  if (name === "null:") return new NullCoNode({ nodeName: "destination", sizeBytes });
  if (isNbdFilename(name)) return await openEnd(name, "destination", options);
  const common = { nodeName: "destination", path: name, isReadOnly: false };
  const isThere = await Deno.stat(name).then(() => true, () => false);
  if (!isThere) return FileNode.open({ ...common, create: true, sizeBytes });
  const node = FileNode.open(common);
  try {
    // What it held before is gone, and what it will hold is zero.
    await node.resize(0);
    await node.resize(sizeBytes);
  } catch (error) {
    await node.close();
    throw error;
  }
  return node;
}

async function openEnd(
  name: string,
  nodeName: "source" | "destination",
  options: CopyOptions,
): Promise<BlockNode> {
  const isReadOnly = nodeName === "source";
  if (!isNbdFilename(name)) return FileNode.open({ nodeName, path: name, isReadOnly });
  const { address, exportName, tls } = await locate(name, options);
  return await NbdNode.open({
    nodeName,
    server: address,
    exportName,
    isReadOnly,
    connections: options.connections ?? CONNECTIONS,
    ...(tls === undefined ? {} : { tls }),
  });
}
