/**
 * Fleecings as a whole: several disks at one moment, bitmaps, temporary images, start and stop.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { BlockBackend } from "../../src/block/backend.ts";
import { BlockLayer } from "../../src/block/block_layer.ts";
import { FileNode } from "../../src/block/drivers/file.ts";
import { MemoryNode } from "../../src/block/drivers/memory.ts";
import { RawNode } from "../../src/block/drivers/raw.ts";
import { Fleecing, type FleecingOptions } from "../../src/block/fleecing.ts";
import { BlockGraph } from "../../src/block/graph.ts";
import { IoVector } from "../../src/block/io_vector.ts";
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from "../../src/block/types.ts";
import { compileKernels, Kernels } from "../../src/wasm/kernels.ts";
import {
  CLUSTER,
  describeBytes,
  KiB,
  MiB,
  Rig,
  type RigFleecing,
} from "../support/fleecing_rig.ts";
import { runTransaction, type TransactionAction } from "../../src/block/transaction.ts";
import { Random } from "../support/simulation.ts";
import { assertFails, now, openDevice } from "./support.ts";

const module = await compileKernels();

/** Two disks in files, in a folder of their own. */
class FileRig implements AsyncDisposable {
  readonly graph = new BlockGraph();
  readonly kernels = new Kernels(module);
  readonly layer = new BlockLayer(this.kernels, { graph: this.graph });
  readonly bitmaps = this.layer.bitmaps;
  readonly directory = Deno.makeTempDirSync({ prefix: "ovis-fleecing-" });
  readonly scratchDirectory = `${this.directory}/scratch`;
  readonly devices: BlockBackend[] = [];

  constructor() {
    Deno.mkdirSync(this.scratchDirectory);
    for (const name of ["a", "b"]) {
      this.graph.add(FileNode.open({
        nodeName: name,
        path: `${this.directory}/${name}`,
        isReadOnly: false,
        create: true,
        sizeBytes: 4 * MiB,
      }));
      this.devices.push(openDevice(this.graph, name, name));
    }
  }

  async start(options: Partial<FleecingOptions> = {}): Promise<Fleecing> {
    return await Fleecing.start(this.graph, this.options(options));
  }

  options(options: Partial<FleecingOptions> = {}): FleecingOptions {
    return {
      name: "f",
      disks: this.devices.map((backend) => ({
        name: backend.name,
        exportName: `f-${backend.name}`,
        backend,
        bitmap: null,
        target: null,
      })),
      onCbwError: "break-snapshot",
      cbwTimeoutSeconds: 45,
      minClusterSizeBytes: 0,
      scratchMaxBytes: null,
      scratchDirectory: this.scratchDirectory,
      kernels: this.kernels,
      ...options,
    };
  }

  get scratchFiles(): string[] {
    return [...Deno.readDirSync(this.scratchDirectory)].map(({ name }) => name);
  }

  write(disk: number, offset: number, length: number, value: number): unknown {
    return this.devices[disk]?.write(offset, IoVector.of(new Uint8Array(length).fill(value)));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const device of this.devices) await device.release();
    await this.graph.close();
    Deno.removeSync(this.directory, { recursive: true });
  }
}

Deno.test("Fleecing.start() freezes two disks in files, and stop() leaves nothing behind", async () => {
  await using rig = new FileRig();
  for (const disk of [0, 1]) rig.write(disk, 0, MiB, 0x11 * (disk + 1));
  const fleecing = await rig.start();
  assertEquals(rig.scratchFiles.length, 2);
  // The hot path makes no promise, the first write included.
  for (const disk of [0, 1]) {
    assertEquals(rig.write(disk, CLUSTER, CLUSTER, 0xee), undefined);
    assertEquals(rig.write(disk, CLUSTER, CLUSTER, 0xef), undefined);
  }
  for (const [i, view] of fleecing.exports.entries()) {
    const buffer = new Uint8Array(2 * MiB);
    assertEquals(view.read(0, buffer), undefined);
    assertEquals(describeBytes(buffer), `${i === 0 ? "11" : "22"}*${MiB} 00*${MiB}`);
    assertEquals(view.sizeBytes, 4 * MiB);
  }
  const info = fleecing.info();
  assertEquals(
    info.map(({ disk, exportName, copiedBytes, clustersDone, clustersTotal }) => {
      return [disk, exportName, copiedBytes, clustersDone, clustersTotal];
    }),
    [["a", "f-a", CLUSTER, 1, 64], ["b", "f-b", CLUSTER, 1, 64]],
  );
  await Promise.all([fleecing.stop(), fleecing.stop()]);
  assertEquals(rig.scratchFiles, []);
  assertEquals(rig.graph.list().map(({ nodeName }) => nodeName), ["a", "b"]);
  assertEquals(rig.kernels.usedBytes, 0);
  const buffer = new Uint8Array(512);
  await rig.devices[0]?.read(CLUSTER, IoVector.of(buffer));
  assertEquals(describeBytes(buffer), "ef*512");
});

