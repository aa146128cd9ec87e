/**
 * Compressed clusters that we write: read again, by qemu-img too, written over, and mixed with all
 * else.
 */
import { assert, assertEquals } from "@std/assert";
import { IoVector } from "../../../src/block/io_vector.ts";
import { checkQcow2 } from "../../../src/block/qcow2/check.ts";
import { directCompressors } from "../../../src/block/qcow2/compress.ts";
import type { Qcow2CreateOptions } from "../../../src/block/qcow2/create.ts";
import {
  REQ_MAY_UNMAP,
  REQ_WRITE_COMPRESSED,
  STATUS_COMPRESSED,
} from "../../../src/block/types.ts";
import { needs } from "../../support/clients.ts";
import { assertFails, filled } from "../support.ts";
import {
  assertSameBytes,
  contentOf,
  createImage,
  openImage,
  qemuImg,
  Random,
  ShufflingNode,
  TINY_CACHES,
  withFolder,
} from "./support.ts";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

const KINDS: Record<string, Omit<Qcow2CreateOptions, "sizeBytes">> = {
  zlib: {},
  zstd: { compressionType: "zstd" },
  "512 B clusters": { clusterBytes: 512 },
  "2 MiB clusters": { clusterBytes: 2 * MiB },
  "version 2": { version: 2, clusterBytes: 4096 },
  "1 bit refcounts": { refcountBits: 1, clusterBytes: 4096 },
  "2 bit refcounts": { refcountBits: 2, clusterBytes: 4096 },
  subclusters: { hasExtendedL2: true, clusterBytes: 16384 },
};

/** Bytes that can be compressed more or less. */
function someBytes(random: Random, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  const noise = random.pick([0, 8, 2, 1]);
  const value = 1 + random.below(255);
  for (let at = 0; at < length; at++) {
    bytes[at] = noise > 0 && random.below(noise) === 0 ? random.below(256) : value;
  }
  return bytes;
}

for (const [name, options] of Object.entries(KINDS)) {
  for (const isShuffled of [false, true]) {
    const how = isShuffled ? "requests overtake each other" : "one after the other";
    Deno.test({
      name: `compressed writes among others: ${name}, ${how}`,
      ...needs("qemu-img"),
      fn: () => checkMixture(options, isShuffled),
    });
  }
}

async function checkMixture(
  options: Omit<Qcow2CreateOptions, "sizeBytes">,
  isShuffled: boolean,
): Promise<void> {
  const cluster = options.clusterBytes ?? 65536;
  const sizeBytes = Math.min(24 * cluster, 4 * MiB) + 512;
  const random = new Random(5);
  const file = await createImage({ ...options, sizeBytes });
  const model = new Uint8Array(sizeBytes);
  for (let session = 0; session < 2; session++) {
    const below = isShuffled ? new ShufflingNode(file, random) : file;
    const node = await openImage(below, TINY_CACHES);
    for (let step = 0; step < (cluster > 65536 ? 8 : 60); step++) {
      // In the shuffled case two requests at a time, in the two halves of the disk.
      const half = Math.floor(sizeBytes / 2 / cluster) * cluster;
      const parts: [number, number][] = isShuffled
        ? [[0, half], [half, sizeBytes]]
        : [[0, sizeBytes]];
      await Promise.all(parts.map(async ([start, end]) => {
        const first = start + random.below(Math.ceil((end - start) / cluster)) * cluster;
        const length = Math.min((1 + random.below(4)) * cluster, end - first);
        const what = random.below(8);
        if (what < 5) {
          const bytes = someBytes(random, length);
          model.set(bytes, first);
          await node.write(first, IoVector.of(bytes), REQ_WRITE_COMPRESSED);
        } else if (what === 5) {
          model.fill(0, first, first + length);
          await node.writeZeroes(first, length, REQ_MAY_UNMAP);
        } else {
          const at = first + random.below(length);
          const bytes = someBytes(random, Math.min(1 + random.below(5000), end - at));
          model.set(bytes, at);
          await node.write(at, IoVector.of(bytes));
        }
      }));
      if (random.below(8) === 0) await node.flush();
    }
    assertSameBytes(await contentOf(node), model, `session ${session}`);
    await node.close();
    const { corruptions, leaks } = await checkQcow2(file);
    assertEquals([corruptions, leaks], [0, 0], `session ${session}`);
  }
  await withFolder(async (folder) => {
    await save(file, `${folder}/image`);
    Deno.writeFileSync(`${folder}/raw`, model);
    await qemuImg("check", "-q", `${folder}/image`);
    await qemuImg("compare", "-f", "qcow2", "-F", "raw", `${folder}/image`, `${folder}/raw`);
  });
}

