/**
 * Hostile images: headers, tables, refcounts, snapshot tables, bitmaps and compressed data with
 * random damage. Whatever is done to such an image ends soon, in bounded memory, with an answer or
 * a BlockError; nothing else is ever thrown.
 *
 * OVIS_FUZZ_RUNS and OVIS_FUZZ_SEED say how much to try and where to start.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { DirtyBitmaps } from "../../../src/block/dirty_bitmap.ts";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { BlockError } from "../../../src/block/errors.ts";
import { IoVector } from "../../../src/block/io_vector.ts";
import { checkQcow2 } from "../../../src/block/qcow2/check.ts";
import { Qcow2Node } from "../../../src/block/qcow2/node.ts";
import type { MaybePromise } from "../../../src/block/types.ts";
import { compileKernels, Kernels } from "../../../src/wasm/kernels.ts";
import { needs } from "../../support/clients.ts";
import { ImageFolder } from "../../support/qcow2_images.ts";
import { filled } from "../support.ts";
import { createImage, TINY_CACHES } from "./support.ts";

const RUNS = Number(Deno.env.get("OVIS_FUZZ_RUNS") ?? 60);
const SEED = Number(Deno.env.get("OVIS_FUZZ_SEED") ?? 1);
const KiB = 1024;
const MiB = 1024 * KiB;
/** Requests that all that is done to one image may take: a loop takes more. */
const REQUESTS_MAX = 400_000;
const FILE_BYTES_MAX = 48 * MiB;
const KERNEL_BYTES_MAX = 16 * MiB;
const kernelModule = await compileKernels();

/** A file that knows how often it was asked. */
class CountingFile extends MemoryNode {
  requestCount = 0;

  constructor(sizeBytes: number, isReadOnly: boolean) {
    super({ nodeName: "file", sizeBytes, isReadOnly, allocatedBytesMax: FILE_BYTES_MAX });
  }

  override read(offset: number, target: IoVector): MaybePromise<void> {
    this.#count();
    return super.read(offset, target);
  }

  override write(offset: number, source: IoVector, flags?: number): MaybePromise<void> {
    this.#count();
    return super.write(offset, source, flags);
  }

  #count(): void {
    if (++this.requestCount > REQUESTS_MAX) throw new Error("it goes on and on");
  }
}

/** A field of an image that is changed. */
interface Mutation {
  /** Which part of the image, and where in it. */
  region: number;
  position: number;
  value: { bytes: 1 | 2 | 4 | 8; number: bigint } | { bit: number };
}

const interesting = fc.oneof(
  fc.constantFrom(0n, 1n, 0x7fn, 0xffn, 0x7fffffffn, 0x80000000n, 0xffffffffn, 1n << 32n),
  fc.constantFrom(
    512n,
    4096n,
    65536n,
    1n << 48n,
    1n << 53n,
    1n << 56n,
    1n << 62n,
    (1n << 63n) - 1n,
  ),
  fc.constantFrom((1n << 63n) | 65536n, (1n << 64n) - 1n, (1n << 63n) | 131072n, 196608n),
  fc.bigInt({ min: 0n, max: 200n }).map((cluster) => (1n << 63n) | (cluster << 12n)),
  fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
);

const mutation: fc.Arbitrary<Mutation> = fc.record({
  region: fc.nat(20),
  position: fc.nat(1 << 16),
  value: fc.oneof(
    fc.record({ bytes: fc.constantFrom(1, 2, 4, 8), number: interesting }),
    fc.record({ bit: fc.nat(7) }),
  ),
});

interface Region {
  offset: number;
  length: number;
}

