/**
 * The last bytes of a machine's console, with readers that follow it.
 *
 * Bytes are numbered from the machine's creation on. The ring keeps the last `capacity` of them; a
 * reader asks from a position of its own, and one that was overtaken goes on at the oldest byte
 * kept. The log survives stop and start of its machine, not the end of the service.
 *
 * @module
 */

/** A ring of console bytes. */
export class ConsoleLog {
  readonly #ring: Uint8Array<ArrayBuffer>;
  #end = 0;
  #waiters: (() => void)[] = [];
  #isClosed = false;

  /** `capacity`: bytes kept; the memory is taken at once. */
  constructor(readonly capacity: number) {
    this.#ring = new Uint8Array(capacity);
  }

  /** The position behind the newest byte: how many were ever written. */
  get end(): number {
    return this.#end;
  }

  /** The position of the oldest byte kept. */
  get begin(): number {
    return Math.max(0, this.#end - this.capacity);
  }

  /** Appends and wakes the readers. */
  append(bytes: Uint8Array): void {
    const kept = bytes.subarray(Math.max(0, bytes.length - this.capacity));
    const position = (this.#end + bytes.length - kept.length) % this.capacity;
    const first = Math.min(kept.length, this.capacity - position);
    this.#ring.set(kept.subarray(0, first), position);
    this.#ring.set(kept.subarray(first), 0);
    this.#end += bytes.length;
    this.#wake();
  }

  /**
   * A copy of what is kept from `position` on, and where to go on; `lost`: bytes overwritten
   * before.
   */
  read(position: number): { bytes: Uint8Array<ArrayBuffer>; next: number; lost: number } {
    const from = Math.min(Math.max(position, this.begin), this.#end);
    const bytes = new Uint8Array(this.#end - from);
    const start = from % this.capacity;
    const first = Math.min(bytes.length, this.capacity - start);
    bytes.set(this.#ring.subarray(start, start + first), 0);
    bytes.set(this.#ring.subarray(0, bytes.length - first), first);
    return { bytes, next: this.#end, lost: Math.max(0, from - position) };
  }

  /** Resolves when there are bytes behind `position`, when the log is closed, or at `signal`. */
  wait(position: number, signal: AbortSignal): Promise<void> {
    if (this.#end > position || this.#isClosed || signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const wake = () => {
        signal.removeEventListener("abort", stop);
        resolve();
      };
      const stop = () => {
        this.#waiters = this.#waiters.filter((waiter) => waiter !== wake);
        resolve();
      };
      this.#waiters.push(wake);
      signal.addEventListener("abort", stop, { once: true });
    });
  }

  /** No more bytes will come: the machine is gone. */
  close(): void {
    this.#isClosed = true;
    this.#wake();
  }

  /** Whether close() was called. */
  get isClosed(): boolean {
    return this.#isClosed;
  }

  #wake(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const wake of waiters) wake();
  }
}