Deno.test("Fleecing.start() that fails at the second disk leaves everything as it was", async () => {
  await using rig = new FileRig();
  const b = rig.graph.get("b");
  const bitmap = rig.bitmaps.add(b, { name: "broken" });
  bitmap.isInconsistent = true;
  const used = rig.kernels.usedBytes;
  const disks = rig.devices.map((backend, i) => ({
    name: backend.name,
    exportName: backend.name,
    backend,
    bitmap: i === 1 ? bitmap : null,
    target: null,
  }));
  await assertFails(() => rig.start({ disks }), "EINVAL", /inconsistent/);
  const [first] = disks;
  if (first === undefined) throw new Error("no disk");
  await assertFails(() => rig.start({ disks: [first, first] }), "EINVAL", "A disk is named twice");
  await assertFails(() => rig.start({ disks: [] }), "EINVAL", /at least one disk/);
  await assertFails(() => rig.start({ scratchDirectory: `${rig.directory}/none` }), "ENOENT", /./);
  const actions: TransactionAction[] = [
    { type: "fleecing", options: rig.options() },
    { type: "add", node: b, options: { name: "new" } },
    { type: "abort" },
  ];
  await assertFails(() => runTransaction(rig.layer, actions), "EINVAL", /Abort action/);
  assertEquals(rig.scratchFiles, []);
  assertEquals(rig.graph.list().map(({ nodeName }) => nodeName), ["a", "b"]);
  assertEquals(rig.devices.map(({ node }) => node.nodeName), ["a", "b"]);
  assertEquals(rig.bitmaps.list(b).length, 1);
  assertEquals(rig.kernels.usedBytes, used);
});

Deno.test("Fleecing.start() is refused where somebody writes below the disk, and undone", async () => {
  await using rig = new FileRig();
  const raw = rig.graph.add(new RawNode({ nodeName: "raw", file: rig.graph.get("a") }));
  const [first] = rig.devices.splice(0, 1);
  await first?.release();
  const open = (nodeName: string) =>
    new BlockBackend(rig.graph, {
      name: nodeName,
      nodeName,
      perm: PERM_CONSISTENT_READ | PERM_WRITE,
      shared: PERM_ALL,
    });
  const [device, below] = [open("raw"), open("a")];
  rig.devices.unshift(device);
  const nodes = rig.graph.list();
  await assertFails(() => rig.start(), "EPERM", /'write' are both required by block device 'a'/);
  assertEquals(rig.graph.list(), nodes);
  assertEquals(device.node, raw);
  await below.release();
  const fleecing = await rig.start();
  await fleecing.stop();
});

Deno.test("all who may write to the disk's node are frozen, readers stay where they are", async () => {
  const rig = new Rig();
  await rig.device.release();
  const open = (perm: number) =>
    new BlockBackend(rig.graph, { name: "x", nodeName: "disk", perm, shared: PERM_ALL });
  const [reader, writer, device] = [
    open(PERM_CONSISTENT_READ),
    open(PERM_CONSISTENT_READ | PERM_WRITE),
    open(PERM_CONSISTENT_READ | PERM_WRITE),
  ];
  const fleecing = await startOver(rig, device);
  assertEquals([reader.node === rig.disk, writer.node === device.node], [true, true]);
  await writer.write(0, IoVector.of(new Uint8Array(512).fill(0x22)));
  const buffer = new Uint8Array(512);
  await fleecing.exports[0]?.read(0, buffer);
  assertEquals(describeBytes(buffer), "00*512");
  await fleecing.stop();
  for (const backend of [reader, writer, device]) await backend.release();
  await rig.graph.close();
});

async function startOver(rig: Rig, backend: BlockBackend): Promise<Fleecing> {
  const target = rig.graph.add(new MemoryNode({ nodeName: "t", sizeBytes: backend.sizeBytes }));
  return await Fleecing.start(rig.graph, {
    name: "f",
    disks: [{ name: "d", exportName: "e", backend, bitmap: null, target }],
    onCbwError: "break-snapshot",
    cbwTimeoutSeconds: 0,
    minClusterSizeBytes: 0,
    scratchMaxBytes: null,
    scratchDirectory: "",
    kernels: rig.kernels,
  });
}