/** Where an image's metadata is: the parts that are damaged. */
function regionsOf(image: Uint8Array): Region[] {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  const clusterSize = 2 ** view.getUint32(20);
  const l1 = { offset: Number(view.getBigUint64(40)), length: view.getUint32(36) * 8 };
  const table = Number(view.getBigUint64(48));
  const regions: Region[] = [
    { offset: 0, length: 112 },
    { offset: 0, length: 112 },
    { offset: 112, length: 600 },
    l1,
    { offset: table, length: 64 },
  ];
  const add = (at: number, length: number): void => {
    if (at + 8 > image.length) return;
    const offset = Number(view.getBigUint64(at) & 0x00fffffffffffe00n);
    if (offset > 0 && offset < image.length) regions.push({ offset, length });
  };
  for (let at = l1.offset; at < l1.offset + l1.length; at += 8) add(at, clusterSize);
  add(table, Math.min(clusterSize, 512));
  const snapshots = Number(view.getBigUint64(64));
  if (snapshots > 0) {
    regions.push({ offset: snapshots, length: 256 });
    add(snapshots, 64);
  }
  // The bitmap directory, by its header extension, and its first table.
  for (let at = 112; at < 1000; at += 8) {
    if (view.getUint32(at) !== 0x23852875) continue;
    const directory = Number(view.getBigUint64(at + 24));
    regions.push({ offset: at, length: 32 }, { offset: directory, length: 96 });
    add(directory, 64);
  }
  return regions;
}

function damaged(image: Uint8Array, regions: Region[], mutations: readonly Mutation[]): Uint8Array {
  const bytes = image.slice();
  const view = new DataView(bytes.buffer);
  for (const { region, position, value } of mutations) {
    const { offset, length } = regions[region % regions.length] ?? { offset: 0, length: 64 };
    const width = "bit" in value ? 1 : value.bytes;
    const at = offset + position % length;
    const aligned = Math.min(at - at % width, bytes.length - width);
    if ("bit" in value) bytes[aligned] = (bytes[aligned] ?? 0) ^ (1 << value.bit);
    else {
      for (let byte = 0; byte < width; byte++) {
        const shifted = value.number >> BigInt(8 * (width - 1 - byte));
        view.setUint8(aligned + byte, Number(shifted & 0xffn));
      }
    }
  }
  return bytes;
}

/** What may be answered or fail, but only so. */
async function allowed<T>(action: () => MaybePromise<T>): Promise<T | null> {
  try {
    return await action();
  } catch (error) {
    if (error instanceof BlockError) return null;
    throw error;
  }
}

async function load(bytes: Uint8Array, isReadOnly = false): Promise<CountingFile> {
  const file = new CountingFile(bytes.length, false);
  await file.write(0, IoVector.of(bytes));
  if (isReadOnly) file.configure({ isReadOnly });
  return file;
}

/** Reads what there is, or a part of it where the image claims to be enormous. */
async function readAll(node: Qcow2Node): Promise<void> {
  const piece = new Uint8Array(256 * KiB);
  const step = Math.max(piece.length, Math.floor(node.sizeBytes / 64));
  for (let at = 0; at < node.sizeBytes; at += step) {
    const length = Math.min(piece.length, node.sizeBytes - at);
    await allowed(() => node.read(at, IoVector.of(piece.subarray(0, length))));
    await allowed(() => node.blockStatus(at, length));
  }
}

async function useReadOnly(bytes: Uint8Array): Promise<void> {
  const file = await load(bytes, true);
  await allowed(() => checkQcow2(file));
  const options = { nodeName: "q", file, isReadOnly: true, ...TINY_CACHES };
  const node = await allowed(() => Qcow2Node.open(options));
  if (node === null) return;
  await readAll(node);
  const bitmaps = new DirtyBitmaps(new Kernels(kernelModule, { maxBytes: KERNEL_BYTES_MAX }));
  await allowed(() => bitmaps.load(node));
  for (const { id } of node.snapshots.list().slice(0, 3)) {
    const view = await allowed(() => Qcow2Node.open(options));
    if (view === null) continue;
    await allowed(() => view.snapshots.show(id));
    await readAll(view);
  }
  await allowed(() => node.close());
}

async function useWritable(bytes: Uint8Array): Promise<void> {
  const file = await load(bytes);
  const node = await allowed(() => Qcow2Node.open({ nodeName: "q", file, isReadOnly: false }));
  if (node === null) return;
  const bitmaps = new DirtyBitmaps(new Kernels(kernelModule, { maxBytes: KERNEL_BYTES_MAX }));
  await allowed(() => bitmaps.load(node));
  const size = Math.min(node.sizeBytes, 4 * MiB);
  for (const at of [0, Math.floor(size / 3), Math.max(node.sizeBytes - 5000, 0)]) {
    const length = Math.min(5000, node.sizeBytes - at);
    await allowed(() => node.write(at, filled(length, 1)));
  }
  await allowed(() => node.writeZeroes(0, Math.min(size, 100 * KiB)));
  await allowed(() => node.discard(0, size));
  await allowed(() => node.flush());
  await allowed(() => node.snapshots.create({ name: "x", dateMs: 0 }));
  for (const { id } of node.snapshots.list().slice(0, 3)) {
    await allowed(() => node.snapshots.apply(id));
    await allowed(() => node.snapshots.remove(id));
  }
  await allowed(() => bitmaps.add(node, { name: "new", persistent: true }));
  await allowed(() => node.resize(8 * MiB));
  await allowed(() => node.write(0, filled(Math.min(size, 100 * KiB), 2)));
  await allowed(() => node.close());
  await allowed(() => checkQcow2(file, { repair: "leaks" }));
}

