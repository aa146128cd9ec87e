import { assert, assertEquals } from "@std/assert";
import { type BackupOptions, startBackup } from "../../../src/block/jobs/backup.ts";
import { SnapshotAccessNode } from "../../../src/block/filters/snapshot_access.ts";
import { CopyBeforeWriteNode } from "../../../src/block/filters/copy_before_write.ts";
import { assertFails } from "../support.ts";
import { assertSameBytes, CLUSTER, content, fill, JobRig, KiB, MiB } from "./rig.ts";

// It starts in the drained section of its moment.
const STARTED = ["job0 created", "job0 running", "job0 paused", "job0 running"];
const COMPLETED = [
  "job0 waiting",
  "job0 pending",
  "BLOCK_JOB_COMPLETED",
  "job0 concluded",
  "job0 null",
];

Deno.test("startBackup() copies a disk as it was, whatever the guest writes meanwhile", async () => {
  const rig = new JobRig();
  const source = rig.memory("source");
  const target = rig.memory("target");
  const guest = rig.device(source);
  await fill(guest, 100, 3 * MiB, 0x11);
  const before = await content(source);
  const job = await startBackup(rig.layer, { jobId: "job0", source, target, sync: "full" });
  await fill(guest, 2 * MiB + 5, 1000, 0x22);
  await guest.writeZeroes(MiB, CLUSTER);
  await rig.conclude(job);
  assertSameBytes(await content(target), before);
  assertEquals(rig.takeEvents(), [...STARTED, ...COMPLETED]);
  assertEquals(job.progress, { current: 4 * MiB, total: 4 * MiB });
  // The filter is gone.
  assertEquals(guest.node, source);
  assertEquals(rig.graph.list(), [source, target]);
  await rig.close();
});

Deno.test("startBackup() leaves holes of the source as holes, and makes zeroes that are data some", async () => {
  const rig = new JobRig();
  const source = rig.memory("source", 64 * MiB);
  const target = rig.memory("target", 64 * MiB);
  await fill(source, 32 * MiB, CLUSTER, 0x33);
  await fill(source, 40 * MiB, MiB, 0);
  await fill(target, 0, 4 * MiB, 0x77);
  const job = await startBackup(rig.layer, { jobId: "job0", source, target, sync: "full" });
  await rig.conclude(job);
  assertEquals(target.allocatedBytes, CLUSTER);
  assertSameBytes(await content(target), await content(source));
  await rig.close();
});

Deno.test("startBackup() refuses arguments that contradict each other in QEMU's words", async () => {
  const rig = new JobRig();
  const source = rig.memory("source");
  const target = rig.memory("target");
  const small = rig.memory("small", MiB);
  rig.bitmaps.add(source, { name: "b0" });
  const cases: [Partial<BackupOptions>, string][] = [
    [{ sync: "bitmap" }, "must provide a valid bitmap name for 'bitmap' sync mode"],
    [{ sync: "incremental" }, "must provide a valid bitmap name for 'incremental' sync mode"],
    [
      { sync: "incremental", bitmap: "b0", bitmapMode: "always" },
      "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
    ],
    [{ sync: "bitmap", bitmap: "b0" }, "Bitmap sync mode must be given when providing a bitmap"],
    [{ sync: "bitmap", bitmap: "b1", bitmapMode: "never" }, "Bitmap 'b1' could not be found"],
    [{ sync: "full", bitmapMode: "never" }, "Cannot specify bitmap sync mode without a bitmap"],
    [
      { sync: "none", bitmap: "b0", bitmapMode: "always" },
      "sync mode 'none' does not produce meaningful bitmap outputs",
    ],
    [
      { sync: "full", bitmap: "b0", bitmapMode: "never" },
      "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode 'full'",
    ],
    [{ target: source }, "Source and target cannot be the same"],
    [{ target: small }, "Source and target image have different sizes"],
    [{ compress: true }, "Compression is not supported for this drive "],
    [{ maxWorkers: 0 }, "max-workers must be between 1 and 2147483647"],
    [{ maxChunkBytes: -1 }, "max-chunk must be zero (which means no limit) or positive"],
    [
      { maxChunkBytes: 4096 },
      "Required max-chunk (4096) is less than backup cluster size (65536)",
    ],
    [{ jobId: "0job" }, "Invalid job ID '0job'"],
    [{ speed: -1 }, "Parameter 'speed' expects a non-negative value"],
    [
      { filterNodeName: "source" },
      "Could not create node: Duplicate nodes with node-name='source'",
    ],
  ];
  for (const [options, message] of cases) {
    const all: BackupOptions = { jobId: "job0", source, target, sync: "full", ...options };
    if (message.startsWith("Bitmap 'b1'")) {
      await assertFails(() => startBackup(rig.layer, all), "ENOENT", message);
    } else await assertFails(() => startBackup(rig.layer, all), "EINVAL", message);
    assertEquals(rig.jobs.list(), []);
    assertEquals(rig.graph.list(), [source, target, small]);
    assertEquals(rig.bitmaps.get(source, "b0").isBusy, false);
  }
  await rig.close();
});

