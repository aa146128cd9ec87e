/**
 * Random requests to the leaf drivers, and to raw over them, against an array of bytes.
 */
import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { FileNode } from "../../src/block/drivers/file.ts";
import { LibC } from "../../src/block/drivers/libc.ts";
import { MemoryNode } from "../../src/block/drivers/memory.ts";
import { RawNode } from "../../src/block/drivers/raw.ts";
import { IoVector } from "../../src/block/io_vector.ts";
import type { BlockNode } from "../../src/block/node.ts";
import { REQ_FUA, REQ_MAY_UNMAP, STATUS_DATA, STATUS_ZERO } from "../../src/block/types.ts";

const RUN_COUNT = 60;
const SIZE_MAX = 300_001;

type Request =
  | { kind: "read" | "write"; at: number; length: number; cuts: number[]; isShared: boolean }
  | { kind: "zero" | "discard" | "status"; at: number; length: number; flags: number }
  | { kind: "resize"; sizeBytes: number }
  | { kind: "flush" };

const at = fc.oneof(fc.nat({ max: SIZE_MAX }), fc.constantFrom(0, 65535, 65536, 131072, 262143));
const length = fc.oneof(fc.nat({ max: 200_000 }), fc.constantFrom(1, 511, 512, 4096, 65536, 65537));
const flags = fc.constantFrom(0, REQ_MAY_UNMAP, REQ_FUA, REQ_FUA | REQ_MAY_UNMAP);
const request: fc.Arbitrary<Request> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constantFrom("read" as const, "write" as const),
      at,
      length,
      cuts: fc.array(fc.nat({ max: 100_000 }), { maxLength: 5 }),
      isShared: fc.boolean(),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constantFrom("zero" as const, "discard" as const, "status" as const),
      at,
      length,
      flags,
    }),
  },
  fc.record({ kind: fc.constant("resize" as const), sizeBytes: fc.nat({ max: SIZE_MAX }) }),
  fc.record({ kind: fc.constant("flush" as const) }),
);

/** A vector of `length` bytes in pieces of the given lengths, some of them empty. */
function vectorOf(length: number, cuts: readonly number[], isShared: boolean): IoVector {
  const memory = isShared ? new SharedArrayBuffer(length + 64) : new ArrayBuffer(length + 64);
  const buffers: Uint8Array[] = [];
  let start = 0;
  for (const cut of cuts) {
    const take = Math.min(cut, length - start);
    buffers.push(new Uint8Array(memory, start + 3, take));
    start += take;
  }
  buffers.push(new Uint8Array(memory, start + 3, length - start));
  return new IoVector(buffers);
}

/** What a model run is about. */
interface Subject {
  node: BlockNode;
  /** Discarded areas read as zeroes; else they keep what they hold. */
  discardZeroes: boolean;
  canResize: boolean;
}

async function runRequests({ node, discardZeroes, canResize }: Subject, requests: Request[]) {
  let model = new Uint8Array(node.sizeBytes);
  let value = 0;
  for (const request of requests) {
    if (request.kind === "flush") {
      await node.flush();
      continue;
    }
    if (request.kind === "resize") {
      if (!canResize) continue;
      await node.resize(request.sizeBytes);
      const resized = new Uint8Array(request.sizeBytes);
      resized.set(model.subarray(0, request.sizeBytes));
      model = resized;
      assertEquals(node.sizeBytes, model.length);
      continue;
    }
    const at = Math.min(request.at, model.length);
    const length = Math.min(request.length, model.length - at);
    switch (request.kind) {
      case "read": {
        const vector = vectorOf(length, request.cuts, request.isShared);
        vector.fill(0xee);
        await node.read(at, vector);
        const bytes = new Uint8Array(length);
        vector.copyTo(bytes);
        assertSame(bytes, model.subarray(at, at + length), `read ${length} at ${at}`);
        break;
      }
      case "write": {
        const bytes = new Uint8Array(length);
        for (let i = 0; i < length; i++) bytes[i] = (value += 7) % 251 + 1;
        const vector = vectorOf(length, request.cuts, request.isShared);
        vector.copyFrom(bytes);
        await node.write(at, vector);
        model.set(bytes, at);
        break;
      }
      case "zero":
        await node.writeZeroes(at, length, request.flags);
        model.fill(0, at, at + length);
        break;
      case "discard":
        await node.discard(at, length);
        if (discardZeroes) model.fill(0, at, at + length);
        break;
      case "status":
        await checkStatus(node, model, at, length);
    }
  }
  const all = vectorOf(model.length, [], false);
  await node.read(0, all);
  const bytes = new Uint8Array(model.length);
  all.copyTo(bytes);
  assertSame(bytes, model, "at the end");
}

