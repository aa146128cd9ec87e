/**
 * One machine as its I/O worker holds it: disks and their block graph, fleecings, the NBD server,
 * the console, the doorbell.
 *
 *   open --load--> loaded --load--> ... --close--> closed
 *
 * `load`, `fleecingStart`, `fleecingStop` and `close` are carried out one after the other; the
 * guest is served all the time, readers too.
 *
 * @module
 */

import { BlockError } from "../block/errors.ts";
import type { BlockExport } from "../block/export.ts";
import { DirtyBitmaps } from "../block/dirty_bitmap.ts";
import { Fleecing } from "../block/fleecing.ts";
import { BlockGraph } from "../block/graph.ts";
import { limits } from "../limits.ts";
import { NbdServer } from "../nbd/server.ts";
import { PortStream } from "../nbd/transports/port.ts";
import { readHartLayout } from "../wasm/hart.ts";
import { Kernels } from "../wasm/kernels.ts";
import { ConsolePump } from "./console.ts";
import { MachineDisks } from "./disks.ts";
import { DoorbellLoop } from "./doorbell.ts";
import { MachineExports } from "./exports.ts";
import { GuestMemory } from "./guest_memory.ts";
import { type Answer, toWireError } from "./io_rpc.ts";
import { loadMachine } from "./loader.ts";
import type {
  BootConfig,
  FleecingInfo,
  FleecingRequest,
  IoEvent,
  IoMethods,
  MachineConfig,
  NbdAddresses,
  WorkerInit,
} from "./messages.ts";

/** Names of the meta contexts behind `exportExtents`. */
const CONTEXTS = { access: "x-ovis:access", allocation: "base:allocation" };

/** What is opened one after the other and closed the other way round. */
interface Parts {
  memory: GuestMemory;
  graph: BlockGraph;
  disks: MachineDisks;
  exports: MachineExports;
  server: NbdServer;
  nbd: NbdAddresses;
}

/** See the module's head. Made by `open`, which undoes what it did where it fails. */
export class IoMachine {
  /** Where its NBD server listens. */
  readonly nbd: NbdAddresses;
  readonly #config: MachineConfig;
  readonly #modules: WorkerInit["modules"];
  readonly #emit: (event: IoEvent) => void;
  readonly #memory: GuestMemory;
  readonly #graph: BlockGraph;
  readonly #disks: MachineDisks;
  readonly #exports: MachineExports;
  readonly #server: NbdServer;
  readonly #kernels: Kernels;
  readonly #bitmaps: DirtyBitmaps;
  readonly #console: ConsolePump;
  readonly #doorbell: DoorbellLoop;
  readonly #fleecings = new Map<string, Fleecing>();
  /** While the machine is loaded no queue is worked: its memory changes. */
  #isLoading = false;
  #hasExited = false;
  #serial: Promise<unknown> = Promise.resolve();

