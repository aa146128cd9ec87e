import { assert, assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../src/block/errors.ts";
import { IoVector } from "../../src/block/io_vector.ts";
import {
  REQ_FUA,
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
  REQ_WRITE_UNCHANGED,
  STATUS_ALLOCATED,
  STATUS_DATA,
} from "../../src/block/types.ts";
import { zeroVector } from "../../src/block/zeroes.ts";
import { assertFails, filled, now, RecordingNode } from "./support.ts";

/** Requests of every kind at a range. */
function requestsAt(
  node: RecordingNode,
  offset: number,
  length: number,
): [string, () => unknown][] {
  const vector = { length, buffers: [] } as unknown as IoVector;
  return [
    ["read", () => node.read(offset, vector)],
    ["write", () => node.write(offset, vector)],
    ["writeZeroes", () => node.writeZeroes(offset, length)],
    ["discard", () => node.discard(offset, length)],
    ["blockStatus", () => node.blockStatus(offset, length)],
    ["snapshotRead", () => node.snapshotRead(offset, vector)],
    ["snapshotBlockStatus", () => node.snapshotBlockStatus(offset, length)],
    ["snapshotDiscard", () => node.snapshotDiscard(offset, length)],
  ];
}

Deno.test("BlockNode refuses every request outside of its range", async () => {
  const sizeBytes = 1000;
  const ranges = [
    [-1, 1],
    [0, -1],
    [0, 1001],
    [1000, 1],
    [999, 2],
    [1001, 0],
    [0.5, 1],
    [0, 0.5],
    [NaN, 1],
    [0, NaN],
    [Infinity, 1],
    [0, Infinity],
    [2 ** 53, 1],
    [2 ** 53 - 1, 2 ** 53 - 1],
    [500, 2 ** 53],
  ] as const;
  const node = new RecordingNode({ sizeBytes });
  for (const [offset, length] of ranges) {
    for (const [kind, request] of requestsAt(node, offset, length)) {
      await assertFails(request, "EINVAL", /outside of node 'rec' of 1000 bytes/);
      assertEquals(node.calls, [], kind);
    }
  }
});

Deno.test("BlockNode takes ranges up to the last byte of the largest disk", async () => {
  const sizeBytes = Number.MAX_SAFE_INTEGER;
  const node = new RecordingNode({ sizeBytes });
  now(node.read(sizeBytes - 1, filled(1, 0)));
  now(node.write(sizeBytes - 3, filled(3, 0)));
  assertEquals(node.calls, [`read ${sizeBytes - 1} 1`, `write ${sizeBytes - 3} 3 0`]);
  await assertFails(() => node.read(sizeBytes - 1, filled(2, 0)), "EINVAL", /outside/);
  await assertFails(() => new RecordingNode({ sizeBytes: 2 ** 53 }), "EINVAL", /not a size/);
  await assertFails(() => new RecordingNode({ sizeBytes: -1 }), "EINVAL", /not a size/);
});

Deno.test("BlockNode answers requests of length 0 without its driver", () => {
  const node = new RecordingNode();
  for (const offset of [0, 17, node.sizeBytes]) {
    for (const [kind, request] of requestsAt(node, offset, 0)) {
      const expected = /Status/.test(kind) ? { length: 0, flags: 0 } : undefined;
      assertEquals(request(), expected, kind);
    }
  }
  assertEquals(node.calls, []);
});

Deno.test("BlockNode refuses writes to a read-only node, also of length 0", async () => {
  const node = new RecordingNode({ isReadOnly: true });
  const requests = [
    () => node.write(0, filled(1, 0)),
    () => node.write(0, filled(0, 0)),
    () => node.writeZeroes(0, 1),
    () => node.discard(0, 1),
  ];
  for (const request of requests) await assertFails(request, "EPERM", "Block node is read-only");
  await assertFails(() => node.resize(1), "EPERM", "Image is read-only");
  now(node.read(0, filled(1, 0)));
  now(node.flush());
  assertEquals(node.calls, ["read 0 1", "flush"]);
});

Deno.test("BlockNode refuses flags that a request can't have", async () => {
  const node = new RecordingNode();
  for (const flags of [REQ_MAY_UNMAP, REQ_NO_FALLBACK, 32, -1]) {
    await assertFails(() => node.write(0, filled(1, 0), flags), "EINVAL", /flags/);
  }
  await assertFails(() => node.writeZeroes(0, 1, 32), "EINVAL", /flags/);
  assertEquals(node.calls, []);
});

Deno.test("BlockNode flushes after a write with FUA where the driver doesn't handle it", () => {
  const plain = new RecordingNode();
  now(plain.write(0, filled(1, 0), REQ_FUA | REQ_WRITE_UNCHANGED));
  now(plain.writeZeroes(4, 2, REQ_FUA));
  assertEquals(plain.calls, ["write 0 1 8", "flush", "write 4 2 0", "flush"]);

  const able = new RecordingNode({ handlesFua: true });
  now(able.write(0, filled(1, 0), REQ_FUA));
  now(able.writeZeroes(4, 2, REQ_FUA));
  assertEquals(able.calls, ["write 0 1 1", "write 4 2 1"]);
});

Deno.test("BlockNode swallows discards, and keeps zeroes allocated, with discard=ignore", () => {
  class ZeroNode extends RecordingNode {
    protected override doWriteZeroes(offset: number, length: number, flags: number): void {
      this.calls.push(`zeroes ${offset} ${length} ${flags}`);
    }
  }
  const ignoring = new ZeroNode({ discard: "ignore" });
  now(ignoring.discard(0, 10));
  now(ignoring.writeZeroes(0, 10, REQ_MAY_UNMAP));
  assertEquals(ignoring.calls, ["zeroes 0 10 0"]);
  const unmapping = new ZeroNode();
  now(unmapping.discard(0, 10));
  now(unmapping.writeZeroes(0, 10, REQ_MAY_UNMAP));
  assertEquals(unmapping.calls, ["discard 0 10", "zeroes 0 10 2"]);
});

Deno.test("BlockNode has no snapshot, cheap zeroes or resize unless its driver does", async () => {
  const node = new RecordingNode();
  const requests = [
    () => node.snapshotRead(0, filled(1, 0)),
    () => node.snapshotBlockStatus(0, 1),
    () => node.snapshotDiscard(0, 1),
    () => node.writeZeroes(0, 1, REQ_NO_FALLBACK),
    () => node.resize(5),
  ];
  for (const request of requests) await assertFails(request, "ENOTSUP", /^Driver 'recording'/);
  assertEquals(now(node.blockStatus(5, 100)), {
    length: 100,
    flags: STATUS_DATA | STATUS_ALLOCATED,
  });
  assertEquals(node.calls, []);
});

Deno.test("BlockNode writes zeroes in bounded pieces and pauses in long ranges", async () => {
  const MiB = 1 << 20;
  class CountingNode extends RecordingNode {
    pieces: [number, number][] = [];
    isAsynchronous = false;
    protected override doWrite(offset: number, source: IoVector): void | Promise<void> {
      for (const buffer of source.buffers) assert(buffer.every((byte) => byte === 0));
      this.pieces.push([offset, source.length]);
      if (this.isAsynchronous) return Promise.resolve();
    }
  }
  for (const isAsynchronous of [false, true]) {
    for (
      const [offset, length] of [[3, 5], [7, MiB], [7, MiB + 1], [1, 8 * MiB], [5, 20 * MiB + 9]]
    ) {
      if (offset === undefined || length === undefined) throw new Error("no pair");
      const node = new CountingNode({ sizeBytes: 100 * MiB });
      node.isAsynchronous = isAsynchronous;
      const result = node.writeZeroes(offset, length);
      if (!isAsynchronous) assertEquals(result instanceof Promise, length > 8 * MiB);
      await result;
      let at = offset;
      for (const [start, size] of node.pieces) {
        assertEquals(start, at);
        assert(size <= MiB);
        at += size;
      }
      assertEquals(at, offset + length);
    }
  }
});

Deno.test("BlockNode stops writing zeroes at the first failure", async () => {
  class FailingNode extends RecordingNode {
    protected override doWrite(offset: number): void {
      this.calls.push(`write ${offset}`);
      if (offset >= 10 << 20) throw new BlockError("ENOSPC", "full");
    }
  }
  const node = new FailingNode({ sizeBytes: 100 << 20 });
  await assertFails(() => node.writeZeroes(0, 50 << 20), "ENOSPC", "full");
  assertEquals(node.calls.length, 11);
});

Deno.test("zeroVector() is zero and as long as asked for", () => {
  for (const length of [0, 1, 65536, 65537, 1 << 20]) {
    const vector = zeroVector(length);
    assertEquals(vector.length, length);
    assertEquals(vector.buffers.reduce((sum, buffer) => sum + buffer.length, 0), length);
  }
});

Deno.test("BlockNode.close() waits for background work and refuses later requests", async () => {
  const work = Promise.withResolvers<void>();
  class BusyNode extends RecordingNode {
    start(): void {
      this.trackBackground(work.promise);
    }
  }
  const node = new BusyNode();
  node.start();
  const closed = node.close();
  assertEquals(node.close(), closed);
  await Promise.resolve();
  assertEquals(node.calls, []);
  for (const [kind, request] of requestsAt(node, 0, 1)) {
    await assertFails(request, "ESHUTDOWN", "Node 'rec' is closed");
    assertEquals(node.calls, [], kind);
  }
  await assertFails(() => node.flush(), "ESHUTDOWN", /closed/);
  work.reject(new Error("background work may fail: its owner knows"));
  await closed;
  assertEquals(node.calls, ["close"]);
});

Deno.test("BlockNode.close() reports the driver's failure to everyone who waits", async () => {
  class StuckNode extends RecordingNode {
    protected override doClose(): void {
      throw new BlockError("EIO", "stuck");
    }
  }
  const node = new StuckNode();
  await assertRejects(() => node.close(), BlockError, "stuck");
  await assertRejects(() => node.close(), BlockError, "stuck");
});
