/**
 * The block layer of an I/O worker: disks, their graph and bitmaps, fleecings, exports and the NBD
 * server. A machine's worker puts devices on top (io_machine.ts); a worker for disks without a
 * machine is this and nothing else.
 *
 *   open --> serving --close--> closed
 *
 * What changes the graph is carried out one call after the other; readers and the guest are served
 * all the time.
 *
 * @module
 */

import { BlockLayer } from "../block/block_layer.ts";
import { FileNode } from "../block/drivers/file.ts";
import { BlockError } from "../block/errors.ts";
import { diskAllocationContext } from "../block/exports/disk_contexts.ts";
import { dirtyBitmapContext } from "../block/exports/meta_contexts.ts";
import type { BlockExport } from "../block/export.ts";
import { BlockBackend } from "../block/backend.ts";
import type { BlockNode } from "../block/node.ts";
import { IoVector } from "../block/io_vector.ts";
import { PERM_ALL, PERM_WRITE, REQ_MAY_UNMAP } from "../block/types.ts";
import { limits } from "../limits.ts";
import { NbdServer } from "../nbd/server.ts";
import { PortStream } from "../nbd/transports/port.ts";
import { Kernels } from "../wasm/kernels.ts";
import { MachineExports } from "./exports.ts";
import { MachineMonitor } from "./machine_monitor.ts";
import type { Answer } from "./io_rpc.ts";
import type {
  DiskFormat,
  DiskInfo,
  FleecingRequest,
  IoEvent,
  IoMethods,
  JobRequest,
  NbdAddresses,
  NbdListen,
  StorageConfig,
  TransactionAction,
  TransactionResult,
} from "./messages.ts";
import { HostQuestions } from "./host_questions.ts";
import { StorageDisks } from "./storage_disks.ts";
import { StorageFleecings } from "./storage_fleecings.ts";
import { StorageImages } from "./storage_images.ts";
import { StorageJobs } from "./storage_jobs.ts";
import { checkPart, checkPiece, readMap, runsOf } from "./storage_reads.ts";
import { carryOut } from "./storage_transaction.ts";

/** Names of the meta contexts behind `exportExtents`. */
const CONTEXTS = { access: "x-ovis:access", allocation: "base:allocation" };
const DIRTY_PREFIX = "qemu:dirty-bitmap:";

/** How it is opened. */
export interface StorageOptions {
  /** Compiled in the control isolate. */
  kernels: WebAssembly.Module;
  /** A guest writes to the disks. */
  hasGuest: boolean;
  /** Says something to the control isolate. */
  emit: (event: IoEvent) => void;
  /** A disk has another size: its device tells the guest. */
  onResized?: (disk: string) => void;
  /** At the end: resolves when the guest has nothing in flight any more. */
  drainGuest?: () => Promise<void>;
}

/** See the module's head. Made by `open`, which undoes what it did where it fails. */
export class IoStorage {
  /** Where its NBD server listens, null: nowhere. */
  readonly nbd: NbdAddresses | null;
  /** In the order of the configuration. */
  readonly disks: StorageDisks;
  /** What it asks of the control isolate. */
  readonly questions: HostQuestions;
  /** Where monitors talk to it, null: nowhere. */
  readonly monitor: MachineMonitor | null;
  readonly #emit: (event: IoEvent) => void;
  readonly #onResized: (disk: string) => void;
  readonly #drainGuest: () => Promise<void>;
  readonly #block: BlockLayer;
  readonly #images: StorageImages;
  readonly #jobs: StorageJobs;
  readonly #exports = new MachineExports();
  readonly #server: NbdServer;
  readonly #fleecings: StorageFleecings;
  #serial: Promise<unknown> = Promise.resolve();

