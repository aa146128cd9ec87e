/**
 * Other sizes of qcow2 images: what is new reads as zeroes whatever lies below or was there before,
 * what is cut off is given back.
 */
import { assert, assertEquals } from "@std/assert";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { IoVector } from "../../../src/block/io_vector.ts";
import { checkQcow2 } from "../../../src/block/qcow2/check.ts";
import type { Qcow2CreateOptions } from "../../../src/block/qcow2/create.ts";
import { STATUS_ALLOCATED } from "../../../src/block/types.ts";
import { assertFails, filled } from "../support.ts";
import {
  assertSameBytes,
  contentOf,
  createImage,
  openImage,
  Random,
  TINY_CACHES,
} from "./support.ts";

const MiB = 1024 * 1024;
const SEED = Number(Deno.env.get("OVIS_QCOW2_SEED") ?? 1);

const KINDS: Record<string, Omit<Qcow2CreateOptions, "sizeBytes">> = {
  "64 KiB clusters": {},
  "512 B clusters": { clusterBytes: 512 },
  "2 MiB clusters": { clusterBytes: 2 * MiB },
  "version 2": { version: 2, clusterBytes: 1024 },
  subclusters: { hasExtendedL2: true, clusterBytes: 16384 },
  "lazy refcounts": { hasLazyRefcounts: true, clusterBytes: 4096 },
  "64 bit refcounts": { refcountBits: 64, clusterBytes: 512 },
};

async function assertSound(file: MemoryNode, what: string): Promise<void> {
  const { corruptions, leaks, checkErrors } = await checkQcow2(file);
  assertEquals([corruptions, leaks, checkErrors], [0, 0, 0], what);
}

for (const [name, options] of Object.entries(KINDS)) {
  for (const backingBytes of [0, 700 * 1024 + 512]) {
    Deno.test(`Qcow2Node.resize() does what an array does: ${name}, backing ${backingBytes}`, async () => {
      const random = new Random(SEED);
      const start = 512 * 1024;
      const file = await createImage({ ...options, sizeBytes: start });
      let model = new Uint8Array(start);
      let backing: MemoryNode | null = null;
      if (backingBytes > 0) {
        backing = new MemoryNode({ nodeName: "b", sizeBytes: backingBytes });
        await backing.write(0, filled(backingBytes, 0x77));
        model.fill(0x77);
      }
      let node = await openImage(file, { ...TINY_CACHES, backing });
      for (let count = 0; count < 24; count++) {
        const sizeBytes = random.pick([0, 1, 2, 3, 4]) === 0
          ? random.below(64) * 64 * 1024
          : random.below(4 * 1024) * 512;
        await node.resize(sizeBytes);
        assertEquals(node.sizeBytes, sizeBytes);
        const resized = new Uint8Array(sizeBytes);
        resized.set(model.subarray(0, sizeBytes));
        model = resized;
        for (let writes = 0; writes < 3 && sizeBytes > 0; writes++) {
          const at = random.below(sizeBytes);
          const bytes = new Uint8Array(Math.min(random.below(100_000), sizeBytes - at));
          bytes.fill(1 + random.below(255));
          await node.write(at, IoVector.of(bytes));
          model.set(bytes, at);
        }
        assertSameBytes(await contentOf(node), model, `seed ${SEED}, resize ${count}`);
        if (count % 8 !== 7) continue;
        await node.close();
        await assertSound(file, `seed ${SEED}, resize ${count}`);
        node = await openImage(file, { ...TINY_CACHES, backing });
        assertEquals(node.sizeBytes, sizeBytes);
      }
      await node.close();
    });
  }
}

Deno.test("Qcow2Node.resize() gives back what is cut off", async () => {
  const file = await createImage({ sizeBytes: 8 * MiB });
  const node = await openImage(file);
  await node.write(0, filled(8 * MiB, 1));
  await node.flush();
  assert(file.sizeBytes >= 8 * MiB);
  await node.resize(MiB);
  assert(file.sizeBytes < 2 * MiB, `${file.sizeBytes} bytes`);
  await node.close();
  await assertSound(file, "after shrinking");
});

Deno.test("Qcow2Node.resize() gives back refcount blocks that count nothing any more", async () => {
  const file = await createImage({ sizeBytes: 2 * MiB, clusterBytes: 512 });
  const node = await openImage(file, TINY_CACHES);
  await node.write(0, filled(2 * MiB, 1));
  await node.resize(64 * 1024);
  assert(file.sizeBytes < 256 * 1024, `${file.sizeBytes} bytes`);
  await node.resize(MiB);
  await node.write(512 * 1024, filled(100_000, 2));
  await node.close();
  await assertSound(file, "after shrinking");
});

Deno.test("Qcow2Node.grow() allocates what is new, as asked for", async () => {
  for (const mode of ["metadata", "falloc", "full"] as const) {
    const file = await createImage({ sizeBytes: MiB });
    const node = await openImage(file);
    await node.grow(3 * MiB, mode);
    assertEquals((await node.blockStatus(0, 3 * MiB)).length, MiB);
    const status = await node.blockStatus(MiB, 2 * MiB);
    assertEquals(status.length, 2 * MiB);
    assert((status.flags & STATUS_ALLOCATED) !== 0);
    assertSameBytes(await contentOf(node), new Uint8Array(3 * MiB), mode);
    await node.close();
    await assertSound(file, mode);
  }
});

Deno.test("Qcow2Node.resize() refuses what QEMU refuses", async () => {
  const file = await createImage({ sizeBytes: MiB, clusterBytes: 512 });
  const node = await openImage(file);
  await assertFails(() => node.resize(1000), "EINVAL", "The new size must be a multiple of 512");
  await assertFails(
    () => node.resize(2 ** 49),
    "EFBIG",
    "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
  );
  await assertFails(
    () => node.grow(512, "full"),
    "EINVAL",
    "Preallocation can't be used for shrinking an image",
  );
  assertEquals(node.sizeBytes, MiB);
  await node.write(MiB - 1, filled(1, 5));
  await node.close();
  await assertSound(file, "after refusals");
  const reader = await openImage(file, { isReadOnly: true });
  await assertFails(() => reader.grow(2 * MiB, "metadata"), "EPERM", "Block node is read-only");
  await reader.close();
});
