/** Jobs: their states, events and texts. @module */

import type { Json, QmpSide, Script } from "../support/qmp_sides.ts";
import { add, makeFile, showNodes } from "./scripts_blockdev.ts";
import { connect, startNbd } from "./scripts_export.ts";

const MiB = 1024 * 1024;

/** A disk `d` of 4 MiB with data in its first MiB, and a target `t`, both raw. */
async function makeDisk(side: QmpSide, targetBytes = 4 * MiB): Promise<void> {
  const disk = new Uint8Array(4 * MiB);
  disk.fill(0x11, 0, MiB);
  await Deno.writeFile(side.path("disk"), disk);
  await add(side, {
    driver: "raw",
    "node-name": "d",
    file: { driver: "file", "node-name": "df", filename: side.path("disk") },
  });
  await add(side, {
    driver: "raw",
    "node-name": "t",
    file: {
      driver: "file",
      "node-name": "tf",
      filename: await makeFile(side, "target", targetBytes),
    },
  });
}

/** Waits until a job is in a state. */
export async function becomes(side: QmpSide, id: string, status: string): Promise<void> {
  // A job of QEMU's whose arguments were found wrong also became "null", from "created".
  if (status === "null") await side.until("JOB_STATUS_CHANGE", { id, status: "concluded" });
  await side.until("JOB_STATUS_CHANGE", { id, status });
}

/** Writes through an export of a node. */
async function write(side: QmpSide, node: string, ...ranges: [number, number][]): Promise<void> {
  await side.run("block-export-add", { type: "nbd", id: "w", "node-name": node, writable: true });
  const client = await connect(side, node);
  for (const [offset, length] of ranges) {
    await client.write(offset, new Uint8Array(length).fill(0x22));
  }
  await client.close();
  await side.run("block-export-del", { id: "w", mode: "hard" });
}

/** The busy flag of query-block-jobs tells of a moment. */
async function showJobs(side: QmpSide): Promise<void> {
  await side.run("query-jobs");
  await side.run("query-block-jobs");
  for (const job of (side.answers.at(-1) as { return: Json[] }).return) delete job.busy;
}

const manual = { "auto-finalize": false, "auto-dismiss": false };

