/** What `ovis nbd serve` does. @module */

import { BlockLayer } from "../../block/block_layer.ts";
import type { DirtyBitmap } from "../../block/dirty_bitmap.ts";
import { BlockError } from "../../block/errors.ts";
import type { ExportDirectory } from "../../block/export.ts";
import { RawNode } from "../../block/drivers/raw.ts";
import { NodeExport } from "../../block/exports/node_export.ts";
import { chainOf } from "../../block/image/chain.ts";
import { IoVector } from "../../block/io_vector.ts";
import type { BlockNode } from "../../block/node.ts";
import { localContext } from "../../block/open/drivers.ts";
import { openImage } from "../../block/open/open_image.ts";
import { readPartitions } from "../../client/fs/partitions.ts";
import { formatNbdUri, NBD_DEFAULT_PORT } from "../../nbd/address.ts";
import { createNbdDriver } from "../../nbd/nbd_driver.ts";
import { NbdServer } from "../../nbd/server.ts";
import type { ServerTls } from "../../nbd/transports/tls.ts";
import { compileKernels, Kernels } from "../../wasm/kernels.ts";
import { printError, printLine } from "../output.ts";
import { waitForSignal } from "../signals.ts";
import { readServerTls } from "../tls_files.ts";

/** The command's options. */
export interface ServeImageOptions {
  /** A unix socket instead of TCP. */
  socket?: string;
  /** Where TCP listens. */
  host: string;
  /** NBD's own unless given. */
  port?: number;
  /** Probed unless given. */
  format?: string;
  /** Writes are refused. */
  readOnly: boolean;
  /** Where the disk starts. */
  offset?: number;
  /** Which partition is served. */
  partition?: number;
  /** What flushes do. */
  cache: "writeback" | "writethrough" | "unsafe";
  /** What trims do. */
  discard: "unmap" | "ignore";
  /** "" where any will do. */
  exportName: string;
  /** For people. */
  description: string;
  /** A dirty bitmap to be shown. */
  bitmap?: string;
  /** qemu:allocation-depth is shown. */
  allocationDepth: boolean;
  /** Clients at a time. */
  shared?: number;
  /** Ends with the last client. */
  once: boolean;
  /** Whether TLS may or must be used. */
  tls: "off" | "allowed" | "required";
  /** Where the certificate is. */
  tlsCertificates?: string;
  /** Clients must have one too. */
  tlsVerifyPeer: boolean;
}

/** Serves an image until a signal, or the last client's leaving, ends it. */
export async function serveImage(image: string, options: ServeImageOptions): Promise<void> {
  const block = new BlockLayer(new Kernels(await compileKernels()));
  try {
    const node = await openNode(block, image, options);
    const blockExport = new NodeExport(block.graph, {
      name: options.exportName,
      description: options.description,
      nodeName: node.nodeName,
      isWritable: !options.readOnly,
      bitmaps: options.bitmap === undefined ? [] : [findBitmap(block, node, options.bitmap)],
      showsDepth: options.allocationDepth,
      isWritethrough: options.cache === "writethrough",
    });
    try {
      await serveExport(blockExport, options);
    } finally {
      await blockExport.close();
    }
  } finally {
    await block.close();
  }
}

async function serveExport(blockExport: NodeExport, options: ServeImageOptions): Promise<void> {
  const directory: ExportDirectory = {
    find: (name) => name === "" || name === blockExport.name ? blockExport : undefined,
    list: () => [blockExport],
  };
  const left = Promise.withResolvers<void>();
  const server = new NbdServer({
    directory,
    ...(options.shared === undefined ? {} : { connectionsMax: options.shared }),
    onDisconnect: () => {
      const { open } = server.connections;
      if (options.once && open === 0) left.resolve();
    },
  });
  try {
    const uri = await listen(server, options);
    const how = `${blockExport.sizeBytes} bytes, ${options.readOnly ? "read-only" : "read-write"}`;
    printLine(`serving ${uri} (${how})`);
    const reason = await Promise.race([waitForSignal(), left.promise]);
    if (reason !== undefined) printError(`${reason}: closing`);
  } finally {
    await server.close();
  }
}

async function listen(server: NbdServer, options: ServeImageOptions): Promise<string> {
  const isTls = options.tls !== "off";
  const exportName = options.exportName;
  if (options.socket !== undefined) {
    if (isTls) throw new BlockError("EINVAL", "TLS is for TCP, not for unix sockets");
    await server.listenUnix(options.socket);
    return formatNbdUri({
      address: { type: "unix", path: options.socket },
      exportName,
      isTls: false,
    });
  }
  const address = { host: options.host, port: options.port ?? NBD_DEFAULT_PORT };
  const tls = isTls
    ? { certificate: await readCertificate(options), isRequired: options.tls === "required" }
    : undefined;
  const { host, port } = server.listenTcp(address, tls);
  return formatNbdUri({ address: { type: "inet", host, port }, exportName, isTls });
}

async function readCertificate(options: ServeImageOptions): Promise<ServerTls> {
  const folder = options.tlsCertificates;
  if (folder === undefined) throw new BlockError("EINVAL", "--tls needs --tls-certificates");
  return await readServerTls(folder, options.tlsVerifyPeer);
}

/** The node to be served: the image, or the part of it that was asked for. */
async function openNode(
  block: BlockLayer,
  image: string,
  options: ServeImageOptions,
): Promise<BlockNode> {
  const { format } = options;
  const context = localContext({
    kernels: block.kernels,
    drivers: [createNbdDriver()],
    bitmaps: block.bitmaps,
  });
  const opened = await openImage(block.graph, image, {
    isReadOnly: options.readOnly,
    discard: options.discard,
    ignoresFlush: options.cache === "unsafe",
    ...(format === undefined ? {} : { format }),
  }, context);
  if (opened.isProbed && opened.format === "raw" && !options.readOnly) {
    printError(
      `Image format was not specified for '${image}' and probing guessed raw: name it (-f raw), ` +
        "since who may write could make it something else",
    );
  }
  const part = await findPart(opened.node, options);
  if (part === undefined) return opened.node;
  return block.graph.add(
    new RawNode({ nodeName: "part", file: opened.node, discard: options.discard, ...part }),
  );
}

async function findPart(
  node: BlockNode,
  { offset, partition }: ServeImageOptions,
): Promise<{ offset: number; sizeBytes?: number } | undefined> {
  if (partition === undefined) return offset === undefined ? undefined : { offset };
  const { partitions } = await readPartitions({
    sizeBytes: node.sizeBytes,
    read: async (at, length) => {
      const bytes = new Uint8Array(length);
      await node.read(at, IoVector.of(bytes));
      return bytes;
    },
  });
  const found = partitions.find(({ number }) => number === partition);
  if (found !== undefined) return { offset: found.offset, sizeBytes: found.sizeBytes };
  const numbers = partitions.map(({ number }) => number).join(", ");
  throw new BlockError(
    "ENOENT",
    partitions.length === 0
      ? "there is no partition table"
      : `there is no partition ${partition}, but ${numbers}`,
  );
}

/** A bitmap of the image, or of one that it is based on. */
function findBitmap(block: BlockLayer, node: BlockNode, name: string): DirtyBitmap {
  for (const image of chainOf(node)) {
    const found = block.bitmaps.list(image).find((bitmap) => bitmap.name === name);
    if (found !== undefined) return found;
  }
  throw new BlockError("ENOENT", `Bitmap '${name}' is not found`);
}
