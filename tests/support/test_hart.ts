/**
 * One or more harts with RAM and no host around them: programs are words, registers are bigints.
 *
 * @module
 */

import {
  compileHart,
  createMachineMemory,
  type HartExports,
  instantiateHart,
  readHartLayout,
} from "../../src/wasm/hart.ts";
import { readStatistic, type TranslatorStatistic } from "../../src/wasm/translator.ts";
import { csrr, csrw, halt } from "./rv_asm.ts";

const module = await compileHart();
export const layout = readHartLayout(module);

/** All tests with harts of this kind can be run with the translator, everything translated. */
const TRANSLATES = Deno.env.get("OVIS_TEST_ACCEL") === "translator";

/** Where RAM starts, and programs by default. */
export const RAM = BigInt(layout.RAM_GPA);
export const RAM_BYTES = 16 * 1024 * 1024;

/** Memory and its harts, reset to `RAM` in M mode. */
export class TestHart {
  readonly view: DataView;
  readonly harts: HartExports[];
  /** mtime, in ticks. */
  ticks = 0;
  #asideCount = 0;

  constructor(hartCount = 1) {
    const memory = createMachineMemory(layout, RAM_BYTES);
    this.view = new DataView(memory.buffer);
    this.view.setUint32(layout.HART_COUNT, hartCount, true);
    this.view.setBigUint64(layout.RAM_BYTES, BigInt(RAM_BYTES), true);
    const imports = { hostTicks: () => this.ticks };
    this.harts = Array.from({ length: hartCount }, (_, hartId) => {
      const hart = instantiateHart(module, { memory, hartId, imports });
      hart.reset(RAM);
      if (TRANSLATES) hart.setTranslator(1, 1);
      return hart;
    });
  }

  /** Writes words to guest physical `gpa`. */
  load(gpa: bigint, words: readonly number[]): void {
    words.forEach((word, index) => this.view.setUint32(this.#ram(gpa) + 4 * index, word, true));
  }

  /** Runs about `budget` instructions of a hart; returns RUN_*. */
  run(budget = 1000, hartId = 0): number {
    return this.hart(hartId).run(budget);
  }

  hart(hartId: number): HartExports {
    const hart = this.harts[hartId];
    if (hart === undefined) throw new RangeError(`no hart ${hartId}`);
    return hart;
  }

  x(index: number, hartId = 0): bigint {
    return this.view.getBigUint64(this.#block(hartId) + layout.HART_X + 8 * index, true);
  }

  setX(index: number, value: bigint, hartId = 0): void {
    this.view.setBigUint64(this.#block(hartId) + layout.HART_X + 8 * index, value, true);
  }

  pc(hartId = 0): bigint {
    return this.view.getBigUint64(this.#block(hartId) + layout.HART_PC, true);
  }

  setPc(pc: bigint, hartId = 0): void {
    this.view.setBigUint64(this.#block(hartId) + layout.HART_PC, pc, true);
  }

  priv(hartId = 0): number {
    return this.view.getUint32(this.#block(hartId) + layout.HART_PRIV, true);
  }

  setPriv(priv: number, hartId = 0): void {
    this.view.setUint32(this.#block(hartId) + layout.HART_PRIV, priv, true);
  }

  read64(gpa: bigint): bigint {
    return this.view.getBigUint64(this.#ram(gpa), true);
  }

  write64(gpa: bigint, value: bigint): void {
    this.view.setBigUint64(this.#ram(gpa), value, true);
  }

  write16(gpa: bigint, value: number): void {
    this.view.setUint16(this.#ram(gpa), value, true);
  }

  write(gpa: bigint, bytes: Uint8Array): void {
    new Uint8Array(this.view.buffer).set(bytes, this.#ram(gpa));
  }

  read8(gpa: bigint): number {
    return this.view.getUint8(this.#ram(gpa));
  }

  /** A figure of the translator. */
  statistic(name: TranslatorStatistic, hartId = 0): bigint {
    return readStatistic(this.view, layout, { hartId, name });
  }

  /** Reads a CSR by an instruction, in M mode, at a place where no test has its program. */
  csr(number: number): bigint {
    return this.#aside([csrr(31, number)], 0n);
  }

  /** Writes a CSR likewise. */
  setCsr(number: number, value: bigint): void {
    this.#aside([csrw(number, 31)], value);
  }

  /**
   * Runs words in M mode with x31 = value; returns x31. Everything but their effect is restored.
   */
  #aside(words: number[], value: bigint): bigint {
    const saved = { pc: this.pc(), priv: this.priv(), x31: this.x(31) };
    // Each time at another address: what stood there would be decoded already.
    const scratch = RAM + BigInt(RAM_BYTES) - 8n * BigInt(++this.#asideCount);
    this.load(scratch, [...words, halt]);
    this.setPriv(3);
    this.setPc(scratch);
    this.setX(31, value);
    this.run(1);
    const result = this.x(31);
    this.setPc(saved.pc);
    this.setPriv(saved.priv);
    this.setX(31, saved.x31);
    return result;
  }

  #block(hartId: number): number {
    return layout.HART_BASE + hartId * layout.HART_STRIDE;
  }

  #ram(gpa: bigint): number {
    return layout.RAM_BASE + Number(gpa - RAM);
  }
}
