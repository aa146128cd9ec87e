/**
 * What happens in the service, as clients follow it. Events have rising numbers; the newest so many
 * are kept for clients that lost their connection.
 *
 * @module
 */

import { limits } from "../limits.ts";

/** Something that happened. */
export interface ServiceEvent {
  /** Rises by one with every event; begins at 1 when the service starts. */
  readonly id: number;
  /** What: `vm.running`, `job.changed`, `fleecing.broken` and so on. */
  readonly type: string;
  /** When: ISO 8601, UTC. */
  readonly time: string;
  /** To whom, and more: as the type has it. */
  readonly data: Record<string, unknown>;
}

/** The events of a service. */
export class EventLog {
  readonly #kept: ServiceEvent[] = [];
  readonly #listeners = new Set<(event: ServiceEvent) => void>();
  #lastId = 0;

  /** The number of the newest, 0: there was none. */
  get lastId(): number {
    return this.#lastId;
  }

  /** Tells all listeners. */
  add(type: string, data: Record<string, unknown>): void {
    const event = { id: ++this.#lastId, type, time: new Date().toISOString(), data };
    this.#kept.push(event);
    if (this.#kept.length > limits.eventsKept) this.#kept.shift();
    for (const listener of this.#listeners) listener(event);
  }

  /** Those after number `id`; null where some of them are not kept any more. */
  after(id: number): ServiceEvent[] | null {
    const oldest = this.#kept[0]?.id ?? this.#lastId + 1;
    if (id < oldest - 1 || id > this.#lastId) return null;
    return this.#kept.filter((event) => event.id > id);
  }

  /** Resolves when `isThere`, looked at with each event; after `timeoutMs`; or when aborted. */
  async waitFor(
    isThere: () => boolean,
    { timeoutMs, signal }: { timeoutMs: number; signal: AbortSignal },
  ): Promise<void> {
    if (isThere() || signal.aborted) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const unfollow = this.follow(() => isThere() && resolve());
    const timer = setTimeout(resolve, timeoutMs);
    const onAbort = () => resolve();
    signal.addEventListener("abort", onAbort);
    await promise;
    unfollow();
    clearTimeout(timer);
    signal.removeEventListener("abort", onAbort);
  }

  /** Calls `listener` with each event to come, until the returned function is called. */
  follow(listener: (event: ServiceEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}
