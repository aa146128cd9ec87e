import { assertEquals } from "@std/assert";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { RawNode } from "../../../src/block/drivers/raw.ts";
import { CopyBeforeWriteNode } from "../../../src/block/filters/copy_before_write.ts";
import { SnapshotAccessNode } from "../../../src/block/filters/snapshot_access.ts";
import { DiskStatus } from "../../../src/block/image/chain.ts";
import { startCommit } from "../../../src/block/jobs/commit.ts";
import { startMirror } from "../../../src/block/jobs/mirror.ts";
import { startBackup } from "../../../src/block/jobs/backup.ts";
import { startStream } from "../../../src/block/jobs/stream.ts";
import { createQcow2 } from "../../../src/block/qcow2/create.ts";
import { checkQcow2 } from "../../../src/block/qcow2/check.ts";
import { Qcow2Node } from "../../../src/block/qcow2/node.ts";
import type { BlockNode } from "../../../src/block/node.ts";
import { runSteps, type Steps } from "../../../src/block/steps.ts";
import { runTransaction } from "../../../src/block/transaction.ts";
import { STATUS_ALLOCATED, STATUS_DATA, STATUS_ZERO } from "../../../src/block/types.ts";
import { assertFails } from "../support.ts";
import { assertSameBytes, CLUSTER, content, fill, JobRig, MiB } from "./rig.ts";

/** A rig that makes chains of qcow2 images in memory. */
class ChainRig extends JobRig {
  async qcow2(
    nodeName: string,
    options: { backing?: BlockNode; sizeBytes?: number; isReadOnly?: boolean } = {},
  ): Promise<Qcow2Node> {
    const { backing, sizeBytes = 4 * MiB } = options;
    const file = this.graph.add(
      new MemoryNode({ nodeName: `${nodeName}.file`, sizeBytes: 0 }),
    );
    await createQcow2(file, {
      sizeBytes,
      backingFile: backing ? `${backing.nodeName}.img` : null,
      backingFormat: backing ? "qcow2" : null,
    });
    const node = await Qcow2Node.open({
      nodeName,
      file,
      backing: backing ?? null,
      isReadOnly: false,
    });
    this.graph.add(node);
    return node;
  }

  /** base <- mid <- top, with clusters 0 to 9 written in different layers; the guest on top. */
  async chain() {
    const base = await this.qcow2("base");
    const mid = await this.qcow2("mid", { backing: base });
    const top = await this.qcow2("top", { backing: mid });
    for (let i = 0; i < 9; i++) await fill(base, i * CLUSTER, CLUSTER, 0x10 + i);
    for (let i = 3; i < 6; i++) await fill(mid, i * CLUSTER, CLUSTER, 0x20 + i);
    await mid.writeZeroes(CLUSTER, CLUSTER);
    await fill(top, 5 * CLUSTER + 100, 100, 0x35);
    await fill(top, 7 * CLUSTER, CLUSTER, 0x37);
    return { base, mid, top, guest: this.device(top) };
  }

  async check(...nodes: Qcow2Node[]): Promise<void> {
    for (const node of nodes) {
      const file = node.children.get("file")?.node;
      if (file === undefined) throw new Error("no file");
      await node.flush();
      const result = await checkQcow2(file, {});
      assertEquals([result.corruptions, result.leaks], [0, 0], node.nodeName);
    }
  }
}

const ENDED = [
  "job0 waiting",
  "job0 pending",
  "BLOCK_JOB_COMPLETED",
  "job0 concluded",
  "job0 null",
];

Deno.test("startCommit() of an intermediate layer takes it out of the chain", async () => {
  const rig = new ChainRig();
  const { base, mid, top, guest } = await rig.chain();
  const before = await content(top);
  const job = await startCommit(rig.layer, {
    jobId: "job0",
    device: top,
    top: mid,
    base,
    backingFile: "other.img",
  });
  await fill(guest, 2 * CLUSTER, 10, 0x99);
  before.fill(0x99, 2 * CLUSTER, 2 * CLUSTER + 10);
  await rig.conclude(job);
  assertEquals(rig.takeEvents(), ["job0 created", "job0 running", ...ENDED]);
  assertSameBytes(await content(top), before);
  assertEquals(top.backing?.node, base);
  assertEquals((await content(base))[4 * CLUSTER], 0x24);
  assertEquals((await content(base))[CLUSTER], 0);
  assertEquals(top.image.header.backingFile, "other.img");
  await rig.check(base, top);
  await rig.graph.remove("mid");
  await rig.close();
});