for (
  const { mode, fails, left } of [
    { mode: "on-success", fails: false, left: [9] },
    { mode: "on-success", fails: true, left: [1, 3, 5, 9] },
    { mode: "always", fails: false, left: [9] },
    // Cluster 1 was copied.
    { mode: "always", fails: true, left: [3, 5, 9] },
    { mode: "never", fails: false, left: [1, 3, 5, 9] },
    { mode: "never", fails: true, left: [1, 3, 5, 9] },
  ] as const
) {
  Deno.test(`acceptance 42: bitmap-mode ${mode}, ${fails ? "failure at the 2nd cluster" : "success"}`, async () => {
    const rig = new JobRig();
    const source = rig.memory("source");
    const target = rig.faulty("target");
    const guest = rig.device(source);
    const bitmap = rig.bitmaps.add(source, { name: "b0" });
    for (const cluster of [1, 3, 5]) await fill(guest, cluster * CLUSTER, 10, 0x10 + cluster);
    if (fails) target.addRule({ operations: ["write"], skipCount: 1, error: "ENOSPC" });
    const job = await startBackup(rig.layer, {
      jobId: "job0",
      source,
      target,
      sync: "bitmap",
      bitmap: "b0",
      bitmapMode: mode,
      maxWorkers: 1,
    });
    assert(bitmap.isBusy);
    await fill(guest, 9 * CLUSTER, 10, 0x99);
    await rig.conclude(job);
    assertEquals(bitmap.isBusy, false);
    const dirty = Array.from({ length: 64 }, (_, i) => i)
      .filter((cluster) => bitmap.bits.isSet(cluster * CLUSTER));
    assertEquals(dirty, [...left]);
    const events = rig.takeEvents();
    if (fails) {
      assertEquals(events, [
        ...STARTED,
        "BLOCK_JOB_ERROR write report",
        "job0 aborting",
        "BLOCK_JOB_COMPLETED: No space left on device",
        "job0 concluded",
        "job0 null",
      ]);
    } else assertEquals(events, [...STARTED, ...COMPLETED]);
    // It records again.
    await fill(guest, 11 * CLUSTER, 10, 0xaa);
    assert(bitmap.bits.isSet(11 * CLUSTER));
    await rig.close();
  });
}

for (const order of ["write first", "job first"] as const) {
  Deno.test(`acceptance 43: discard-source empties a fleecing's target, ${order}`, async () => {
    const rig = new JobRig();
    const disk = rig.memory("disk");
    const temp = rig.memory("temp");
    const target = rig.memory("target");
    await fill(disk, 0, 4 * MiB, 0x11);
    const before = await content(disk);
    const cbw = rig.graph.add(
      new CopyBeforeWriteNode({ nodeName: "cbw", file: disk, target: temp, kernels: rig.kernels }),
    );
    const access = rig.graph.add(new SnapshotAccessNode({ nodeName: "acc", file: cbw }));
    const guest = rig.device(cbw);
    if (order === "write first") await fill(guest, 0, MiB, 0x22);
    const job = await startBackup(rig.layer, {
      jobId: "job0",
      source: access,
      target,
      sync: "full",
      discardSource: true,
    });
    await rig.conclude(job);
    assertSameBytes(await content(target), before);
    assertEquals(temp.allocatedBytes, 0);
    await assertFails(() => content(access), "EACCES", /not part of the snapshot/);
    await fill(guest, 0, 2 * MiB, 0x33);
    assertEquals(cbw.info().copiedBytes, order === "write first" ? MiB : 0);
    assertEquals(temp.allocatedBytes, 0);
    await rig.close();
  });
}

