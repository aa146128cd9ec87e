/** Decoded code stays what memory says, as far as FENCE.I promises; instructions across pages. */

import { assertEquals } from "@std/assert";
import { a0, a1, a2, addi, CSR, fenceI, halt, jalr, lui, ra, sw } from "../support/rv_asm.ts";
import { layout, RAM, RAM_BYTES, TestHart } from "../support/test_hart.ts";

const FUNCTION = RAM + 0x2000n;
const RETURN = jalr(0, ra, 0);

/** Calls FUNCTION, stores a2 as its first word, FENCE.I, calls it again; a0 counts. */
const REWRITE = [
  jalr(ra, a1, 0),
  sw(a2, a1, 0),
  fenceI,
  jalr(ra, a1, 0),
  halt,
];

function createHart(hartCount = 1): TestHart {
  const hart = new TestHart(hartCount);
  hart.setX(a1, FUNCTION);
  hart.setX(a2, BigInt(addi(a0, a0, 100)));
  hart.load(FUNCTION, [addi(a0, a0, 1), RETURN]);
  return hart;
}

Deno.test("code that a hart rewrote runs after FENCE.I", () => {
  const hart = createHart();
  hart.load(RAM, REWRITE);
  hart.run(20);
  assertEquals(hart.x(a0), 101n);
  // Once more: the page was decoded again, so its next write must be noticed again.
  hart.setX(a2, BigInt(addi(a0, a0, 1000)));
  hart.setPc(RAM);
  hart.run(20);
  assertEquals(hart.x(a0), 101n + 100n + 1000n);
});

Deno.test("code on the very page that rewrites it runs after FENCE.I", () => {
  const hart = createHart();
  hart.setX(a1, RAM + 0x40n);
  hart.load(RAM + 0x40n, [addi(a0, a0, 1), RETURN]);
  hart.load(RAM, REWRITE);
  hart.run(20);
  assertEquals(hart.x(a0), 101n);
});

Deno.test("a page that was data first and code then is noticed too", () => {
  const hart = createHart();
  // The store comes first, so the page is in the write TLB when it is decoded.
  hart.load(RAM, [sw(a2, a1, 8), fenceI, ...REWRITE]);
  hart.run(20);
  assertEquals(hart.x(a0), 101n);
});

Deno.test("what a device wrote runs after FENCE.I", () => {
  const hart = createHart();
  hart.load(RAM, [jalr(ra, a1, 0), halt, fenceI, jalr(ra, a1, 0), halt]);
  hart.run(10);
  assertEquals(hart.x(a0), 1n);
  hart.load(FUNCTION, [addi(a0, a0, 50)]);
  const flag = layout.CODE_FLAGS + 2;
  assertEquals(hart.view.getUint8(flag), 1, "the page holds decoded code");
  hart.view.setUint8(flag, 2);
  const words = new Int32Array(hart.view.buffer as SharedArrayBuffer);
  Atomics.add(words, layout.CODE_WRITES_WORD >>> 2, 1);
  hart.setPc(RAM + 8n);
  hart.run(10);
  assertEquals(hart.x(a0), 51n);
});

Deno.test("code that another hart rewrote runs after this hart's FENCE.I", () => {
  const hart = createHart(2);
  hart.load(RAM, [jalr(ra, a1, 0), halt, fenceI, jalr(ra, a1, 0), halt]);
  hart.load(RAM + 0x100n, [sw(a2, a1, 0), halt]);
  for (const id of [0, 1]) hart.setX(a1, FUNCTION, id);
  // Hart 1 has the page in its write TLB before hart 0 decodes it.
  hart.setX(a2, BigInt(addi(a0, a0, 2)), 1);
  hart.setPc(RAM + 0x100n, 1);
  hart.run(4, 1);
  hart.run(10, 0);
  assertEquals(hart.x(a0, 0), 2n);
  hart.setX(a2, BigInt(addi(a0, a0, 70)), 1);
  hart.setPc(RAM + 0x100n, 1);
  hart.run(4, 1);
  hart.setPc(RAM + 8n, 0);
  hart.run(10, 0);
  assertEquals(hart.x(a0, 0), 72n);
});

Deno.test("more pages of code than are kept decoded run, and run again", () => {
  const hart = createHart();
  // Every page but the first holds a jump to the next.
  const pages = 0x900;
  for (let page = 1; page < pages; page++) {
    hart.load(RAM + BigInt(page) * 0x1000n, [
      lui(a2, 1),
      addi(a0, a0, 1),
      0x00c585b3,
      jalr(0, a1, 0),
    ]);
  }
  hart.load(RAM + BigInt(pages) * 0x1000n, [halt]);
  for (let round = 1; round <= 2; round++) {
    hart.setX(a1, RAM + 0x1000n);
    hart.setPc(RAM + 0x1000n);
    hart.run(4 * pages + 10);
    assertEquals(hart.x(a0), BigInt(round * (pages - 1)));
  }
});

Deno.test("an instruction across two pages runs, and is read anew each time", () => {
  const hart = createHart();
  const at = RAM + 0x2ffen;
  const put = (word: number) => {
    hart.write16(at, word & 0xffff);
    hart.write16(at + 2n, word >>> 16);
  };
  put(addi(a0, a0, 3));
  hart.load(RAM + 0x3004n, [halt]);
  hart.write16(RAM + 0x3002n, 0x0001); // c.nop
  hart.setPc(at);
  hart.run(6);
  assertEquals(hart.x(a0), 3n);
  assertEquals(hart.pc(), RAM + 0x3004n);
  put(addi(a0, a0, 7));
  hart.setPc(at);
  hart.run(6);
  assertEquals(hart.x(a0), 10n);
});

Deno.test("an instruction whose second half faults names that half, and the instruction", () => {
  const hart = createHart();
  hart.setCsr(CSR.mtvec, RAM + 0x800n);
  hart.load(RAM + 0x800n, [halt]);
  // The last page of RAM: behind it is nothing.
  const end = RAM + BigInt(RAM_BYTES);
  hart.write16(end - 2n, addi(a0, a0, 3) & 0xffff);
  hart.setPc(end - 2n);
  hart.run(4);
  assertEquals(hart.csr(CSR.mcause), 1n);
  assertEquals(hart.csr(CSR.mepc), end - 2n);
  assertEquals(hart.csr(CSR.mtval), end);
});

Deno.test("every compressed encoding either expands to what it abbreviates or is illegal", () => {
  const hart = createHart();
  hart.setCsr(CSR.mtvec, RAM + 0x800n);
  hart.load(RAM + 0x800n, [halt]);
  // Reserved: c.addi4spn 0, c.addiw x0, c.lui 0, c.addi16sp 0, c.lwsp x0, c.ldsp x0, c.jr x0, and
  // holes.
  const illegal = [0x0000, 0x0004, 0x2005, 0x6081, 0x6101, 0x4002, 0x6002, 0x8002, 0x8000, 0x9c41];
  illegal.forEach((half, index) => {
    const at = RAM + 0x1000n + BigInt(8 * index);
    hart.write16(at, half);
    hart.setPc(at);
    hart.run(2);
    assertEquals(hart.csr(CSR.mcause), 2n, half.toString(16));
    assertEquals(hart.csr(CSR.mtval), BigInt(half));
    assertEquals(hart.csr(CSR.mepc), at);
  });
});
