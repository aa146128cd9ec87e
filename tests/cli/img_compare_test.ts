import { assertEquals, assertMatch } from "@std/assert";
import { needs } from "../support/clients.ts";
import {
  asQemu,
  assertSound,
  Folder,
  img,
  imgOk,
  IS_QEMU_10,
  KiB,
  MiB,
  mixedDisk,
  noise,
  qemuImg,
  qemuImgOk,
  qemuIo,
} from "./img_support.ts";

/** Images of all sorts. */
async function images(folder: Folder): Promise<string[]> {
  const raw = mixedDisk(folder);
  const odd = folder.raw("odd.raw", 8 * MiB + 1000, [[0, noise(300 * KiB, 1)]]);
  const plain = folder.file("plain.qcow2");
  await qemuImgOk("convert", "-O", "qcow2", raw, plain);
  const compressed = folder.file("compressed.qcow2");
  await qemuImgOk("convert", "-c", "-O", "qcow2", raw, compressed);
  const empty = folder.file("empty.qcow2");
  await qemuImgOk("create", "-q", "-f", "qcow2", empty, "8M");
  const metadata = folder.file("metadata.qcow2");
  await qemuImgOk("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", metadata, "9M");
  await qemuIo(metadata, "write -P 3 1M 64k");
  const overlay = folder.file("overlay.qcow2");
  await qemuImgOk("create", "-q", "-f", "qcow2", "-b", plain, "-F", "qcow2", overlay, "10M");
  await qemuIo(overlay, "write -P 1 512k 256k", "write -z 1M 128k", "discard 3M 1M");
  const top = folder.file("top.qcow2");
  const extended = ["-o", "extended_l2=on"];
  await qemuImgOk("create", "-q", "-f", "qcow2", ...extended, "-b", overlay, "-F", "qcow2", top);
  await qemuIo(top, "write -P 2 9M 2k", "write -z 20k 10k");
  return [raw, odd, plain, compressed, empty, metadata, overlay, top];
}

Deno.test({
  name: "ovis img map shows every image as qemu-img does",
  ...needs("qemu-img", "qemu-io"),
  fn: async () => {
    await using folder = await Folder.make();
    for (const image of await images(folder)) {
      for (const range of [[], ["--start-offset=1000000", "--max-length=3M"]]) {
        const words = ["map", "--output=json", ...range, image];
        const ours = JSON.parse(await imgOk(...words));
        const theirs = JSON.parse(await qemuImgOk(...words));
        if (!IS_QEMU_10) { for (const entry of ours) delete entry.compressed; }
        assertEquals(ours, theirs, image);
      }
      const [ours, theirs] = [await img("map", image), await qemuImg("map", image)];
      assertEquals({ ...ours, stderr: asQemu(ours.stderr) }, theirs);
    }
  },
});

Deno.test({
  name: "ovis img compare agrees with qemu-img on every pair of images",
  ...needs("qemu-img", "qemu-io"),
  fn: async () => {
    await using folder = await Folder.make();
    const all = await images(folder);
    for (const [index, first] of all.entries()) {
      for (const second of all.slice(index)) {
        for (const strict of [[], ["-s"]]) {
          const words = ["compare", ...strict, first, second];
          const [ours, theirs] = [await img(...words), await qemuImg(...words)];
          assertEquals({ words, ...ours }, { words, ...theirs });
        }
      }
    }
  },
});

Deno.test("ovis img compare ends with status 2, 3 or 4 where it can't look", async () => {
  await using folder = await Folder.make();
  const good = folder.raw("good.raw", MiB, [[0, noise(MiB, 1)]]);
  assertEquals((await img("compare", good, folder.file("missing"))).status, 2);
  const broken = `json:${
    JSON.stringify({
      driver: "raw",
      file: {
        driver: "blkdebug",
        image: { driver: "file", filename: good },
        "inject-error": [{ event: "none", iotype: "read", errno: 5 }],
      },
    })
  }`;
  const { status, stderr } = await img("compare", broken, good);
  assertEquals(status, 4);
  assertMatch(stderr, /^ovis img: Error while reading offset 0 of json:.*: Input\/output error\n$/);
});

