/**
 * What a debugger relies on, in both tiers: single steps, breakpoints in the middle of hot code,
 * and triggers, of which there are none.
 */

import { assert, assertEquals } from "@std/assert";
import { FLOW, makeFlow, startRegisters } from "../support/random_flow.ts";
import { RandomInstructions } from "../support/random_instructions.ts";
import * as asm from "../support/rv_asm.ts";
import { a0, a1, a2, addi, CSR, ebreak, halt, t0, t1 } from "../support/rv_asm.ts";
import { layout, RAM, TestHart } from "../support/test_hart.ts";

const SEED = Number(Deno.env.get("OVIS_SEED") ?? 20261130);
const HANDLER = RAM + 0x800n;
const STEPS = 3000;
const REGISTERS = 26;

function createHart(translates: boolean): TestHart {
  const hart = new TestHart();
  hart.hart(0).setTranslator(translates ? 1 : 0, 1);
  hart.load(HANDLER, [halt]);
  hart.setCsr(CSR.mtvec, HANDLER);
  hart.setPc(RAM);
  return hart;
}

const instretOf = (hart: TestHart) =>
  hart.view.getBigUint64(layout.HART_BASE + layout.HART_INSTRET, true);
const registersOf = (hart: TestHart) => Array.from({ length: 32 }, (_, index) => hart.x(index));

/** A program of every kind of instruction, traps included, that has run hot. */
function startFlow(translates: boolean): TestHart {
  const base = RAM + 0x10_0000n;
  const hart = createHart(translates);
  hart.write(base, makeFlow(new RandomInstructions(SEED, REGISTERS), base));
  for (const [index, value] of startRegisters(base)) hart.setX(index, value);
  hart.setCsr(CSR.mtvec, base);
  hart.setCsr(CSR.mstatus, 1n << 13n);
  hart.setPc(base + BigInt(FLOW.code));
  hart.hart(0).runExactly(100_000);
  return hart;
}

Deno.test(`a budget of one is one instruction, or one trap, in both tiers (seed ${SEED})`, () => {
  const [translated, reference] = [startFlow(true), startFlow(false)];
  assert(translated.statistic("retired") > 1000n, "the program was translated");
  let traps = 0;
  for (let step = 0; step < STEPS; step++) {
    const before = instretOf(translated);
    for (const hart of [translated, reference]) hart.hart(0).runExactly(1);
    const retired = instretOf(translated) - before;
    assert(retired === 0n || retired === 1n, `${retired} instructions in step ${step}`);
    if (retired === 0n) traps++;
    assertEquals(translated.pc(), reference.pc(), `step ${step} of seed ${SEED}`);
    assertEquals(registersOf(translated), registersOf(reference), `step ${step} of seed ${SEED}`);
  }
  assert(traps > 0 && traps < STEPS / 2, `${traps} traps`);
});

Deno.test("a step leaves translated code in place, which goes on where the step led", () => {
  const hart = createHart(true);
  hart.load(RAM, [addi(a0, a0, 1), addi(a1, a1, 2), addi(t0, t0, -1), asm.bne(t0, 0, -12), halt]);
  hart.setX(t0, 1n << 40n);
  for (let round = 0; round < 20; round++) hart.run(1000);
  for (const count of [1, 2, 3, 1, 1, 5]) {
    const before = [hart.x(a0), hart.x(a1) / 2n, (1n << 40n) - hart.x(t0)];
    const pc = hart.pc();
    hart.hart(0).runExactly(count);
    const at = (Number(pc - RAM) / 4 + count) % 4;
    assertEquals(hart.pc(), RAM + BigInt(4 * at));
    const passed = Number(pc - RAM) / 4 + count;
    const times = (place: number) =>
      BigInt(Math.floor((passed + 3 - place) / 4) - Math.floor((passed - count + 3 - place) / 4));
    const after = [hart.x(a0), hart.x(a1) / 2n, (1n << 40n) - hart.x(t0)];
    assertEquals(after, before.map((value, place) => value + times(place)));
  }
  const made = hart.statistic("made");
  const retired = hart.statistic("retired");
  hart.run(10_000);
  assertEquals(hart.statistic("made"), made);
  assert(hart.statistic("retired") - retired > 9000n);
});

for (const [name, breakpoint] of [["EBREAK", [ebreak]], ["C.EBREAK", [0x0001_9002]]] as const) {
  Deno.test(`${name} put into a hot loop stops it there, exactly, and once taken out does not`, () => {
    for (const translates of [false, true]) {
      const hart = createHart(translates);
      const loop = [addi(a0, a0, 1), addi(a1, a1, 2), addi(a2, a2, 3), asm.jal(0, -12)];
      hart.load(RAM, loop);
      for (let round = 0; round < 20; round++) hart.run(1000);
      assertEquals(hart.statistic("retired") > 0n, translates);
      // As a debugger does it: the guest's own store, then FENCE.I.
      const patch = RAM + 0x400n;
      const setInstruction = (word: number, goOnAt: bigint) => {
        hart.load(patch, [asm.sw(t0, t1, 0), asm.fenceI, asm.jal(0, Number(goOnAt - patch) - 8)]);
        hart.setX(t0, BigInt.asUintN(64, BigInt(word | 0)));
        hart.setX(t1, RAM + 4n);
        hart.setPc(patch);
        hart.run(1);
      };
      for (const register of [a0, a1, a2]) hart.setX(register, 0n);
      setInstruction(breakpoint[0], RAM);
      hart.run(1000);
      const state = [CSR.mcause, CSR.mepc, CSR.mtval].map((number) => hart.csr(number));
      assertEquals(state, [3n, RAM + 4n, RAM + 4n]);
      assertEquals([hart.x(a0), hart.x(a1), hart.x(a2)], [1n, 0n, 0n]);
      assertEquals(hart.pc(), HANDLER);
      setInstruction(loop[1] ?? 0, RAM + 4n);
      hart.run(10_000);
      assert(hart.x(a1) > 1000n);
      const rounds = hart.x(a1) / 2n;
      assert(hart.x(a0) - rounds <= 1n && hart.x(a2) / 3n >= rounds - 1n);
    }
  });
}

Deno.test("there are no triggers: whatever is written to them, nothing is selected or hit", () => {
  for (const translates of [false, true]) {
    const hart = createHart(translates);
    // tselect and the address of the loop's first instruction, as an execution trigger of mcontrol.
    hart.setX(a1, (2n << 60n) | (1n << 59n) | 0x44n);
    hart.setX(a2, RAM);
    hart.load(RAM, [
      asm.csrw(CSR.tselect, a2),
      asm.csrw(CSR.tdata1, a1),
      asm.csrw(CSR.tdata2, a2),
      asm.csrr(t0, CSR.tselect),
      asm.csrr(t1, CSR.tdata1),
      asm.add(t0, t0, t1),
      asm.csrr(t1, CSR.tdata2),
      asm.add(t0, t0, t1),
      addi(a0, a0, 1),
      asm.beq(t0, 0, -36),
      halt,
    ]);
    for (let round = 0; round < 20; round++) hart.run(1000);
    assert(hart.x(a0) > 1000n, `${hart.x(a0)} rounds`);
    assert(hart.pc() < RAM + 40n);
    assertEquals(hart.csr(CSR.mcause), 0n);
  }
});
