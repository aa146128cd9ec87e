/**
 * The I/O worker's loop: sleeps until a hart rings, serves what was rung for, and lets the rest of
 * the worker (sockets, messages, timers) have its turns in between.
 *
 *   serve --nothing rung--> declare sleep, look again --still nothing--> wait --rung--> serve
 *
 * No ring is lost: a hart sets its bit and then looks whether this side sleeps; this side declares
 * that it sleeps and then looks at the bits. One of the two sees the other. The wake word is read
 * before the bits, so that a ring in between ends the wait at once.
 *
 * A short synchronous wait after each batch was tried: it gives no more requests a second at depth
 * 1 than `Atomics.waitAsync`, which wakes within some 5 us, and sockets wait meanwhile.
 *
 * @module
 */

import { nextTurn, socketTurn } from "./event_loop.ts";
import type { GuestMemory } from "./guest_memory.ts";

/** Rounds without a turn of the event loop, however busy the harts are. */
const ROUNDS_MAX = 16;
/**
 * However busy the harts are, sockets have a turn so often: the first while readers are active,
 * else less and less, down to the second. As long as more comes, a turn lasts as long as the harts'
 * before: guest and readers share the worker half and half.
 */
const SOCKET_TURN_MIN_MS = 0.4;
const SOCKET_TURN_MAX_MS = 10;
/** Readers that were heard of within this time are active: one may wait for a processor so long. */
const ACTIVE_MS = 20;
/**
 * An active reader that was answered may ask again at once: the turn ends after so many looks that
 * found nothing. Each look sleeps, which also gives the reader a processor where the harts and this
 * worker have them all.
 */
const QUIET_LOOKS_MAX = 2;

/** Who serves what is rung for. */
export interface DoorbellHandlers {
  /** The console's rings have to be looked at. */
  console(): void;
  /** EXIT_WORD was set. */
  exit(): void;
  /** True if there is more to do, after others had their turn. */
  virtio(slot: number): boolean;
  /** Changes with everything that comes over sockets. */
  socketActivity(): number;
}

/** The loop of one machine. */
export class DoorbellLoop {
  readonly #memory: GuestMemory;
  readonly #handlers: DoorbellHandlers;
  /** Bits that still have something to do. */
  #pending = 0;
  #socketTurnMs = SOCKET_TURN_MAX_MS;
  #socketActivity = 0;
  #lastSocketTurnMs = performance.now();
  #lastActivityMs = -Infinity;
  #isStopped = false;
  #hasEnded = false;
  /** Settles when the loop has ended. */
  readonly done: Promise<void>;

  /**
   * Starts at once. `done` rejects if a handler throws: that is a bug, and nobody is served any
   * more.
   */
  constructor(memory: GuestMemory, handlers: DoorbellHandlers) {
    this.#memory = memory;
    this.#handlers = handlers;
    this.done = this.#run().finally(() => {
      this.#hasEnded = true;
    });
  }

  /**
   * Makes the loop look again, and declare its sleep again, after somebody else wrote its words.
   */
  wake(): void {
    const { words, layout } = this.#memory;
    Atomics.add(words, layout.IO_WAKE_WORD >>> 2, 1);
    Atomics.notify(words, layout.IO_WAKE_WORD >>> 2);
  }

  /** Ends the loop after the round under way. */
  async stop(): Promise<void> {
    this.#isStopped = true;
    this.wake();
    // A wait on memory alone does not keep the event loop alive.
    while (!this.#hasEnded) await nextTurn();
    await this.done;
  }

  async #run(): Promise<void> {
    let rounds = 0;
    while (!this.#isStopped) {
      this.#pending |= this.#takeBits();
      if (this.#pending !== 0) {
        this.#serve();
        if (performance.now() - this.#lastSocketTurnMs >= this.#socketTurnMs) {
          rounds = 0;
          await this.#socketTurn();
        } else if (this.#pending !== 0 || ++rounds >= ROUNDS_MAX) {
          rounds = 0;
          await nextTurn();
        }
        continue;
      }
      const woken = this.#sleep();
      if (woken !== null) {
        rounds = 0;
        await woken;
        this.#lastSocketTurnMs = performance.now();
      }
      this.#memory.storeWord(this.#memory.layout.IO_SLEEPING_WORD, 0);
    }
  }

  async #socketTurn(): Promise<void> {
    const startMs = performance.now();
    const endMs = startMs + Math.max(startMs - this.#lastSocketTurnMs, SOCKET_TURN_MIN_MS);
    const looksMax = startMs - this.#lastActivityMs <= ACTIVE_MS ? QUIET_LOOKS_MAX : 1;
    const before = this.#socketActivity;
    let quietLooks = 0;
    let nowMs: number;
    do {
      const seen = this.#socketActivity;
      await socketTurn();
      this.#socketActivity = this.#handlers.socketActivity();
      quietLooks = this.#socketActivity === seen ? quietLooks + 1 : 0;
      nowMs = performance.now();
    } while (quietLooks < looksMax && nowMs < endMs && !this.#isStopped);
    if (this.#socketActivity !== before) this.#lastActivityMs = nowMs;
    this.#socketTurnMs = nowMs - this.#lastActivityMs <= ACTIVE_MS
      ? SOCKET_TURN_MIN_MS
      : Math.min(2 * this.#socketTurnMs, SOCKET_TURN_MAX_MS);
    this.#lastSocketTurnMs = nowMs;
  }

  #takeBits(): number {
    const { words, layout } = this.#memory;
    return Atomics.exchange(words, layout.DOORBELL_WORD >>> 2, 0);
  }

  /** Serves every pending bit once; those with more to do stay. */
  #serve(): void {
    const { layout } = this.#memory;
    const bits = this.#pending;
    this.#pending = 0;
    if ((bits & layout.DOORBELL_CONSOLE) !== 0) this.#handlers.console();
    for (let slot = 0; slot < layout.VIRTIO_SLOTS; slot++) {
      const bit = layout.DOORBELL_VIRTIO << slot;
      if ((bits & bit) !== 0 && this.#handlers.virtio(slot)) this.#pending |= bit;
    }
    // Last, so that what the guest said before its end is served.
    if ((bits & layout.DOORBELL_EXIT) !== 0) this.#handlers.exit();
  }

  /** The promise of a wake-up, or null if there is something to do already. */
  #sleep(): Promise<unknown> | null {
    const { words, layout } = this.#memory;
    const wakeIndex = layout.IO_WAKE_WORD >>> 2;
    const seen = Atomics.load(words, wakeIndex);
    this.#memory.storeWord(layout.IO_SLEEPING_WORD, 1);
    if (this.#memory.loadWord(layout.DOORBELL_WORD) !== 0 || this.#isStopped) return null;
    const { async: isAsync, value } = Atomics.waitAsync(words, wakeIndex, seen);
    return isAsync ? value : null;
  }
}