Deno.test({
  name: "ovis img rebase moves an image to another backing file and keeps what it reads as",
  ...needs("qemu-img", "qemu-io"),
  fn: async () => {
    await using folder = await Folder.make();
    const base = folder.raw("base.raw", 4 * MiB, [[0, noise(3 * MiB, 1)]]);
    const other = folder.raw("other.raw", 2 * MiB, [[0, noise(MiB, 1)], [MiB, noise(MiB, 5)]]);
    const middle = folder.file("middle.qcow2");
    const top = folder.file("top.qcow2");
    const flat = folder.file("flat.raw");
    const targets: string[][] = [
      ["-b", "", "-p"],
      ["-b", base, "-F", "raw"],
      ["-b", "other.raw", "-F", "raw"],
      ["-b", other, "-F", "raw", "-c"],
      ["-b", middle, "-F", "qcow2"],
    ];
    for (const words of targets) {
      await qemuImgOk("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", middle, "5M");
      await qemuIo(middle, "write -P 1 1M 256k", "write -z 2M 256k", "write -P 4 4500k 100k");
      const over = ["-b", middle, "-F", "qcow2"];
      await qemuImgOk("create", "-q", "-f", "qcow2", ...over, top);
      await qemuIo(top, "write -P 2 1100k 256k", "write -z 100k 64k");
      await qemuImgOk("convert", "-O", "raw", top, flat);
      await imgOk("rebase", ...words, top);
      await assertSound(top, flat);
      const info = JSON.parse(await qemuImgOk("info", "--output=json", top));
      assertEquals(info["backing-filename"] ?? "", words[1]);
    }
    await imgOk("rebase", "-u", "-b", "nothing.raw", "-F", "raw", top);
    assertMatch(await qemuImgOk("info", top), /backing file: nothing\.raw/);
    const failed = await img("rebase", "-u", "-b", other, top);
    assertEquals(
      asQemu(failed.stderr),
      `qemu-img: Could not change the backing file to '${other}': ` +
        "backing format must be specified\n",
    );
  },
});

/** What an image itself holds. */
async function ownRuns(image: string): Promise<unknown[]> {
  const map: { depth: number; present: boolean }[] = JSON.parse(
    await qemuImgOk("map", "--output=json", image),
  );
  return map.filter(({ depth, present }) => depth === 0 && present);
}

Deno.test({
  name: "ovis img commit writes an image into those behind it, and empties it unless told not to",
  ...needs("qemu-img", "qemu-io"),
  fn: async () => {
    await using folder = await Folder.make();
    const [base, middle, top] = ["base.raw", "middle.qcow2", "top.qcow2"].map((name) =>
      folder.file(name)
    ) as [string, string, string];
    const flat = folder.file("flat.raw");
    const make = async (): Promise<void> => {
      folder.raw("base.raw", 3 * MiB, [[0, noise(3 * MiB, 1)]]);
      await qemuImgOk("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", middle);
      await qemuIo(middle, "write -P 1 1M 256k");
      await qemuImgOk("create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2", top, "4M");
      await qemuIo(top, "write -P 2 1100k 256k", "write -z 100k 64k", "write -P 9 3500k 100k");
      await qemuImgOk("convert", "-O", "raw", top, flat);
    };
    await make();
    assertEquals(await imgOk("commit", top), "Image committed.\n");
    await assertSound(middle, flat);
    await assertSound(top, flat);
    assertEquals(await ownRuns(top), []);
    await make();
    const before = await ownRuns(top);
    assertEquals(await imgOk("commit", "-d", "-p", "-q", top), "");
    await assertSound(middle, flat);
    assertEquals(await ownRuns(top), before);
    await make();
    await imgOk("commit", "-b", base, top);
    await assertSound(base, flat);
    const wrong = await img("commit", "-b", folder.file("other"), top);
    assertMatch(wrong.stderr, /^ovis img: Did not find '.*other' in the backing chain of '.*'\n$/);
  },
});