/** Runs follow each other without gap; what is said to be zero is. */
async function checkStatus(node: BlockNode, model: Uint8Array, offset: number, length: number) {
  const end = offset + length;
  for (let runs = 0; offset < end; runs++) {
    assert(runs < 1000, "too many runs");
    const run = await node.blockStatus(offset, end - offset);
    assert(run.length > 0 && run.length <= end - offset, `a run of ${run.length} bytes`);
    const isZero = (run.flags & STATUS_ZERO) !== 0;
    assert(isZero || (run.flags & STATUS_DATA) !== 0);
    if (isZero) {
      assertSame(model.subarray(offset, offset + run.length), new Uint8Array(run.length), "hole");
    }
    offset += run.length;
  }
}

/** assertEquals on large arrays takes its time. */
function assertSame(actual: Uint8Array, expected: Uint8Array, what: string): void {
  assertEquals(actual.length, expected.length, what);
  for (let i = 0; i < actual.length; i++) {
    if (actual[i] !== expected[i]) {
      throw new Error(`${what}: byte ${i} is ${actual[i]}, not ${expected[i]}`);
    }
  }
}

/** Runs random requests against what `open` makes anew for each run. */
async function checkModel(
  open: (sizeBytes: number) => Subject,
  close: (subject: Subject) => Promise<void> = ({ node }) => node.close(),
): Promise<void> {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: SIZE_MAX }),
      fc.array(request, { minLength: 5, maxLength: 60, size: "max" }),
      async (sizeBytes, requests) => {
        const subject = open(sizeBytes);
        try {
          await runRequests(subject, requests);
        } finally {
          await close(subject);
        }
      },
    ),
    { numRuns: RUN_COUNT },
  );
}

async function checkFileModel(hasLibC: boolean): Promise<void> {
  const binding = LibC.open();
  assertEquals(binding instanceof LibC, hasLibC, "the binding to libc");
  if (binding instanceof LibC) binding.close();
  const directory = Deno.makeTempDirSync();
  try {
    let count = 0;
    await checkModel((sizeBytes) => {
      const path = `${directory}/disk${count++}`;
      const node = FileNode.open({
        nodeName: "f",
        path,
        isReadOnly: false,
        create: true,
        sizeBytes,
      });
      const discardZeroes = node.details().holes === "supported";
      return { node, discardZeroes, canResize: true };
    }, async ({ node }) => {
      await node.close();
      if (node instanceof FileNode) Deno.removeSync(node.path);
    });
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}

Deno.test("MemoryNode does what an array of bytes does", async () => {
  await checkModel((sizeBytes) => {
    const node = new MemoryNode({ nodeName: "mem", sizeBytes });
    return { node, discardZeroes: true, canResize: true };
  });
});

Deno.test("RawNode with an offset and a size does what a part of an array does", async () => {
  await checkModel((sizeBytes) => {
    const file = new MemoryNode({ nodeName: "mem", sizeBytes: sizeBytes + 2000 });
    const node = new RawNode({ nodeName: "raw", file, offset: 777, sizeBytes });
    return { node, discardZeroes: true, canResize: false };
  });
});

Deno.test("RawNode with an offset alone follows its file's size", async () => {
  await checkModel((sizeBytes) => {
    const file = new MemoryNode({ nodeName: "mem", sizeBytes: sizeBytes + 513 });
    // Nodes tell each other of new sizes along edges that a graph has made.
    const node = new RawNode({ nodeName: "raw", file, offset: 513 });
    for (const edge of node.children.values()) file.addParent(edge);
    return { node, discardZeroes: true, canResize: true };
  });
});

Deno.test({
  name: "FileNode does what an array of bytes does",
  ignore: Deno.build.os !== "linux",
  fn: () => checkFileModel(true),
});

Deno.test({
  name: "FileNode does what an array of bytes does without libc",
  permissions: { read: true, write: true, env: true, ffi: false },
  fn: () => checkFileModel(false),
});
