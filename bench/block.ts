/**
 * The block layer by itself: bitmaps beside a plain copy of as much memory, and a guest's 4 KiB
 * writes to a file with a fleecing beside the same without one.
 *
 * @module
 */

import { Bitmap } from "../src/block/bitmap.ts";
import { BlockBackend } from "../src/block/backend.ts";
import { FileNode } from "../src/block/drivers/file.ts";
import { Fleecing } from "../src/block/fleecing.ts";
import { BlockGraph } from "../src/block/graph.ts";
import { IoVector } from "../src/block/io_vector.ts";
import { PERM_CONSISTENT_READ, PERM_WRITE } from "../src/block/types.ts";
import { compileKernels, isZero, Kernels } from "../src/wasm/kernels.ts";
import { median, type Row } from "./table.ts";

const MiB = 1024 * 1024;
/** 1 TiB at 64 KiB. */
const BITMAP_BYTES = 2 * MiB;
const DISK_BYTES = 64 * MiB;
const CLUSTER = 65536;
const WRITES_PER_SWEEP = 1000;

/** All of it. */
export async function benchBlock(): Promise<Row[]> {
  const module = await compileKernels();
  return [
    ...benchBitmaps(new Kernels(module)),
    ...benchMerge(new Kernels(module)),
    ...await benchWrites(new Kernels(module)),
  ];
}

function benchBitmaps(kernels: Kernels): Row[] {
  const [a, b] = [kernels.allocate(BITMAP_BYTES), kernels.allocate(BITMAP_BYTES)];
  if (a === null || b === null) throw new Error("no memory for two bitmaps");
  const { functions } = kernels;
  const bits = BITMAP_BYTES * 8;
  const rate = (action: () => void): number => {
    const times: number[] = [];
    for (let i = 0; i < 100; i++) {
      const start = performance.now();
      action();
      times.push(performance.now() - start);
    }
    return BITMAP_BYTES / median(times) / 1e6;
  };
  const [first, second] = [kernels.bytes(a, BITMAP_BYTES), kernels.bytes(b, BITMAP_BYTES)];
  const copy = { name: "plain copy", value: rate(() => first.set(second)) };
  const zeroes = new Uint8Array(BITMAP_BYTES);
  functions.setRange(a, 0, bits);
  functions.clearRange(b, 0, bits);
  const row = (what: string, action: () => void): Row => ({
    what: `bitmap, ${what}`,
    unit: "GB/s",
    ours: rate(action),
    peer: copy,
    aim: "",
    isSmallerBetter: false,
  });
  return [
    row("next set, none", () => functions.nextSet(b, 0, bits)),
    row("next clear, none", () => functions.nextClear(a, 0, bits)),
    row("count", () => functions.count(a, 0, bits)),
    row("merge", () => functions.merge(a, b, BITMAP_BYTES)),
    row("set all but the ends", () => functions.setRange(a, 1, bits - 1)),
    row("16 bits to one, all set", () => functions.projectCoarser(b, a, bits, 4)),
    row("zero test of a buffer", () => isZero(zeroes)),
  ];
}

/** Dirty bitmaps of a disk of 1 TiB, as backups merge them. */
function benchMerge(kernels: Kernels): Row[] {
  const create = (granularity: number): Bitmap => {
    const bitmap = new Bitmap(kernels, { sizeBytes: 1024 * 1024 * MiB, granularity });
    for (let at = 0; at < bitmap.sizeBytes; at += 7 * MiB) bitmap.set(at, 1);
    return bitmap;
  };
  const [target, source, coarse] = [create(CLUSTER), create(CLUSTER), create(16 * CLUSTER)];
  const milliseconds = (action: () => void): number => {
    const times: number[] = [];
    for (let i = 0; i < 100; i++) {
      const start = performance.now();
      action();
      times.push(performance.now() - start);
    }
    return median(times);
  };
  const [into, from] = [new Uint8Array(BITMAP_BYTES), new Uint8Array(BITMAP_BYTES)];
  const copy = { name: "plain copy", value: milliseconds(() => into.set(from)) };
  const row = (what: string, aim: string, action: () => void): Row => ({
    what: `dirty bitmaps of 1 TiB at 64 KiB: ${what}`,
    unit: "ms",
    ours: milliseconds(action),
    peer: copy,
    aim,
    isSmallerBetter: true,
  });
  return [
    row("merged", "below 1 ms", () => target.merge(source)),
    row("merged into one of 1 MiB", "", () => coarse.merge(source)),
  ];
}

async function benchWrites(kernels: Kernels): Promise<Row[]> {
  const folder = await Deno.makeTempDir({ prefix: "ovis-bench-" });
  try {
    const plain = openDisk(`${folder}/plain`);
    const fleeced = openDisk(`${folder}/fleeced`);
    const fleecing = await startFleecing(fleeced, kernels, folder);
    const firstUs = sweep(fleeced.device, { stride: CLUSTER, count: DISK_BYTES / CLUSTER });
    const [plainUs, doneUs]: [number[], number[]] = [[], []];
    // In turns, so that both see the same machine.
    for (let i = 0; i < 200; i++) {
      plainUs.push(sweep(plain.device, { stride: 4096, count: WRITES_PER_SWEEP }));
      doneUs.push(sweep(fleeced.device, { stride: 4096, count: WRITES_PER_SWEEP }));
    }
    await fleecing.stop();
    for (const { graph, device } of [plain, fleeced]) {
      await device.release();
      await graph.close();
    }
    const none = { name: "no fleecing", value: median(plainUs) };
    const row = (what: string, ours: number, aim: string): Row => {
      return { what, unit: "us", ours, peer: none, aim, isSmallerBetter: true };
    };
    return [
      row("4 KiB guest write, first of a cluster", firstUs, ""),
      row("4 KiB guest write, cluster copied", median(doneUs), "0.95 of no fleecing"),
    ];
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

function openDisk(path: string): { graph: BlockGraph; device: BlockBackend } {
  const graph = new BlockGraph();
  graph.add(FileNode.open({
    nodeName: "disk",
    path,
    isReadOnly: false,
    create: true,
    sizeBytes: DISK_BYTES,
  }));
  const device = new BlockBackend(graph, {
    name: "device",
    nodeName: "disk",
    perm: PERM_CONSISTENT_READ | PERM_WRITE,
    shared: PERM_CONSISTENT_READ,
  });
  const data = IoVector.of(new Uint8Array(MiB).fill(1));
  for (let offset = 0; offset < DISK_BYTES; offset += MiB) device.write(offset, data);
  return { graph, device };
}

async function startFleecing(
  { graph, device }: { graph: BlockGraph; device: BlockBackend },
  kernels: Kernels,
  folder: string,
): Promise<Fleecing> {
  return await Fleecing.start(graph, {
    name: "bench",
    disks: [{ name: "disk", exportName: "view", backend: device, bitmap: null, target: null }],
    onCbwError: "break-snapshot",
    cbwTimeoutSeconds: 45,
    minClusterSizeBytes: 0,
    scratchMaxBytes: null,
    scratchDirectory: folder,
    kernels,
  });
}

/** Writes all over a disk; microseconds for each write. */
function sweep(device: BlockBackend, { stride, count }: { stride: number; count: number }): number {
  const page = IoVector.of(new Uint8Array(4096).fill(2));
  const start = performance.now();
  for (let i = 0; i < count; i++) {
    if (device.write((i * stride) % DISK_BYTES, page) instanceof Promise) {
      throw new Error("a write to a local file was not answered at once");
    }
  }
  return (performance.now() - start) * 1000 / count;
}
