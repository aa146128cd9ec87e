/**
 * Floating point against three oracles: JavaScript's own numbers, the slow reference of
 * float_reference.ts, and qemu-riscv64. Every case runs twice, with no flag accrued and with
 * inexact accrued, since the second takes other paths.
 */
import { assertEquals } from "@std/assert";
import { buildModules } from "../../src/wasm/build.ts";
import { needs } from "../support/clients.ts";
import { FloatCases, specialOperands } from "../support/float_cases.ts";
import { NX, type Operation, OPERATIONS, type Outcome } from "../support/float_reference.ts";

const ROUNDING_MODES = ["RNE", "RTZ", "RDN", "RUP", "RMM"];
const SEED = Number(Deno.env.get("OVIS_SEED") ?? 20261123);
const MISTAKES_SHOWN = 10;

type FloatFunction = (...operands: (bigint | number)[]) => bigint | number;

interface FloatModule {
  functions: Record<string, FloatFunction>;
  fflags: WebAssembly.Global;
  setFflags(value: number): void;
}

/** One operation on given operands in one mode. */
interface Case {
  operation: Operation;
  rm: number;
  operands: bigint[];
}

async function loadModule(): Promise<FloatModule> {
  await buildModules();
  const bytes = await Deno.readFile(new URL("../../src/wasm/build/float.wasm", import.meta.url));
  const memory = new WebAssembly.Memory({ initial: 16, maximum: 65536, shared: true });
  const { instance } = await WebAssembly.instantiate(bytes, { env: { memory } });
  const exports = instance.exports as unknown;
  return { ...(exports as FloatModule), functions: exports as Record<string, FloatFunction> };
}

const module = await loadModule();

/** Runs a case in the module with `accrued` flags set before. */
function run({ operation, rm, operands }: Case, accrued: number): Outcome {
  const f = module.functions[operation.name];
  if (f === undefined) throw new Error(`the module has no ${operation.name}`);
  const values = operands.map((bits, index) =>
    operation.operands[index] === "f32" ? Number(bits) : bits
  );
  module.setFflags(accrued);
  const result = operation.isRounded ? f(...values, rm) : f(...values);
  return {
    result: BigInt.asUintN(operation.resultBits, BigInt(result)),
    flags: module.fflags.value,
  };
}

function describe({ operation, rm, operands }: Case): string {
  const values = operands.map((bits) => `0x${bits.toString(16)}`).join(", ");
  return `${operation.name}(${values}) ${operation.isRounded ? ROUNDING_MODES[rm] : ""}`;
}

function describeOutcome({ result, flags }: Outcome): string {
  return `0x${result.toString(16)} flags ${flags.toString(2)}`;
}

/** Collects what differs from expectation; `finish` fails the test if anything does. */
class Verdict {
  count = 0;
  #mistakes: string[] = [];

  check(item: Case, expected: Outcome): void {
    for (const accrued of [0, NX]) {
      this.count++;
      const actual = run(item, accrued);
      const flags = expected.flags | accrued;
      if (actual.result === expected.result && actual.flags === flags) continue;
      const wanted = describeOutcome({ result: expected.result, flags });
      this.#mistakes.push(`${describe(item)}: ${describeOutcome(actual)}, expected ${wanted}`);
    }
  }

