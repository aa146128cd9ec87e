/**
 * Runs one program of the official riscv-tests: a bare ELF file that tells its result by storing to
 * the word that its symbol `tohost` names (riscv-tests, env/p and env/v).
 *
 *   1                      passed
 *   (number << 1) | 1      test case `number` failed
 *   device 1, command 1    a character for the console: failed assertions of env/v
 *
 * Time is a function of the instructions executed, so a run is the same every time.
 *
 * @module
 */

import {
  createMachineMemory,
  type HartExports,
  type HartLayout,
  instantiateHart,
  readHartLayout,
  RUN_SLICE_OVER,
  RUN_WFI,
} from "../wasm/hart.ts";
import type { Accelerator } from "../wasm/translator.ts";
import { type ElfImage, readElf } from "./elf.ts";

/** How a test ended. `skipped`: the file is no such test. */
export interface RiscvTestResult {
  /** A test that does not end has failed. */
  outcome: "passed" | "failed" | "skipped";
  /** Why, if it did not pass. */
  detail: string;
  /** Executed, counted in the steps of the runner; 0 if it was skipped. */
  instructions: number;
}

const RAM_BYTES = 16 * 1024 * 1024;
/** A test that took as many has not ended: the longest of them takes some hundred thousand. */
const INSTRUCTIONS_MAX = 20_000_000;
/** Instructions between two looks at tohost. */
const STEP_INSTRUCTIONS = 5_000;
const INSTRUCTIONS_PER_TICK = 10;
const CONSOLE_MAX = 200;

/** Runs the ELF file `bytes`. The translator translates whatever is executed. */
export function runRiscvTest(
  module: WebAssembly.Module,
  bytes: Uint8Array,
  accel: Accelerator,
): RiscvTestResult {
  let image: ElfImage;
  let tohostGpa: number | null;
  try {
    image = readElf(bytes, "kernel");
    tohostGpa = findSymbol(bytes, "tohost");
  } catch (error) {
    const detail = error instanceof Error ? error.message : String(error);
    return { outcome: "skipped", detail, instructions: 0 };
  }
  if (tohostGpa === null) {
    return { outcome: "skipped", detail: "it has no symbol tohost", instructions: 0 };
  }
  const layout = readHartLayout(module);
  const ramOffset = tohostGpa - Number(layout.RAM_GPA);
  if (ramOffset < 0 || ramOffset + 8 > RAM_BYTES || !isInRam(image, layout)) {
    return { outcome: "skipped", detail: "it is linked for other addresses", instructions: 0 };
  }
  const test = new TestRun(module, layout, image, layout.RAM_BASE + ramOffset);
  if (accel === "translator") test.translate();
  return test.run();
}

function isInRam(image: ElfImage, layout: HartLayout): boolean {
  return image.segments.every(({ physicalAddress, memoryBytes }) => {
    const ramOffset = physicalAddress - Number(layout.RAM_GPA);
    return ramOffset >= 0 && ramOffset + memoryBytes <= RAM_BYTES;
  });
}

/** One hart with RAM, and a look at tohost every few thousand instructions. */
class TestRun {
  readonly #view: DataView;
  readonly #hart: HartExports;
  #instructions = 0;
  #skippedTicks = 0;
  #console = "";

