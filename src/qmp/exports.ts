/**
 * The exports that a monitor's clients made, and the NBD server that they started for them.
 *
 *   nbd-server-start --> running --block-export-add--> exports --block-export-del--> ...
 *                                --nbd-server-stop--> no exports, not running
 *
 * @module
 */

import type { BlockEdge } from "../block/edge.ts";
import { BlockError } from "../block/errors.ts";
import type { BlockExport, ExportDirectory } from "../block/export.ts";
import type { DirtyBitmap } from "../block/dirty_bitmap.ts";
import { NodeExport } from "../block/exports/node_export.ts";
import type { BlockNode } from "../block/node.ts";
import { limits } from "../limits.ts";
import type { NbdAddress } from "../nbd/address.ts";
import { NbdServer } from "../nbd/server.ts";
import type { Monitor } from "./monitor.ts";

/**
 * A server that there is already, for a monitor that starts none of its own: the exports are
 * offered there, whether a client asked for a server or not.
 */
export interface ExportHost {
  /** Throws a BlockError where the export can't be offered. */
  added(blockExport: BlockExport): void;
  /** Nobody may open it any more; resolves when nobody has it open. */
  removed(blockExport: BlockExport): Promise<void>;
  /** Whether a client has the export of that name open. */
  hasClients(exportName: string): boolean;
  /** Can also be reached at this socket, until the returned function is called. */
  offerAt(path: string): Promise<() => Promise<void>>;
}

/** A bitmap that an export shows: of the exported node or one below, or of a named node. */
export type ExportBitmap = string | { node: string; name: string };

/** A new export. */
export interface ExportOptions {
  /** Unique among exports. */
  id: string;
  /** The node that it shows. */
  nodeName: string;
  /** By which clients open it: the node's name unless given. */
  name?: string;
  /** For people. */
  description?: string;
  /** Without it the export is read-only. */
  isWritable?: boolean;
  /** Every write is on stable storage before it is answered. */
  isWritethrough?: boolean;
  /** Shows how deep in the backing chain the data is. */
  showsDepth?: boolean;
  /** Shown to readers. */
  bitmaps?: readonly ExportBitmap[];
}

/** How an NBD server is started. */
export interface ServerStartOptions {
  /** Where it listens. */
  address: NbdAddress;
  /** The id of credentials: clients must use TLS. */
  tlsCredentials?: string;
  /** Connections at a time; 0: as many as there may be. */
  connectionsMax?: number;
}

interface ExportEntry {
  readonly id: string;
  readonly node: BlockNode;
  readonly blockExport: NodeExport;
  isShuttingDown: boolean;
}

/** An export as query-block-exports shows it. */
export interface ExportInfo {
  /** Unique among exports. */
  id: string;
  /** The node that it shows. */
  nodeName: string;
  /** It is being deleted. */
  isShuttingDown: boolean;
}

/** A server that a client started. */
interface StartedServer {
  hasClients(exportName: string): boolean;
  closeExport(exportName: string): Promise<void>;
  close(): Promise<void>;
}

const NAME_BYTES_MAX = 4096;

/** See the module's head. */
export class BlockExports {
  readonly #monitor: Monitor;
  readonly #host: ExportHost | null;
  readonly #entries = new Map<string, ExportEntry>();
  /** What was started, by a client's command. */
  #server: StartedServer | null = null;

  /** `host`: see MonitorOptions. */
  constructor(monitor: Monitor, host: ExportHost | null) {
    this.#monitor = monitor;
    this.#host = host;
  }

