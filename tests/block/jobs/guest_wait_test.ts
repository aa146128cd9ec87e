import { assert } from "@std/assert";
import type { BlockBackend } from "../../../src/block/backend.ts";
import type { FaultInjectionNode } from "../../../src/block/filters/fault_injection.ts";
import { startBackup } from "../../../src/block/jobs/backup.ts";
import { startCommit } from "../../../src/block/jobs/commit.ts";
import type { Job } from "../../../src/block/jobs/job.ts";
import { startMirror } from "../../../src/block/jobs/mirror.ts";
import { startStream } from "../../../src/block/jobs/stream.ts";
import { createQcow2 } from "../../../src/block/qcow2/create.ts";
import { Qcow2Node } from "../../../src/block/qcow2/node.ts";
import { CLUSTER, fill, JobRig, MiB } from "./rig.ts";

const DISK_BYTES = 64 * MiB;
/** What each request of the job to the slow disk takes. */
const REQUEST_MS = 100;
const WRITES = 16;

interface Scene {
  guest: BlockBackend;
  job: Job;
}

/** A disk whose requests of one kind take long. */
async function slowDisk(
  rig: JobRig,
  name: string,
  { operation, value }: { operation: "read" | "write"; value: number | null },
): Promise<FaultInjectionNode> {
  const node = rig.faulty(name, DISK_BYTES);
  if (value !== null) await fill(node, 0, DISK_BYTES, value);
  node.addRule({ operations: [operation], delayMs: REQUEST_MS });
  return node;
}

async function overlay(rig: JobRig, backing: FaultInjectionNode): Promise<Qcow2Node> {
  const file = rig.memory("top.file", 0);
  await createQcow2(file, {
    sizeBytes: DISK_BYTES,
    backingFile: "base.img",
    backingFormat: "raw",
  });
  const top = await Qcow2Node.open({ nodeName: "top", file, backing, isReadOnly: false });
  rig.graph.add(top);
  return top;
}

/** A job that copies the guest's disk to a slow target. */
async function copyJob(
  rig: JobRig,
  kind: "backup" | "background" | "write-blocking",
): Promise<Scene> {
  const source = rig.memory("source", DISK_BYTES);
  await fill(source, 0, DISK_BYTES, 0x11);
  const target = await slowDisk(rig, "target", { operation: "write", value: null });
  const guest = rig.device(source);
  const options = { jobId: "job0", source, target, sync: "full" } as const;
  const job = kind === "backup"
    ? await startBackup(rig.layer, { ...options, maxWorkers: 1 })
    : await startMirror(rig.layer, { ...options, copyMode: kind, bufferBytes: MiB });
  return { guest, job };
}

/** A job that copies between a qcow2 image, which is the guest's, and its slow backing file. */
async function chainJob(rig: JobRig, kind: "commit" | "stream"): Promise<Scene> {
  const operation = kind === "commit" ? "write" : "read";
  const base = await slowDisk(rig, "base", { operation, value: 0x11 });
  const top = await overlay(rig, base);
  if (kind === "commit") await fill(top, 0, DISK_BYTES, 0x22);
  const guest = rig.device(top);
  const job = kind === "commit"
    ? await startCommit(rig.layer, { jobId: "job0", device: top, top })
    : await startStream(rig.layer, { jobId: "job0", device: top });
  return { guest, job };
}

/** Writes clusters all over the disk while the job runs; how long the slowest took. */
async function slowestWrite(rig: JobRig, { guest, job }: Scene): Promise<number> {
  let slowestMs = 0;
  for (let i = 0; i < WRITES; i++) {
    assert(job.status === "running", `${job.status} before the guest wrote`);
    const begin = rig.clock.now();
    let isDone = false;
    const cluster = i * 397 % (DISK_BYTES / CLUSTER);
    const write = fill(guest, cluster * CLUSTER, CLUSTER, 0x33).then(() => isDone = true);
    await rig.until(() => isDone);
    await write;
    slowestMs = Math.max(slowestMs, rig.clock.now() - begin);
    await rig.clock.advance(REQUEST_MS / 3);
  }
  return slowestMs;
}

for (const kind of ["backup", "background", "write-blocking", "commit", "stream"] as const) {
  Deno.test(`a guest's write waits for one chunk of a job at most: ${kind}`, async () => {
    const rig = new JobRig();
    const scene = kind === "commit" || kind === "stream"
      ? await chainJob(rig, kind)
      : await copyJob(rig, kind);
    // For the chunk that is being copied, and then for what the write itself has to copy.
    const slowestMs = await slowestWrite(rig, scene);
    assert(slowestMs <= 2 * REQUEST_MS + 2, `${slowestMs} ms`);
    await scene.job.cancel();
    await rig.conclude(scene.job);
    await rig.close();
  });
}
