/** The doorbell loop: no ring is lost, and nobody starves. */
import { assert, assertEquals } from "@std/assert";
import { DoorbellLoop } from "../../src/machine/doorbell.ts";
import { nextTurn } from "../../src/machine/event_loop.ts";
import type { GuestMemory } from "../../src/machine/guest_memory.ts";
import { createGuestMemory, layout } from "../support/guest_queue.ts";

/** What a hart does (board/signal.ts). */
function ring(memory: GuestMemory, bits: number): void {
  Atomics.or(memory.words, layout.DOORBELL_WORD >>> 2, bits);
  if (memory.loadWord(layout.IO_SLEEPING_WORD) === 0) return;
  Atomics.add(memory.words, layout.IO_WAKE_WORD >>> 2, 1);
  Atomics.notify(memory.words, layout.IO_WAKE_WORD >>> 2);
}

/** Turns until `isDone`; a test that needs more of them than this has hung. */
async function turnsUntil(isDone: () => boolean): Promise<void> {
  for (let turn = 0; turn < 100_000; turn++) {
    if (isDone()) return;
    await nextTurn();
  }
  throw new Error("it never happened");
}

Deno.test("DoorbellLoop serves what is rung for, the machine's end last", async () => {
  const memory = createGuestMemory();
  const served: string[] = [];
  const loop = new DoorbellLoop(memory, {
    console: () => void served.push("console"),
    exit: () => void served.push("exit"),
    socketActivity: () => 0,
    virtio: (slot) => {
      served.push(`virtio ${slot}`);
      return false;
    },
  });
  ring(memory, layout.DOORBELL_EXIT | layout.DOORBELL_CONSOLE | (layout.DOORBELL_VIRTIO << 7));
  await turnsUntil(() => served.length === 3);
  assertEquals(served, ["console", "virtio 7", "exit"]);
  ring(memory, layout.DOORBELL_VIRTIO);
  await turnsUntil(() => served.length === 4);
  assertEquals(served.at(-1), "virtio 0");
  await loop.stop();
  assertEquals(memory.loadWord(layout.DOORBELL_WORD), 0);
});

Deno.test("DoorbellLoop goes on with a slot that has more, and lets others in between", async () => {
  const memory = createGuestMemory();
  let left = 1000;
  let turns = 0;
  const loop = new DoorbellLoop(memory, {
    console: () => {},
    exit: () => {},
    socketActivity: () => 0,
    virtio: () => --left > 0,
  });
  ring(memory, layout.DOORBELL_VIRTIO << 3);
  while (left > 0) {
    turns++;
    await nextTurn();
  }
  assert(turns > 100, `${turns} turns of others while one slot was served 1000 times`);
  await loop.stop();
});

Deno.test("DoorbellLoop lets others in while rings never cease", async () => {
  const memory = createGuestMemory();
  let isRinging = true;
  const loop = new DoorbellLoop(memory, {
    console: () => {
      // The next ring is there before this round ends.
      if (isRinging) ring(memory, layout.DOORBELL_CONSOLE);
    },
    exit: () => {},
    socketActivity: () => 0,
    virtio: () => false,
  });
  ring(memory, layout.DOORBELL_CONSOLE);
  for (let turn = 0; turn < 100; turn++) await nextTurn();
  isRinging = false;
  await loop.stop();
});

Deno.test("DoorbellLoop loses no ring of another thread", async () => {
  const memory = createGuestMemory();
  const count = 2000;
  let served = 0;
  const loop = new DoorbellLoop(memory, {
    console: () => {
      served = memory.loadWord(layout.CONSOLE_OUT_HEAD_WORD);
      memory.storeWord(layout.CONSOLE_OUT_TAIL_WORD, served);
      Atomics.notify(memory.words, layout.CONSOLE_OUT_TAIL_WORD >>> 2);
    },
    exit: () => {},
    socketActivity: () => 0,
    virtio: () => false,
  });
  const hart = new Worker(new URL("../support/ringing_hart.ts", import.meta.url), {
    type: "module",
    deno: { permissions: "none" },
  });
  const { DOORBELL_WORD, DOORBELL_CONSOLE, IO_WAKE_WORD, IO_SLEEPING_WORD } = layout;
  const { CONSOLE_OUT_HEAD_WORD, CONSOLE_OUT_TAIL_WORD } = layout;
  const ended = new Promise<string>((resolve) => hart.onmessage = ({ data }) => resolve(data));
  hart.postMessage({
    buffer: memory.buffer,
    count,
    bit: DOORBELL_CONSOLE,
    words: [
      DOORBELL_WORD,
      IO_WAKE_WORD,
      IO_SLEEPING_WORD,
      CONSOLE_OUT_HEAD_WORD,
      CONSOLE_OUT_TAIL_WORD,
    ],
  });
  assertEquals(await ended, "every ring was answered");
  assertEquals(served, count);
  hart.terminate();
  await loop.stop();
});

/**
 * Calls of a handler that takes 0.2 ms and never has enough, between one look at sockets and the
 * next. Who waits for a processor only makes it fewer. `activityAt`: what the look finds.
 */
async function callsBetweenLooks(activityAt: (look: number) => number): Promise<number[]> {
  const gaps: number[] = [];
  const enough = Promise.withResolvers<void>();
  let calls = 0;
  const memory = createGuestMemory();
  ring(memory, layout.DOORBELL_VIRTIO);
  const loop = new DoorbellLoop(memory, {
    console: () => {},
    exit: () => {},
    socketActivity: () => {
      if (gaps.push(calls) === 60) enough.resolve();
      calls = 0;
      return activityAt(gaps.length);
    },
    virtio: () => {
      calls++;
      const endMs = performance.now() + 0.2;
      while (performance.now() < endMs);
      return true;
    },
  });
  await enough.promise;
  await loop.stop();
  return gaps;
}

Deno.test("DoorbellLoop looks at sockets beside a hart that never stops", async () => {
  const idle = Math.max(...await callsBetweenLooks(() => 0));
  assert(idle <= 51, `${idle} calls`);
  // Found once, a reader is active; the first look is that of a loop that knows of none.
  const [, ...active] = await callsBetweenLooks((look) => look);
  assert(Math.max(...active) <= 3, `${active} calls`);
});
