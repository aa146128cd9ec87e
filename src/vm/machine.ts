/**
 * One machine: its state driver. Everything that changes a machine's state goes through its queue,
 * one request at a time; life_cycle.ts says what a request means in a state, this file carries it
 * out.
 *
 * What the workers say unasked (the guest shut down, a worker died) is queued like a request, and
 * is dropped if the session that said it has ended meanwhile.
 *
 * Reads (views, figures, export content) don't wait in the queue: they see the state as it is, and
 * fail cleanly if the machine is closed under them.
 *
 * @module
 */

import { setTimeout as delay } from "node:timers/promises";
import { limits } from "../limits.ts";
import type {
  FleecingResult,
  HostQuestion,
  IoMethod,
  IoMethods,
  MachineConfig,
  NbdTls,
} from "../machine/messages.ts";
import { ConsoleLog } from "./console_log.ts";
import { Checkpoints } from "./checkpoints.ts";
import { type DataFolder, ignoreMissing } from "./data_folder.ts";
import type { Disks } from "./disks.ts";
import type { DriverEvents, MachineDriver, OpenDriver } from "./driver.ts";
import { ServiceError, toServiceError } from "./errors.ts";
import type { EventLog } from "./event_log.ts";
import type { ExportDirectory } from "./export_directory.ts";
import { explainBoot, explainDriver, explainReference } from "./explain.ts";
import { type FleecingOrder, Fleecings, type FleecingStatus } from "./fleecings.ts";
import type { Images } from "./images.ts";
import { decide, isOpen, type LifeCycleRequest, type MachineState } from "./life_cycle.ts";
import type { JobBook } from "./job_book.ts";
import type { JobStarter } from "./job_starter.ts";
import type { Log } from "./log.ts";
import { answerMonitor } from "./monitor.ts";
import { ownDiskName } from "./names.ts";
import { RequestQueue } from "./request_queue.ts";
import type { MachineDisk, MachineRecord, Store } from "./store.ts";
import { runTransaction, type TransactionOrder, type TransactionOutcome } from "./transaction.ts";

/** What a machine needs of its surroundings. */
export interface MachineContext {
  /** Where temporary images and sockets stand. */
  folder: DataFolder;
  /** All disks: a machine claims its own while it is open. */
  disks: Disks;
  /** Told of jobs. */
  jobs: JobBook;
  /** Puts jobs of transactions on record. */
  starter: JobStarter;
  /** Told of states and fleecings. */
  events: EventLog;
  /** Folders that temporary images may go to, beside the data folder. */
  allowedFolders: readonly string[];
  /** Keeps the machine's record and those of its fleecings. */
  store: Store;
  /** What it boots from, looked up anew at every start and reset. */
  images: Images;
  /** Takes the exports of its fleecings; names are unique in the whole service. */
  directory: ExportDirectory;
  /** Makes the workers, or what a test puts in their place. */
  openDriver: OpenDriver;
  /** Gets a child of its own for every machine. */
  log: Log;
  /** The address that NBD servers bind to. */
  nbdHost: string;
  /** Their TLS; none unless given. */
  nbdTls?: NbdTls;
}

/** How the guest ended by itself. */
export interface GuestExit {
  /** What the guest asked of the test finisher or of SBI; `hostFault`: a hart met a bug of ours. */
  reason: "shutdown" | "reboot" | "hostFault";
  /** What the guest gave, else 0; with `hostFault` the number of the fault. */
  code: number;
}

/** A disk of a machine to be made: a new one, or (`disk`) one that is there. */
export type MachineDiskOrder = MachineDisk & {
  format?: "raw" | "qcow2";
  clusterSizeBytes?: number | null;
  backing?: string | null;
};

const REQUESTS_WAITING = 32;
/** A guest that takes nothing from its console's ring for so long does not read it. */
const CONSOLE_PATIENCE_MS = 5_000;
const CONSOLE_POLL_MS = 10;
/** Of a virtio-blk serial number. */
const SERIAL_BYTES = 20;

/** One run of a machine's workers. */
interface Session {
  driver: MachineDriver | null;
}

