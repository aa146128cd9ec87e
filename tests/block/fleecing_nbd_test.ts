/**
 * The scenarios of fleecing with the view read over NBD, as its readers do; and acceptance 31: what
 * is refused costs one answer, and the connection goes on.
 *
 * @module
 */

import { assert, assertEquals, assertRejects } from "@std/assert";
import type { ExportDirectory } from "../../src/block/export.ts";
import type { SnapshotExport } from "../../src/block/exports/snapshot_export.ts";
import { NbdClient, NbdError } from "../../src/nbd/client.ts";
import { NBD_EINVAL, NBD_EPERM } from "../../src/nbd/codec.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { CLUSTER, createSide, dataClusters, MiB, Rig } from "../support/fleecing_rig.ts";
import { streamPair } from "../support/nbd.ts";
import { scenarios } from "./fleecing_rows.ts";

/** A client of a server that offers the view. */
async function openView(view: SnapshotExport): Promise<{
  client: NbdClient;
  close: () => Promise<void>;
}> {
  const directory: ExportDirectory = {
    find: (name) => name === view.name ? view : undefined,
    list: () => [view],
  };
  const server = new NbdServer({ directory });
  const [near, far] = streamPair();
  const session = server.serve(far);
  const client = await NbdClient.connect(near, {
    exportName: view.name,
    contexts: ["base:allocation", "x-ovis:access"],
    requestBytesMax: 8 * MiB,
    outstandingBytesMax: 16 * MiB,
  });
  const close = async () => {
    await client.close();
    await session;
    await server.close();
  };
  return { client, close };
}

async function answer(call: () => unknown): Promise<string> {
  try {
    await call();
    return "ok";
  } catch (error) {
    if (error instanceof RangeError) return "EINVAL"; // the client's own check
    if (!(error instanceof NbdError)) throw error;
    if (error.errno === NBD_EPERM) return "refused";
    return error.errno === NBD_EINVAL ? "EINVAL" : `errno ${error.errno}`;
  }
}

for (const scenario of scenarios) {
  const setup = scenario.setup ?? {};
  if (setup.isSlow) continue; // time stands still here
  Deno.test(`fleecing, view over NBD: ${scenario.row}`, async () => {
    const rig = new Rig();
    await rig.guest.write(0, MiB, 0x11);
    await rig.guest.write(2 * MiB, MiB, 0x11);
    if (setup.bitmap) {
      const { granularity, dirty } = setup.bitmap;
      const bitmap = rig.bitmaps.add(rig.disk, { name: "b0", granularity });
      for (const [offset, length] of dirty) bitmap.mark(offset, length);
    }
    const fleecing = await rig.fleece({
      bitmap: setup.bitmap ? "b0" : null,
      onCbwError: setup.onCbwError ?? "break-guest-write",
    });
    if (setup.failsOnce) {
      fleecing.faults.addRule({ operations: ["write"], error: "EIO", count: 1 });
    }
    const { client, close } = await openView(fleecing.export);
    await scenario.run({
      guest: rig.guest,
      view: createSide({
        read: (offset, buffer) => client.readInto(offset, buffer),
        write: (offset, data) => client.write(offset, data),
        zero: (offset, length) => client.writeZeroes(offset, length),
        trim: (offset, length) => client.trim(offset, length),
        flush: () => client.flush(),
      }, answer),
      target: () => Promise.resolve(dataClusters(fleecing.target)),
      recovered: () => Promise.resolve(),
    });
    await close();
    await rig.close(fleecing);
  });
}

Deno.test("acceptance 31: over NBD, a refusal is one answer, with its reason, and the connection goes on", async () => {
  const rig = new Rig();
  await rig.guest.write(0, MiB, 0x11);
  const fleecing = await rig.fleece({ onCbwError: "break-snapshot" });
  const { client, close } = await openView(fleecing.export);
  await client.trim(0, CLUSTER);
  const statuses = await client.blockStatus(0, 4 * MiB);
  assertEquals(
    statuses.get("base:allocation")?.map(({ length, flags }) => [Number(length), Number(flags)]),
    [[CLUSTER, 1], [MiB - CLUSTER, 0], [3 * MiB, 3]],
  );
  assertEquals(
    statuses.get("x-ovis:access")?.map(({ length, flags }) => [Number(length), Number(flags)]),
    [[CLUSTER, 1], [4 * MiB - CLUSTER, 0]],
  );
  const refused = await assertRejects(() => client.read(100, 2 * CLUSTER), NbdError);
  assertEquals(refused.errno, NBD_EPERM);
  assert(/denied.*\b100\b/.test(refused.message), refused.message);
  assertEquals((await client.read(CLUSTER, 4)).join(), "17,17,17,17");
  assertEquals(await answer(() => client.write(MiB, new Uint8Array(512))), "refused");
  fleecing.faults.addRule({ operations: ["write"], error: "EIO", count: 1 });
  await rig.guest.write(4 * CLUSTER, 512, 0x22);
  for (const request of [() => client.read(MiB, 512), () => client.blockStatus(0, MiB)]) {
    const broken = await assertRejects(request, NbdError);
    assertEquals(broken.errno, NBD_EPERM);
    assert(broken.message.includes("The snapshot is broken: Copying"), broken.message);
  }
  await client.flush();
  await close();
  await rig.close(fleecing);
});
