/**
 * A deterministic simulation of storage: seeded numbers, a scheduler that decides when each request
 * goes on, and nodes whose requests take several of its turns.
 *
 * Fault model of a node: a request fails before it changed anything; it takes its time before,
 * between and after the two halves of its work, so that others come in between; what a discard
 * leaves behind, and what a new node holds, may be garbage.
 *
 * @module
 */

import { setImmediate } from "node:timers";
import { BlockError, type BlockErrorCode } from "../../src/block/errors.ts";
import type { IoVector } from "../../src/block/io_vector.ts";
import { BlockNode } from "../../src/block/node.ts";
import { runSteps, settle, type Steps } from "../../src/block/steps.ts";
import {
  type BlockStatus,
  type MaybePromise,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
} from "../../src/block/types.ts";

/** Numbers that follow from a seed (mulberry32). */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** A whole number, at least 0 and less than `bound`. */
  below(bound: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return Math.floor(((t ^ (t >>> 14)) >>> 0) / 2 ** 32 * bound);
  }

  chance(percent: number): boolean {
    return this.below(100) < percent;
  }

  pick<T>(items: readonly T[]): T {
    const item = items[this.below(items.length)];
    if (item === undefined) throw new Error("nothing to pick from");
    return item;
  }
}

/** Holds requests back and lets one go on at a time. */
export class Scheduler {
  readonly #held: (() => void)[] = [];
  /** Those that others overtake, again and again. */
  readonly #slow: (() => void)[] = [];

  constructor(readonly random: Random) {}

  get heldCount(): number {
    return this.#held.length + this.#slow.length;
  }

  /** Waits for its turn, or not at all. */
  turn(waitPercent: number): MaybePromise<void> {
    if (!this.random.chance(waitPercent)) return;
    const lane = this.random.chance(20) ? this.#slow : this.#held;
    return new Promise((resolve) => lane.push(resolve));
  }

  /** Lets one of those that wait go on, and everything that follows from it happen. */
  async step(): Promise<void> {
    const isSlowsTurn = this.#held.length === 0 || (this.#slow.length > 0 && this.random.chance(5));
    const lane = isSlowsTurn ? this.#slow : this.#held;
    const [resume] = lane.splice(this.random.below(lane.length), 1);
    resume?.();
    await allSettled();
  }
}

