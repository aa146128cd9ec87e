/**
 * Random programs for a hart with nothing around it, rich in control flow: loops, calls, indirect
 * jumps, traps, CSRs, floating point in all rounding modes, accesses of every alignment that now
 * and then fault, code that is rewritten. They never end; whoever runs them counts instructions.
 *
 *   HANDLER        M mode: skips what trapped, or begins anew where nothing can be executed
 *   CODE           blocks of instructions, each of which ends by going to another one
 *   TABLE          addresses of blocks, for indirect jumps
 *   DATA           what loads and stores touch, through x31 (its middle) and x30 (anywhere in it)
 *   behind DATA    a page that may not be accessed, where there is paging
 *
 * x26..x31 are the program's own: x26 the end of a block that can be rewritten, x27 the table, x28
 * a mask, x29 a scratch.
 *
 * @module
 */

import * as asm from "./rv_asm.ts";
import { RandomInstructions } from "./random_instructions.ts";

/** Guest's distances from where the program is loaded. */
export const FLOW = {
  handler: 0,
  table: 0x1000,
  data: 0x2000,
  dataBytes: 0x2000,
  /** Inaccessible under paging. */
  hole: 0x4000,
  code: 0x5000,
  codeBytes: 0x5000,
  bytes: 0xa000,
} as const;

const POINTER = 31;
const CELL = 30;
const SCRATCH = 29;
const MASK = 28;
const TABLE = 27;
const PATCH = 26;
const BLOCKS = 24;
const TABLE_ENTRIES = 16;

/** Registers that the program starts with. */
export function startRegisters(base: bigint): Map<number, bigint> {
  return new Map([
    [POINTER, base + BigInt(FLOW.data) + 0x1000n],
    [CELL, base + BigInt(FLOW.data) + 0x800n],
    [MASK, BigInt(8 * (TABLE_ENTRIES - 1))],
    [TABLE, base + BigInt(FLOW.table)],
  ]);
}

/** A program and its start, for a load address. */
export function makeFlow(random: RandomInstructions, base: bigint): Uint8Array<ArrayBuffer> {
  const image = new Uint8Array(FLOW.bytes);
  const view = new DataView(image.buffer);
  putWords(view, FLOW.handler, makeHandler(base));
  const maker = new FlowMaker(random);
  const { code, starts, patches } = maker.make();
  code.forEach((half, index) => view.setUint16(FLOW.code + 2 * index, half, true));
  for (let entry = 0; entry < TABLE_ENTRIES; entry++) {
    const start = starts[random.below(starts.length)] ?? 0;
    view.setBigUint64(FLOW.table + 8 * entry, base + BigInt(FLOW.code + 2 * start), true);
  }
  // Where rewritten instructions are, for the program to find.
  patches.forEach((at, index) => {
    view.setBigUint64(FLOW.table + 0x800 + 8 * index, base + BigInt(FLOW.code + 2 * at), true);
  });
  for (let at = 0; at < FLOW.dataBytes; at += 8) {
    view.setBigUint64(FLOW.data + at, random.operand(), true);
  }
  return image;
}

/**
 * Cause 1 or 12 (nothing to be executed): on at CODE. Else mepc goes over the instruction, whose
 * length its lowest bits say, read with MPRV in the mode that trapped. x29 is the program's no
 * more.
 */
function makeHandler(base: bigint): number[] {
  const { csrr, csrw, addi, CSR } = asm;
  const code = base + BigInt(FLOW.code);
  const low = Number(BigInt.asIntN(12, code));
  const high = Number((code - BigInt(low)) >> 12n) & 0xfffff;
  return [
    csrw(CSR.mscratch, 5),
    csrr(SCRATCH, CSR.mcause),
    addi(SCRATCH, SCRATCH, -1),
    asm.beq(SCRATCH, 0, 4 * 14),
    addi(SCRATCH, SCRATCH, -11),
    asm.beq(SCRATCH, 0, 4 * 12),
    asm.lui(5, 0x20), // MPRV
    asm.csrrs(0, CSR.mstatus, 5),
    csrr(SCRATCH, CSR.mepc),
    asm.encodeI(0x03, 5, 5, SCRATCH, 0), // lhu
    asm.encodeI(0x13, 7, 5, 5, 3), // andi
    addi(5, 5, -3),
    addi(SCRATCH, SCRATCH, 2),
    asm.bne(5, 0, 8),
    addi(SCRATCH, SCRATCH, 2),
    csrw(CSR.mepc, SCRATCH),
    asm.jal(0, 4 * 5),
    asm.lui(SCRATCH, high),
    addi(SCRATCH, SCRATCH, low),
    asm.csrrw(0, CSR.mepc, SCRATCH),
    0x00000013,
    asm.lui(5, 0x20),
    asm.csrrc(0, CSR.mstatus, 5),
    csrr(5, CSR.mscratch),
    asm.mret,
  ];
}

function putWords(view: DataView, at: number, words: number[]): void {
  words.forEach((word, index) => view.setUint32(at + 4 * index, word, true));
}

