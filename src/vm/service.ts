/**
 * The service without its HTTP face: data folder, store, images, machines, exports.
 *
 * @module
 */

import type { NbdTls } from "../machine/messages.ts";
import { DataFolder } from "./data_folder.ts";
import { Disks } from "./disks.ts";
import type { OpenDriver, OpenStorage } from "./driver.ts";
import { EventLog } from "./event_log.ts";
import { ExportDirectory } from "./export_directory.ts";
import { type BuiltInImage, Images } from "./images.ts";
import { JobBook } from "./job_book.ts";
import { JobStarter } from "./job_starter.ts";
import type { Log } from "./log.ts";
import type { Machine } from "./machine.ts";
import { logReport, recover } from "./recovery.ts";
import { Registry } from "./registry.ts";
import { SqliteStore } from "./sqlite_store.ts";

/** What the service is made of. */
export interface ServiceOptions {
  /** The data folder, made where it is missing; one service at a time may have it. */
  dataPath: string;
  /** Images that belong to the program. */
  builtInImages: readonly BuiltInImage[];
  /** Makes the workers of a machine, or what a test puts in their place. */
  openDriver: OpenDriver;
  /** Makes the worker of a disk without a machine, or what a test puts in its place. */
  openStorage: OpenStorage;
  /** Folders outside of the data folder that disks and temporary images may be in. */
  allowedFolders?: readonly string[];
  /** The address that NBD servers bind to. */
  nbdHost: string;
  /** Their TLS; none unless given. */
  nbdTls?: NbdTls;
  /** The service's log: machines and the HTTP face get children of it. */
  log: Log;
}

/** A running service. Disposing of it stops all machines. */
export class Service implements AsyncDisposable {
  /** When it was opened, for /v1/info. */
  readonly startedAt = new Date();
  #isStopping = false;
  readonly #stack: AsyncDisposableStack;

  private constructor(
    readonly folder: DataFolder,
    readonly images: Images,
    readonly machines: Registry,
    readonly disks: Disks,
    readonly jobs: JobStarter,
    readonly events: EventLog,
    readonly exports: ExportDirectory,
    stack: AsyncDisposableStack,
  ) {
    this.#stack = stack;
  }

  /** Opens the data folder, cleans up after a crash, and knows all machines. */
  static async open(options: ServiceOptions): Promise<Service> {
    await using stack = new AsyncDisposableStack();
    const folder = stack.use(await DataFolder.open(options.dataPath));
    const store = stack.use(SqliteStore.open(folder.storePath));
    logReport(await recover(folder, store), options.log);
    const images = await Images.open(folder, store, options.builtInImages);
    const directory = new ExportDirectory();
    const { openDriver, openStorage, nbdHost, nbdTls, log } = options;
    const allowedFolders = await realFolders(options.allowedFolders ?? []);
    const events = new EventLog();
    const book = new JobBook(events, log.getChild("job"));
    const shared = { folder, store, events, jobs: book, log, allowedFolders };
    const disks = new Disks({ ...shared, openStorage });
    stack.defer(() => book.settle());
    stack.defer(() => disks.close());
    const jobs = new JobStarter(book, disks);
    const surroundings = { ...shared, images, disks, directory, starter: jobs };
    const machines = new Registry({
      ...surroundings,
      openDriver,
      nbdHost,
      ...(nbdTls && { nbdTls }),
    });
    stack.defer(() => machines.close());
    return new Service(folder, images, machines, disks, jobs, events, directory, stack.move());
  }

  /** Whether it is going down. */
  get isStopping(): boolean {
    return this.#isStopping;
  }

  /** From now on it is not ready, and makes no new machines. */
  beginStop(): void {
    this.#isStopping = true;
    this.machines.beginClose();
  }

  /** The machine that an export is of. */
  machineOfExport(name: string): Machine {
    return this.machines.get(this.exports.get(name).vm);
  }

  /** Stops all machines in order, closes the store, gives the data folder back. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.beginStop();
    await this.#stack.disposeAsync();
  }
}

/** As the operator named them, and where symbolic links lead. */
async function realFolders(paths: readonly string[]): Promise<string[]> {
  return [...new Set(await Promise.all(paths.map((path) => Deno.realPath(path))))];
}
