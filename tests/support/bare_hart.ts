/**
 * Harts without a worker, a kernel or real time, for tests of the board: each access to a device,
 * each CSR read and each SBI call is one instruction that the hart really executes. The clock is
 * the test's.
 *
 * @module
 */

import { GuestMemory } from "../../src/machine/guest_memory.ts";
import {
  compileHart,
  createMachineMemory,
  type HartExports,
  instantiateHart,
  readHartLayout,
} from "../../src/wasm/hart.ts";

export const module = await compileHart();
export const layout = readHartLayout(module);
export const RAM = Number(layout.RAM_GPA);

const NO_TRAP = 0xffn;
const LOAD_FUNCT3: Record<number, number> = { 1: 4, 2: 5, 4: 6, 8: 3 };
const STORE_FUNCT3: Record<number, number> = { 1: 0, 2: 1, 4: 2, 8: 3 };
/** a0 is the address of an access, a1 its value, a2 tells of a trap. */
const A0 = 10;
const A1 = 11;
const A2 = 12;
const A6 = 16;
const A7 = 17;

export const SELF_JUMP = 0x0000006f; // j .
const ECALL = 0x00000073;
export const FENCE_I = 0x0000100f;
export const WFI = 0x10500073;

/** Guest memory, in bytes, of a bare machine. */
export const BARE_RAM_BYTES = 4 * 1024 * 1024;

/** A machine of bare harts. */
export class BareMachine {
  readonly memory: GuestMemory;
  readonly harts: BareHart[];
  /** Host time: mtime is this minus MTIME_ORIGIN, which is 0. */
  ticks = 0;

  constructor(options: { hartCount?: number; isSbiBuiltIn?: boolean } = {}) {
    const { hartCount = 1, isSbiBuiltIn = false } = options;
    this.memory = new GuestMemory(createMachineMemory(layout, BARE_RAM_BYTES), layout);
    this.memory.storeWord(layout.HART_COUNT, hartCount);
    this.memory.storeWord(layout.SBI_BUILT_IN, isSbiBuiltIn ? 1 : 0);
    this.memory.view.setBigUint64(layout.RAM_BYTES, BigInt(BARE_RAM_BYTES), true);
    this.harts = Array.from({ length: hartCount }, (_, id) => new BareHart(this, id));
  }

  /** Hart `id`, which the test has asked for. */
  hart(id = 0): BareHart {
    const hart = this.harts[id];
    if (hart === undefined) throw new RangeError(`no hart ${id}`);
    return hart;
  }

  /** The console's output so far, which is taken out of the ring. */
  takeOutput(): string {
    const { memory } = this;
    const head = memory.loadWord(layout.CONSOLE_OUT_HEAD_WORD);
    let text = "";
    for (let at = memory.loadWord(layout.CONSOLE_OUT_TAIL_WORD); at !== head; at = (at + 1) >>> 0) {
      const index = at & (layout.CONSOLE_RING_BYTES - 1);
      text += String.fromCharCode(memory.bytes[layout.CONSOLE_OUT_RING + index] ?? 0);
    }
    memory.storeWord(layout.CONSOLE_OUT_TAIL_WORD, head);
    return text;
  }

  /** Types `text` on the console. */
  type(text: string): void {
    const { memory } = this;
    let head = memory.loadWord(layout.CONSOLE_IN_HEAD_WORD);
    for (const byte of new TextEncoder().encode(text)) {
      memory.bytes[layout.CONSOLE_IN_RING + (head++ & (layout.CONSOLE_RING_BYTES - 1))] = byte;
    }
    memory.storeWord(layout.CONSOLE_IN_HEAD_WORD, head >>> 0);
  }

  /** The doorbells that were rung since the last call. */
  takeDoorbells(): number {
    return Atomics.exchange(this.memory.words, layout.DOORBELL_WORD >>> 2, 0) >>> 0;
  }
}

/** One hart, in M mode, or in S mode with the built-in SBI. Interrupts are never taken. */
export class BareHart {
  readonly instance: HartExports;
  readonly base: number;
  readonly #memory: GuestMemory;
  /** Each hart has its page of code; its second half is the trap handler. */
  readonly #code: number;

