/**
 * Random instructions: integer, bit manipulation, floating point, atomics, memory of every
 * alignment, compressed ones. None goes elsewhere but over the next one.
 *
 * @module
 */

import { addi, beq, bne, CSR, csrw, encodeI, encodeR, encodeS } from "./rv_asm.ts";

/** Pointers: to the middle of the memory that is touched, and, set here, to an aligned cell. */
export const POINTER = 31;
export const CELL = 30;

/** Takes words of a program. */
type Put = (...words: number[]) => void;

/** opcode, funct3, funct7 of instructions with two integer registers. */
const INTEGER: [number, number, number][] = [
  ...[0, 1, 2, 3, 4, 5, 6, 7].map((f): [number, number, number] => [0x33, f, 0]),
  ...[0, 1, 2, 3, 4, 5, 6, 7].map((f): [number, number, number] => [0x33, f, 1]),
  ...[0, 4, 5, 6, 7].map((f): [number, number, number] => [0x33, f, 0x20]),
  ...[0, 1, 5].map((f): [number, number, number] => [0x3b, f, 0]),
  ...[0, 4, 5, 6, 7].map((f): [number, number, number] => [0x3b, f, 1]),
  ...[0, 5].map((f): [number, number, number] => [0x3b, f, 0x20]),
  ...[2, 4, 6].flatMap((f): [number, number, number][] => [[0x33, f, 0x10], [0x3b, f, 0x10]]),
  ...[4, 5, 6, 7].map((f): [number, number, number] => [0x33, f, 0x05]),
  ...[1, 5].flatMap((f): [number, number, number][] => [[0x33, f, 0x30], [0x3b, f, 0x30]]),
  ...[1, 5].map((f): [number, number, number] => [0x33, f, 0x24]),
  [0x33, 1, 0x14],
  [0x33, 1, 0x34],
  [0x3b, 0, 0x04],
];

/** opcode, funct3, bits of the immediate that are not a shift amount, how many are. */
const SHIFTS: [number, number, number, number][] = [
  [0x13, 1, 0x000, 63],
  [0x13, 5, 0x000, 63],
  [0x13, 5, 0x400, 63],
  [0x13, 1, 0x280, 63],
  [0x13, 1, 0x480, 63],
  [0x13, 1, 0x680, 63],
  [0x13, 5, 0x480, 63],
  [0x13, 5, 0x600, 63],
  [0x1b, 1, 0x000, 31],
  [0x1b, 5, 0x000, 31],
  [0x1b, 5, 0x400, 31],
  [0x1b, 5, 0x600, 31],
  [0x1b, 1, 0x080, 63],
];

/**
 * opcode, funct3, immediate of instructions with one operand. Not CTZW: for a word of zeroes QEMU
 * 7.2 goes on counting in the upper half of the register.
 */
const UNARY: [number, number, number][] = [
  [0x13, 1, 0x600],
  [0x13, 1, 0x601],
  [0x13, 1, 0x602],
  [0x13, 1, 0x604],
  [0x13, 1, 0x605],
  [0x1b, 1, 0x600],
  [0x1b, 1, 0x602],
  [0x13, 5, 0x287],
  [0x13, 5, 0x6b8],
  [0x3b, 4, 0x080],
];

const AMO_FUNCT5 = [0, 1, 4, 8, 12, 16, 20, 24, 28];

/** A source of random numbers and instructions: the same ones for the same seed. */
export class RandomInstructions {
  #state: number;

  /** Registers below `registerCount` are written; all are read. */
  constructor(seed: number, readonly registerCount: number) {
    this.#state = seed | 1;
  }

  /** A whole number below `limit`. */
  below(limit: number): number {
    this.#state ^= this.#state << 13;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    return (this.#state >>> 0) % limit;
  }

