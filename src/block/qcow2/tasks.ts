/**
 * Pieces of one request that run at the same time, where the file does not answer at once.
 *
 * @module
 */

import { limits } from "../../limits.ts";
import type { Steps } from "../steps.ts";
import type { MaybePromise } from "../types.ts";

/** Its pieces still on their way. The first error is the request's. */
export class Tasks {
  #promises: Promise<void>[] | null = null;
  #failure: { error: unknown } | null = null;

  /** Takes a piece; waits where too many are on their way. Throws when one has failed. */
  *add(piece: MaybePromise<void>): Steps<void> {
    if (!(piece instanceof Promise)) return;
    this.#promises ??= [];
    this.#promises.push(piece.catch((error) => {
      this.#failure ??= { error };
    }));
    if (this.#promises.length >= limits.qcow2RequestsInFlight) yield* this.finish();
  }

  /** Waits for all. Throws the first error. */
  *finish(): Steps<void> {
    const promises = this.#promises;
    if (promises === null) return;
    this.#promises = null;
    yield Promise.all(promises);
    if (this.#failure !== null) throw this.#failure.error;
  }
}
