/**
 * Dirty bitmaps kept in qcow2 images, beside QEMU's tools: what either writes the other one reads
 * (acceptance 39, 40).
 *
 * @module
 */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { DirtyBitmaps } from "../../../src/block/dirty_bitmap.ts";
import { BlockError } from "../../../src/block/errors.ts";
import { BlockGraph } from "../../../src/block/graph.ts";
import { checkQcow2 } from "../../../src/block/qcow2/check.ts";
import { Qcow2Node } from "../../../src/block/qcow2/node.ts";
import { compileKernels, Kernels } from "../../../src/wasm/kernels.ts";
import { needs } from "../../support/clients.ts";
import { ImageFolder } from "../../support/qcow2_images.ts";
import { Random } from "../../support/simulation.ts";
import { assertFails, filled } from "../support.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const module = await compileKernels();

/** An image in a graph, as a machine has it. */
class OpenDisk {
  readonly graph = new BlockGraph();
  readonly kernels = new Kernels(module);
  readonly bitmaps = new DirtyBitmaps(this.kernels);
  #node: Qcow2Node | null = null;

  static async open(folder: ImageFolder, name: string, isReadOnly = false): Promise<OpenDisk> {
    const disk = new OpenDisk();
    const file = disk.graph.add(folder.open(name, isReadOnly));
    const node = await Qcow2Node.open({ nodeName: "disk", file, isReadOnly });
    disk.#node = disk.graph.add(node);
    await disk.bitmaps.load(node);
    return disk;
  }