Deno.test("fleecings that start at once each get in, and their views agree", async () => {
  const rig = new Rig();
  await rig.guest.write(0, MiB, 0x11);
  rig.disk.addRule({ operations: ["write"], delayMs: 5 });
  const write = rig.guest.write(0, CLUSTER, 0x22);
  const starting = [rig.fleece(), rig.fleece(), rig.fleece()];
  await rig.clock.advance(100);
  assertEquals(await write, "ok");
  const fleecings = await Promise.all(starting);
  const later = rig.guest.write(0, CLUSTER, 0x33);
  await rig.clock.advance(100);
  assertEquals(await later, "ok");
  for (const { view } of fleecings) {
    assertEquals(await view.read(0, 2 * CLUSTER), `22*${CLUSTER} 11*${CLUSTER}`);
  }
  await rig.close(...fleecings);
});

Deno.test("a discard on the view gives the temporary image's room back to the file system", async () => {
  await using rig = new FileRig();
  rig.write(0, 0, 4 * MiB, 0x11);
  const fleecing = await rig.start();
  rig.write(0, 0, 4 * MiB, 0x22);
  const room = () => {
    const sizes = rig.scratchFiles.map((name) => Deno.statSync(`${rig.scratchDirectory}/${name}`));
    return Math.max(...sizes.map(({ blocks }) => (blocks ?? 0) * 512));
  };
  const before = room();
  assertEquals(before >= 4 * MiB, true);
  await fleecing.exports[0]?.discard(100, 3 * MiB);
  assertEquals(before - room() >= 3 * MiB - 2 * CLUSTER, true, `${before} and then ${room()}`);
  assertEquals(fleecing.info()[0]?.scratchUsedBytes, MiB + CLUSTER);
  await fleecing.stop();
});

Deno.test("a disk of 10 TiB: its last clusters are found at once", async () => {
  const size = 10 * 1024 * 1024 * MiB + 512;
  const rig = new Rig({ sizeBytes: size });
  const fleecing = await rig.fleece();
  assertEquals(await rig.guest.write(size - 600, 600, 0x22), "ok");
  assertEquals(await fleecing.view.trim(size - CLUSTER - 512, CLUSTER), "ok");
  const [allocation, access] = fleecing.export.contexts;
  const forbidden = [
    { length: size - CLUSTER - 512, flags: 0 },
    { length: CLUSTER, flags: 1 },
    { length: 512, flags: 0 },
  ];
  for (let i = 0; i < 100; i++) {
    assertEquals(await access?.extents(0, size, { maxExtents: 9 }), forbidden);
    assertEquals(await fleecing.view.read(size - 513, 2), "refused");
    assertEquals(await fleecing.view.read(size - 512, 512), "00*512");
  }
  const most = 64 * 1024 * MiB;
  assertEquals(await allocation?.extents(0, most, { maxExtents: 9 }), [{ length: most, flags: 3 }]);
  await rig.close(fleecing);
});

Deno.test("scratchMaxBytes bounds the temporary images of all disks together", async () => {
  await using rig = new FileRig();
  for (const disk of [0, 1]) rig.write(disk, 0, MiB, 0x11);
  const fleecing = await rig.start({
    onCbwError: "break-guest-write",
    scratchMaxBytes: 3 * CLUSTER,
  });
  rig.write(0, 0, 2 * CLUSTER, 0x22);
  rig.write(1, 0, CLUSTER, 0x22);
  await assertFails(
    () => rig.write(1, CLUSTER, 1, 0x22),
    "ENOSPC",
    /the temporary images may hold no more than 196608 bytes/,
  );
  await fleecing.exports[0]?.discard(0, CLUSTER);
  await rig.write(1, CLUSTER, 1, 0x22);
  await fleecing.stop();
});