Deno.test("a backup with sync=none keeps the moment until it is cancelled", async () => {
  const rig = new JobRig();
  const source = rig.memory("source");
  const target = rig.memory("target");
  const guest = rig.device(source);
  await fill(guest, 0, 4 * MiB, 0x11);
  const job = await startBackup(rig.layer, { jobId: "job0", source, target, sync: "none" });
  await fill(guest, 5 * CLUSTER + 7, 10, 0x22);
  await rig.clock.advance(1000);
  assertEquals(target.allocatedBytes, CLUSTER);
  assertEquals(job.status, "running");
  assertEquals(job.progress, { current: CLUSTER, total: 4 * MiB });
  await job.cancel();
  await rig.conclude(job);
  assertEquals(rig.takeEvents().slice(STARTED.length), [
    "job0 aborting",
    "BLOCK_JOB_CANCELLED",
    "job0 concluded",
    "job0 null",
  ]);
  await rig.close();
});

Deno.test("a backup keeps to its speed, with bursts of no more than a chunk beyond a slice", async () => {
  const rig = new JobRig();
  const source = rig.memory("source", 64 * MiB);
  const target = rig.memory("target", 64 * MiB);
  await fill(source, 0, 64 * MiB, 0x11);
  const speed = 16 * MiB;
  const job = await startBackup(rig.layer, {
    jobId: "job0",
    source,
    target,
    sync: "full",
    speed,
  });
  for (let second = 1; second <= 2; second++) {
    for (let i = 0; i < 1000; i++) await rig.clock.advance(1);
    const over = job.progress.current - second * speed;
    assert(Math.abs(over) <= speed / 10 + 2 * MiB, `${over} too many after ${second} s`);
  }
  job.setSpeed(0);
  await rig.conclude(job);
  assertEquals(job.progress.current, 64 * MiB);
  await rig.close();
});

Deno.test("a backup does what its error policies say", async () => {
  const rig = new JobRig();
  const source = rig.faulty("source");
  const target = rig.faulty("target");
  await fill(source, 0, 4 * MiB, 0x11);
  source.addRule({
    operations: ["read"],
    range: { offset: MiB, length: 1 },
    error: "EIO",
    count: 2,
  });
  target.addRule({
    operations: ["write"],
    range: { offset: 2 * MiB, length: 1 },
    error: "ENOSPC",
    count: 1,
  });
  const job = await startBackup(rig.layer, {
    jobId: "job0",
    source,
    target,
    sync: "full",
    onSourceError: "ignore",
    onTargetError: "enospc",
    maxWorkers: 1,
  });
  await rig.until(() => job.status === "paused");
  assertEquals(rig.takeEvents(), [
    ...STARTED,
    "BLOCK_JOB_ERROR read ignore",
    "BLOCK_JOB_ERROR read ignore",
    "BLOCK_JOB_ERROR write stop",
    "job0 paused",
  ]);
  assertEquals(job.blockInfo().ioStatus, "nospace");
  await rig.clock.advance(10_000);
  assertEquals(job.status, "paused");
  job.resume();
  assertEquals(job.blockInfo().ioStatus, "ok");
  await rig.conclude(job);
  assertEquals(rig.takeEvents(), ["job0 running", ...COMPLETED]);
  assertSameBytes(await content(target), await content(source));
  await rig.close();
});

Deno.test("backups of a transaction's bitmaps end alone or together", async () => {
  const rig = new JobRig();
  const { runTransaction } = await import("../../../src/block/transaction.ts");
  for (const completionMode of ["individual", "grouped"] as const) {
    const disks = [0, 1].map((i) => ({
      source: rig.memory(`${completionMode}-s${i}`),
      target: rig.faulty(`${completionMode}-t${i}`),
    }));
    for (const { source } of disks) {
      rig.bitmaps.add(source, { name: "b0" });
      await fill(source, 0, CLUSTER, 0x11);
    }
    disks[1]?.target.addRule({ operations: ["write"], error: "EIO" });
    const results = await runTransaction(
      rig.layer,
      disks.map(({ source, target }, i) => ({
        type: "blockdev-backup" as const,
        options: {
          jobId: `job${i}`,
          source,
          target,
          sync: "incremental" as const,
          bitmap: "b0",
        },
      })),
      { completionMode },
    );
    assertEquals(results.length, 2);
    await rig.until(() => rig.jobs.list().length === 0);
    const left = disks.map(({ source }) => rig.bitmaps.get(source, "b0").bits.countBytes());
    assertEquals(left, completionMode === "grouped" ? [CLUSTER, CLUSTER] : [0, CLUSTER]);
    const ends = rig.takeEvents().filter((event) => event.startsWith("BLOCK_JOB_C"));
    assertEquals(
      ends.sort(),
      completionMode === "grouped"
        ? ["BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED: Input/output error"]
        : ["BLOCK_JOB_COMPLETED", "BLOCK_JOB_COMPLETED: Input/output error"],
    );
  }
  await rig.close();
});

