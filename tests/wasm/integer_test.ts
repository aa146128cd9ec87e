/** Integer instructions against their definition on bigints, with random and awkward operands. */

import { assertEquals } from "@std/assert";
import { a0, a1, a2, encodeI, encodeR, halt } from "../support/rv_asm.ts";
import { RAM, TestHart } from "../support/test_hart.ts";

const SEED = 0x1234abcd;
const ROUNDS = 20;

const s64 = (value: bigint) => BigInt.asIntN(64, value);
const u64 = (value: bigint) => BigInt.asUintN(64, value);
const s32 = (value: bigint) => BigInt.asIntN(32, value);
const u32 = (value: bigint) => BigInt.asUintN(32, value);
const low6 = (value: bigint) => value & 63n;
const low5 = (value: bigint) => value & 31n;

type Model = (a: bigint, b: bigint) => bigint;

function divide(a: bigint, b: bigint): bigint {
  return b === 0n ? -1n : a / b;
}

function remainder(a: bigint, b: bigint): bigint {
  return b === 0n ? a : a % b;
}

function rotateLeft(value: bigint, count: bigint, width: bigint): bigint {
  const word = BigInt.asUintN(Number(width), value);
  return (word << count) | (word >> ((width - count) % width));
}

function countBits(value: bigint): bigint {
  return BigInt(value.toString(2).replaceAll("0", "").length);
}

/** [name, opcode, funct3, funct7, model]: operands come unsigned, results are taken modulo 2^64. */
const TYPE_R: [string, number, number, number, Model][] = [
  ["add", 0x33, 0, 0x00, (a, b) => a + b],
  ["sub", 0x33, 0, 0x20, (a, b) => a - b],
  ["sll", 0x33, 1, 0x00, (a, b) => a << low6(b)],
  ["slt", 0x33, 2, 0x00, (a, b) => s64(a) < s64(b) ? 1n : 0n],
  ["sltu", 0x33, 3, 0x00, (a, b) => a < b ? 1n : 0n],
  ["xor", 0x33, 4, 0x00, (a, b) => a ^ b],
  ["srl", 0x33, 5, 0x00, (a, b) => a >> low6(b)],
  ["sra", 0x33, 5, 0x20, (a, b) => s64(a) >> low6(b)],
  ["or", 0x33, 6, 0x00, (a, b) => a | b],
  ["and", 0x33, 7, 0x00, (a, b) => a & b],
  ["addw", 0x3b, 0, 0x00, (a, b) => s32(a + b)],
  ["subw", 0x3b, 0, 0x20, (a, b) => s32(a - b)],
  ["sllw", 0x3b, 1, 0x00, (a, b) => s32(a << low5(b))],
  ["srlw", 0x3b, 5, 0x00, (a, b) => s32(u32(a) >> low5(b))],
  ["sraw", 0x3b, 5, 0x20, (a, b) => s32(a) >> low5(b)],
  ["mul", 0x33, 0, 0x01, (a, b) => a * b],
  ["mulh", 0x33, 1, 0x01, (a, b) => (s64(a) * s64(b)) >> 64n],
  ["mulhsu", 0x33, 2, 0x01, (a, b) => (s64(a) * b) >> 64n],
  ["mulhu", 0x33, 3, 0x01, (a, b) => (a * b) >> 64n],
  ["div", 0x33, 4, 0x01, (a, b) => divide(s64(a), s64(b))],
  ["divu", 0x33, 5, 0x01, (a, b) => divide(a, b)],
  ["rem", 0x33, 6, 0x01, (a, b) => remainder(s64(a), s64(b))],
  ["remu", 0x33, 7, 0x01, (a, b) => remainder(a, b)],
  ["mulw", 0x3b, 0, 0x01, (a, b) => s32(a * b)],
  ["divw", 0x3b, 4, 0x01, (a, b) => s32(divide(s32(a), s32(b)))],
  ["divuw", 0x3b, 5, 0x01, (a, b) => s32(divide(u32(a), u32(b)))],
  ["remw", 0x3b, 6, 0x01, (a, b) => s32(remainder(s32(a), s32(b)))],
  ["remuw", 0x3b, 7, 0x01, (a, b) => s32(remainder(u32(a), u32(b)))],
  ["add.uw", 0x3b, 0, 0x04, (a, b) => u32(a) + b],
  ["sh1add", 0x33, 2, 0x10, (a, b) => (a << 1n) + b],
  ["sh2add", 0x33, 4, 0x10, (a, b) => (a << 2n) + b],
  ["sh3add", 0x33, 6, 0x10, (a, b) => (a << 3n) + b],
  ["sh1add.uw", 0x3b, 2, 0x10, (a, b) => (u32(a) << 1n) + b],
  ["sh2add.uw", 0x3b, 4, 0x10, (a, b) => (u32(a) << 2n) + b],
  ["sh3add.uw", 0x3b, 6, 0x10, (a, b) => (u32(a) << 3n) + b],
  ["andn", 0x33, 7, 0x20, (a, b) => a & ~b],
  ["orn", 0x33, 6, 0x20, (a, b) => a | ~b],
  ["xnor", 0x33, 4, 0x20, (a, b) => ~(a ^ b)],
  ["min", 0x33, 4, 0x05, (a, b) => s64(a) < s64(b) ? a : b],
  ["minu", 0x33, 5, 0x05, (a, b) => a < b ? a : b],
  ["max", 0x33, 6, 0x05, (a, b) => s64(a) > s64(b) ? a : b],
  ["maxu", 0x33, 7, 0x05, (a, b) => a > b ? a : b],
  ["rol", 0x33, 1, 0x30, (a, b) => rotateLeft(a, low6(b), 64n)],
  ["ror", 0x33, 5, 0x30, (a, b) => rotateLeft(a, (64n - low6(b)) % 64n, 64n)],
  ["rolw", 0x3b, 1, 0x30, (a, b) => s32(rotateLeft(a, low5(b), 32n))],
  ["rorw", 0x3b, 5, 0x30, (a, b) => s32(rotateLeft(a, (32n - low5(b)) % 32n, 32n))],
  ["bclr", 0x33, 1, 0x24, (a, b) => a & ~(1n << low6(b))],
  ["bext", 0x33, 5, 0x24, (a, b) => (a >> low6(b)) & 1n],
  ["binv", 0x33, 1, 0x34, (a, b) => a ^ (1n << low6(b))],
  ["bset", 0x33, 1, 0x14, (a, b) => a | (1n << low6(b))],
];

