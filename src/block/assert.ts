/**
 * The block layer's check for bugs. What the world does wrong is a BlockError instead.
 *
 * @module
 */

/** A bug of ours: an invariant does not hold. */
export class AssertionError extends Error {
  /** By which `main.ts` tells a bug from an operating error. */
  override readonly name = "AssertionError";
}

/** Throws where `condition` is false. */
export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new AssertionError(message);
}
