/**
 * Power failures at every single request of what changes an image as a whole: snapshots, other
 * sizes, a larger refcount table, bitmaps that are stored, the way from dirty to clean. Of each
 * moment several outcomes are looked at, since what was not flushed may be there or not.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { DirtyBitmaps } from "../../../src/block/dirty_bitmap.ts";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { BlockError } from "../../../src/block/errors.ts";
import { IoVector } from "../../../src/block/io_vector.ts";
import type { BlockNode } from "../../../src/block/node.ts";
import { checkQcow2 } from "../../../src/block/qcow2/check.ts";
import type { Qcow2CreateOptions } from "../../../src/block/qcow2/create.ts";
import { Qcow2Node } from "../../../src/block/qcow2/node.ts";
import { compileKernels, Kernels } from "../../../src/wasm/kernels.ts";
import { CrashingFile } from "../../support/crashing_file.ts";
import { Random } from "../../support/simulation.ts";
import { filled, readBytes } from "../support.ts";
import { contentOf, createImage, TINY_CACHES } from "./support.ts";

const SEED = Number(Deno.env.get("OVIS_CRASH_SEED") ?? 1);
const OUTCOMES = Number(Deno.env.get("OVIS_CRASH_OUTCOMES") ?? 6);
const KiB = 1024;
const MiB = 1024 * KiB;
const kernelModule = await compileKernels();

/** A disk with its bitmaps. */
interface Disk {
  node: Qcow2Node;
  bitmaps: DirtyBitmaps;
}

async function openDisk(
  file: BlockNode,
  { isReadOnly, hasTinyCaches }: { isReadOnly: boolean; hasTinyCaches: boolean } = {
    isReadOnly: false,
    hasTinyCaches: false,
  },
): Promise<Disk> {
  const caches = hasTinyCaches ? TINY_CACHES : {};
  const node = await Qcow2Node.open({ nodeName: "disk", file, isReadOnly, ...caches });
  const bitmaps = new DirtyBitmaps(new Kernels(kernelModule));
  await bitmaps.load(node);
  return { node, bitmaps };
}

const READ_ONLY = { isReadOnly: true, hasTinyCaches: false };

interface Scenario {
  options: Partial<Qcow2CreateOptions>;
  /** Before: durable. */
  prepare(disk: Disk): unknown;
  /** What the power fails in. */
  action(disk: Disk): unknown;
  /** What must be so, whether the action happened or not. */
  verify(disk: Disk): unknown;
  /** COPIED bits may be out of step with refcounts, which a repair of leaks puts right. */
  changesCopied?: boolean;
  /** Metadata is written all the time. */
  hasTinyCaches?: boolean;
}

async function value(node: BlockNode, offset: number): Promise<number | undefined> {
  return (await readBytes(node, offset, 1))[0];
}

const SMALL = { sizeBytes: 256 * KiB, clusterBytes: 4 * KiB };

async function makeSnapshots({ node }: Disk): Promise<void> {
  await node.write(0, filled(64 * KiB, 1));
  await node.snapshots.create({ name: "one", dateMs: 0 });
  await node.write(8 * KiB, filled(32 * KiB, 2));
  await node.snapshots.create({ name: "two", dateMs: 0 });
  await node.write(16 * KiB, filled(8 * KiB, 3));
}

/** The snapshots that are listed hold what they held. */
async function verifySnapshots({ node }: Disk): Promise<void> {
  const expected: Record<string, number[]> = { one: [1, 1, 1], two: [1, 2, 2], three: [1, 2, 3] };
  for (const { name } of node.snapshots.list()) {
    const file = node.children.get("file")?.node;
    if (file === undefined) throw new Error("no file");
    const view = await Qcow2Node.open({ nodeName: "view", file, isReadOnly: true });
    await view.snapshots.show(name);
    const values = [0, 8, 16].map((at) => value(view, at * KiB));
    assertEquals(await Promise.all(values), expected[name], name);
  }
}

