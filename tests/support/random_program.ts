/**
 * Random user-mode programs: integer, bit manipulation, floating point, atomics, memory of every
 * alignment, compressed instructions, short jumps. They run to their end whatever they compute.
 *
 *   BASE             auipc/ld/fld: registers from INITIAL
 *                    the body, ROUNDS times
 *                    sd/fsd: registers and fcsr to FINAL; write(1, DATA, DATA_BYTES); exit(0)
 *   DATA   (4 KiB)   what loads and stores touch, through x31 and x30
 *   INITIAL, FINAL   x1..x31, f0..f31, fcsr
 *
 * x29 counts rounds, x30 and x31 are pointers; the rest is the program's.
 *
 * @module
 */

import { addi, auipc, beq, bne, csrr, csrw, ecall, encodeI, encodeR, encodeS } from "./rv_asm.ts";
import { CSR, jal, ld, sd } from "./rv_asm.ts";

export const BASE = 0x8000_0000;
export const DATA_OFFSET = 0x40000;
export const DATA_BYTES = 0x4000;
const INITIAL = 0x2000;
const FINAL = 0x3000;
const ROUNDS = 3;
const POINTER = 31;
const CELL = 30;
const COUNTER = 29;

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

/** A source of random programs: the same ones for the same seed. */
export class RandomPrograms {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 1;
  }

  /** Everything from BASE to the end of the data. */
  next(instructionCount: number): Uint8Array<ArrayBuffer> {
    const image = new Uint8Array(DATA_OFFSET + DATA_BYTES);
    const view = new DataView(image.buffer);
    for (let at = 0; at < FINAL; at += 8) {
      view.setBigUint64(DATA_OFFSET + at, this.#operand(), true);
    }
    const code: number[] = []; // half-words
    const put = (...words: number[]) => {
      for (const word of words) code.push(word & 0xffff, word >>> 16);
    };
    this.#putStart(put, code);
    const body = code.length;
    for (let count = 0; count < instructionCount; count++) this.#putInstruction(put, code);
    put(addi(COUNTER, COUNTER, -1), beq(COUNTER, 0, 8), jal(0, 2 * (body - code.length) - 8));
    this.#putEnd(put, code);

    code.forEach((half, index) => view.setUint16(2 * index, half, true));
    return image;
  }

  #random(below: number): number {
    this.#state ^= this.#state << 13;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    return (this.#state >>> 0) % below;
  }

  #pick<T>(list: readonly T[]): T {
    return list[this.#random(list.length)] as T;
  }

  /** Small, large, a double of some magnitude, or a boxed single. */
  #operand(): bigint {
    const low = BigInt(this.#random(0xffff_ffff));
    const high = BigInt(this.#random(0xffff_ffff));
    switch (this.#random(6)) {
      case 0:
        return low & 0xffn;
      case 1:
        return (0xffff_ffffn << 32n) | low;
      case 2:
        return (0xffff_ffffn << 32n) | BigInt(0x3f80_0000 + this.#random(0x100_0000));
      case 3:
        return (BigInt(0x3fe0_0000 + this.#random(0x40_0000)) << 32n) | low;
      case 4:
        return this.#pick([0n, 1n << 63n, 0x7ff0n << 48n, 0x7ff8n << 48n, (1n << 64n) - 1n]);
      default:
        return (high << 32n) | low;
    }
  }

  #putStart(put: (...words: number[]) => void, code: number[]): void {
    const pointAt = (register: number, offset: number) => {
      const distance = DATA_OFFSET + offset - 2 * code.length;
      const high = (distance + 0x800) >> 12;
      put(auipc(register, high), addi(register, register, distance - (high << 12)));
    };
    pointAt(CELL, INITIAL);
    for (let f = 0; f < 32; f++) put(encodeI(0x07, 3, f, CELL, 256 + 8 * f)); // fld
    for (let x = 1; x < COUNTER; x++) put(ld(x, CELL, 8 * x));
    pointAt(POINTER, 2048);
    put(addi(CELL, POINTER, 0), addi(COUNTER, 0, ROUNDS));
  }

  #putEnd(put: (...words: number[]) => void, code: number[]): void {
    const distance = DATA_OFFSET + FINAL - 2 * code.length;
    const high = (distance + 0x800) >> 12;
    put(auipc(CELL, high), addi(CELL, CELL, distance - (high << 12)));
    for (let x = 1; x < COUNTER; x++) put(sd(x, CELL, 8 * x));
    for (let f = 0; f < 32; f++) put(encodeS(0x27, 3, CELL, f, 256 + 8 * f)); // fsd
    put(csrr(5, CSR.fcsr), sd(5, CELL, 512));
    put(addi(10, 0, 1), addi(11, POINTER, -2048), addi(12, 0, 1), encodeI(0x13, 1, 12, 12, 14));
    put(addi(17, 0, 64), ecall, addi(10, 0, 0), addi(17, 0, 93), ecall);
  }

  #putInstruction(put: (...words: number[]) => void, code: number[]): void {
    const rd = this.#random(COUNTER);
    const rs1 = this.#random(32);
    const rs2 = this.#random(32);
    switch (this.#random(12)) {
      case 0:
        return put(encodeI(0x13, this.#pick([0, 2, 3, 4, 6, 7]), rd, rs1, this.#random(4096)));
      case 1:
        return put(encodeI(0x1b, 0, rd, rs1, this.#random(4096)));
      case 2: {
        const [opcode, funct3, fixed, mask] = this.#pick(SHIFTS);
        return put(encodeI(opcode, funct3, rd, rs1, fixed | (this.#random(64) & mask)));
      }
      case 3: {
        const [opcode, funct3, imm] = this.#pick(UNARY);
        return put(encodeI(opcode, funct3, rd, rs1, imm));
      }
      case 4:
        return put(((this.#random(0x100000) << 12) | (rd << 7) | this.#pick([0x17, 0x37])) >>> 0);
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
        return put(this.#pick([beq, bne])(rs1, rs2, 8), addi(rd, rs1, this.#random(2048)));
      default: {
        const [opcode, funct3, funct7] = this.#pick(INTEGER);
        return put(encodeR({ opcode, funct3, funct7 }, rd, rs1, rs2));
      }
    }
  }

  #putMemory(put: (...words: number[]) => void, rd: number, rs2: number): void {
    const imm = this.#random(4088) - 2048;
    const isFloat = this.#random(3) === 0;
    const width = isFloat ? 2 + this.#random(2) : this.#random(4);
    if (this.#random(2) === 0) {
      put(encodeS(isFloat ? 0x27 : 0x23, width, POINTER, rs2, imm));
    } else {
      const funct3 = isFloat ? width : this.#random(7);
      put(encodeI(isFloat ? 0x07 : 0x03, funct3, rd, POINTER, imm));
    }
  }

  #putAtomic(put: (...words: number[]) => void, rd: number, rs2: number): void {
    put(addi(CELL, POINTER, 8 * this.#random(256)));
    const funct3 = 2 + this.#random(2);
    if (this.#random(4) === 0) {
      put(encodeR({ opcode: 0x2f, funct3, funct7: 2 << 2 }, rd, CELL, 0));
      put(encodeR({ opcode: 0x2f, funct3, funct7: 3 << 2 }, rd, CELL, rs2));
    } else {
      const funct7 = this.#pick(AMO_FUNCT5) << 2;
      put(encodeR({ opcode: 0x2f, funct3, funct7 }, rd, CELL, rs2));
    }
  }

  #putFloat(put: (...words: number[]) => void, rd: number, rs1: number, rs2: number): void {
    const rm = this.#pick([0, 0, 0, 7, 7, 1, 2, 3, 4]);
    const format = this.#random(2);
    const operate = (funct5: number, funct3: number, second: number) =>
      put(encodeR({ opcode: 0x53, funct3, funct7: (funct5 << 2) | format }, rd, rs1, second));
    switch (this.#random(11)) {
      case 0:
      case 1:
        return operate(this.#random(4), rm, rs2);
      case 2:
        return operate(0x0b, rm, 0); // fsqrt
      case 3:
        return operate(0x04, this.#random(3), rs2);
      case 4:
        return operate(0x05, this.#random(2), rs2);
      case 5:
        return operate(0x14, this.#random(3), rs2);
      case 6:
        return operate(0x08, rm, format === 0 ? 1 : 0);
      case 7:
        return operate(this.#pick([0x18, 0x1a]), rm, this.#random(4));
      case 8:
        return operate(this.#pick([0x1c, 0x1e]), 0, 0);
      case 9:
        // frm, now and then; NX, which opens the fast paths
        return put(
          addi(COUNTER - 1, 0, this.#random(5)),
          csrw(this.#pick([CSR.frm, CSR.fflags]), 28),
        );
      default: {
        const opcode = this.#pick([0x43, 0x47, 0x4b, 0x4f]);
        const funct7 = (this.#random(32) << 2) | format;
        return put(encodeR({ opcode, funct3: rm, funct7 }, rd, rs1, rs2));
      }
    }
  }

  #putCompressed(code: number[], rd: number, rs2: number): void {
    const short = this.#random(8);
    const short2 = this.#random(8);
    const imm = 1 + this.#random(31);
    code.push(this.#pick([
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
