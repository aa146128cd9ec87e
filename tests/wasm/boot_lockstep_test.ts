/**
 * A boot of Debian's kernel, translator beside interpreter: the same registers and CSRs every few
 * thousand instructions, the same memory at the end. OVIS_LOCKSTEP_MILLIONS says how far; by
 * default it is the kernel's first steps. Time stands still while the harts run.
 */

import { assertEquals } from "@std/assert";
import { GuestMemory } from "../../src/machine/guest_memory.ts";
import { loadMachine } from "../../src/machine/loader.ts";
import {
  createMachineMemory,
  type HartExports,
  instantiateHart,
  RUN_WFI,
} from "../../src/wasm/hart.ts";
import { readStatistic } from "../../src/wasm/translator.ts";
import { module } from "../support/bare_hart.ts";
import { findDebian } from "../support/debian.ts";
import { layout } from "../support/test_hart.ts";

const INSTRUCTIONS = 1_000_000 * Number(Deno.env.get("OVIS_LOCKSTEP_MILLIONS") ?? 25);
const RAM_BYTES = 256 * 1024 * 1024;
/** Never more than a slice. */
const STEP_INSTRUCTIONS = 20_000;
const INSTRUCTIONS_PER_TICK = 20;

/** A hart with a loaded machine around it, whose time is the test's. */
class BootedHart {
  readonly hart: HartExports;
  readonly words: BigUint64Array;
  ticks = 0;
  #console = "";

  private constructor(readonly memory: GuestMemory) {
    this.hart = instantiateHart(module, {
      memory: memory.memory,
      hartId: 0,
      imports: { hostTicks: () => this.ticks },
    });
    this.words = new BigUint64Array(memory.memory.buffer);
  }

  static async load(files: { kernel: string; initrd: string }): Promise<BootedHart> {
    const memory = new GuestMemory(createMachineMemory(layout, RAM_BYTES), layout);
    await loadMachine(memory, {
      module,
      hartCount: 1,
      kernel: await Deno.readFile(files.kernel),
      initrd: await Deno.readFile(files.initrd),
      firmware: null,
      cmdline: "console=ttyS0 earlycon=sbi",
      virtioSlots: [],
    });
    memory.view.setBigUint64(layout.MTIME_ORIGIN, 0n, true);
    memory.view.setBigUint64(layout.RTC_EPOCH_NS, 0n, true);
    return new BootedHart(memory);
  }

  /** Another one, with a memory of its own: what is loaded has random numbers in it. */
  copy(): BootedHart {
    const memory = new GuestMemory(createMachineMemory(layout, RAM_BYTES), layout);
    const { bytes } = this.memory;
    memory.bytes.set(bytes.subarray(0, layout.CODE_FLAGS));
    memory.bytes.set(bytes.subarray(layout.RAM_BASE), layout.RAM_BASE);
    return new BootedHart(memory);
  }

  word(offset: number): bigint {
    return this.words[(layout.HART_BASE + offset) / 8] ?? 0n;
  }

  get retired(): number {
    return Number(this.word(layout.HART_INSTRET));
  }

  get pc(): bigint {
    return this.word(layout.HART_PC);
  }

  /** x, f, pc, privilege, the reservation; CSRs. */
  state(): BigUint64Array[] {
    const part = (from: number, to: number) =>
      this.words.subarray((layout.HART_BASE + from) / 8, (layout.HART_BASE + to) / 8);
    return [part(layout.HART_X, 0x328), part(layout.HART_CSR, 0x600)];
  }

  /** What the console said so far. */
  console(): string {
    const { memory } = this;
    const head = memory.loadWord(layout.CONSOLE_OUT_HEAD_WORD);
    for (let at = memory.loadWord(layout.CONSOLE_OUT_TAIL_WORD); at !== head; at = (at + 1) >>> 0) {
      const index = at & (layout.CONSOLE_RING_BYTES - 1);
      this.#console += String.fromCharCode(memory.bytes[layout.CONSOLE_OUT_RING + index] ?? 0);
    }
    memory.storeWord(layout.CONSOLE_OUT_TAIL_WORD, head);
    return this.#console;
  }
}

/** Brings the interpreter to where the translator is; see lockstep_test.ts. */
function follow(reference: BootedHart, translated: BootedHart): void {
  const end = translated.retired;
  for (let slice = 0; slice < STEP_INSTRUCTIONS && reference.retired < end; slice++) {
    reference.hart.runExactly(end - reference.retired);
  }
  for (let trap = 0; trap < 4 && reference.pc !== translated.pc; trap++) {
    reference.hart.runExactly(1);
  }
}

function differences(a: BootedHart, b: BootedHart): string[] {
  const [ours, theirs] = [a.state(), b.state()];
  return ours.flatMap((part, which) => {
    const other = theirs[which] ?? new BigUint64Array();
    return [...part].flatMap((word, index) =>
      word === other[index]
        ? []
        : [`${which}+${8 * index}: ${word.toString(16)}, interpreter ${other[index]?.toString(16)}`]
    );
  });
}

function isSame(a: BootedHart, b: BootedHart): boolean {
  const [ours, theirs] = [a.state(), b.state()];
  return ours.every((part, which) => part.every((word, index) => word === theirs[which]?.[index]));
}

const { files, ignore } = await findDebian();

Deno.test({
  name: `a boot in lockstep, ${INSTRUCTIONS / 1e6} million instructions`,
  ignore,
  fn: async () => {
    const translated = await BootedHart.load(files);
    const reference = translated.copy();
    translated.hart.setTranslator(200, 1);
    let skipped = 0;
    while (translated.retired < INSTRUCTIONS) {
      const ticks = Math.floor(translated.retired / INSTRUCTIONS_PER_TICK) + skipped;
      translated.ticks = ticks;
      reference.ticks = ticks;
      const reason = translated.hart.run(STEP_INSTRUCTIONS);
      follow(reference, translated);
      if (!isSame(translated, reference)) {
        assertEquals(differences(translated, reference), [], `at ${translated.retired}`);
      }
      assertEquals(translated.console(), reference.console());
      if (reason !== RUN_WFI) continue;
      // Asleep: time goes on to the next timer.
      reference.hart.run(1);
      skipped += Number(BigInt.asUintN(64, translated.hart.nextTimerTicks()) & 0xffff_ffffn);
    }
    const first = layout.RAM_BASE / 8;
    const ram = translated.words.subarray(first);
    const other = reference.words.subarray(first);
    const at = ram.findIndex((word, index) => word !== other[index]);
    assertEquals(at, -1, `memory differs at RAM + 0x${(8 * at).toString(16)}`);
    const which = { hartId: 0, name: "retired" } as const;
    const share = Number(readStatistic(translated.memory.view, layout, which)) / INSTRUCTIONS;
    // deno-lint-ignore no-console
    if (INSTRUCTIONS > 1e8) console.log(`${Math.round(100 * share)} % translated`);
  },
});