Deno.test("acceptance 12, 13: access is what the bitmap touched, whatever becomes of it later", async () => {
  for (const granularity of [512, 4 * KiB, MiB]) {
    const rig = new Rig();
    rig.bitmaps.add(rig.disk, { name: "b0", granularity });
    await rig.guest.write(0, 4 * MiB, 0x11);
    rig.bitmaps.clear(rig.disk, "b0");
    await rig.guest.write(2 * MiB + 4 * CLUSTER - 1, 2, 0x22);
    const fleecing = await rig.fleece({ bitmap: "b0" });
    const check = async () => {
      const [, access] = fleecing.export.contexts;
      const first = granularity === MiB ? 2 * MiB : 2 * MiB + 3 * CLUSTER;
      const length = granularity === MiB ? MiB : 2 * CLUSTER;
      assertEquals(await access?.extents(0, 4 * MiB, { maxExtents: 9 }), [
        { length: first, flags: 1 },
        { length, flags: 0 },
        { length: 4 * MiB - first - length, flags: 1 },
      ]);
      assertEquals(await fleecing.view.read(first - 1, 1), "refused");
      assertEquals((await fleecing.view.read(first, length)).endsWith("11*65535"), length < MiB);
    };
    await check();
    await rig.guest.write(0, MiB, 0x33);
    await check();
    rig.bitmaps.clear(rig.disk, "b0");
    await check();
    rig.bitmaps.remove(rig.disk, "b0");
    await check();
    await rig.close(fleecing);
  }
});

/** A backup by fleecing: what is readable of the view goes over the previous backup. */
async function backUp(rig: Rig, fleecing: RigFleecing, backup: Uint8Array): Promise<void> {
  const [, access] = fleecing.export.contexts;
  let offset = 0;
  while (offset < rig.sizeBytes) {
    const left = rig.sizeBytes - offset;
    const [extent] = await access?.extents(offset, left, { maxExtents: 1 }) ?? [];
    if (extent === undefined) throw new Error("no extent");
    if (extent.flags === 0) {
      const part = new Uint8Array(extent.length);
      await fleecing.export.read(offset, part);
      backup.set(part, offset);
      await fleecing.export.discard(offset, extent.length);
    }
    offset += extent.length;
  }
}

for (const seed of [36, 41]) {
  Deno.test(`acceptance 36, 41: full and incremental backups under constant writes, seed ${seed}`, async () => {
    const random = new Random(seed);
    const rig = new Rig();
    rig.disk.addRule({ operations: ["write", "read"], delayMs: 2 });
    let isWriting = true;
    const writing = Array.from({ length: 3 }, async () => {
      while (isWriting) {
        const offset = random.below(4 * MiB - 3000);
        const [length, value] = [1 + random.below(3000), random.below(256)];
        if (random.chance(80)) await rig.guest.write(offset, length, value);
        else await rig.guest.trim(offset, length);
      }
    });
    const ticking = (async () => {
      while (isWriting) await rig.clock.advance(2);
      await rig.clock.advance(100);
    })();
    const backup = new Uint8Array(rig.sizeBytes);
    const node = rig.disk;
    const file = rig.graph.get("disk-file");
    for (let round = 0; round < 6; round++) {
      const previous = round === 0 ? null : `chk${round - 1}`;
      // One moment: the view, the frozen previous bitmap, the new one that begins.
      const frozen = new Uint8Array(rig.sizeBytes);
      rig.graph.onMoment = () => void now(file.read(0, IoVector.of(frozen)));
      const fleecing = await rig.fleece({
        bitmap: previous,
        bitmapChanges: [
          { type: "add", node, options: { name: `chk${round}`, granularity: 4 * KiB } },
          ...(previous ? [{ type: "disable", node, name: previous } as const] : []),
        ],
      });
      rig.graph.onMoment = () => {};
      if (round === 3) {
        // A backup that failed: nothing of the bitmaps is lost.
        rig.bitmaps.merge(rig.bitmaps.get(node, `chk${round - 1}`), [
          rig.bitmaps.get(node, `chk${round}`),
        ]);
        rig.bitmaps.remove(node, `chk${round}`);
        const kept = rig.bitmaps.get(node, `chk${round - 1}`);
        rig.bitmaps.enable(node, kept.name);
        await fleecing.fleecing.stop();
        // Under the name of this round, for the next one.
        const again = rig.bitmaps.add(node, { name: `chk${round}`, granularity: 4 * KiB });
        rig.bitmaps.merge(again, [kept]);
        rig.bitmaps.remove(node, `chk${round - 1}`);
        continue;
      }
      await backUp(rig, fleecing, backup);
      assertEquals(firstDifference(backup, frozen), -1, `seed ${seed}, round ${round}`);
      await fleecing.fleecing.stop();
      if (previous !== null) rig.bitmaps.remove(node, previous);
    }
    isWriting = false;
    await Promise.all([...writing, ticking]);
    await rig.close();
  });
}

function firstDifference(a: Uint8Array, b: Uint8Array): number {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return i;
  return -1;
}
