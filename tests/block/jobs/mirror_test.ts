import { assert, assertEquals } from "@std/assert";
import { type MirrorOptions, startMirror } from "../../../src/block/jobs/mirror.ts";
import { assertFails } from "../support.ts";
import { assertSameBytes, CLUSTER, content, fill, JobRig, MiB } from "./rig.ts";

for (const copyMode of ["background", "write-blocking"] as const) {
  Deno.test(`a mirror in ${copyMode} mode becomes ready, and complete() makes the target the disk`, async () => {
    const rig = new JobRig();
    const source = rig.memory("source");
    const target = rig.memory("target");
    const guest = rig.device(source);
    await fill(guest, 0, 3 * MiB, 0x11);
    const job = await startMirror(rig.layer, {
      jobId: "job0",
      source,
      target,
      sync: "full",
      copyMode,
    });
    await fill(guest, MiB + 3, 1000, 0x22);
    await assertFails(
      () => job.complete(),
      "EPERM",
      "Job 'job0' in state 'running' cannot accept command verb 'complete'",
    );
    await rig.until(() => job.isReady);
    assertEquals(rig.takeEvents(), [
      "job0 created",
      "job0 running",
      "job0 ready",
      "BLOCK_JOB_READY",
    ]);
    await fill(guest, 2 * MiB + 3, 1000, 0x33);
    await rig.clock.advance(10);
    assertSameBytes(await content(target), await content(source));
    assertEquals(job.blockInfo().activelySynced, copyMode === "write-blocking");
    // In the very last moment.
    await fill(guest, 7, 1000, 0x44);
    job.complete();
    await rig.conclude(job);
    assertEquals(rig.takeEvents(), [
      "job0 waiting",
      "job0 pending",
      "BLOCK_JOB_COMPLETED",
      "job0 concluded",
      "job0 null",
    ]);
    assertEquals(guest.node, target);
    assertSameBytes(await content(target), await content(source));
    await fill(guest, 0, 10, 0x55);
    assertEquals((await content(target))[0], 0x55);
    assertEquals(rig.graph.list(), [source, target]);
    await rig.close();
  });
}

Deno.test("a ready mirror that is cancelled without force leaves the target as it is, and the guest", async () => {
  const rig = new JobRig();
  const source = rig.memory("source");
  const target = rig.memory("target");
  const guest = rig.device(source);
  await fill(guest, 0, MiB, 0x11);
  const job = await startMirror(rig.layer, { jobId: "job0", source, target, sync: "full" });
  await rig.until(() => job.isReady);
  await fill(guest, 5, 10, 0x22);
  await job.cancel({ force: false });
  await rig.conclude(job);
  const moment = await content(target);
  await fill(guest, 5, 10, 0x33);
  assertEquals(moment[5], 0x22);
  assertSameBytes(await content(target), moment);
  assertEquals(guest.node, source);
  assertEquals(rig.takeEvents().slice(4), [
    "job0 waiting",
    "job0 pending",
    "BLOCK_JOB_COMPLETED",
    "job0 concluded",
    "job0 null",
  ]);
  await rig.close();
});

Deno.test("a mirror that is cancelled by force is aborted, ready or not", async () => {
  for (const isReady of [true, false]) {
    const rig = new JobRig();
    const source = rig.memory("source");
    const target = rig.memory("target");
    const guest = rig.device(source);
    const job = await startMirror(rig.layer, { jobId: "job0", source, target, sync: "full" });
    if (isReady) await rig.until(() => job.isReady);
    await job.cancel();
    await rig.conclude(job);
    assertEquals(rig.takeEvents().slice(isReady ? 4 : 2), [
      "job0 aborting",
      "BLOCK_JOB_CANCELLED",
      "job0 concluded",
      "job0 null",
    ]);
    assertEquals(guest.node, source);
    await rig.close();
  }
});

Deno.test("a mirror stands by when it is paused while ready, and goes on", async () => {
  const rig = new JobRig();
  const source = rig.memory("source");
  const target = rig.memory("target");
  const guest = rig.device(source);
  const job = await startMirror(rig.layer, { jobId: "job0", source, target, sync: "full" });
  await rig.until(() => job.isReady);
  rig.takeEvents();
  job.pause();
  await assertFails(() => job.pause(), "EINVAL", "Job is already paused");
  await rig.until(() => job.status === "standby");
  await fill(guest, 0, 10, 0x11);
  await rig.clock.advance(1000);
  assertEquals((await content(target))[0], 0);
  job.resume();
  await assertFails(() => job.resume(), "EINVAL", "Can't resume a job that was not paused");
  await rig.until(() => job.status === "ready");
  await rig.clock.advance(10);
  assertEquals((await content(target))[0], 0x11);
  assertEquals(rig.takeEvents(), ["job0 standby", "job0 ready"]);
  await job.cancel();
  await rig.conclude(job);
  await rig.close();
});

Deno.test("a mirror that waits to be finalized follows the guest, and pivots then", async () => {
  const rig = new JobRig();
  const source = rig.memory("source");
  const target = rig.memory("target");
  const guest = rig.device(source);
  const job = await startMirror(rig.layer, {
    jobId: "job0",
    source,
    target,
    sync: "full",
    autoFinalize: false,
    autoDismiss: false,
  });
  await rig.until(() => job.isReady);
  job.complete();
  await rig.until(() => job.status === "pending");
  assertEquals(rig.takeEvents().at(-1), "BLOCK_JOB_PENDING");
  await fill(guest, 100, 10, 0x11);
  await job.finalize();
  assertEquals(job.status, "concluded");
  assertEquals(guest.node, target);
  assertEquals((await content(target))[100], 0x11);
  job.dismiss();
  assertEquals(rig.jobs.list(), []);
  await rig.close();
});

