/** Traps: who takes them, what they leave behind, interrupts and their order, WFI. */

import { assertEquals } from "@std/assert";
import { RUN_SLICE_OVER, RUN_WFI } from "../../src/wasm/hart.ts";
import {
  a0,
  a1,
  a2,
  addi,
  amoaddW,
  beq,
  CSR,
  csrr,
  csrrs,
  ebreak,
  ecall,
  halt,
  jalr,
  ld,
  lui,
  lw,
  mret,
  sd,
  sret,
  wfi,
} from "../support/rv_asm.ts";
import { RAM, TestHart } from "../support/test_hart.ts";

const M_HANDLER = RAM + 0x800n;
const S_HANDLER = RAM + 0xc00n;
const NOWHERE = 0x4000_0000n; // neither RAM nor a device
const INTERRUPT = 1n << 63n;

/** A hart with handlers that halt, and memory open to all modes. */
function createHart(): TestHart {
  const hart = new TestHart();
  hart.setCsr(CSR.pmpaddr0, (1n << 54n) - 1n);
  hart.setCsr(CSR.pmpcfg0, 0x1fn);
  hart.setCsr(CSR.mtvec, M_HANDLER);
  hart.setCsr(CSR.stvec, S_HANDLER);
  hart.load(M_HANDLER, Array(0x40).fill(halt));
  hart.load(S_HANDLER, Array(0x40).fill(halt));
  return hart;
}

/** [name, instruction, cause, tval]: a0 is an address where nothing is, a1 an odd one in RAM. */
const EXCEPTIONS: [string, number, bigint, bigint][] = [
  ["illegal instruction", 0xffff_ffff, 2n, 0xffff_ffffn],
  ["illegal compressed instruction", 0x0000_0000, 2n, 0n],
  ["breakpoint", ebreak, 3n, RAM + 8n],
  ["load access fault", ld(a2, a0, 8), 5n, NOWHERE + 8n],
  ["store access fault", sd(a2, a0, 8), 7n, NOWHERE + 8n],
  ["misaligned AMO", amoaddW(a2, a1, a1), 6n, RAM + 0x1001n],
  ["AMO access fault", amoaddW(a2, a0, a0), 7n, NOWHERE],
  ["misaligned load of a device", lw(a2, a0, 1), 5n, NOWHERE + 1n],
  ["ECALL from M", ecall, 11n, 0n],
];

for (const [name, instruction, cause, tval] of EXCEPTIONS) {
  Deno.test(`exception: ${name} leaves the exact state behind`, () => {
    const hart = createHart();
    hart.setX(a0, NOWHERE);
    hart.setX(a1, RAM + 0x1001n);
    hart.setX(a2, 77n);
    hart.setCsr(CSR.minstret, 0n);
    const before = hart.csr(CSR.minstret);
    hart.load(RAM, [addi(5, 0, 1), addi(6, 0, 2), instruction, addi(7, 0, 3)]);
    hart.load(M_HANDLER, [csrr(30, CSR.minstret), halt]);
    hart.setPc(RAM);
    hart.run(8);
    assertEquals(hart.csr(CSR.mcause), cause);
    assertEquals(hart.csr(CSR.mepc), RAM + 8n);
    assertEquals(hart.csr(CSR.mtval), tval);
    assertEquals([hart.x(5), hart.x(6), hart.x(7), hart.x(a2)], [1n, 2n, 0n, 77n]);
    assertEquals(hart.x(30) - before, 2n + 2n, "reading before took csrr and j, then two retired");
  });
}

Deno.test("exception: a jump to where nothing is faults at the target", () => {
  const hart = createHart();
  hart.setX(a0, NOWHERE);
  hart.load(RAM, [jalr(5, a0, 3)]);
  hart.setPc(RAM);
  hart.run(2);
  assertEquals(hart.csr(CSR.mcause), 1n);
  assertEquals(hart.csr(CSR.mepc), NOWHERE + 2n);
  assertEquals(hart.csr(CSR.mtval), NOWHERE + 2n);
  assertEquals(hart.x(5), RAM + 4n);
});

Deno.test("exception: S and U mode's are delegated, M mode's never", () => {
  const hart = createHart();
  hart.setCsr(CSR.medeleg, 0xb3ffn);
  hart.load(RAM, [ecall]);
  for (const [priv, cause] of [[0, 8n], [1, 9n]] as const) {
    hart.setPc(RAM);
    hart.setPriv(priv);
    hart.run(2);
    assertEquals(hart.priv(), 1);
    assertEquals(hart.pc(), S_HANDLER);
    assertEquals(hart.csr(CSR.scause), cause);
    assertEquals(hart.csr(CSR.sepc), RAM);
    assertEquals((hart.csr(CSR.mstatus) >> 8n) & 1n, BigInt(priv), "SPP");
  }
  hart.load(RAM + 16n, [0xffff_ffff]);
  hart.setPc(RAM + 16n);
  hart.setPriv(3);
  hart.run(2);
  assertEquals(hart.priv(), 3);
  assertEquals(hart.csr(CSR.mcause), 2n);
});

Deno.test("return: MRET and SRET restore privilege and interrupt enables", () => {
  const hart = createHart();
  hart.load(RAM, [mret, halt, halt, halt, sret, halt, halt, halt, halt]);
  hart.setCsr(CSR.mepc, RAM + 16n);
  hart.setCsr(CSR.sepc, RAM + 32n);
  hart.setCsr(CSR.mstatus, (1n << 17n) | (1n << 11n) | (1n << 7n) | (1n << 5n)); // MPRV, MPP S
  hart.setPc(RAM);
  hart.run(3);
  assertEquals(hart.pc(), RAM + 32n);
  assertEquals(hart.priv(), 0);
  const mstatus = hart.csr(CSR.mstatus);
  assertEquals(mstatus & 0x2_1faan, 0xaan, "MIE, SIE, MPIE, SPIE; MPP, SPP and MPRV clear");
});

