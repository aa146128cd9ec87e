/**
 * Loads hart.wasm: compile once, instantiate per hart, read the layout of the shared memory from
 * it.
 *
 * @module
 */

/// <reference path="./assembly/types.d.ts" />

import { HAS_WIDE_ARITHMETIC, RegionCompiler } from "./translator.ts";

/** Offsets and constants of the shared memory, under the names of assembly/hart/layout.ts. */
export type HartLayout = Readonly<typeof import("./assembly/hart/layout.ts")>;

/** Host functions that a hart needs. */
export interface HartImports {
  /** Monotonic time in ticks of 100 ns, the unit of mtime, as a whole number. */
  hostTicks: () => number;
}

/** What `run` returns: the budget is used up. */
export const RUN_SLICE_OVER = 0;
/**
 * The hart waits for an interrupt: sleep until HART_WAKE_WORD changes or nextTimerTicks() passed.
 */
export const RUN_WFI = 1;
/** STOP_WORD or EXIT_WORD is set. */
export const RUN_STOP = 2;
/** The hart is stopped (SBI HSM): sleep until HART_WAKE_WORD changes. */
export const RUN_STOPPED = 3;

/** The functions of one hart's instance. */
export interface HartExports {
  /** Ties the instance to hart `hartId` of the memory. First, before anything else. */
  bind(hartId: number): void;
  /** Reset state at `pc`: M mode, or S mode if SBI_BUILT_IN is set. Then set a0, a1 in memory. */
  reset(pc: bigint): void;
  /** Executes about `budget` instructions; returns RUN_*. */
  run(budget: number): number;
  /** Executes exactly `count` instructions in one slice, fewer if that ends before. */
  runExactly(count: number): number;
  /** Translates what is hot, and keeps at most so many regions and bytes of their modules. */
  startTranslator(regions: number, bytes: number): void;
  /** Whether translated code may use WebAssembly's wide arithmetic: as V8 understands it. */
  setWideArithmetic(isThere: boolean): void;
  /**
   * For tests: translates places where the interpreter was seen `samples` times, looking every
   * `period` instructions; `period` 0: nothing is translated, as at first.
   */
  setTranslator(period: number, samples: number): void;
  /**
   * Ticks (100 ns) until time alone may raise an interrupt; 2^64-1, which arrives as -1n, for
   * never.
   */
  nextTimerTicks(): bigint;
  /** HART_WAKE_WORD as `run` last read it, before it looked at interrupts: what to wait on. */
  wakeSeen: WebAssembly.Global;
}

const WASM_URL = new URL("./build/hart.wasm", import.meta.url);

/** Compiles the module that `deno task build` made. */
export async function compileHart(): Promise<WebAssembly.Module> {
  return await WebAssembly.compile(await Deno.readFile(WASM_URL));
}

/** The smallest memory that the module can be instantiated with, in pages of 64 KiB. */
const PROBE_PAGES = 16;
const MAXIMUM_PAGES = 65536;

/** Reads the layout out of the module, before there is a machine to instantiate it for. */
export function readHartLayout(module: WebAssembly.Module): HartLayout {
  const memory = new WebAssembly.Memory({
    initial: PROBE_PAGES,
    maximum: MAXIMUM_PAGES,
    shared: true,
  });
  const imports = importsOf(memory, { hostTicks: () => 0 }, new RegionCompiler(memory));
  const { exports } = new WebAssembly.Instance(module, imports);
  const layout: Record<string, number> = {};
  for (const [name, value] of Object.entries(exports)) {
    if (!(value instanceof WebAssembly.Global) || !/^[A-Z]/.test(name)) continue;
    // u32 arrives as a signed number, u64 as a bigint.
    layout[name] = typeof value.value === "bigint" ? Number(value.value) : value.value >>> 0;
  }
  return layout as unknown as HartLayout;
}

/** The shared memory of a machine with `ramBytes` of RAM, a multiple of 64 KiB. All zero. */
export function createMachineMemory(layout: HartLayout, ramBytes: number): WebAssembly.Memory {
  const pages = (layout.RAM_BASE + ramBytes) / 0x10000;
  if (!Number.isInteger(pages) || pages > MAXIMUM_PAGES) {
    throw new RangeError(`RAM of ${ramBytes} bytes is no multiple of 64 KiB or too large`);
  }
  return new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
}

/** An instance for one hart. */
export function instantiateHart(
  module: WebAssembly.Module,
  options: { memory: WebAssembly.Memory; hartId: number; imports: HartImports },
): HartExports {
  const { memory, imports } = options;
  const compiler = new RegionCompiler(memory);
  const { exports } = new WebAssembly.Instance(module, importsOf(memory, imports, compiler));
  compiler.attach(exports);
  const hart = exports as unknown as HartExports;
  hart.setWideArithmetic(HAS_WIDE_ARITHMETIC);
  hart.bind(options.hartId);
  return hart;
}

function importsOf(
  memory: WebAssembly.Memory,
  imports: HartImports,
  compiler: RegionCompiler,
): WebAssembly.Imports {
  const { installRegion, removeRegion } = compiler;
  return { env: { memory, hostTicks: imports.hostTicks, installRegion, removeRegion } };
}
