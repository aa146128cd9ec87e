/**
 * Images whose tables make no sense: each is refused or read with a clear error, nothing is written
 * over metadata, and the image is marked corrupt.
 */
import { assert, assertEquals } from "@std/assert";
import type { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { IoVector } from "../../../src/block/io_vector.ts";
import type { Qcow2CreateOptions } from "../../../src/block/qcow2/create.ts";
import { INCOMPAT_CORRUPT, INCOMPAT_DIRTY } from "../../../src/block/qcow2/format.ts";
import { parseQcow2Header } from "../../../src/block/qcow2/header.ts";
import { METADATA, MetadataMap } from "../../../src/block/qcow2/overlap.ts";
import { assertFails, filled, now, readBytes } from "../support.ts";
import { createImage, openImage, Random } from "./support.ts";

const MiB = 1024 * 1024;
const CLUSTER = 65536;
const L1 = 3 * CLUSTER;
const REFCOUNTS = 2 * CLUSTER;
const L2 = 4 * CLUSTER;

/** An image of 16 MiB with data in its first clusters: L2 table at 4, data from 5 on. */
async function imageWithData(
  options: Partial<Qcow2CreateOptions> = {},
  bytes = 4 * CLUSTER,
): Promise<MemoryNode> {
  const file = await createImage({ sizeBytes: 16 * MiB, ...options });
  const node = await openImage(file);
  await node.write(0, filled(bytes, 0x11));
  await node.close();
  return file;
}

/** Writes a number of 64 bits over whatever is there. */
async function poke(file: MemoryNode, offset: number, value: bigint): Promise<void> {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value);
  await file.write(offset, IoVector.of(bytes));
}

async function isMarkedCorrupt(file: MemoryNode): Promise<boolean> {
  const header = parseQcow2Header(await readBytes(file, 0, CLUSTER));
  return (header.incompatibleFeatures & INCOMPAT_CORRUPT) !== 0n;
}

const COPIED = 1n << 63n;

interface Case {
  name: string;
  at: number;
  value: bigint;
  message: RegExp;
  options?: Partial<Qcow2CreateOptions>;
}

/** What a read of the first cluster stumbles over. */
const CASES: readonly Case[] = [
  {
    name: "L2 table not aligned",
    at: L1,
    value: COPIED | BigInt(L2 + 512),
    message: /L2 table offset 0x40200 unaligned \(L1 index: 0x0\)/,
  },
  {
    name: "L2 table past the end",
    at: L1,
    value: COPIED | 0x1000000000000n,
    message: /L2 table offset 0x1000000000000 past the end of the file/,
  },
  {
    name: "cluster not aligned",
    at: L2,
    value: COPIED | BigInt(5 * CLUSTER + 512),
    message: /Cluster allocation offset 0x50200 unaligned \(L2 offset: 0x40000, L2 index: 0x0\)/,
  },
  {
    name: "zero cluster in version 2",
    at: L2,
    value: 1n,
    options: { version: 2 },
    message: /Zero cluster entry found in pre-v3 image \(L2 offset: 0x40000, L2 index: 0x0\)/,
  },
  {
    name: "subcluster both zero and allocated",
    at: L2 + 8,
    value: 0x1_00000001n,
    options: { hasExtendedL2: true },
    message: /Invalid cluster entry found \(L2 offset: 0x40000, L2 index: 0x0\)/,
  },
];

