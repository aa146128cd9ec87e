/**
 * Profiles of machines: where harts are seen, a thousand times a second of their running.
 *
 * @module
 */

import { setTimeout as delay } from "node:timers/promises";
import { BlockError } from "../block/errors.ts";
import { limits } from "../limits.ts";
import type { Sample, SampleReader } from "../machine/samples.ts";
import { explainDriver } from "./explain.ts";
import type { Machine } from "./machine.ts";

/** How a profile is asked for. */
export interface ProfileOrder {
  /** It ends after so long. */
  seconds: number;
  /** Ends it before. */
  signal: AbortSignal;
}

/** A place of the guest with those that called it, and how often it was seen. */
export interface ProfileStack {
  /** The privilege that the hart had. */
  mode: "user" | "supervisor" | "machine";
  /** Guest addresses: where the hart was, then what calls return to, innermost first. */
  frames: string[];
  /** Milliseconds of a hart's running. */
  samples: number;
}

/** What was seen. */
export interface Profile {
  /** How long it was looked: shorter than asked for where the machine was stopped. */
  seconds: number;
  /** Of all stacks: harts that sleep are not sampled. */
  samples: number;
  /** Samples for which there was no room, or of which nobody knows where they were. */
  lost: number;
  /** Those seen most first. */
  stacks: ProfileStack[];
}

/** 1 ms of 100 ns. */
const PERIOD_TICKS = 10_000;
/** A hart's ring holds what it sees in some 250 ms. */
const DRAIN_MS = 50;
const MODES = ["user", "supervisor", "machine", "machine"] as const;

/** A profile's worth of samples, by stack. */
class Stacks {
  readonly #stacks = new Map<string, ProfileStack>();
  samples = 0;
  /** Of stacks beyond what is kept. */
  refused = 0;

  add({ priv, frames, weight }: Sample): void {
    const mode = MODES[priv & 3] ?? "machine";
    const key = `${mode} ${frames.join()}`;
    const known = this.#stacks.get(key);
    if (known === undefined && this.#stacks.size >= limits.profileStacks) {
      this.refused += weight;
      return;
    }
    this.samples += weight;
    if (known !== undefined) known.samples += weight;
    else {
      const addresses = frames.map((address) => `0x${address.toString(16)}`);
      this.#stacks.set(key, { mode, frames: addresses, samples: weight });
    }
  }

  list(): ProfileStack[] {
    return [...this.#stacks.values()].sort((a, b) => b.samples - a.samples);
  }
}

/** Where samples come from. */
export type SampleSource = Pick<SampleReader, "start" | "stop" | "drain" | "lost">;

/** Profiles one open machine, once at a time. */
export class Profiler {
  readonly #reader: SampleSource;
  readonly #closing = new AbortController();
  #isBusy = false;

  /** Of the machine whose samples these are. */
  constructor(reader: SampleSource) {
    this.#reader = reader;
  }

  /** Looks for so long, or until `signal` or `close`. Throws EBUSY while another looks. */
  async run({ seconds, signal }: ProfileOrder): Promise<Profile> {
    if (this.#isBusy) throw new BlockError("EBUSY", "the machine is being profiled already");
    this.#isBusy = true;
    const stacks = new Stacks();
    const begin = performance.now();
    const elapsedMs = () => performance.now() - begin;
    const ending = AbortSignal.any([signal, this.#closing.signal]);
    const drain = () => {
      for (const sample of this.#reader.drain()) stacks.add(sample);
    };
    this.#reader.start(PERIOD_TICKS);
    try {
      while (!ending.aborted && elapsedMs() < seconds * 1000) {
        const restMs = Math.max(1, seconds * 1000 - elapsedMs());
        await delay(Math.min(DRAIN_MS, restMs), undefined, { signal: ending }).catch(() => {});
        drain();
      }
    } finally {
      this.#reader.stop();
      this.#isBusy = false;
    }
    drain();
    return {
      seconds: elapsedMs() / 1000,
      samples: stacks.samples,
      lost: this.#reader.lost + stacks.refused,
      stacks: stacks.list(),
    };
  }

  /** The machine goes: whoever looks gets what was seen so far. */
  close(): void {
    this.#closing.abort();
  }
}

/** Profiles a machine on behalf of a client. Throws wrongState, deviceBusy. */
export async function profileMachine(machine: Machine, order: ProfileOrder): Promise<Profile> {
  try {
    return await machine.requireDriver("be profiled").profile(order);
  } catch (error) {
    throw explainDriver(machine.record.name, error);
  }
}