  private constructor(
    parts: {
      block: BlockLayer;
      images: StorageImages;
      disks: StorageDisks;
      exports: MachineExports;
      server: NbdServer;
      nbd: NbdAddresses | null;
    },
    config: StorageConfig,
    options: StorageOptions,
  ) {
    const { block, images, disks, exports, server } = parts;
    this.nbd = parts.nbd;
    this.disks = disks;
    this.#block = block;
    this.#images = images;
    this.#jobs = new StorageJobs({ block, disks, images, emit: options.emit });
    this.questions = new HostQuestions(options.emit);
    block.jobs.beforeReplace = (from, to) => this.#remember(from, to);
    this.#exports = exports;
    this.#server = server;
    this.#emit = options.emit;
    this.#onResized = options.onResized ?? (() => {});
    this.#drainGuest = options.drainGuest ?? (() => Promise.resolve());
    const closeSessions = (exportName: string) => server.closeExport(exportName);
    const { questions } = this;
    this.monitor = config.monitorPath === null ? null : new MachineMonitor({
      name: config.name,
      block,
      images,
      disks,
      exports,
      closeSessions,
      hasClients: (exportName) => server.hasClients(exportName),
      nbdSocketPath: parts.nbd?.socketPath ?? null,
      questions,
    });
    this.#fleecings = new StorageFleecings({
      name: config.name,
      block,
      images,
      disks,
      exports,
      scratchDirectory: config.scratchDirectory,
      emit: options.emit,
      closeSessions,
    });
  }

  /** Opens disks and listeners, or nothing: throws a BlockError. */
  static async open(config: StorageConfig, options: StorageOptions): Promise<IoStorage> {
    const block = new BlockLayer(new Kernels(options.kernels));
    const { hasGuest } = options;
    const images = new StorageImages(block, config);
    const disks = await StorageDisks.open(config.disks, { block, images, hasGuest });
    const exports = new MachineExports();
    const server = new NbdServer({ directory: exports });
    try {
      const nbd = config.nbd === null ? null : await listen(server, config.nbd);
      const parts = { block, images, disks, exports, server, nbd };
      const storage = new IoStorage(parts, config, options);
      if (config.monitorPath !== null) await storage.monitor?.listen(config.monitorPath);
      return storage;
    } catch (error) {
      await server.close();
      await disks.close();
      throw error;
    }
  }

  /** All disks, as they stand. */
  describeDisks(): DiskInfo[] {
    return this.disks.list.map((disk) => disk.describe(this.#block.bitmaps));
  }

  /** Freezes disks. */
  fleecingStart(request: FleecingRequest): Promise<Answer<"fleecingStart">> {
    return this.#inTurn(async () => {
      const [result] = await this.#carryOut([{ type: "fleecing", ...request }]);
      if (!result || !("fleecing" in result)) throw new Error("a fleecing without a result");
      return { result: result.fleecing };
    });
  }

  /** The fleecing's figures. */
  fleecingInfo({ name }: IoMethods["fleecingInfo"]["params"]): Answer<"fleecingInfo"> {
    return { result: this.#fleecings.info(name) };
  }

  /** Ends a fleecing: its readers first. */
  fleecingEnd(params: IoMethods["fleecingEnd"]["params"]): Promise<Answer<"fleecingEnd">> {
    return this.#inTurn(async () => {
      await this.#fleecings.end(params.name, params.result);
      return { result: {} };
    });
  }

  /** What copies of a fleecing may take at most: what is allocated, and dirty where that counts. */
  fleecingEstimate(
    { disks, bitmap }: IoMethods["fleecingEstimate"]["params"],
  ): Answer<"fleecingEstimate"> {
    let bytes = 0;
    for (const name of disks) {
      const { node } = this.disks.get(name);
      const allocated = Math.min(node.allocatedBytes ?? node.sizeBytes, node.sizeBytes);
      const found = this.#block.bitmaps.list(node).find((known) => known.name === bitmap);
      const isUsable = found !== undefined && !found.isInconsistent;
      bytes += isUsable ? Math.min(allocated, found.info().count) : allocated;
    }
    return { result: { bytes } };
  }

  /** Carries out all actions at one moment, or none. */
  transact({ actions }: IoMethods["transact"]["params"]): Promise<Answer<"transact">> {
    return this.#inTurn(async () => ({ result: { results: await this.#carryOut(actions) } }));
  }

  #carryOut(actions: readonly TransactionAction[]): Promise<TransactionResult[]> {
    return carryOut(actions, {
      block: this.#block,
      images: this.#images,
      disks: this.disks,
      fleecings: this.#fleecings,
      jobs: this.#jobs,
    });
  }

  /** A disk with its chain and bitmaps. */
  diskInfo({ disk }: IoMethods["diskInfo"]["params"]): Answer<"diskInfo"> {
    return { result: this.disks.get(disk).describe(this.#block.bitmaps) };
  }

  /** Makes an image. */
  async diskCreate(image: IoMethods["diskCreate"]["params"]): Promise<Answer<"diskCreate">> {
    await this.#images.create(image);
    return { result: {} };
  }

  /** Changes a disk's size. */
  diskResize({ disk, sizeBytes }: IoMethods["diskResize"]["params"]): Promise<
    Answer<"diskResize">
  > {
    return this.#inTurn(async () => {
      await this.#block.graph.resize(this.disks.get(disk).node.nodeName, sizeBytes);
      this.#onResized(disk);
      this.#emit({ type: "diskResized", disk, sizeBytes });
      return { result: {} };
    });
  }

  /** Reads a disk as it is now. */
  async diskRead(params: IoMethods["diskRead"]["params"]): Promise<Answer<"diskRead">> {
    const { backend } = this.disks.get(params.disk);
    checkPiece(params, backend.sizeBytes);
    const bytes = new ArrayBuffer(params.length);
    await backend.read(params.offset, IoVector.of(new Uint8Array(bytes)));
    return { result: { bytes }, transfer: [bytes] };
  }

  /** Writes to a disk that no guest has. */
  async diskWrite(params: IoMethods["diskWrite"]["params"]): Promise<Answer<"diskWrite">> {
    const { offset, bytes } = params;
    const { node } = this.disks.get(params.disk);
    checkPiece({ offset, length: bytes.length }, node.sizeBytes);
    const { nodeName } = node;
    const options = { name: "upload", nodeName, perm: PERM_WRITE, shared: PERM_ALL };
    const writer = new BlockBackend(this.#block.graph, options);
    try {
      for (const run of runsOf(bytes)) {
        const at = offset + run.offset;
        if (run.isZero) await writer.writeZeroes(at, run.length, REQ_MAY_UNMAP);
        else {
          const data = bytes.subarray(run.offset, run.offset + run.length);
          await writer.write(at, IoVector.of(data));
        }
      }
    } finally {
      await writer.release();
    }
    return { result: {} };
  }

  /** Brings what was written to stable storage. */
  async diskFlush({ disk }: IoMethods["diskFlush"]["params"]): Promise<Answer<"diskFlush">> {
    await this.disks.get(disk).backend.flush();
    return { result: {} };
  }

  /** A part of a disk's map. */
  async diskExtents(params: IoMethods["diskExtents"]["params"]): Promise<Answer<"diskExtents">> {
    const { context, bitmap } = params;
    const { backend, node } = this.disks.get(params.disk);
    checkPart(params, backend.sizeBytes);
    if (context === "allocation") {
      return { result: { extents: await readMap(diskAllocationContext(backend), params) } };
    }
    const [only, ...more] = this.#block.bitmaps.list(node);
    if (bitmap === null && (only === undefined || more.length > 0)) {
      throw new BlockError("EINVAL", `name a bitmap: the disk has ${only ? "several" : "none"}`);
    }
    const found = bitmap === null ? only : this.#block.bitmaps.get(node, bitmap);
    if (found === undefined) throw new BlockError("ENOENT", `there is no bitmap ${bitmap}`);
    found.checkConsistent();
    return { result: { extents: await readMap(dirtyBitmapContext(found), params) } };
  }

  /** Starts a job. */
  jobStart(request: JobRequest): Promise<Answer<"jobStart">> {
    return this.#inTurn(async () => ({ result: await this.#jobs.start(request) }));
  }

  /** Asks something of a job. */
  async jobCommand({ id, command }: IoMethods["jobCommand"]["params"]): Promise<
    Answer<"jobCommand">
  > {
    await this.#jobs.command(id, command);
    return { result: {} };
  }

  /** Changes a job's limit. */
  jobSetSpeed({ id, speed }: IoMethods["jobSetSpeed"]["params"]): Answer<"jobSetSpeed"> {
    this.#jobs.setSpeed(id, speed);
    return { result: {} };
  }

  /** All jobs that were not dismissed. */
  jobList(): Answer<"jobList"> {
    return { result: { jobs: this.#jobs.list() } };
  }

  /** What an export is. */
  exportInfo({ exportName }: IoMethods["exportInfo"]["params"]): Answer<"exportInfo"> {
    const { sizeBytes, isReadOnly } = this.#exports.get(exportName);
    return { result: { sizeBytes, isReadOnly } };
  }

  /** Reads a part of an export. */
  async exportRead(params: IoMethods["exportRead"]["params"]): Promise<Answer<"exportRead">> {
    const blockExport = this.#exports.get(params.exportName);
    checkPiece(params, blockExport.sizeBytes);
    const bytes = new ArrayBuffer(params.length);
    await blockExport.read(params.offset, new Uint8Array(bytes));
    return { result: { bytes }, transfer: [bytes] };
  }

  /** A part of an export's map. */
  async exportExtents(
    params: IoMethods["exportExtents"]["params"],
  ): Promise<Answer<"exportExtents">> {
    const blockExport = this.#exports.get(params.exportName);
    checkPart(params, blockExport.sizeBytes);
    const map = findContext(blockExport, params);
    return { result: { extents: await readMap(map, params) } };
  }

  /** Says that parts of an export were read. */
  async exportDiscard(
    { exportName, ranges }: IoMethods["exportDiscard"]["params"],
  ): Promise<Answer<"exportDiscard">> {
    const blockExport = this.#exports.get(exportName);
    if (ranges.length > limits.extentsPerAnswer) {
      throw new BlockError("EINVAL", `more than ${limits.extentsPerAnswer} ranges at once`);
    }
    if (!blockExport.canDiscard) {
      throw new BlockError("ENOTSUP", `${exportName} can't be discarded`);
    }
    for (const range of ranges) checkPart(range, blockExport.sizeBytes);
    for (const { offset, length } of ranges) await blockExport.discard(offset, length);
    return { result: {} };
  }

  /** Serves an NBD client behind a message port. */
  nbdOpen({ exportName, port }: IoMethods["nbdOpen"]["params"]): Answer<"nbdOpen"> {
    try {
      this.#exports.get(exportName);
    } catch (error) {
      port.close();
      throw error;
    }
    this.#server.serve(new PortStream(port, exportName), this.#exports.only(exportName));
    return { result: {} };
  }

  /** Changes with everything that NBD clients ask. */
  get nbdActivity(): number {
    return this.#server.activity;
  }

  /** What the NBD server counts. */
  nbdStatistics(): Answer<"nbdStatistics"> {
    return { result: this.#server.statistics };
  }

  /** Serves a monitor's client behind a message port. */
  monitorOpen({ port }: IoMethods["monitorOpen"]["params"]): Answer<"monitorOpen"> {
    if (this.monitor === null) {
      port.close();
      throw new BlockError("ENOTSUP", "there is no monitor");
    }
    this.monitor.serve(port);
    return { result: {} };
  }

  /** Readers end, fleecings go, what is in flight is waited for, disks are flushed and closed. */
  close(): Promise<void> {
    return this.#inTurn(async () => {
      const failures: unknown[] = [];
      const attempt = (action: () => unknown) =>
        Promise.resolve().then(action).catch((error: unknown) => failures.push(error));
      await attempt(() => this.#server.close());
      await attempt(() => this.monitor?.close());
      await attempt(() => this.#jobs.close());
      await attempt(() => this.#fleecings.close());
      // After the fleecings: a write may wait for a copy that nobody needs any more.
      await attempt(() => this.#drainGuest());
      await attempt(() => this.disks.close());
      await attempt(() => this.#block.close());
      if (failures.length > 0) throw failures[0];
    });
  }

  /** Another image is about to become a disk's active one: first it is put on record. */
  async #remember(from: BlockNode, to: BlockNode): Promise<void> {
    const disk = this.disks.list.find((candidate) => candidate.node === from);
    if (disk === undefined) return;
    const file = to.children.get("file")?.node;
    const isKnown = to.driver === "raw" || to.driver === "qcow2";
    if (!(file instanceof FileNode) || !isKnown) {
      throw new BlockError("ENOTSUP", `disk ${disk.config.name} can only be in a file`);
    }
    const { name } = disk.config;
    const format = to.driver as DiskFormat;
    await this.questions.ask({ type: "activeFile", disk: name, path: file.path, format });
  }

  /** After what was asked before, whether that worked or not. */
  #inTurn<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#serial.then(action);
    this.#serial = result.catch(() => {});
    return result;
  }
}

async function listen(server: NbdServer, addresses: NbdListen): Promise<NbdAddresses> {
  const { host, socketPath, tls } = addresses;
  const { port } = server.listenTcp(addresses, tls);
  await server.listenUnix(socketPath);
  return { host, port, socketPath, isTlsRequired: tls?.isRequired ?? false };
}

function findContext(
  blockExport: BlockExport,
  { context, bitmap }: Pick<IoMethods["exportExtents"]["params"], "context" | "bitmap">,
) {
  const isWanted = context === "dirty"
    ? (name: string) =>
      name.startsWith(DIRTY_PREFIX) &&
      (bitmap === null || name === DIRTY_PREFIX + bitmap)
    : (name: string) => name === CONTEXTS[context];
  const found = blockExport.contexts.filter(({ name }) => isWanted(name));
  const [map, ...more] = found;
  if (map === undefined) {
    throw new BlockError("ENOTSUP", `${blockExport.name} has no map of ${bitmap ?? context}`);
  }
  if (more.length > 0) throw new BlockError("EINVAL", "the export shows several bitmaps: name one");
  return map;
}
