/** Address translation, protection, and accesses of every size and alignment. */

import { assertEquals } from "@std/assert";
import { a0, a1, a2, CSR, halt, ld, lw, sd, sfenceVma } from "../support/rv_asm.ts";
import { RAM, TestHart } from "../support/test_hart.ts";

const M_HANDLER = RAM + 0x800n;
const CODE = RAM + 0x1000n;
const ROOT = RAM + 0x10000n;
const LEVEL1 = RAM + 0x11000n;
const LEVEL0 = RAM + 0x12000n;
const DATA = RAM + 0x20000n;
const DATA2 = RAM + 0x28000n;

const V = 1n;
const R = 2n;
const W = 4n;
const X = 8n;
const U = 16n;
const A = 64n;
const D = 128n;
const ALL = V | R | W | X | A | D;

const LOAD_PAGE_FAULT = 13n;
const STORE_PAGE_FAULT = 15n;
const FETCH_PAGE_FAULT = 12n;

const pte = (gpa: bigint, bits: bigint) => ((gpa >> 12n) << 10n) | bits;

/** S mode's world: RAM is mapped to itself by 1 GiB, va 0.. by 4 KiB through LEVEL0. */
class Paged extends TestHart {
  constructor() {
    super();
    this.setCsr(CSR.pmpaddr0, (1n << 54n) - 1n);
    this.setCsr(CSR.pmpcfg0, 0x1fn);
    this.setCsr(CSR.mtvec, M_HANDLER);
    this.load(M_HANDLER, [halt]);
    this.load(CODE, [
      ld(a1, a0, 0),
      halt,
      sd(a1, a0, 0),
      halt,
      lw(a1, a0, 0),
      halt,
      sfenceVma,
      halt,
    ]);
    this.write64(ROOT, pte(LEVEL1, V));
    this.write64(ROOT + 16n, pte(RAM, ALL));
    this.write64(LEVEL1, pte(LEVEL0, V));
    this.setCsr(CSR.satp, (8n << 60n) | (ROOT >> 12n));
  }

  map(page: number, gpa: bigint, bits: bigint): void {
    this.write64(LEVEL0 + BigInt(8 * page), pte(gpa, bits));
    this.#at(6, 1, 0n);
  }

  /** Loads 8 bytes in mode `priv`; the cause of a fault, or the value in hexadecimal. */
  tryLoad(va: bigint, priv = 1): bigint | string {
    return this.#at(0, priv, va) ?? this.x(a1).toString(16);
  }

  /** Stores 8 bytes; the cause of a fault, or null. */
  tryStore(va: bigint, value: bigint, priv = 1): bigint | null {
    this.setX(a1, value);
    return this.#at(2, priv, va);
  }

  /** Jumps to va; the cause of a fault, or null. */
  tryFetch(va: bigint, priv = 1): bigint | null {
    this.setPc(va);
    return this.#go(priv);
  }

  #at(index: number, priv: number, va: bigint): bigint | null {
    this.setX(a0, va);
    // In U mode the code is run through MPRV: RAM's own mapping is for S mode.
    this.setPc(CODE + BigInt(4 * index));
    if (priv === 1) return this.#go(1);
    const mstatus = this.csr(CSR.mstatus);
    this.setCsr(CSR.mstatus, (mstatus & ~0x1800n) | (1n << 17n));
    this.setPc(CODE + BigInt(4 * index));
    const cause = this.#go(3);
    this.setCsr(CSR.mstatus, mstatus);
    return cause;
  }

  #go(priv: number): bigint | null {
    const pc = this.pc();
    this.setCsr(CSR.mcause, 99n);
    this.setPc(pc);
    this.setPriv(priv);
    this.run(4);
    const cause = this.csr(CSR.mcause);
    return cause === 99n ? null : cause;
  }
}

Deno.test("Sv39 maps pages of 4 KiB, 2 MiB and 1 GiB", () => {
  const hart = new Paged();
  hart.write64(DATA + 0x18n, 0x1122334455667788n);
  hart.map(5, DATA, ALL);
  assertEquals(hart.tryLoad(0x5018n), "1122334455667788");
  hart.write64(LEVEL1 + 8n, pte(RAM, ALL));
  assertEquals(hart.tryLoad(0x200000n + 0x20018n), "1122334455667788");
  assertEquals(hart.tryLoad(DATA + 0x18n), "1122334455667788");
});

Deno.test("Sv48 has one level more", () => {
  const hart = new Paged();
  const root = RAM + 0x13000n;
  hart.write64(root, pte(ROOT, V));
  hart.setCsr(CSR.satp, (9n << 60n) | (root >> 12n));
  hart.write64(DATA, 0x55n);
  hart.map(5, DATA, ALL);
  assertEquals(hart.tryLoad(0x5000n), "55");
  assertEquals(hart.tryLoad(1n << 47n), LOAD_PAGE_FAULT);
});

