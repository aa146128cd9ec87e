/** CSRs: what may be written, what is read back, who may look, and the counters. */

import { assertEquals } from "@std/assert";
import { a0, a1, addi, CSR, csrr, csrrw, csrw, csrwi, halt } from "../support/rv_asm.ts";
import { RAM, TestHart } from "../support/test_hart.ts";

const ONES = (1n << 64n) - 1n;
const HANDLER = RAM + 0x800n;

/** [name, CSR, value written, value read]. */
const LEGALISED: [string, number, bigint, bigint][] = [
  ["misa is fixed", CSR.misa, 0n, (2n << 62n) | 0x14112fn],
  ["mvendorid and mhartid are zero", CSR.mhartid, 0n, 0n],
  // SD, SXL, UXL, TSR, TW, TVM, MXR, SUM, MPRV, FS, MPP, SPP, MPIE, SPIE, MIE, SIE
  ["mstatus has no V, XS, endianness", CSR.mstatus, ONES & ~0x8n, 0x8000_000a_007e_79a2n],
  ["mtvec's mode is direct or vectored", CSR.mtvec, ONES, ONES & ~2n],
  ["stvec's mode is direct or vectored", CSR.stvec, 0x8000_0003n, 0x8000_0001n],
  ["medeleg lacks ecall from M", CSR.medeleg, ONES, 0xb3ffn],
  ["mideleg takes supervisor interrupts", CSR.mideleg, ONES, 0x222n],
  ["mie takes the six interrupts", CSR.mie, ONES, 0xaaan],
  ["mepc is even", CSR.mepc, ONES, ONES - 1n],
  ["sepc is even", CSR.sepc, 0x1001n, 0x1000n],
  ["satp has no ASID", CSR.satp, (8n << 60n) | (0xffffn << 44n) | 5n, (8n << 60n) | 5n],
  ["menvcfg: FIOM, ADUE, STCE", CSR.menvcfg, ONES, (1n << 63n) | (1n << 61n) | 1n],
  ["senvcfg: FIOM", CSR.senvcfg, ONES, 1n],
  ["mcountinhibit: CY, IR", CSR.mcountinhibit, ONES, 5n],
  ["mcounteren has 32 bits", CSR.mcounteren, ONES, 0xffff_ffffn],
  ["mscratch takes everything", CSR.mscratch, ONES, ONES],
  ["pmpaddr has 54 bits", CSR.pmpaddr0, ONES, (1n << 54n) - 1n],
  ["pmpcfg: W without R is not taken, reserved bits are zero", CSR.pmpcfg0, 0x627an, 0x0018n],
];

for (const [name, csr, written, read] of LEGALISED) {
  Deno.test(`CSR: ${name}`, () => {
    const hart = new TestHart();
    if (csr !== CSR.mhartid) hart.setCsr(csr, written);
    assertEquals(hart.csr(csr).toString(16), read.toString(16));
  });
}

Deno.test("CSR: satp with an unsupported mode leaves satp as it was", () => {
  const hart = new TestHart();
  hart.setCsr(CSR.satp, (9n << 60n) | 7n);
  hart.setCsr(CSR.satp, (10n << 60n) | 5n);
  assertEquals(hart.csr(CSR.satp), (9n << 60n) | 7n);
});

Deno.test("CSR: MPP keeps its value when 2 is written", () => {
  const hart = new TestHart();
  hart.setCsr(CSR.mstatus, 1n << 11n);
  hart.setCsr(CSR.mstatus, 2n << 11n);
  assertEquals((hart.csr(CSR.mstatus) >> 11n) & 3n, 1n);
});

Deno.test("CSR: sstatus and sie are windows on mstatus and mie", () => {
  const hart = new TestHart();
  hart.setCsr(CSR.mideleg, 0x22n);
  hart.setCsr(CSR.mie, ONES);
  assertEquals(hart.csr(CSR.sie), 0x22n);
  hart.setCsr(CSR.sie, 0n);
  assertEquals(hart.csr(CSR.mie), 0xa88n);
  hart.setCsr(CSR.mstatus, 0n);
  hart.setCsr(CSR.sstatus, ONES);
  assertEquals(hart.csr(CSR.mstatus).toString(16), 0x8000_000a_000c_6122n.toString(16));
});

Deno.test("CSR: a locked PMP entry keeps its address and configuration", () => {
  const hart = new TestHart();
  hart.setCsr(CSR.pmpaddr0, 0x1234n);
  hart.setCsr(CSR.pmpcfg0, 0x99n); // L, NAPOT, R
  hart.setCsr(CSR.pmpaddr0, 0x5678n);
  hart.setCsr(CSR.pmpcfg0, 0n);
  assertEquals(hart.csr(CSR.pmpaddr0), 0x1234n);
  assertEquals(hart.csr(CSR.pmpcfg0), 0x99n);
});

/** Executes one instruction in a mode; the cause of the trap, or null. */
function causeOf(hart: TestHart, instruction: number, priv: number): bigint | null {
  hart.setCsr(CSR.mcause, ONES);
  hart.setCsr(CSR.mtvec, HANDLER);
  const at = RAM + 0x1000n + 16n * BigInt(++placeCount);
  hart.load(at, [instruction, halt]);
  hart.load(HANDLER, [halt]);
  hart.setPc(at);
  hart.setPriv(priv);
  hart.run(1);
  const cause = hart.csr(CSR.mcause);
  return cause === ONES ? null : cause;
}