Deno.test("startCommit() of the active layer becomes ready, and complete() makes the base the disk", async () => {
  const rig = new ChainRig();
  const { base, top, guest } = await rig.chain();
  await rig.graph.setReadOnly("base", true);
  const job = await startCommit(rig.layer, { jobId: "job0", device: top });
  await rig.until(() => job.isReady);
  await fill(guest, 2 * CLUSTER, 10, 0x99);
  const before = await content(top);
  job.complete();
  await rig.conclude(job);
  assertEquals(rig.takeEvents(), [
    "job0 created",
    "job0 running",
    "job0 ready",
    "BLOCK_JOB_READY",
    ...ENDED,
  ]);
  assertEquals(guest.node, base);
  assertSameBytes(await content(base), before);
  await fill(guest, 0, 10, 0x98);
  await rig.check(base);
  await rig.close();
});

Deno.test("startCommit() that is cancelled or fails leaves the chain and the base's read-only state", async () => {
  for (const isActive of [true, false]) {
    const rig = new ChainRig();
    const { base, mid, top, guest } = await rig.chain();
    const before = await content(top);
    await rig.graph.setReadOnly("base", true);
    const job = await startCommit(rig.layer, {
      jobId: "job0",
      device: top,
      top: isActive ? top : mid,
      speed: 1,
    });
    assertEquals(base.isReadOnly, false);
    await rig.clock.advance(10);
    await job.cancel();
    await rig.conclude(job);
    assertSameBytes(await content(top), before);
    assertEquals([base.isReadOnly, top.backing?.node, mid.backing?.node], [true, mid, base]);
    assertEquals(guest.node, top);
    await rig.check(base, mid, top);
    await rig.close();
  }
});

for (const target of ["none", "base", "bottom"] as const) {
  Deno.test(`startStream() with ${target} copies what is between, and the guest sees no change`, async () => {
    const rig = new ChainRig();
    const { base, mid, top, guest } = await rig.chain();
    const before = await content(top);
    const job = await startStream(rig.layer, {
      jobId: "job0",
      device: top,
      ...(target === "base" ? { base } : {}),
      ...(target === "bottom" ? { bottom: mid } : {}),
    });
    await fill(guest, 4 * CLUSTER + 5, 10, 0x99);
    before.fill(0x99, 4 * CLUSTER + 5, 4 * CLUSTER + 15);
    await assertFails(
      () => startMirror(rig.layer, { jobId: "job1", source: mid, target: base, sync: "full" }),
      "EBUSY",
      "Node 'mid' is busy: block device is in use by block job: stream",
    );
    await rig.conclude(job);
    assertEquals(rig.takeEvents(), ["job0 created", "job0 running", ...ENDED]);
    assertSameBytes(await content(top), before);
    assertEquals(top.backing?.node ?? null, target === "none" ? null : base);
    assertEquals(guest.node, top);
    await rig.check(top);
    await rig.graph.remove("mid");
    await rig.close();
  });
}

Deno.test("a job's chain is frozen, and busy for others", async () => {
  const rig = new ChainRig();
  const { base, mid, top } = await rig.chain();
  const job = await startStream(rig.layer, { jobId: "job0", device: top, speed: 1 });
  await assertFails(
    () => rig.graph.drained([top], () => rig.graph.setBacking(top, base)),
    "EPERM",
    "Cannot change frozen 'backing' link from 'top' to 'mid'",
  );
  await assertFails(
    () => startCommit(rig.layer, { jobId: "job1", device: top, top: mid }),
    "EBUSY",
    "Node 'mid' is busy: block device is in use by block job: stream",
  );
  await job.cancel();
  await rig.conclude(job);
  await rig.graph.drained([top], () => rig.graph.setBacking(top, mid));
  await rig.close();
});

