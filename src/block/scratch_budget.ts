/**
 * How much the temporary images of one fleecing may hold together.
 *
 * @module
 */

/** Shared by all filters of a fleecing. */
export class ScratchBudget {
  #usedBytes = 0;

  /** `maxBytes`: null for no bound. */
  constructor(readonly maxBytes: number | null = null) {}

  /** What is taken now. */
  get usedBytes(): number {
    return this.#usedBytes;
  }

  /** Takes room; false, taking none, where there isn't that much. */
  reserve(byteCount: number): boolean {
    if (this.maxBytes !== null && this.#usedBytes + byteCount > this.maxBytes) return false;
    this.#usedBytes += byteCount;
    return true;
  }

  /** Gives room back. */
  release(byteCount: number): void {
    this.#usedBytes -= byteCount;
  }
}
