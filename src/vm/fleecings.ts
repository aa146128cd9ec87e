/**
 * The fleecings of one machine, as the control side knows them: names, exports, checkpoints and
 * their records in the store. What they do is the I/O worker's business.
 *
 *   active --(a copy failed under break-snapshot)--> broken
 *   both end by `stop`, with their time, or with their machine's stop
 *
 * Called by the machine's state driver only, while it owns the machine; reads may come at any time.
 *
 * @module
 */

import { randomBytes } from "node:crypto";
import { statfsSync } from "node:fs";
import { join } from "node:path";
import { limits } from "../limits.ts";
import type {
  FleecingDisk,
  FleecingInfo,
  FleecingRequest,
  FleecingResult,
} from "../machine/messages.ts";
import type { Checkpoints } from "./checkpoints.ts";
import { type DataFolder, ignoreMissing } from "./data_folder.ts";
import type { MachineDriver } from "./driver.ts";
import { ServiceError } from "./errors.ts";
import { explainReference } from "./explain.ts";
import type { EventLog } from "./event_log.ts";
import type { ExportDirectory, ExportInfo } from "./export_directory.ts";
import type { Log } from "./log.ts";
import type { Store } from "./store.ts";

/** A fleecing as a client asks for it: all but the name has a value. */
export type FleecingOrder = Omit<FleecingRequest, "name" | "scratchDirectory"> & {
  name: string | null;
  /** A folder that the operator allowed, for the temporary images; null: the data folder's. */
  scratchFolder: string | null;
  /** What to do where the room for copies may not be enough. */
  onScratchShort: "warn" | "refuse";
  /** It ends by itself after so long; null: it does not. */
  expiresInSeconds: number | null;
};

/** Room for the copies of a fleecing, as it was at its start. */
export interface ScratchEstimate {
  /** What may have to be copied at most: what is allocated, and changed where only that counts. */
  needBytes: number;
  /** What there is: of the file system, and of `scratchMaxBytes`. */
  roomBytes: number;
}

/** A fleecing and its exports. */
export interface Fleecing {
  /** Unique in its machine. */
  readonly name: string;
  /** The moment of the view: ISO 8601, UTC. */
  readonly createdAt: string;
  /** What a failed copy breaks: the view, or the guest's write. */
  readonly onCbwError: FleecingRequest["onCbwError"];
  /** How long a guest's write waits for its copy; 0: for ever. */
  readonly cbwTimeoutSeconds: number;
  /** Protects only what this dirty bitmap of each disk marks; null: everything. */
  readonly bitmap: string | null;
  /** The scheme of fleecing.md. */
  readonly scheme: FleecingRequest["scheme"];
  /** Only what changed since this checkpoint is shown, where its bitmap is good. */
  readonly since: string | null;
  /** The checkpoint that began at the moment. */
  readonly checkpoint: string | null;
  /** Largest total size of the temporary images, null: unlimited. */
  readonly scratchMaxBytes: number | null;
  /** Room for the copies, as it was at the start. */
  readonly estimate: ScratchEstimate;
  /** When it ends by itself: ISO 8601, UTC; null: it does not. */
  readonly expiresAt: string | null;
  /** One for each disk that it freezes. */
  readonly exports: readonly ExportInfo[];
  /** Why the view can't be read any more. */
  brokenBy: string | null;
}

/** A fleecing on record that is about to start. */
export interface BegunFleecing {
  /** What the worker is asked for. */
  readonly request: FleecingRequest;
  /** The worker has done it. */
  readonly accept: (info: FleecingInfo) => Promise<FleecingStatus>;
  /** It has not: nothing is left. */
  readonly reject: () => Promise<void>;
}

/** A fleecing with its figures of this moment. */
export interface FleecingStatus {
  /** What does not change. */
  fleecing: Fleecing;
  /** Figures of each disk, asked of the I/O worker just now. */
  disks: FleecingDisk[];
}