Deno.test("streams and commits refuse what is not in the chain, in QEMU's words", async () => {
  const rig = new ChainRig();
  const { base, mid, top } = await rig.chain();
  const other = rig.memory("other");
  const cases: [() => Promise<unknown>, string][] = [
    [
      () => startCommit(rig.layer, { jobId: "j", device: top, top: other }),
      "'other' is not in this backing file chain",
    ],
    [
      () => startCommit(rig.layer, { jobId: "j", device: top, top: mid, base: top }),
      "'top' is not in this backing file chain",
    ],
    [
      () => startCommit(rig.layer, { jobId: "j", device: top, top: mid, base: mid }),
      "cannot commit an image into itself",
    ],
    [
      () => startCommit(rig.layer, { jobId: "j", device: base }),
      "cannot commit an image into itself",
    ],
    [
      () => startCommit(rig.layer, { jobId: "j", device: top, backingFile: "x" }),
      "'backing-file' specified, but 'top' is the active layer",
    ],
    [
      () => startStream(rig.layer, { jobId: "j", device: mid, base: top }),
      "Node 'top' is not a backing image of 'mid'",
    ],
    [
      () => startStream(rig.layer, { jobId: "j", device: mid, bottom: top }),
      "Node 'top' is not in a chain starting from 'mid'",
    ],
    [
      () => startStream(rig.layer, { jobId: "j", device: top, backingFile: "x" }),
      "backing file specified, but streaming the entire chain",
    ],
  ];
  for (const [action, message] of cases) await assertFails(action, "EINVAL", message);
  assertEquals(rig.jobs.list(), []);
  await rig.close();
});

Deno.test("a stream's errors: report fails at once, ignore at the end, stop goes on when told", async () => {
  for (const onError of ["report", "ignore", "stop"] as const) {
    const rig = new ChainRig();
    const base = rig.faulty("base");
    await fill(base, 0, 4 * MiB, 0x11);
    const top = await rig.qcow2("top", { backing: base });
    base.addRule({
      operations: ["read"],
      range: { offset: MiB, length: MiB },
      error: "EIO",
      count: 1,
    });
    const job = await startStream(rig.layer, { jobId: "job0", device: top, onError });
    if (onError === "stop") {
      await rig.until(() => job.status === "paused");
      job.resume();
    }
    await rig.conclude(job);
    const end = rig.takeEvents().find((event) => event.startsWith("BLOCK_JOB_COMPLETED"));
    assertEquals(
      end,
      onError === "stop" ? "BLOCK_JOB_COMPLETED" : "BLOCK_JOB_COMPLETED: Input/output error",
    );
    assertEquals(top.backing === null, onError === "stop");
    assertSameBytes(await content(top), await content(base));
    await rig.close();
  }
});

Deno.test("blockdev-snapshot puts an overlay in between two writes, or changes nothing", async () => {
  const rig = new ChainRig();
  const disk = await rig.qcow2("disk");
  const guest = rig.device(disk);
  await fill(guest, 0, MiB, 0x11);
  const overlay = await rig.qcow2("overlay");
  const options = { node: disk, overlay, jobs: rig.jobs };
  await assertFails(
    () => runTransaction(rig.layer, [{ type: "blockdev-snapshot", options }, { type: "abort" }]),
    "EINVAL",
    "Transaction aborted using Abort action",
  );
  assertEquals([guest.node, overlay.backing, disk.isReadOnly], [disk, null, false]);
  await runTransaction(rig.layer, [{ type: "blockdev-snapshot", options }]);
  assertEquals([guest.node, overlay.backing?.node, disk.isReadOnly], [overlay, disk, true]);
  await fill(guest, 10, 10, 0x22);
  assertEquals((await content(disk))[10], 0x11);
  assertEquals((await content(overlay)).subarray(9, 11), new Uint8Array([0x11, 0x22]));
  await assertFails(
    () => runTransaction(rig.layer, [{ type: "blockdev-snapshot", options }]),
    "EBUSY",
    "Node 'disk' is busy: node is used as backing hd of 'overlay'",
  );
  const small = await rig.qcow2("small", { sizeBytes: MiB });
  await assertFails(
    () =>
      runTransaction(rig.layer, [
        { type: "blockdev-snapshot", options: { ...options, node: overlay, overlay: small } },
      ]),
    "EINVAL",
    /The overlay has/,
  );
  await assertFails(
    () =>
      runTransaction(rig.layer, [
        {
          type: "blockdev-snapshot",
          options: { ...options, node: overlay, overlay: rig.memory("raw") },
        },
      ]),
    "EINVAL",
    "The overlay does not support backing images",
  );
  // And back again.
  const job = await startCommit(rig.layer, { jobId: "job0", device: overlay });
  await rig.until(() => job.isReady);
  job.complete();
  await rig.conclude(job);
  assertEquals(guest.node, disk);
  assertEquals((await content(disk))[10], 0x22);
  await rig.check(disk);
  await rig.close();
});

