/**
 * The disks of a machine as its guest sees them: for each disk of the worker a virtio-blk device in
 * the slot of its place in the list.
 *
 *   [virtio-blk in slot N] -- the disk's backend
 *
 * @module
 */

import type { GuestMemory } from "./guest_memory.ts";
import type { StorageDisk } from "./storage_disks.ts";
import { VirtioBlk } from "./virtio_blk.ts";
import { VirtioTransport } from "./virtio_transport.ts";

/** The devices of a machine's disks, by slot. */
export class MachineDisks {
  readonly #devices: readonly VirtioBlk[];
  readonly #disks: readonly StorageDisk[];

  /** The guest sees nothing before `announce`. */
  constructor(disks: readonly StorageDisk[], memory: GuestMemory) {
    this.#disks = disks;
    this.#devices = disks.map(({ backend, config }, slot) => {
      const { isReadOnly, serial } = config;
      return new VirtioBlk(new VirtioTransport(memory, slot), { backend, isReadOnly, serial });
    });
  }

  /** The slots that have a disk. */
  get slots(): number[] {
    return this.#devices.map((_, slot) => slot);
  }

  /** Puts every disk into its slot as new: nothing may be in flight. */
  announce(): void {
    for (const device of this.#devices) device.announce();
  }

  /** Serves a slot's queue; true if there is more. */
  process(slot: number): boolean {
    return this.#devices[slot]?.process() ?? false;
  }

  /** Tells the guest that a disk has another size. */
  resized(disk: StorageDisk): void {
    this.#devices[this.#disks.indexOf(disk)]?.resized();
  }

  /** Resolves when no request of the guest's is in flight. The harts must be parked. */
  async drain(): Promise<void> {
    await Promise.all(this.#devices.map((device) => device.drain()));
  }
}
