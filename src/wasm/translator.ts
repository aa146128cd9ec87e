/**
 * The host's part of the translator: compiles the modules that a hart's instance writes into the
 * shared memory, and keeps their functions in that instance's table. It all happens on the hart's
 * thread, in the middle of `run`.
 *
 * @module
 */

/**
 * How a machine's harts execute: `interpreter` only, or with hot code translated to WebAssembly.
 * The guest can't tell, but for the speed.
 */
export type Accelerator = "interpreter" | "translator";

/** The names of all of them. */
export const ACCELERATORS: readonly Accelerator[] = ["interpreter", "translator"];

/** What the instance asks of the host: the imports that assembly/hart/board/env.ts declares. */
export interface TranslatorImports {
  /** Compiles a module, whose function goes into the table; microseconds, or -1. */
  installRegion: (address: number, length: number, index: number) => number;
  /** Takes the function out again. */
  removeRegion: (index: number) => void;
}

/** Functions that generated code calls, in the order of IMPORT_* (assembly/hart/translator). */
const HELPERS = [
  "readPage",
  "writePage",
  "multiplyHigh",
  "multiplyHighMixed",
  "multiplyHighUnsigned",
  "combineBytes",
  "reverseBytes",
  "floatOperation",
  "fusedOperation",
  "atomicOperation",
  "csrOperation",
  "findRegion",
  "leaveRegion",
];

/** (module (func (param i64 i64) (result i64 i64) local.get 0 local.get 1 i64.mul_wide_u)) */
// deno-fmt-ignore: a section a line
const WIDE_MULTIPLICATION = Uint8Array.of(
  0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00,
  0x01, 0x08, 0x01, 0x60, 0x02, 0x7e, 0x7e, 0x02, 0x7e, 0x7e,
  0x03, 0x02, 0x01, 0x00,
  0x0a, 0x0a, 0x01, 0x08, 0x00, 0x20, 0x00, 0x20, 0x01, 0xfc, 0x16, 0x0b,
);

/** Whether V8 was started with wide arithmetic, which is an experiment of its. */
export const HAS_WIDE_ARITHMETIC: boolean = WebAssembly.validate(WIDE_MULTIPLICATION);

/** By how much the table grows, so that it need not grow for each region. */
const TABLE_STEP = 256;

/** Compiles regions for one instance, which it is tied to once there is one. */
export class RegionCompiler implements TranslatorImports {
  #table: WebAssembly.Table | null = null;
  #functions: Record<string, WebAssembly.ExportValue> = {};

  /** For an instance over this memory. */
  constructor(readonly memory: WebAssembly.Memory) {}

  /** Ties the compiler to the instance that it was made for. */
  attach(exports: WebAssembly.Exports): void {
    const { table } = exports;
    if (!(table instanceof WebAssembly.Table)) throw new TypeError("the module has no table");
    this.#table = table;
    HELPERS.forEach((name, index) => {
      const helper = exports[name];
      if (helper === undefined) throw new TypeError(`the module has no ${name}`);
      this.#functions[String.fromCharCode(97 + index)] = helper;
    });
  }

  /** See TranslatorImports. A module that V8 refuses is a bug of ours: it is thrown. */
  installRegion = (address: number, length: number, index: number): number => {
    const table = this.#table;
    if (table === null) return -1;
    const begin = performance.now();
    if (index >= table.length) table.grow(index + TABLE_STEP - table.length);
    // A view on shared memory, which the types of the platform do not allow and Deno does.
    const bytes = new Uint8Array(this.memory.buffer, address >>> 0, length);
    const module = new WebAssembly.Module(bytes as Uint8Array<ArrayBuffer>);
    new WebAssembly.Instance(module, {
      e: { m: this.memory, t: table, i: index },
      f: this.#functions,
    });
    return Math.round((performance.now() - begin) * 1000);
  };

