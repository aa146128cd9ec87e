/**
 * What translated code must notice: code that changes, mappings that change, privilege, faults in
 * the middle, devices, the end of the budget; and the bounds of what is kept.
 */

import { assert, assertEquals } from "@std/assert";
import * as asm from "../support/rv_asm.ts";
import { a0, a1, a2, a3, a4, addi, CSR, halt, ld, ra, sd, sw, t0, t1 } from "../support/rv_asm.ts";
import { layout, RAM, RAM_BYTES, TestHart } from "../support/test_hart.ts";

const DATA = RAM + 0x8000n;
const HANDLER = RAM + 0x800n;
const TABLES = RAM + 0x10_0000n;
const VA = 0x4000_0000n;
const PAGE = 0x1000n;
const PTE_URWX = 0xdfn;
const PTE_RWX = 0xcfn;

/** A hart that translates whatever was executed once. */
function createHart(words: number[], at = RAM): TestHart {
  const hart = new TestHart();
  hart.hart(0).setTranslator(1, 1);
  hart.load(at, words);
  hart.load(HANDLER, [halt]);
  hart.setCsr(CSR.mtvec, HANDLER);
  hart.setPc(at);
  return hart;
}

/** Runs until most of what is executed is translated. */
function warm(hart: TestHart, pc: bigint): void {
  hart.setPc(pc);
  for (let round = 0; round < 20; round++) {
    hart.run(1000);
    hart.setPc(pc);
  }
  const before = hart.statistic("retired");
  hart.run(1000);
  assert(hart.statistic("retired") > before, "the code runs translated");
  hart.setPc(pc);
}

/** Sv39: VA + n pages, for n below 512, to what `gpaOf` says, for S or U mode. */
function mapPages(hart: TestHart, count: number, gpaOf: (page: number) => bigint, flags: bigint) {
  const pointer = (gpa: bigint) => ((gpa >> 12n) << 10n) | 1n;
  hart.write64(TABLES + 8n * (VA >> 30n), pointer(TABLES + PAGE));
  hart.write64(TABLES + PAGE, pointer(TABLES + 2n * PAGE));
  for (let page = 0; page < count; page++) mapPage(hart, page, gpaOf(page), flags);
  hart.setCsr(CSR.pmpaddr0, (1n << 54n) - 1n);
  hart.setCsr(CSR.pmpcfg0, 0x1fn);
  hart.setCsr(CSR.satp, (8n << 60n) | (TABLES >> 12n));
}

function mapPage(hart: TestHart, page: number, gpa: bigint, flags: bigint): void {
  hart.write64(TABLES + 2n * PAGE + 8n * BigInt(page), ((gpa >> 12n) << 10n) | flags);
}

/** Adds a0 up from a1 doublewords at a2, t0 times over. */
const SUM_LOOP = [
  ld(t1, a2, 0),
  asm.add(a0, a0, t1),
  addi(t0, t0, -1),
  asm.bne(t0, 0, -12),
  halt,
];

Deno.test("a loop that was translated does what it did", () => {
  const hart = createHart(SUM_LOOP);
  hart.setX(a2, DATA);
  hart.write64(DATA, 3n);
  hart.setX(t0, 1n << 40n);
  warm(hart, RAM);
  hart.setX(a0, 0n);
  hart.setX(t0, 1000n);
  hart.run(10_000);
  assertEquals(hart.x(a0), 3000n);
  assertEquals(hart.pc(), RAM + 16n);
});

Deno.test("the budget ends a translated loop within a way through it", () => {
  const hart = createHart(SUM_LOOP);
  hart.setX(a2, DATA);
  hart.setX(t0, 1n << 40n);
  warm(hart, RAM);
  const instret = () => hart.view.getBigUint64(layout.HART_BASE + layout.HART_INSTRET, true);
  for (const budget of [1, 10, 100, 5000]) {
    const before = instret();
    hart.run(budget);
    const retired = Number(instret() - before);
    assert(retired >= budget - 1 && retired <= budget + 8, `${budget}: ${retired}`);
  }
});