Deno.test("a mirror in write-blocking mode converges while the guest never stops writing", async () => {
  const rig = new JobRig();
  const source = rig.memory("source", 24 * MiB);
  const target = rig.memory("target", 24 * MiB);
  const guest = rig.device(source);
  await fill(source, 0, 24 * MiB, 0x77);
  const job = await startMirror(rig.layer, {
    jobId: "job0",
    source,
    target,
    sync: "full",
    copyMode: "write-blocking",
  });
  let writes = 0;
  await rig.until(() => {
    // Unaligned: chunks that were copied stay so.
    void fill(guest, (writes * 777_777) % (24 * MiB - 5000), 5000, writes++ % 255);
    return job.isReady;
  });
  assert(writes > 10, `${writes} writes`);
  for (let i = 0; i < 50; i++) await fill(guest, i * 100_000, 3000, i);
  assertSameBytes(await content(target), await content(source));
  job.complete();
  await rig.conclude(job);
  assertSameBytes(await content(target), await content(source));
  await rig.close();
});

Deno.test("a mirror does what its error policies say, also where a guest's write meets the error", async () => {
  for (const policy of ["report", "ignore", "stop"] as const) {
    const rig = new JobRig();
    const source = rig.memory("source");
    const target = rig.faulty("target");
    const guest = rig.device(source);
    const job = await startMirror(rig.layer, {
      jobId: "job0",
      source,
      target,
      sync: "full",
      copyMode: "write-blocking",
      onTargetError: policy,
    });
    await rig.until(() => job.isReady);
    rig.takeEvents();
    target.addRule({ operations: ["write"], error: "EIO", count: 1 });
    await fill(guest, 3 * CLUSTER + 1, 10, 0x11); // the guest's own write went well
    if (policy === "stop") {
      await rig.until(() => job.status === "standby");
      assertEquals(rig.takeEvents(), ["BLOCK_JOB_ERROR write stop", "job0 standby"]);
      job.resume();
    }
    if (policy === "report") {
      await rig.conclude(job);
      assertEquals(rig.takeEvents(), [
        "BLOCK_JOB_ERROR write report",
        "job0 aborting",
        "BLOCK_JOB_COMPLETED: Input/output error",
        "job0 concluded",
        "job0 null",
      ]);
      assertEquals(guest.node, source);
    } else {
      await rig.until(() => job.blockInfo().activelySynced === true && job.status === "ready");
      assertSameBytes(await content(target), await content(source));
      await job.cancel();
      await rig.conclude(job);
    }
    await rig.close();
  }
});

Deno.test("startMirror() refuses bad arguments in QEMU's words, and changes nothing", async () => {
  const rig = new JobRig();
  const source = rig.memory("source");
  const target = rig.memory("target");
  const other = rig.memory("other");
  const guest = rig.device(source);
  rig.device(other, "disk1");
  const cases: [Partial<MirrorOptions>, string][] = [
    [{ granularity: 256 }, "Parameter 'granularity' expects a value in range [512B, 64MB]"],
    [{ granularity: 1000 }, "Parameter 'granularity' expects a power of 2"],
    [{ bufferBytes: -1 }, "Invalid parameter 'buf-size'"],
    [{ target: source }, "Can't mirror node into itself"],
    [
      { replaces: other },
      "Cannot replace 'other' by a node mirrored from 'source', because it cannot be guaranteed " +
      "that doing so would not lead to an abrupt change of visible data",
    ],
    [{ jobId: "a b" }, "Invalid job ID 'a b'"],
  ];
  for (const [options, message] of cases) {
    const all: MirrorOptions = { jobId: "job0", source, target, sync: "full", ...options };
    await assertFails(() => startMirror(rig.layer, all), "EINVAL", message);
  }
  await assertFails(
    () => startMirror(rig.layer, { jobId: "job0", source, target: other, sync: "full" }),
    "EPERM",
    "Permission conflict on node 'other': permissions 'write' are both required by mirror job " +
      "'job0' (uses node 'other' as 'target' child) and unshared by block device 'disk1' " +
      "(uses node 'other' as 'root' child).",
  );
  const small = rig.memory("small", MiB);
  rig.takeEvents();
  const job = await startMirror(rig.layer, { jobId: "job0", source, target: small, sync: "full" });
  await rig.conclude(job);
  assertEquals(rig.takeEvents(), [
    "job0 created",
    "job0 running",
    "job0 aborting",
    "BLOCK_JOB_COMPLETED: Source and target image have different sizes",
    "job0 concluded",
    "job0 null",
  ]);
  assertEquals(guest.node, source);
  assertEquals(rig.graph.list(), [source, target, other, small]);
  assertEquals(rig.jobs.list(), []);
  await rig.close();
});

Deno.test("a mirror's granularity may be larger than a chunk, and as small as a sector", async () => {
  for (const granularity of [512, 4 * MiB]) {
    const rig = new JobRig();
    const source = rig.memory("source", 9 * MiB + 512);
    const target = rig.memory("target", 9 * MiB + 512);
    const guest = rig.device(source);
    await fill(guest, 10, 9 * MiB, 0x11);
    const job = await startMirror(rig.layer, {
      jobId: "job0",
      source,
      target,
      sync: "full",
      granularity,
    });
    await rig.until(() => job.isReady);
    await fill(guest, 9 * MiB, 512, 0x22);
    job.complete();
    await rig.conclude(job);
    assertSameBytes(await content(target), await content(source));
    await rig.close();
  }
});
