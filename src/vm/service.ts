/**
 * The service without its HTTP face: data folder, store, images, machines, exports.
 *
 * @module
 */

import { DataFolder } from "./data_folder.ts";
import type { OpenDriver } from "./driver.ts";
import { ExportDirectory } from "./export_directory.ts";
import { type BuiltInImage, Images } from "./images.ts";
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
  /** The address that NBD servers bind to. */
  nbdHost: string;
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
    const { openDriver, nbdHost, log } = options;
    const machines = new Registry({ folder, store, images, directory, openDriver, nbdHost, log });
    stack.defer(() => machines.close());
    return new Service(folder, images, machines, directory, stack.move());
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