/** What they need of their machine. */
export interface FleecingsContext {
  /** Where temporary images are. */
  folder: DataFolder;
  /** Keeps the records of fleecings that stand. */
  store: Store;
  /** Takes their exports. */
  directory: ExportDirectory;
  /** Told of starts, breaks and ends. */
  events: EventLog;
  /** The machine's. */
  checkpoints: Checkpoints;
  /** Where temporary images may go beside. */
  allowedFolders: readonly string[];
  /** Told of what stays behind. */
  log: Log;
  /** A fleecing's time is over: it is to be stopped. */
  onExpired: (name: string) => void;
}

interface Active {
  fleecing: Fleecing;
  /** A folder of its own for its temporary images. */
  scratchDirectory: string | null;
  timer: ReturnType<typeof setTimeout> | null;
}

/** The fleecings of a machine. */
export class Fleecings {
  readonly #vm: string;
  readonly #id: string;
  readonly #context: FleecingsContext;
  readonly #active = new Map<string, Active>();

  /** `machine`: its name and id. */
  constructor(machine: { name: string; id: string }, context: FleecingsContext) {
    this.#vm = machine.name;
    this.#id = machine.id;
    this.#context = context;
  }

  /** By name. */
  list(): Fleecing[] {
    return [...this.#active.values()].map(({ fleecing }) => fleecing).sort((a, b) =>
      a.name < b.name ? -1 : 1
    );
  }

  /** A fleecing; throws fleecingNotFound. */
  get(name: string): Fleecing {
    return this.#get(name).fleecing;
  }

  /** Throws deviceBusy where a fleecing that stands needs a checkpoint. */
  checkNotUsed(checkpoint: string): void {
    for (const { fleecing } of this.#active.values()) {
      if (fleecing.checkpoint !== checkpoint && fleecing.since !== checkpoint) continue;
      throw new ServiceError("deviceBusy", `fleecing ${fleecing.name} needs ${checkpoint}`);
    }
  }

