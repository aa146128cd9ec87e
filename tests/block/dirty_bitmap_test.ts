/**
 * Dirty bitmaps: calls, limits and texts (acceptance 37, 38, 40), and their maps.
 *
 * @module
 */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { MemoryNode } from "../../src/block/drivers/memory.ts";
import { BlockError } from "../../src/block/errors.ts";
import { runTransaction } from "../../src/block/transaction.ts";
import { NodeExport } from "../../src/block/exports/node_export.ts";
import { CLUSTER, KiB, MiB, Rig } from "../support/fleecing_rig.ts";
import { assertFails } from "./support.ts";

function refused(action: () => unknown, message: string): void {
  assertEquals(assertThrows(action, BlockError).message, message);
}

Deno.test("acceptance 37: writes mark the bits that they touch", async () => {
  const rig = new Rig();
  const bitmap = rig.bitmaps.add(rig.disk, { name: "b0" });
  const count = () => bitmap.info().count;
  assertEquals(bitmap.info(), {
    name: "b0",
    count: 0,
    granularity: CLUSTER,
    recording: true,
    busy: false,
    persistent: false,
    inconsistent: false,
  });
  await rig.guest.read(0, MiB);
  await rig.guest.flush();
  assertEquals(count(), 0);
  await rig.guest.write(1000, 512, 0);
  assertEquals(count(), CLUSTER);
  await rig.guest.write(3 * CLUSTER - 1, 2, 1);
  assertEquals(count(), 3 * CLUSTER);
  await rig.guest.zero(MiB, MiB);
  await rig.guest.trim(2 * MiB, CLUSTER);
  assertEquals(count(), MiB + 4 * CLUSTER);
  rig.bitmaps.clear(rig.disk, "b0");
  assertEquals(count(), 0);
  // A failed write may have changed something.
  rig.disk.addRule({ operations: ["write"], error: "EIO", count: 1 });
  assertEquals(await rig.guest.write(0, 512, 1), "EIO");
  assertEquals(count(), CLUSTER);
  rig.bitmaps.disable(rig.disk, "b0");
  rig.bitmaps.disable(rig.disk, "b0");
  await rig.guest.write(MiB, 512, 1);
  assertEquals([count(), bitmap.info().recording], [CLUSTER, false]);
  rig.bitmaps.enable(rig.disk, "b0");
  await rig.guest.write(MiB, 512, 1);
  assertEquals(count(), 2 * CLUSTER);
  rig.bitmaps.remove(rig.disk, "b0");
  await rig.guest.write(2 * MiB, 512, 1);
  await rig.close();
});

Deno.test("acceptance 37: names and granularities", async () => {
  const rig = new Rig();
  const { bitmaps, disk } = rig;
  bitmaps.add(disk, { name: "b0" });
  refused(() => bitmaps.add(disk, { name: "b0" }), "Bitmap already exists: b0");
  refused(() => bitmaps.add(disk, { name: "" }), "Bitmap name cannot be empty");
  const long = "ä".repeat(512);
  refused(() => bitmaps.add(disk, { name: long }), `Bitmap name too long: ${long}`);
  bitmaps.add(disk, { name: "x".repeat(1023) });
  for (const granularity of [1000, 256, 0, -512, NaN]) {
    refused(
      () => bitmaps.add(disk, { name: "b1", granularity }),
      "Granularity must be power of 2 and at least 512",
    );
  }
  refused(
    () => bitmaps.add(disk, { name: "b1", granularity: 2 ** 32 }),
    "Parameter 'granularity' expects uint32_t",
  );
  refused(
    () => bitmaps.add(disk, { name: "b1", persistent: true }),
    "Can't store persistent bitmaps to disk: Operation not supported",
  );
  assertEquals(bitmaps.add(disk, { name: "b1", granularity: 512 }).info().granularity, 512);
  for (const call of ["remove", "clear", "enable", "disable"] as const) {
    refused(() => bitmaps[call](disk, "nope"), "Dirty bitmap 'nope' not found");
  }
  assertEquals(bitmaps.list(disk).map(({ name }) => name.slice(0, 2)), ["b0", "xx", "b1"]);
  await rig.close();
  assertEquals(bitmaps.list(disk), []);
});