const SCENARIOS: Record<string, Scenario> = {
  "creating a snapshot": {
    options: SMALL,
    prepare: makeSnapshots,
    action: ({ node }) => node.snapshots.create({ name: "three", dateMs: 0 }),
    async verify(disk) {
      await verifySnapshots(disk);
      assert(disk.node.snapshots.list().length >= 2);
      assertEquals(await value(disk.node, 16 * KiB), 3);
    },
    changesCopied: true,
  },
  "applying a snapshot": {
    options: SMALL,
    prepare: makeSnapshots,
    action: ({ node }) => node.snapshots.apply("one"),
    async verify(disk) {
      await verifySnapshots(disk);
      const values = [await value(disk.node, 8 * KiB), await value(disk.node, 16 * KiB)];
      assert(["2,3", "1,1"].includes(values.join()), values.join());
    },
    changesCopied: true,
  },
  "removing a snapshot": {
    options: { ...SMALL, version: 2 },
    prepare: makeSnapshots,
    action: ({ node }) => node.snapshots.remove("one"),
    async verify(disk) {
      await verifySnapshots(disk);
      assert(disk.node.snapshots.find("two") !== undefined);
      assertEquals(await value(disk.node, 16 * KiB), 3);
    },
    changesCopied: true,
  },
  "growing, with a larger L1 table": {
    options: { ...SMALL, clusterBytes: 512 },
    prepare: ({ node }) => node.write(200 * KiB, filled(4096, 5)),
    action: async ({ node }) => {
      await node.resize(8 * MiB);
      await node.write(7 * MiB, filled(4096, 6));
    },
    verify: async ({ node }) => {
      assertEquals(await value(node, 200 * KiB), 5);
      assert([256 * KiB, 8 * MiB].includes(node.sizeBytes));
    },
  },
  "shrinking": {
    options: { ...SMALL, clusterBytes: 512 },
    prepare: ({ node }) => node.write(0, filled(256 * KiB, 5)),
    action: ({ node }) => node.resize(100 * KiB),
    verify: async ({ node }) => {
      assertEquals(await value(node, 99 * KiB), 5);
      assert([256 * KiB, 100 * KiB].includes(node.sizeBytes));
    },
  },
  "a larger refcount table": {
    options: { sizeBytes: 2560 * KiB, clusterBytes: 512, refcountBits: 64 },
    prepare: ({ node }) => node.write(0, filled(1960 * KiB, 5)),
    action: async ({ node }) => {
      await node.write(1960 * KiB, filled(64 * KiB, 6));
      await node.flush();
    },
    verify: async ({ node }) => assertEquals(await value(node, 1959 * KiB), 5),
  },
  "the first write after a snapshot, which copies L2 tables": {
    options: { ...SMALL, clusterBytes: 512 },
    prepare: async ({ node }) => {
      await node.write(0, filled(256 * KiB, 5));
      await node.snapshots.create({ name: "one", dateMs: 0 });
    },
    action: async ({ node }) => {
      for (let at = 0; at < 256; at += 32) await node.write(at * KiB, filled(512, 6));
      await node.flush();
    },
    verify: async ({ node }) => {
      for (let at = 0; at < 256; at += 32) assertEquals(await value(node, (at + 1) * KiB), 5);
    },
  },
  "many new L2 tables": {
    options: { ...SMALL, clusterBytes: 512 },
    prepare: ({ node }) => node.write(100 * KiB, filled(512, 5)),
    action: async ({ node }) => {
      for (let at = 0; at < 256; at += 32) await node.write(at * KiB, filled(512, 6));
      await node.flush();
    },
    verify: async ({ node }) => {
      assertEquals(await value(node, 100 * KiB), 5);
      for (let at = 0; at < 256; at += 32) {
        assert([0, 6].includes(await value(node, at * KiB) ?? 1));
      }
    },
  },
  "new refcount blocks, with next to no cache": {
    options: { ...SMALL, clusterBytes: 512, refcountBits: 64 },
    prepare: ({ node }) => node.write(100 * KiB, filled(512, 5)),
    action: async ({ node }) => {
      for (let at = 0; at < 96; at += 4) await node.write(at * KiB, filled(4 * KiB, 6));
      await node.flush();
    },
    verify: async ({ node }) => assertEquals(await value(node, 100 * KiB), 5),
    hasTinyCaches: true,
  },
  "discarding all": {
    options: { ...SMALL, clusterBytes: 512 },
    prepare: ({ node }) => node.write(0, filled(256 * KiB, 5)),
    action: async ({ node }) => {
      await node.discard(0, 128 * KiB);
      await node.flush();
      await node.write(0, filled(64 * KiB, 6));
      await node.close();
    },
    verify: async ({ node }) => assertEquals(await value(node, 128 * KiB), 5),
  },
  "closing after lazy refcounts": {
    options: { ...SMALL, hasLazyRefcounts: true },
    prepare: ({ node }) => node.write(0, filled(16 * KiB, 5)),
    action: async ({ node }) => {
      await node.write(32 * KiB, filled(16 * KiB, 6));
      await node.close();
    },
    verify: async ({ node }) => assertEquals(await value(node, 0), 5),
  },
  "another backing file name": {
    options: { ...SMALL, backingFile: "a", backingFormat: "raw" },
    prepare: () => {},
    action: ({ node }) => node.changeBackingFile("b", "qcow2"),
    verify: ({ node }) => {
      assert(["a raw", "b qcow2"].includes(`${node.backingFile} ${node.backingFormat}`));
    },
  },
  "storing bitmaps": {
    options: { ...SMALL, clusterBytes: 512 },
    async prepare({ node, bitmaps }) {
      bitmaps.add(node, { name: "old", granularity: 512, persistent: true });
      bitmaps.add(node, { name: "gone", granularity: 512, persistent: true });
      await node.write(64 * KiB, filled(64 * KiB, 1));
    },
    async action({ node, bitmaps }) {
      await node.write(0, filled(512, 2));
      await bitmaps.remove(node, "gone");
      bitmaps.add(node, { name: "new", granularity: 512, persistent: true });
      await node.write(512, filled(512, 2));
      await node.close();
    },
    verify({ node, bitmaps }) {
      const expected: Record<string, number[]> = {
        // Before the first change it is as it was, and after the close as it is then.
        old: [64 * KiB, 65 * KiB],
        gone: [64 * KiB],
        new: [512],
      };
      for (const bitmap of bitmaps.list(node)) {
        const { name, count, inconsistent } = bitmap.info();
        if (inconsistent) continue;
        assert(expected[name]?.includes(count), `${name}: ${count} bytes`);
        const isOld = count === 64 * KiB;
        if (name === "old") assertEquals(bitmap.bits.isSet(0), !isOld);
      }
    },
  },
};