for (const { name, at, value, message, options = {} } of CASES) {
  Deno.test(`Qcow2Node finds wrong metadata, and writes no more: ${name}`, async () => {
    const file = await imageWithData(options);
    await poke(file, at, value);
    const reader = await openImage(file, { isReadOnly: true });
    await assertFails(() => readBytes(reader, 0, 512), "EIO", message);
    await reader.close();
    assert(!await isMarkedCorrupt(file), "a reader marks nothing");

    const node = await openImage(file);
    await assertFails(() => readBytes(node, 0, 512), "EIO", message);
    if (options.version === 2) return await node.close();
    await assertFails(
      () => node.write(8 * CLUSTER, filled(512, 1)),
      "EIO",
      "qcow2: Image is corrupt; it can't be written",
    );
    await assertFails(() => node.writeZeroes(0, CLUSTER), "EIO", /corrupt/);
    await assertFails(() => node.discard(0, CLUSTER), "EIO", /corrupt/);
    await node.close();
    assert(await isMarkedCorrupt(file));
    await assertFails(
      () => openImage(file),
      "EPERM",
      "qcow2: Image is corrupt; cannot be opened read/write",
    );
    const again = await openImage(file, { isReadOnly: true });
    assertEquals(again.details()["corrupt"], true);
    await again.close();
  });
}

Deno.test("Qcow2Node reads a cluster behind the file's end as zeroes", async () => {
  const file = await imageWithData();
  await poke(file, L2, COPIED | (1n << 40n));
  const node = await openImage(file, { isReadOnly: true });
  assertEquals(await readBytes(node, 0, 8), new Uint8Array(8));
  await node.close();
});

/** Where counts that lie send a new cluster. */
const OVERLAPS: readonly [string, number][] = [
  ["qcow2_header", 0],
  ["refcount table", 1],
  ["refcount block", 2],
  ["active L1 table", 3],
  ["active L2 table", 4],
];

for (const [name, cluster] of OVERLAPS) {
  Deno.test(`Qcow2Node never allocates a cluster that is in use as ${name}`, async () => {
    const file = await imageWithData();
    await file.write(REFCOUNTS + cluster * 2, IoVector.of(new Uint8Array(2)));
    const before = await readBytes(file, cluster * CLUSTER, CLUSTER);
    const node = await openImage(file);
    await assertFails(
      () => node.write(8 * MiB, filled(512, 1)),
      "EIO",
      "qcow2: Image is corrupt: Preventing invalid write on metadata " +
        `(overlaps with ${name})`,
    );
    await node.close();
    assert(await isMarkedCorrupt(file));
    const after = await readBytes(file, cluster * CLUSTER, CLUSTER);
    if (cluster === 0) after[79] = 0; // the corrupt bit
    assertEquals(after, before);
  });

  Deno.test(`Qcow2Node never writes data in place over ${name}`, async () => {
    const file = await imageWithData();
    await poke(file, L2, COPIED | BigInt(cluster * CLUSTER));
    const node = await openImage(file);
    // Offset 0 in an entry says that there is none.
    if (cluster > 0) {
      await assertFails(
        () => node.write(0, filled(512, 1)),
        "EIO",
        `qcow2: Image is corrupt: Preventing invalid write on metadata (overlaps with ${name})`,
      );
    }
    await node.close();
  });
}

Deno.test("Qcow2Node opens nothing whose refcount table is past the end", async () => {
  const file = await imageWithData();
  await poke(file, 48, 1n << 40n);
  await assertFails(() => openImage(file), "EIO", /past the end/);
});

Deno.test("Qcow2Node says what is wrong with a refcount block, when it needs it", async () => {
  for (
    const [value, message] of [
      [BigInt(REFCOUNTS + 512), /Refblock offset 0x20200 unaligned \(reftable index: 0x0\)/],
      [1n << 40n, /Refblock offset 0x10000000000 is past the end of the file/],
    ] as const
  ) {
    const file = await imageWithData();
    await poke(file, CLUSTER, value);
    const node = await openImage(file);
    assertEquals(await readBytes(node, 0, 1), Uint8Array.of(0x11));
    await assertFails(() => node.write(8 * MiB, filled(512, 1)), "EIO", message);
    await node.close();
  }
});

