/**
 * Real programs beside QEMU: Debian's own, on Debian's kernel, one hart, the same disk on both, and
 * what they say of themselves. CoreMark is built here from a checkout of its sources.
 *
 *   OVIS_BENCH_PROGRAMS=sqlite,python   only these
 *   OVIS_COREMARK=FOLDER                the checkout (github.com/eembc/coremark)
 *
 * Runs alternate between the two guests, so that a load of the host meets both. Below the rows
 * of each stands what the translator did meanwhile.
 *
 * @module
 */

import type { ConsoleDialogue } from "../src/cli/console_dialogue.ts";
import type { TranslatorFigures } from "../src/wasm/translator.ts";
import { debianFiles, testCache } from "../tests/support/debian.ts";
import { debianRoot, withProgram } from "../tests/support/debian_root.ts";
import { startOurs, startQemu } from "../tests/support/guests.ts";
import type { Service } from "../tests/support/service.ts";
import { median, print, type Row } from "./table.ts";

const MiB = 1024 * 1024;
const MEMORY_BYTES = 512 * MiB;
const RUNS = 3;

/** A figure that a program prints. */
interface Figure {
  what: string;
  unit: string;
  /** Its first group is the figure. */
  pattern: RegExp;
  isSmallerBetter: boolean;
  aim: string;
}

/** A command of the guest's shell, and what it says. */
interface Program {
  command: string;
  figures: Figure[];
}

const rate = (what: string, unit: string, pattern: RegExp, aim = "1"): Figure => ({
  what,
  unit,
  pattern,
  isSmallerBetter: false,
  aim,
});

/** Of a program that tells no time of its own. */
const seconds = (what: string, aim: string): Figure => ({
  what,
  unit: "s",
  pattern: /<(\S+) s>/,
  isSmallerBetter: true,
  aim,
});

/** Prints how long a command took. */
const timed = (command: string) =>
  `A=$(date +%s%N); ${command} > /dev/null; B=$(date +%s%N); ` +
  `gawk "BEGIN { printf \\"<%.3f s>\\\\n\\", ($B - $A) / 1e9 }"`;

const openssl = (what: string) => `openssl speed -elapsed -mr -seconds 1 -bytes 8192 ${what} 2>&1`;

/** Records, arrays, strings and calls, as pystone has them. */
const PYTHON_LOOP = `
import time
class Record:
    def __init__(self, kind, number, text):
        self.kind, self.number, self.text, self.next = kind, number, text, None
    def copy(self):
        twin = Record(self.kind, self.number, self.text)
        twin.next = self.next
        return twin
def step(record, table, index):
    table[index] = record.number + index
    table[index + 1] = table[index] * 2 % 1009
    other = record.copy()
    if other.text > "middle" and index % 3:
        other.number += table[index + 1]
    return other
def loop(count):
    table, record = [0] * 60, Record(1, 5, "first string")
    for index in range(count):
        record = step(record, table, index % 50)
        record.text = "a string" if record.number & 1 else "some string"
        record.number %= 10007
    return record.number
begin = time.perf_counter()
result = loop(60000)
print("loops", round(60000 / (time.perf_counter() - begin)), result)
`;

const SQL = "create table t(a integer primary key, b, c text); " +
  "with recursive n(x) as (select 1 union all select x + 1 from n where x < 20000) " +
  "insert into t select x, x * 7919 % 1009, hex(x * x) from n; create index i on t(b); " +
  "select b, count(*), max(c) from t group by b order by 2 desc, 1 limit 5; " +
  "select count(*) from t x join t y on x.b = y.b and x.a < y.a; " +
  "update t set c = c || b where b % 3 = 0; select sum(length(c)) from t where c like '%31%';";

const PROGRAMS: Record<string, Program> = {
  "7z": {
    command: "7z b 1 -mmt1 -md18 -mtime=0",
    figures: [
      rate("7z b, compressing", "KiB/s", /^18: +(\d+)/m),
      rate("7z b, decompressing", "KiB/s", /^18:.*\| +(\d+)/m),
    ],
  },
  openssl: {
    command: ["sha256", "aes-128-cbc", "rsa2048"].map(openssl).join("; "),
    figures: [
      rate("openssl speed sha256, 8 KiB", "B/s", /^\+F:\d+:sha256:([\d.]+)/m),
      rate("openssl speed aes-128-cbc, 8 KiB", "B/s", /^\+F:\d+:aes-128-cbc:([\d.]+)/m),
      rate("openssl speed rsa2048, signing", "1/s", /^\+F2:\d+:2048:([\d.]+)/m),
      rate("openssl speed rsa2048, verifying", "1/s", /^\+F2:\d+:2048:[\d.]+:([\d.]+)/m),
    ],
  },
  sysbench: {
    command: "sysbench cpu run --time=2",
    figures: [rate("sysbench cpu", "events/s", /events per second: +([\d.]+)/)],
  },
  python: {
    command: `echo ${btoa(PYTHON_LOOP)} | base64 -d > loop.py; python3 loop.py`,
    figures: [rate("python, records and calls", "loops/s", /loops (\d+)/)],
  },
  sqlite: {
    command: timed(`sqlite3 :memory: "${SQL}"`),
    figures: [seconds("sqlite, inserts, index, joins", "1")],
  },
  gcc: {
    command: `printf '#include <stdio.h>\\nint main(void) { return puts("") < 0; }\\n' > a.c; ` +
      timed("gcc -O2 a.c && ./a.out"),
    figures: [seconds("gcc, a small program", "")],
  },
  xz: {
    command: "seq 200000 > numbers; " + timed("xz -1 -c numbers"),
    figures: [seconds("xz -1, 1.3 MB", "")],
  },
  coremark: {
    command: "coremark",
    figures: [rate("CoreMark", "iterations/s", /Iterations\/Sec +: ([\d.]+)/, "1.6")],
  },
};