  finish(): void {
    if (this.#mistakes.length === 0) return;
    const shown = this.#mistakes.slice(0, MISTAKES_SHOWN).join("\n");
    throw new Error(`${this.#mistakes.length} of ${this.count} are wrong, seed ${SEED}:\n${shown}`);
  }
}

function modesOf(operation: Operation): number[] {
  return operation.isRounded ? [0, 1, 2, 3, 4] : [0];
}

/** All tuples of `lists`' elements. */
function* product<T>(lists: T[][]): Generator<T[]> {
  const [first, ...rest] = lists;
  if (first === undefined) yield [];
  else for (const head of first) for (const tail of product(rest)) yield [head, ...tail];
}

/** The special operands of an operation; fewer of them where there are three. */
function specialTuples(operation: Operation): Generator<bigint[]> {
  const isThreefold = operation.operands.length === 3;
  return product(
    operation.operands.map((type, index) =>
      specialOperands(type).filter((_, at) => !isThreefold || at % 5 === index || at % 13 === 0)
    ),
  );
}

Deno.test("doubles are JavaScript's when rounding to nearest even", () => {
  const cases = new FloatCases(SEED);
  const views = { number: new Float64Array(3), bits: new BigUint64Array(0) };
  views.bits = new BigUint64Array(views.number.buffer);
  const native: Record<string, (a: number, b: number) => number> = {
    f64Add: (a, b) => a + b,
    f64Sub: (a, b) => a - b,
    f64Mul: (a, b) => a * b,
    f64Div: (a, b) => a / b,
    f64Sqrt: (a) => Math.sqrt(a),
  };
  let count = 0;
  for (const operation of OPERATIONS) {
    const compute = native[operation.name];
    if (compute === undefined) continue;
    for (let index = 0; index < 20_000; index++) {
      const operands = cases.operands(operation);
      views.bits.set(operands);
      const number = compute(views.number[0] ?? 0, views.number[1] ?? 0);
      views.number[2] = number;
      const expected = Number.isNaN(number) ? 0x7ff8_0000_0000_0000n : views.bits[2];
      for (const accrued of [0, NX]) {
        const item = { operation, rm: 0, operands };
        assertEquals(run(item, accrued).result, expected, `${describe(item)}, seed ${SEED}`);
      }
      count++;
    }
  }
  assertEquals(count, 5 * 20_000);
});

Deno.test("singles are Math.fround's when rounding to nearest even", () => {
  const cases = new FloatCases(SEED);
  const views = { number: new Float32Array(3), bits: new Uint32Array(0) };
  views.bits = new Uint32Array(views.number.buffer);
  const native: Record<string, (a: number, b: number) => number> = {
    f32Add: (a, b) => Math.fround(a + b),
    f32Sub: (a, b) => Math.fround(a - b),
    f32Mul: (a, b) => Math.fround(a * b),
    f32Div: (a, b) => Math.fround(a / b),
    f32Sqrt: (a) => Math.fround(Math.sqrt(a)),
  };
  let count = 0;
  for (const operation of OPERATIONS) {
    const compute = native[operation.name];
    if (compute === undefined) continue;
    for (let index = 0; index < 20_000; index++) {
      const operands = cases.operands(operation);
      views.bits.set(operands.map(Number));
      const number = compute(views.number[0] ?? 0, views.number[1] ?? 0);
      views.number[2] = number;
      const expected = Number.isNaN(number) ? 0x7fc0_0000n : BigInt(views.bits[2] ?? 0);
      for (const accrued of [0, NX]) {
        const item = { operation, rm: 0, operands };
        assertEquals(run(item, accrued).result, expected, `${describe(item)}, seed ${SEED}`);
      }
      count++;
    }
  }
  assertEquals(count, 5 * 20_000);
});

Deno.test("every operation is the reference's on special numbers, in every mode", () => {
  const verdict = new Verdict();
  for (const operation of OPERATIONS) {
    for (const operands of specialTuples(operation)) {
      for (const rm of modesOf(operation)) {
        verdict.check({ operation, rm, operands }, operation.evaluate(operands, rm));
      }
    }
  }
  verdict.finish();
});

Deno.test("every operation is the reference's on random numbers, in every mode", () => {
  const cases = new FloatCases(SEED);
  const verdict = new Verdict();
  for (const operation of OPERATIONS) {
    for (let index = 0; index < 2000; index++) {
      const operands = cases.operands(operation);
      for (const rm of modesOf(operation)) {
        verdict.check({ operation, rm, operands }, operation.evaluate(operands, rm));
      }
    }
  }
  verdict.finish();
});

Deno.test("a fused operation with all of a long cancellation left is exact", () => {
  const fma = OPERATIONS.find((operation) => operation.name === "f64Fma");
  if (fma === undefined) throw new Error("no f64Fma");
  const verdict = new Verdict();
  // (1 + 2^-52) * (1 - 2^-52) - 1 = -2^-104, and neighbours of it.
  for (const a of [0x3ff0_0000_0000_0001n, 0x3ff8_0000_0000_0001n, 0x3fef_ffff_ffff_ffffn]) {
    for (const b of [0x3fef_ffff_ffff_fffen, 0x3fef_ffff_ffff_ffffn, 0x3ff0_0000_0000_0001n]) {
      for (const c of [0xbff0_0000_0000_0000n, 0xbfef_ffff_ffff_ffffn, 0xbff8_0000_0000_0001n]) {
        for (const rm of modesOf(fma)) {
          verdict.check({ operation: fma, rm, operands: [a, b, c] }, fma.evaluate([a, b, c], rm));
        }
      }
    }
  }
  verdict.finish();
});

/** Random cases of all operations and modes for a program that answers many at once. */
function randomCases(count: number): Case[] {
  const cases = new FloatCases(SEED + 1);
  return Array.from({ length: count }, (_, index): Case => {
    const operation = OPERATIONS[index % OPERATIONS.length];
    if (operation === undefined) throw new Error("no operations");
    const operands = cases.operands(operation);
    return { operation, rm: operation.isRounded ? cases.below(5) : 0, operands };
  });
}

/** Compiles float_oracle.c, has it do `items` under qemu-riscv64, returns its outcomes. */
async function askQemu(items: Case[]): Promise<Outcome[]> {
  const directory = await Deno.makeTempDir({ prefix: "ovis-float-" });
  try {
    const program = `${directory}/oracle`;
    const compiler = await new Deno.Command("riscv64-linux-gnu-gcc", {
      args: [
        ..."-O1 -static -nostdlib -ffreestanding -march=rv64gc -Wl,--no-relax -o".split(" "),
        program,
        new URL("float_oracle.c", import.meta.url).pathname,
      ],
    }).output();
    assertEquals(new TextDecoder().decode(compiler.stderr), "");
    const requests = new BigUint64Array(items.length * 5);
    items.forEach(({ operation, rm, operands }, index) => {
      requests.set([BigInt(OPERATIONS.indexOf(operation)), BigInt(rm), ...operands], index * 5);
    });
    const child = new Deno.Command("qemu-riscv64", {
      args: [program],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    const writer = child.stdin.getWriter();
    const sent = writer.write(new Uint8Array(requests.buffer)).then(() => writer.close());
    const { code, stdout } = await child.output();
    await sent;
    assertEquals(code, 0);
    const replies = new BigUint64Array(stdout.slice().buffer);
    assertEquals(replies.length, items.length * 2);
    return items.map(({ operation }, index) => ({
      result: BigInt.asUintN(operation.resultBits, replies[index * 2] ?? 0n),
      flags: Number(replies[index * 2 + 1]),
    }));
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

Deno.test({
  name: "every operation is qemu-riscv64's on 100,000 cases",
  ...needs("qemu-riscv64", "riscv64-linux-gnu-gcc"),
  fn: async () => {
    const items = randomCases(100_000);
    const outcomes = await askQemu(items);
    const verdict = new Verdict();
    items.forEach((item, index) => {
      const expected = outcomes[index];
      if (expected !== undefined) verdict.check(item, expected);
    });
    assertEquals(verdict.count, 2 * items.length);
    verdict.finish();
  },
});
