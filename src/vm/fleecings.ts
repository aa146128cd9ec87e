/**
 * The fleecings of one machine, as the control side knows them: names, exports and their records in
 * the store. What they do is the I/O worker's business.
 *
 *   active --(a copy failed under break-snapshot)--> broken
 *   both end by `stop`, or with their machine's stop
 *
 * Called by the machine's state driver only, while it owns the machine; reads may come at any time.
 *
 * @module
 */

import { randomBytes } from "node:crypto";
import { limits } from "../limits.ts";
import type { FleecingDiskInfo, FleecingInfo, FleecingRequest } from "../machine/messages.ts";
import type { MachineDriver } from "./driver.ts";
import { ServiceError, toServiceError } from "./errors.ts";
import type { ExportDirectory, ExportInfo } from "./export_directory.ts";
import type { Log } from "./log.ts";
import type { Store } from "./store.ts";

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
  /** One for each disk that it freezes. */
  readonly exports: readonly ExportInfo[];
  /** Why the view can't be read any more. */
  brokenBy: string | null;
}

/** A fleecing with its figures of this moment. */
export interface FleecingStatus {
  /** What does not change. */
  fleecing: Fleecing;
  /** Figures of each disk, asked of the I/O worker just now. */
  disks: FleecingDiskInfo[];
}

/** The fleecings of a machine. */
export class Fleecings {
  readonly #vm: string;
  readonly #store: Store;
  readonly #directory: ExportDirectory;
  readonly #log: Log;
  readonly #active = new Map<string, Fleecing>();

  /** `vm`: the machine's name. */
  constructor(vm: string, options: { store: Store; directory: ExportDirectory; log: Log }) {
    this.#vm = vm;
    this.#store = options.store;
    this.#directory = options.directory;
    this.#log = options.log;
  }

  /** By name. */
  list(): Fleecing[] {
    return [...this.#active.values()].sort((a, b) => a.name < b.name ? -1 : 1);
  }

  /** A fleecing; throws fleecingNotFound. */
  get(name: string): Fleecing {
    const fleecing = this.#active.get(name);
    if (fleecing === undefined) {
      throw new ServiceError(
        "fleecingNotFound",
        `machine ${this.#vm} has no fleecing named ${name}`,
      );
    }
    return fleecing;
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
  async start(driver: MachineDriver, request: FleecingRequest): Promise<FleecingStatus> {
    if (this.#active.has(request.name)) {
      throw new ServiceError(
        "nameTaken",
        `machine ${this.#vm} has a fleecing named ${request.name} already`,
      );
    }
    if (this.#active.size >= limits.fleecingsPerVm) {
      throw new ServiceError(
        "limitReached",
        `machine ${this.#vm} has ${limits.fleecingsPerVm} fleecings already`,
      );
    }
    const key = `${this.#vm}/${request.name}`;
    const createdAt = new Date().toISOString();
    this.#store.fleecings.put(key, { key, vm: this.#vm, name: request.name, createdAt });
    try {
      const info = await driver.call("fleecingStart", request).catch((error: unknown) => {
        throw explainStart(error);
      });
      const fleecing = this.#describe(info, { request, createdAt });
      try {
        this.#directory.add(fleecing.exports);
      } catch (error) {
        await driver.call("fleecingStop", { name: request.name });
        throw error;
      }
      this.#active.set(request.name, fleecing);
      return { fleecing, disks: info.disks };
    } catch (error) {
      this.#store.fleecings.remove(key);
      throw error;
    }
  }

  /** A fleecing with its figures. */
  async status(driver: MachineDriver, name: string): Promise<FleecingStatus> {
    const fleecing = this.get(name);
    const { disks } = await driver.call("fleecingInfo", { name });
    fleecing.brokenBy ??= disks.find(({ brokenBy }) => brokenBy !== null)?.brokenBy ?? null;
    return { fleecing, disks };
  }

  /** Ends a fleecing: readers are cut off, the filters go out, the temporary images are removed. */
  async stop(driver: MachineDriver, name: string): Promise<void> {
    const fleecing = this.get(name);
    this.#directory.remove(fleecing.exports);
    try {
      await driver.call("fleecingStop", { name });
    } catch (error) {
      this.#directory.add(fleecing.exports);
      throw error;
    }
    this.#forget(fleecing);
  }

  /** A copy failed under break-snapshot. */
  markBroken(name: string, reason: string): void {
    const fleecing = this.#active.get(name);
    if (fleecing !== undefined) fleecing.brokenBy ??= reason;
  }

  /** The machine was closed, and all its fleecings with it. */
  clear(): void {
    for (const fleecing of [...this.#active.values()]) {
      this.#directory.remove(fleecing.exports);
      this.#forget(fleecing);
    }
  }

  /** It has ended. A record that stays behind is found at the next start. */
  #forget(fleecing: Fleecing): void {
    this.#active.delete(fleecing.name);
    try {
      this.#store.fleecings.remove(`${this.#vm}/${fleecing.name}`);
    } catch (error) {
      this.#log.warn("record of fleecing {fleecing} stays behind: {error}", {
        fleecing: fleecing.name,
        error,
      });
    }
  }

  #describe(
    info: FleecingInfo,
    options: { request: FleecingRequest; createdAt: string },
  ): Fleecing {
    const { request, createdAt } = options;
    return {
      name: request.name,
      createdAt,
      onCbwError: request.onCbwError,
      cbwTimeoutSeconds: request.cbwTimeoutSeconds,
      bitmap: request.bitmap,
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

/** Whatever a client named and isn't there is the client's mistake, not a missing export. */
function explainStart(error: unknown): unknown {
  const mapped = toServiceError(error);
  return mapped instanceof ServiceError && mapped.code === "exportNotFound"
    ? new ServiceError("badReference", mapped.message, { cause: error })
    : mapped;
}