Deno.test("acceptance 37: merge adds, across granularities, or changes nothing", async () => {
  const rig = new Rig();
  const { bitmaps, disk } = rig;
  const target = bitmaps.add(disk, { name: "b0", disabled: true });
  const fine = bitmaps.add(disk, { name: "fine", granularity: 4 * KiB, disabled: true });
  target.mark(0, 1);
  assertEquals(target.info().count, 0, "it does not record");
  fine.bits.set(0, 4 * KiB);
  target.bits.set(MiB, 1);
  bitmaps.merge(target, [fine, target]);
  assertEquals(target.info().count, 2 * CLUSTER);
  refused(() => bitmaps.merge(target, []), "Parameter 'bitmaps' names no bitmap");
  const other = rig.graph.add(new MemoryNode({ nodeName: "other", sizeBytes: MiB }));
  const small = bitmaps.add(other, { name: "b0" });
  small.bits.setAll();
  fine.bits.setAll();
  refused(
    () => bitmaps.merge(target, [fine, small]),
    "Bitmaps are of different sizes (destination size is 4194304, source size is 1048576) " +
      "and can't be merged",
  );
  assertEquals(target.info().count, 2 * CLUSTER);
  await rig.close();
});

Deno.test("acceptance 37: a bitmap that an export shows is busy, and goes on recording", async () => {
  const rig = new Rig();
  const { bitmaps, disk } = rig;
  const bitmap = bitmaps.add(disk, { name: "b0" });
  await rig.guest.write(CLUSTER, CLUSTER, 1);
  const shown = new NodeExport(rig.graph, { name: "e", nodeName: "disk", bitmaps: [bitmap] });
  const busy = "Bitmap 'b0' is currently in use by another operation and cannot be used";
  for (const call of ["remove", "clear", "enable", "disable"] as const) {
    refused(() => bitmaps[call](disk, "b0"), busy);
  }
  refused(() => bitmaps.merge(bitmap, [bitmap]), busy);
  refused(
    () => new NodeExport(rig.graph, { name: "f", nodeName: "disk", bitmaps: [bitmap] }),
    busy,
  );
  await assertFails(() => rig.graph.resize("disk", 8 * MiB), "EPERM", /resize/);
  await rig.guest.write(3 * CLUSTER, 1, 1);
  const [allocation, dirty] = shown.contexts;
  assertEquals(dirty?.name, "qemu:dirty-bitmap:b0");
  assertEquals(await dirty?.extents(0, 4 * MiB, { maxExtents: 9 }), [
    { length: CLUSTER, flags: 0 },
    { length: CLUSTER, flags: 1 },
    { length: CLUSTER, flags: 0 },
    { length: CLUSTER, flags: 1 },
    { length: 4 * MiB - 4 * CLUSTER, flags: 0 },
  ]);
  assertEquals(await allocation?.extents(0, 2 * CLUSTER, { maxExtents: 9 }), [
    { length: CLUSTER, flags: 3 },
    { length: CLUSTER, flags: 0 },
  ]);
  await shown.close();
  bitmaps.clear(disk, "b0");
  await rig.close();
});

Deno.test("acceptance 37: of an inconsistent bitmap nothing is possible but its removal", async () => {
  const rig = new Rig();
  const { bitmaps, disk } = rig;
  const bitmap = bitmaps.add(disk, { name: "b0" });
  bitmap.isInconsistent = true;
  const message = "Bitmap 'b0' is inconsistent and cannot be used";
  for (const call of ["clear", "enable", "disable"] as const) {
    refused(() => bitmaps[call](disk, "b0"), message);
  }
  await assertFails(() => rig.fleece({ bitmap: "b0" }), "EINVAL", message);
  assertEquals([bitmap.info().inconsistent, bitmap.info().recording], [true, false]);
  bitmaps.remove(disk, "b0");
  await rig.device.release();
  await rig.graph.close();
});

