/**
 * The control side's hold on one machine: its shared memory, its I/O worker and its hart workers.
 *
 *   open --start--> running --pause--> parked --resume--> running
 *                      |  ^                |
 *                      |  +---- reset -----+
 *                      +--(guest exits: the harts park themselves, the caller resets or closes)
 *   any --close--> closed
 *   any --(a worker died, a hart did not park in time)--> failed: only `close` is left
 *
 * A worker that is busy can't be ended from outside on this runtime, so harts are asked: STOP_WORD,
 * and a bump of each word that they may wait on. Only workers that answered are terminated.
 *
 * The machine's state driver calls `start` to `close` one at a time; two at once are put in a row.
 *
 * @module
 */

import { BlockError } from "../block/errors.ts";
import { limits } from "../limits.ts";
import type {
  HartEvent,
  HartRequest,
  IoMethod,
  IoMethods,
  MachineConfig,
  NbdAddresses,
  StorageOpened,
  WorkerInit,
} from "../machine/messages.ts";
import { readTranslatorFigures, type TranslatorFigures } from "../wasm/translator.ts";
import { createMachineMemory, type HartLayout, readHartLayout } from "../wasm/hart.ts";
import type { DriverEvents, MachineDriver } from "./driver.ts";
import { SampleReader } from "../machine/samples.ts";
import { IoHandle, MachineFailure, messageOf, within } from "./io_handle.ts";
import { type Profile, type ProfileOrder, Profiler } from "./profiler.ts";

/** mtime counts with 10 MHz. */
const MTIME_TICKS_PER_MS = 10_000;
const NS_PER_TICK = 100n;

/** The modules that every machine shares. */
export type MachineModules = WorkerInit["modules"];

/** A hart's worker. */
interface HartWorker {
  worker: Worker;
  isRunning: boolean;
  /** Called when it is ready or parked. */
  onIdle: (() => void) | null;
}

/** A machine with open disks and listeners. */
export class MachineHandle implements MachineDriver {
  readonly #config: MachineConfig;
  readonly #layout: HartLayout;
  readonly #memory: WebAssembly.Memory;
  readonly #words: Int32Array;
  readonly #io: IoHandle;
  readonly #profiler: Profiler;
  readonly #harts: HartWorker[] = [];
  #opened: StorageOpened = { nbd: null, disks: [] };
  #closing: Promise<void> | null = null;
  /** When the harts were parked by `pause`, on this isolate's clock. */
  #pausedAtMs: number | null = null;
  /** The end of the last of `start`, `pause`, `resume`, `reset`. */
  #transition: Promise<unknown> = Promise.resolve();

  private constructor(config: MachineConfig, modules: MachineModules, events: DriverEvents) {
    this.#config = config;
    this.#layout = readHartLayout(modules.hart);
    this.#memory = createMachineMemory(this.#layout, config.memoryBytes);
    this.#words = new Int32Array(this.#memory.buffer);
    Atomics.store(this.#words, this.#layout.STOP_WORD >>> 2, 1);
    const { buffer } = this.#memory;
    this.#profiler = new Profiler(new SampleReader(buffer, this.#layout, config.hartCount));
    const { kernel, initrd, firmware } = config.boot;
    const files = [kernel, initrd, firmware].filter((path) => path !== null);
    this.#io = new IoHandle(config, files, events);
  }

  /** Opens disks and listeners, starts the workers; the harts are parked. Throws a BlockError. */
  static async open(
    config: MachineConfig,
    modules: MachineModules,
    events: DriverEvents,
  ): Promise<MachineHandle> {
    const machine = new MachineHandle(config, modules, events);
    const init = { modules, memory: machine.#memory };
    try {
      const [opened] = await Promise.all([
        machine.call("open", { config, ...init }),
        ...Array.from({ length: config.hartCount }, (_, id) => machine.#startHart(id, init)),
      ]);
      if (machine.#io.failure !== null) throw machine.#io.failure;
      machine.#opened = opened;
      return machine;
    } catch (error) {
      await machine.close();
      throw error;
    }
  }

  /** Where the NBD server listens. */
  get nbd(): NbdAddresses {
    return this.#opened.nbd ?? this.#config.nbd;
  }

  /** What the translators of its harts did; null where they only interpret. */
  get translator(): TranslatorFigures | null {
    if (this.#config.accel !== "translator") return null;
    const view = new DataView(this.#memory.buffer);
    return readTranslatorFigures(view, this.#layout, this.#config.hartCount);
  }

  /** What is open in its I/O worker. */
  get opened(): StorageOpened {
    return this.#opened;
  }

  /** Loads the boot files and lets the harts run. */
  start(): Promise<void> {
    return this.#inTurn(() => this.#loadAndRun());
  }

  /** Parks the harts; resolves when all are parked. */
  pause(): Promise<void> {
    return this.#inTurn(async () => {
      await this.#park();
      this.#pausedAtMs ??= performance.now();
      this.#io.notify({ type: "runState", state: "paused" });
    });
  }

  /** Lets parked harts run on. */
  resume(): Promise<void> {
    return this.#inTurn(async () => {
      await this.#awaitDeviceResets();
      this.#skipPausedTime();
      this.#run();
    });
  }

  /** Parks the harts, loads the boot files again, and lets the harts run. */
  reset(): Promise<void> {
    return this.#inTurn(async () => {
      await this.#park();
      await this.#loadAndRun();
    });
  }

  /** Looks where the harts are; see Profiler. */
  profile(order: ProfileOrder): Promise<Profile> {
    return this.#profiler.run(order);
  }

  /** Gives bytes to the console's input; resolves with how many there was room for. */
  async consoleInput(bytes: Uint8Array<ArrayBuffer>): Promise<number> {
    return (await this.call("consoleInput", { bytes })).accepted;
  }

  /** A call to the I/O worker. Rejects with a BlockError. */
  call<M extends IoMethod>(
    method: M,
    params: IoMethods[M]["params"],
    transfer: Transferable[] = [],
  ): Promise<IoMethods[M]["result"]> {
    return this.#io.call(method, params, transfer);
  }

  /** Parks the harts, takes everything down, ends the workers. Never throws; may be repeated. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#profiler.close();
    await this.#transition;
    await this.#park().catch(() => {});
    await this.#io.close();
    for (const { worker } of this.#harts) worker.terminate();
  }

  /** One after the other, also after a failure. */
  #inTurn(action: () => Promise<void>): Promise<void> {
    const result = this.#transition.then(() => {
      if (this.#io.failure !== null) throw this.#io.failure;
      if (this.#closing !== null) throw new BlockError("ESHUTDOWN", "the machine is closed");
      return action();
    });
    this.#transition = result.catch(() => {});
    return result;
  }

