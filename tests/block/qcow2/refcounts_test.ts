/**
 * Reference counts: of all widths, and growing beyond blocks and tables; the cache of their slices.
 */
import { assert, assertEquals } from "@std/assert";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { BlockError } from "../../../src/block/errors.ts";
import { IoVector } from "../../../src/block/io_vector.ts";
import { checkQcow2 } from "../../../src/block/qcow2/check.ts";
import { createQcow2 } from "../../../src/block/qcow2/create.ts";
import { geometryOf } from "../../../src/block/qcow2/geometry.ts";
import { MetadataCache } from "../../../src/block/qcow2/metadata_cache.ts";
import { getCount, maxCount, setCount } from "../../../src/block/qcow2/refcount_entry.ts";
import { layOutRefcountTable } from "../../../src/block/qcow2/refcount_table.ts";
import { assertFails, filled } from "../support.ts";
import {
  assertSameBytes,
  contentOf,
  createImage,
  openImage,
  Random,
  TINY_CACHES,
} from "./support.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

async function assertSound(file: Parameters<typeof checkQcow2>[0]): Promise<void> {
  const { corruptions, leaks, checkErrors } = await checkQcow2(file);
  assertEquals([corruptions, leaks, checkErrors], [0, 0, 0]);
}

Deno.test("setCount() sets one count of any width and no other", () => {
  for (let order = 0; order <= 6; order++) {
    const random = new Random(order);
    const view = new DataView(new ArrayBuffer(64));
    const model = new Array<number>(64 * 8 / 2 ** order).fill(0);
    for (let step = 0; step < 500; step++) {
      const index = random.below(model.length);
      const count = random.pick([0, 1, maxCount(order), random.below(maxCount(order) + 1)]);
      setCount(view, index, order, count);
      model[index] = count;
      for (const [at, expected] of model.entries()) {
        assertEquals(getCount(view, at, order), expected);
      }
    }
  }
});

Deno.test("layOutRefcountTable() makes room for a table that describes itself", () => {
  for (const clusterBits of [9, 12, 16, 21]) {
    for (const refcountOrder of [0, 4, 6]) {
      for (const entryCount of [1, 64, 100, 8192, 65536]) {
        const geometry = geometryOf({
          version: 3,
          clusterBits,
          incompatibleFeatures: 0n,
          refcountOrder,
        });
        const plan = layOutRefcountTable(geometry, entryCount);
        assert(plan.usedClusters <= plan.blockCount * geometry.refcountBlockEntries);
        const entries = plan.tableClusters * geometry.clusterSize / 8;
        assert(entries >= entryCount + plan.blockCount);
        assertEquals(plan.usedClusters, plan.blockCount + plan.tableClusters);
      }
    }
  }
});

for (const refcountBits of [1, 2, 4, 8, 16, 32, 64]) {
  Deno.test(`an image grows beyond its refcount blocks and table: ${refcountBits} bits`, async () => {
    const sizeBytes = 5 * MiB;
    const file = await createImage({ sizeBytes, clusterBytes: 512, refcountBits });
    const node = await openImage(file, TINY_CACHES);
    const bytes = new Uint8Array(sizeBytes);
    for (let at = 0; at < sizeBytes; at += 100 * KiB) {
      bytes.fill(1 + at / KiB % 251, at, at + 100 * KiB);
      const part = bytes.subarray(at, Math.min(at + 100 * KiB, sizeBytes));
      await node.write(at, IoVector.of(part));
    }
    assertSameBytes(await contentOf(node), bytes, "content");
    await node.close();
    await assertSound(file);
    const again = await openImage(file, { isReadOnly: true });
    assertSameBytes(await contentOf(again), bytes, "content");
    await again.close();
  });
}

Deno.test("an L1 table may be larger than what one refcount block describes", async () => {
  const file = await createImage({
    sizeBytes: 20 * KiB * MiB,
    clusterBytes: 512,
    refcountBits: 64,
  });
  await assertSound(file);
  const node = await openImage(file);
  await node.write(20 * KiB * MiB - 100, filled(100, 1));
  await node.resize(40 * KiB * MiB);
  await node.write(40 * KiB * MiB - 100, filled(100, 1));
  await node.close();
  await assertSound(file);
});

