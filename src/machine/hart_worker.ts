/**
 * The worker of one hart: the run loop and nothing else. It needs no permissions.
 *
 *   init -> ready;  run -> (runs, sleeps in WFI, ...) -> parked;  run -> ...
 *
 * While it runs it takes no messages: the host stops it by STOP_WORD and a bump of HART_WAKE_WORD.
 * Every wait has a bound, so that even a lost notification only costs time.
 *
 * @module
 */

/// <reference lib="deno.worker" />

import {
  type HartExports,
  instantiateHart,
  readHartLayout,
  RUN_SLICE_OVER,
  RUN_STOP,
} from "../wasm/hart.ts";
import { limits } from "../limits.ts";
import { GuestMemory } from "./guest_memory.ts";
import { createHostTicks, TICKS_PER_MS } from "./host_ticks.ts";
import type { HartEvent, HartRequest } from "./messages.ts";

/**
 * run() looks at the stop word itself every few thousand instructions; after this many its time is
 * added to the figures.
 */
const BUDGET_INSTRUCTIONS = 0x100_0000;
/** The longest that a hart sleeps without looking around. */
const WAIT_MAX_MS = 1000;

/** A hart, tied to its memory. */
interface Hart {
  hartId: number;
  instance: HartExports;
  memory: GuestMemory;
  /** Index of HART_WAKE_WORD among the memory's words. */
  wakeIndex: number;
}

let current: Hart | null = null;

self.onmessage = (event: MessageEvent<HartRequest>) => {
  const request = event.data;
  if (request.type === "init") {
    current = createHart(request);
    post({ type: "ready", hartId: current.hartId });
  } else if (current !== null) {
    runUntilStopped(current);
  }
};

function createHart(request: HartRequest & { type: "init" }): Hart {
  const { hartId, modules } = request;
  const layout = readHartLayout(modules.hart);
  const memory = new GuestMemory(request.memory, layout);
  const instance = instantiateHart(modules.hart, {
    memory: request.memory,
    hartId,
    imports: { hostTicks: createHostTicks() },
  });
  if (request.accel === "translator") {
    instance.startTranslator(limits.translatorRegions, limits.translatorModuleBytes);
  }
  const wakeWord = layout.HART_BASE + hartId * layout.HART_STRIDE + layout.HART_WAKE_WORD;
  return { hartId, instance, memory, wakeIndex: wakeWord >>> 2 };
}

function runUntilStopped(hart: Hart): void {
  const { hartId, instance } = hart;
  try {
    // The machine may have been loaded anew since: what the instance keeps of the hart is stale.
    instance.bind(hartId);
    for (;;) {
      const reason = instance.run(BUDGET_INSTRUCTIONS);
      if (reason === RUN_STOP) break;
      if (reason !== RUN_SLICE_OVER) sleep(hart);
    }
    post({ type: "parked", hartId });
  } catch (error) {
    // A trap of WebAssembly is a bug of ours. The other harts must not go on without this one.
    endMachine(hart.memory);
    post({
      type: "failed",
      hartId,
      message: error instanceof Error ? error.message : String(error),
    });
  }
}

/** Sleeps until somebody wakes the hart, or its timer is due. */
function sleep(hart: Hart): void {
  const { instance, memory, wakeIndex } = hart;
  const ticks = BigInt.asUintN(64, instance.nextTimerTicks());
  const timeoutMs = Math.min(Number(ticks) / TICKS_PER_MS, WAIT_MAX_MS);
  // Returns at once if the word was bumped after run() last looked at what others want.
  Atomics.wait(memory.words, wakeIndex, instance.wakeSeen.value, timeoutMs);
}

function endMachine(memory: GuestMemory): void {
  const { words, layout } = memory;
  Atomics.compareExchange(words, layout.EXIT_WORD >>> 2, layout.EXIT_NONE, layout.EXIT_HOST_FAULT);
  Atomics.or(words, layout.DOORBELL_WORD >>> 2, layout.DOORBELL_EXIT);
  Atomics.add(words, layout.IO_WAKE_WORD >>> 2, 1);
  Atomics.notify(words, layout.IO_WAKE_WORD >>> 2);
  memory.wakeHarts();
}

function post(event: HartEvent): void {
  self.postMessage(event);
}