Deno.test("Qcow2Node repairs an image that was left dirty", async () => {
  const file = await createImage({ sizeBytes: 16 * MiB, hasLazyRefcounts: true });
  const node = await openImage(file);
  await node.write(0, filled(3 * CLUSTER, 0x22));
  await node.flush();
  const header = parseQcow2Header(await readBytes(file, 0, CLUSTER));
  assertEquals(header.incompatibleFeatures & INCOMPAT_DIRTY, INCOMPAT_DIRTY);
  // The node is left as if the process had been killed: its refcounts are in memory only.
  const reader = await openImage(file, { isReadOnly: true });
  assertEquals(await readBytes(reader, 0, 1), Uint8Array.of(0x22));
  await reader.close();
  const again = await openImage(file);
  assertEquals(await readBytes(again, 0, 3), new Uint8Array(3).fill(0x22));
  await again.write(8 * MiB, filled(CLUSTER, 0x33));
  assertEquals(await readBytes(again, 2 * CLUSTER, 3), new Uint8Array(3).fill(0x22));
  await again.close();
  const clean = parseQcow2Header(await readBytes(file, 0, CLUSTER));
  assertEquals(clean.incompatibleFeatures & INCOMPAT_DIRTY, 0n);
});

Deno.test("Qcow2Node clears autoclear bits that it does not know, keeps the rest", async () => {
  const file = await imageWithData();
  await poke(file, 80, 0xf0n);
  await poke(file, 88, 0xf000000000000000n);
  await (await openImage(file, { isReadOnly: true })).close();
  let header = parseQcow2Header(await readBytes(file, 0, CLUSTER));
  assertEquals(header.autoclearFeatures, 0xf000000000000000n);
  await (await openImage(file)).close();
  header = parseQcow2Header(await readBytes(file, 0, CLUSTER));
  assertEquals(header.autoclearFeatures, 0n);
  assertEquals(header.compatibleFeatures, 0xf0n);
});

Deno.test("MetadataMap finds what a table of all clusters would", () => {
  const random = new Random(3);
  const map = new MetadataMap(CLUSTER);
  const model = new Map<number, number>([[0, METADATA.header]]);
  const kinds = [METADATA.activeL2, METADATA.refcountBlock];
  for (let step = 0; step < 20_000; step++) {
    const cluster = 1 + random.below(3000);
    const kind = random.pick(kinds);
    const known = model.get(cluster) ?? 0;
    const what = random.below(3);
    if (what === 0) {
      map.add(kind, cluster * CLUSTER);
      model.set(cluster, known | kind);
    } else if (what === 1) {
      map.remove(kind, cluster * CLUSTER);
      model.set(cluster, known & ~kind);
    } else {
      const ignored = random.pick([0, ...kinds]);
      const offset = cluster * CLUSTER + random.below(CLUSTER);
      const length = 1 + random.below(2 * CLUSTER);
      let isFound = false;
      for (let at = cluster; at * CLUSTER < offset + length; at++) {
        if (((model.get(at) ?? 0) & ~ignored) !== 0) isFound = true;
      }
      assertEquals(map.find(offset, length, ignored) !== 0, isFound);
    }
  }
  map.setRanges(METADATA.activeL1, [{ offset: 5000 * CLUSTER, length: 8 }]);
  assertEquals(map.find(5000 * CLUSTER + 100, 1), METADATA.activeL1);
  map.setRanges(METADATA.activeL1, []);
  assertEquals(map.find(5000 * CLUSTER + 100, 1), 0);
});

Deno.test("Qcow2Node bounds what a table of nonsense costs", async () => {
  const file = await createImage({ sizeBytes: 64 * 1024 * MiB });
  const random = new Random(9);
  // Entries anywhere in a file that is small.
  for (let index = 0; index < 128; index++) {
    await poke(file, L1 + index * 8, COPIED | BigInt(random.below(2 ** 40)) * 65536n);
  }
  const node = await openImage(file);
  await assertFails(() => readBytes(node, 0, 512), "EIO", /past the end of the file/);
  assertEquals(now(node.blockStatus(0, 0)).length, 0);
  await node.close();
});