  /** See TranslatorImports. */
  removeRegion = (index: number): void => {
    if (this.#table !== null && index < this.#table.length) this.#table.set(index, null);
  };
}

/** A figure of a hart: see STAT_* (assembly/hart/translator/statistics.ts) for what each says. */
export type TranslatorStatistic =
  | "regions"
  | "bytes"
  | "made"
  | "dropped"
  | "instructionsMade"
  | "compileUs"
  | "retired"
  | "entries"
  | "steps"
  | "jumps"
  | "budgets"
  | "refused"
  | "failed"
  | "executed"
  | "runTicks"
  | "translatedTicks"
  | "makeTicks"
  | "stepMemory"
  | "stepCsr"
  | "stepFloat"
  | "stepAtomic"
  | "stepTrap"
  | "stepReturn"
  | "stepWait"
  | "stepFence"
  | "hops";

/** In the order of STAT_*. */
const STATISTICS: readonly TranslatorStatistic[] = [
  "regions",
  "bytes",
  "made",
  "dropped",
  "instructionsMade",
  "compileUs",
  "retired",
  "entries",
  "steps",
  "jumps",
  "budgets",
  "refused",
  "failed",
  "executed",
  "runTicks",
  "translatedTicks",
  "makeTicks",
  "stepMemory",
  "stepCsr",
  "stepFloat",
  "stepAtomic",
  "stepTrap",
  "stepReturn",
  "stepWait",
  "stepFence",
  "hops",
];

/** A figure of a hart's translator, out of the machine's memory. */
export function readStatistic(
  view: DataView,
  layout: { HART_BASE: number; HART_STRIDE: number; HART_STATISTICS: number },
  which: { hartId: number; name: TranslatorStatistic },
): bigint {
  const hart = layout.HART_BASE + which.hartId * layout.HART_STRIDE;
  return view.getBigUint64(
    hart + layout.HART_STATISTICS + 8 * STATISTICS.indexOf(which.name),
    true,
  );
}

/** What the tiers of a machine's harts did, since the machine was opened. */
export interface TranslatorFigures {
  /** Regions that exist. */
  regions: number;
  /** Of their modules; the machine code that is made of them is some times as much. */
  moduleBytes: number;
  /** Regions made, made anew ones included. */
  made: number;
  /** Regions dropped: code that changed, was made anew, or had no room. */
  dropped: number;
  /** Time to make modules of them; compiling goes on in the background. */
  compileMs: number;
  /** Instructions that were executed translated. */
  instructions: number;
  /** Instructions that the interpreter executed. */
  interpreted: number;
  /** Where the harts' time went: into interpreting, translated code, and making that. */
  timeMs: { interpreter: number; translated: number; making: number };
  /** How often control went from region to region. */
  hops: number;
  /** How often translated code was left: why. */
  exits: {
    jump: number;
    budget: number;
    memory: number;
    csr: number;
    float: number;
    atomic: number;
    trap: number;
    return: number;
    wait: number;
    fence: number;
    other: number;
  };
}

/** Host ticks are 100 ns. */
const TICKS_PER_MS = 10_000;

/** The sum over all harts of a machine. */
export function readTranslatorFigures(
  view: DataView,
  layout: { HART_BASE: number; HART_STRIDE: number; HART_STATISTICS: number },
  hartCount: number,
): TranslatorFigures {
  const sum = (name: TranslatorStatistic) => {
    let total = 0;
    for (let hartId = 0; hartId < hartCount; hartId++) {
      total += Number(readStatistic(view, layout, { hartId, name }));
    }
    return total;
  };
  const ms = (ticks: number) => Math.round(ticks / TICKS_PER_MS);
  const [run, making] = [sum("runTicks"), sum("makeTicks")];
  // Told from some entries, it may be a little too much.
  const translated = Math.max(0, Math.min(sum("translatedTicks"), run - making));
  const steps = {
    memory: sum("stepMemory"),
    csr: sum("stepCsr"),
    float: sum("stepFloat"),
    atomic: sum("stepAtomic"),
    trap: sum("stepTrap"),
    return: sum("stepReturn"),
    wait: sum("stepWait"),
    fence: sum("stepFence"),
  };
  const known = Object.values(steps).reduce((total, count) => total + count, 0);
  const instructions = sum("retired");
  return {
    regions: sum("regions"),
    moduleBytes: sum("bytes"),
    made: sum("made"),
    dropped: sum("dropped"),
    compileMs: Math.round(sum("compileUs") / 1000),
    instructions,
    hops: sum("hops"),
    // The harts go on while they are read.
    interpreted: Math.max(0, sum("executed") - instructions),
    timeMs: {
      interpreter: ms(Math.max(0, run - translated - making)),
      translated: ms(translated),
      making: ms(making),
    },
    exits: {
      jump: sum("jumps"),
      budget: sum("budgets"),
      ...steps,
      other: Math.max(0, sum("steps") - known),
    },
  };
}
