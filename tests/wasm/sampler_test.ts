/** Samples of where a hart is: in both tiers, by time, with callers, whatever the guest's stack is. */

import { assert, assertEquals } from "@std/assert";
import { type Sample, SampleReader } from "../../src/machine/samples.ts";
import * as asm from "../support/rv_asm.ts";
import { a0, addi, CSR, s0, sp, t0 } from "../support/rv_asm.ts";
import { layout, RAM, RAM_BYTES, TestHart } from "../support/test_hart.ts";

const SPIN = RAM + 0x1000n;
const STACK = RAM + 0x8000n;
const PERIOD = 1000;
/** What each look at the clock takes: every look is a sample. */
const LOOK = 1500;

/** A hart whose time goes on with each look at the clock, and that spins in S mode at SPIN. */
function createHart(translates: boolean): { hart: TestHart; reader: SampleReader } {
  const hart = new TestHart();
  hart.hart(0).setTranslator(translates ? 1 : 0, 1);
  hart.setCsr(CSR.pmpaddr0, (1n << 54n) - 1n);
  hart.setCsr(CSR.pmpcfg0, 0x1fn);
  let ticks = 0;
  Object.defineProperty(hart, "ticks", { get: () => ticks += LOOK });
  // 10 instructions of which one loads, so that the stack's page is known.
  hart.load(SPIN, [asm.ld(a0, sp, 0), ...Array(8).fill(addi(t0, t0, 1)), asm.jal(0, -36)]);
  hart.setX(sp, STACK);
  hart.setPriv(1);
  hart.setPc(SPIN);
  return { hart, reader: new SampleReader(hart.view.buffer, layout, 1) };
}

function take(hart: TestHart, reader: SampleReader): Sample[] {
  const samples: Sample[] = [];
  for (let round = 0; round < 20; round++) {
    hart.run(100_000);
    samples.push(...reader.drain());
  }
  return samples;
}

for (const translates of [false, true]) {
  const tier = translates ? "translated" : "interpreted";

  Deno.test(`${tier} code is seen all over where it spins, while somebody looks`, () => {
    const { hart, reader } = createHart(translates);
    assertEquals(take(hart, reader), []);
    reader.start(PERIOD);
    const samples = take(hart, reader);
    assert(samples.length > 100, `${samples.length}`);
    const places = new Set<bigint>();
    for (const { priv, frames, weight } of samples) {
      assertEquals([priv, frames.length], [1, 1]);
      assert(weight >= 1 && weight < 64, `${weight}`);
      for (const pc of frames) {
        assert(pc >= SPIN && pc < SPIN + 40n, pc.toString(16));
        places.add(pc);
      }
    }
    assert(places.size >= 5, `${places.size} of 10 instructions were seen`);
    assertEquals(hart.statistic("retired") > 0n, translates);
    reader.stop();
    assertEquals(take(hart, reader), []);
  });
}

Deno.test("callers are found by frame pointers, also of a function that calls none", () => {
  const { hart, reader } = createHart(true);
  // Two callers with all of a frame, around one that stored but its caller's s0.
  hart.write64(STACK + 0x18n, STACK + 0x40n);
  hart.setX(asm.ra, RAM + 0x100n);
  hart.setX(s0, STACK + 0x20n);
  hart.write64(STACK + 0x38n, RAM + 0x200n);
  hart.write64(STACK + 0x30n, STACK + 0x60n);
  hart.write64(STACK + 0x58n, RAM + 0x300n);
  hart.write64(STACK + 0x50n, 0n);
  reader.start(PERIOD);
  const [sample] = take(hart, reader);
  assertEquals(sample?.frames.slice(1), [RAM + 0x100n, RAM + 0x200n, RAM + 0x300n]);
});

Deno.test("a stack that never ends, goes round or lies nowhere does no harm", () => {
  const values = [
    0n,
    1n,
    (1n << 64n) - 1n,
    (1n << 64n) - 8n,
    1n << 63n,
    STACK,
    STACK + 4n,
    STACK + 8n,
    STACK + 16n,
    STACK + 0x10000n,
    STACK + 0x10008n,
    RAM + BigInt(RAM_BYTES),
    RAM + BigInt(RAM_BYTES) - 8n,
    0x0200_0000n,
  ];
  const { hart, reader } = createHart(true);
  reader.start(PERIOD);
  for (const frame of values) {
    for (const value of values) {
      for (let at = STACK - 16n; at < STACK + 0x1000n; at += 8n) {
        hart.write64(at, at % 16n === 0n && value === STACK + 16n ? at + 32n : value);
      }
      hart.setX(s0, frame);
      hart.setX(sp, STACK);
      hart.run(20_000);
      for (const { frames } of reader.drain()) {
        assert(frames.length >= 1 && frames.length <= layout.SAMPLE_FRAMES_MAX);
      }
    }
  }
  // A chain of frames that goes on for ever ends at as many as are kept.
  for (let at = STACK; at < STACK + 0x1000n; at += 16n) {
    hart.write64(at, at + 32n);
    hart.write64(at + 8n, RAM + 0x100n);
  }
  hart.setX(s0, STACK + 16n);
  assertEquals(take(hart, reader).at(-1)?.frames.length, layout.SAMPLE_FRAMES_MAX);
});

Deno.test("samples that nobody takes are counted, and the ring goes on afterwards", () => {
  const { hart, reader } = createHart(true);
  reader.start(PERIOD);
  for (let round = 0; round < 100; round++) hart.run(100_000);
  const kept = [...reader.drain()];
  assertEquals(kept.length, layout.SAMPLES_SLOTS);
  assert(reader.lost > 0);
  assert(take(hart, reader).length > 100);
  reader.start(PERIOD);
  assertEquals(reader.lost, 0);
});

Deno.test("time asleep is not sampled", () => {
  const { hart, reader } = createHart(false);
  hart.load(SPIN, [asm.wfi, asm.jal(0, -4)]);
  reader.start(PERIOD);
  for (let round = 0; round < 1000; round++) hart.run(1000);
  assertEquals([...reader.drain()], []);
});