let placeCount = 0;
const ILLEGAL = 2n;

/** PMP lets S and U do everything. */
function openMemory(hart: TestHart): void {
  hart.setCsr(CSR.pmpaddr0, (1n << 54n) - 1n);
  hart.setCsr(CSR.pmpcfg0, 0x1fn);
}

Deno.test("CSR: access needs the privilege, existence, and a writable register", () => {
  const hart = new TestHart();
  openMemory(hart);
  assertEquals(causeOf(hart, csrr(a0, CSR.mstatus), 1), ILLEGAL);
  assertEquals(causeOf(hart, csrr(a0, CSR.sstatus), 0), ILLEGAL);
  assertEquals(causeOf(hart, csrr(a0, CSR.sstatus), 1), null);
  assertEquals(causeOf(hart, csrw(CSR.mhartid, a0), 3), ILLEGAL);
  assertEquals(causeOf(hart, csrr(a0, CSR.mhartid), 3), null);
  assertEquals(causeOf(hart, csrr(a0, 0x5c0), 3), ILLEGAL);
});

Deno.test("CSR: counters below M need mcounteren, below S scounteren too", () => {
  const hart = new TestHart();
  openMemory(hart);
  assertEquals(causeOf(hart, csrr(a0, CSR.instret), 1), ILLEGAL);
  hart.setCsr(CSR.mcounteren, 4n);
  assertEquals(causeOf(hart, csrr(a0, CSR.instret), 1), null);
  assertEquals(causeOf(hart, csrr(a0, CSR.time), 1), ILLEGAL);
  assertEquals(causeOf(hart, csrr(a0, CSR.instret), 0), ILLEGAL);
  hart.setCsr(CSR.scounteren, 4n);
  assertEquals(causeOf(hart, csrr(a0, CSR.instret), 0), null);
});

Deno.test("CSR: stimecmp below M needs STCE and mcounteren.TM", () => {
  const hart = new TestHart();
  openMemory(hart);
  assertEquals(causeOf(hart, csrr(a0, CSR.stimecmp), 1), ILLEGAL);
  hart.setCsr(CSR.menvcfg, 1n << 63n);
  assertEquals(causeOf(hart, csrr(a0, CSR.stimecmp), 1), ILLEGAL);
  hart.setCsr(CSR.mcounteren, 2n);
  assertEquals(causeOf(hart, csrr(a0, CSR.stimecmp), 1), null);
});

Deno.test("CSR: satp and sfence.vma trap under TVM, wfi under TW, sret under TSR", () => {
  const hart = new TestHart();
  openMemory(hart);
  hart.setCsr(CSR.mstatus, 1n << 20n);
  assertEquals(causeOf(hart, csrr(a0, CSR.satp), 1), ILLEGAL);
  assertEquals(causeOf(hart, 0x12000073, 1), ILLEGAL);
  hart.setCsr(CSR.mstatus, 1n << 21n);
  assertEquals(causeOf(hart, 0x10500073, 1), ILLEGAL);
  hart.setCsr(CSR.mstatus, 1n << 22n);
  assertEquals(causeOf(hart, 0x10200073, 1), ILLEGAL);
});

Deno.test("CSR: floating point is illegal while FS is off, and its CSRs make FS dirty", () => {
  const hart = new TestHart();
  assertEquals(causeOf(hart, csrr(a0, CSR.fcsr), 3), ILLEGAL);
  assertEquals(causeOf(hart, 0x02007053, 3), ILLEGAL); // fadd.d f0, f0, f0
  assertEquals(causeOf(hart, 0x00053007, 3), ILLEGAL); // fld f0, 0(a0)
  hart.setCsr(CSR.mstatus, 1n << 13n);
  assertEquals(hart.csr(CSR.mstatus) >> 63n, 0n);
  hart.setCsr(CSR.fcsr, 0xffn);
  assertEquals(hart.csr(CSR.mstatus) >> 63n, 1n);
  assertEquals(hart.csr(CSR.frm), 7n);
  assertEquals(hart.csr(CSR.fflags), 31n);
  assertEquals(causeOf(hart, 0x02007053, 3), ILLEGAL); // its rounding mode is frm's, which is none
});

Deno.test("CSR: minstret counts every instruction, and reads what was just written", () => {
  const hart = new TestHart();
  hart.load(RAM, [
    csrwi(CSR.minstret, 0),
    csrr(a0, CSR.minstret),
    addi(0, 0, 0),
    addi(0, 0, 0),
    csrrw(a1, CSR.minstret, a0),
    halt,
  ]);
  hart.run(6);
  assertEquals(hart.x(a0), 0n);
  assertEquals(hart.x(a1), 4n - 1n);
});

Deno.test("CSR: an inhibited counter stands still and goes on from where it stood", () => {
  const hart = new TestHart();
  hart.load(RAM, [
    csrwi(CSR.minstret, 7),
    csrwi(CSR.mcountinhibit, 4),
    addi(0, 0, 0),
    addi(0, 0, 0),
    csrr(a0, CSR.minstret),
    csrwi(CSR.mcountinhibit, 0),
    csrr(a1, CSR.minstret),
    halt,
  ]);
  hart.run(8);
  assertEquals(hart.x(a0), 7n);
  assertEquals(hart.x(a1) - hart.x(a0) <= 1n, true);
});