/** A machine and its life. */
export class Machine {
  /** What the guest printed; lives on when the machine stops. */
  readonly console = new ConsoleLog(limits.consoleLogBytes);
  /** Those that stand; changed within the machine's queue only. */
  readonly fleecings: Fleecings;
  /** Also those whose bitmaps were lost. */
  readonly checkpoints: Checkpoints;
  readonly #context: MachineContext;
  readonly #log: Log;
  readonly #queue = new RequestQueue(REQUESTS_WAITING);
  readonly #inputQueue = new RequestQueue(REQUESTS_WAITING);
  #record: MachineRecord;
  #state: MachineState;
  #since = new Date();
  #session: Session | null = null;
  #failure: string | null = null;
  #exit: GuestExit | null = null;
  /** Its name may belong to another machine now: nothing may be done in that name any more. */
  #isGone = false;

  /** A machine that the store knows. One in phase `creating` needs `create` first. */
  constructor(record: MachineRecord, context: MachineContext) {
    this.#record = record;
    this.#context = context;
    this.#log = context.log.getChild("vm").with({ vm: record.name });
    this.#state = record.phase === "ready" ? "stopped" : record.phase;
    this.checkpoints = new Checkpoints(record.name, context.store);
    this.fleecings = new Fleecings(record, {
      ...context,
      checkpoints: this.checkpoints,
      log: this.#log,
      onExpired: (name) => this.#expire(name),
    });
  }

  /** What the store holds. */
  get record(): Readonly<MachineRecord> {
    return this.#record;
  }

  /** Where the machine stands. */
  get state(): MachineState {
    return this.#state;
  }

  /** When it came there. */
  get since(): Date {
    return this.#since;
  }

  /** Why it is `failed`. */
  get failure(): string | null {
    return this.#failure;
  }

  /** How the guest ended last, if it ended by itself. */
  get exit(): GuestExit | null {
    return this.#exit;
  }

