/**
 * Dirty bitmaps of jobs (successors) and those that are kept with their disk, over a store in
 * memory that writes down what it is asked. The store of qcow2 has tests of its own.
 *
 * @module
 */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { Bitmap } from "../../src/block/bitmap.ts";
import type { BitmapStore, BitmapToStore, StoredBitmap } from "../../src/block/bitmap_store.ts";
import { runTransaction } from "../../src/block/transaction.ts";
import { BlockLayer } from "../../src/block/block_layer.ts";
import { DirtyBitmaps } from "../../src/block/dirty_bitmap.ts";
import { MemoryNode } from "../../src/block/drivers/memory.ts";
import { BlockError } from "../../src/block/errors.ts";
import { BlockGraph } from "../../src/block/graph.ts";
import { BlockNode } from "../../src/block/node.ts";
import { compileKernels, Kernels } from "../../src/wasm/kernels.ts";
import { CLUSTER, KiB, MiB, Rig } from "../support/fleecing_rig.ts";
import { assertFails, filled } from "./support.ts";

const module = await compileKernels();

interface Kept extends StoredBitmap {
  bytes: Uint8Array;
}

/** What is on the "disk": outlives its node. */
class MemoryStore implements BitmapStore {
  readonly calls: string[] = [];
  readonly kept = new Map<string, Kept>();
  isInUse = false;
  failing: string | null = null;

  list(): StoredBitmap[] {
    return [...this.kept.values()].map((kept) => ({
      ...kept,
      isInconsistent: kept.isInconsistent || this.isInUse,
    }));
  }

  checkNew(bitmap: { name: string }, others: readonly string[]): void {
    this.calls.push(`check ${bitmap.name} [${others}]`);
    if (bitmap.name === "bad") throw new BlockError("ENOTSUP", "no bad ones");
  }

  async readBits(name: string, bits: Bitmap): Promise<void> {
    await Promise.resolve();
    this.#fail("read");
    const { bytes } = this.kept.get(name) ?? { bytes: new Uint8Array() };
    bits.storage(0, bytes.length).set(bytes);
  }

  markInUse(): void {
    this.calls.push("in use");
    this.isInUse = true;
  }

  async store(bitmaps: readonly BitmapToStore[]): Promise<void> {
    await Promise.resolve();
    this.calls.push(`store [${bitmaps.map(({ name }) => name)}]`);
    this.#fail("store");
    this.kept.clear();
    for (const { name, granularity, isRecording, isInconsistent, bits } of bitmaps) {
      const bytes = bits.storage(0, Math.ceil(bits.bitCount / 8)).slice();
      this.kept.set(name, { name, granularity, isRecording, isInconsistent, bytes });
    }
    this.isInUse = false;
  }

  remove(name: string): void {
    this.calls.push(`remove ${name}`);
    this.#fail("remove");
    this.kept.delete(name);
  }

  #fail(what: string): void {
    if (this.failing === what) throw new BlockError("EIO", `no ${what}`);
  }
}

class StoringNode extends BlockNode {
  constructor(readonly store: MemoryStore, isReadOnly = false) {
    super({ nodeName: "src", driver: "test", sizeBytes: 4 * MiB, isReadOnly });
  }

  override get bitmapStore(): BitmapStore {
    return this.store;
  }

  protected override doRead(): void {}

  protected override doWrite(): void {}

  protected override doClose(): void {
    this.store.calls.push("close");
  }
}

async function open(store: MemoryStore, isReadOnly = false) {
  const kernels = new Kernels(module);
  const layer = new BlockLayer(kernels);
  const { graph, bitmaps } = layer;
  const node = graph.add(new StoringNode(store, isReadOnly));
  await bitmaps.load(node);
  return { layer, kernels, graph, node, bitmaps };
}

function refused(action: () => unknown, message: string): void {
  assertEquals(assertThrows(action, BlockError).message, message);
}