  get node(): Qcow2Node {
    if (this.#node === null) throw new Error("not open");
    return this.#node;
  }

  /** What is dirty in a bitmap: "offset+length ...", in KiB. */
  runs(name: string): string {
    const { bits } = this.bitmaps.get(this.node, name);
    const runs: string[] = [];
    for (let at = 0; at < bits.sizeBytes;) {
      const run = bits.nextRun(at, bits.sizeBytes - at);
      if (run === null) break;
      runs.push(`${run.offset / KiB}+${run.length / KiB}`);
      at = run.offset + run.length;
    }
    return runs.join(" ");
  }

  async close(): Promise<void> {
    await this.graph.close();
    assertEquals(this.kernels.usedBytes, 0);
  }
}

interface InfoBitmap {
  name: string;
  granularity: number;
  flags: string[];
}

async function infoBitmaps(folder: ImageFolder, name: string): Promise<InfoBitmap[]> {
  const info = JSON.parse(await folder.do("qemu-img", "info", "-U", "--output=json", name));
  return info["format-specific"].data.bitmaps ?? [];
}

Deno.test({
  name: "qemu-img's bitmaps are loaded, ours are what qemu-img finds",
  ...needs("qemu-img", "qemu-io"),
  async fn() {
    using folder = new ImageFolder();
    for (const options of ["", "cluster_size=512", "cluster_size=2M", "refcount_bits=1"]) {
      const name = "image";
      await folder.create(name, "64M", options);
      await folder.do("qemu-img", "bitmap", "--add", "-g", "64k", name, "theirs");
      await folder.do("qemu-img", "bitmap", "--add", "--disable", "-g", "4k", name, "off");
      await folder.io(name, "write -P 1 1M 4k", "write -P 2 63M 1M");
      await folder.do("qemu-img", "bitmap", "--merge", "theirs", name, "off");

      const disk = await OpenDisk.open(folder, name);
      assertEquals(disk.runs("theirs"), "1024+64 64512+1024", options);
      assertEquals(disk.runs("off"), "1024+64 64512+1024");
      assertEquals(disk.bitmaps.list(disk.node).map((bitmap) => bitmap.info()), [
        { ...KNOWN, name: "theirs", count: 64 * KiB + MiB, granularity: 64 * KiB, recording: true },
        { ...KNOWN, name: "off", count: 64 * KiB + MiB, granularity: 4 * KiB, recording: false },
      ]);
      assertEquals((await infoBitmaps(folder, name)).map(({ flags }) => flags), [
        ["in-use", "auto"],
        ["in-use"],
      ]);
      disk.bitmaps.add(disk.node, { name: "öurs", granularity: 512, persistent: true });
      disk.bitmaps.add(disk.node, { name: "temporary" });
      await disk.node.write(5 * MiB, filled(1000, 7));
      disk.bitmaps.get(disk.node, "off").bits.setAll();
      await disk.bitmaps.remove(disk.node, "theirs");
      await disk.close();

      await folder.assertClean(name);
      assertEquals(await infoBitmaps(folder, name), [
        { name: "off", granularity: 4 * KiB, flags: [] },
        { name: "öurs", granularity: 512, flags: ["auto"] },
      ]);
      // QEMU has the bits that we wrote: they come back through a bitmap of its own.
      await folder.do("qemu-img", "bitmap", "--add", "--disable", "-g", "512", name, "copy");
      await folder.do("qemu-img", "bitmap", "--merge", "öurs", name, "copy");
      const again = await OpenDisk.open(folder, name, true);
      assertEquals(again.runs("copy"), "5120+1");
      assertEquals(again.runs("off"), `0+${64 * KiB}`);
      await again.close();
      await folder.assertClean(name);
    }
  },
});

Deno.test({
  name: "a bitmap of many clusters: nothing, all, and anything in each of them",
  ...needs("qemu-img", "qemu-io"),
  async fn() {
    using folder = new ImageFolder();
    await folder.create("image", 64 * MiB + 5 * 512, "cluster_size=512");
    const disk = await OpenDisk.open(folder, "image");
    const { bits } = disk.bitmaps.add(disk.node, { name: "b", granularity: 512, persistent: true });
    // A cluster has the bits of 2 MiB.
    const random = new Random(11);
    for (let count = 0; count < 500; count++) {
      bits.set(random.below(16 * MiB), 1 + random.below(4000));
    }
    bits.set(20 * MiB, 9 * MiB);
    bits.set(63 * MiB, MiB + 5 * 512);
    const expected = disk.runs("b");
    await disk.close();
    await folder.assertClean("image");
    await folder.do("qemu-img", "bitmap", "--add", "--disable", "-g", "512", "image", "copy");
    await folder.do("qemu-img", "bitmap", "--merge", "b", "image", "copy");
    const again = await OpenDisk.open(folder, "image");
    assertEquals(again.runs("b"), expected);
    assertEquals(again.runs("copy"), expected, "as QEMU reads it");
    await again.close();
    await folder.assertClean("image");
  },
});

const KNOWN = { busy: false, persistent: true, inconsistent: false };

Deno.test({
  name: "acceptance 39: after a kill bitmaps are inconsistent, and only their removal works",
  ...needs("qemu-img", "qemu-io"),
  async fn() {
    using folder = new ImageFolder();
    await folder.create("image", "64M");
    await folder.do("qemu-img", "bitmap", "--add", "image", "b0");
    const killed = await OpenDisk.open(folder, "image");
    await killed.node.write(0, filled(512, 1));
    killed.bitmaps.add(killed.node, { name: "young", persistent: true });
    await killed.node.flush();
    Deno.copyFileSync(folder.file("image"), folder.file("after"));
    await killed.close();

    assertEquals((await infoBitmaps(folder, "after"))[0]?.flags, ["in-use", "auto"]);
    const disk = await OpenDisk.open(folder, "after");
    const info = { ...KNOWN, name: "b0", count: 0, granularity: 64 * KiB, recording: false };
    assertEquals(disk.bitmaps.list(disk.node).map((bitmap) => bitmap.info()), [
      { ...info, inconsistent: true },
    ]);
    const message = "Bitmap 'b0' is inconsistent and cannot be used";
    assertThrows(() => disk.bitmaps.clear(disk.node, "b0"), BlockError, message);
    await assertFails(() => disk.graph.resize("disk", 32 * MiB), "EINVAL", message);
    await disk.node.write(MiB, filled(512, 1));
    await disk.close();

    const again = await OpenDisk.open(folder, "after");
    assert(again.bitmaps.get(again.node, "b0").isInconsistent);
    await again.bitmaps.remove(again.node, "b0");
    await folder.run("qemu-img", "check", "-U", "after");
    again.bitmaps.add(again.node, { name: "b0", persistent: true });
    await again.close();
    await folder.assertClean("after");
    assertEquals((await infoBitmaps(folder, "after"))[0]?.flags, ["auto"]);
  },
});

Deno.test({
  name: "acceptance 40: persistent bitmaps follow their disk's size",
  ...needs("qemu-img", "qemu-io"),
  async fn() {
    using folder = new ImageFolder();
    await folder.create("image", "16M");
    await folder.do("qemu-img", "bitmap", "--add", "image", "b0");
    await folder.io("image", "write 0 64k", "write 12M 64k");
    const expected = [[32, 131072], [8, 65536], [16, 65536]] as const;
    for (const [size, count] of expected) {
      const disk = await OpenDisk.open(folder, "image");
      await disk.graph.resize("disk", size * MiB);
      assertEquals(disk.bitmaps.get(disk.node, "b0").info().count, count);
      await disk.close();
      await folder.assertClean("image");
      const again = await OpenDisk.open(folder, "image", true);
      assertEquals(again.bitmaps.get(again.node, "b0").info().count, count);
      await again.close();
    }
  },
});

Deno.test({
  name: "a disk is never changed behind the back of its stored bitmaps",
  ...needs("qemu-img"),
  async fn() {
    using folder = new ImageFolder();
    for (const change of ["write", "writeZeroes", "discard", "resize"] as const) {
      await folder.create("image", "16M");
      await folder.do("qemu-img", "bitmap", "--add", "image", "b0");
      const file = folder.open("image");
      const node = await Qcow2Node.open({ nodeName: "disk", file, isReadOnly: false });
      if (change === "write") await node.write(0, filled(512, 1));
      else if (change !== "resize") await node[change](0, 65536);
      else {
        await assertFails(
          () => node.resize(32 * MiB),
          "ENOTSUP",
          "Cannot resize qcow2 with persistent bitmaps that were not loaded into memory",
        );
      }
      await node.close();
      await file.close();
      const isMarked = (await infoBitmaps(folder, "image"))[0]?.flags.includes("in-use");
      assertEquals(isMarked, change !== "resize", change);
    }
  },
});

Deno.test({
  name: "bitmaps that a stranger's write made worthless are inconsistent till they are removed",
  ...needs("qemu-img"),
  async fn() {
    using folder = new ImageFolder();
    await folder.create("image", "16M");
    for (const name of ["b0", "b1"]) {
      await folder.do("qemu-img", "bitmap", "--add", "image", name);
    }
    folder.patch("image", 88, new Uint8Array(8)); // autoclear bits
    const disk = await OpenDisk.open(folder, "image");
    assertEquals(disk.bitmaps.list(disk.node).map((b) => [b.name, b.isInconsistent]), [
      ["b0", true],
      ["b1", true],
    ]);
    await disk.node.write(0, filled(512, 1));
    await disk.bitmaps.remove(disk.node, "b0");
    await disk.close();
    assertEquals((await infoBitmaps(folder, "image")).map(({ name, flags }) => [name, flags]), [
      ["b1", ["in-use", "auto"]],
    ]);
    // What the stale extension had is leaked, as with QEMU.
    const file = folder.open("image");
    assert((await checkQcow2(file, { repair: "leaks" })).leaksFixed > 0);
    await file.close();
    await folder.assertClean("image");
    assertEquals((await infoBitmaps(folder, "image")).length, 1);
  },
});

Deno.test({
  name: "what an image can't keep is refused, with QEMU's texts",
  ...needs("qemu-img"),
  async fn() {
    using folder = new ImageFolder();
    await folder.create("old", "16M", "compat=0.10");
    const old = await OpenDisk.open(folder, "old");
    assertThrows(
      () => old.bitmaps.add(old.node, { name: "b", persistent: true }),
      BlockError,
      "Can't make bitmap 'b' persistent in 'disk': Cannot store dirty bitmaps in qcow2 v2 files",
    );
    await old.close();
    await folder.create("new", "16M");
    const disk = await OpenDisk.open(folder, "new");
    assertThrows(
      () => disk.bitmaps.add(disk.node, { name: "x".repeat(1024), persistent: true }),
      BlockError,
      "Bitmap name too long",
    );
    disk.bitmaps.add(disk.node, { name: "x".repeat(1023), persistent: true });
    await disk.close();
    await folder.assertClean("new");
    await folder.create("large", "4T");
    const large = await OpenDisk.open(folder, "large");
    large.bitmaps.add(large.node, { name: "b", persistent: true });
    await large.node.write(4 * 1024 ** 4 - 512, filled(512, 1));
    await large.close();
    await folder.assertClean("large");
    const again = await OpenDisk.open(folder, "large");
    assertEquals(again.runs("b"), `${(4 * 1024 ** 4 - 65536) / KiB}+64`);
    await again.close();
  },
});

Deno.test({
  name: "an image that is full keeps its bitmaps as inconsistent, and loses nothing else",
  ...needs("qemu-img"),
  async fn() {
    using folder = new ImageFolder();
    await folder.create("image", "16M");
    await folder.do("qemu-img", "bitmap", "--add", "image", "b0");
    const disk = await OpenDisk.open(folder, "image");
    await disk.node.write(0, filled(512, 1));
    await disk.node.flush();
    const file = disk.node.children.get("file")?.node;
    if (file === undefined) throw new Error("no file");
    const { write } = file;
    file.write = () => {
      throw new BlockError("ENOSPC", "No space left on device");
    };
    await assertFails(() => disk.graph.remove("disk"), "ENOSPC", "No space left on device");
    file.write = write;
    await disk.close();
    await folder.assertClean("image");
    assertEquals((await infoBitmaps(folder, "image"))[0]?.flags, ["in-use", "auto"]);
  },
});