const bytesOf = (a: bigint) => Array.from({ length: 8 }, (_, i) => (a >> BigInt(8 * i)) & 0xffn);
const joinBytes = (bytes: bigint[]) =>
  bytes.reduce((sum, byte, i) => sum | (byte << BigInt(8 * i)), 0n);

/** [name, opcode, funct3, immediate, model of the one operand]. */
const TYPE_I: [string, number, number, number, (a: bigint) => bigint][] = [
  ["addi", 0x13, 0, -2048, (a) => a - 2048n],
  ["slti", 0x13, 2, -1, (a) => s64(a) < -1n ? 1n : 0n],
  ["sltiu", 0x13, 3, -1, (a) => a < u64(-1n) ? 1n : 0n],
  ["xori", 0x13, 4, -1, (a) => ~a],
  ["ori", 0x13, 6, 0x555, (a) => a | 0x555n],
  ["andi", 0x13, 7, -256, (a) => a & -256n],
  ["slli", 0x13, 1, 63, (a) => a << 63n],
  ["srli", 0x13, 5, 33, (a) => a >> 33n],
  ["srai", 0x13, 5, 0x400 | 33, (a) => s64(a) >> 33n],
  ["addiw", 0x1b, 0, 2047, (a) => s32(a + 2047n)],
  ["slliw", 0x1b, 1, 31, (a) => s32(a << 31n)],
  ["srliw", 0x1b, 5, 7, (a) => s32(u32(a) >> 7n)],
  ["sraiw", 0x1b, 5, 0x400 | 7, (a) => s32(a) >> 7n],
  ["slli.uw", 0x1b, 1, 0x080 | 40, (a) => u32(a) << 40n],
  ["rori", 0x13, 5, 0x600 | 13, (a) => rotateLeft(a, 51n, 64n)],
  ["roriw", 0x1b, 5, 0x600 | 13, (a) => s32(rotateLeft(a, 19n, 32n))],
  ["bclri", 0x13, 1, 0x480 | 40, (a) => a & ~(1n << 40n)],
  ["bexti", 0x13, 5, 0x480 | 40, (a) => (a >> 40n) & 1n],
  ["binvi", 0x13, 1, 0x680 | 40, (a) => a ^ (1n << 40n)],
  ["bseti", 0x13, 1, 0x280 | 40, (a) => a | (1n << 40n)],
  ["clz", 0x13, 1, 0x600, (a) => a === 0n ? 64n : 64n - BigInt(a.toString(2).length)],
  ["ctz", 0x13, 1, 0x601, (a) => a === 0n ? 64n : countBits((a & -a) - 1n)],
  ["cpop", 0x13, 1, 0x602, (a) => countBits(a)],
  ["sext.b", 0x13, 1, 0x604, (a) => BigInt.asIntN(8, a)],
  ["sext.h", 0x13, 1, 0x605, (a) => BigInt.asIntN(16, a)],
  ["clzw", 0x1b, 1, 0x600, (a) => u32(a) === 0n ? 32n : 32n - BigInt(u32(a).toString(2).length)],
  ["ctzw", 0x1b, 1, 0x601, (a) => u32(a) === 0n ? 32n : countBits((u32(a) & -u32(a)) - 1n)],
  ["cpopw", 0x1b, 1, 0x602, (a) => countBits(u32(a))],
  ["orc.b", 0x13, 5, 0x287, (a) => joinBytes(bytesOf(a).map((b) => b === 0n ? 0n : 0xffn))],
  ["rev8", 0x13, 5, 0x6b8, (a) => joinBytes(bytesOf(a).reverse())],
  ["zext.h", 0x3b, 4, 0x080, (a) => a & 0xffffn],
];

