/** LR, SC and AMOs, by one hart and between two. */

import { assertEquals } from "@std/assert";
import {
  a0,
  a1,
  a2,
  a3,
  addi,
  amoaddW,
  bne,
  encodeR,
  halt,
  lrw,
  scw,
  sw,
} from "../support/rv_asm.ts";
import { RAM, TestHart } from "../support/test_hart.ts";

const CELL = RAM + 0x4000n;
const u64 = (value: bigint) => BigInt.asUintN(64, value);
const MINUS_ONE_32 = 0xffff_ffffn;

/** [name, funct5, old, operand, stored]: words. */
const AMO_WORDS: [string, number, bigint, bigint, bigint][] = [
  ["amoswap.w", 1, 5n, 7n, 7n],
  ["amoadd.w", 0, MINUS_ONE_32, 2n, 1n],
  ["amoxor.w", 4, 0xff00n, 0x0ff0n, 0xf0f0n],
  ["amoand.w", 12, 0xff00n, 0x0ff0n, 0x0f00n],
  ["amoor.w", 8, 0xff00n, 0x0ff0n, 0xfff0n],
  ["amomin.w", 16, MINUS_ONE_32, 1n, MINUS_ONE_32],
  ["amomax.w", 20, MINUS_ONE_32, 1n, 1n],
  ["amominu.w", 24, MINUS_ONE_32, 1n, 1n],
  ["amomaxu.w", 28, MINUS_ONE_32, 1n, MINUS_ONE_32],
];

for (const hartCount of [1, 2]) {
  Deno.test(`AMOs store what they say and return what was there, with ${hartCount} harts`, () => {
    const hart = new TestHart(hartCount);
    AMO_WORDS.forEach(([name, funct5, old, operand, stored], index) => {
      const at = RAM + BigInt(16 * index);
      const funct7 = funct5 << 2;
      hart.load(at, [encodeR({ opcode: 0x2f, funct3: 2, funct7 }, a2, a0, a1), halt]);
      hart.write64(CELL, (0x77n << 32n) | old);
      hart.setX(a0, CELL);
      hart.setX(a1, (0x55n << 32n) | operand);
      hart.setPc(at);
      hart.run(2);
      assertEquals(hart.read64(CELL), (0x77n << 32n) | stored, name);
      assertEquals(hart.x(a2), u64(BigInt.asIntN(32, old)), `${name}, what was there`);
    });
  });

  Deno.test(`SC succeeds once after LR, at its address only, with ${hartCount} harts`, () => {
    const hart = new TestHart(hartCount);
    hart.load(RAM, [
      lrw(a1, a0),
      scw(a2, a0, a3),
      scw(5, a0, a3),
      lrw(a1, a0),
      addi(a0, a0, 4),
      scw(6, a0, a3),
      halt,
    ]);
    hart.setX(a0, CELL);
    hart.setX(a3, 9n);
    hart.write64(CELL, 3n);
    hart.run(10);
    assertEquals([hart.x(a2), hart.x(5), hart.x(6)], [0n, 1n, 1n]);
    assertEquals(hart.read64(CELL), 9n);
  });
}

Deno.test("SC fails after another hart's store", () => {
  const hart = new TestHart(2);
  hart.load(RAM, [lrw(a1, a0), halt, scw(a2, a0, a3), halt]);
  hart.load(RAM + 0x100n, [sw(a3, a0, 0), halt]);
  for (const id of [0, 1]) hart.setX(a0, CELL, id);
  hart.setX(a3, 8n, 1);
  hart.run(2, 0);
  hart.setPc(RAM + 0x100n, 1);
  hart.run(2, 1);
  hart.setPc(RAM + 8n, 0);
  hart.run(2, 0);
  assertEquals(hart.x(a2, 0), 1n);
  assertEquals(hart.read64(CELL), 8n);
});

Deno.test("two harts that add to one word, in turns, lose nothing", () => {
  const hart = new TestHart(2);
  const loop = [amoaddW(0, a0, a1), addi(a2, a2, -1), bne(a2, 0, -8), halt];
  hart.load(RAM, loop);
  for (const id of [0, 1]) {
    hart.setX(a0, CELL, id);
    hart.setX(a1, 1n, id);
    hart.setX(a2, 1000n, id);
  }
  for (let turn = 0; turn < 100; turn++) hart.run(61, turn & 1 ? 1 : 0);
  assertEquals(hart.read64(CELL), 2000n);
});