/** The programs that are wanted, in their order. Throws where one is unknown. */
function chosenPrograms(coremark: string | undefined): string[] {
  const wanted = Deno.env.get("OVIS_BENCH_PROGRAMS")?.split(",") ?? Object.keys(PROGRAMS);
  const unknown = wanted.filter((name) => !(name in PROGRAMS));
  if (unknown.length > 0) {
    throw new Error(`no program ${unknown}; there are ${Object.keys(PROGRAMS).join(", ")}`);
  }
  if (coremark !== undefined || !wanted.includes("coremark")) return wanted;
  print("  CoreMark is left out: OVIS_COREMARK must name a checkout of github.com/eembc/coremark");
  return wanted.filter((name) => name !== "coremark");
}

/** Each program's figures on both. */
export async function* benchPrograms(service: Service): AsyncGenerator<Row> {
  const coremark = Deno.env.get("OVIS_COREMARK");
  const programs = chosenPrograms(coremark);
  const root = await debianRoot(testCache());
  const folder = await Deno.makeTempDir({ dir: testCache(), prefix: "bench-" });
  try {
    const rootPath = coremark === undefined || !programs.includes("coremark")
      ? root
      : await withCoreMark(root, { sources: coremark, folder });
    const files = { ...await debianFiles(), cmdline: "console=ttyS0 quiet root=/dev/vda" };
    const options = { memoryBytes: MEMORY_BYTES, rootPath };
    await using ours = await startOurs(service, files, { ...options, accel: "translator" });
    await ours.waitFor(/<shell>/);
    await using qemu = startQemu(files, options);
    await qemu.waitFor(/<shell>/);
    const figures = async () => {
      const { translator } = await service.call<{ translator: TranslatorFigures }>(
        "GET",
        `/v1/vms/${ours.vm}`,
      );
      return translator;
    };
    print(`  boot to a shell\n    ${describe(null, await figures())}`);
    for (const name of programs) {
      const program = PROGRAMS[name];
      if (program === undefined) continue;
      const before = await figures();
      yield* await measure(program, { ours, qemu });
      print(`    ${describe(before, await figures())}`);
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** The rows of a program: medians of runs in turn. */
async function measure(
  program: Program,
  guests: { ours: ConsoleDialogue; qemu: ConsoleDialogue },
): Promise<Row[]> {
  const outputs: { ours: string[]; qemu: string[] } = { ours: [], qemu: [] };
  for (let run = 0; run < RUNS; run++) {
    for (const side of ["ours", "qemu"] as const) {
      outputs[side].push(await guests[side].shell(program.command));
    }
  }
  return program.figures.map(({ what, unit, pattern, isSmallerBetter, aim }) => {
    const of = (side: "ours" | "qemu") =>
      median(outputs[side].map((output) => {
        const figure = pattern.exec(output)?.[1];
        if (figure === undefined) throw new Error(`${what}: no figure in ${output}`);
        return Number(figure);
      }));
    const peer = { name: "qemu TCG", value: of("qemu") };
    return { what, unit, ours: of("ours"), peer, aim, isSmallerBetter };
  });
}

/** What the tiers did between two looks, or since the machine was opened. */
function describe(before: TranslatorFigures | null, after: TranslatorFigures): string {
  const change = (of: (figures: TranslatorFigures) => number) =>
    of(after) - (before === null ? 0 : of(before));
  const exits = Object.keys(after.exits) as (keyof TranslatorFigures["exits"])[];
  const tiers = Object.keys(after.timeMs) as (keyof TranslatorFigures["timeMs"])[];
  const exitCounts = exits
    .map((why) => ({ why, count: change((figures) => figures.exits[why]) }))
    .filter(({ count }) => count > 0)
    .sort((one, other) => other.count - one.count);
  return [
    `${short(change(({ instructions }) => instructions))} instructions translated`,
    `${short(change(({ interpreted }) => interpreted))} interpreted`,
    ...tiers.map((tier) => `${tier} ${change(({ timeMs }) => timeMs[tier])} ms`),
    `${change(({ made }) => made)} regions made, ${after.regions} there`,
    `${(after.moduleBytes / MiB).toFixed(1)} MB of modules`,
    `exits ${exitCounts.map(({ why, count }) => `${why} ${short(count)}`).join(" ")}`,
  ].join(", ");
}

function short(value: number): string {
  return value < 10_000 ? `${value}` : `${(value / 1e6).toFixed(value < 1e8 ? 2 : 0)} M`;
}

/** The root disk with CoreMark, built as its own makefile does for performance runs. */
async function withCoreMark(
  root: string,
  { sources, folder }: { sources: string; folder: string },
): Promise<string> {
  const path = `${folder}/coremark`;
  const parts = ["core_list_join", "core_main", "core_matrix", "core_state", "core_util"];
  const { success, stderr } = await new Deno.Command("riscv64-linux-gnu-gcc", {
    args: ["-O2", "-static", "-DPERFORMANCE_RUN=1", "-DITERATIONS=0", '-DFLAGS_STR="-O2 -static"']
      .concat([`-I${sources}`, `-I${sources}/posix`])
      .concat([...parts, "posix/core_portme"].map((part) => `${sources}/${part}.c`))
      .concat(["-o", path]),
  }).output();
  if (!success) throw new Error(new TextDecoder().decode(stderr));
  return withProgram(root, { name: "coremark", path, target: `${folder}/root.img` });
}