Deno.test("backup and mirror with sync=top copy what the top layer holds only", async () => {
  const rig = new ChainRig();
  const { mid, top } = await rig.chain();
  const before = await content(top);
  const copies: [string, (target: BlockNode) => Promise<void>][] = [
    ["backup", async (target) => {
      const job = await startBackup(rig.layer, { jobId: "j", source: top, target, sync: "top" });
      await rig.conclude(job);
      assertEquals(job.progress, { current: 2 * CLUSTER, total: 2 * CLUSTER });
    }],
    ["mirror", async (target) => {
      const job = await startMirror(rig.layer, { jobId: "j", source: top, target, sync: "top" });
      await rig.until(() => job.isReady);
      assertEquals(job.progress, { current: 2 * CLUSTER, total: 2 * CLUSTER });
      await job.cancel({ force: false });
      await rig.conclude(job);
    }],
  ];
  for (const [name, copy] of copies) {
    const target = await rig.qcow2(name, { backing: mid });
    await copy(target);
    assertSameBytes(await content(target), before, name);
    await rig.check(target);
  }
  await rig.close();
});

Deno.test("a base that is smaller grows with a commit, and one that is larger shows no more", async () => {
  for (const baseBytes of [2 * MiB, 8 * MiB]) {
    const rig = new ChainRig();
    const base = await rig.qcow2("base", { sizeBytes: baseBytes });
    await fill(base, 0, baseBytes, 0x11);
    const mid = await rig.qcow2("mid", { backing: base, sizeBytes: 4 * MiB });
    const top = await rig.qcow2("top", { backing: mid, sizeBytes: 6 * MiB });
    rig.device(top);
    await fill(mid, 3 * MiB, 100, 0x22);
    const before = await content(top);
    const job = await startCommit(rig.layer, { jobId: "job0", device: top, top: mid });
    await rig.conclude(job);
    assertEquals(top.backing?.node, base);
    assertSameBytes(await content(top), before, `base of ${baseBytes}`);
    await rig.close();
  }
});

Deno.test("a stream never overwrites what the guest wrote since it read", async () => {
  const rig = new ChainRig();
  const base = rig.faulty("base");
  await fill(base, 0, 4 * MiB, 0x11);
  const top = await rig.qcow2("top", { backing: base });
  const guest = rig.device(top);
  const gate = Promise.withResolvers<void>();
  const rule = base.addRule({
    operations: ["read"],
    when: "after",
    gate: () => gate.promise,
    range: { offset: 8 * CLUSTER, length: 1 },
    count: 1,
  });
  const job = await startStream(rig.layer, { jobId: "job0", device: top });
  await rig.until(() => rule.hitCount === 1);
  const write = fill(guest, 8 * CLUSTER, CLUSTER, 0x22);
  await rig.clock.advance(10);
  gate.resolve();
  await write;
  await rig.conclude(job);
  const bytes = await content(top);
  assertEquals([bytes[8 * CLUSTER], bytes[9 * CLUSTER - 1], bytes[9 * CLUSTER]], [
    0x22,
    0x22,
    0x11,
  ]);
  await rig.close();
});