async function snapshotOf(scenario: Scenario): Promise<Uint8Array> {
  const file = await createImage({ sizeBytes: MiB, ...scenario.options });
  const disk = await openDisk(file);
  await scenario.prepare(disk);
  await disk.node.close();
  return await contentOf(file);
}

async function isEndedByCrash(scenario: Scenario, file: CrashingFile): Promise<boolean> {
  try {
    const hasTinyCaches = scenario.hasTinyCaches ?? false;
    await scenario.action(await openDisk(file, { isReadOnly: false, hasTinyCaches }));
  } catch (error) {
    if (!(error instanceof BlockError) || !file.hasCrashed) throw error;
  }
  return file.hasCrashed;
}

async function checkOutcome(scenario: Scenario, bytes: Uint8Array): Promise<void> {
  const file = new MemoryNode({ nodeName: "file", sizeBytes: bytes.length });
  await file.write(0, IoVector.of(bytes));
  const issues: string[] = [];
  const onIssue = (issue: string) => issues.push(issue);
  const isDirty = ((bytes[79] ?? 0) & 1) !== 0;
  if (!isDirty && !scenario.changesCopied) {
    const { corruptions, checkErrors } = await checkQcow2(file, { onIssue });
    assertEquals([corruptions, checkErrors], [0, 0], issues.join("\n"));
  }
  const repaired = await checkQcow2(file, { repair: isDirty ? "all" : "leaks", onIssue });
  const { corruptions, leaks, checkErrors } = repaired;
  assertEquals([corruptions, leaks, checkErrors], [0, 0, 0], issues.join("\n"));
  await scenario.verify(await openDisk(file, READ_ONLY));
  // It works on, and what snapshots hold stays.
  const { node } = await openDisk(file);
  await node.write(0, filled(node.sizeBytes, 7));
  await node.close();
  const after = await checkQcow2(file, { onIssue });
  assertEquals([after.corruptions, after.leaks], [0, 0], issues.join("\n"));
  if (scenario.changesCopied) await verifySnapshots(await openDisk(file, READ_ONLY));
}

for (const [name, scenario] of Object.entries(SCENARIOS)) {
  Deno.test(`a power failure at any moment of ${name}`, async () => {
    const content = await snapshotOf(scenario);
    let isCrashed = true;
    for (let moment = 1; isCrashed; moment++) {
      const random = new Random(SEED + moment);
      const requestsUntilCrash = moment;
      const file = new CrashingFile({ random, content, requestsUntilCrash, isAsynchronous: false });
      isCrashed = await isEndedByCrash(scenario, file);
      for (let outcome = 0; outcome < OUTCOMES; outcome++) {
        const bytes = file.remains();
        try {
          await checkOutcome(scenario, bytes);
        } catch (error) {
          const reason = error instanceof Error ? error.message : String(error);
          throw new Error(`seed ${SEED}, request ${moment}, outcome ${outcome}: ${reason}`, {
            cause: error,
          });
        }
      }
    }
  });
}