/** Makes the blocks; jumps between them are filled in when all are there. */
class FlowMaker {
  readonly #code: number[] = [];
  readonly #starts: number[] = [];
  readonly #patches: number[] = [];
  readonly #jumps: { at: number; block: number; rd: number }[] = [];

  constructor(readonly random: RandomInstructions) {}

  make(): { code: number[]; starts: number[]; patches: number[] } {
    for (let block = 0; block < BLOCKS; block++) {
      this.#starts.push(this.#code.length);
      this.#putBody();
      this.#putEnd(block);
      // Blocks that lie far apart, over several pages, at all offsets.
      const gap = this.random.below(8) === 0 ? this.random.below(700) : this.random.below(3);
      for (let half = 0; half < gap; half++) this.#code.push(0);
    }
    for (const { at, block, rd } of this.#jumps) {
      const word = asm.jal(rd, 2 * ((this.#starts[block] ?? 0) - at));
      this.#code[at] = word & 0xffff;
      this.#code[at + 1] = word >>> 16;
    }
    return { code: this.#code, starts: this.#starts, patches: this.#patches };
  }

  #put(...words: number[]): void {
    for (const word of words) this.#code.push(word & 0xffff, word >>> 16);
  }

  #putBody(): void {
    const { random } = this;
    for (let count = random.below(14); count > 0; count--) {
      switch (random.below(16)) {
        case 0:
          this.#putCsr();
          break;
        case 1: // somewhere in the data, or just behind it
          this.#put(asm.addi(CELL, POINTER, random.below(2048) * 2 - 2047));
          break;
        case 2:
          this.#put(random.pick([asm.ecall, asm.ebreak, asm.fenceI, 0xffffffff, 0x0ff0000f]));
          break;
        default:
          random.putInstruction((...words) => this.#put(...words), this.#code);
      }
    }
    if (random.below(6) === 0) this.#putRewritten();
  }

  #putCsr(): void {
    const { random } = this;
    const csr = random.pick([0x001, 0x002, 0x003, 0xc02, 0xc00, 0x340, 0x140, 0x141]);
    const rd = random.below(PATCH);
    if (csr >= 0xc00) this.#put(asm.csrr(rd, csr));
    else this.#put(random.pick([asm.csrrw, asm.csrrs, asm.csrrc])(rd, csr, random.below(PATCH)));
  }

  /** An instruction that is rewritten, with FENCE.I after it. */
  #putRewritten(): void {
    const { random } = this;
    const index = this.#patches.length;
    if (index >= 32) return;
    const pointer = 0x800 + 8 * index - 0x800;
    this.#put(
      asm.addi(PATCH, TABLE, 0x7f8),
      asm.ld(PATCH, PATCH, 8 + pointer),
      // addi x5, x5, n with another n each time
      asm.lw(SCRATCH, PATCH, 0),
      asm.encodeI(0x37, 0, 0, 0, 0) | (25 << 7) | (0x100 << 12), // lui x25, 0x100
      asm.add(SCRATCH, SCRATCH, 25),
      asm.sw(SCRATCH, PATCH, 0),
      asm.fenceI,
    );
    this.#patches.push(this.#code.length);
    this.#put(asm.addi(5, 5, random.below(100)));
  }

  #putEnd(block: number): void {
    const { random } = this;
    // More often back than not, so that there are loops.
    const other = () => random.below(3) === 0 ? random.below(BLOCKS) : random.below(block + 1);
    const next = (block + 1) % BLOCKS;
    switch (random.below(8)) {
      case 0: // a call, and on behind it
        this.#jump(other(), random.pick([1, 1, 5]));
        this.#jump(next, 0);
        return;
      case 1: // a return, to wherever; the handler helps where nothing is
        this.#branch(next);
        this.#put(asm.jalr(0, 1, 0));
        return;
      case 2: // an indirect jump
        this.#put(
          asm.encodeR({ opcode: 0x33, funct3: 7, funct7: 0 }, SCRATCH, random.below(26), MASK),
          asm.add(SCRATCH, SCRATCH, TABLE),
          asm.ld(SCRATCH, SCRATCH, 0),
          asm.jalr(random.pick([0, 1]), SCRATCH, 0),
        );
        this.#jump(next, 0);
        return;
      case 3:
        this.#jump(other(), 0);
        return;
      default:
        this.#branch(other());
        this.#jump(next, 0);
    }
  }

  #branch(block: number): void {
    const { random } = this;
    const funct3 = random.pick([0, 1, 4, 5, 6, 7]);
    const [a, b] = [random.below(PATCH), random.below(PATCH)];
    // Around a jump, since blocks may be far from each other.
    this.#put(asm.encodeB(funct3 ^ 1, a, b, 8));
    this.#jump(block, 0);
  }

  /** A jump to a block, whose link goes to `rd`. */
  #jump(block: number, rd: number): void {
    this.#jumps.push({ at: this.#code.length, block, rd });
    this.#put(0);
  }
}
