import { assert, assertEquals } from "@std/assert";
import { BlockError } from "../../../src/block/errors.ts";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { Fleecing } from "../../../src/block/fleecing.ts";
import { IoVector } from "../../../src/block/io_vector.ts";
import { startBackup } from "../../../src/block/jobs/backup.ts";
import { Job } from "../../../src/block/jobs/job.ts";
import type { BlockNode } from "../../../src/block/node.ts";
import { checkQcow2 } from "../../../src/block/qcow2/check.ts";
import { createQcow2 } from "../../../src/block/qcow2/create.ts";
import { Qcow2Node } from "../../../src/block/qcow2/node.ts";
import { runTransaction, type TransactionAction } from "../../../src/block/transaction.ts";
import { Random } from "../../support/simulation.ts";
import { assertFails } from "../support.ts";
import { assertSameBytes, CLUSTER, content, fill, JobRig, KiB, MiB } from "./rig.ts";

/** A qcow2 image in memory. */
async function qcow2(rig: JobRig, nodeName: string, backing: BlockNode | null): Promise<Qcow2Node> {
  const file = rig.graph.add(new MemoryNode({ nodeName: `${nodeName}.file`, sizeBytes: 0 }));
  await createQcow2(file, {
    sizeBytes: 4 * MiB,
    backingFile: backing && `${backing.nodeName}.img`,
  });
  return rig.graph.add(await Qcow2Node.open({ nodeName, file, backing, isReadOnly: false }));
}

async function assertSound(node: Qcow2Node): Promise<void> {
  const file = node.children.get("file")?.node;
  if (file === undefined) throw new Error("no file");
  for (let i = 0; i < 2; i++) await node.flush();
  const { corruptions, leaks } = await checkQcow2(file, {});
  assertEquals([corruptions, leaks], [0, 0], node.nodeName);
}

Deno.test("runTransaction() does all actions at one moment of all disks", async () => {
  const rig = new JobRig();
  const disks = ["a", "b"].map((name) => rig.memory(name));
  const [a, b] = disks;
  if (a === undefined || b === undefined) throw new Error("no disks");
  const devices = disks.map((disk) => rig.device(disk, disk.nodeName));
  const targets = disks.map((disk) => rig.memory(`${disk.nodeName}-target`));
  // Both guests write the same numbers to both disks, all the time.
  let isWriting = true;
  const guests = (async () => {
    for (let i = 1; isWriting; i++) {
      for (const device of devices) await fill(device, (i * 3000) % MiB, 3000, i % 256);
      await rig.clock.advance(1);
    }
  })();
  await rig.clock.advance(5);
  const backup = (source: BlockNode, target: BlockNode | undefined, jobId: string) => ({
    type: "blockdev-backup" as const,
    options: { jobId, source, target: target ?? source, sync: "full" as const },
  });
  const results = await runTransaction(rig.layer, [
    { type: "add", node: a, options: { name: "chk" } },
    { type: "add", node: b, options: { name: "chk" } },
    backup(a, targets[0], "ja"),
    backup(b, targets[1], "jb"),
    {
      type: "fleecing",
      options: {
        name: "f",
        disks: devices.map((backend, i) => ({
          name: backend.name,
          exportName: backend.name,
          backend,
          bitmap: null,
          target: rig.memory(`temp${i}`),
        })),
        onCbwError: "break-snapshot",
        cbwTimeoutSeconds: 0,
        minClusterSizeBytes: 0,
        scratchMaxBytes: null,
        scratchDirectory: "",
        kernels: rig.kernels,
      },
    },
  ]);
  const [, , ja, jb, fleecing] = results;
  if (!(ja instanceof Job && jb instanceof Job && fleecing instanceof Fleecing)) {
    throw new Error("not what was asked for");
  }
  await rig.conclude(ja);
  await rig.conclude(jb);
  isWriting = false;
  await guests;
  const [ta, tb] = [await content(targets[0] ?? a), await content(targets[1] ?? b)];
  assert(ta.some((byte) => byte !== 0));
  for (const [i, target] of [ta, tb].entries()) {
    const view = new Uint8Array(4 * MiB);
    await fleecing.exports[i]?.read(0, view);
    assertSameBytes(view, target, `view ${i}`);
  }
  // What is the same since the moment is clean.
  for (const [i, disk] of disks.entries()) {
    const now = await content(disk);
    const { bits } = rig.bitmaps.get(disk, "chk");
    const then = i === 0 ? ta : tb;
    for (let at = 0; at < 4 * MiB; at += 512) {
      if (now[at] !== then[at]) assert(bits.isSet(at), `${at} of disk ${i} is not dirty`);
    }
  }
  await fleecing.stop();
  await rig.close();
});

