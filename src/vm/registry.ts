/**
 * All machines of the service.
 *
 * @module
 */

import { randomBytes } from "node:crypto";
import { limits } from "../limits.ts";
import { ServiceError } from "./errors.ts";
import type { Accelerator } from "../wasm/translator.ts";
import type { NbdStatistics } from "../machine/messages.ts";
import { Machine, type MachineContext, type MachineDiskOrder } from "./machine.ts";
import { ownDiskName } from "./names.ts";
import type { MachineRecord } from "./store.ts";

/** A machine as a client asks for it. */
export interface MachineOrder {
  /** Must be free in the service (nameTaken). */
  name: string;
  /** Must exist (badReference). */
  image: string;
  /** RAM, within limits.memoryMinBytes and memoryMaxBytes. */
  memoryBytes: number;
  /** From 1 to limits.hartCount. */
  hartCount: number;
  /** How the harts execute; left out: the interpreter. */
  accel?: Accelerator;
  /** In the order in which the guest finds them. */
  disks: MachineDiskOrder[];
  /** Start it at once. If that fails the machine is removed again. */
  start: boolean;
}

const ID_BYTES = 4;

/** Machines by name. */
export class Registry {
  readonly #context: MachineContext;
  readonly #machines = new Map<string, Machine>();
  #isClosing = false;

  /** Knows every machine that the store has; all are stopped. */
  constructor(context: MachineContext) {
    this.#context = context;
    const records = context.store.machines.list({ after: "", limit: Number.MAX_SAFE_INTEGER });
    for (const record of records) {
      this.#machines.set(record.name, new Machine(record, context));
    }
  }

  /** A machine; throws vmNotFound. */
  get(name: string): Machine {
    const machine = this.#machines.get(name);
    if (machine === undefined) {
      throw new ServiceError("vmNotFound", `there is no machine named ${name}`);
    }
    return machine;
  }

  /** Up to `limit` machines whose names come after `after`, by name. */
  list(options: { after: string; limit: number }): Machine[] {
    return [...this.#machines.values()].filter(({ record }) => record.name > options.after)
      .sort((a, b) => a.record.name < b.record.name ? -1 : 1).slice(0, options.limit);
  }

  /** Names of the machines that refer to an image. */
  usersOfImage(image: string): string[] {
    return [...this.#machines.values()].filter(({ record }) => record.image === image)
      .map(({ record }) => record.name);
  }

  /** Makes a machine. Either it is there as ordered or nothing of it is. */
  async create(order: MachineOrder): Promise<Machine> {
    if (this.#isClosing) throw new ServiceError("stopping", "the service is stopping");
    const { images, store } = this.#context;
    if (images.find(order.image) === undefined) {
      throw new ServiceError("badReference", `there is no image named ${order.image}`);
    }
    if (order.start) images.bootConfig(order.image);
    if (this.#machines.has(order.name)) {
      throw new ServiceError("nameTaken", `there is a machine named ${order.name} already`);
    }
    if (this.#machines.size >= limits.vmCount) {
      throw new ServiceError("limitReached", `there are ${limits.vmCount} machines already`);
    }
    const { start, disks: orders, ...rest } = order;
    const record: MachineRecord = {
      ...rest,
      disks: orders.map((disk) => this.#recordOf(disk, order.name)),
      id: this.#freeId(),
      createdAt: new Date().toISOString(),
      phase: "creating",
    };
    store.machines.put(record.name, record);
    const machine = new Machine(record, this.#context);
    this.#machines.set(record.name, machine);
    try {
      await machine.create(orders);
      if (start) await machine.request("start");
    } catch (error) {
      if (machine.state !== "deleting") await machine.request("delete");
      this.#forget(machine);
      throw error;
    }
    return machine;
  }

  /** Stops and removes a machine with its disks. */
  async remove(name: string): Promise<void> {
    const machine = this.get(name);
    await machine.request("delete");
    this.#forget(machine);
  }

  /** How many machines are in each state. */
  countByState(): Map<string, number> {
    const counts = new Map<string, number>();
    for (const { state } of this.#machines.values()) {
      counts.set(state, (counts.get(state) ?? 0) + 1);
    }
    return counts;
  }

  /** What the NBD servers of open machines count, by machine. */
  async nbdStatistics(): Promise<Map<string, NbdStatistics>> {
    const figures = new Map<string, NbdStatistics>();
    await Promise.all([...this.#machines].map(async ([name, machine]) => {
      if (machine.nbd === null) return;
      // One that closes meanwhile, or whose worker died, has no figures.
      const counted = await machine.call("nbdStatistics", {}).catch(() => undefined);
      if (counted !== undefined) figures.set(name, counted);
    }));
    return figures;
  }

  /** Makes no new machines from now on. */
  beginClose(): void {
    this.#isClosing = true;
  }

  /** Stops all machines, one after the other, the newest first. */
  async close(): Promise<void> {
    this.beginClose();
    for (const machine of [...this.#machines.values()].reverse()) await machine.shutDown();
  }

  /** A disk that is there is looked up, so that nothing is made of a machine without its disks. */
  #recordOf({ name, disk, sizeBytes, isReadOnly }: MachineDiskOrder, vm: string) {
    if (disk === undefined) return { name, sizeBytes, isReadOnly, disk: ownDiskName(vm, name) };
    const found = this.#context.disks.find(disk);
    if (found === undefined || found.owner !== null) {
      const reason = found === undefined ? "is not there" : `goes with machine ${found.owner}`;
      throw new ServiceError("badReference", `disk ${disk} ${reason}`);
    }
    return { name, sizeBytes: found.sizeBytes, isReadOnly, disk };
  }

  #forget(machine: Machine): void {
    const { name } = machine.record;
    if (this.#machines.get(name) === machine) this.#machines.delete(name);
  }

  #freeId(): string {
    const all = { after: "", limit: Number.MAX_SAFE_INTEGER };
    const used = new Set([
      ...[...this.#machines.values()].map(({ record }) => record.id),
      ...this.#context.store.disks.list(all).map(({ folder }) => folder),
    ]);
    for (;;) {
      const id = randomBytes(ID_BYTES).toString("hex");
      if (!used.has(id)) return id;
    }
  }
}