async function save(file: MemoryNode, path: string): Promise<void> {
  Deno.writeFileSync(path, await contentOf(file));
}

Deno.test("compressed clusters lie one behind the other, and show their status", async () => {
  const file = await createImage({ sizeBytes: 4 * MiB });
  const node = await openImage(file);
  await node.write(0, filled(4 * MiB, 9), REQ_WRITE_COMPRESSED);
  const status = await node.blockStatus(0, 4 * MiB);
  assert((status.flags & STATUS_COMPRESSED) !== 0);
  assertEquals(status.length, 4 * MiB);
  await node.close();
  assert(file.sizeBytes <= 6 * 65536, `${file.sizeBytes} bytes`);
});

Deno.test("compressed writes are of whole clusters, and not into a data file", async () => {
  const file = await createImage({ sizeBytes: MiB + 512 });
  const node = await openImage(file);
  const write = (at: number, length: number) =>
    node.write(at, filled(length, 1), REQ_WRITE_COMPRESSED);
  await assertFails(() => write(512, 65536), "EINVAL", "Compressed writes take whole clusters");
  await assertFails(() => write(0, 65535), "EINVAL", "Compressed writes take whole clusters");
  await write(MiB, 512);
  await write(MiB - 65536, 65536 + 512);
  await node.close();

  const data = new MemoryNode({ nodeName: "d", sizeBytes: 0 });
  const apart = await createImage({ sizeBytes: MiB, dataFile: "d", dataFileNode: data });
  const other = await openImage(apart, { dataFile: data });
  await assertFails(
    () => other.write(0, filled(65536, 1), REQ_WRITE_COMPRESSED),
    "ENOTSUP",
    /does not support compressed writes/,
  );
  await other.close();
});

Deno.test("compression may take its time, elsewhere", async () => {
  const file = await createImage({ sizeBytes: 2 * MiB });
  let atOnce = 0;
  let most = 0;
  const node = await openImage(file, {
    compressor: {
      compress: async (cluster) => {
        most = Math.max(most, ++atOnce);
        const packed = directCompressors.zlib.compress(cluster.slice());
        await new Promise((resolve) => setTimeout(resolve, 0));
        atOnce--;
        return await packed;
      },
    },
  });
  await node.write(0, filled(2 * MiB, 3), REQ_WRITE_COMPRESSED);
  assert(most > 1, "clusters are compressed at the same time");
  assertSameBytes(await contentOf(node), new Uint8Array(2 * MiB).fill(3), "content");
  await node.close();
  assertEquals((await checkQcow2(file)).leaks, 0);
});

Deno.test("a compressed cluster that takes another one's place is not read from memory", async () => {
  const file = await createImage({ sizeBytes: MiB });
  const node = await openImage(file);
  const byte = new Uint8Array(1);
  for (let value = 1; value < 8; value++) {
    await node.write(0, filled(65536, value), REQ_WRITE_COMPRESSED);
    await node.read(5, IoVector.of(byte));
    assertEquals(byte[0], value);
    await node.discard(0, 65536);
    await node.flush(); // its cluster is free now
  }
  assert(file.sizeBytes < 2 * MiB);
  await node.close();
});