Deno.test("acceptance 38: a transaction that fails leaves everything as it was", async () => {
  const rig = new Rig();
  const { bitmaps, disk: node } = rig;
  for (const name of ["b0", "b1", "b2"]) bitmaps.add(node, { name }).bits.set(0, MiB);
  bitmaps.add(node, { name: "b3" }).bits.set(2 * MiB, MiB);
  const before = bitmaps.list(node).map((bitmap) => bitmap.info());
  for (const failing of ["abort", "remove"] as const) {
    await assertRejects(
      () =>
        runTransaction(rig.layer, [
          { type: "clear", node, name: "b0" },
          { type: "add", node, options: { name: "new" } },
          { type: "disable", node, name: "b1" },
          { type: "merge", node, target: "b1", bitmaps: [{ node, name: "b3" }] },
          { type: "remove", node, name: "b3" },
          failing === "abort" ? { type: "abort" } : { type: "remove", node, name: "b3" },
        ]),
      BlockError,
      failing === "abort"
        ? "Transaction aborted using Abort action"
        : "Dirty bitmap 'b3' not found",
    );
    assertEquals(bitmaps.list(node).map((bitmap) => bitmap.info()), before);
  }
  assertEquals(await runTransaction(rig.layer, []), []);
  await rig.close();
});

Deno.test("acceptance 38: rotation: old bits in a new bitmap, the old one empty and recording", async () => {
  const rig = new Rig();
  const { bitmaps, disk: node } = rig;
  bitmaps.add(node, { name: "b0" });
  await rig.guest.write(0, CLUSTER, 1);
  await runTransaction(rig.layer, [
    { type: "add", node, options: { name: "b2", disabled: true } },
    { type: "merge", node, target: "b2", bitmaps: [{ node, name: "b0" }] },
    { type: "clear", node, name: "b0" },
  ]);
  const state = () => bitmaps.list(node).map((b) => [b.name, b.info().count, b.info().recording]);
  assertEquals(state(), [["b0", 0, true], ["b2", CLUSTER, false]]);
  await rig.guest.write(MiB, CLUSTER, 1);
  assertEquals(state(), [["b0", CLUSTER, true], ["b2", CLUSTER, false]]);
  await rig.close();
});

Deno.test("acceptance 40: bitmaps follow their disk's size", async () => {
  const rig = new Rig({ sizeBytes: 16 * MiB });
  const bitmap = rig.bitmaps.add(rig.disk, { name: "b0" });
  await rig.guest.write(0, 1, 1);
  await rig.guest.write(12 * MiB, 1, 1);
  await rig.device.release();
  const counts: number[] = [];
  for (const size of [32 * MiB, 8 * MiB, 64 * MiB]) {
    await rig.graph.resize("disk", size);
    assertEquals(bitmap.bits.sizeBytes, size);
    counts.push(bitmap.info().count);
  }
  assertEquals(counts, [2 * CLUSTER, CLUSTER, CLUSTER]);
  const end = bitmap.use();
  await assertFails(() => rig.graph.resize("disk", 16 * MiB), "EBUSY", /currently in use/);
  end();
  await rig.graph.close();
  assertEquals(rig.kernels.usedBytes, 0);
});

Deno.test("a resize fails as a whole where there is no memory for its bitmaps", async () => {
  const rig = new Rig();
  rig.bitmaps.add(rig.disk, { name: "b0", granularity: 512 });
  await rig.device.release();
  await assertFails(() => rig.graph.resize("disk", 2 ** 44), "EINVAL", /too fine/);
  assertEquals(rig.disk.sizeBytes, 4 * MiB);
  assert(rig.kernels.usedBytes > 0);
  await rig.graph.close();
  assertEquals(rig.kernels.usedBytes, 0);
});