Deno.test("runTransaction() that fails leaves everything as it was, wherever it fails", async () => {
  const rig = new JobRig();
  const disk = await qcow2(rig, "disk", null);
  const overlay = await qcow2(rig, "overlay", null);
  const other = rig.memory("other");
  const guest = rig.device(disk);
  const target = rig.memory("target");
  const temp = rig.memory("temp");
  rig.bitmaps.add(disk, { name: "b0" });
  await fill(guest, 0, MiB, 0x11);
  const state = () => ({
    nodes: rig.graph.list().map((node) => [node.nodeName, node.isReadOnly, node.backing?.node]),
    parents: rig.graph.list().map((node) => node.parents.size),
    bitmaps: rig.bitmaps.list(disk).map((bitmap) => bitmap.info()),
    jobs: rig.jobs.list().length,
    device: guest.node.nodeName,
    used: rig.kernels.usedBytes,
  });
  const before = state();
  const backup = { jobId: "job0", source: disk, target, sync: "bitmap" as const, bitmap: "b0" };
  const actions: TransactionAction[] = [
    { type: "add", node: disk, options: { name: "new" } },
    { type: "disable", node: disk, name: "new" },
    { type: "merge", node: disk, target: "new", bitmaps: [{ node: disk, name: "b0" }] },
    { type: "blockdev-backup", options: { ...backup, bitmapMode: "always" } },
    {
      type: "fleecing",
      options: {
        name: "f",
        disks: [{ name: "d", exportName: "d", backend: guest, bitmap: null, target: temp }],
        onCbwError: "break-snapshot",
        cbwTimeoutSeconds: 0,
        minClusterSizeBytes: 0,
        scratchMaxBytes: null,
        scratchDirectory: "",
        kernels: rig.kernels,
      },
    },
    { type: "remove", node: disk, name: "new" },
    { type: "blockdev-snapshot", options: { node: disk, overlay, jobs: rig.jobs } },
  ];
  for (let count = 0; count <= actions.length; count++) {
    const all = [...actions.slice(0, count), { type: "abort" as const }];
    const message = "Transaction aborted using Abort action";
    await assertFails(() => runTransaction(rig.layer, all), "EINVAL", message);
    await rig.clock.advance(10);
    assertEquals(state(), before, `abort after ${count}`);
  }
  // And where an action itself fails.
  await assertFails(
    () =>
      runTransaction(rig.layer, [...actions, {
        type: "blockdev-backup",
        options: { jobId: "job1", source: disk, target: other, sync: "bitmap", bitmap: "b0" },
      }]),
    "EINVAL",
    "Bitmap sync mode must be given when providing a bitmap",
  );
  assertEquals(state(), before);
  assertEquals(await runTransaction(rig.layer, []), []);
  await fill(guest, 0, 10, 0x22);
  assertSameBytes(
    (await content(disk)).subarray(0, 12),
    Uint8Array.of(...Array(10).fill(0x22), 0x11, 0x11),
  );
  await rig.close();
});

