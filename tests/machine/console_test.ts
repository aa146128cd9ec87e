/** The console's rings: order, wrap-around, flow control both ways. */
import { assert, assertEquals } from "@std/assert";
import { limits } from "../../src/limits.ts";
import { ConsolePump } from "../../src/machine/console.ts";
import type { GuestMemory } from "../../src/machine/guest_memory.ts";
import { createGuestMemory, layout } from "../support/guest_queue.ts";

const RING_BYTES = layout.CONSOLE_RING_BYTES;

/** A UART's side of the rings, and what came out of the pump. */
class TestConsole {
  readonly memory: GuestMemory = createGuestMemory();
  readonly emitted: Uint8Array[] = [];
  readonly deferred: (() => void)[] = [];
  readonly pump = new ConsolePump(this.memory, {
    emit: (bytes) => this.emitted.push(bytes),
    defer: (action) => this.deferred.push(action),
  });

  /** Writes as harts do, as much as there is room for. */
  write(bytes: Uint8Array): number {
    const head = this.memory.loadWord(layout.CONSOLE_OUT_HEAD_WORD);
    const tail = this.memory.loadWord(layout.CONSOLE_OUT_TAIL_WORD);
    const count = Math.min(bytes.length, RING_BYTES - ((head - tail) >>> 0));
    for (let index = 0; index < count; index++) {
      const position = (head + index) & (RING_BYTES - 1);
      this.memory.bytes[layout.CONSOLE_OUT_RING + position] = bytes[index] ?? 0;
    }
    this.memory.storeWord(layout.CONSOLE_OUT_HEAD_WORD, head + count);
    return count;
  }

  /** Reads as harts do. */
  read(count: number): number[] {
    const head = this.memory.loadWord(layout.CONSOLE_IN_HEAD_WORD);
    const bytes: number[] = [];
    let tail = this.memory.loadWord(layout.CONSOLE_IN_TAIL_WORD);
    for (; bytes.length < count && tail !== head; tail = (tail + 1) >>> 0) {
      bytes.push(this.memory.bytes[layout.CONSOLE_IN_RING + (tail & (RING_BYTES - 1))] ?? 0);
    }
    this.memory.storeWord(layout.CONSOLE_IN_TAIL_WORD, tail);
    return bytes;
  }

  get wakeCount(): number {
    return this.memory.loadWord(layout.HART_BASE + layout.HART_WAKE_WORD);
  }

  runDeferred(): void {
    for (const action of this.deferred.splice(0)) action();
  }

  takeEmitted(): number[] {
    return this.emitted.splice(0).flatMap((bytes) => [...bytes]);
  }
}

function pattern(length: number, start = 0): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => (start + index * 7) & 0xff);
}

Deno.test("ConsolePump sends the first bytes at once and collects what follows", () => {
  const console = new TestConsole();
  console.write(pattern(3));
  console.pump.pump();
  assertEquals(console.takeEmitted(), [...pattern(3)]);
  for (let index = 0; index < 5; index++) {
    console.write(pattern(1, index));
    console.pump.pump();
  }
  assertEquals(console.emitted.length, 0);
  console.runDeferred();
  assertEquals(console.emitted.length, 1);
  assertEquals(console.takeEmitted(), [0, 1, 2, 3, 4]);
  // Nothing more came: the next byte is a first one again.
  console.runDeferred();
  assertEquals(console.deferred.length, 0);
  console.write(pattern(1, 9));
  console.pump.pump();
  assertEquals(console.takeEmitted(), [9]);
});

Deno.test("ConsolePump keeps the order of output around the ring and the counters' end", () => {
  const console = new TestConsole();
  for (const word of [layout.CONSOLE_OUT_HEAD_WORD, layout.CONSOLE_OUT_TAIL_WORD]) {
    console.memory.storeWord(word, 0xffff_ff00);
  }
  const expected: number[] = [];
  const got: number[] = [];
  for (let step = 0; step < 40; step++) {
    const bytes = pattern(1 + (step * 977) % RING_BYTES, step);
    assertEquals(console.write(bytes), bytes.length);
    expected.push(...bytes);
    console.pump.pump();
    console.runDeferred();
    console.runDeferred();
    const count = console.emitted.reduce((sum, { length }) => sum + length, 0);
    got.push(...console.takeEmitted());
    console.pump.acknowledge(count);
  }
  assertEquals(got, expected);
});

Deno.test("ConsolePump leaves output in the ring while nobody takes it, and wakes the guest after", () => {
  const console = new TestConsole();
  let sent = 0;
  while (true) {
    const count = console.write(pattern(RING_BYTES));
    console.pump.pump();
    console.runDeferred();
    if (count === 0) break;
    sent += count;
  }
  const emitted = console.emitted.reduce((sum, { length }) => sum + length, 0);
  assertEquals(emitted, limits.consoleWindowBytes);
  assertEquals(sent, limits.consoleWindowBytes + RING_BYTES);
  const wakes = console.wakeCount;
  console.pump.acknowledge(emitted);
  console.runDeferred();
  assert(console.wakeCount > wakes);
  assertEquals(console.emitted.reduce((sum, { length }) => sum + length, 0), sent);
});

Deno.test("ConsolePump.input() fills the ring, then its queue, and says how much it took", () => {
  const console = new TestConsole();
  const bytes = pattern(RING_BYTES + limits.consoleInputBytes + 1000);
  const first = console.pump.input(bytes.subarray(0, RING_BYTES));
  assertEquals(first, RING_BYTES);
  const wakes = console.wakeCount;
  assert(wakes > 0);
  const rest = bytes.subarray(RING_BYTES);
  assertEquals(console.pump.input(rest), limits.consoleInputBytes);
  assertEquals(console.pump.input(rest), 0);
  const got: number[] = [];
  while (true) {
    const part = console.read(1000);
    if (part.length === 0) break;
    got.push(...part);
    console.pump.pump();
  }
  assertEquals(got, [...bytes.subarray(0, RING_BYTES + limits.consoleInputBytes)]);
  assert(console.wakeCount > wakes);
});

Deno.test("ConsolePump.discardInput() forgets what was typed before a reset", () => {
  const console = new TestConsole();
  console.pump.input(pattern(RING_BYTES));
  console.pump.input(pattern(10));
  console.pump.discardInput();
  console.read(RING_BYTES);
  console.pump.pump();
  assertEquals(console.read(1), []);
});

Deno.test("ConsolePump.close() sends what is left and nothing afterwards", () => {
  const console = new TestConsole();
  console.write(pattern(2));
  console.pump.pump();
  console.write(pattern(2, 5));
  console.pump.close();
  console.write(pattern(2));
  console.runDeferred();
  assertEquals(console.takeEmitted(), [...pattern(2), ...pattern(2, 5)]);
});
