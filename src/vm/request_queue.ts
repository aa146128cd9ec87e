/**
 * Runs requests one after the other, in the order they came. The queue of a machine: whoever holds
 * it owns the machine's state until the request is done.
 *
 * @module
 */

import { ServiceError } from "./errors.ts";

/** A bounded queue of asynchronous work. */
export class RequestQueue {
  #tail: Promise<unknown> = Promise.resolve();
  #length = 0;
  #closed: ServiceError | null = null;

  /** `capacity`: requests that may run or wait; one more is refused with limitReached. */
  constructor(readonly capacity: number) {}

  /** Requests that run or wait. */
  get length(): number {
    return this.#length;
  }

  /**
   * Runs `work` after everything that was queued before it; its result or error is the caller's.
   */
  run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#closed !== null) return Promise.reject(this.#closed);
    if (this.#length >= this.capacity) {
      return Promise.reject(
        new ServiceError(
          "limitReached",
          `more than ${this.capacity} requests wait for the machine`,
        ),
      );
    }
    this.#length++;
    const result = this.#tail.then(() => {
      if (this.#closed !== null) throw this.#closed;
      return work();
    }).finally(() => this.#length--);
    this.#tail = result.catch(() => {});
    return result;
  }

  /** Refuses everything that has not begun with `reason`; resolves when what runs has ended. */
  async close(reason: ServiceError): Promise<void> {
    this.#closed ??= reason;
    await this.#tail;
  }
}
