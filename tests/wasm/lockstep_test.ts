/**
 * The translator beside the interpreter: random programs, in M mode and under paging, everything
 * translated; the architectural state is the same wherever the translator stops.
 */

import { assert, assertEquals } from "@std/assert";
import { FLOW, makeFlow, startRegisters } from "../support/random_flow.ts";
import { RandomInstructions } from "../support/random_instructions.ts";
import { HAS_WIDE_ARITHMETIC } from "../../src/wasm/translator.ts";
import { CSR } from "../support/rv_asm.ts";
import { layout, RAM, TestHart } from "../support/test_hart.ts";

const SEED = Number(Deno.env.get("OVIS_SEED") ?? 20261123);
const PROGRAMS = Number(Deno.env.get("OVIS_LOCKSTEP_PROGRAMS") ?? 16);
const STOPS = 300;
const WRITTEN_REGISTERS = 26;

/** Where a program lies, in RAM and for itself. */
const GPA = RAM + 0x10_0000n;
const TABLES = RAM + 0x20_0000n;
const VA = 0x4000_0000n;
const PAGE = 0x1000n;

const PTE_V = 1n;
const PTE_RWX = 0xen;
const PTE_U = 0x10n;
const PTE_AD = 0xc0n;

/** A hart with a program that is about to start. */
function start(image: Uint8Array, mode: Mode): TestHart {
  const hart = new TestHart();
  const pages = image.length / 4096;
  for (let page = 0; page < pages; page++) {
    const bytes = image.subarray(4096 * page, 4096 * (page + 1));
    hart.write(ramOf(page, mode), bytes);
  }
  for (const [index, value] of startRegisters(mode.base)) hart.setX(index, value);
  for (let index = 1; index < WRITTEN_REGISTERS; index++) hart.setX(index, BigInt(index * index));
  // The handler runs in M mode, where nothing is mapped.
  hart.setCsr(CSR.mtvec, ramOf(0, mode));
  hart.setCsr(CSR.mstatus, 1n << 13n);
  hart.setCsr(CSR.mcounteren, 7n);
  hart.setCsr(CSR.scounteren, 7n);
  if (mode.priv !== 3) map(hart, pages, mode);
  hart.setPriv(mode.priv);
  hart.setPc(mode.base + BigInt(FLOW.code));
  return hart;
}

interface Mode {
  name: string;
  priv: number;
  base: bigint;
}

const MODES: Mode[] = [
  { name: "M mode", priv: 3, base: GPA },
  { name: "S mode under paging", priv: 1, base: VA },
  { name: "U mode under paging", priv: 0, base: VA },
];

/** Under paging the pages lie in the reverse order. */
function ramOf(page: number, mode: Mode): bigint {
  return GPA + PAGE * BigInt(mode.priv === 3 ? page : 31 - page);
}

function map(hart: TestHart, pages: number, mode: Mode): void {
  const pointer = (gpa: bigint) => ((gpa >> 12n) << 10n) | PTE_V;
  hart.write64(TABLES + 8n * (VA >> 30n), pointer(TABLES + PAGE));
  hart.write64(TABLES + PAGE, pointer(TABLES + 2n * PAGE));
  for (let page = 0; page < pages; page++) {
    const isHole = page === FLOW.hole / 4096;
    const flags = isHole ? 0n : PTE_V | PTE_RWX | PTE_AD | (mode.priv === 0 ? PTE_U : 0n);
    const pte = ((ramOf(page, mode) >> 12n) << 10n) | flags;
    hart.write64(TABLES + 2n * PAGE + 8n * BigInt(page), pte);
  }
  // All of memory may be accessed below M.
  hart.setCsr(CSR.pmpaddr0, (1n << 54n) - 1n);
  hart.setCsr(CSR.pmpcfg0, 0x1fn);
  hart.setCsr(CSR.satp, (8n << 60n) | (TABLES >> 12n));
}

const RAM_STATE_BYTES = 0x40000;

/** Everything the guest can see of a hart, but memory: registers, pc, CSRs, by name. */
function stateOf(hart: TestHart): string[] {
  const words: string[] = [];
  const show = (name: string, offset: number) =>
    words.push(
      `${name} ${hart.view.getBigUint64(layout.HART_BASE + offset, true).toString(16)}`,
    );
  show("pc", layout.HART_PC);
  show("instret", layout.HART_INSTRET);
  words.push(`priv ${hart.priv()}`);
  for (let index = 0; index < 32; index++) show(`x${index}`, layout.HART_X + 8 * index);
  for (let index = 0; index < 32; index++) show(`f${index}`, layout.HART_F + 8 * index);
  for (let field = 0; field < 0x1c0; field += 8) {
    show(`csr+${field.toString(16)}`, layout.HART_CSR + field);
  }
  return words;
}

function memoryOf(hart: TestHart): Uint8Array {
  const start = layout.RAM_BASE + Number(GPA - RAM);
  return new Uint8Array(hart.view.buffer, start, RAM_STATE_BYTES);
}

function retired(hart: TestHart): number {
  return Number(hart.view.getBigUint64(layout.HART_BASE + layout.HART_INSTRET, true));
}

/**
 * Brings the interpreter to where the translator is. A trap retires nothing: at the same count one
 * of them may have taken it already.
 */
function follow(reference: TestHart, translated: TestHart): void {
  const end = retired(translated);
  if (end > retired(reference)) reference.hart(0).runExactly(end - retired(reference));
  for (let trap = 0; trap < 4 && reference.pc() !== translated.pc(); trap++) {
    reference.hart(0).runExactly(1);
  }
}

for (const mode of MODES) {
  Deno.test(`${PROGRAMS} random programs, ${mode.name}, in lockstep (seed ${SEED})`, () => {
    const random = new RandomInstructions(SEED, WRITTEN_REGISTERS);
    let [made, all] = [0n, 0n];
    for (let number = 0; number < PROGRAMS; number++) {
      const image = makeFlow(random, mode.base);
      const [translated, reference] = [start(image, mode), start(image, mode)];
      translated.hart(0).setTranslator(1, 1);
      translated.hart(0).setWideArithmetic(HAS_WIDE_ARITHMETIC && number % 2 === 0);
      for (let stop = 0; stop < STOPS; stop++) {
        const budget = 1 + random.below(random.pick([20, 200, 2000]));
        const where = `program ${number}, stop ${stop}, seed ${SEED}`;
        if (random.below(4) === 0) {
          const end = retired(translated) + budget + 4096;
          translated.hart(0).runExactly(budget + 4096);
          assert(retired(translated) <= end, `runExactly ran on, ${where}`);
        } else translated.run(budget);
        follow(reference, translated);
        const [ours, theirs] = [stateOf(translated), stateOf(reference)];
        const differences = ours.flatMap((word, index) =>
          word === theirs[index] ? [] : [`${word}, interpreter ${theirs[index]}`]
        );
        assertEquals(differences, [], where);
      }
      const [ours, theirs] = [memoryOf(translated), memoryOf(reference)];
      const at = ours.findIndex((byte, index) => byte !== theirs[index]);
      assertEquals(at, -1, `memory differs, program ${number}, seed ${SEED}`);
      made += translated.statistic("retired");
      all += BigInt(retired(translated));
    }
    assertEquals(made > all / 20n, true, `${made} of ${all} instructions were translated`);
  });
}