Deno.test("runExactly() retires exactly as many instructions, translated or not", () => {
  const hart = createHart(SUM_LOOP);
  hart.setX(a2, DATA);
  hart.setX(t0, 1n << 40n);
  warm(hart, RAM);
  const instret = () => hart.view.getBigUint64(layout.HART_BASE + layout.HART_INSTRET, true);
  for (const count of [1, 2, 3, 7, 4097, 5003, 100_001]) {
    const before = instret();
    hart.hart(0).runExactly(count);
    assertEquals(instret() - before, BigInt(count));
  }
});

Deno.test("translated code that was rewritten is what it is now, after FENCE.I", () => {
  // A loop over: a call, and now and then (a3) a store to the callee and FENCE.I.
  const callee = RAM + 0x2000n;
  const hart = createHart([
    asm.jalr(ra, a1, 0),
    asm.beq(a3, 0, 12),
    sw(a4, a1, 0),
    asm.fenceI,
    addi(a3, 0, 0),
    asm.jal(0, -20),
  ]);
  hart.load(callee, [addi(a0, a0, 1), asm.jalr(0, ra, 0)]);
  hart.setX(a1, callee);
  warm(hart, RAM);
  for (const step of [5, 7]) {
    hart.setX(a4, BigInt(addi(a0, a0, step)));
    hart.setX(a3, 1n);
    hart.setPc(RAM);
    hart.run(2000);
    hart.setX(a0, 0n);
    hart.run(7000);
    assert(hart.x(a0) % BigInt(step) === 0n && hart.x(a0) > 0n, `${hart.x(a0)} of ${step}`);
  }
  assert(hart.statistic("dropped") > 0n);
});

Deno.test("translated code may write data on its own page", () => {
  const hart = createHart([
    addi(a0, a0, 1),
    sd(a0, a2, 0),
    ld(t1, a2, 0),
    asm.beq(t1, a0, -12),
    halt,
  ]);
  hart.setX(a2, RAM + 0x400n);
  warm(hart, RAM);
  hart.run(10_000);
  assertEquals(hart.read64(RAM + 0x400n) + 1n >= hart.x(a0), true);
  assert(hart.pc() !== RAM + 16n, "it read what it wrote");
});

Deno.test("a translated access sees another mapping after SFENCE.VMA", () => {
  // Walks: reads, and if the PTE is to change (a3), stores it and fences.
  const hart = createHart([
    ld(a0, a2, 0),
    asm.beq(a3, 0, -4),
    sd(a4, a1, 0),
    asm.sfenceVma,
    addi(a3, 0, 0),
    asm.jal(0, -20),
  ]);
  mapPages(hart, 16, (page) => RAM + PAGE * BigInt(page), PTE_RWX);
  // The page table itself, to be written.
  mapPage(hart, 9, TABLES + 2n * PAGE, PTE_RWX);
  hart.write64(RAM + 0x8000n, 11n);
  hart.write64(RAM + 0x7000n, 22n);
  hart.setX(a2, VA + 0x8000n);
  hart.setX(a1, VA + 0x9000n + 8n * 8n);
  hart.setPriv(1);
  warm(hart, VA);
  assertEquals(hart.x(a0), 11n);
  hart.setX(a4, (((RAM + 0x7000n) >> 12n) << 10n) | PTE_RWX);
  hart.setX(a3, 1n);
  hart.run(3000);
  assertEquals(hart.x(a0), 22n);
});

Deno.test("code that is mapped elsewhere is not what was translated there", () => {
  const hart = createHart([addi(a0, a0, 1), asm.jal(0, -4)]);
  hart.load(RAM + 0x3000n, [addi(a0, a0, 16), asm.jal(0, -4)]);
  mapPages(hart, 4, (page) => RAM + PAGE * BigInt(page), PTE_URWX);
  hart.setPriv(0);
  warm(hart, VA);
  mapPage(hart, 0, RAM + 0x3000n, PTE_URWX);
  hart.setCsr(CSR.satp, (8n << 60n) | (TABLES >> 12n)); // forgets all translations
  hart.setX(a0, 0n);
  hart.setPc(VA);
  hart.run(1000);
  assert(hart.x(a0) > 0n && hart.x(a0) % 16n === 0n, `${hart.x(a0)}`);
});