async function repair(bytes: Uint8Array): Promise<void> {
  const file = await load(bytes);
  const result = await allowed(() => checkQcow2(file, { repair: "all" }));
  const isGood = result !== null && result.corruptions + result.checkErrors + result.leaks === 0;
  if (!isGood) return;
  // What is said to be good is good.
  const again = await checkQcow2(file);
  assert(again.corruptions + again.leaks + again.checkErrors === 0);
}

const IMAGES: Record<string, { options: string; size: string }> = {
  "4 KiB clusters": { options: "cluster_size=4k", size: "4M" },
  "subclusters, zstd": {
    options: "cluster_size=16k,extended_l2=on,compression_type=zstd",
    size: "4M",
  },
  "version 2": { options: "compat=0.10,cluster_size=4k", size: "4M" },
  "64 KiB clusters, lazy refcounts": { options: "lazy_refcounts=on", size: "4M" },
};

/** An image with a bit of everything. */
async function makeImage(
  folder: ImageFolder,
  { options, size }: { options: string; size: string },
): Promise<Uint8Array> {
  await folder.create("base", size, options);
  await folder.io("base", "write -P 1 0 300k", "write -z 1M 64k", "write -c -P 2 2M 64k");
  await folder.do("qemu-img", "snapshot", "-c", "one", "base");
  await folder.io("base", "write -P 3 100k 64k", "write -c -P 4 2112k 64k");
  if (!options.includes("compat=0.10")) {
    await folder.do("qemu-img", "bitmap", "--add", "-g", "4k", "base", "b0");
    await folder.do("qemu-img", "bitmap", "--add", "--disable", "base", "b1");
    await folder.io("base", "write -P 5 3M 64k");
  }
  return folder.bytes("base");
}

for (const [name, kind] of Object.entries(IMAGES)) {
  Deno.test({
    name: `damaged images are answered or refused: ${name}`,
    ...needs("qemu-img", "qemu-io"),
    async fn() {
      using folder = new ImageFolder();
      const image = await makeImage(folder, kind);
      const regions = regionsOf(image);
      await fc.assert(
        fc.asyncProperty(fc.array(mutation, { minLength: 1, maxLength: 4 }), async (mutations) => {
          const bytes = damaged(image, regions, mutations);
          await useReadOnly(bytes);
          await useWritable(bytes);
          await repair(bytes);
        }),
        { numRuns: RUNS, seed: SEED, endOnFailure: true },
      );
    },
  });
}

Deno.test("an L1 entry that has nothing but its COPIED bit is one without a table", async () => {
  const file = await createImage({ sizeBytes: MiB });
  const entry = new Uint8Array(8);
  entry[0] = 0x80;
  await file.write(3 * 65536, IoVector.of(entry));
  const node = await Qcow2Node.open({ nodeName: "q", file, isReadOnly: false });
  await node.write(0, filled(512, 1));
  await node.close();
  assertEquals((await checkQcow2(file)).corruptions, 0);
});

Deno.test("random bytes and headers alone are refused", async () => {
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 700 }), async (tail) => {
      for (const version of [2, 3]) {
        const bytes = new Uint8Array(8 + tail.length);
        bytes.set([0x51, 0x46, 0x49, 0xfb, 0, 0, 0, version]);
        bytes.set(tail, 8);
        const file = await load(bytes);
        await allowed(() => checkQcow2(file, { repair: "all" }));
        await allowed(() => Qcow2Node.open({ nodeName: "q", file, isReadOnly: false }));
      }
    }),
    { numRuns: RUNS * 5, seed: SEED },
  );
});