Deno.test("nodes that were opened as a chain's are gone when a job took them out of it", async () => {
  for (const kind of ["stream", "commit", "active"] as const) {
    const rig = new ChainRig();
    const { base, mid, top, guest } = await rig.chain();
    // As the image on top was opened with what it names.
    for (const name of ["mid", "base"]) {
      rig.graph.adopt(rig.graph.get(name));
      rig.graph.adopt(rig.graph.get(`${name}.file`));
      await rig.graph.setReadOnly(name, true);
    }
    assertEquals([base.isReadOnly, rig.graph.get("base.file").isReadOnly], [true, true]);
    const before = await content(top);
    const job = kind === "stream"
      ? await startStream(rig.layer, { jobId: "job0", device: top })
      : await startCommit(rig.layer, {
        jobId: "job0",
        device: top,
        top: kind === "active" ? top : mid,
      });
    if (kind === "active") {
      await rig.until(() => job.isReady);
      job.complete();
    }
    await rig.conclude(job);
    assertEquals(job.hasFailed, false);
    assertSameBytes(await content(guest.node), before);
    const names = rig.graph.list().map(({ nodeName }) => nodeName);
    assertEquals(names.includes("base"), kind !== "stream");
    assertEquals(names.includes("mid"), kind === "active");
    assertEquals(base.isReadOnly, kind !== "active");
    await rig.close();
  }
});

Deno.test("a compressed backup takes less room and holds the same, also what the guest overwrote", async () => {
  const rig = new ChainRig();
  const source = rig.memory("source");
  const guest = rig.device(source);
  for (let i = 0; i < 40; i++) await fill(guest, i * CLUSTER, CLUSTER - 100, i + 1);
  const before = await content(source);
  const target = await rig.qcow2("target");
  const job = await startBackup(rig.layer, {
    jobId: "job0",
    source,
    target,
    sync: "full",
    compress: true,
  });
  await fill(guest, 3 * CLUSTER - 10, 20, 0x99);
  await guest.writeZeroes(30 * CLUSTER, 100);
  await rig.conclude(job);
  assertEquals(job.failure, null);
  assertSameBytes(await content(target), before);
  await rig.check(target);
  const bytes = target.children.get("file")?.node.allocatedBytes ?? Infinity;
  if (bytes > 20 * CLUSTER) throw new Error(`${bytes} bytes are not compressed`);
  await rig.close();
});

Deno.test("a snapshot of a disk with a chain is copied whole, whatever shows it", async () => {
  const rig = new ChainRig();
  const base = await rig.qcow2("base");
  const disk = await rig.qcow2("disk", { backing: base });
  await fill(base, 0, MiB, 0x11);
  await fill(disk, 3 * MiB, CLUSTER, 0x22);
  const before = await content(disk);
  const target = rig.memory("target");
  const file = rig.graph.add(
    new CopyBeforeWriteNode({
      nodeName: "cbw",
      file: disk,
      target: rig.memory("temp"),
      kernels: rig.kernels,
    }),
  );
  const access = rig.graph.add(new SnapshotAccessNode({ nodeName: "acc", file }));
  const shown = rig.graph.add(new RawNode({ nodeName: "shown", file: access }));
  await fill(rig.device(file), 0, CLUSTER, 0x33);
  for (const node of [access, shown]) {
    assertEquals(await runSteps(flagsOf(new DiskStatus(node), 4 * MiB)), [
      [CLUSTER, STATUS_ALLOCATED | STATUS_DATA],
      [MiB - CLUSTER, STATUS_DATA],
      [2 * MiB, STATUS_ZERO],
      [CLUSTER, STATUS_ALLOCATED | STATUS_DATA],
      [MiB - CLUSTER, STATUS_ZERO],
    ]);
  }
  const job = await startBackup(rig.layer, { jobId: "job0", source: shown, target, sync: "full" });
  await rig.conclude(job);
  assertSameBytes(await content(target), before);
  await rig.close();
});

function* flagsOf(status: DiskStatus, sizeBytes: number): Steps<[number, number][]> {
  const runs: [number, number][] = [];
  for (let at = 0; at < sizeBytes;) {
    const { length, flags } = yield* status.at(at, sizeBytes - at);
    const last = runs.at(-1);
    if (last !== undefined && last[1] === flags) last[0] += length;
    else runs.push([length, flags]);
    at += length;
  }
  return runs;
}
