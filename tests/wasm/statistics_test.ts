/** The figures of the tiers: instructions, time, and why translated code was left. */

import { assert, assertEquals } from "@std/assert";
import { readTranslatorFigures } from "../../src/wasm/translator.ts";
import * as asm from "../support/rv_asm.ts";
import { a0, a1, a2, addi, CSR, halt, ld, t0, t1 } from "../support/rv_asm.ts";
import { layout, RAM, TestHart } from "../support/test_hart.ts";

const HANDLER = RAM + 0x800n;
const MTIMECMP = 0x0200_4000n;
const figuresOf = (hart: TestHart) => readTranslatorFigures(hart.view, layout, 1);

/**
 * A hart that translates what was executed once; traps are returned from behind the instruction.
 * Translated code is entered where jumps lead.
 */
function createHart(words: number[]): TestHart {
  const hart = new TestHart();
  hart.hart(0).setTranslator(1, 1);
  hart.load(RAM, words);
  hart.load(HANDLER, [
    asm.csrr(t1, CSR.mepc),
    addi(t1, t1, 4),
    asm.csrw(CSR.mepc, t1),
    asm.jal(0, 4),
    addi(t1, 0, 0),
    asm.mret,
  ]);
  hart.setCsr(CSR.mtvec, HANDLER);
  hart.setCsr(CSR.mie, 0x80n);
  hart.setX(a2, MTIMECMP);
  hart.setX(a1, RAM + 0x2001n);
  hart.setPc(RAM);
  return hart;
}

Deno.test("each exit of translated code is counted under its reason", () => {
  const loop = [
    addi(a0, a0, 1),
    asm.ecall,
    asm.ebreak,
    asm.sd(0, a2, 0), // mtimecmp 0: WFI goes on at once
    asm.jal(0, 4),
    addi(a0, a0, 1),
    asm.wfi,
    asm.csrw(CSR.satp, 0),
    asm.fenceI,
    asm.sfenceVma,
  ];
  const hart = createHart([...loop, asm.jal(0, -4 * loop.length)]);
  hart.ticks = 1;
  for (let round = 0; round < 500; round++) hart.run(200);
  const { exits, instructions, interpreted } = figuresOf(hart);
  assert(hart.x(a0) > 1000n, "it went round");
  for (const reason of ["memory", "csr", "trap", "return", "wait", "fence"] as const) {
    assert(exits[reason] > 100, `${reason}: ${JSON.stringify(exits)}`);
  }
  assertEquals([exits.float, exits.atomic, exits.other], [0, 0, 0], JSON.stringify(exits));
  assert(instructions > 0 && interpreted > 0);
});

Deno.test("instructions of both tiers add up to what the hart executed", () => {
  const hart = createHart([addi(t0, t0, -1), asm.bne(t0, 0, -4), halt]);
  hart.setX(t0, 20_000n);
  const instret = () =>
    Number(hart.view.getBigUint64(layout.HART_BASE + layout.HART_INSTRET, true));
  const total = ({ instructions, interpreted }: ReturnType<typeof figuresOf>) =>
    instructions + interpreted;
  const begin = instret() - total(figuresOf(hart));
  for (let round = 0; round < 100; round++) hart.run(1000);
  const after = figuresOf(hart);
  assertEquals(total(after), instret() - begin);
  assert(after.instructions > 0);
});

Deno.test("time is told by tier, and no more of it than there was", () => {
  const hart = createHart([
    ld(t1, a1, 0),
    addi(t0, t0, -1),
    asm.bne(t0, 0, -8),
    halt,
  ]);
  hart.setX(a1, RAM + 0x2000n);
  hart.setX(t0, 1n << 40n);
  // Each look at the clock takes 10 us.
  let ticks = 0;
  Object.defineProperty(hart, "ticks", { get: () => ticks += 100 });
  for (let round = 0; round < 20_000; round++) hart.run(100);
  const { timeMs } = figuresOf(hart);
  const all = timeMs.interpreter + timeMs.translated + timeMs.making;
  assert(timeMs.translated > 0 && timeMs.interpreter > 0, JSON.stringify(timeMs));
  assert(all <= ticks / 10_000 + 2, `${JSON.stringify(timeMs)} of ${ticks / 10_000} ms`);
});
