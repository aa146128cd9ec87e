/**
 * Long work on tables in the isolate of a disk: whatever else it has to do gets a turn now and
 * then.
 *
 * @module
 */

import type { Steps } from "../steps.ts";

const TURN_MS = 8;

/** See the module's head. */
export class Turns {
  #end = performance.now() + TURN_MS;

  /** To be called for each piece of the work. True where somebody else had a turn. */
  *next(): Steps<boolean> {
    if (performance.now() < this.#end) return false;
    yield new Promise<void>((resolve) => globalThis.setImmediate(resolve));
    this.#end = performance.now() + TURN_MS;
    return true;
  }
}