Deno.test("interrupt: the order is MEI, MSI, MTI, SEI, SSI, STI; vectored mode jumps by cause", () => {
  const hart = createHart();
  hart.setCsr(CSR.mtvec, M_HANDLER | 1n);
  hart.setCsr(CSR.stvec, S_HANDLER | 1n);
  hart.setCsr(CSR.mip, 0x222n); // SEIP, STIP, SSIP by software
  hart.load(RAM, [halt]);
  const order: bigint[] = [];
  let enabled = 0xaaan;
  for (let round = 0; round < 3; round++) {
    hart.setCsr(CSR.mstatus, 1n << 3n);
    hart.setCsr(CSR.mie, 0n);
    hart.setPriv(0);
    hart.setPc(RAM);
    hart.setCsr(CSR.mstatus, 0n);
    hart.setCsr(CSR.mie, enabled);
    hart.setPriv(0);
    hart.setPc(RAM);
    hart.run(2);
    const cause = hart.csr(CSR.mcause);
    assertEquals(cause & INTERRUPT, INTERRUPT);
    assertEquals(hart.pc(), M_HANDLER + 4n * (cause & 63n));
    order.push(cause & 63n);
    enabled &= ~(1n << (cause & 63n));
  }
  assertEquals(order, [9n, 1n, 5n]);
});

Deno.test("interrupt: masked by MIE in M, by SIE in S, never in a lower mode", () => {
  const hart = createHart();
  hart.setCsr(CSR.mideleg, 0x2n);
  hart.setCsr(CSR.mie, 0x2n);
  hart.setCsr(CSR.mip, 0x2n);
  hart.load(RAM, [halt]);
  hart.setCsr(CSR.mstatus, 0n);
  const pcAfter = (priv: number) => {
    hart.setPriv(priv);
    hart.setPc(RAM);
    hart.run(4);
    return hart.pc();
  };
  assertEquals(pcAfter(3), RAM, "delegated: M never takes it");
  assertEquals(pcAfter(1), RAM, "S with SIE clear");
  assertEquals(pcAfter(0), S_HANDLER);
  hart.setCsr(CSR.mstatus, 2n);
  assertEquals(pcAfter(1), S_HANDLER);
});

Deno.test("interrupt: one that an instruction enables is taken right after it", () => {
  const hart = createHart();
  hart.setCsr(CSR.mie, 0x2n);
  hart.setCsr(CSR.mip, 0x2n);
  hart.load(RAM, [addi(a0, 0, 8), csrrs(0, CSR.mstatus, a0), addi(a1, 0, 1), halt]);
  hart.setPc(RAM);
  hart.run(10);
  assertEquals(hart.csr(CSR.mepc), RAM + 8n);
  assertEquals(hart.x(a1), 0n);
});

Deno.test("interrupt: stimecmp raises STIP when mtime reaches it", () => {
  const hart = createHart();
  hart.setCsr(CSR.menvcfg, 1n << 63n);
  hart.setCsr(CSR.stimecmp, 1000n);
  hart.load(RAM, [halt]);
  hart.ticks = 999;
  hart.run(1);
  assertEquals((hart.csr(CSR.mip) >> 5n) & 1n, 0n);
  hart.ticks = 1000;
  hart.run(1);
  assertEquals((hart.csr(CSR.mip) >> 5n) & 1n, 1n);
});

Deno.test("run() ends with WFI while nothing is pending, and goes on once something is", () => {
  const hart = createHart();
  hart.setCsr(CSR.mie, 0x20n);
  hart.setCsr(CSR.menvcfg, 1n << 63n);
  hart.setCsr(CSR.stimecmp, 5000n);
  hart.load(RAM, [wfi, addi(a0, 0, 1), halt]);
  hart.setPc(RAM);
  assertEquals(hart.run(), RUN_WFI);
  assertEquals(hart.run(), RUN_WFI);
  assertEquals(hart.hart(0).nextTimerTicks(), 5000n);
  assertEquals(hart.x(a0), 0n);
  hart.ticks = 5000;
  assertEquals(hart.run(), RUN_SLICE_OVER); // interrupts are off: WFI ends all the same
  assertEquals(hart.x(a0), 1n);
});

Deno.test("run() comes back from a guest that only traps", () => {
  const hart = createHart();
  hart.setCsr(CSR.mtvec, NOWHERE);
  hart.setPc(NOWHERE);
  assertEquals(hart.run(100_000), RUN_SLICE_OVER);
  assertEquals(hart.pc(), NOWHERE);
});

Deno.test("run() overruns its budget by a page of straight code at most", () => {
  const hart = createHart();
  hart.load(RAM, Array(0x3000 / 4).fill(addi(a0, a0, 1)));
  hart.setPc(RAM);
  hart.run(1);
  assertEquals(hart.x(a0), 1024n);
});

Deno.test("branches and link registers are right across pages", () => {
  const hart = createHart();
  hart.load(RAM + 0xffcn, [beq(0, 0, 8)]);
  hart.load(RAM + 0x1004n, [lui(a0, 1), jalr(5, 5, 0)]);
  hart.setX(5, RAM + 0x2000n);
  hart.load(RAM + 0x2000n, [halt]);
  hart.setPc(RAM + 0xffcn);
  hart.run(6);
  assertEquals(hart.x(a0), 0x1000n);
  assertEquals(hart.x(5), RAM + 0x100cn);
  assertEquals(hart.pc(), RAM + 0x2000n);
});