  /** Makes the disks. If that fails nothing is left of the machine. */
  create(orders: readonly MachineDiskOrder[]): Promise<void> {
    return this.#queue.run(async () => {
      try {
        await this.#createDisks(orders);
        this.#saveRecord({ ...this.#record, phase: "ready" });
        this.#enter("stopped");
      } catch (error) {
        await this.#destroy();
        throw toServiceError(error);
      }
    });
  }

  /** Carries out a request; resolves when the machine is there. */
  request(request: LifeCycleRequest): Promise<void> {
    return this.#queue.run(async () => {
      if (this.#isGone) {
        throw new ServiceError("vmNotFound", `machine ${this.#record.name} was deleted`);
      }
      const decision = decide(this.#state, request);
      if (decision === "done") return;
      if (decision !== "act") {
        throw new ServiceError(
          "wrongState",
          `machine ${this.#record.name} can't ${request}: ${decision.refused}`,
        );
      }
      switch (request) {
        case "start":
          return await this.#start();
        case "stop":
          return await this.#close("stopped");
        case "delete":
          return await this.#delete();
        case "pause":
          return await this.#switch("paused", (driver) => driver.pause());
        case "resume":
          return await this.#switch("running", (driver) => driver.resume());
        case "reset":
          return await this.#switch("running", (driver) => driver.reset());
      }
    });
  }

  /** Freezes disks. */
  startFleecing(order: FleecingOrder): Promise<FleecingStatus> {
    return this.#queue.run(async () => {
      const driver = this.requireDriver("take a fleecing");
      const disks = this.#chooseDisks(order.disks);
      const name = order.name ?? this.fleecings.freeName();
      const status = await this.fleecings.start(driver, { ...order, disks, name })
        .catch((error: unknown) => {
          throw explainDriver(this.#record.name, error);
        });
      this.#log.info("fleecing {fleecing} started", { fleecing: name });
      return status;
    });
  }

  /** Ends a fleecing. Without a result that its reader gave it is a failure: nothing is missed. */
  stopFleecing(name: string, result: FleecingResult = "failure"): Promise<void> {
    return this.#queue.run(async () => {
      this.fleecings.get(name);
      await this.fleecings.stop(this.requireDriver("end a fleecing"), { name, result })
        .catch((error: unknown) => {
          throw explainDriver(this.#record.name, error);
        });
      this.#log.info("fleecing {fleecing} ended: {result}", { fleecing: name, result });
    });
  }

  /** Removes a checkpoint with its bitmaps. */
  removeCheckpoint(name: string): Promise<void> {
    return this.#queue.run(async () => {
      const { disks } = this.checkpoints.get(name);
      this.fleecings.checkNotUsed(name);
      for (const disk of disks) {
        const resource = this.#record.disks.find((known) => known.name === disk)?.disk;
        if (resource === undefined) continue;
        await this.#context.disks.use(resource, async (driver, local) => {
          const { bitmaps } = await driver.call("diskInfo", { disk: local });
          if (!bitmaps.some((bitmap) => bitmap.name === name)) return;
          const actions = [{ type: "bitmap-remove", disk: local, name } as const];
          await driver.call("transact", { actions });
        });
      }
      this.checkpoints.remove(name);
    });
  }

  /** Carries out actions at one moment, or none. */
  transact(orders: readonly TransactionOrder[]): Promise<TransactionOutcome[]> {
    return this.#queue.run(() =>
      runTransaction(orders, {
        machine: this,
        driver: this.requireDriver("take a transaction"),
        disks: this.#context.disks,
        jobs: this.#context.starter,
        chooseDisks: (names) => this.#chooseDisks(names),
      }).catch((error: unknown) => {
        throw explainDriver(this.#record.name, explainReference(error));
      })
    );
  }

  /** The disks that are meant by these names: all, where none is named. Throws badReference. */
  #chooseDisks(names: readonly string[]): string[] {
    const known = this.#record.disks.map(({ name }) => name);
    const unknown = names.find((disk) => !known.includes(disk));
    if (unknown !== undefined) {
      throw new ServiceError(
        "badReference",
        `machine ${this.#record.name} has no disk named ${unknown}`,
      );
    }
    const disks = names.length === 0 ? known : [...names];
    if (disks.length === 0) {
      throw new ServiceError("badReference", `machine ${this.#record.name} has no disks`);
    }
    return disks;
  }

  /** A fleecing with its figures. */
  async fleecingStatus(name: string): Promise<FleecingStatus> {
    this.fleecings.get(name);
    try {
      return await this.fleecings.status(this.requireDriver("report on a fleecing"), name);
    } catch (error) {
      throw explainDriver(this.#record.name, error);
    }
  }

  /** The unix socket of its monitor, while it is open. */
  get qmp(): string | null {
    return this.nbd === null ? null : this.#context.folder.monitorPath(this.#record.id);
  }

  /** Where the NBD server listens, while there is one. */
  get nbd(): MachineDriver["nbd"] | null {
    return this.#session?.driver?.nbd ?? null;
  }

  /** What its translators did, while it is open. */
  get translator(): MachineDriver["translator"] {
    return this.#session?.driver?.translator ?? null;
  }

  /** A call to the I/O worker on behalf of a reader. */
  async call<M extends IoMethod>(
    method: M,
    params: IoMethods[M]["params"],
    transfer: Transferable[] = [],
  ): Promise<IoMethods[M]["result"]> {
    try {
      return await this.requireDriver("be read").call(method, params, transfer);
    } catch (error) {
      throw explainDriver(this.#record.name, error);
    }
  }

  /** Types on the console; resolves when the guest's input ring has taken everything. */
  consoleInput(bytes: Uint8Array<ArrayBuffer>, signal: AbortSignal): Promise<void> {
    return this.#inputQueue.run(async () => {
      let offset = 0;
      let deadline = Date.now() + CONSOLE_PATIENCE_MS;
      while (offset < bytes.length && !signal.aborted) {
        const driver = this.requireDriver("take console input");
        const end = Math.min(bytes.length, offset + limits.consoleInputBytes);
        const accepted = await driver.consoleInput(bytes.slice(offset, end));
        offset += accepted;
        if (accepted > 0) deadline = Date.now() + CONSOLE_PATIENCE_MS;
        else if (Date.now() > deadline) {
          throw new ServiceError(
            "consoleBusy",
            `the guest does not read its console: ${offset} of ${bytes.length} bytes were taken`,
          );
        } else await delay(CONSOLE_POLL_MS);
      }
    }).catch((error: unknown) => {
      throw explainDriver(this.#record.name, error);
    });
  }

  /** The service goes down: refuses what waits, closes what is open. */
  async shutDown(): Promise<void> {
    const reason = new ServiceError("stopping", "the service is stopping");
    await this.#queue.close(reason);
    if (this.#session !== null) await this.#close("stopped");
    await this.#inputQueue.close(reason);
    this.console.close();
  }

  async #start(): Promise<void> {
    const session: Session = { driver: null };
    this.#enter("starting");
    this.#failure = null;
    this.#exit = null;
    this.#session = session;
    const startedMs = performance.now();
    try {
      await this.#claimDisks(session);
      session.driver = await this.#context.openDriver(
        await this.#config(),
        this.#eventsOf(session),
      );
      for (const { name, sizeBytes } of session.driver.opened.disks) {
        this.#context.disks.noteSize(this.resourceOf(name), sizeBytes);
      }
      await session.driver.start();
    } catch (error) {
      this.#failure = error instanceof Error ? error.message : String(error);
      await this.#close("failed");
      throw explainBoot(this.#record.name, error);
    }
    this.#enter("running");
    this.#log.info("started in {ms} ms", { ms: Math.round(performance.now() - startedMs) });
  }

  async #config(): Promise<MachineConfig> {
    const { folder, images, nbdHost, nbdTls } = this.#context;
    const { id, name, image, memoryBytes, hartCount, accel, disks } = this.#record;
    const scratchDirectory = folder.scratchDirectory(id);
    await Deno.mkdir(scratchDirectory, { recursive: true, mode: 0o700 });
    const [socketPath, monitorPath] = [folder.socketPath(id), folder.monitorPath(id)];
    for (const path of [socketPath, monitorPath]) await Deno.remove(path).catch(ignoreMissing);
    return {
      name,
      memoryBytes,
      hartCount,
      ...(accel !== undefined && { accel }),
      boot: images.bootConfig(image),
      disks: disks.map(({ name, isReadOnly }) => {
        const serial = name.slice(0, SERIAL_BYTES);
        return this.#context.disks.config(this.resourceOf(name), { name, isReadOnly, serial });
      }),
      ...this.#context.disks.folders(disks.map(({ name }) => this.resourceOf(name))),
      scratchDirectory,
      monitorPath,
      nbd: { host: nbdHost, port: 0, socketPath, ...(nbdTls && { tls: nbdTls }) },
    };
  }

  /** The disk that a machine's disk is. Throws badReference. */
  resourceOf(disk: string): string {
    const found = this.#record.disks.find(({ name }) => name === disk);
    if (found === undefined) {
      throw new ServiceError("badReference", `machine ${this.#record.name} has no disk ${disk}`);
    }
    return found.disk ?? ownDiskName(this.#record.name, disk);
  }

  async #claimDisks(session: Session): Promise<void> {
    const { name: vm, disks } = this.#record;
    const claimed = disks.map(({ name, isReadOnly }) => ({
      name,
      isReadOnly,
      disk: this.resourceOf(name),
    }));
    await this.#context.disks.claim(claimed, {
      vm,
      driver: () => {
        if (session.driver !== null && isOpen(this.#state)) return session.driver;
        throw new ServiceError("wrongState", `machine ${vm} is ${this.#state}`);
      },
    });
  }

  async #switch(
    state: "running" | "paused",
    action: (driver: MachineDriver) => Promise<void>,
  ): Promise<void> {
    const session = this.#session;
    try {
      await action(this.requireDriver("go on"));
    } catch (error) {
      this.#failure = error instanceof Error ? error.message : String(error);
      await this.#close("failed");
      throw explainBoot(this.#record.name, error);
    }
    if (this.#session === session) this.#enter(state);
  }

  /** Ends the session, if there is one, and everything that lives in it. */
  async #close(state: "stopped" | "failed" | "deleting"): Promise<void> {
    if (state === "stopped" && isOpen(this.#state)) this.#enter("stopping");
    const session = this.#session;
    await session?.driver?.close();
    this.#session = null;
    this.fleecings.clear();
    this.#context.jobs.endAll({ vm: this.#record.name }, "the machine was stopped");
    this.#context.disks.release(this.#record.name);
    await this.#removeTemporary();
    this.#enter(state);
  }

  /** What can't be removed now is removed at the next start of the service. */
  async #removeTemporary(): Promise<void> {
    const { folder } = this.#context;
    try {
      await Deno.remove(folder.scratchDirectory(this.#record.id), { recursive: true })
        .catch(ignoreMissing);
      await Deno.remove(folder.socketPath(this.#record.id)).catch(ignoreMissing);
      await Deno.remove(folder.monitorPath(this.#record.id)).catch(ignoreMissing);
    } catch (error) {
      this.#log.warn("temporary files stay behind: {error}", { error });
    }
  }

  async #delete(): Promise<void> {
    this.#context.disks.checkOwnedFree(this.#record.name);
    // First on record: if that fails, the machine is as it was.
    this.#saveRecord({ ...this.#record, phase: "deleting" });
    await this.#close("deleting");
    await this.#destroy();
  }

  async #destroy(): Promise<void> {
    this.#enter("deleting");
    const { disks, store } = this.#context;
    const { name } = this.#record;
    await disks.removeOwned(this.#record.disks, name);
    this.checkpoints.clear();
    store.machines.remove(name);
    this.#isGone = true;
    this.console.close();
  }

  async #createDisks(orders: readonly MachineDiskOrder[]): Promise<void> {
    const { name: vm, id: folder } = this.#record;
    for (const order of orders) {
      if (order.disk !== undefined) continue;
      await this.#context.disks.create({
        name: ownDiskName(vm, order.name),
        owner: { vm, folder, disk: order.name },
        sizeBytes: order.sizeBytes === 0 ? null : order.sizeBytes,
        format: order.format ?? "raw",
        clusterSizeBytes: order.clusterSizeBytes ?? null,
        backing: order.backing ?? null,
        path: null,
      });
    }
  }

  #eventsOf(session: Session): DriverEvents {
    return {
      onConsole: (bytes) => this.console.append(bytes),
      onExit: (reason, code) => this.#later(session, () => this.#onExit({ reason, code })),
      onJob: (job) => {
        const vm = this.#record.name;
        const isOurs = this.#record.disks.some(({ name }) => name === job.disk);
        const disk = isOurs ? this.resourceOf(job.disk) : job.disk;
        this.#context.jobs.note(job, { vm, disk });
      },
      onDiskResized: (disk, sizeBytes) =>
        this.#context.disks.noteSize(this.resourceOf(disk), sizeBytes),
      onQuestion: (question) => this.#answer(session, question),
      onFleecingBroken: (fleecing, disk, message) => {
        this.fleecings.markBroken(fleecing, { disk, message });
        this.#log.warn("fleecing {fleecing} of {disk} broke: {message}", {
          fleecing,
          disk,
          message,
        });
      },
      onFailed: (message) =>
        this.#later(session, async () => {
          this.#failure = message;
          this.#log.error("failed: {message}", { message });
          await this.#close("failed");
        }),
    };
  }

  /** Queues what a session said. */
  #later(session: Session, action: () => Promise<void>): void {
    this.#queue.run(async () => {
      if (this.#session === session) await action();
    }).catch((error: unknown) => this.#log.warn("event not handled: {error}", { error }));
  }

  async #onExit(exit: GuestExit): Promise<void> {
    this.#log.info("guest ended: {reason} {code}", { ...exit });
    this.#exit = exit;
    switch (exit.reason) {
      case "reboot":
        return await this.#switch("running", (driver) => driver.reset());
      case "shutdown":
        return await this.#close("stopped");
      case "hostFault":
        this.#failure = `the emulator met a fault of its own (code ${exit.code})`;
        return await this.#close("failed");
    }
  }

  /** What the worker can't do or decide by itself. */
  async #answer(session: Session, question: HostQuestion): Promise<void> {
    if (question.type === "activeFile") {
      return this.#context.disks.switchFile(this.resourceOf(question.disk), question);
    }
    if (this.#session !== session) throw new ServiceError("wrongState", "the machine was stopped");
    await answerMonitor(this, question.request);
  }

  /** A fleecing's time is over. */
  #expire(name: string): void {
    this.#log.info("fleecing {fleecing} has expired", { fleecing: name });
    this.stopFleecing(name).catch((error: unknown) =>
      this.#log.warn("fleecing {fleecing} could not be ended: {error}", { fleecing: name, error })
    );
  }

  /** The driver, while it is open. Throws wrongState. */
  requireDriver(purpose: string): MachineDriver {
    const driver = this.#session?.driver ?? null;
    if (driver === null || !isOpen(this.#state)) {
      throw new ServiceError(
        "wrongState",
        `machine ${this.#record.name} can't ${purpose}: it is ${this.#state}`,
      );
    }
    return driver;
  }

  #enter(state: MachineState): void {
    this.#state = state;
    this.#since = new Date();
    const failure = state === "failed" ? this.#failure : null;
    this.#context.events.add("vm.state", { vm: this.#record.name, state, failure });
  }

  #saveRecord(record: MachineRecord): void {
    this.#context.store.machines.put(record.name, record);
    this.#record = record;
  }
}