Deno.test("code that is no longer executable faults", () => {
  const hart = createHart([addi(a0, a0, 1), asm.jal(0, -4)]);
  mapPages(hart, 1, () => RAM, PTE_URWX);
  hart.setPriv(0);
  warm(hart, VA);
  mapPage(hart, 0, RAM, PTE_URWX & ~8n);
  hart.setCsr(CSR.satp, (8n << 60n) | (TABLES >> 12n));
  hart.setPc(VA);
  hart.run(1000);
  assertEquals(hart.csr(CSR.mcause), 12n);
  assertEquals(hart.csr(CSR.mtval), VA);
});

Deno.test("a code page of U mode, translated, is not executed in S mode", () => {
  const hart = createHart([addi(a0, a0, 1), asm.jal(0, -4)]);
  mapPages(hart, 1, () => RAM, PTE_URWX);
  hart.setPriv(0);
  warm(hart, VA);
  hart.setPriv(1);
  hart.setPc(VA);
  hart.setX(a0, 0n);
  hart.run(1000);
  assertEquals(hart.x(a0), 0n);
  assertEquals(hart.csr(CSR.mcause), 12n);
});

Deno.test("one page of code at two addresses runs translated at both", () => {
  const hart = createHart([asm.auipc(a0, 0), asm.jal(0, -4)]);
  mapPages(hart, 4, (page) => (page === 3 ? RAM : RAM + PAGE * BigInt(page)), PTE_URWX);
  hart.setPriv(0);
  for (const va of [VA, VA + 0x3000n, VA]) {
    warm(hart, va);
    hart.run(1000);
    assertEquals(hart.x(a0), va);
  }
});

Deno.test("SUM and MXR count in translated code from the next instruction on", () => {
  // S mode reads a page of U mode, over and over; then SUM is taken away.
  const hart = createHart([
    ld(a0, a2, 0),
    asm.beq(a3, 0, -4),
    asm.csrrc(0, CSR.sstatus, a4),
    asm.jal(0, -12),
  ]);
  mapPages(hart, 16, (page) => RAM + PAGE * BigInt(page), PTE_RWX);
  mapPage(hart, 8, DATA, PTE_URWX);
  hart.setCsr(CSR.mstatus, 1n << 18n);
  hart.setX(a4, 1n << 18n);
  hart.setX(a2, VA + 0x8000n);
  hart.setPriv(1);
  warm(hart, VA);
  hart.setX(a3, 1n);
  hart.run(1000);
  assertEquals(hart.csr(CSR.mcause), 13n);
  assertEquals(hart.csr(CSR.mepc), VA);
  // Execute-only: readable while MXR is set.
  mapPage(hart, 8, DATA, 0xc9n);
  const mxr = 1n << 19n;
  hart.setCsr(CSR.mstatus, mxr);
  hart.setCsr(CSR.satp, (8n << 60n) | (TABLES >> 12n));
  hart.setX(a4, mxr);
  hart.setX(a3, 0n);
  hart.setPriv(1);
  warm(hart, VA);
  hart.setX(a3, 1n);
  hart.setCsr(CSR.mcause, 0n);
  hart.run(1000);
  assertEquals(hart.csr(CSR.mcause), 13n);
});

Deno.test("a fault in the middle of a translated loop leaves the exact state", () => {
  // Walks through memory and off its end.
  const hart = createHart([
    addi(a0, a0, 1),
    addi(a1, a1, 3),
    ld(t1, a2, 0),
    addi(a2, a2, 8),
    addi(a3, a3, 5),
    asm.jal(0, -20),
  ]);
  hart.setX(a2, RAM);
  warm(hart, RAM);
  hart.setX(a2, RAM + BigInt(RAM_BYTES) - 800n);
  for (const register of [a0, a1, a3]) hart.setX(register, 0n);
  hart.setPc(RAM);
  hart.run(2000);
  assertEquals(hart.pc(), HANDLER);
  assertEquals(hart.csr(CSR.mcause), 5n);
  assertEquals(hart.csr(CSR.mepc), RAM + 8n);
  assertEquals(hart.csr(CSR.mtval), RAM + BigInt(RAM_BYTES));
  assertEquals([hart.x(a0), hart.x(a1), hart.x(a3)], [101n, 303n, 500n]);
});

