import { assertEquals, assertMatch } from "@std/assert";
import { needs } from "../support/clients.ts";
import {
  asQemu,
  assertSound,
  Folder,
  img,
  imgOk,
  KiB,
  MiB,
  mixedDisk,
  qemuImg,
  qemuImgOk,
  qemuIo,
} from "./img_support.ts";

/** A qcow2 image with a leaked cluster: a refcount that nothing accounts for. */
async function leak(image: string): Promise<void> {
  await qemuImgOk("create", "-q", "-f", "qcow2", image, "4M");
  await qemuIo(image, "write -P 1 0 256k");
  using file = Deno.openSync(image, { read: true, write: true });
  const size = file.statSync().size;
  file.truncateSync(Math.ceil(size / 65536) * 65536 + 65536);
  // The refcount block is the third cluster; refcounts have 16 bits.
  file.seekSync(2 * 65536 + 2 * Math.ceil(size / 65536), Deno.SeekMode.Start);
  file.writeSync(new Uint8Array([0, 1]));
}

/** An image whose first L2 entry leads to its own refcount table. */
async function corrupt(image: string): Promise<void> {
  await leak(image);
  using file = Deno.openSync(image, { read: true, write: true });
  const header = new Uint8Array(65536);
  file.readSync(header);
  const l1 = Number(new DataView(header.buffer).getBigUint64(40));
  const entry = new Uint8Array(8);
  file.seekSync(l1, Deno.SeekMode.Start);
  file.readSync(entry);
  const l2 = Number(new DataView(entry.buffer).getBigUint64(0) & 0x00fffffffffffe00n);
  file.seekSync(l2, Deno.SeekMode.Start);
  file.writeSync(new Uint8Array([0x80, 0, 0, 0, 0, 1, 0, 0]));
}

Deno.test({
  name: "ovis img check finds, tells and repairs what qemu-img does, with the same status",
  ...needs("qemu-img", "qemu-io"),
  fn: async () => {
    await using folder = await Folder.make();
    const image = folder.file("image.qcow2");
    const kinds: [(image: string) => Promise<void>, number][] = [[leak, 3], [corrupt, 2]];
    for (const [damage, status] of kinds) {
      await damage(image);
      const words = ["check", "--output=json", image];
      const [ours, theirs] = [await img(...words), await qemuImg(...words)];
      assertEquals([ours.status, theirs.status], [status, status]);
      assertEquals(JSON.parse(ours.stdout), JSON.parse(theirs.stdout));
      assertEquals((await img("check", image)).stdout, (await qemuImg("check", image)).stdout);
      if (damage === corrupt) assertEquals((await img("check", "-r", "leaks", image)).status, 2);
      const repaired = await img("check", "-r", "all", image);
      assertEquals(repaired.status, 0);
      assertMatch(repaired.stdout, /^The following inconsistencies were found and repaired:\n\n/);
      assertMatch(repaired.stdout, /\nNo errors were found on the image\.\n/);
      await assertSound(image);
    }
    assertEquals(await imgOk("check", "-q", image), "");
    const raw = folder.raw("image.raw", MiB, []);
    const unsupported = await img("check", raw);
    assertEquals([unsupported.status, unsupported.stderr], [
      63,
      "ovis img: This image format does not support checks\n",
    ]);
    const shared = await img("check", "-U", "-r", "all", image);
    assertMatch(shared.stderr, /force-share=on can only be used with read-only images/);
  },
});

Deno.test({
  name: "ovis img snapshot makes, applies and removes snapshots that qemu-img reads",
  ...needs("qemu-img", "qemu-io"),
  fn: async () => {
    await using folder = await Folder.make();
    const image = folder.file("image.qcow2");
    const source = mixedDisk(folder);
    await qemuImgOk("convert", "-O", "qcow2", source, image);
    await imgOk("snapshot", "-c", "first", image);
    await qemuIo(image, "write -P 1 0 3M", "discard 5M 1M");
    await assertSound(image);
    await imgOk("snapshot", "-c", "second", image);
    await qemuIo(image, "write -P 2 1M 3M");
    assertMatch(await qemuImgOk("snapshot", "-l", image), /\n1 +first .*\n2 +second /);
    await imgOk("snapshot", "-a", "first", image);
    await assertSound(image, source);
    await imgOk("snapshot", "-d", "first", image);
    await assertSound(image, source);
    await qemuImgOk("snapshot", "-a", "second", image);
    await imgOk("snapshot", "-d", "second", image);
    await assertSound(image);
    assertEquals(await imgOk("snapshot", image), "");
    for (const words of [["-d", "none"], ["-a", "none"]]) {
      const { status, stderr } = await img("snapshot", ...words, image);
      assertEquals(status, 1);
      assertEquals(asQemu(stderr), (await qemuImg("snapshot", ...words, image)).stderr);
    }
  },
});