  #get(name: string): Active {
    const active = this.#active.get(name);
    if (active === undefined) {
      throw new ServiceError(
        "fleecingNotFound",
        `machine ${this.#vm} has no fleecing named ${name}`,
      );
    }
    return active;
  }

  /** A name for a fleecing that got none: its moment, in UTC. */
  freeName(): string {
    const moment = new Date().toISOString().replaceAll(/[-:]/g, "").slice(0, 15).toLowerCase();
    for (let index = 1;; index++) {
      const name = index === 1 ? moment : `${moment}-${index}`;
      if (!this.#active.has(name)) return name;
    }
  }

  /** Freezes disks; on failure nothing of it is left. */
  async start(
    driver: MachineDriver,
    order: FleecingOrder & { name: string },
  ): Promise<FleecingStatus> {
    const begun = await this.begin(driver, order);
    try {
      const info = await driver.call("fleecingStart", begun.request).catch((error: unknown) => {
        throw explainReference(error);
      });
      return await begun.accept(info);
    } catch (error) {
      await begun.reject();
      throw error;
    }
  }

  /** Puts a fleecing on record before it starts, alone or in a transaction. */
  async begin(
    driver: MachineDriver,
    order: FleecingOrder & { name: string },
  ): Promise<BegunFleecing> {
    const { store } = this.#context;
    this.#checkNew(order);
    await this.#checkSince(driver, order);
    const estimate = await this.#estimate(driver, order);
    const { scratchFolder, onScratchShort: _, expiresInSeconds, ...rest } = order;
    const { name, checkpoint } = order;
    const scratchDirectory = scratchFolder === null
      ? null
      : join(this.#allowed(scratchFolder), `.ovis-${this.#id}-${name}`);
    const request: FleecingRequest = { ...rest, scratchDirectory };
    const key = `${this.#vm}/${name}`;
    const createdAt = new Date().toISOString();
    store.fleecings.put(key, { key, vm: this.#vm, name, createdAt, scratchDirectory, checkpoint });
    const reject = async () => {
      if (scratchDirectory !== null) {
        await Deno.remove(scratchDirectory, { recursive: true }).catch(ignoreMissing);
      }
      store.fleecings.remove(key);
    };
    try {
      if (scratchDirectory !== null) await Deno.mkdir(scratchDirectory, { mode: 0o700 });
    } catch (error) {
      await reject();
      throw error;
    }
    const accept = (info: FleecingInfo) =>
      this.#accept(driver, info, { request, createdAt, estimate, expiresInSeconds });
    return { request, accept, reject };
  }

  /** It stands in the worker. Where its exports can't be had it is ended again. */
  async #accept(
    driver: MachineDriver,
    info: FleecingInfo,
    options: {
      request: FleecingRequest;
      createdAt: string;
      estimate: ScratchEstimate;
      expiresInSeconds: number | null;
    },
  ): Promise<FleecingStatus> {
    const { request, createdAt, expiresInSeconds } = options;
    const { name, checkpoint, disks, scratchDirectory } = request;
    const lifeMs = expiresInSeconds === null ? null : expiresInSeconds * 1000;
    const expiresAt = lifeMs === null ? null : new Date(Date.now() + lifeMs).toISOString();
    const fleecing = this.#describe(info, { ...options, expiresAt });
    try {
      this.#context.directory.add(fleecing.exports);
    } catch (error) {
      await driver.call("fleecingEnd", { name, result: "failure" });
      throw error;
    }
    const timer = lifeMs === null ? null : setTimeout(() => this.#context.onExpired(name), lifeMs);
    this.#active.set(name, { fleecing, scratchDirectory, timer });
    if (checkpoint !== null) this.#context.checkpoints.add(checkpoint, { disks, createdAt });
    this.#tell("fleecing.started", { fleecing: name, disks, checkpoint });
    return { fleecing, disks: info.disks };
  }

  #checkNew({ name, checkpoint }: FleecingOrder): void {
    if (this.#active.has(name ?? "")) {
      throw new ServiceError(
        "nameTaken",
        `machine ${this.#vm} has a fleecing named ${name} already`,
      );
    }
    if (this.#active.size >= limits.fleecingsPerVm) {
      throw new ServiceError(
        "limitReached",
        `machine ${this.#vm} has ${limits.fleecingsPerVm} fleecings already`,
      );
    }
    if (checkpoint !== null && this.#context.checkpoints.find(checkpoint) !== undefined) {
      throw new ServiceError(
        "nameTaken",
        `machine ${this.#vm} has a checkpoint named ${checkpoint} already`,
      );
    }
  }

  /** A checkpoint whose bitmaps were lost is no mistake of the client's; one that never was is. */
  async #checkSince(driver: MachineDriver, { since, disks }: FleecingOrder): Promise<void> {
    if (since === null || this.#context.checkpoints.find(since) !== undefined) return;
    for (const disk of disks) {
      const { bitmaps } = await driver.call("diskInfo", { disk });
      if (bitmaps.some(({ name }) => name === since)) return;
    }
    throw new ServiceError(
      "badReference",
      `machine ${this.#vm} has no checkpoint and no bitmap named ${since}`,
    );
  }

  async #estimate(driver: MachineDriver, order: FleecingOrder): Promise<ScratchEstimate> {
    const bitmap = order.bitmap ?? order.since;
    const { bytes } = await driver.call("fleecingEstimate", { disks: order.disks, bitmap });
    const folder = order.scratchFolder === null
      ? this.#context.folder.scratchRoot
      : this.#allowed(order.scratchFolder);
    const { bavail, bsize } = statfsSync(folder);
    const roomBytes = Math.min(bavail * bsize, order.scratchMaxBytes ?? Infinity);
    if (order.onScratchShort === "refuse" && bytes > roomBytes) {
      throw new ServiceError(
        "noSpace",
        `the copies may need ${bytes} bytes, and there is room for ${roomBytes} in ${folder}`,
      );
    }
    return { needBytes: bytes, roomBytes };
  }

  #allowed(folder: string): string {
    if (this.#context.allowedFolders.includes(folder)) return folder;
    throw new ServiceError(
      "badReference",
      `${folder} is none of the folders that the operator allowed (--allow-folder)`,
    );
  }

  /** A fleecing with its figures. */
  async status(driver: MachineDriver, name: string): Promise<FleecingStatus> {
    const fleecing = this.get(name);
    const { disks } = await driver.call("fleecingInfo", { name });
    fleecing.brokenBy ??= disks.find(({ brokenBy }) => brokenBy !== null)?.brokenBy ?? null;
    return { fleecing, disks };
  }

  /** Ends a fleecing: readers are cut off, the filters go out, the temporary images are removed. */
  async stop(
    driver: MachineDriver,
    { name, result }: { name: string; result: FleecingResult },
  ): Promise<void> {
    const active = this.#get(name);
    const { fleecing } = active;
    if (result === "success" && fleecing.brokenBy !== null) {
      throw new ServiceError(
        "wrongState",
        `the view of fleecing ${name} broke, which is no success: ${fleecing.brokenBy}`,
      );
    }
    this.#context.directory.remove(fleecing.exports);
    try {
      await driver.call("fleecingEnd", { name, result });
    } catch (error) {
      this.#context.directory.add(fleecing.exports);
      throw error;
    }
    const { checkpoint, since } = fleecing;
    if (checkpoint !== null) {
      this.#context.checkpoints.remove(result === "success" ? since ?? "" : checkpoint);
    }
    this.#forget(active);
    this.#tell("fleecing.ended", { fleecing: name, result });
  }

  /** A copy failed under break-snapshot. */
  markBroken(name: string, { disk, message }: { disk: string; message: string }): void {
    const active = this.#active.get(name);
    if (active === undefined) return;
    active.fleecing.brokenBy ??= message;
    this.#tell("fleecing.broken", { fleecing: name, disk, reason: message });
  }

  /** The machine was closed, and all its fleecings with it: failures. */
  clear(): void {
    for (const active of [...this.#active.values()]) {
      const { fleecing } = active;
      this.#context.directory.remove(fleecing.exports);
      if (fleecing.checkpoint !== null) this.#context.checkpoints.remove(fleecing.checkpoint);
      this.#forget(active);
      this.#tell("fleecing.ended", { fleecing: fleecing.name, result: "failure" });
    }
  }

  #tell(type: string, data: Record<string, unknown>): void {
    this.#context.events.add(type, { vm: this.#vm, ...data });
  }

  /** It has ended. A record or a folder that stays behind is found at the next start. */
  #forget({ fleecing, scratchDirectory, timer }: Active): void {
    this.#active.delete(fleecing.name);
    if (timer !== null) clearTimeout(timer);
    try {
      if (scratchDirectory !== null) Deno.removeSync(scratchDirectory, { recursive: true });
      this.#context.store.fleecings.remove(`${this.#vm}/${fleecing.name}`);
    } catch (error) {
      this.#context.log.warn("record of fleecing {fleecing} stays behind: {error}", {
        fleecing: fleecing.name,
        error,
      });
    }
  }

  #describe(
    info: FleecingInfo,
    options: {
      request: FleecingRequest;
      createdAt: string;
      estimate: ScratchEstimate;
      expiresAt: string | null;
    },
  ): Fleecing {
    const { request, createdAt, estimate, expiresAt } = options;
    return {
      name: request.name,
      createdAt,
      onCbwError: request.onCbwError,
      cbwTimeoutSeconds: request.cbwTimeoutSeconds,
      bitmap: request.bitmap,
      scheme: request.scheme,
      since: request.since,
      checkpoint: request.checkpoint,
      scratchMaxBytes: request.scratchMaxBytes,
      estimate,
      expiresAt,
      brokenBy: null,
      exports: info.disks.map((disk) => ({
        name: disk.exportName,
        vm: this.#vm,
        fleecing: request.name,
        disk: disk.disk,
        sizeBytes: disk.sizeBytes,
        createdAt,
        tag: randomBytes(12).toString("base64url"),
      })),
    };
  }
}