  /** In the order of query-block-exports: the newest first. */
  list(): ExportInfo[] {
    return [...this.#entries.values()].reverse().map(({ id, node, isShuttingDown }) => ({
      id,
      nodeName: node.nodeName,
      isShuttingDown,
    }));
  }

  /** Starts the NBD server. Throws a BlockError where one runs, or it can't listen there. */
  async startServer(options: ServerStartOptions): Promise<void> {
    if (this.#server !== null) throw invalid("NBD server already running");
    const { address } = options;
    if (!this.#monitor.mayListen(address)) {
      throw new BlockError("EPERM", "An NBD server may not be started at this address");
    }
    try {
      this.#server = this.#host === null
        ? await this.#ownServer(options)
        : await offeredServer(this.#host, options);
    } catch (error) {
      if (error instanceof BlockError) throw error;
      throw listenError(address, error);
    }
  }

  async #ownServer(
    { address, tlsCredentials, connectionsMax }: ServerStartOptions,
  ): Promise<StartedServer> {
    const certificate = tlsCredentials === undefined
      ? undefined
      : this.#monitor.objects.serverTls(tlsCredentials);
    const server = new NbdServer({
      directory: this.#directory(),
      ...(connectionsMax ? { connectionsMax } : {}),
    });
    try {
      if (address.type === "inet") {
        server.listenTcp(
          address,
          certificate === undefined ? undefined : { certificate, isRequired: true },
        );
      } else {
        if (certificate !== undefined) throw invalid("TLS is only supported with IPv4/IPv6");
        await server.listenUnix(address.path);
      }
    } catch (error) {
      await server.close();
      throw error;
    }
    return {
      hasClients: (name) => server.hasClients(name),
      closeExport: (name) => server.closeExport(name),
      close: () => server.close(),
    };
  }

  /** Deletes all exports and stops the server. Throws a BlockError where none runs. */
  async stopServer(): Promise<void> {
    const server = this.#server;
    if (server === null) throw invalid("NBD server not running");
    for (const { id } of [...this.#entries.values()]) await this.remove(id, { isHard: true });
    this.#server = null;
    await server.close();
  }

  /** Adds an export. Throws a BlockError in QEMU's words. */
  add(options: ExportOptions): void {
    const { id, nodeName, isWritable = false } = options;
    if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(id)) throw invalid("Invalid block export id");
    if (this.#entries.has(id)) throw invalid(`Block export id '${id}' is already in use`);
    const { graph } = this.#monitor.block;
    const node = graph.find(nodeName);
    if (node === undefined) {
      throw new BlockError("ENOENT", `Cannot find device='' nor node-name='${nodeName}'`);
    }
    if (isWritable && node.isReadOnly) throw invalid("Cannot export read-only node as writable");
    if (this.#server === null && this.#host === null) throw invalid("NBD server not running");
    const name = options.name ?? nodeName;
    const { description = "" } = options;
    if (utf8Length(name) > NAME_BYTES_MAX) throw invalid(`export name '${name}' too long`);
    if (utf8Length(description) > NAME_BYTES_MAX) {
      throw invalid(`description '${description}' too long`);
    }
    if (this.#find(name) !== undefined) {
      throw invalid(`NBD server already has export named '${name}'`);
    }
    if (this.#entries.size >= limits.qmpExports) {
      throw invalid(`There are ${limits.qmpExports} exports already`);
    }
    const bitmaps = (options.bitmaps ?? []).map((bitmap) =>
      this.#bitmap(bitmap, { node, isWritable })
    );
    const blockExport = new NodeExport(graph, {
      name,
      userName: "",
      description,
      nodeName,
      isWritable,
      isWritethrough: options.isWritethrough ?? false,
      showsDepth: options.showsDepth ?? false,
      bitmaps,
    });
    const entry = { id, node, blockExport, isShuttingDown: false };
    this.#entries.set(id, entry);
    try {
      this.#host?.added(blockExport);
    } catch (error) {
      this.#entries.delete(id);
      blockExport.close();
      throw error;
    }
  }

  /**
   * Deletes an export: clients are cut off if `isHard`, else it is refused while there are any.
   * Throws a BlockError.
   */
  async remove(id: string, { isHard }: { isHard: boolean }): Promise<void> {
    const entry = this.#entries.get(id);
    if (entry === undefined) throw new BlockError("ENOENT", `Export '${id}' is not found`);
    if (entry.isShuttingDown) throw invalid(`Export '${id}' is already shutting down`);
    const { name } = entry.blockExport;
    if (!isHard && (this.#host ?? this.#server)?.hasClients(name)) {
      throw new BlockError("EBUSY", `export '${id}' still in use`);
    }
    entry.isShuttingDown = true;
    await this.#server?.closeExport(name);
    await this.#host?.removed(entry.blockExport);
    await entry.blockExport.close();
    this.#entries.delete(id);
    this.#monitor.emit({ event: "BLOCK_EXPORT_DELETED", data: { id } });
  }

  /** Deletes all exports and stops the server, if one runs. */
  async close(): Promise<void> {
    for (const { id } of [...this.#entries.values()]) await this.remove(id, { isHard: true });
    await this.#server?.close();
    this.#server = null;
  }

  #find(name: string): BlockExport | undefined {
    for (const { blockExport, isShuttingDown } of this.#entries.values()) {
      if (blockExport.name === name && !isShuttingDown) return blockExport;
    }
    return undefined;
  }

  #directory(): ExportDirectory {
    return {
      find: (name) => this.#find(name),
      list: () =>
        [...this.#entries.values()].filter(({ isShuttingDown }) => !isShuttingDown)
          .map(({ blockExport }) => blockExport),
    };
  }

  #bitmap(
    bitmap: ExportBitmap,
    { node, isWritable }: { node: BlockNode; isWritable: boolean },
  ): DirtyBitmap {
    const { bitmaps, graph } = this.#monitor.block;
    if (typeof bitmap !== "string") return bitmaps.get(namedNode(bitmap.node), bitmap.name);
    for (let at: BlockNode | null = node; at !== null; at = belowNode(at)) {
      const found = bitmaps.list(at).find(({ name }) => name === bitmap);
      if (found === undefined) continue;
      found.check("use");
      if (!isWritable && !node.isReadOnly && found.isRecording) {
        throw invalid(`Enabled bitmap '${bitmap}' incompatible with readonly export`);
      }
      return found;
    }
    throw new BlockError("ENOENT", `Bitmap '${bitmap}' is not found`);

    function namedNode(nodeName: string): BlockNode {
      const found = graph.find(nodeName);
      if (found === undefined) throw new BlockError("ENOENT", `Node '${nodeName}' not found`);
      return found;
    }
  }
}

/** The host's server, at one more place. */
async function offeredServer(
  host: ExportHost,
  { address, tlsCredentials }: ServerStartOptions,
): Promise<StartedServer> {
  if (address.type !== "unix" || tlsCredentials !== undefined) {
    throw invalid("An NBD server can only be started at a unix socket, without TLS");
  }
  const close = await host.offerAt(address.path);
  return { hasClients: (name) => host.hasClients(name), closeExport: async () => {}, close };
}

/** What stands below a filter, or behind an image. */
function belowNode(node: BlockNode): BlockNode | null {
  let found: BlockEdge | null = null;
  for (const edge of node.children.values()) {
    if (edge.role === "filtered" || edge.role === "cow") found = edge;
  }
  // raw is a format to QEMU: a bitmap of its file is not the disk's.
  return found === null || node.driver === "raw" ? null : found.node;
}

function listenError(address: NbdAddress, error: unknown): BlockError {
  const message = error instanceof Error ? error.message : String(error);
  const reason = message.replace(/ \(os error \d+\).*$/, "");
  const where = address.type === "unix"
    ? `Failed to bind socket to ${address.path}`
    : "Failed to bind socket";
  return new BlockError("EINVAL", `${where}: ${reason}`, { cause: error });
}

function utf8Length(text: string): number {
  return new TextEncoder().encode(text).length;
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}
