/**
 * The acceptance list of fleecing, by its numbers: what needs no qcow2, job or persistent bitmap.
 * 64 MiB disk, 64 KiB clusters unless said. See also fleecing_waiting_test.ts (24 to 30) and
 * fleecing_bitmap_test.ts (12, 13, 36 to 41).
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { assert, assertEquals } from "@std/assert";
import { BlockBackend } from "../../src/block/backend.ts";
import { MemoryNode } from "../../src/block/drivers/memory.ts";
import { SnapshotAccessNode } from "../../src/block/filters/snapshot_access.ts";
import { Fleecing } from "../../src/block/fleecing.ts";
import type { BlockNode } from "../../src/block/node.ts";
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from "../../src/block/types.ts";
import { IoVector } from "../../src/block/io_vector.ts";
import { isZero } from "../../src/wasm/kernels.ts";
import {
  CLUSTER,
  dataClusters,
  KiB,
  MiB,
  outcome,
  Rig,
  type RigFleecing,
  type Side,
} from "../support/fleecing_rig.ts";
import { Random } from "../support/simulation.ts";
import { assertFails, blockError } from "./support.ts";

const SIZE = 64 * MiB;
const PATTERNS: [number, number, number][] = [
  [0x5d, 0, CLUSTER],
  [0xd5, MiB, CLUSTER],
  [0xdc, 32 * MiB, CLUSTER],
  [0xcd, SIZE - CLUSTER, CLUSTER],
];
const OVERWRITES: [number, number, number][] = [
  [0xab, 0, CLUSTER],
  [0xad, MiB - 32 * KiB, CLUSTER],
  [0x1d, 32 * MiB + 32 * KiB, CLUSTER],
  [0xea, SIZE - 2 * CLUSTER, CLUSTER],
];
const GAPS: [number, number][] = [[0xf8000, 32 * KiB], [0x2010000, CLUSTER], [0x3fe0000, CLUSTER]];

async function write(side: Side, patterns: [number, number, number][]): Promise<void> {
  for (const [value, offset, length] of patterns) {
    assertEquals(await side.write(offset, length, value), "ok");
  }
}

async function hasPatterns(side: Side, patterns: [number, number, number][]): Promise<void> {
  for (const [value, offset, length] of patterns) {
    assertEquals(await side.read(offset, length), `${value.toString(16)}*${length}`);
  }
}

async function statusOf(view: RigFleecing["export"], offset: number, length: number) {
  const [allocation] = view.contexts;
  return await allocation?.extents(offset, length, { maxExtents: 1000 });
}

Deno.test("acceptance 1 to 3: old data in the view, new data in the disk, also afterwards", async () => {
  const rig = new Rig({ sizeBytes: SIZE });
  await write(rig.guest, PATTERNS);
  const { view, ...fleecing } = await rig.fleece();
  const isOld = async () => {
    await hasPatterns(view, PATTERNS);
    for (const [offset, length] of GAPS) {
      assertEquals(await view.read(offset, length), `00*${length}`);
    }
  };
  await isOld();
  await write(rig.guest, OVERWRITES);
  await isOld();
  const isNew = async () => {
    await hasPatterns(rig.guest, OVERWRITES);
    await hasPatterns(rig.guest, [
      [0xd5, 0x108000, 32 * KiB],
      [0xdc, 32 * MiB, 32 * KiB],
      [0xcd, SIZE - CLUSTER, CLUSTER],
    ]);
  };
  await isNew();
  await fleecing.fleecing.stop();
  await isNew();
  await rig.close();
});

Deno.test("acceptance 4: with a bitmap of the patterns, the gaps are refused before and after", async () => {
  const rig = new Rig({ sizeBytes: SIZE });
  rig.bitmaps.add(rig.disk, { name: "b0" });
  await write(rig.guest, PATTERNS);
  const fleecing = await rig.fleece({ bitmap: "b0" });
  const check = async () => {
    await hasPatterns(fleecing.view, PATTERNS);
    for (const [offset, length] of GAPS) {
      assertEquals(await fleecing.view.read(offset, length), "refused");
    }
  };
  await check();
  await write(rig.guest, OVERWRITES);
  await check();
  await rig.close(fleecing);
});

Deno.test("acceptance 5: a byte copies its cluster, once", async () => {
  const rig = new Rig({ sizeBytes: SIZE });
  await rig.guest.write(0, MiB, 0x11);
  const fleecing = await rig.fleece();
  const copies = fleecing.faults.addRule({ operations: ["write"] });
  await rig.guest.write(5 * CLUSTER + 77, 1, 0x22);
  assertEquals(dataClusters(fleecing.target), "5+1");
  await rig.guest.write(5 * CLUSTER + 99, 1, 0x22);
  assertEquals(copies.matchCount, 1);
  const [info] = fleecing.fleecing.info();
  assertEquals([info?.clustersDone, info?.copiedBytes], [1, CLUSTER]);
  await rig.close(fleecing);
});

Deno.test("acceptance 6: unaligned writes copy the clusters that they touch", async () => {
  for (
    const [offset, length, count] of [
      [CLUSTER - 500, 1000, 2],
      [100, MiB + 2, 17],
      [CLUSTER - 1, MiB + 2, 18],
    ] as const
  ) {
    const rig = new Rig({ sizeBytes: SIZE });
    await rig.guest.write(0, 2 * MiB, 0x11);
    const fleecing = await rig.fleece();
    await rig.guest.write(offset, length, 0x22);
    assertEquals(fleecing.fleecing.info()[0]?.clustersDone, count, `${length} at ${offset}`);
    await rig.close(fleecing);
  }
});

Deno.test("acceptance 7: guest zero and trim leave old data and status data in the view", async () => {
  const rig = new Rig({ sizeBytes: SIZE });
  await rig.guest.write(0, MiB, 0x11);
  const fleecing = await rig.fleece();
  await rig.guest.trim(0, 2 * CLUSTER);
  await rig.guest.zero(4 * CLUSTER, 2 * CLUSTER, { unmap: true });
  assertEquals(await rig.guest.read(0, CLUSTER), `00*${CLUSTER}`);
  assertEquals(await fleecing.view.read(0, MiB), `11*${MiB}`);
  assertEquals(await statusOf(fleecing.export, 0, 2 * MiB), [
    { length: MiB, flags: 0 },
    { length: MiB, flags: 3 },
  ]);
  await rig.close(fleecing);
});

Deno.test("acceptance 8: a trim that the disk ignores touches nothing", async () => {
  const rig = new Rig({ discard: "ignore" });
  await rig.guest.write(0, MiB, 0x11);
  rig.bitmaps.add(rig.graph.get("disk-file"), { name: "b0" });
  const fleecing = await rig.fleece();
  assertEquals(await rig.guest.trim(0, MiB), "ok");
  assertEquals(await rig.guest.read(0, MiB), `11*${MiB}`);
  assertEquals(rig.bitmaps.list(rig.graph.get("disk-file"))[0]?.info().count, 0);
  await rig.close(fleecing);
});

Deno.test("acceptance 9: reads and status across done and undone clusters are old everywhere", async () => {
  const seed = 9;
  const random = new Random(seed);
  const rig = new Rig({ sizeBytes: 4 * MiB });
  const old = new Uint8Array(4 * MiB);
  for (let at = 0; at < old.length; at += 4 * KiB) {
    old.fill(random.chance(30) ? 0 : random.below(256), at, at + 4 * KiB);
  }
  await rig.device.write(0, IoVector.of(old.slice()));
  const fleecing = await rig.fleece();
  for (let i = 0; i < 1200; i++) {
    if (i % 20 === 0) {
      await rig.guest.write(random.below(4 * MiB - 5000), 1 + random.below(5000), 0xee);
    }
    const offset = random.below(4 * MiB);
    const length = 1 + random.below(Math.min(4 * MiB - offset, 5 * CLUSTER));
    const buffer = new Uint8Array(length);
    await fleecing.export.read(offset, buffer);
    assert(
      Buffer.compare(buffer, old.subarray(offset, offset + length)) === 0,
      `seed ${seed}, read ${i}: ${length} at ${offset}`,
    );
    let at = offset;
    for (const extent of await statusOf(fleecing.export, offset, length) ?? []) {
      const part = old.subarray(at, at + extent.length);
      if ((extent.flags & 2) !== 0) assert(isZero(part), `seed ${seed}`);
      at += extent.length;
    }
    assertEquals(at, offset + length);
  }
  await rig.close(fleecing);
});

Deno.test("acceptance 10: overwritten holes put no data into the target", async () => {
  const rig = new Rig({ sizeBytes: SIZE });
  const fleecing = await rig.fleece();
  await rig.guest.write(0, MiB, 0x22);
  assertEquals(dataClusters(fleecing.target), "");
  assertEquals(fleecing.fleecing.info()[0]?.scratchUsedBytes, 0);
  assertEquals(fleecing.fleecing.info()[0]?.clustersDone, 16);
  assertEquals(await statusOf(fleecing.export, 0, MiB), [{ length: MiB, flags: 3 }]);
  await rig.close(fleecing);
});

Deno.test("acceptance 11: a short last cluster is copied, read and released", async () => {
  const sizeBytes = 4 * MiB + 3584;
  const rig = new Rig({ sizeBytes });
  await rig.guest.write(4 * MiB, 3584, 0x11);
  const fleecing = await rig.fleece();
  assertEquals(await rig.guest.write(sizeBytes - 512, 512, 0x22), "ok");
  assertEquals(await fleecing.view.read(4 * MiB, 3584), "11*3584");
  assertEquals(fleecing.fleecing.info()[0]?.scratchUsedBytes, 3584);
  assertEquals(await fleecing.view.trim(4 * MiB, 3584), "ok");
  assertEquals(await fleecing.view.read(4 * MiB, 1), "refused");
  assertEquals(fleecing.fleecing.info()[0]?.scratchUsedBytes, 0);
  assertEquals(await fleecing.view.read(4 * MiB - 10, 10), "00*10");
  await rig.close(fleecing);
});

Deno.test("acceptance 14: one forbidden byte refuses the read, and is found", async () => {
  const rig = new Rig();
  await rig.guest.write(0, MiB, 0x11);
  const fleecing = await rig.fleece();
  await fleecing.export.discard(4 * CLUSTER, 2 * CLUSTER);
  for (
    const [offset, length] of [[3 * CLUSTER, CLUSTER + 1], [5 * CLUSTER, 2 * CLUSTER]] as const
  ) {
    const buffer = new Uint8Array(length);
    const error = await blockError(() => fleecing.export.read(offset, buffer));
    assertEquals(error.code, "EACCES");
    assert(buffer.every((byte) => byte === 0), "no partial data");
    const start = Math.max(offset, 4 * CLUSTER);
    const end = Math.min(offset + length, 6 * CLUSTER);
    assertEquals(error.range, { offset: start, length: end - start });
  }
  // The status of the node itself answers for what may be read, and refuses the rest.
  const acc = rig.graph.list().find((node) => node instanceof SnapshotAccessNode);
  assertEquals(await acc?.blockStatus(3 * CLUSTER, 2 * CLUSTER), { length: CLUSTER, flags: 5 });
  await assertFails(() => acc?.blockStatus(4 * CLUSTER, CLUSTER), "EACCES", /^Permission denied/);
  await rig.close(fleecing);
});

Deno.test("acceptance 15 and 17: no copy outside of the bitmap, nor after a discard", async () => {
  const rig = new Rig();
  await rig.guest.write(0, 2 * MiB, 0x11);
  const bitmap = rig.bitmaps.add(rig.disk, { name: "b0" });
  bitmap.mark(0, MiB);
  const fleecing = await rig.fleece({ bitmap: "b0" });
  await rig.guest.write(MiB, MiB, 0x22);
  await fleecing.export.discard(0, MiB);
  await rig.guest.write(0, MiB, 0x22);
  const [info] = fleecing.fleecing.info();
  assertEquals([info?.copiedBytes, info?.clustersDone, info?.clustersTotal], [0, 0, 16]);
  await rig.close(fleecing);
});

Deno.test("acceptance 16: discards free the target, may be repeated, and leave neighbours", async () => {
  const rig = new Rig();
  await rig.guest.write(0, MiB, 0x11);
  const fleecing = await rig.fleece();
  await rig.guest.write(0, MiB, 0x22);
  for (let i = 0; i < 2; i++) {
    assertEquals(await fleecing.view.trim(2 * CLUSTER, 3 * CLUSTER), "ok");
    assertEquals(dataClusters(fleecing.target), "0+2 5+11");
    assertEquals(fleecing.fleecing.info()[0]?.scratchUsedBytes, 13 * CLUSTER);
    assertEquals(await fleecing.view.read(2 * CLUSTER, 1), "refused");
  }
  assertEquals(await fleecing.view.read(0, 2 * CLUSTER), `11*${2 * CLUSTER}`);
  assertEquals(await fleecing.view.read(5 * CLUSTER, CLUSTER), `11*${CLUSTER}`);
  await rig.close(fleecing);
});

Deno.test("acceptance 18: an unaligned discard takes the clusters within it, and no others", async () => {
  const rig = new Rig();
  await rig.guest.write(0, MiB, 0x11);
  const fleecing = await rig.fleece();
  await rig.guest.write(0, MiB, 0x22);
  assertEquals(await fleecing.view.trim(10, 1000), "ok");
  assertEquals(dataClusters(fleecing.target), "0+16");
  assertEquals(await fleecing.view.trim(100, 3 * CLUSTER), "ok");
  assertEquals(dataClusters(fleecing.target), "0+1 3+13");
  assertEquals(await fleecing.view.read(CLUSTER, 1), "refused");
  assertEquals(await fleecing.view.read(3 * CLUSTER - 1, 1), "refused");
  assertEquals(await fleecing.view.read(0, CLUSTER), `11*${CLUSTER}`);
  assertEquals(await fleecing.view.read(3 * CLUSTER, CLUSTER), `11*${CLUSTER}`);
  await rig.close(fleecing);
});

Deno.test("acceptance 19: a view can't be written, by whomever", async () => {
  const rig = new Rig();
  const fleecing = await rig.fleece();
  assertEquals(await fleecing.view.write(0, 512, 1), "EPERM");
  assertEquals(await fleecing.view.zero(0, 512), "EPERM");
  assertEquals(await fleecing.view.flush(), "ok");
  const acc = rig.graph.list().find((node) => node instanceof SnapshotAccessNode);
  const writer = new BlockBackend(rig.graph, {
    name: "writer",
    nodeName: acc?.nodeName ?? "",
    perm: PERM_CONSISTENT_READ | PERM_WRITE,
    shared: PERM_ALL,
  });
  assertEquals(await outcome(() => writer.write(0, IoVector.of(new Uint8Array(512)))), "ENOTSUP");
  assertEquals(await outcome(() => writer.writeZeroes(0, 512)), "ENOTSUP");
  assertEquals(await outcome(() => writer.discard(0, CLUSTER)), "ok");
  assertEquals(await outcome(() => writer.flush()), "ok");
  await writer.release();
  await rig.close(fleecing);
});

Deno.test("snapshot-access over a node without a snapshot refuses everything but a flush", async () => {
  const rig = new Rig();
  const acc = rig.graph.add(new SnapshotAccessNode({ nodeName: "acc", file: rig.disk }));
  const buffer = IoVector.of(new Uint8Array(512));
  for (
    const request of [
      () => acc.read(0, buffer),
      () => acc.write(0, buffer),
      () => acc.writeZeroes(0, 512),
      () => acc.discard(0, 512),
      () => acc.blockStatus(0, 512),
    ]
  ) {
    assertEquals(await outcome(request), "ENOTSUP");
  }
  assertEquals(await outcome(() => acc.flush()), "ok");
  await rig.close();
});

for (const policy of ["break-guest-write", "break-snapshot"] as const) {
  const isGuests = policy === "break-guest-write";
  const failsAs = (code: string): string => isGuests ? code : "ok";

  Deno.test(`acceptance 20, 21: the target fails once, ${policy}`, async () => {
    const rig = new Rig();
    await rig.guest.write(0, MiB, 0x11);
    const fleecing = await rig.fleece({ onCbwError: policy });
    await rig.guest.write(8 * CLUSTER, CLUSTER, 0x22);
    fleecing.faults.addRule({ operations: ["write"], error: "EIO", count: 1 });
    assertEquals(await rig.guest.write(0, CLUSTER, 0x33), failsAs("EIO"));
    const value = isGuests ? "11" : "33";
    assertEquals(await rig.guest.read(0, CLUSTER), `${value}*${CLUSTER}`);
    const [info] = fleecing.fleecing.info();
    if (isGuests) {
      assertEquals(info?.brokenBy, null);
      assertEquals(await fleecing.view.read(0, MiB), `11*${MiB}`);
      assertEquals(await rig.guest.write(0, CLUSTER, 0x33), "ok");
      assertEquals(await fleecing.view.read(0, MiB), `11*${MiB}`);
    } else {
      assert(info?.brokenBy?.startsWith("Copying 65536 bytes at 0 before a write failed: "));
      assertEquals(rig.broken, ["disk0: EIO"]);
      // Also what was copied well; and the true reason is told.
      await assertFails(
        () => fleecing.export.read(8 * CLUSTER, new Uint8Array(512)),
        "EACCES",
        /^The snapshot is broken: Copying 65536 bytes at 0 before a write failed: /,
      );
      await assertFails(
        () => statusOf(fleecing.export, 0, 512),
        "EACCES",
        /^The snapshot is broken/,
      );
      assertEquals(fleecing.fleecing.info()[0]?.refusedReads, 1);
      const copied = info?.copiedBytes;
      assertEquals(await rig.guest.write(2 * CLUSTER, CLUSTER, 0x44), "ok");
      assertEquals(fleecing.fleecing.info()[0]?.copiedBytes, copied, "nothing is copied any more");
    }
    await rig.close(fleecing);
  });

  for (const limit of ["target full", "scratchMaxBytes"]) {
    Deno.test(`acceptance 22: ${limit} after 8 clusters, ${policy}`, async () => {
      const rig = new Rig();
      await rig.guest.write(0, MiB, 0x11);
      const fleecing = await rig.fleece({
        onCbwError: policy,
        ...(limit === "target full"
          ? { allocatedBytesMax: 8 * CLUSTER }
          : { scratchMaxBytes: 8 * CLUSTER }),
      });
      for (let i = 0; i < 16; i++) {
        assertEquals(
          await rig.guest.write(i * CLUSTER, 512, 0x22),
          i < 8 ? "ok" : failsAs("ENOSPC"),
          `write ${i}`,
        );
      }
      const expected = isGuests ? `11*${MiB}` : "refused";
      assertEquals(await fleecing.view.read(0, MiB), expected);
      if (isGuests) {
        // What the reader gives back may be used again.
        assertEquals(await fleecing.view.trim(0, CLUSTER), "ok");
        assertEquals(await rig.guest.write(8 * CLUSTER, 512, 0x22), "ok");
        assertEquals(await rig.guest.write(9 * CLUSTER, 512, 0x22), "ENOSPC");
      }
      await rig.close(fleecing);
    });
  }

  Deno.test(`acceptance 23: the disk fails while it is copied, ${policy}`, async () => {
    const rig = new Rig();
    await rig.guest.write(0, MiB, 0x11);
    const fleecing = await rig.fleece({ onCbwError: policy });
    rig.disk.addRule({ operations: ["read"], error: "EIO", count: 1 });
    assertEquals(await rig.guest.write(0, CLUSTER, 0x33), failsAs("EIO"));
    assertEquals(
      await fleecing.view.read(0, CLUSTER),
      isGuests ? `11*${CLUSTER}` : "refused",
    );
    await rig.close(fleecing);
  });
}

Deno.test("acceptance 31: both contexts answer over a forbidden area", async () => {
  const rig = new Rig();
  await rig.guest.write(0, MiB, 0x11);
  const fleecing = await rig.fleece();
  await fleecing.export.discard(0, CLUSTER);
  const [allocation, access] = fleecing.export.contexts;
  assertEquals([allocation?.name, access?.name], ["base:allocation", "x-ovis:access"]);
  const options = { maxExtents: 10 };
  assertEquals(await allocation?.extents(0, MiB, options), [
    { length: CLUSTER, flags: 1 },
    { length: MiB - CLUSTER, flags: 0 },
  ]);
  assertEquals(await access?.extents(0, 4 * MiB, options), [
    { length: CLUSTER, flags: 1 },
    { length: 4 * MiB - CLUSTER, flags: 0 },
  ]);
  assertEquals(await allocation?.extents(100, 200, options), [{ length: 200, flags: 1 }]);
  assertEquals(await allocation?.extents(0, 4 * MiB, { maxExtents: 2 }), [
    { length: CLUSTER, flags: 1 },
    { length: MiB - CLUSTER, flags: 0 },
  ]);
  await rig.close(fleecing);
});

Deno.test("acceptance 32: a second writer on the disk is refused, a reader is not", async () => {
  const rig = new Rig();
  const fleecing = await rig.fleece();
  const open = (perm: number) =>
    new BlockBackend(rig.graph, { name: "other", nodeName: "disk", perm, shared: PERM_ALL });
  const error = await blockError(() => open(PERM_CONSISTENT_READ | PERM_WRITE));
  assertEquals(error.code, "EPERM");
  assert(
    /'write'.*block device 'other'.*unshared by node '#block/.test(error.message),
    error.message,
  );
  await open(PERM_CONSISTENT_READ).release();
  const onTarget = await blockError(() =>
    new BlockBackend(rig.graph, {
      name: "other",
      nodeName: "temp0",
      perm: PERM_WRITE,
      shared: PERM_ALL,
    })
  );
  assertEquals(onTarget.code, "EPERM");
  await rig.close(fleecing);
});

Deno.test("acceptance 33: nobody resizes; bad targets are refused and leave nothing", async () => {
  const rig = new Rig();
  const fleecing = await rig.fleece();
  for (const { nodeName } of rig.graph.list()) {
    const error = await blockError(() => rig.graph.resize(nodeName, 8 * MiB));
    assert(error.code === "EPERM" || error.code === "ENOTSUP", `${nodeName}: ${error.message}`);
  }
  await fleecing.fleecing.stop();
  const before = rig.graph.list().length;
  for (
    const [target, message] of [
      [rig.disk, "Target 'disk' is the disk itself"],
      [rig.graph.get("disk-file"), "Target 'disk-file' is the disk itself"],
    ] as const
  ) {
    await assertFails(() => startInto(rig, target), "EINVAL", message);
    assertEquals(rig.graph.list().length, before);
  }
  const tooSmall = rig.graph.add(new MemoryNode({ nodeName: "small", sizeBytes: MiB }));
  await assertFails(
    () => startInto(rig, tooSmall),
    "EINVAL",
    "Target 'small' has 1048576 bytes, which is less than the 4194304 of 'disk'",
  );
  const readOnly = rig.graph.add(
    new MemoryNode({ nodeName: "ro", sizeBytes: 4 * MiB, isReadOnly: true }),
  );
  await assertFails(() => startInto(rig, readOnly), "EPERM", "Block node is read-only");
  assertEquals(rig.device.node, rig.disk);
  await rig.close();
});

async function startInto(rig: Rig, target: BlockNode): Promise<void> {
  await Fleecing.start(rig.graph, {
    name: "bad",
    disks: [{ name: "disk0", exportName: "bad", backend: rig.device, bitmap: null, target }],
    onCbwError: "break-snapshot",
    cbwTimeoutSeconds: 0,
    minClusterSizeBytes: 0,
    scratchMaxBytes: null,
    scratchDirectory: "",
    kernels: rig.kernels,
  });
}

Deno.test("acceptance 34: fleecings stack, each shows its own moment, and end in any order", async () => {
  for (const order of [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]]) {
    const rig = new Rig();
    await rig.guest.write(0, MiB, 0x11);
    const fleecings: RigFleecing[] = [];
    for (const value of [0xaa, 0xbb, 0xcc]) {
      fleecings.push(await rig.fleece());
      await rig.guest.write(CLUSTER, CLUSTER, value);
    }
    const left = new Set(fleecings);
    const check = async () => {
      for (const [i, value] of ["11", "aa", "bb"].entries()) {
        const fleecing = fleecings[i];
        if (fleecing === undefined || !left.has(fleecing)) continue;
        assertEquals(await fleecing.view.read(CLUSTER, CLUSTER), `${value}*${CLUSTER}`);
        assertEquals(await fleecing.view.read(9 * CLUSTER, CLUSTER), `11*${CLUSTER}`);
      }
      assertEquals(await rig.guest.read(CLUSTER, CLUSTER), `cc*${CLUSTER}`);
    };
    await check();
    for (const i of order) {
      const fleecing = fleecings[i];
      if (fleecing === undefined) throw new Error("no such fleecing");
      await fleecing.fleecing.stop();
      left.delete(fleecing);
      await check();
      await rig.guest.write((10 + i) * CLUSTER, CLUSTER, 0xdd);
    }
    assertEquals(rig.device.node, rig.disk);
    await rig.close();
  }
});

Deno.test("acceptance 35: filters go in and out under a guest that writes, and no write is lost", async () => {
  const rig = new Rig();
  rig.disk.addRule({ operations: ["write"], delayMs: 5 });
  let isWriting = true;
  let count = 0;
  const writes = (async () => {
    for (; isWriting; count++) {
      const offset = (count % 60) * CLUSTER;
      assertEquals(await rig.guest.write(offset, 512, count % 255 + 1), "ok");
      assertEquals(await rig.guest.read(offset, 512), `${hex(count % 255 + 1)}*512`);
    }
  })();
  let isTicking = true;
  writes.finally(() => isTicking = false);
  const ticking = (async () => {
    while (isTicking) await rig.clock.advance(5);
  })();
  for (let i = 0; i < 10; i++) {
    const fleecing = await rig.fleece();
    const filter = rig.device.node;
    // It can't go while the view is exported.
    await assertFails(
      () => rig.graph.remove(filter.nodeName),
      "EBUSY",
      `Node ${filter.nodeName} is in use`,
    );
    await assertFails(
      () => rig.graph.removeFilter(filter),
      "EBUSY",
      `Node ${filter.nodeName} is in use`,
    );
    await fleecing.fleecing.stop();
  }
  isWriting = false;
  await Promise.all([writes, ticking]);
  assert(count >= 20, `${count} writes`);
  await rig.close();
});

function hex(value: number): string {
  return value.toString(16).padStart(2, "0");
}

Deno.test("min-cluster-size and the target's cluster size make larger clusters", async () => {
  const rig = new Rig();
  await rig.guest.write(0, 4 * MiB, 0x11);
  const fleecing = await rig.fleece({ minClusterSizeBytes: 2 * MiB });
  await rig.guest.write(100, 1, 0x22);
  assertEquals(dataClusters(fleecing.target), "0+32");
  assertEquals(fleecing.fleecing.info()[0]?.clusterSizeBytes, 2 * MiB);
  assertEquals(await fleecing.view.read(0, 4 * MiB), `11*${4 * MiB}`);
  await rig.close(fleecing);
  for (const bad of [100_000, 0.5, -65536]) {
    const other = new Rig();
    await assertFails(
      () => other.fleece({ minClusterSizeBytes: bad }),
      "EINVAL",
      "min-cluster-size needs to be a power of 2",
    );
    await assertFails(
      () => other.fleece({ cbwTimeoutSeconds: -1 }),
      "EINVAL",
      "Parameter 'cbw-timeout' expects uint32_t",
    );
    await other.close();
  }
});
