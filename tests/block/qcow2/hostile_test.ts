/**
 * Images made to keep whoever looks at them busy: tables that are named over and over again, that
 * name themselves, that overlap. What is done with them takes about as long as they are large.
 *
 * @module
 */

import { assert } from "@std/assert";
import { IoVector } from "../../../src/block/io_vector.ts";
import type { BlockNode } from "../../../src/block/node.ts";
import { checkQcow2 } from "../../../src/block/qcow2/check.ts";
import { Qcow2Node } from "../../../src/block/qcow2/node.ts";
import { assertFails, filled } from "../support.ts";
import { createImage } from "./support.ts";

const CLUSTER = 65536;
const MiB = 1024 * 1024;
/** The first cluster behind the tables that an image begins with. */
const SPARE = 4 * MiB;

async function put(file: BlockNode, offset: number, value: bigint, count = 1): Promise<void> {
  const view = new DataView(new ArrayBuffer(count * 8));
  for (let index = 0; index < count; index++) view.setBigUint64(index * 8, value);
  await file.write(offset, IoVector.of(new Uint8Array(view.buffer)));
}

async function put32(file: BlockNode, offset: number, value: number): Promise<void> {
  const view = new DataView(new ArrayBuffer(4));
  view.setUint32(0, value);
  await file.write(offset, IoVector.of(new Uint8Array(view.buffer)));
}

/** Counts what is asked of a file. */
function countRequests(file: BlockNode): () => number {
  let count = 0;
  const read = file.read.bind(file);
  file.read = (offset, target) => {
    count++;
    return read(offset, target);
  };
  return () => count;
}

/** An image whose L1 table has a million entries, which all name one L2 table. */
async function manyEntries(refcountBits: number): Promise<BlockNode> {
  const file = await createImage({ sizeBytes: MiB, refcountBits });
  const l1Size = MiB;
  await file.resize(64 * MiB);
  await put(file, SPARE, (1n << 63n) | BigInt(SPARE - CLUSTER), l1Size);
  await put(file, SPARE - CLUSTER, (1n << 63n) | BigInt(SPARE - 2 * CLUSTER), CLUSTER / 8);
  await put(file, 24, BigInt(l1Size) * 512n * BigInt(MiB));
  await put32(file, 36, l1Size);
  await put(file, 40, BigInt(SPARE));
  return file;
}

Deno.test("an L2 table that is named a million times is looked at once", async () => {
  const file = await manyEntries(16);
  const requests = countRequests(file);
  const { corruptions } = await checkQcow2(file);
  assert(corruptions > 0);
  assert(requests() < 500, `${requests()} requests`);
});

Deno.test("a snapshot of such a disk is refused", async () => {
  const file = await manyEntries(64);
  // All is counted well then.
  await checkQcow2(file, { repair: "all" });
  const node = await Qcow2Node.open({ nodeName: "d", file, isReadOnly: false });
  const requests = countRequests(file);
  await assertFails(
    () => node.snapshots.create({ name: "x", dateMs: 0 }),
    "EIO",
    "qcow2: Image is corrupt: L2 table 0x3f0000 is used twice",
  );
  assert(requests() < 500, `${requests()} requests`);
});

Deno.test("tables that name themselves are found, and end", async () => {
  const file = await createImage({ sizeBytes: 4096 * MiB });
  const node = await Qcow2Node.open({ nodeName: "d", file, isReadOnly: false });
  await node.write(0, filled(CLUSTER, 1));
  await node.close();
  const view = new DataView(new ArrayBuffer(8));
  await file.read(3 * CLUSTER, IoVector.of(new Uint8Array(view.buffer)));
  const l2 = Number(view.getBigUint64(0) & 0x00fffffffffffe00n);
  await put(file, l2, (1n << 63n) | BigInt(l2), 4); // an L2 table
  await put(file, 3 * CLUSTER + 8, (1n << 63n) | BigInt(3 * CLUSTER), 2); // the L1 table
  await put(file, CLUSTER + 8, BigInt(CLUSTER), 8191); // the refcount table
  const { corruptions } = await checkQcow2(file);
  assert(corruptions > 0);
  const damaged = await Qcow2Node.open({ nodeName: "d", file, isReadOnly: false });
  await assertFails(() => damaged.write(0, filled(512, 2)), "EIO", /Preventing invalid write/);
  await damaged.close();
  const repaired = await checkQcow2(file, { repair: "all" });
  assert(repaired.corruptionsFixed > 0);
});

Deno.test("snapshots whose L1 tables are too large together are not checked", async () => {
  const file = await createImage({ sizeBytes: MiB });
  await file.resize(64 * MiB);
  const count = 1000;
  for (let index = 0; index < count; index++) {
    const at = SPARE + index * 56; // 40 bytes, 16 of extra data, no strings
    await put(file, at, BigInt(8 * MiB));
    await put32(file, at + 8, 4 * MiB - index);
    await put32(file, at + 36, 16);
  }
  await put32(file, 60, count);
  await put(file, 64, BigInt(SPARE));
  await assertFails(() => checkQcow2(file), "EFBIG", /L1 tables of the snapshots are too large/);
});