Deno.test("Refcounts.raise() refuses what a count has no room for", async () => {
  const file = await createImage({ sizeBytes: MiB, refcountBits: 2 });
  const node = await openImage(file);
  const { image } = node;
  await node.write(0, filled(512, 1));
  const raise = () => {
    for (const _ of image.refcounts.raise(5 * 65536, 1)) throw new Error("nobody waits");
  };
  raise();
  raise();
  await assertFails(raise, "EINVAL", "A cluster's reference count would be too large");
  await node.close();
});

Deno.test("clusters that a discard gave up are used again, after they were written off", async () => {
  const file = await createImage({ sizeBytes: 64 * MiB });
  const node = await openImage(file);
  let end = 0;
  for (let round = 0; round < 20; round++) {
    await node.write(0, filled(4 * MiB, round + 1));
    await node.discard(0, 4 * MiB);
    await node.flush();
    if (round === 1) end = node.image.file.node.allocatedBytes ?? 0;
  }
  assert((file.allocatedBytes ?? 0) <= end + MiB, `${file.allocatedBytes} bytes, ${end} before`);
  await node.close();
  await assertSound(file);
});

/** A file system of so many bytes: room is taken by writes and zeroes, given back by discards. */
class FullNode extends MemoryNode {
  readonly #pages = new Set<number>();

  constructor(readonly roomBytes: number) {
    super({ nodeName: "full", sizeBytes: 0 });
  }

  protected override doWrite(offset: number, source: IoVector): void {
    this.#takeRoom(offset, source.length);
    super.doWrite(offset, source, 0);
  }

  protected override doWriteZeroes(offset: number, length: number, flags: number): void {
    this.#takeRoom(offset, length);
    super.doWriteZeroes(offset, length, flags);
  }

  protected override doDiscard(offset: number, length: number): void {
    for (const page of pagesIn(offset, length)) this.#pages.delete(page);
    super.doWriteZeroes(offset, length, 0);
  }

  #takeRoom(offset: number, length: number): void {
    const wanted = [...pagesIn(offset, length)].filter((page) => !this.#pages.has(page));
    if ((this.#pages.size + wanted.length) * PAGE > this.roomBytes) {
      throw new BlockError("ENOSPC", "No space left on device");
    }
    for (const page of wanted) this.#pages.add(page);
  }
}

const PAGE = 4096;

function* pagesIn(offset: number, length: number): Generator<number> {
  for (let page = Math.floor(offset / PAGE); page * PAGE < offset + length; page++) yield page;
}

Deno.test("an image on a full file system loses nothing that it took", async () => {
  const file = new FullNode(4 * MiB);
  await createQcow2(file, { sizeBytes: 64 * MiB });
  const node = await openImage(file);
  const model = new Uint8Array(64 * MiB);
  let failures = 0;
  for (let at = 0; at < 64 * MiB; at += MiB) {
    try {
      await node.write(at + 100, filled(200 * KiB, 7));
      model.fill(7, at + 100, at + 100 + 200 * KiB);
    } catch (error) {
      assert(error instanceof BlockError && error.code === "ENOSPC", String(error));
      failures++;
    }
  }
  assert(failures > 10);
  await node.flush();
  assertSameBytes(await contentOf(node), model, "when it is full");
  await node.discard(0, 2 * MiB);
  model.fill(0, 0, 2 * MiB);
  await node.flush();
  await node.write(60 * MiB, filled(300 * KiB, 9));
  model.fill(9, 60 * MiB, 60 * MiB + 300 * KiB);
  await node.close();
  await assertSound(file);
  const again = await openImage(file, { isReadOnly: true });
  assertSameBytes(await contentOf(again), model, "afterwards");
  await again.close();
});

Deno.test("MetadataCache forgets what was used longest ago, never what is dirty", () => {
  const cache = new MetadataCache(512, 4 * 512);
  for (let index = 0; index < 4; index++) cache.put(index * 512, new Uint8Array(512), false);
  assert(cache.get(0) !== undefined);
  assertEquals(cache.makeRoom(), null);
  assertEquals(cache.get(512), undefined, "the oldest went");
  const dirty = cache.get(1024);
  if (dirty === undefined) throw new Error("a slice is missing");
  cache.markDirty(dirty);
  cache.put(4 * 512, new Uint8Array(512), false);
  assert(cache.get(0) !== undefined && cache.get(3 * 512) !== undefined);
  assertEquals(cache.makeRoom(), dirty, "a dirty one has to be written first");
  cache.markClean(dirty);
  assertEquals(cache.makeRoom(), null);
  assertEquals(cache.get(1024), undefined);
  assertEquals(cache.count, 3);
});