  constructor(machine: BareMachine, readonly id: number) {
    this.#memory = machine.memory;
    this.base = layout.HART_BASE + id * layout.HART_STRIDE;
    this.#code = RAM + 0x1000 * (id + 1);
    this.instance = instantiateHart(module, {
      memory: machine.memory.memory,
      hartId: id,
      imports: { hostTicks: () => machine.ticks },
    });
    this.instance.reset(BigInt(this.#code));
    this.write(this.#handler, [
      this.#isSupervisor ? 0x14202673 : 0x34202673, // csrr a2, scause | mcause
      SELF_JUMP,
    ]);
    this.setX(A0, BigInt(this.#handler));
    if (this.isStarted) this.execute(this.#isSupervisor ? 0x10551073 : 0x30551073); // csrw tvec, a0
  }

  /** Not stopped by the SBI. */
  get isStarted(): boolean {
    return this.state !== layout.HART_STOPPED;
  }

  /** HART_STOPPED, HART_RUNNING or HART_WAITING. */
  get state(): number {
    return this.#memory.loadWord(this.base + layout.HART_STATE_WORD);
  }

  /** Bits of mip that are driven from outside, after the hart has looked. */
  pending(): number {
    this.execute(0x00000013); // nop
    return this.#memory.loadWord(this.base + layout.HART_MIP_WORD);
  }

  /** A load by the hart; null if it trapped. */
  load(gpa: number | bigint, size: number): bigint | null {
    this.setX(A0, BigInt(gpa));
    this.execute(0x00050583 | ((LOAD_FUNCT3[size] ?? 0) << 12)); // l? a1, 0(a0)
    return this.cause === NO_TRAP ? this.x(A1) : null;
  }

  /** A load that must not trap. */
  read(gpa: number, size = 4): number {
    const value = this.load(gpa, size);
    if (value === null) throw new Error(`the load of 0x${gpa.toString(16)} trapped`);
    return Number(value);
  }

  /** A store by the hart; false if it trapped. */
  store(gpa: number | bigint, value: number | bigint, size: number): boolean {
    this.setX(A0, BigInt(gpa));
    this.setX(A1, BigInt(value));
    this.execute(0x00b50023 | ((STORE_FUNCT3[size] ?? 0) << 12)); // s? a1, 0(a0)
    return this.cause === NO_TRAP;
  }

  /** A 32-bit store that must not trap. */
  put(gpa: number, value: number, size = 4): void {
    if (!this.store(gpa, value, size)) throw new Error(`the store to ${gpa} trapped`);
  }

  /** An SBI call. */
  call(
    extension: number,
    fid: number,
    ...args: (number | bigint)[]
  ): { error: number; value: bigint } {
    args.forEach((arg, index) => this.setX(A0 + index, BigInt(arg)));
    this.setX(A6, BigInt(fid));
    this.setX(A7, BigInt(extension));
    this.execute(ECALL, { keepsA2: true });
    return { error: Number(BigInt.asIntN(64, this.x(A0))), value: this.x(A1) };
  }

  /** Executes one instruction, and a jump to itself; returns what run() says. */
  execute(instruction: number, options: { keepsA2?: boolean } = {}): number {
    if (options.keepsA2 !== true) this.setX(A2, NO_TRAP);
    this.write(this.#code, [FENCE_I, instruction, SELF_JUMP]);
    this.#memory.view.setBigUint64(this.base + layout.HART_PC, BigInt(this.#code), true);
    this.#memory.markWritten(layout.RAM_BASE + this.#code - RAM, 16);
    return this.instance.run(4);
  }

  /** Cause of the last instruction's trap; 0xff if there was none. */
  get cause(): bigint {
    return this.x(A2);
  }

  x(index: number): bigint {
    return this.#memory.view.getBigUint64(this.base + layout.HART_X + 8 * index, true);
  }

  setX(index: number, value: bigint): void {
    this.#memory.view.setBigUint64(this.base + layout.HART_X + 8 * index, value, true);
  }

  get pc(): number {
    return Number(this.#memory.view.getBigUint64(this.base + layout.HART_PC, true));
  }

  /** Puts instructions into RAM. */
  write(gpa: number, instructions: number[]): void {
    instructions.forEach((instruction, index) =>
      this.#memory.view.setUint32(layout.RAM_BASE + gpa - RAM + 4 * index, instruction, true)
    );
  }

  get #handler(): number {
    return this.#code + 0x800;
  }

  get #isSupervisor(): boolean {
    return this.#memory.loadWord(layout.SBI_BUILT_IN) !== 0;
  }
}
