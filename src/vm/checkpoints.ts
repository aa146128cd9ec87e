/**
 * Checkpoints of a machine: named moments, and the bitmaps that record what changed since. The
 * record outlives the bitmaps: those of a raw disk end with its worker, any may be lost in a crash;
 * the next fleecing since then is a whole one on that disk, and says so.
 *
 * @module
 */

import { ServiceError } from "./errors.ts";
import type { CheckpointRecord, Store } from "./store.ts";

/** The checkpoints of one machine. */
export class Checkpoints {
  readonly #vm: string;
  readonly #store: Store;

  /** `vm`: the machine's name. */
  constructor(vm: string, store: Store) {
    this.#vm = vm;
    this.#store = store;
  }

  /** By name. */
  list(): CheckpointRecord[] {
    const all = { after: `${this.#vm}/`, limit: Number.MAX_SAFE_INTEGER };
    return this.#store.checkpoints.list(all).filter(({ vm }) => vm === this.#vm);
  }

  /** A checkpoint; throws checkpointNotFound. */
  get(name: string): CheckpointRecord {
    const record = this.find(name);
    if (record === undefined) {
      throw new ServiceError(
        "checkpointNotFound",
        `machine ${this.#vm} has no checkpoint named ${name}`,
      );
    }
    return record;
  }

  /** A checkpoint, or undefined. */
  find(name: string): CheckpointRecord | undefined {
    return this.#store.checkpoints.get(`${this.#vm}/${name}`);
  }

  /** A moment that has begun. */
  add(name: string, options: { disks: string[]; createdAt: string }): void {
    const key = `${this.#vm}/${name}`;
    this.#store.checkpoints.put(key, { key, vm: this.#vm, name, ...options });
  }

  /** It is no longer of use. */
  remove(name: string): void {
    this.#store.checkpoints.remove(`${this.#vm}/${name}`);
  }

  /** The machine goes. */
  clear(): void {
    for (const { name } of this.list()) this.remove(name);
  }
}
