/**
 * The processor beside QEMU's: kernels of integer and floating point, compiled here from
 * guests/cpu.c, run on the bare machine in S mode under paging, measured inside by its own clock.
 * Needs gcc-riscv64-linux-gnu and qemu-system-riscv64.
 *
 * @module
 */

import type { ConsoleDialogue } from "../src/cli/console_dialogue.ts";
import { startOurs, startQemu } from "../tests/support/guests.ts";
import type { Service } from "../tests/support/service.ts";
import type { Row } from "./table.ts";

const GUESTS = new URL("guests/", import.meta.url).pathname;
const MEMORY_BYTES = 128 * 1024 * 1024;
/** The kernels that compute with doubles. */
const FLOATING = new Set(["nbody", "linpack", "fft", "mandelbrot"]);
const COMPILER_OPTIONS = [
  "-O2",
  "-march=rv64gc",
  "-mabi=lp64d",
  "-mcmodel=medany",
  "-static",
  "-nostdlib",
  "-nostartfiles",
  "-ffreestanding",
  "-fno-pie",
  "-no-pie",
  "-fno-tree-loop-distribute-patterns",
  "-Wl,--build-id=none,--no-warn-rwx-segments",
];

/** What a guest said of one kernel. */
interface Result {
  us: number;
  checksum: string;
}

/** Each kernel's time, and geometric means. */
export async function benchCpu(service: Service): Promise<Row[]> {
  const folder = await Deno.makeTempDir({ prefix: "ovis-cpu-" });
  try {
    const kernel = `${folder}/cpu.elf`;
    await compile(kernel);
    const files = { kernel };
    await using ours = await startOurs(service, files, {
      memoryBytes: MEMORY_BYTES,
      accel: "translator",
    });
    const oursResults = await readResults(ours);
    await using qemu = startQemu(files, { memoryBytes: MEMORY_BYTES });
    return makeRows(oursResults, await readResults(qemu));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function compile(target: string): Promise<void> {
  const sources = [`${GUESTS}start.S`, `${GUESTS}cpu.c`];
  const { success, stderr } = await new Deno.Command("riscv64-linux-gnu-gcc", {
    args: [...COMPILER_OPTIONS, "-T", `${GUESTS}guest.ld`, ...sources, "-o", target],
  }).output();
  if (!success) throw new Error(new TextDecoder().decode(stderr));
}

async function readResults(guest: ConsoleDialogue): Promise<Map<string, Result>> {
  const results = new Map<string, Result>();
  for (;;) {
    const [, name = "", us, checksum] = await guest.waitFor(/^(\w+)(?: (\d+) (\d+))?\r?\n/m);
    if (name === "done") return results;
    if (checksum !== undefined) results.set(name, { us: Number(us), checksum });
  }
}

function makeRows(ours: Map<string, Result>, qemu: Map<string, Result>): Row[] {
  const rows: Row[] = [];
  for (const [name, result] of ours) {
    const peer = qemu.get(name);
    if (peer?.checksum !== result.checksum) throw new Error(`${name}: results differ`);
    rows.push({
      what: name,
      unit: "us",
      ours: result.us,
      peer: { name: "qemu TCG", value: peer.us },
      aim: FLOATING.has(name) ? "3" : "1",
      isSmallerBetter: true,
    });
  }
  const mean = (what: string, isFloating: boolean, aim: string): Row => {
    const some = rows.filter(({ what }) => FLOATING.has(what) === isFloating);
    const of = (value: (row: Row) => number | undefined) =>
      Math.exp(some.reduce((sum, row) => sum + Math.log(value(row) ?? NaN), 0) / some.length);
    return {
      what,
      unit: "us",
      ours: of((row) => row.ours),
      peer: { name: "qemu TCG", value: of((row) => row.peer?.value) },
      aim,
      isSmallerBetter: true,
    };
  };
  return [
    ...rows,
    mean("integer, geometric mean", false, "1.5"),
    mean("floating point, geometric mean", true, "3"),
  ];
}