Deno.test("acceptance 41: a full backup and increments, with writes between and during each", async () => {
  for (const seed of [1, 2, 3]) {
    const rig = new JobRig();
    const random = new Random(seed);
    const disk = await qcow2(rig, "disk", null);
    const guest = rig.device(disk);
    const write = async (count: number): Promise<void> => {
      for (let i = 0; i < count; i++) {
        const offset = random.below(4 * MiB - 40 * KiB);
        const bytes = new Uint8Array(1 + random.below(40 * KiB)).fill(random.below(256));
        try {
          await guest.write(offset, IoVector.of(bytes));
        } catch (error) {
          assert(error instanceof BlockError); // the backup's target failed, and with it the write
        }
        if (random.chance(50)) await rig.clock.advance(1);
      }
    };
    await write(40);
    const moments: Uint8Array[] = [];
    const images: Qcow2Node[] = [];
    for (let round = 0; round < 5; round++) {
      const isFull = round === 0;
      // The fourth fails: the bitmap keeps all, and the fifth makes up for it.
      const fails = round === 3;
      const backing = images.at(-1) ?? null;
      const target = await qcow2(rig, `backup${round}`, backing);
      const broken = fails ? rig.faulty(`broken${round}`) : null;
      broken?.addRule({ operations: ["write", "writeZeroes"], skipCount: 1, error: "EIO" });
      const options = { jobId: `job${round}`, source: disk, target: broken ?? target };
      const dirtyBefore = isFull ? 0 : rig.bitmaps.get(disk, "chk").info().count;
      const actions: TransactionAction[] = isFull
        ? [
          { type: "add", node: disk, options: { name: "chk", persistent: true } },
          { type: "blockdev-backup", options: { ...options, sync: "full" } },
        ]
        : [{
          type: "blockdev-backup",
          options: { ...options, sync: "incremental", bitmap: "chk" },
        }];
      const [job] = (await runTransaction(rig.layer, actions)).filter((result) =>
        result instanceof Job
      );
      if (!(job instanceof Job)) throw new Error("no job");
      // Nothing happened since the moment.
      const moment = await content(disk);
      await write(10);
      await rig.conclude(job);
      assertEquals(job.hasFailed, fails);
      if (fails) {
        assert(rig.bitmaps.get(disk, "chk").info().count >= dirtyBefore);
        await rig.graph.remove(`backup${round}`);
      } else {
        moments.push(moment);
        images.push(target);
      }
      await write(20);
    }
    for (const [i, image] of images.entries()) {
      assertSameBytes(await content(image), moments[i] ?? new Uint8Array(), `seed ${seed}, ${i}`);
      await assertSound(image);
    }
    // Increments are small.
    assert((images[1]?.allocatedBytes ?? Infinity) < (images[0]?.allocatedBytes ?? 0) * 2);
    await assertSound(disk);
    await rig.close();
  }
});

Deno.test("a backup into qcow2 that is killed at any moment leaves a sound image", async () => {
  const rig = new JobRig();
  const source = rig.memory("source");
  for (let i = 0; i < 60; i += 2) await fill(source, i * CLUSTER + 100, CLUSTER, i + 1);
  const guest = rig.device(source);
  const target = await qcow2(rig, "target", null);
  const file = target.children.get("file")?.node;
  if (file === undefined) throw new Error("no file");
  const job = await startBackup(rig.layer, {
    jobId: "job0",
    source,
    target,
    sync: "full",
    maxWorkers: 2,
    maxChunkBytes: 2 * CLUSTER,
  });
  let kills = 0;
  for (; !job.isCompleted; kills++) {
    await fill(guest, (kills * 37 % 63) * CLUSTER, 10, kills);
    await rig.clock.advance(1);
    // What a killed process leaves in the file, as another one finds it.
    const copy = new MemoryNode({ nodeName: "", sizeBytes: file.sizeBytes });
    await copy.write(0, IoVector.of(await content(file)));
    const { corruptions } = await checkQcow2(copy, {});
    assertEquals(corruptions, 0, `killed after ${kills} steps`);
    await copy.close();
  }
  assert(kills > 10, `${kills} steps`);
  await rig.conclude(job);
  await assertSound(target);
  await rig.close();
});
