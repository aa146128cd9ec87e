/** Profiles: what becomes of samples, what bounds them, what ends them. */

import { assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../src/block/errors.ts";
import { limits } from "../../src/limits.ts";
import type { Sample } from "../../src/machine/samples.ts";
import { Profiler, type SampleSource } from "../../src/vm/profiler.ts";

const never = new AbortController().signal;

/** Gives the same samples each time that it is asked. */
class FakeSource implements SampleSource {
  readonly calls: string[] = [];
  lost = 3;
  constructor(readonly samples: () => Sample[]) {}
  start(): void {
    this.calls.push("start");
  }
  stop(): void {
    this.calls.push("stop");
  }
  *drain(): Generator<Sample> {
    yield* this.samples();
  }
}

/** Gives its samples once. */
function once(samples: Sample[]): () => Sample[] {
  return () => samples.splice(0);
}

Deno.test("a profile sums equal stacks up, those seen most first", async () => {
  const source = new FakeSource(once([
    { priv: 0, frames: [16n], weight: 1 },
    { priv: 1, frames: [1n << 63n, 2n], weight: 2 },
    { priv: 1, frames: [1n << 63n], weight: 1 },
    { priv: 1, frames: [1n << 63n, 2n], weight: 3 },
    { priv: 3, frames: [0n], weight: 4 },
  ]));
  const { stacks, samples, lost } = await new Profiler(source).run({ seconds: 0.1, signal: never });
  assertEquals(stacks, [
    { mode: "supervisor", frames: ["0x8000000000000000", "0x2"], samples: 5 },
    { mode: "machine", frames: ["0x0"], samples: 4 },
    { mode: "user", frames: ["0x10"], samples: 1 },
    { mode: "supervisor", frames: ["0x8000000000000000"], samples: 1 },
  ]);
  assertEquals([samples, lost], [11, 3]);
  assertEquals(source.calls, ["start", "stop"]);
});

Deno.test("a guest that is somewhere else each time fills no memory", async () => {
  let at = 0n;
  const many = limits.profileStacks + 100;
  const source = new FakeSource(once(
    Array.from({ length: many }, () => ({ priv: 0, frames: [at++], weight: 1 })),
  ));
  const { stacks, samples, lost } = await new Profiler(source).run({ seconds: 0.1, signal: never });
  assertEquals([stacks.length, samples, lost], [limits.profileStacks, limits.profileStacks, 103]);
});

Deno.test("one may look at a time; who leaves makes room for the next", async () => {
  const source = new FakeSource(() => []);
  const profiler = new Profiler(source);
  const leaving = new AbortController();
  const first = profiler.run({ seconds: 600, signal: leaving.signal });
  const second = profiler.run({ seconds: 1, signal: never });
  assertEquals((await assertRejects(() => second, BlockError)).code, "EBUSY");
  leaving.abort();
  await first;
  await profiler.run({ seconds: 0.1, signal: never });
  assertEquals(source.calls, ["start", "stop", "start", "stop"]);
});

Deno.test("a machine that goes ends its profile, which tells what was seen", async () => {
  const source = new FakeSource(once([{ priv: 0, frames: [0n], weight: 7 }]));
  const profiler = new Profiler(source);
  const profile = profiler.run({ seconds: 600, signal: never });
  profiler.close();
  assertEquals((await profile).samples, 7);
  assertEquals(source.calls, ["start", "stop"]);
});