Deno.test("a job's nodes are kept from other jobs; a disk may have several backups", async () => {
  const rig = new JobRig();
  const [source, target] = [rig.memory("source"), rig.memory("target")];
  const other = rig.memory("other");
  const job = await startBackup(rig.layer, { jobId: "job0", source, target, sync: "none" });
  await assertFails(
    () => startBackup(rig.layer, { jobId: "job1", source: other, target, sync: "full" }),
    "EBUSY",
    "Node 'target' is busy: block device is in use by block job: backup",
  );
  await assertFails(
    () => startBackup(rig.layer, { jobId: "job0", source, target: other, sync: "full" }),
    "EINVAL",
    "Job ID 'job0' already in use",
  );
  // A second backup of the same disk is no harm.
  await fill(source, 0, 4 * KiB, 0x11);
  const second = await startBackup(rig.layer, {
    jobId: "job1",
    source,
    target: other,
    sync: "full",
  });
  await rig.conclude(second);
  assertSameBytes(await content(other), await content(source));
  await job.cancel();
  await rig.conclude(job);
  await rig.close();
});

Deno.test("a backup is not done before the copies that guest writes wait for", async () => {
  for (const fails of [false, true]) {
    const rig = new JobRig();
    const source = rig.memory("source");
    const target = rig.faulty("target");
    const guest = rig.device(source);
    await fill(guest, 0, 4 * MiB, 0x11);
    const before = await content(source);
    const gate = Promise.withResolvers<void>();
    target.addRule({
      operations: ["write"],
      gate: () => gate.promise,
      count: 1,
      ...(fails ? { error: "EIO" as const } : {}),
    });
    const job = await startBackup(rig.layer, { jobId: "job0", source, target, sync: "full" });
    const write = fill(guest, 5 * CLUSTER, 10, 0x22).then(() => "ok", () => "failed");
    for (let i = 0; i < 50; i++) await rig.clock.advance(100);
    assertEquals([job.status, job.progress.current], ["running", 4 * MiB - CLUSTER]);
    gate.resolve();
    assertEquals(await write, fails ? "failed" : "ok");
    await rig.conclude(job);
    assertEquals(job.hasFailed, false);
    assertSameBytes(await content(target), before);
    await rig.close();
  }
});

Deno.test("a backup whose target fails under a guest's write gives up the write, or itself", async () => {
  for (const onCbwError of ["break-guest-write", "break-snapshot"] as const) {
    for (const sync of ["full", "none"] as const) {
      const rig = new JobRig();
      const source = rig.memory("source");
      const target = rig.faulty("target");
      const guest = rig.device(source);
      await fill(guest, 0, 4 * MiB, 0x11);
      target.addRule({ operations: ["write"], error: "ENOSPC", count: 1 });
      const job = await startBackup(rig.layer, {
        jobId: "job0",
        source,
        target,
        sync,
        onCbwError,
      });
      const outcome = await fill(guest, 0, 10, 0x22).then(() => "ok", () => "failed");
      assertEquals(outcome, onCbwError === "break-snapshot" ? "ok" : "failed");
      if (onCbwError === "break-guest-write" && sync === "none") await job.cancel();
      await rig.conclude(job);
      assertEquals(job.failure?.code ?? null, onCbwError === "break-snapshot" ? "ENOSPC" : null);
      assertEquals((await content(source))[0], onCbwError === "break-snapshot" ? 0x22 : 0x11);
      await rig.close();
    }
  }
});

Deno.test("a backup's max-chunk is rounded down to clusters", async () => {
  const rig = new JobRig();
  const source = rig.memory("source", 4 * MiB + 512);
  const target = rig.memory("target", 4 * MiB + 512);
  await fill(source, 0, 4 * MiB + 512, 0x11);
  const job = await startBackup(rig.layer, {
    jobId: "job0",
    source,
    target,
    sync: "full",
    maxChunkBytes: 100_000,
    maxWorkers: 3,
  });
  await rig.conclude(job);
  assertSameBytes(await content(target), await content(source));
  await rig.close();
});