Deno.test("createSuccessor() freezes the bits; abdicate() forgets, reclaim() keeps them", async () => {
  const rig = new Rig();
  const bitmap = rig.bitmaps.add(rig.disk, { name: "b0" });
  const write = (cluster: number) => rig.guest.write(cluster * CLUSTER, 1, 1);
  const state = () => {
    const { count, busy, recording } = bitmap.info();
    return [count / CLUSTER, busy, recording];
  };
  await write(0);
  bitmap.createSuccessor();
  await write(1);
  assertEquals(state(), [1, true, true]);
  const busy = "Bitmap 'b0' is currently in use by another operation and cannot be used";
  for (const call of ["remove", "clear", "enable", "disable"] as const) {
    refused(() => rig.bitmaps[call](rig.disk, "b0"), busy);
  }
  refused(() => bitmap.use(), busy);
  refused(() => bitmap.createSuccessor(), busy);
  bitmap.reclaim();
  assertEquals(state(), [2, false, true]);

  bitmap.createSuccessor();
  await write(9);
  bitmap.abdicate();
  assertEquals(state(), [1, false, true]);
  assert(bitmap.bits.isSet(9 * CLUSTER));

  rig.bitmaps.disable(rig.disk, "b0");
  bitmap.createSuccessor();
  await write(10);
  assertEquals(state(), [1, true, false]);
  bitmap.reclaim();
  assertEquals(state(), [1, false, false]);

  const unused = bitmap.use();
  refused(() => bitmap.createSuccessor(), busy);
  unused();
  bitmap.createSuccessor(); // left behind by a job that was killed with its machine
  await rig.close();
  assertEquals(rig.kernels.usedBytes, 0);
});

Deno.test("a successor follows the disk's size where nobody could refuse that", async () => {
  const rig = new Rig();
  const bitmap = rig.bitmaps.add(rig.disk, { name: "b0" });
  await rig.guest.write(0, 1, 1);
  bitmap.createSuccessor();
  await rig.guest.write(2 * MiB, 1, 1);
  await assertFails(() => rig.disk.resize(8 * MiB), "EBUSY", /currently in use/);
  rig.disk.observer?.resized(8 * MiB);
  bitmap.reclaim();
  assertEquals([bitmap.bits.sizeBytes, bitmap.info().count], [8 * MiB, 2 * CLUSTER]);
  rig.disk.observer?.resized(4 * MiB);
  await rig.close();
});

Deno.test("1 TiB at 64 KiB takes 2 MiB, also merged from and to other granularities", () => {
  const kernels = new Kernels(module);
  const shape = { sizeBytes: 2 ** 40, granularity: 64 * KiB };
  const bitmap = new Bitmap(kernels, shape);
  assertEquals(kernels.usedBytes, 2 * MiB);
  using other = new Bitmap(kernels, shape);
  using coarse = new Bitmap(kernels, { ...shape, granularity: MiB });
  other.set(2 ** 39, 1);
  other.set(2 ** 40 - 1, 1);
  bitmap.merge(other);
  coarse.merge(bitmap);
  assertEquals([bitmap.countBytes(), coarse.countBytes()], [128 * KiB, 2 * MiB]);
  bitmap.merge(coarse);
  assertEquals(bitmap.countBytes(), 2 * MiB);
  bitmap[Symbol.dispose]();
  assertEquals(kernels.usedBytes, 2 * MiB + MiB / 8);
});

Deno.test("merge() works across nodes and granularities", async () => {
  const rig = new Rig();
  const other = rig.graph.add(new MemoryNode({ nodeName: "other", sizeBytes: 4 * MiB }));
  const fine = rig.bitmaps.add(other, { name: "fine", granularity: 512 });
  const coarse = rig.bitmaps.add(rig.disk, { name: "coarse", granularity: MiB });
  fine.bits.set(MiB - 512, 1024);
  const actions = (target: typeof fine, source: typeof fine) =>
    runTransaction(rig.layer, [{
      type: "merge",
      node: target.node,
      target: target.name,
      bitmaps: [{ node: source.node, name: source.name }],
    }]);
  await actions(coarse, fine);
  assertEquals(coarse.info().count, 2 * MiB);
  await actions(fine, coarse);
  assertEquals(fine.info().count, 2 * MiB);
  await rig.close();
});

Deno.test("a persistent bitmap is stored when its node closes, and comes back", async () => {
  const store = new MemoryStore();
  const first = await open(store);
  const b0 = first.bitmaps.add(first.node, { name: "b0", persistent: true, granularity: 4 * KiB });
  first.bitmaps.add(first.node, { name: "b1", persistent: true, disabled: true });
  first.bitmaps.add(first.node, { name: "gone" });
  await first.node.write(8 * KiB, filled(512, 1));
  const info = b0.info();
  assertEquals([info.persistent, info.count], [true, 4 * KiB]);
  await first.graph.close();
  assertEquals(first.kernels.usedBytes, 0);
  assertEquals(store.calls, ["check b0 []", "check b1 [b0]", "store [b0,b1]", "close"]);

  const second = await open(store);
  assertEquals([store.isInUse, second.bitmaps.list(second.node).length], [true, 2]);
  assertEquals(second.bitmaps.get(second.node, "b0").info(), info);
  assertEquals(second.bitmaps.get(second.node, "b1").info().recording, false);
  await second.node.write(0, filled(512, 1));
  assertEquals(second.bitmaps.get(second.node, "b0").info().count, 8 * KiB);
  await second.bitmaps.remove(second.node, "b1");
  assertEquals(store.calls.at(-1), "remove b1");
  await second.graph.close();
  assertEquals([...store.kept.keys()], ["b0"]);
});

