/**
 * What all connections of a server may hold together: payloads on their way in, requests in flight,
 * replies on their way out. Each tells what it holds; while too much is held none begins anything
 * more, and who wanted to is woken, in the order of asking, when there is room again.
 *
 * @module
 */

/** See the module's description. */
export class ByteBudget {
  /** Most bytes. What one connection does in a turn may exceed it. */
  readonly bytesMax: number;
  readonly #waiters = new Set<() => void>();
  #usedBytes = 0;
  #releases = 0;

  /** Nothing is held yet. */
  constructor(bytesMax: number) {
    this.bytesMax = bytesMax;
  }

  /** What is held now. */
  get usedBytes(): number {
    return this.#usedBytes;
  }

  /** Something may begin. */
  get hasRoom(): boolean {
    return this.#usedBytes < this.bytesMax;
  }

  /** Somebody waits for room. */
  get isWanted(): boolean {
    return this.#waiters.size > 0;
  }

  /** How often something was given back. */
  get releases(): number {
    return this.#releases;
  }

  /** A connection holds so many bytes more, or less, than before. */
  change(byteCount: number): void {
    this.#usedBytes += byteCount;
    if (byteCount >= 0) return;
    this.#releases++;
    for (const wake of this.#waiters) {
      if (!this.hasRoom) return;
      this.#waiters.delete(wake);
      wake();
    }
  }

  /** Calls `wake` once, when there is room. The same function waits once only. */
  wait(wake: () => void): void {
    this.#waiters.add(wake);
  }

  /** Does not wait any more. */
  forget(wake: () => void): void {
    this.#waiters.delete(wake);
  }
}
