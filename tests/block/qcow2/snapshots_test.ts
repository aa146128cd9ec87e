/**
 * Internal snapshots, beside QEMU's tools: what either makes the other one lists, applies and
 * removes, and every image is clean after each step.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { BlockError } from "../../../src/block/errors.ts";
import type { BlockNode } from "../../../src/block/node.ts";
import { checkQcow2 } from "../../../src/block/qcow2/check.ts";
import type { Qcow2CheckResult } from "../../../src/block/qcow2/check_report.ts";
import { Qcow2Node } from "../../../src/block/qcow2/node.ts";
import { needs } from "../../support/clients.ts";
import { ImageFolder } from "../../support/qcow2_images.ts";
import { assertFails, filled, readBytes } from "../support.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const DATE_MS = Date.UTC(2026, 0, 2, 3, 4, 5);

async function withDisk(
  folder: ImageFolder,
  name: string,
  action: (node: Qcow2Node, file: BlockNode) => unknown,
  isReadOnly = false,
): Promise<void> {
  const file = folder.open(name, isReadOnly);
  const node = await Qcow2Node.open({ nodeName: "disk", file, isReadOnly });
  try {
    await action(node, file);
  } finally {
    await node.close();
    await file.close();
  }
}

interface ListedSnapshot {
  id: string;
  name: string;
  "vm-state-size": number;
  "date-sec": number;
}

async function listed(folder: ImageFolder, name: string): Promise<ListedSnapshot[]> {
  const info = JSON.parse(await folder.do("qemu-img", "info", "--output=json", name));
  return info.snapshots ?? [];
}

const MATRIX = [
  "",
  "compat=0.10",
  "cluster_size=512",
  "cluster_size=2M,refcount_bits=64",
  "extended_l2=on,compression_type=zstd",
  "refcount_bits=8,lazy_refcounts=on",
  "refcount_bits=4",
];

for (const options of MATRIX) {
  Deno.test({
    name: `snapshots come and go, ${options || "default options"}`,
    ...needs("qemu-img", "qemu-io"),
    async fn() {
      using folder = new ImageFolder();
      const name = "image";
      const unit = options.includes("2M") ? "2M" : "64k";
      await folder.create(name, "16M", options);
      await folder.io(name, "write -P 1 0 4M", `write -c -P 2 8M ${unit}`);
      const byte = async (node: Qcow2Node, at: number) => (await readBytes(node, at, 1))[0];

      await withDisk(folder, name, async (node) => {
        await node.write(5 * MiB, filled(300, 3));
        await node.snapshots.create({ name: "öne", dateMs: DATE_MS });
        await node.write(0, filled(100, 4)); // copied first
        await node.write(8 * MiB, filled(100, 5)); // a compressed one
        await node.writeZeroes(2 * MiB, MiB);
        assertEquals([await byte(node, 0), await byte(node, 8 * MiB)], [4, 5]);
      });
      await folder.assertClean(name);
      assertEquals(await listed(folder, name), [{
        ...(await listed(folder, name))[0],
        id: "1",
        name: "öne",
        "vm-state-size": 0,
        "date-sec": DATE_MS / 1000,
      }] as ListedSnapshot[]);
      await folder.do("qemu-img", "convert", "-l", "öne", "-O", "raw", name, "one.raw");
      const one = folder.bytes("one.raw");
      assertEquals([one[0], one[2 * MiB], one[8 * MiB], one[5 * MiB]], [1, 1, 2, 3]);

      await folder.do("qemu-img", "snapshot", "-c", "two", name);
      await withDisk(folder, name, async (node) => {
        assertEquals(node.snapshots.list().map(({ id, name }) => `${id} ${name}`), [
          "1 öne",
          "2 two",
        ]);
        await node.write(12 * MiB, filled(MiB, 6));
        await node.snapshots.apply("öne");
        const bytes = await readBytes(node, 0, 16 * MiB);
        assertEquals(bytes.length, one.length);
        assertEquals(bytes.every((value, at) => value === one[at]), true);
        await node.write(0, filled(100, 7));
      });
      await folder.assertClean(name);
      await withDisk(folder, name, async (node) => {
        await node.snapshots.apply("2");
        assertEquals([await byte(node, 0), await byte(node, 8 * MiB)], [4, 5]);
        await node.snapshots.remove("öne");
        await node.write(4096, filled(100, 8));
      });
      await folder.assertClean(name);
      await folder.do("qemu-img", "snapshot", "-a", "two", name);
      await folder.io(name, "read -P 4 0 100", "read -P 1 4096 100", "read -P 0 12M 1M");
      await withDisk(folder, name, async (node) => {
        await node.snapshots.remove("2");
        assertEquals(node.snapshots.list(), []);
        await node.write(0, filled(16 * MiB, 9));
        // What only the disk has again may be written in place again.
        await node.snapshots.create({ name: "three", dateMs: 0 });
        await node.write(MiB, filled(MiB, 8));
        await node.snapshots.remove("three");
      });
      await folder.assertClean(name);
    },
  });
}

Deno.test({
  name: "a snapshot of another size brings the disk's size back",
  ...needs("qemu-img", "qemu-io"),
  async fn() {
    using folder = new ImageFolder();
    await folder.create("image", "16M");
    await folder.io("image", "write -P 1 15M 1M");
    await withDisk(folder, "image", async (node) => {
      await node.snapshots.create({ name: "small", dateMs: 0 });
      await node.resize(4 * 1024 * MiB);
      await node.write(3 * 1024 * MiB, filled(MiB, 2));
      await node.snapshots.create({ name: "large", dateMs: 0 });
      await node.snapshots.apply("small");
      assertEquals(node.sizeBytes, 16 * MiB);
      await node.write(0, filled(100, 3));
      await node.snapshots.apply("large");
      assertEquals(node.sizeBytes, 4 * 1024 * MiB);
      assertEquals((await readBytes(node, 3 * 1024 * MiB, 1))[0], 2);
    });
    await folder.assertClean("image");
    await withDisk(folder, "image", async (node) => {
      await node.snapshots.show("small");
      assertEquals([node.sizeBytes, (await readBytes(node, 15 * MiB, 1))[0]], [16 * MiB, 1]);
    }, true);
  },
});

Deno.test({
  name: "what a snapshot's entry says beyond what is known here is kept",
  ...needs("qemu-img", "qemu-io"),
  async fn() {
    using folder = new ImageFolder();
    await folder.create("image", "16M");
    await folder.do("qemu-img", "snapshot", "-c", "one", "image");
    // Room for 8 more bytes of extra data, and a VM state.
    const bytes = new Uint8Array(MiB);
    bytes.set(folder.bytes("image"));
    const view = new DataView(bytes.buffer);
    const table = Number(view.getBigUint64(64));
    const extra = view.getUint32(table + 36);
    const strings = bytes.slice(table + 40 + extra, table + 40 + extra + 16);
    view.setUint32(table + 36, 32);
    view.setBigUint64(table + 40, 123456n);
    bytes.set([1, 2, 3, 4, 5, 6, 7, 8], table + 64);
    bytes.set(strings, table + 72);
    Deno.writeFileSync(folder.file("image"), bytes);
    const before = await listed(folder, "image");
    assertEquals(before[0]?.["vm-state-size"], 123456);
    await withDisk(folder, "image", async (node) => {
      await node.snapshots.create({ name: "two", dateMs: 0 });
    });
    assertEquals((await listed(folder, "image"))[0], before[0]);
    const after = folder.bytes("image");
    const moved = Number(new DataView(after.buffer).getBigUint64(64));
    assertEquals([...after.subarray(moved + 64, moved + 72)], [1, 2, 3, 4, 5, 6, 7, 8]);
    await folder.assertClean("image");
  },
});

Deno.test({
  name: "snapshots that can't be are refused, and change nothing",
  ...needs("qemu-img", "qemu-io"),
  async fn() {
    using folder = new ImageFolder();
    await folder.create("image", "16M", "refcount_bits=1");
    await folder.io("image", "write -P 1 0 1M");
    await withDisk(folder, "image", async (node) => {
      const { snapshots } = node;
      await assertFails(() => snapshots.apply("x"), "ENOENT", "Can't find the snapshot");
      await assertFails(() => snapshots.remove("x"), "ENOENT", "Can't find the snapshot");
      // One bit can't count two users.
      await assertFails(() => snapshots.create({ name: "x", dateMs: 0 }), "EINVAL", /too large/);
      await node.write(0, filled(100, 2));
      assertEquals(snapshots.list(), []);
    });
    await folder.assertClean("image");

    await folder.create("data", "16M", "data_file=raw");
    const [file, dataFile] = [folder.open("data"), folder.open("raw")];
    const node = await Qcow2Node.open({ nodeName: "d", file, dataFile, isReadOnly: false });
    await assertFails(
      () => node.snapshots.create({ name: "x", dateMs: 0 }),
      "ENOTSUP",
      /data file/,
    );
    for (const each of [node, file, dataFile]) await each.close();
  },
});

Deno.test({
  name: "a snapshot that fails at any write leaves no harm, and what is there stays",
  ...needs("qemu-img", "qemu-io"),
  async fn() {
    using folder = new ImageFolder();
    for (const action of ["create", "remove", "apply"] as const) {
      let isDone = false;
      for (let allowed = 0; !isDone; allowed++) {
        await folder.create("image", "16M");
        await withDisk(folder, "image", async (node, file) => {
          await node.write(0, filled(MiB, 1));
          await node.snapshots.create({ name: "one", dateMs: 0 });
          await node.write(0, filled(100, 2));
          await node.flush();
          const write = file.write.bind(file);
          let left = allowed;
          file.write = (offset, source, flags) => {
            if (left-- <= 0) throw new BlockError("ENOSPC", "No space left on device");
            return write(offset, source, flags);
          };
          try {
            if (action === "create") await node.snapshots.create({ name: "two", dateMs: 0 });
            else await node.snapshots[action]("one");
            isDone = true;
          } catch (error) {
            if (!(error instanceof BlockError) || error.code !== "ENOSPC") throw error;
          }
          file.write = write;
          const value = isDone && action === "apply" ? 1 : 2;
          if (isDone) assertEquals((await readBytes(node, 0, 1))[0], value);
        });
        const { corruptions, checkErrors } = await checkAfter(folder, "image");
        assertEquals([corruptions, checkErrors], [0, 0], `${action} after ${allowed} writes`);
        if ((await listed(folder, "image")).length === 0) continue;
        await folder.do("qemu-img", "convert", "-l", "one", "-O", "raw", "image", "one.raw");
        assertEquals(folder.bytes("one.raw")[0], 1);
      }
    }
  },
});

/** The image after leaks were repaired. */
async function checkAfter(folder: ImageFolder, name: string): Promise<Qcow2CheckResult> {
  const file = folder.open(name);
  try {
    return await checkQcow2(file, { repair: "leaks" });
  } finally {
    await file.close();
  }
}
