import { assertEquals } from "@std/assert";
import { MemoryNode } from "../../src/block/drivers/memory.ts";
import { NullCoNode } from "../../src/block/drivers/null_co.ts";
import { RawNode } from "../../src/block/drivers/raw.ts";
import { BlockGraph } from "../../src/block/graph.ts";
import { STATUS_ALLOCATED, STATUS_DATA, STATUS_ZERO } from "../../src/block/types.ts";
import { assertFails, filled, now, readBytes } from "./support.ts";

const CHUNK = 64 * 1024;

Deno.test("MemoryNode takes memory with the first write and gives it back", () => {
  const node = new MemoryNode({ nodeName: "mem", sizeBytes: 2 ** 40 });
  assertEquals(node.allocatedBytes, 0);
  now(node.writeZeroes(0, 2 ** 40));
  assertEquals(node.allocatedBytes, 0);
  now(node.write(2 ** 40 - 1, filled(1, 1)));
  now(node.write(CHUNK - 1, filled(2, 1)));
  assertEquals(node.allocatedBytes, 3 * CHUNK);
  now(node.discard(CHUNK, CHUNK - 1));
  assertEquals(node.allocatedBytes, 3 * CHUNK);
  now(node.discard(CHUNK, CHUNK));
  assertEquals(node.allocatedBytes, 2 * CHUNK);
  now(node.discard(1, 2 ** 40 - 1));
  assertEquals(node.allocatedBytes, CHUNK);
  now(node.writeZeroes(0, CHUNK));
  assertEquals(node.allocatedBytes, 0);
});

Deno.test("MemoryNode fails a write beyond its limit as a whole", async () => {
  const limits = { sizeBytes: 2 ** 40, allocatedBytesMax: 3 * CHUNK };
  const node = new MemoryNode({ nodeName: "mem", ...limits });
  now(node.write(0, filled(2 * CHUNK, 1)));
  await assertFails(
    () => node.write(CHUNK, filled(3 * CHUNK, 2)),
    "ENOSPC",
    `Node 'mem' may hold no more than ${3 * CHUNK} bytes`,
  );
  assertEquals(await readBytes(node, CHUNK - 1, 2), new Uint8Array([1, 1]));
  assertEquals(node.allocatedBytes, 2 * CHUNK);
  now(node.write(CHUNK, filled(2 * CHUNK, 2)));
  now(node.discard(0, CHUNK));
  now(node.write(2 ** 39, filled(1, 3)));
});

Deno.test("MemoryNode shows what is allocated, in bounded steps", () => {
  const node = new MemoryNode({ nodeName: "mem", sizeBytes: 2 ** 40 });
  now(node.write(3 * CHUNK, filled(CHUNK + 1, 1)));
  const hole = STATUS_ALLOCATED | STATUS_ZERO;
  const data = STATUS_ALLOCATED | STATUS_DATA;
  assertEquals(now(node.blockStatus(5, 10 * CHUNK)), { length: 3 * CHUNK - 5, flags: hole });
  assertEquals(now(node.blockStatus(3 * CHUNK + 5, CHUNK)), { length: CHUNK, flags: data });
  assertEquals(now(node.blockStatus(4 * CHUNK, 2 ** 39)), { length: CHUNK, flags: data });
  assertEquals(now(node.blockStatus(5 * CHUNK, 2 ** 39)), { length: 2 ** 30, flags: hole });
});