Deno.test({
  name: "ovis img bitmap changes bitmaps in the order that is asked for",
  ...needs("qemu-img", "qemu-io"),
  fn: async () => {
    await using folder = await Folder.make();
    const [image, other] = [folder.file("image.qcow2"), folder.file("other.qcow2")];
    for (const name of [image, other]) {
      await qemuImgOk("create", "-q", "-f", "qcow2", name, "16M");
    }
    const bitmaps = async (name: string): Promise<unknown> => {
      const info = JSON.parse(await qemuImgOk("info", "--output=json", name));
      return info["format-specific"].data.bitmaps ?? [];
    };
    await imgOk("bitmap", "--add", "--disable", image, "a");
    await imgOk("bitmap", "--add", "-g", "512", image, "b");
    assertEquals(await bitmaps(image), [
      { flags: [], name: "a", granularity: 64 * KiB },
      { flags: ["auto"], name: "b", granularity: 512 },
    ]);
    await qemuIo(image, "write -P 1 1M 1M", "write 10M 4k");
    await imgOk("bitmap", "--enable", "--merge", "b", image, "a");
    await assertSound(image);
    await imgOk("bitmap", "--add", "--merge", "a", "-b", image, "-F", "qcow2", other, "c");
    await assertSound(other);
    // What is dirty: a bitmap of a chunk's size for each bit, as qemu-img merges it.
    await imgOk("bitmap", "--clear", "--remove", image, "b");
    assertEquals(await bitmaps(image), [{ flags: ["auto"], name: "a", granularity: 64 * KiB }]);
    const wrong: string[][] = [
      ["--add", image, "a"],
      ["--remove", image, "none"],
      ["--merge", "none", image, "a"],
      ["--add", "-g", "1000", image, "x"],
    ];
    for (const words of wrong) {
      const [ours, theirs] = [await img("bitmap", ...words), await qemuImg("bitmap", ...words)];
      assertEquals({ ...ours, stderr: asQemu(ours.stderr) }, theirs);
    }
    await assertSound(image);
  },
});

Deno.test({
  name: "ovis img bench sends the requests it is told to",
  ...needs("qemu-img"),
  fn: async () => {
    await using folder = await Folder.make();
    const image = folder.file("image.qcow2");
    await qemuImgOk("create", "-q", "-f", "qcow2", image, "4M");
    const flags = ["-w", "--pattern", "65", "-c", "60", "-d", "3", "-s", "4k", "-S", "8k"];
    const more = ["-o", "1M", "--flush-interval", "5", "-t", "writethrough"];
    const said = await imgOk("bench", ...flags, ...more, image);
    assertMatch(said, /^Sending 60 write requests, 4096 bytes each, 3 in parallel \(starting at/);
    assertMatch(said, /offset 1048576, step size 8192\)\nSending flush every 5 requests\nRun comp/);
    assertMatch(said, /leted in \d+\.\d{3} seconds\.\n$/);
    await assertSound(image);
    const flat = folder.file("flat.raw");
    await imgOk("convert", image, flat);
    const bytes = await Deno.readFile(flat);
    const page = (offset: number): number[] => [...new Set(bytes.subarray(offset, offset + 4096))];
    assertEquals([page(MiB), page(MiB + 4096), page(MiB + 8192)], [[65], [0], [65]]);
    assertMatch(await imgOk("bench", "-c", "1000", image), /^Sending 1000 read requests/);
    assertEquals(await imgOk("bench", "-q", "-c", "10", image), "");
  },
});

Deno.test({
  name: "ovis img reads an image that a writer holds only with -U",
  ...needs("qemu-img"),
  fn: async () => {
    await using folder = await Folder.make();
    const image = folder.file("image.qcow2");
    await qemuImgOk("convert", "-O", "qcow2", mixedDisk(folder), image);
    const { FileNode } = await import("../../src/block/drivers/file.ts");
    const writer = FileNode.open({ nodeName: "writer", path: image, isReadOnly: false });
    try {
      const { status, stderr } = await img("info", image);
      assertEquals(status, 1);
      assertMatch(stderr, /^ovis img: Could not open '.*': Failed to get .*lock/);
      for (const words of [["info"], ["map"], ["check"], ["measure"], ["snapshot", "-l"]]) {
        await imgOk(...words, "-U", image);
      }
      await imgOk("convert", "-U", image, folder.file("copy.raw"));
    } finally {
      await writer.close();
    }
  },
});