  /** One of a list. */
  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T;
  }

  /** Small, large, a double of some magnitude, or a boxed single. */
  operand(): bigint {
    const low = BigInt(this.below(0xffff_ffff));
    const high = BigInt(this.below(0xffff_ffff));
    switch (this.below(6)) {
      case 0:
        return low & 0xffn;
      case 1:
        return (0xffff_ffffn << 32n) | low;
      case 2:
        return (0xffff_ffffn << 32n) | BigInt(0x3f80_0000 + this.below(0x100_0000));
      case 3:
        return (BigInt(0x3fe0_0000 + this.below(0x40_0000)) << 32n) | low;
      case 4:
        return this.pick([0n, 1n << 63n, 0x7ff0n << 48n, 0x7ff8n << 48n, (1n << 64n) - 1n]);
      default:
        return (high << 32n) | low;
    }
  }

  /** One instruction or two, by `put`, or compressed, to `code`. */
  putInstruction(put: Put, code: number[]): void {
    const rd = this.below(this.registerCount);
    const rs1 = this.below(32);
    const rs2 = this.below(32);
    switch (this.below(12)) {
      case 0:
        return put(encodeI(0x13, this.pick([0, 2, 3, 4, 6, 7]), rd, rs1, this.below(4096)));
      case 1:
        return put(encodeI(0x1b, 0, rd, rs1, this.below(4096)));
      case 2: {
        const [opcode, funct3, fixed, mask] = this.pick(SHIFTS);
        return put(encodeI(opcode, funct3, rd, rs1, fixed | (this.below(64) & mask)));
      }
      case 3: {
        const [opcode, funct3, imm] = this.pick(UNARY);
        return put(encodeI(opcode, funct3, rd, rs1, imm));
      }
      case 4:
        return put(((this.below(0x100000) << 12) | (rd << 7) | this.pick([0x17, 0x37])) >>> 0);
      case 5:
        return this.#putMemory(put, rd, rs2);
      case 6:
        return this.#putAtomic(put, rd, rs2);
      case 7:
      case 8:
        return this.#putFloat(put, rd, rs1, rs2);
      case 9:
        return this.#putCompressed(code, rd === 0 ? 1 : rd, rs2 === 0 ? 1 : rs2);
      case 10: // over the next instruction, or not
        return put(this.pick([beq, bne])(rs1, rs2, 8), addi(rd, rs1, this.below(2048)));
      default: {
        const [opcode, funct3, funct7] = this.pick(INTEGER);
        return put(encodeR({ opcode, funct3, funct7 }, rd, rs1, rs2));
      }
    }
  }

  #putMemory(put: Put, rd: number, rs2: number): void {
    const imm = this.below(4088) - 2048;
    const isFloat = this.below(3) === 0;
    const width = isFloat ? 2 + this.below(2) : this.below(4);
    if (this.below(2) === 0) {
      put(encodeS(isFloat ? 0x27 : 0x23, width, POINTER, rs2, imm));
    } else {
      const funct3 = isFloat ? width : this.below(7);
      put(encodeI(isFloat ? 0x07 : 0x03, funct3, rd, POINTER, imm));
    }
  }

  #putAtomic(put: Put, rd: number, rs2: number): void {
    put(addi(CELL, POINTER, 8 * this.below(256)));
    const funct3 = 2 + this.below(2);
    if (this.below(4) === 0) {
      put(encodeR({ opcode: 0x2f, funct3, funct7: 2 << 2 }, rd, CELL, 0));
      put(encodeR({ opcode: 0x2f, funct3, funct7: 3 << 2 }, rd, CELL, rs2));
    } else {
      const funct7 = this.pick(AMO_FUNCT5) << 2;
      put(encodeR({ opcode: 0x2f, funct3, funct7 }, rd, CELL, rs2));
    }
  }

  #putFloat(put: Put, rd: number, rs1: number, rs2: number): void {
    const rm = this.pick([0, 0, 0, 7, 7, 1, 2, 3, 4]);
    const format = this.below(2);
    const operate = (funct5: number, funct3: number, second: number) =>
      put(encodeR({ opcode: 0x53, funct3, funct7: (funct5 << 2) | format }, rd, rs1, second));
    switch (this.below(11)) {
      case 0:
      case 1:
        return operate(this.below(4), rm, rs2);
      case 2:
        return operate(0x0b, rm, 0); // fsqrt
      case 3:
        return operate(0x04, this.below(3), rs2);
      case 4:
        return operate(0x05, this.below(2), rs2);
      case 5:
        return operate(0x14, this.below(3), rs2);
      case 6:
        return operate(0x08, rm, format === 0 ? 1 : 0);
      case 7:
        return operate(this.pick([0x18, 0x1a]), rm, this.below(4));
      case 8:
        return operate(this.pick([0x1c, 0x1e]), 0, 0);
      case 9:
        // frm, now and then; NX, which opens the fast paths
        return put(
          addi(this.registerCount - 1, 0, this.below(5)),
          csrw(this.pick([CSR.frm, CSR.fflags]), this.registerCount - 1),
        );
      default: {
        const opcode = this.pick([0x43, 0x47, 0x4b, 0x4f]);
        const funct7 = (this.below(32) << 2) | format;
        return put(encodeR({ opcode, funct3: rm, funct7 }, rd, rs1, rs2));
      }
    }
  }

  #putCompressed(code: number[], rd: number, rs2: number): void {
    const short = this.below(8);
    const short2 = this.below(8);
    const imm = 1 + this.below(31);
    code.push(this.pick([
      0x0001 | (rd << 7) | (imm << 2), // c.addi
      0x2001 | (rd << 7) | (imm << 2), // c.addiw
      0x4001 | (rd << 7) | (imm << 2), // c.li
      0x0002 | (rd << 7) | (imm << 2), // c.slli
      0x8002 | (rd << 7) | (rs2 << 2), // c.mv
      0x9002 | (rd << 7) | (rs2 << 2), // c.add
      0x8001 | (short << 7) | (imm << 2), // c.srli
      0x8401 | (short << 7) | (imm << 2), // c.srai
      0x9801 | (short << 7) | (imm << 2), // c.andi
      0x8c01 | (short << 7) | (short2 << 2), // c.sub
      0x8c21 | (short << 7) | (short2 << 2), // c.xor
      0x8c41 | (short << 7) | (short2 << 2), // c.or
      0x8c61 | (short << 7) | (short2 << 2), // c.and
      0x9c01 | (short << 7) | (short2 << 2), // c.subw
      0x9c21 | (short << 7) | (short2 << 2), // c.addw
    ]));
  }
}