Deno.test("Sv39: what is malformed faults", () => {
  const hart = new Paged();
  const faults = (bits: bigint, gpa = DATA) => {
    hart.map(5, gpa, bits);
    return hart.tryLoad(0x5000n);
  };
  assertEquals(faults(0n), LOAD_PAGE_FAULT, "not valid");
  assertEquals(faults(V | W | A | D), LOAD_PAGE_FAULT, "W without R");
  assertEquals(faults(ALL | (1n << 54n)), LOAD_PAGE_FAULT, "reserved");
  assertEquals(faults(ALL | (1n << 63n)), LOAD_PAGE_FAULT, "Svnapot");
  assertEquals(faults(V), LOAD_PAGE_FAULT, "a pointer at the last level");
  hart.write64(LEVEL1 + 8n, pte(RAM + 0x1000n, ALL));
  assertEquals(hart.tryLoad(0x200000n), LOAD_PAGE_FAULT, "a superpage that is not aligned");
  hart.write64(LEVEL1 + 8n, pte(LEVEL0, V | A));
  assertEquals(hart.tryLoad(0x200000n), LOAD_PAGE_FAULT, "a pointer with A");
  hart.write64(LEVEL1 + 8n, pte(0x1000n, V));
  assertEquals(hart.tryLoad(0x200000n), 5n, "a table outside RAM is an access fault");
  assertEquals(hart.tryLoad(1n << 39n), LOAD_PAGE_FAULT, "no sign extension");
  assertEquals(hart.csr(CSR.mtval), 1n << 39n);
});

Deno.test("Sv39: permissions, SUM and MXR", () => {
  const hart = new Paged();
  hart.map(1, DATA, V | R | A | D);
  hart.map(2, DATA, V | X | A | D);
  hart.map(3, DATA, V | R | W | X | U | A | D);
  assertEquals(hart.tryLoad(0x1000n), "0");
  assertEquals(hart.tryStore(0x1000n, 1n), STORE_PAGE_FAULT);
  assertEquals(hart.tryFetch(0x1000n), FETCH_PAGE_FAULT);
  assertEquals(hart.tryLoad(0x2000n), LOAD_PAGE_FAULT);
  hart.setCsr(CSR.mstatus, 1n << 19n);
  assertEquals(hart.tryLoad(0x2000n), "0", "MXR");
  hart.setCsr(CSR.mstatus, 0n);
  assertEquals(hart.tryLoad(0x2000n), LOAD_PAGE_FAULT, "MXR is gone");
  assertEquals(hart.tryLoad(0x3000n), LOAD_PAGE_FAULT, "S without SUM");
  hart.setCsr(CSR.mstatus, 1n << 18n);
  assertEquals(hart.tryLoad(0x3000n), "0", "SUM");
  assertEquals(hart.tryFetch(0x3000n), FETCH_PAGE_FAULT, "SUM is not for fetches");
  hart.setCsr(CSR.mstatus, 0n);
  assertEquals(hart.tryLoad(0x3000n), LOAD_PAGE_FAULT, "SUM is gone");
  assertEquals(hart.tryLoad(0x3000n, 0), "0", "U");
  assertEquals(hart.tryLoad(0x1000n, 0), LOAD_PAGE_FAULT, "U on a page of S");
});

Deno.test("A and D are set under ADUE, and fault without it", () => {
  const hart = new Paged();
  hart.map(1, DATA, V | R | W);
  assertEquals(hart.tryLoad(0x1000n), "0");
  assertEquals(hart.read64(LEVEL0 + 8n), pte(DATA, V | R | W | A));
  assertEquals(hart.tryStore(0x1000n, 9n), null);
  assertEquals(hart.read64(LEVEL0 + 8n), pte(DATA, V | R | W | A | D));

  hart.setCsr(CSR.menvcfg, 0n);
  hart.map(2, DATA, V | R | W);
  assertEquals(hart.tryLoad(0x2000n), LOAD_PAGE_FAULT);
  hart.map(2, DATA, V | R | W | A);
  assertEquals(hart.tryLoad(0x2000n), "9");
  assertEquals(hart.tryStore(0x2000n, 10n), STORE_PAGE_FAULT);
  assertEquals(hart.read64(LEVEL0 + 16n), pte(DATA, V | R | W | A));
});

Deno.test("a changed mapping is seen after SFENCE.VMA of the address", () => {
  const hart = new Paged();
  hart.write64(DATA, 1n);
  hart.write64(DATA2, 2n);
  hart.map(1, DATA, ALL);
  assertEquals(hart.tryLoad(0x1000n), "1");
  hart.write64(LEVEL0 + 8n, pte(DATA2, ALL));
  hart.load(CODE + 32n, [sfenceVma | (a2 << 15), halt]);
  hart.setX(a2, 0x1000n);
  hart.setPc(CODE + 32n);
  hart.setPriv(1);
  hart.run(4);
  assertEquals(hart.tryLoad(0x1000n), "2");
});

