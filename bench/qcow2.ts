/**
 * Requests on qcow2 images, by `ovis img bench` and by `qemu-img bench`: the time is the one that
 * they print, the start of the program not included.
 *
 * @module
 */

import { compareTools, type ImageTool, imageTools, runTool } from "./images.ts";
import type { Row } from "./table.ts";

const MiB = 1024 * 1024;
const DISK_BYTES = 1024 * MiB;
const RUNS = 3;
/** From one 4 KiB request to the next: all over the disk, never twice to a page. */
const STRIDE = 4096 * 40503;

interface Load {
  what: string;
  /** Of each request. */
  bytes: number;
  count: number;
  step: number;
  isWrite: boolean;
  /** The image has nothing yet. */
  isAllocating: boolean;
  unit: "IOPS" | "MB/s";
}

const RANDOM = { bytes: 4096, step: STRIDE, unit: "IOPS" } as const;
const SEQUENTIAL = { bytes: MiB, step: MiB, count: DISK_BYTES / MiB, unit: "MB/s" } as const;

const LOADS: readonly Load[] = [
  { what: "4 KiB random read", ...RANDOM, count: 10000, isWrite: false, isAllocating: false },
  { what: "4 KiB random write", ...RANDOM, count: 10000, isWrite: true, isAllocating: false },
  {
    what: "4 KiB random write, allocating",
    ...RANDOM,
    count: 2000,
    isWrite: true,
    isAllocating: true,
  },
  { what: "sequential read", ...SEQUENTIAL, isWrite: false, isAllocating: false },
  { what: "sequential write", ...SEQUENTIAL, isWrite: true, isAllocating: false },
  { what: "sequential write, allocating", ...SEQUENTIAL, isWrite: true, isAllocating: true },
];

/** Every load with one request in flight and with 16. */
export async function benchQcow2(): Promise<Row[]> {
  const folder = await Deno.makeTempDir({ prefix: "ovis-bench-" });
  try {
    const full = `${folder}/full.qcow2`;
    const [ours] = imageTools();
    await runTool(ours, "create", "-q", "-f", "qcow2", full, String(DISK_BYTES));
    await runTool(ours, "bench", "-q", "-w", "-s", "1M", "-c", String(DISK_BYTES / MiB), full);
    const rows: Row[] = [];
    for (const load of LOADS) {
      for (const depth of [1, 16]) {
        rows.push(
          ...await compareTools({
            what: `qcow2: ${load.what}, depth ${depth}`,
            unit: load.unit,
            aim: "no slower",
            runs: RUNS,
            isSmallerBetter: false,
            measure: async (tool) => await rateOf(tool, load, { depth, folder, full }),
          }),
        );
      }
    }
    return rows;
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function rateOf(
  tool: ImageTool,
  load: Load,
  { depth, folder, full }: { depth: number; folder: string; full: string },
): Promise<number> {
  const empty = `${folder}/empty.qcow2`;
  if (load.isAllocating) {
    await runTool(tool, "create", "-q", "-f", "qcow2", empty, String(DISK_BYTES));
  }
  const output = await runTool(
    tool,
    "bench",
    ...(load.isWrite ? ["-w", "--pattern", "85"] : []),
    ...["-c", String(load.count), "-d", String(depth)],
    ...["-s", String(load.bytes), "-S", String(load.step)],
    load.isAllocating ? empty : full,
  );
  const seconds = Number(/completed in ([\d.]+) seconds/.exec(output)?.[1]);
  return load.unit === "IOPS" ? load.count / seconds : load.count * load.bytes / 1e6 / seconds;
}