  private constructor(
    parts: Parts,
    options: {
      config: MachineConfig;
      modules: WorkerInit["modules"];
      emit: (event: IoEvent) => void;
    },
  ) {
    this.nbd = parts.nbd;
    this.#config = options.config;
    this.#modules = options.modules;
    this.#emit = options.emit;
    this.#memory = parts.memory;
    this.#graph = parts.graph;
    this.#disks = parts.disks;
    this.#exports = parts.exports;
    this.#server = parts.server;
    this.#kernels = new Kernels(options.modules.kernels);
    this.#bitmaps = new DirtyBitmaps(this.#kernels);
    this.#console = new ConsolePump(parts.memory, {
      emit: (bytes) => this.#emit({ type: "console", bytes }),
    });
    this.#doorbell = new DoorbellLoop(parts.memory, {
      console: () => this.#console.pump(),
      exit: () => this.#reportExit(),
      virtio: (slot) => !this.#isLoading && this.#disks.process(slot),
    });
  }

  /** Opens disks and listeners, or nothing: throws a BlockError. */
  static async open(
    { config, modules, memory }: IoMethods["open"]["params"],
    emit: (event: IoEvent) => void,
  ): Promise<IoMachine> {
    const guestMemory = new GuestMemory(memory, readHartLayout(modules.hart));
    const graph = new BlockGraph();
    const disks = await MachineDisks.open(config.disks, { graph, memory: guestMemory });
    const exports = new MachineExports();
    const server = new NbdServer({ directory: exports });
    try {
      const { host, socketPath } = config.nbd;
      const { port } = server.listenTcp(config.nbd);
      await server.listenUnix(socketPath);
      const parts = { memory: guestMemory, graph, disks, exports, server };
      const nbd = { host, port, socketPath };
      return new IoMachine({ ...parts, nbd }, { config, modules, emit });
    } catch (error) {
      await server.close();
      await disks.close();
      throw error;
    }
  }

  /** Clears the machine and loads it. The harts must be parked. */
  load(): Promise<Answer<"load">> {
    return this.#inTurn(async () => {
      this.#isLoading = true;
      try {
        await this.#disks.drain();
        this.#console.discardInput();
        this.#console.flush();
        const { hart: module } = this.#modules;
        const { entryPc } = await loadMachine(this.#memory, {
          module,
          hartCount: this.#config.hartCount,
          ...await readBootFiles(this.#config.boot),
          cmdline: this.#config.boot.cmdline,
          virtioSlots: this.#disks.slots,
        });
        this.#disks.announce();
        this.#hasExited = false;
        return { result: { entryPc } };
      } finally {
        this.#isLoading = false;
        // The words of the doorbell were cleared with the rest.
        this.#doorbell.wake();
      }
    });
  }

  /** Types on the console. */
  consoleInput({ bytes }: IoMethods["consoleInput"]["params"]): Answer<"consoleInput"> {
    return { result: { accepted: this.#console.input(bytes) } };
  }

  /** The control side has taken console output. */
  consoleTaken(byteCount: number): void {
    this.#console.acknowledge(byteCount);
  }

  /** Freezes disks. */
  fleecingStart(request: FleecingRequest): Promise<Answer<"fleecingStart">> {
    return this.#inTurn(async () => {
      if (this.#fleecings.has(request.name)) {
        throw new BlockError("EBUSY", `there is a fleecing named ${request.name} already`);
      }
      if (this.#fleecings.size >= limits.fleecingsPerVm) {
        throw new BlockError("EBUSY", `there are ${limits.fleecingsPerVm} fleecings already`);
      }
      const { name } = request;
      const fleecing = await Fleecing.start(this.#graph, {
        ...request,
        disks: request.disks.map((disk) => this.#fleecingDisk(disk, request)),
        scratchDirectory: this.#config.scratchDirectory,
        kernels: this.#kernels,
        onBroken: (disk, error) =>
          this.#emit({ type: "fleecingBroken", fleecing: name, disk, error: toWireError(error) }),
      });
      try {
        this.#exports.add(fleecing.exports);
      } catch (error) {
        await fleecing.stop();
        throw error;
      }
      this.#fleecings.set(name, fleecing);
      return { result: describeFleecing(fleecing) };
    });
  }

  /** The fleecing's figures. */
  fleecingInfo({ name }: IoMethods["fleecingInfo"]["params"]): Answer<"fleecingInfo"> {
    return { result: describeFleecing(this.#fleecing(name)) };
  }

  /** Ends a fleecing: its readers first. */
  fleecingStop({ name }: IoMethods["fleecingStop"]["params"]): Promise<Answer<"fleecingStop">> {
    return this.#inTurn(async () => {
      await this.#stopFleecing(this.#fleecing(name));
      return { result: {} };
    });
  }

  /** What an export is. */
  exportInfo({ exportName }: IoMethods["exportInfo"]["params"]): Answer<"exportInfo"> {
    const { sizeBytes, isReadOnly } = this.#exports.get(exportName);
    return { result: { sizeBytes, isReadOnly } };
  }

  /** Reads a part of an export. */
  async exportRead(params: IoMethods["exportRead"]["params"]): Promise<Answer<"exportRead">> {
    const { offset, length } = params;
    const blockExport = this.#exports.get(params.exportName);
    checkRange(blockExport, { offset, length });
    if (length > limits.exportReadBytes) {
      throw new BlockError("EINVAL", `more than ${limits.exportReadBytes} bytes at once`);
    }
    const bytes = new ArrayBuffer(length);
    await blockExport.read(offset, new Uint8Array(bytes));
    return { result: { bytes }, transfer: [bytes] };
  }

  /** A part of an export's map. */
  async exportExtents(
    params: IoMethods["exportExtents"]["params"],
  ): Promise<Answer<"exportExtents">> {
    const { offset, length, context } = params;
    const blockExport = this.#exports.get(params.exportName);
    checkRange(blockExport, { offset, length });
    const map = blockExport.contexts.find(({ name }) => name === CONTEXTS[context]);
    if (map === undefined) {
      throw new BlockError("ENOTSUP", `${blockExport.name} has no map of ${context}`);
    }
    if (length === 0) return { result: { extents: [] } };
    const maxExtents = Math.min(Math.max(params.limit, 1), limits.extentsPerAnswer);
    let at = offset;
    const extents = [];
    for (const extent of await map.extents(offset, length, { maxExtents })) {
      extents.push({ offset: at, length: extent.length, flags: extent.flags });
      at += extent.length;
    }
    return { result: { extents } };
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

  /**
   * Takes everything down: the guest is served no more, readers end, fleecings go, what is in
   * flight is waited for, the disks are flushed and closed.
   */
  close(): Promise<Answer<"close">> {
    return this.#inTurn(async () => {
      const failures: unknown[] = [];
      const attempt = (action: () => unknown) =>
        Promise.resolve().then(action).catch((error: unknown) => failures.push(error));
      await attempt(() => this.#doorbell.stop());
      this.#console.close();
      await attempt(() => this.#server.close());
      for (const fleecing of [...this.#fleecings.values()].reverse()) {
        await attempt(() => this.#stopFleecing(fleecing));
      }
      await attempt(() => this.#disks.close());
      await attempt(() => this.#graph.close());
      if (failures.length > 0) throw failures[0];
      return { result: {} };
    });
  }

  #fleecing(name: string): Fleecing {
    const fleecing = this.#fleecings.get(name);
    if (fleecing === undefined) {
      throw new BlockError("ENOENT", `there is no fleecing named ${name}`);
    }
    return fleecing;
  }

  #fleecingDisk(name: string, request: FleecingRequest) {
    const disk = this.#disks.list.find(({ config }) => config.name === name);
    if (disk === undefined) throw new BlockError("ENOENT", `there is no disk named ${name}`);
    const { backend, node } = disk;
    const bitmap = request.bitmap === null ? null : this.#bitmaps.get(node, request.bitmap);
    const exportName = `${this.#config.name}-${name}-${request.name}`;
    return { name, exportName, backend, bitmap, target: null };
  }

  /** Its exports can't be opened any more, sessions on them end, then it goes. */
  async #stopFleecing(fleecing: Fleecing): Promise<void> {
    const names = fleecing.exports.map(({ name }) => name);
    for (const name of names) this.#exports.remove(name);
    await Promise.all(names.map((name) => this.#server.closeExport(name)));
    this.#fleecings.delete(fleecing.name);
    await fleecing.stop();
  }

  #reportExit(): void {
    const { layout } = this.#memory;
    const reason = this.#memory.loadWord(layout.EXIT_WORD);
    if (reason === layout.EXIT_NONE || this.#hasExited) return;
    this.#hasExited = true;
    this.#console.flush();
    const code = this.#memory.loadWord(layout.EXIT_CODE);
    const reasons = {
      [layout.EXIT_SHUTDOWN]: "shutdown",
      [layout.EXIT_REBOOT]: "reboot",
    } as const;
    this.#emit({ type: "exit", reason: reasons[reason] ?? "hostFault", code });
  }

  /** After what was asked before, whether that worked or not. */
  #inTurn<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#serial.then(action);
    this.#serial = result.catch(() => {});
    return result;
  }
}

function describeFleecing(fleecing: Fleecing): FleecingInfo {
  return { name: fleecing.name, disks: fleecing.info() };
}

function checkRange(blockExport: BlockExport, range: { offset: number; length: number }): void {
  const { offset, length } = range;
  const isRange = Number.isSafeInteger(offset) && Number.isSafeInteger(length) &&
    offset >= 0 && length >= 0 && length <= blockExport.sizeBytes - offset;
  if (!isRange) {
    throw new BlockError("EINVAL", `${length} bytes at ${offset} are outside ${blockExport.name}`);
  }
}

async function readBootFiles(boot: BootConfig) {
  const [kernel, initrd, firmware] = await Promise.all(
    [boot.kernel, boot.initrd, boot.firmware].map(readBootFile),
  );
  return { kernel: kernel ?? null, initrd: initrd ?? null, firmware: firmware ?? null };
}

async function readBootFile(path: string | null): Promise<Uint8Array<ArrayBuffer> | null> {
  if (path === null) return null;
  const { size } = await Deno.stat(path);
  if (size > limits.bootFileBytes) {
    throw new BlockError("EINVAL", `${path}: more than ${limits.bootFileBytes} bytes`);
  }
  return await Deno.readFile(path);
}