Deno.test("NullCoNode forgets what is written and reads zeroes only if asked to", async () => {
  const plain = new NullCoNode({ nodeName: "n", sizeBytes: 2 ** 50 });
  now(plain.write(0, filled(10, 1)));
  now(plain.writeZeroes(0, 2 ** 50));
  now(plain.discard(0, 2 ** 50));
  now(plain.flush());
  assertEquals(await readBytes(plain, 0, 2), new Uint8Array([0xee, 0xee]));
  assertEquals(now(plain.blockStatus(7, 9)).flags, STATUS_ALLOCATED | STATUS_DATA);

  const zeroes = new NullCoNode({ nodeName: "n", sizeBytes: 100, readZeroes: true });
  assertEquals(await readBytes(zeroes, 98, 2), new Uint8Array(2));
  assertEquals(now(zeroes.blockStatus(7, 9)), { length: 9, flags: STATUS_ALLOCATED | STATUS_ZERO });
  await assertFails(() => zeroes.read(99, filled(2, 0)), "EINVAL", /outside/);
  now(zeroes.resize(101));
  now(zeroes.read(99, filled(2, 0)));
  const readOnly = new NullCoNode({ nodeName: "n", sizeBytes: 100, isReadOnly: true });
  await assertFails(() => readOnly.write(0, filled(1, 0)), "EPERM", "Block node is read-only");
});

Deno.test("RawNode shows the part of its file that was asked for", async () => {
  const file = new MemoryNode({ nodeName: "mem", sizeBytes: 1000 });
  now(file.write(0, filled(1000, 1)));
  const part = new RawNode({ nodeName: "part", file, offset: 100, sizeBytes: 50 });
  assertEquals([part.sizeBytes, part.children.get("file")?.role], [50, "data"]);
  now(part.write(0, filled(50, 2)));
  assertEquals(await readBytes(file, 99, 3), new Uint8Array([1, 2, 2]));
  assertEquals(await readBytes(file, 149, 2), new Uint8Array([2, 1]));
  await assertFails(() => part.read(50, filled(1, 0)), "EINVAL", /outside of node 'part'/);
  await assertFails(() => part.resize(51), "ENOTSUP", "Cannot resize fixed-size raw disks");
  const whole = new RawNode({ nodeName: "whole", file });
  assertEquals([whole.sizeBytes, whole.children.get("file")?.role], [1000, "filtered"]);
  const rest = new RawNode({ nodeName: "rest", file, offset: 1000 });
  assertEquals(rest.sizeBytes, 0);
});

Deno.test("RawNode refuses parts that its file doesn't have", async () => {
  const file = new MemoryNode({ nodeName: "mem", sizeBytes: 1000 });
  const open = (offset: number, sizeBytes?: number) =>
    new RawNode({ nodeName: "r", file, offset, ...sizeBytes === undefined ? {} : { sizeBytes } });
  await assertFails(
    () => open(1001),
    "EINVAL",
    "Offset (1001) cannot be greater than size of the containing file (1000)",
  );
  await assertFails(
    () => open(500, 501),
    "EINVAL",
    "The sum of offset (500) and size (501) has to be smaller or equal to the  " +
      "actual size of the containing file (1000)",
  );
  for (const offset of [-1, 0.5, NaN, Infinity]) {
    await assertFails(() => open(offset), "EINVAL", /is not an offset in bytes/);
  }
  for (const sizeBytes of [-1, 0.5, NaN]) {
    await assertFails(() => open(0, sizeBytes), "EINVAL", /is not a size in bytes/);
  }
  await assertFails(() => open(0, Infinity), "EINVAL", /The sum of offset/);
});

Deno.test("RawNode with an offset resizes its file by as much", async () => {
  const graph = new BlockGraph();
  const file = graph.add(new MemoryNode({ nodeName: "mem", sizeBytes: 1000 }));
  const part = graph.add(new RawNode({ nodeName: "part", file, offset: 100 }));
  await graph.resize("part", 5000);
  assertEquals([file.sizeBytes, part.sizeBytes], [5100, 5000]);
  await assertFails(() => graph.resize("mem", 50), "EPERM", /'resize' .* unshared by node 'part'/);
  now(file.resize(50));
  assertEquals(part.sizeBytes, 0);
  await assertFails(() => graph.resize("part", Number.MAX_SAFE_INTEGER), "EINVAL", /too large/);
});