  async #loadAndRun(): Promise<void> {
    await this.call("load", {});
    this.#pausedAtMs = null;
    this.#run();
  }

  #run(): void {
    this.#io.notify({ type: "runState", state: "running" });
    Atomics.store(this.#words, this.#layout.STOP_WORD >>> 2, 0);
    for (const hart of this.#harts) {
      if (hart.isRunning) continue;
      hart.isRunning = true;
      postTo(hart.worker, { type: "run" });
    }
  }

  /**
   * The guest's timers do not see a pause, or its watchdogs would all go off; its RTC does, since
   * it tells the time of day.
   */
  #skipPausedTime(): void {
    if (this.#pausedAtMs === null) return;
    const { MTIME_ORIGIN, RTC_EPOCH_NS } = this.#layout;
    const ticks = BigInt(Math.round((performance.now() - this.#pausedAtMs) * MTIME_TICKS_PER_MS));
    const words = new BigInt64Array(this.#memory.buffer);
    Atomics.add(words, MTIME_ORIGIN >>> 3, ticks);
    Atomics.add(words, RTC_EPOCH_NS >>> 3, ticks * NS_PER_TICK);
    this.#pausedAtMs = null;
  }

  /**
   * A hart that was parked while it reset a device goes on as if the reset were done. So it must
   * be: the driver takes its memory for its own again.
   */
  async #awaitDeviceResets(): Promise<void> {
    const { VIRTIO_BASE, VIRTIO_STRIDE, VIRTIO_SLOTS } = this.#layout;
    const words = this.#words;
    const reset = async () => {
      for (let slot = 0; slot < VIRTIO_SLOTS; slot++) {
        const base = VIRTIO_BASE + slot * VIRTIO_STRIDE;
        const asked = (base + this.#layout.VIRTIO_RESET_WORD) >>> 2;
        const done = (base + this.#layout.VIRTIO_RESET_DONE_WORD) >>> 2;
        for (let seen = Atomics.load(words, done); seen !== Atomics.load(words, asked);) {
          await Atomics.waitAsync(words, done, seen).value;
          seen = Atomics.load(words, done);
        }
      }
    };
    await within(
      limits.closeDeadlineMs,
      reset(),
      () => new MachineFailure("a disk's requests did not end in time"),
    );
  }

  /** Throws, and marks the machine failed, where a hart does not park in time. */
  async #park(): Promise<void> {
    const words = this.#words;
    Atomics.store(words, this.#layout.STOP_WORD >>> 2, 1);
    for (let id = 0; id < this.#harts.length; id++) {
      const wake = (this.#layout.HART_BASE + id * this.#layout.HART_STRIDE +
        this.#layout.HART_WAKE_WORD) >>> 2;
      Atomics.add(words, wake, 1);
      Atomics.notify(words, wake);
    }
    const parked = this.#harts.map((hart) => this.#idle(hart));
    try {
      await within(limits.parkDeadlineMs, Promise.all(parked), () => {
        const late = this.#harts.flatMap(({ isRunning }, id) => isRunning ? [id] : []);
        return new MachineFailure(`hart ${late.join(", ")} did not stop in time`);
      });
    } catch (error) {
      this.#io.fail(messageOf(error));
      throw error;
    }
  }

  #idle(hart: HartWorker): Promise<void> {
    if (!hart.isRunning) return Promise.resolve();
    return new Promise((resolve) => hart.onIdle = resolve);
  }

  /** Resolves when the hart is ready. */
  #startHart(hartId: number, init: WorkerInit): Promise<void> {
    const worker = new Worker(new URL("../machine/hart_worker.ts", import.meta.url), {
      type: "module",
      name: `hart ${hartId} ${this.#config.name}`,
      deno: { permissions: "none" },
    });
    const hart: HartWorker = { worker, isRunning: true, onIdle: null };
    this.#harts.push(hart);
    worker.onmessage = ({ data }: MessageEvent<HartEvent>) => {
      this.#onIdle(hart);
      if (data.type === "failed") this.#io.fail(`hart ${hartId} failed: ${data.message}`);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      this.#onIdle(hart);
      this.#io.fail(`the worker of hart ${hartId} died: ${event.message}`);
    };
    postTo(worker, { type: "init", hartId, accel: this.#config.accel ?? "interpreter", ...init });
    return this.#idle(hart);
  }

  #onIdle(hart: HartWorker): void {
    hart.isRunning = false;
    hart.onIdle?.();
    hart.onIdle = null;
  }
}

function postTo(worker: Worker, request: HartRequest): void {
  worker.postMessage(request);
}