const AWKWARD = [
  0n,
  1n,
  -1n,
  2n,
  1n << 63n,
  (1n << 63n) - 1n,
  1n << 31n,
  -(1n << 31n),
  0xffff_ffffn,
];

/** Operands: every pair of the awkward ones, then random pairs of all magnitudes. */
function* operands(): Generator<[bigint, bigint]> {
  for (const a of AWKWARD) for (const b of AWKWARD) yield [u64(a), u64(b)];
  let state = BigInt(SEED);
  const next = () => {
    state = u64(state * 6364136223846793005n + 1442695040888963407n);
    return (state >> 11n) ^ (state << 43n);
  };
  for (let round = 0; round < ROUNDS; round++) {
    yield [u64(next()) >> (next() & 63n), u64(next()) >> (next() & 63n)];
  }
}

Deno.test(`instructions with two registers do what their definition says (seed ${SEED})`, () => {
  const hart = new TestHart();
  TYPE_R.forEach(([name, opcode, funct3, funct7, model], index) => {
    const at = RAM + BigInt(8 * index);
    hart.load(at, [encodeR({ opcode, funct3, funct7 }, a2, a0, a1), halt]);
    for (const [a, b] of operands()) {
      hart.setX(a0, a);
      hart.setX(a1, b);
      hart.setPc(at);
      hart.run(1);
      assertEquals(hart.x(a2), u64(model(a, b)), `${name} 0x${a.toString(16)} 0x${b.toString(16)}`);
    }
  });
});

Deno.test(`instructions with an immediate do what their definition says (seed ${SEED})`, () => {
  const hart = new TestHart();
  TYPE_I.forEach(([name, opcode, funct3, imm, model], index) => {
    const at = RAM + BigInt(8 * index);
    hart.load(at, [encodeI(opcode, funct3, a2, a0, imm), halt]);
    for (const [a] of operands()) {
      hart.setX(a0, a);
      hart.setPc(at);
      hart.run(1);
      assertEquals(hart.x(a2), u64(model(a)), `${name} 0x${a.toString(16)}`);
    }
  });
});

Deno.test("nothing writes x0", () => {
  const hart = new TestHart();
  hart.setX(a0, 5n);
  hart.load(RAM, [
    encodeI(0x13, 0, 0, a0, 7), // addi
    encodeR({ opcode: 0x33, funct3: 4, funct7: 1 }, 0, a0, a0), // div
    0x00000017, // auipc
    encodeI(0x03, 3, 0, a1, 0), // ld
    encodeI(0x73, 2, 0, 0, 0xb02), // csrr minstret
    encodeR({ opcode: 0x2f, funct3: 3, funct7: 0 }, 0, a1, a0), // amoadd.d
    0x0000006f,
  ]);
  hart.setX(a1, RAM + 0x1000n);
  hart.run(10);
  assertEquals(hart.x(0), 0n);
  assertEquals(hart.pc(), RAM + 24n);
  assertEquals(hart.read64(RAM + 0x1000n), 5n);
});