/** Lets every promise that can settle do so. */
export function allSettled(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

const BLOCK = 4096;

/** A disk of the simulation. */
export class SimulatedNode extends BlockNode {
  bytes: Uint8Array;
  /** How many of the next requests that change something fail, and how many that read. */
  failingWrites = 0;
  failingReads = 0;
  failureCode: BlockErrorCode = "EIO";
  /** Whether discarded areas read as zeroes afterwards, or as garbage. */
  readonly #zeroesDiscards: boolean;
  readonly #scheduler: Scheduler;
  readonly #waitPercent: number;
  readonly #splitPercent: number;

  constructor(options: {
    nodeName: string;
    sizeBytes: number;
    scheduler: Scheduler;
    /** How often a request waits at each of its points. */
    waitPercent: number;
    fill: number;
    zeroesDiscards: boolean;
    /** How often a status ends earlier than it must. */
    splitPercent?: number;
  }) {
    super({
      nodeName: options.nodeName,
      driver: "simulated",
      sizeBytes: options.sizeBytes,
      isReadOnly: false,
      handlesFua: true,
    });
    this.bytes = new Uint8Array(options.sizeBytes).fill(options.fill);
    this.#zeroesDiscards = options.zeroesDiscards;
    this.#scheduler = options.scheduler;
    this.#waitPercent = options.waitPercent;
    this.#splitPercent = options.splitPercent ?? 5;
  }

  protected override doRead(offset: number, target: IoVector): MaybePromise<void> {
    return runSteps(this.#run("read", target.length, (start, end) => {
      target.copyFrom(this.bytes.subarray(offset + start, offset + end), start);
    }));
  }

  protected override doWrite(offset: number, source: IoVector): MaybePromise<void> {
    return runSteps(this.#run("write", source.length, (start, end) => {
      source.copyTo(this.bytes.subarray(offset + start, offset + end), start);
    }));
  }

  protected override doWriteZeroes(offset: number, length: number): MaybePromise<void> {
    return runSteps(this.#run("write", length, (start, end) => {
      this.bytes.fill(0, offset + start, offset + end);
    }));
  }

  protected override doDiscard(offset: number, length: number): MaybePromise<void> {
    const fill = this.#zeroesDiscards ? 0 : 0x5a;
    return runSteps(this.#run("write", length, (start, end) => {
      this.bytes.fill(fill, offset + start, offset + end);
    }));
  }

  protected override doFlush(): MaybePromise<void> {
    return this.#scheduler.turn(this.#waitPercent);
  }

  /** Within the call: an image grows at its end, where nothing is in flight. */
  protected override doResize(sizeBytes: number): void {
    const bytes = new Uint8Array(sizeBytes);
    bytes.set(this.bytes.subarray(0, sizeBytes));
    this.bytes = bytes;
    this.setSize(sizeBytes);
  }

  protected override doBlockStatus(offset: number, length: number): MaybePromise<BlockStatus> {
    return runSteps(this.#status(offset, length));
  }

  *#status(offset: number, length: number): Steps<BlockStatus> {
    yield* settle(this.#scheduler.turn(this.#waitPercent));
    const isZero = this.#isZeroBlock(offset);
    let end = Math.min((Math.floor(offset / BLOCK) + 1) * BLOCK, offset + length);
    while (end < offset + length && this.#isZeroBlock(end) === isZero) {
      end = Math.min(end + BLOCK, offset + length);
      if (this.#scheduler.random.chance(this.#splitPercent)) break;
    }
    // What was found must not be told at once, either.
    yield* settle(this.#scheduler.turn(this.#waitPercent));
    return {
      length: end - offset,
      flags: STATUS_ALLOCATED | (isZero ? STATUS_ZERO : STATUS_DATA),
    };
  }

  *#run(
    kind: "read" | "write",
    length: number,
    work: (start: number, end: number) => void,
  ): Steps<void> {
    yield* settle(this.#scheduler.turn(this.#waitPercent));
    if (kind === "write" ? this.failingWrites > 0 : this.failingReads > 0) {
      if (kind === "write") this.failingWrites--;
      else this.failingReads--;
      throw new BlockError(this.failureCode, "a simulated failure");
    }
    const middle = this.#scheduler.random.below(length + 1);
    work(0, middle);
    yield* settle(this.#scheduler.turn(this.#waitPercent));
    work(middle, length);
    yield* settle(this.#scheduler.turn(this.#waitPercent));
  }

  #isZeroBlock(offset: number): boolean {
    const start = offset - offset % BLOCK;
    return this.bytes.subarray(start, start + BLOCK).every((byte) => byte === 0);
  }
}

/** How often what happened, by its name. */
export type Counts = Record<string, number>;

/** A model run of one seed. */
export interface Simulation {
  /** What has happened so far. */
  readonly counts: Counts;
  /** Goes on by so many steps. */
  run(steps: number): Promise<void>;
}

/** Runs a model for seeds one after the other; what happened in all. A failure names its seed. */
export async function runSimulations(
  { firstSeed, runs, steps }: { firstSeed: number; runs: number; steps: number },
  start: (seed: number) => Simulation,
): Promise<Counts> {
  const counts: Counts = {};
  for (let seed = firstSeed; seed < firstSeed + runs; seed++) {
    const simulation = start(seed);
    try {
      await simulation.run(steps);
    } catch (error) {
      throw new Error(`seed ${seed}: ${error instanceof Error ? error.message : error}`, {
        cause: error,
      });
    }
    for (const [what, count] of Object.entries(simulation.counts)) {
      counts[what] = (counts[what] ?? 0) + count;
    }
  }
  return counts;
}
