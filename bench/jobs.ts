/**
 * Jobs beside QEMU's: how fast a disk is copied while nothing else happens. Both copy the same files
 * in the same folder, flushed at the end.
 *
 * @module
 */

import { BlockLayer } from "../src/block/block_layer.ts";
import { FileNode } from "../src/block/drivers/file.ts";
import { startBackup } from "../src/block/jobs/backup.ts";
import type { Job } from "../src/block/jobs/job.ts";
import { startMirror } from "../src/block/jobs/mirror.ts";
import { createQcow2 } from "../src/block/qcow2/create.ts";
import { Qcow2Node } from "../src/block/qcow2/node.ts";
import type { BlockNode } from "../src/block/node.ts";
import { compileKernels, Kernels } from "../src/wasm/kernels.ts";
import { findProgram } from "../tests/support/clients.ts";
import { findQemu10, QemuStorageDaemon } from "../tests/support/qemu_storage_daemon.ts";
import { medianOf, type Row } from "./table.ts";

const MiB = 1024 * 1024;
const DATA_BYTES = 256 * MiB;
const SPARSE_BYTES = 64 * 1024 * MiB;
const RUNS = 3;

/** A job: from a file to another one. */
interface Case {
  what: string;
  source: string;
  format: "raw" | "qcow2";
  isMirror: boolean;
}

/** Backups and a mirror. */
export async function benchJobs(): Promise<Row[]> {
  const folder = await Deno.makeTempDir({ prefix: "ovis-bench-jobs-" });
  const module = await compileKernels();
  const program = await findQemu10() ?? findProgram("qemu-storage-daemon");
  try {
    const [full, sparse] = [`${folder}/full.img`, `${folder}/sparse.img`];
    writeDisk(full, DATA_BYTES, 1);
    writeDisk(sparse, SPARSE_BYTES, 64);
    const cases: Case[] = [
      { what: "backup, raw to raw", source: full, format: "raw", isMirror: false },
      { what: "backup, raw to qcow2", source: full, format: "qcow2", isMirror: false },
      { what: "backup, sparse 64 GiB", source: sparse, format: "raw", isMirror: false },
      { what: "mirror, raw to raw", source: full, format: "raw", isMirror: true },
    ];
    const rows: Row[] = [];
    for (const each of cases) {
      const rate = (seconds: number): number => DATA_BYTES / MiB / seconds;
      const ours = rate(await medianOf(RUNS, () => runOurs(module, folder, each)));
      const peer = program === undefined
        ? undefined
        : rate(await medianOf(RUNS, () => runQemu(program, folder, each)));
      rows.push({
        what: each.what,
        unit: "MiB/s",
        ours,
        peer: { name: "QEMU", value: peer },
        aim: "",
        isSmallerBetter: false,
      });
    }
    return rows;
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** DATA_BYTES of data in `pieces` pieces, evenly over the disk. */
function writeDisk(path: string, sizeBytes: number, pieces: number): void {
  using file = Deno.openSync(path, { write: true, createNew: true });
  file.truncateSync(sizeBytes);
  const bytes = new Uint8Array(MiB);
  for (let i = 0; i < MiB; i += 65536) crypto.getRandomValues(bytes.subarray(i, i + 65536));
  for (let piece = 0; piece < pieces; piece++) {
    file.seekSync(piece * (sizeBytes / pieces), Deno.SeekMode.Start);
    for (let done = 0; done < DATA_BYTES / pieces; done += MiB) file.writeSync(bytes);
  }
}

/** Seconds from the start of the job to the target's flush. */
async function runOurs(
  module: WebAssembly.Module,
  folder: string,
  { source, format, isMirror }: Case,
): Promise<number> {
  const path = `${folder}/target`;
  const layer = new BlockLayer(new Kernels(module));
  try {
    const from = layer.graph.add(
      FileNode.open({ nodeName: "source", path: source, isReadOnly: false }),
    );
    const { sizeBytes } = from;
    const file = layer.graph.add(FileNode.open({
      nodeName: "file",
      path,
      isReadOnly: false,
      create: true,
      sizeBytes: format === "raw" ? sizeBytes : 0,
    }));
    let target: BlockNode = file;
    if (format === "qcow2") {
      await createQcow2(file, { sizeBytes });
      target = layer.graph.add(await Qcow2Node.open({ nodeName: "q", file, isReadOnly: false }));
    }
    const start = performance.now();
    const options = { jobId: "job0", source: from, target, sync: "full" as const };
    const job: Job = isMirror
      ? await startMirror(layer, options)
      : await startBackup(layer, options);
    if (isMirror) await whenReady(layer, job);
    else {
      await job.whenConcluded();
      await target.flush();
    }
    const seconds = (performance.now() - start) / 1000;
    if (isMirror) {
      await job.cancel();
      await job.whenConcluded();
    }
    return seconds;
  } finally {
    await layer.close();
    await Deno.remove(path);
  }
}

function whenReady(layer: BlockLayer, job: Job): Promise<void> {
  return new Promise((resolve) => {
    const stop = layer.jobs.onEvent(() => {
      if (!job.isReady) return;
      stop();
      resolve();
    });
  });
}

async function runQemu(
  program: string,
  folder: string,
  { source, format, isMirror }: Case,
): Promise<number> {
  const path = `${folder}/qemu-target`;
  await using daemon = await QemuStorageDaemon.start(program);
  const add = (nodeName: string, driver: string, filename: string): Promise<unknown> =>
    daemon.qmp("blockdev-add", {
      driver,
      "node-name": nodeName,
      discard: "unmap",
      file: { driver: "file", filename, discard: "unmap" },
    });
  const sizeBytes = Deno.statSync(source).size;
  try {
    using file = Deno.openSync(path, { write: true, createNew: true });
    if (format === "raw") file.truncateSync(sizeBytes);
    else {
      const node = { driver: "file", filename: path, "node-name": "new" };
      await daemon.qmp("blockdev-add", node);
      await daemon.qmp("blockdev-create", {
        "job-id": "create",
        options: { driver: "qcow2", file: "new", size: sizeBytes },
      });
      await until(daemon, ({ status }) => status === "concluded");
      await daemon.qmp("job-dismiss", { id: "create" });
      await daemon.qmp("blockdev-del", { "node-name": "new" });
    }
    await add("source", "raw", source);
    await add("target", format, path);
    const start = performance.now();
    await daemon.qmp(isMirror ? "blockdev-mirror" : "blockdev-backup", {
      "job-id": "job0",
      device: "source",
      target: "target",
      sync: "full",
      "auto-dismiss": false,
    });
    await until(daemon, ({ status }) => status === "concluded" || status === "ready");
    file.syncDataSync();
    return (performance.now() - start) / 1000;
  } finally {
    await Deno.remove(path);
  }
}

async function until(
  daemon: QemuStorageDaemon,
  isDone: (job: { status: string }) => boolean,
): Promise<void> {
  for (;;) {
    const [job] = await daemon.qmp("query-jobs") as { status: string }[];
    if (job !== undefined && isDone(job)) return;
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
