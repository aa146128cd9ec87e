/**
 * The lock on an image's metadata: whoever reads tables from the file, changes them or writes them
 * holds it, also while he waits for the file. Data of the guest moves without it. Where the file
 * answers at once nobody ever waits.
 *
 * @module
 */

import { assert } from "../assert.ts";
import type { Steps } from "../steps.ts";

/** A lock for generators (see steps.ts): first come, first served. */
export class MetadataLock {
  #isHeld = false;
  readonly #waiters: (() => void)[] = [];

  /** Somebody has it. */
  get isHeld(): boolean {
    return this.#isHeld;
  }

  /** Takes it, after those who came before. */
  *acquire(): Steps<void> {
    if (!this.#isHeld) {
      this.#isHeld = true;
      return;
    }
    // Whoever gives it back hands it on.
    yield new Promise<void>((resolve) => this.#waiters.push(resolve));
  }

  /** Gives it back. */
  release(): void {
    assert(this.#isHeld, "a lock is released that nobody holds");
    const next = this.#waiters.shift();
    if (next === undefined) this.#isHeld = false;
    else next();
  }

  /** Runs steps under the lock. */
  *hold<T>(steps: () => Steps<T>): Steps<T> {
    yield* this.acquire();
    try {
      return yield* steps();
    } finally {
      this.release();
    }
  }
}
