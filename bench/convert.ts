/**
 * Images copied by `ovis img convert` and by qemu-img: whole commands, from start to end.
 *
 * @module
 */

import { compareTools, type ImageTool, imageTools, runTool } from "./images.ts";
import type { Row } from "./table.ts";

const MiB = 1024 * 1024;
const GiB = 1024 * MiB;
/** Half of it noise, a quarter text, a quarter holes. */
const DISK_BYTES = 1 * GiB;
const SPARSE_BYTES = 64 * GiB;
const RUNS = 3;

/** Each way between raw, qcow2 and compressed qcow2, sparse disks, and what a command costs. */
export async function benchConvert(): Promise<Row[]> {
  const folder = await Deno.makeTempDir({ prefix: "ovis-bench-" });
  const path = (name: string): string => `${folder}/${name}`;
  try {
    const [ours] = imageTools();
    makeDisk(path("disk.raw"), DISK_BYTES, DISK_BYTES / MiB);
    makeDisk(path("sparse.raw"), SPARSE_BYTES, 64);
    const zstd = ["-c", "-O", "qcow2", "-o", "compression_type=zstd"];
    await runTool(ours, "convert", "-O", "qcow2", path("disk.raw"), path("disk.qcow2"));
    await runTool(ours, "convert", "-O", "qcow2", path("sparse.raw"), path("sparse.qcow2"));
    await runTool(ours, "convert", ...zstd, path("disk.raw"), path("zstd.qcow2"));
    const copy = async (tool: ImageTool, source: string, ...words: string[]): Promise<number> => {
      await Deno.remove(path("target")).catch(() => {});
      return await seconds(() => runTool(tool, "convert", ...words, path(source), path("target")));
    };
    const cases: [what: string, measure: (tool: ImageTool) => Promise<number>][] = [
      ["convert 1 GiB raw to qcow2", (tool) => copy(tool, "disk.raw", "-O", "qcow2")],
      ["convert 1 GiB qcow2 to raw", (tool) => copy(tool, "disk.qcow2", "-O", "raw")],
      ["convert 1 GiB raw to qcow2, zstd", (tool) => copy(tool, "disk.raw", ...zstd)],
      ["convert 1 GiB qcow2, zstd, to raw", (tool) => copy(tool, "zstd.qcow2", "-O", "raw")],
      ["convert sparse 64 GiB raw to qcow2", (tool) => copy(tool, "sparse.raw", "-O", "qcow2")],
      ["convert sparse 64 GiB qcow2 to raw", (tool) => copy(tool, "sparse.qcow2", "-O", "raw")],
      [
        "compare 1 GiB raw with qcow2",
        (tool) => seconds(() => runTool(tool, "compare", path("disk.raw"), path("disk.qcow2"))),
      ],
      ["info", (tool) => seconds(() => runTool(tool, "info", path("disk.qcow2")))],
    ];
    const rows: Row[] = [];
    for (const [what, measure] of cases) {
      const aim = what === "info" ? "" : "no slower";
      const bench = { what, unit: "s", aim, runs: RUNS, isSmallerBetter: true, measure };
      rows.push(...await compareTools(bench));
    }
    return rows;
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function seconds(action: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await action();
  return (performance.now() - start) / 1000;
}

/** A disk with `count` pieces of 1 MiB, evenly: noise, text, noise, nothing, and again. */
function makeDisk(path: string, sizeBytes: number, count: number): void {
  const noise = new Uint8Array(MiB);
  for (let at = 0; at < MiB; at += 65536) crypto.getRandomValues(noise.subarray(at, at + 65536));
  const words = Array.from({ length: 500 }, (_, index) => (index * 2654435761 >>> 0).toString(36));
  let text = "";
  for (let index = 0; text.length < MiB; index = (index * 31 + 7) % 499) text += words[index] + " ";
  const pieces = [noise, new TextEncoder().encode(text).subarray(0, MiB), noise, null];
  using file = Deno.openSync(path, { create: true, write: true, truncate: true });
  file.truncateSync(sizeBytes);
  for (let index = 0; index < count; index++) {
    const piece = pieces[index % pieces.length] ?? null;
    if (piece === null) continue;
    // No piece is like another one.
    new DataView(piece.buffer).setUint32(0, index);
    file.seekSync(index * Math.floor(sizeBytes / count), Deno.SeekMode.Start);
    file.writeSync(piece);
  }
}