  constructor(
    module: WebAssembly.Module,
    readonly layout: HartLayout,
    image: ElfImage,
    readonly tohostOffset: number,
  ) {
    const memory = createMachineMemory(layout, RAM_BYTES);
    this.#view = new DataView(memory.buffer);
    this.#view.setUint32(layout.HART_COUNT, 1, true);
    this.#view.setBigUint64(layout.RAM_BYTES, BigInt(RAM_BYTES), true);
    const ram = new Uint8Array(memory.buffer, layout.RAM_BASE);
    for (const { physicalAddress, bytes } of image.segments) {
      ram.set(bytes, physicalAddress - Number(layout.RAM_GPA));
    }
    const hostTicks = () =>
      Math.floor(this.#instructions / INSTRUCTIONS_PER_TICK) + this.#skippedTicks;
    this.#hart = instantiateHart(module, { memory, hartId: 0, imports: { hostTicks } });
    this.#hart.reset(BigInt(image.entry));
  }

  /** Turns the translator on, for every place that was executed once. */
  translate(): void {
    this.#hart.setTranslator(1, 1);
  }

  run(): RiscvTestResult {
    while (this.#instructions < INSTRUCTIONS_MAX) {
      const reason = this.#hart.run(STEP_INSTRUCTIONS);
      this.#instructions += STEP_INSTRUCTIONS;
      const tohost = this.#takeTohost();
      if (tohost !== null) return this.#end(tohost);
      if (reason === RUN_SLICE_OVER) continue;
      const ticks = BigInt.asUintN(64, this.#hart.nextTimerTicks());
      if (reason !== RUN_WFI || ticks > 0xffff_ffffn) {
        return this.#fail(`it waits for ever at ${this.#hex(this.layout.HART_PC)}`);
      }
      this.#skippedTicks += Number(ticks);
    }
    return this.#fail(`no end within ${INSTRUCTIONS_MAX} instructions`);
  }

  /** The result, once there is one; characters for the console are taken on the way. */
  #takeTohost(): bigint | null {
    const tohost = this.#view.getBigUint64(this.tohostOffset, true);
    if (tohost === 0n) return null;
    if (tohost >> 48n !== 0x0101n) return tohost;
    if (this.#console.length < CONSOLE_MAX) {
      this.#console += String.fromCharCode(Number(tohost & 0xffn));
    }
    this.#view.setBigUint64(this.tohostOffset, 0n, true);
    return null;
  }

  #end(tohost: bigint): RiscvTestResult {
    if (tohost === 1n) {
      return { outcome: "passed", detail: "", instructions: this.#retired() };
    }
    return this.#fail((tohost & 1n) === 1n ? `case ${tohost >> 1n}` : `tohost 0x${hex(tohost)}`);
  }

  #fail(reason: string): RiscvTestResult {
    const detail = this.#console === "" ? reason : `${reason}: ${this.#console.trim()}`;
    return { outcome: "failed", detail, instructions: this.#retired() };
  }

  #retired(): number {
    return Number(this.#view.getBigUint64(this.layout.HART_BASE + this.layout.HART_INSTRET, true));
  }

  #hex(field: number): string {
    return hex(this.#view.getBigUint64(this.layout.HART_BASE + field, true));
  }
}

function hex(value: bigint): string {
  return value.toString(16);
}

// ---- symbols ------------------------------------------------------------------------------------

const SHT_SYMTAB = 2;
const SECTION_HEADER_BYTES = 64;
const SYMBOL_BYTES = 24;

/** The value of a symbol of an ELF file that `readElf` has accepted, or null. */
function findSymbol(bytes: Uint8Array, name: string): number | null {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const wanted = new TextEncoder().encode(`${name}\0`);
  const table = readOffset(view, 40);
  const count = view.getUint16(60, true);
  if (table + count * SECTION_HEADER_BYTES > bytes.length) return null;
  for (let index = 0; index < count; index++) {
    const header = table + index * SECTION_HEADER_BYTES;
    if (view.getUint32(header + 4, true) !== SHT_SYMTAB) continue;
    const link = view.getUint32(header + 40, true);
    if (link >= count) continue;
    const strings = readOffset(view, table + link * SECTION_HEADER_BYTES + 24);
    const start = readOffset(view, header + 24);
    const end = Math.min(start + readOffset(view, header + 32), bytes.length);
    for (let symbol = start; symbol + SYMBOL_BYTES <= end; symbol += SYMBOL_BYTES) {
      const text = strings + view.getUint32(symbol, true);
      if (wanted.every((byte, at) => bytes[text + at] === byte)) {
        return readOffset(view, symbol + 8);
      }
    }
  }
  return null;
}

function readOffset(view: DataView, at: number): number {
  return view.getUint32(at + 4, true) * 0x1_0000_0000 + view.getUint32(at, true);
}
