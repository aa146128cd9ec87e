import { assertEquals } from "@std/assert";
import { createHostTicks, TICKS_EPOCH_MS, TICKS_PER_MS } from "../../src/machine/host_ticks.ts";

Deno.test("createHostTicks() counts 100 ns since its epoch, in whole numbers, never back", () => {
  const hostTicks = createHostTicks();
  const wall = (Date.now() - TICKS_EPOCH_MS) * TICKS_PER_MS;
  let last = hostTicks();
  // The wall clock is read in whole milliseconds.
  assertEquals(Math.abs(last - wall) < 2 * TICKS_PER_MS, true, `${last - wall} ticks apart`);
  for (let count = 0; count < 10_000; count++) {
    const now = hostTicks();
    assertEquals([Number.isSafeInteger(now), now >= last], [true, true]);
    last = now;
  }
});

Deno.test("createHostTicks() is the same clock in a worker", async () => {
  const url = new URL("../../src/machine/host_ticks.ts", import.meta.url).href;
  const source = `import { createHostTicks } from ${JSON.stringify(url)};
    const hostTicks = createHostTicks();
    self.onmessage = ({ data }) => {
      const words = new Int32Array(data);
      for (let round = 1; round <= 100; round++) {
        while (Atomics.load(words, 0) !== round);
        new Float64Array(data)[1] = hostTicks();
        Atomics.store(words, 1, round);
      }
    };
    self.postMessage("ready");`;
  const blob = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const worker = new Worker(blob, { type: "module" });
  await new Promise((resolve) => worker.onmessage = resolve);
  const hostTicks = createHostTicks();
  const buffer = new SharedArrayBuffer(16);
  const words = new Int32Array(buffer);
  worker.postMessage(buffer);
  // The other clock is read between two readings of this one, so that their true difference lies
  // between the bounds, however long the machine took for a round.
  let lowest = -Infinity;
  let highest = Infinity;
  for (let round = 1; round <= 100; round++) {
    const before = hostTicks();
    Atomics.store(words, 0, round);
    while (Atomics.load(words, 1) !== round);
    const other = new Float64Array(buffer)[1] ?? NaN;
    lowest = Math.max(lowest, other - hostTicks());
    highest = Math.min(highest, other - before);
  }
  worker.terminate();
  URL.revokeObjectURL(blob);
  const bounds = `${lowest / TICKS_PER_MS} to ${highest / TICKS_PER_MS} ms apart`;
  assertEquals(lowest < TICKS_PER_MS && highest > -TICKS_PER_MS, true, bounds);
});