Deno.test("SFENCE.VMA by any address of a superpage forgets all of it", () => {
  const hart = new Paged();
  hart.write64(DATA, 1n);
  hart.write64(LEVEL1 + 8n, pte(RAM, ALL));
  assertEquals(hart.tryLoad(0x220000n), "1");
  assertEquals(hart.tryLoad(0x228000n), "0");
  hart.write64(LEVEL1 + 8n, 0n);
  hart.load(CODE + 32n, [sfenceVma | (a2 << 15), halt]);
  hart.setX(a2, 0x228000n);
  hart.setPc(CODE + 32n);
  hart.setPriv(1);
  hart.run(4);
  assertEquals(hart.tryLoad(0x220000n), LOAD_PAGE_FAULT);
});

Deno.test("misaligned accesses work, also across pages that lie apart", () => {
  const hart = new Paged();
  hart.map(1, DATA, ALL);
  hart.map(2, DATA2, ALL);
  for (let offset = 0xff0n; offset < 0x1008n; offset++) {
    const va = 0x1000n + offset;
    assertEquals(hart.tryStore(va, 0x0102030405060708n), null);
    assertEquals(hart.tryLoad(va), "102030405060708");
  }
  assertEquals(hart.tryStore(0x1ffbn, 0x0102030405060708n), null);
  assertEquals(hart.read8(DATA + 0xffbn), 8);
  assertEquals(hart.read8(DATA + 0xfffn), 4);
  assertEquals(hart.read8(DATA2), 3);
});

Deno.test("an access whose second page faults has done nothing, and names that page", () => {
  const hart = new Paged();
  hart.map(1, DATA, ALL);
  hart.map(2, DATA2, 0n);
  hart.write64(DATA + 0xff8n, 0x1111111111111111n);
  assertEquals(hart.tryStore(0x1ffcn, -1n), STORE_PAGE_FAULT);
  assertEquals(hart.csr(CSR.mtval), 0x2000n);
  assertEquals(hart.read64(DATA + 0xff8n), 0x1111111111111111n);
  assertEquals(hart.tryLoad(0x1ffcn), LOAD_PAGE_FAULT);
  assertEquals(hart.csr(CSR.mtval), 0x2000n);
});

Deno.test("PMP: the first entry that matches decides; M is bound by locked ones only", () => {
  const hart = new Paged();
  hart.setCsr(CSR.satp, 0n);
  // Entry 0: DATA's page, read only. Entry 1: everything.
  hart.setCsr(CSR.pmpaddr0, (DATA >> 2n) | 0x1ffn);
  hart.setCsr(CSR.pmpaddr0 + 1, (1n << 54n) - 1n);
  hart.setCsr(CSR.pmpcfg0, 0x1f19n);
  assertEquals(hart.tryLoad(DATA), "0");
  assertEquals(hart.tryStore(DATA, 1n), 7n);
  assertEquals(hart.tryStore(DATA2, 1n), null);
  assertEquals(hart.tryStore(DATA, 1n, 3), 7n, "MPRV with MPP U");
  hart.setCsr(CSR.pmpcfg0, 0x1f99n);
  hart.setX(a0, DATA);
  hart.setPc(CODE + 8n);
  hart.setPriv(3);
  hart.run(4);
  assertEquals(hart.csr(CSR.mcause), 7n, "M under a lock");
});

Deno.test("PMP: entries smaller than a page are checked access by access", () => {
  const hart = new Paged();
  hart.setCsr(CSR.satp, 0n);
  // Entry 0: NA4 at DATA + 8, nothing allowed. Entry 1: everything.
  hart.setCsr(CSR.pmpaddr0, (DATA + 8n) >> 2n);
  hart.setCsr(CSR.pmpaddr0 + 1, (1n << 54n) - 1n);
  hart.setCsr(CSR.pmpcfg0, 0x1f10n);
  assertEquals(hart.tryLoad(DATA), "0");
  assertEquals(hart.tryLoad(DATA + 16n), "0");
  assertEquals(hart.tryLoad(DATA + 8n), 5n, "half of it is forbidden");
  assertEquals(hart.tryLoad(DATA), "0");
});

Deno.test("PMP: with no entry that matches, S may do nothing", () => {
  const hart = new Paged();
  hart.setCsr(CSR.satp, 0n);
  hart.setCsr(CSR.pmpaddr0, (RAM >> 2n) | 0x7ffn); // 16 KiB
  assertEquals(hart.tryLoad(RAM), hart.read64(RAM).toString(16));
  assertEquals(hart.tryLoad(DATA), 5n);
  assertEquals(hart.tryFetch(DATA), 1n);
});