/** See the module's head. */
export const jobScripts: Record<string, Script> = {
  "backup: arguments": async (side) => {
    await makeDisk(side);
    await add(side, { driver: "null-co", "node-name": "small", size: MiB });
    const backup = (args: Json) =>
      side.run("blockdev-backup", {
        "job-id": "j",
        device: "d",
        target: "t",
        sync: "full",
        ...args,
      });
    await side.run("blockdev-backup", { device: "d", target: "t", sync: "full" });
    await backup({ device: "gone" });
    await backup({ target: "gone" });
    await backup({ target: "d" });
    await backup({ target: "small" });
    await backup({ sync: "some" });
    await backup({ sync: "top" });
    await backup({ sync: "incremental" });
    await backup({ sync: "bitmap" });
    await backup({ sync: "bitmap", bitmap: "gone" });
    await backup({ sync: "bitmap", bitmap: "gone", "bitmap-mode": "never" });
    await backup({ bitmap: "gone" });
    await backup({ "bitmap-mode": "never" });
    await backup({ sync: "none", bitmap: "gone", "bitmap-mode": "never" });
    await backup({ "job-id": "1" });
    await backup({ "job-id": "" });
    await backup({ speed: -1 });
    await backup({ "x-perf": { "max-workers": 0 } });
    await backup({ "x-perf": { "max-chunk": -1 } });
    await backup({ "x-perf": { "min-cluster-size": 1000 } });
    await backup({ "filter-node-name": "d" });
    await side.run("query-jobs");
  },
  "backup: full, finalized and dismissed by hand": async (side) => {
    await makeDisk(side);
    await side.run("blockdev-backup", {
      "job-id": "j",
      device: "d",
      target: "t",
      sync: "full",
      ...manual,
    });
    await becomes(side, "j", "pending");
    await showJobs(side);
    await side.run("job-dismiss", { id: "j" });
    await side.run("job-complete", { id: "j" });
    await side.run("job-resume", { id: "j" });
    await side.run("block-job-set-speed", { device: "j", speed: 5 });
    await side.run("job-finalize", { id: "j" });
    await becomes(side, "j", "concluded");
    await showJobs(side);
    await side.run("job-cancel", { id: "j" });
    await side.run("job-dismiss", { id: "j" });
    await side.run("query-jobs");
    await side.run("job-dismiss", { id: "j" });
    await side.run("block-job-dismiss", { id: "j" });
  },
  "backup: by itself to its end": async (side) => {
    await makeDisk(side);
    await side.run("blockdev-backup", { "job-id": "j", device: "d", target: "t", sync: "full" });
    await becomes(side, "j", "null");
    await side.run("query-jobs");
    await showNodes(side, { flat: true });
  },
  "backup: none, and what may not be done meanwhile": async (side) => {
    await makeDisk(side);
    await startNbd(side);
    await side.run("blockdev-backup", {
      "job-id": "j",
      device: "d",
      target: "t",
      sync: "none",
      "filter-node-name": "flt",
    });
    await becomes(side, "j", "running");
    await showNodes(side);
    await side.run("blockdev-backup", { "job-id": "k", device: "d", target: "t", sync: "none" });
    await side.run("blockdev-del", { "node-name": "d" });
    await side.run("blockdev-del", { "node-name": "t" });
    await side.run("blockdev-del", { "node-name": "flt" });
    await side.run("block_resize", { "node-name": "d", size: MiB });
    await side.run("job-complete", { id: "j" });
    await side.run("job-pause", { id: "j" });
    await becomes(side, "j", "paused");
    await side.run("job-pause", { id: "j" });
    await side.run("block-job-cancel", { device: "j" });
    await side.run("job-resume", { id: "j" });
    await becomes(side, "j", "running");
    await side.run("job-resume", { id: "j" });
    await side.run("job-cancel", { id: "j" });
    await becomes(side, "j", "null");
    await side.run("query-block-jobs");
    await side.run("blockdev-del", { "node-name": "d" });
  },
  "backup: bitmap modes": async (side) => {
    await makeDisk(side);
    await startNbd(side);
    await side.run("block-dirty-bitmap-add", { node: "d", name: "b" });
    await write(side, "d", [0, 65536], [3 * MiB, 4096]);
    for (const [index, mode] of ["never", "always", "on-success"].entries()) {
      await side.run("blockdev-backup", {
        "job-id": `j${index}`,
        device: "d",
        target: "t",
        sync: index === 2 ? "incremental" : "bitmap",
        bitmap: "b",
        ...(index === 2 ? {} : { "bitmap-mode": mode }),
      });
      await becomes(side, `j${index}`, "null");
      await showNodes(side, { flat: true });
      await write(side, "d", [MiB, 512]);
    }
    await side.run("block-dirty-bitmap-disable", { node: "d", name: "b" });
    await showNodes(side);
  },
  "backup: failing targets": async (side) => {
    await makeDisk(side);
    await side.run("block-dirty-bitmap-add", { node: "d", name: "b" });
    const broken = (name: string, errno: number) =>
      add(side, {
        driver: "blkdebug",
        "node-name": name,
        image: "t",
        "inject-error": [{ event: "none", iotype: "write", errno, once: true }],
      });
    await broken("bad", 5);
    await side.run("blockdev-backup", {
      "job-id": "j",
      device: "d",
      target: "bad",
      sync: "full",
      "auto-dismiss": false,
      "x-perf": { "max-workers": 1 },
    });
    await becomes(side, "j", "concluded");
    await showJobs(side);
    await side.run("job-dismiss", { id: "j" });
    await broken("full", 28);
    await side.run("blockdev-backup", {
      "job-id": "k",
      device: "d",
      target: "full",
      sync: "full",
      "on-target-error": "enospc",
      "auto-dismiss": false,
      "x-perf": { "max-workers": 1 },
    });
    await side.until("BLOCK_JOB_ERROR");
    await becomes(side, "k", "paused");
    await showJobs(side);
    await side.run("job-resume", { id: "k" });
    await becomes(side, "k", "concluded");
    await side.run("job-dismiss", { id: "k" });
  },
  "grouped jobs end together": async (side) => {
    await makeDisk(side);
    await add(side, { driver: "null-co", "node-name": "n", size: 4 * MiB });
    await add(side, { driver: "null-co", "node-name": "bad", size: 4 * MiB });
    const backup = (id: string, device: string, target: string) => ({
      type: "blockdev-backup",
      data: { "job-id": id, device, target, sync: "none", ...manual },
    });
    const grouped = (...actions: Json[]) =>
      side.run("transaction", { actions, properties: { "completion-mode": "grouped" } });
    await grouped(backup("x", "d", "t"), backup("x", "n", "bad"));
    await side.run("query-jobs");
    await grouped(backup("j", "d", "t"), backup("k", "n", "bad"));
    await becomes(side, "k", "running");
    await side.run("job-cancel", { id: "j" });
    // The job that was cancelled ends last.
    await becomes(side, "k", "concluded");
    await becomes(side, "j", "concluded");
    await side.run("query-jobs");
    for (const id of ["j", "k"]) await side.run("job-dismiss", { id });
  },
  "speed": async (side) => {
    await makeDisk(side);
    await side.run("blockdev-backup", {
      "job-id": "j",
      device: "d",
      target: "t",
      sync: "full",
      speed: 65536,
    });
    await becomes(side, "j", "running");
    await side.run("block-job-set-speed", { device: "j", speed: -1 });
    await side.run("block-job-set-speed", { device: "gone", speed: 1 });
    await side.run("block-job-set-speed", { device: "j", speed: 0 });
    await becomes(side, "j", "null");
  },
  "mirror": async (side) => {
    await makeDisk(side);
    const mirror = (args: Json) =>
      side.run("blockdev-mirror", {
        "job-id": "m",
        device: "d",
        target: "t",
        sync: "full",
        ...args,
      });
    await mirror({ device: "gone" });
    await mirror({ device: "df" });
    await mirror({ target: "gone" });
    await mirror({ target: "d" });
    await mirror({ sync: "bitmap" });
    await mirror({ sync: "incremental" });
    await mirror({ granularity: 1000 });
    await mirror({ granularity: 256 });
    await mirror({ "buf-size": -1 });
    await mirror({ speed: -1 });
    await mirror({ replaces: "gone" });
    await mirror({ "copy-mode": "q" });
    await mirror({});
    await becomes(side, "m", "ready");
    await showJobs(side);
    await side.run("job-finalize", { id: "m" });
    await side.run("job-pause", { id: "m" });
    await becomes(side, "m", "standby");
    await side.run("job-resume", { id: "m" });
    await becomes(side, "m", "ready");
    await side.run("job-complete", { id: "m" });
    await becomes(side, "m", "null");
    await showNodes(side);
    await side.run("blockdev-del", { "node-name": "d" });
  },
  "mirror: cancelled when ready, and by force": async (side) => {
    await makeDisk(side);
    for (const [id, force] of [["a", false], ["b", true]] as const) {
      await side.run("blockdev-mirror", { "job-id": id, device: "d", target: "t", sync: "full" });
      await becomes(side, id, "ready");
      await side.run("block-job-cancel", { device: id, force });
      await becomes(side, id, "null");
    }
    await side.run("query-jobs");
  },
  "create": async (side) => {
    const create = async (id: string, options: Json) => {
      const answer = await side.run("blockdev-create", { "job-id": id, options });
      if ("error" in answer) return;
      await becomes(side, id, "concluded");
      await side.run("query-jobs");
      await side.run("job-dismiss", { id });
    };
    const filename = side.path("new");
    await create("c0", { driver: "file", filename, size: 0 });
    await create("c1", { driver: "file", filename: side.path("no/such"), size: 0 });
    await create("1", { driver: "file", filename, size: 0 });
    await create("c2", { driver: "file", filename });
    await create("c2", { driver: "nope", filename });
    await add(side, { driver: "file", "node-name": "f", filename });
    await create("c3", { driver: "qcow2", file: "f", size: MiB });
    await create("c4", { driver: "qcow2", file: "f", size: MiB, "cluster-size": 1000 });
    await create("c5", {
      driver: "qcow2",
      file: "f",
      size: MiB,
      version: "v2",
      "lazy-refcounts": true,
    });
    await create("c6", { driver: "qcow2", file: "f", size: MiB, "refcount-bits": 3 });
    await create("c7", { driver: "qcow2", file: "gone", size: MiB });
    await create("c8", { driver: "qcow2", file: "f", size: 1000 });
    await create("c9", { driver: "qcow2", file: "f", size: MiB, "cluster-size": 4096 });
    await add(side, { driver: "qcow2", "node-name": "q", file: "f" });
    await side.run("block_resize", { "node-name": "q", size: 2 * MiB });
  },
};