Deno.test("a bitmap of a killed user is inconsistent, and stays so until it is removed", async () => {
  const store = new MemoryStore();
  const first = await open(store);
  first.bitmaps.add(first.node, { name: "b0", persistent: true });
  await first.graph.close();
  await open(store); // killed
  const { bitmaps, node, graph } = await open(store);
  const { recording, inconsistent, persistent, count } = bitmaps.get(node, "b0").info();
  assertEquals([recording, inconsistent, persistent, count], [false, true, true, 0]);
  const message = "Bitmap 'b0' is inconsistent and cannot be used";
  refused(() => bitmaps.get(node, "b0").createSuccessor(), message);
  refused(() => bitmaps.clear(node, "b0"), message);
  await node.write(0, filled(512, 1));
  await graph.close();
  const again = await open(store);
  assertEquals(again.bitmaps.get(again.node, "b0").isInconsistent, true);
  await again.bitmaps.remove(again.node, "b0");
  again.bitmaps.add(again.node, { name: "b0", persistent: true });
  await again.graph.close();
  assertEquals(store.list().map(({ isInconsistent }) => isInconsistent), [false]);
});

Deno.test("bitmaps of a read-only node are shown as they are stored, and can't be changed", async () => {
  const store = new MemoryStore();
  const first = await open(store);
  first.bitmaps.add(first.node, { name: "b0", persistent: true }).bits.set(0, 1);
  await first.graph.close();
  store.calls.length = 0;
  const { bitmaps, node, graph } = await open(store, true);
  const readonly = "Bitmap 'b0' is readonly and cannot be modified";
  refused(() => bitmaps.clear(node, "b0"), readonly);
  refused(() => bitmaps.remove(node, "b0"), readonly);
  refused(() => bitmaps.merge(bitmaps.get(node, "b0"), [bitmaps.get(node, "b0")]), readonly);
  bitmaps.get(node, "b0").use()();
  refused(
    () => bitmaps.add(node, { name: "b1", persistent: true }),
    "Can't make bitmap 'b1' persistent in 'src': No write access",
  );
  const copy = bitmaps.add(node, { name: "copy" });
  bitmaps.merge(copy, [bitmaps.get(node, "b0")]);
  assertEquals(copy.info().count, CLUSTER);
  await graph.close();
  assertEquals([store.isInUse, store.calls], [false, ["close"]]);
});

Deno.test("bitmaps are stored before a node becomes read-only, and go on when it is writable", async () => {
  const store = new MemoryStore();
  const { bitmaps, node, graph } = await open(store);
  const bitmap = bitmaps.add(node, { name: "b0", persistent: true });
  await graph.setReadOnly("src", true);
  refused(() => bitmaps.clear(node, "b0"), "Bitmap 'b0' is readonly and cannot be modified");
  assertEquals(store.isInUse, false);
  await graph.setReadOnly("src", false);
  assertEquals(store.isInUse, true);
  bitmap.bits.set(0, 1);
  await graph.close();
  assertEquals(store.kept.get("b0")?.bytes[0], 1);
});

Deno.test("what can't be stored or read is an error, and nothing stored is lost", async () => {
  const store = new MemoryStore();
  const first = await open(store);
  refused(
    () => first.bitmaps.add(first.node, { name: "bad", persistent: true }),
    "Can't make bitmap 'bad' persistent in 'src': no bad ones",
  );
  first.bitmaps.add(first.node, { name: "b0", persistent: true });
  await first.graph.close();

  store.failing = "read";
  await assertFails(() => open(store), "EIO", "no read");
  assertEquals(store.isInUse, false);
  const unread = new DirtyBitmaps(new Kernels(module));
  const graph = new BlockGraph();
  const node = graph.add(new StoringNode(store));
  await assertFails(() => unread.load(node), "EIO", "no read");
  refused(
    () => unread.add(node, { name: "b1", persistent: true }),
    "The bitmaps of src are not loaded",
  );
  await graph.close();
  assertEquals([...store.kept.keys()], ["b0"]);

  store.failing = null;
  const second = await open(store);
  store.failing = "remove";
  await runTransaction(second.layer, [{ type: "remove", node: second.node, name: "b0" }]);
  assertEquals(second.bitmaps.list(second.node), []);
  store.failing = "store";
  await assertFails(() => second.graph.close(), "EIO", "no store");
  assertEquals([store.calls.at(-1), second.kernels.usedBytes], ["close", 0]);
});