Deno.test("misaligned accesses, also across pages, are done in the middle of translated code", () => {
  const hart = createHart([
    ld(t1, a2, 0),
    sd(t1, a1, 0),
    addi(a2, a2, 1),
    addi(a1, a1, 1),
    addi(t0, t0, -1),
    asm.bne(t0, 0, -20),
    halt,
  ]);
  for (let at = 0; at < 0x2000; at += 8) hart.write64(DATA + BigInt(at), BigInt(at) * 0x12345n);
  const before = new Uint8Array(hart.view.buffer, layout.RAM_BASE + 0x8000, 0x2000).slice();
  hart.setX(a2, DATA);
  hart.setX(a1, DATA + 0x4000n);
  hart.setX(t0, 0x1ff8n);
  hart.run(100_000);
  assertEquals(hart.pc(), RAM + 24n);
  const after = new Uint8Array(hart.view.buffer, layout.RAM_BASE + 0xc000, 0x1ff8);
  assertEquals(after.every((byte, index) => byte === before[index]), true);
});

Deno.test("a device is read and written once for each access of translated code", () => {
  // The CLINT's mtimecmp, as a cell: what is written is read.
  const mtimecmp = 0x0200_4000n;
  const hart = createHart([
    addi(a0, a0, 1),
    sd(a0, a2, 0),
    ld(t1, a2, 0),
    asm.beq(t1, a0, -12),
    halt,
  ]);
  hart.setX(a2, mtimecmp);
  for (let round = 0; round < 10; round++) hart.run(1000);
  assert(hart.x(a0) > 1000n);
  assert(hart.pc() !== RAM + 16n);
  assert(hart.statistic("steps") > 1000n);
});

Deno.test("interrupts are taken between slices of translated code", () => {
  const hart = createHart([addi(a0, a0, 1), asm.jal(0, -4)]);
  warm(hart, RAM);
  hart.setCsr(CSR.mie, 0x80n);
  hart.setCsr(CSR.mstatus, 8n);
  hart.setPc(RAM);
  hart.run(1000);
  assertEquals(hart.pc() <= RAM + 4n, true);
  hart.view.setBigUint64(layout.CLINT_BASE + 0x100, 0n, true);
  hart.ticks = 1_000_000;
  hart.setX(a2, 0x0200_4000n);
  hart.write64(RAM + 0x600n, 0n);
  hart.load(RAM + 0x700n, [sd(0, a2, 0), asm.jal(0, -0x704)]);
  hart.setPc(RAM + 0x700n);
  hart.run(100_000);
  assertEquals(hart.pc(), HANDLER);
  assertEquals(hart.csr(CSR.mcause), (1n << 63n) | 7n);
});

Deno.test("a machine that makes code for ever stays within the cache", () => {
  // Each round makes a function and calls it a dozen times; none is left of FENCE.I's work.
  const rounds = 9000;
  const first = RAM + 0x10_0000n;
  const hart = createHart([
    sw(a3, a1, 0),
    sw(a4, a1, 4),
    addi(t1, 0, 12),
    asm.jalr(ra, a1, 0),
    addi(t1, t1, -1),
    asm.bne(t1, 0, -8),
    addi(a1, a1, 1024),
    addi(t0, t0, -1),
    asm.bne(t0, 0, -32),
    halt,
  ]);
  hart.setX(a3, BigInt(addi(a0, a0, 1)));
  hart.setX(a4, BigInt(asm.jalr(0, ra, 0)));
  hart.setX(a1, first);
  hart.setX(t0, BigInt(rounds));
  for (let turn = 0; turn < 1000 && hart.pc() !== RAM + 36n; turn++) hart.run(10_000);
  assertEquals(hart.x(a0), BigInt(12 * rounds));
  assert(hart.statistic("made") > 8500n, `${hart.statistic("made")}`);
  assert(hart.statistic("regions") < 8192n, `${hart.statistic("regions")}`);
  assert(hart.statistic("bytes") <= 48n * 1024n * 1024n);
});
