/**
 * A real machine for tests: the embedded demo guest, disks in a temporary folder, its console as
 * text.
 *
 * @module
 */

import type { DiskConfig, MachineConfig } from "../../src/machine/messages.ts";
import { MachineHandle } from "../../src/vm/machine_handle.ts";
import { compileHart } from "../../src/wasm/hart.ts";
import { compileKernels } from "../../src/wasm/kernels.ts";

const MiB = 1024 * 1024;
const GUEST = new URL("../guests/demo/demo.elf", import.meta.url).pathname;
const PROMPT = "demo> ";

export const modules = { hart: await compileHart(), kernels: await compileKernels() };

/** What a test changes of the usual machine. */
export interface TestMachineOptions {
  /** Sizes of the disks, named disk0, disk1, ... */
  disks?: (Partial<DiskConfig> & { sizeBytes: number })[];
  /** Of an earlier machine: its disks are used again. */
  directory?: string;
  config?: Partial<MachineConfig>;
}

/** An open machine and what it said. */
export class TestMachine {
  readonly exits: string[] = [];
  readonly failures: string[] = [];
  readonly broken: string[] = [];
  readonly jobs: string[] = [];
  readonly resized: string[] = [];
  console = "";
  #waiters: (() => void)[] = [];
  #handle: MachineHandle | null = null;

  private constructor(readonly directory: string) {}

  /** Opens a machine, which has not been started. */
  static async open(options: TestMachineOptions = {}): Promise<TestMachine> {
    const directory = options.directory ?? await Deno.makeTempDir();
    const machine = new TestMachine(directory);
    await Deno.mkdir(`${directory}/scratch`, { recursive: true });
    const disks: DiskConfig[] = [];
    for (const [index, disk] of (options.disks ?? [{ sizeBytes: MiB }]).entries()) {
      const name = `disk${index}`;
      const path = `${directory}/${name}.img`;
      if (options.directory === undefined) {
        using file = await Deno.open(path, { write: true, create: true });
        await file.truncate(disk.sizeBytes);
      }
      disks.push({ name, path, format: "raw", isReadOnly: false, serial: name, ...disk });
    }
    const config: MachineConfig = {
      name: "test",
      memoryBytes: 16 * MiB,
      hartCount: 1,
      boot: { kernel: GUEST, initrd: null, firmware: null, cmdline: "" },
      disks,
      writableFolders: [],
      readableFolders: [],
      scratchDirectory: `${directory}/scratch`,
      monitorPath: `${directory}/qmp.sock`,
      nbd: { host: "127.0.0.1", port: 0, socketPath: `${directory}/nbd.sock` },
      ...options.config,
    };
    machine.#handle = await MachineHandle.open(config, modules, {
      onConsole: (bytes) => machine.#hear(bytes),
      onExit: (reason, code) => machine.#note(machine.exits, `${reason} ${code}`),
      onFleecingBroken: (fleecing, disk, message) =>
        machine.#note(machine.broken, `${fleecing} ${disk}: ${message}`),
      onJob: (job) => machine.#note(machine.jobs, `${job.id} ${job.status}`),
      onDiskResized: (disk, sizeBytes) => machine.#note(machine.resized, `${disk} ${sizeBytes}`),
      onQuestion: () => Promise.resolve(),
      onFailed: (message) => machine.#note(machine.failures, message),
    });
    return machine;
  }

  /** Opens and starts a machine; resolves at the guest's prompt. */
  static async boot(options: TestMachineOptions = {}): Promise<TestMachine> {
    const machine = await TestMachine.open(options);
    await machine.handle.start();
    await machine.prompt();
    return machine;
  }

  get handle(): MachineHandle {
    if (this.#handle === null) throw new Error("the machine is not open");
    return this.#handle;
  }

  /** What the guest says to a command, without echo and prompt. */
  async run(command: string): Promise<string> {
    this.console = "";
    await this.type(`${command}\r`);
    const text = await this.prompt();
    const start = text.indexOf("\n") + 1;
    return text.slice(start, -PROMPT.length).replaceAll("\r", "").trim();
  }

  async type(text: string): Promise<void> {
    await this.handle.consoleInput(new TextEncoder().encode(text));
  }

  /** Waits for the prompt and takes everything up to it. */
  async prompt(): Promise<string> {
    await this.until(() => this.console.includes(PROMPT));
    const end = this.console.indexOf(PROMPT) + PROMPT.length;
    const text = this.console.slice(0, end);
    this.console = this.console.slice(end);
    return text;
  }

  /** Waits until something that the machine said makes `isDone` true. */
  async until(isDone: () => boolean): Promise<void> {
    while (!isDone()) {
      if (this.failures.length > 0) throw new Error(`the machine failed: ${this.failures[0]}`);
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  /** Closes the machine and removes its folder. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle?.close();
    await Deno.remove(this.directory, { recursive: true });
  }

  #hear(bytes: Uint8Array): void {
    this.console += new TextDecoder().decode(bytes);
    this.#wake();
  }

  #note(list: string[], text: string): void {
    list.push(text);
    this.#wake();
  }

  #wake(): void {
    for (const waiter of this.#waiters.splice(0)) waiter();
  }
}
