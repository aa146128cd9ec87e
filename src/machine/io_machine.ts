/**
 * One machine as its I/O worker holds it: the block layer (storage.ts) with devices on top, the
 * console, the doorbell.
 *
 *   open --load--> loaded --load--> ... --close--> closed
 *
 * @module
 */

import { BlockError } from "../block/errors.ts";
import { limits } from "../limits.ts";
import { readHartLayout } from "../wasm/hart.ts";
import { ConsolePump } from "./console.ts";
import { MachineDisks } from "./disks.ts";
import { DoorbellLoop } from "./doorbell.ts";
import { GuestMemory } from "./guest_memory.ts";
import type { Answer } from "./io_rpc.ts";
import { loadMachine } from "./loader.ts";
import type { BootConfig, IoEvent, IoMethods, MachineConfig, WorkerInit } from "./messages.ts";
import { IoStorage } from "./storage.ts";

/** See the module's head. Made by `open`, which undoes what it did where it fails. */
export class IoMachine {
  /** Its disks and all that can be done with them. */
  readonly storage: IoStorage;
  readonly #config: MachineConfig;
  readonly #modules: WorkerInit["modules"];
  readonly #emit: (event: IoEvent) => void;
  readonly #memory: GuestMemory;
  readonly #disks: MachineDisks;
  readonly #console: ConsolePump;
  readonly #doorbell: DoorbellLoop;
  /** While the machine is loaded no queue is worked: its memory changes. */
  #isLoading = false;
  #hasExited = false;

  private constructor(
    parts: { memory: GuestMemory; storage: IoStorage; disks: MachineDisks },
    options: {
      config: MachineConfig;
      modules: WorkerInit["modules"];
      emit: (event: IoEvent) => void;
    },
  ) {
    this.#config = options.config;
    this.#modules = options.modules;
    this.#emit = options.emit;
    this.#memory = parts.memory;
    this.storage = parts.storage;
    this.#disks = parts.disks;
    this.#console = new ConsolePump(parts.memory, {
      emit: (bytes) => this.#emit({ type: "console", bytes }),
    });
    this.#doorbell = new DoorbellLoop(parts.memory, {
      console: () => this.#console.pump(),
      exit: () => this.#reportExit(),
      virtio: (slot) => !this.#isLoading && this.#disks.process(slot),
      socketActivity: () => this.storage.nbdActivity,
    });
  }

  /** Opens disks and listeners, or nothing: throws a BlockError. */
  static async open(
    { config, modules, memory: shared }: IoMethods["open"]["params"],
    emit: (event: IoEvent) => void,
  ): Promise<IoMachine> {
    const memory = new GuestMemory(shared, readHartLayout(modules.hart));
    const storage = await IoStorage.open(config, {
      kernels: modules.kernels,
      hasGuest: true,
      emit,
      onResized: (name) => disks.resized(storage.disks.get(name)),
      drainGuest: () => disks.drain(),
    });
    const disks = new MachineDisks(storage.disks.list, memory);
    return new IoMachine({ memory, storage, disks }, { config, modules, emit });
  }

  /** Clears the machine and loads it. The harts must be parked. */
  async load(): Promise<Answer<"load">> {
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
      this.storage.monitor?.noteReset();
      return { result: { entryPc } };
    } finally {
      this.#isLoading = false;
      // The words of the doorbell were cleared with the rest.
      this.#doorbell.wake();
    }
  }

  /** Types on the console. */
  consoleInput({ bytes }: IoMethods["consoleInput"]["params"]): Answer<"consoleInput"> {
    return { result: { accepted: this.#console.input(bytes) } };
  }

  /** The control side has taken console output. */
  consoleTaken(byteCount: number): void {
    this.#console.acknowledge(byteCount);
  }

  /**
   * Takes everything down: the guest is served no more, then the block layer goes.
   */
  async close(): Promise<void> {
    const failures: unknown[] = [];
    const attempt = (action: () => unknown) =>
      Promise.resolve().then(action).catch((error: unknown) => failures.push(error));
    await attempt(() => this.#doorbell.stop());
    this.#console.close();
    await attempt(() => this.storage.close());
    if (failures.length > 0) throw failures[0];
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
