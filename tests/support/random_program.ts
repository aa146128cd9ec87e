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

import { CELL, POINTER, RandomInstructions } from "./random_instructions.ts";
import { addi, auipc, beq, CSR, csrr, ecall, encodeI, encodeS, jal, ld, sd } from "./rv_asm.ts";

export const BASE = 0x8000_0000;
export const DATA_OFFSET = 0x40000;
export const DATA_BYTES = 0x4000;
const INITIAL = 0x2000;
const FINAL = 0x3000;
const ROUNDS = 3;
const COUNTER = 29;

/** A source of random programs: the same ones for the same seed. */
export class RandomPrograms {
  readonly #random: RandomInstructions;

  constructor(seed: number) {
    this.#random = new RandomInstructions(seed, COUNTER);
  }

  /** Everything from BASE to the end of the data. */
  next(instructionCount: number): Uint8Array<ArrayBuffer> {
    const image = new Uint8Array(DATA_OFFSET + DATA_BYTES);
    const view = new DataView(image.buffer);
    for (let at = 0; at < FINAL; at += 8) {
      view.setBigUint64(DATA_OFFSET + at, this.#random.operand(), true);
    }
    const code: number[] = []; // half-words
    const put = (...words: number[]) => {
      for (const word of words) code.push(word & 0xffff, word >>> 16);
    };
    this.#putStart(put, code);
    const body = code.length;
    for (let count = 0; count < instructionCount; count++) this.#random.putInstruction(put, code);
    put(addi(COUNTER, COUNTER, -1), beq(COUNTER, 0, 8), jal(0, 2 * (body - code.length) - 8));
    this.#putEnd(put, code);

    code.forEach((half, index) => view.setUint16(2 * index, half, true));
    return image;
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
}
