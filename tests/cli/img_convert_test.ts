import { assert, assertEquals, assertMatch } from "@std/assert";
import { needs } from "../support/clients.ts";
import {
  assertSound,
  Folder,
  img,
  imgOk,
  KiB,
  MiB,
  mixedDisk,
  noise,
  qemuImg,
  qemuImgOk,
  qemuIo,
} from "./img_support.ts";

/** Bytes that a file takes. */
function allocated(path: string): number {
  return (Deno.statSync(path).blocks ?? 0) * 512;
}

Deno.test({
  name: "ovis img convert copies every format into every other, with every option",
  ...needs("qemu-img"),
  fn: async () => {
    await using folder = await Folder.make();
    const raw = mixedDisk(folder);
    const qcow2 = folder.file("source.qcow2");
    await qemuImgOk("convert", "-O", "qcow2", "-o", "cluster_size=4k", raw, qcow2);
    const compressed = folder.file("compressed.qcow2");
    await qemuImgOk("convert", "-c", "-O", "qcow2", raw, compressed);
    const targets: [name: string, words: string[]][] = [
      ["a.raw", ["-O", "raw"]],
      ["b.raw", ["-O", "raw", "-S", "0"]],
      ["c.raw", ["-S", "64k", "-m", "1"]],
      ["d.raw", ["-S", "512", "-W", "-m", "16", "-t", "writeback"]],
      ["e.raw", ["-C"]],
      ["g.raw", ["-T", "none", "-t", "directsync"]],
      ["f.raw", ["-o", "preallocation=falloc", "-r", "1G"]],
      ["a.qcow2", ["-O", "qcow2"]],
      ["b.qcow2", ["-O", "qcow2", "-o", "cluster_size=512", "-W"]],
      ["c.qcow2", ["-O", "qcow2", "-o", "cluster_size=2M,refcount_bits=8"]],
      ["d.qcow2", ["-O", "qcow2", "-o", "compat=0.10"]],
      ["e.qcow2", ["-O", "qcow2", "-o", "extended_l2=on"]],
      ["f.qcow2", ["-O", "qcow2", "-o", "preallocation=metadata", "-S", "0"]],
      ["g.qcow2", ["-O", "qcow2", "-o", "lazy_refcounts=on", "-T", "none", "-t", "none"]],
      ["h.qcow2", ["-O", "qcow2", "-c"]],
      ["i.qcow2", ["-O", "qcow2", "-c", "-o", "compression_type=zstd", "-W"]],
      ["j.qcow2", ["-O", "qcow2", "-c", "-o", "cluster_size=4k"]],
      ["k.qcow2", ["-O", "qcow2", "-c", "-o", "cluster_size=2M,compression_type=zstd"]],
      ["l.qcow2", ["-O", "qcow2", "-o", `data_file=${folder.file("l.data")},data_file_raw=on`]],
    ];
    for (const source of [raw, qcow2, compressed]) {
      // Every target from raw, those of each kind from the others.
      for (const [name, words] of targets) {
        if (source !== raw && !/^[ai]\./.test(name)) continue;
        const target = folder.file(name);
        assertEquals(await imgOk("convert", ...words, source, target), "");
        await assertSound(target, raw);
      }
    }
    assert(allocated(folder.file("b.raw")) >= 8 * MiB, "-S 0 allocates everything");
    assert(allocated(folder.file("a.raw")) < 2 * MiB, "zeroes are not written");
    const theirs = folder.file("theirs.qcow2");
    await qemuImgOk("convert", "-c", "-O", "qcow2", raw, theirs);
    assert(allocated(folder.file("h.qcow2")) <= 1.1 * allocated(theirs), "as small as qemu-img's");
  },
});

Deno.test({
  name: "ovis img convert -B leaves what only the backing file has to the new one",
  ...needs("qemu-img", "qemu-io"),
  fn: async () => {
    await using folder = await Folder.make();
    const base = folder.raw("base.raw", 4 * MiB, [[0, noise(4 * MiB, 1)]]);
    const overlay = folder.file("overlay.qcow2");
    await qemuImgOk("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay, "6M");
    await qemuIo(overlay, "write -P 7 1M 100k", "write -z 2M 64k", "write -P 8 5M 1M");
    const words = ["-O", "qcow2", "-B", base, "-F", "raw", overlay];
    const [ours, theirs] = [folder.file("ours.qcow2"), folder.file("theirs.qcow2")];
    await imgOk("convert", ...words, ours);
    await qemuImgOk("convert", ...words, theirs);
    await assertSound(ours, overlay);
    const map = async (image: string): Promise<unknown> =>
      JSON.parse(await qemuImgOk("map", "--output=json", image)).filter((entry: unknown) =>
        (entry as { depth: number; present: boolean }).depth === 0
      ).map(({ start, length, zero, data }: Record<string, unknown>) => [
        start,
        length,
        zero,
        data,
      ]);
    assertEquals(await map(ours), await map(theirs));
    const { stderr } = await img("convert", "-O", "qcow2", "-B", base, overlay, ours);
    assertEquals(stderr, "ovis img: Use of backing file requires explicit backing format\n");
  },
});

Deno.test({
  name: "ovis img convert puts several sources one behind the other, in whole sectors",
  ...needs("qemu-img"),
  fn: async () => {
    await using folder = await Folder.make();
    const parts = [
      folder.raw("1.raw", 100 * KiB + 3, [[0, noise(100 * KiB + 3, 1)]]),
      folder.raw("2.raw", MiB, [[0, noise(10, 2)]]),
      folder.raw("3.raw", 1, [[0, noise(1, 3)]]),
    ];
    const [ours, theirs] = [folder.file("ours.raw"), folder.file("theirs.raw")];
    await imgOk("convert", "-f", "raw", ...parts, ours);
    await qemuImgOk("convert", "-f", "raw", ...parts, theirs);
    assertEquals(await Deno.readFile(ours), await Deno.readFile(theirs));
  },
});

Deno.test({
  name: "ovis img convert -n writes into what is there, zeroes included",
  ...needs("qemu-img", "qemu-io"),
  fn: async () => {
    await using folder = await Folder.make();
    const source = mixedDisk(folder);
    for (const format of ["raw", "qcow2"]) {
      const target = folder.file(`target.${format}`);
      await qemuImgOk("create", "-q", "-f", format, target, "8M");
      await qemuIo(target, "write -P 255 0 8M");
      await imgOk("convert", "-n", "-O", format, source, target);
      await assertSound(target, source);
      await qemuImgOk("create", "-q", "-f", format, target, "8M");
      await imgOk("convert", "-n", "--target-is-zero", "-O", format, source, target);
      await assertSound(target, source);
      const options = `driver=${format},file.driver=file,file.filename=${target}`;
      await imgOk("convert", "-n", "--target-image-opts", source, options);
      await assertSound(target, source);
    }
    const small = folder.raw("small.raw", MiB, []);
    const { stderr } = await img("convert", "-n", source, small);
    assertEquals(stderr, "ovis img: output file is smaller than input file\n");
  },
});

Deno.test({
  name: "ovis img convert -l copies an internal snapshot, and --bitmaps the bitmaps",
  ...needs("qemu-img", "qemu-io"),
  fn: async () => {
    await using folder = await Folder.make();
    const image = folder.file("image.qcow2");
    await qemuImgOk("create", "-q", "-f", "qcow2", image, "4M");
    await qemuIo(image, "write -P 1 0 1M");
    await qemuImgOk("snapshot", "-c", "then", image);
    await qemuImgOk("bitmap", "--add", image, "recording");
    await qemuImgOk("bitmap", "--add", "-g", "4k", "--disable", image, "quiet");
    await qemuIo(image, "write -P 2 512k 2M");
    for (const name of ["then", "1", "snapshot.name=then", "snapshot.id=1,snapshot.name=then"]) {
      const [ours, theirs] = [folder.file("ours.raw"), folder.file("theirs.raw")];
      await imgOk("convert", "-l", name, image, ours);
      await qemuImgOk("convert", "-l", "then", image, theirs);
      await assertSound(ours, theirs);
    }
    const copy = folder.file("copy.qcow2");
    await imgOk("convert", "--bitmaps", "-O", "qcow2", image, copy);
    await assertSound(copy, image);
    const bitmaps = async (name: string): Promise<unknown> =>
      JSON.parse(await qemuImgOk("info", "--output=json", name))["format-specific"].data.bitmaps;
    assertEquals(await bitmaps(copy), await bitmaps(image));
    // The bits themselves: both sides give them to a bitmap of the other image.
    for (const name of ["recording", "quiet"]) {
      await qemuImgOk("bitmap", "--merge", name, "-b", copy, "-F", "qcow2", image, name);
    }
    await assertSound(image);
  },
});

Deno.test({
  name: "ovis img convert tells what it can't read or write, and leaves no half a copy",
  ...needs("qemu-img"),
  fn: async () => {
    await using folder = await Folder.make();
    const source = mixedDisk(folder);
    const broken = (event: string): string =>
      `json:${
        JSON.stringify({
          driver: "raw",
          file: {
            driver: "blkdebug",
            image: { driver: "file", filename: source },
            "inject-error": [{ event, iotype: "read", sector: 3, errno: 5 }],
          },
        })
      }`;
    const target = folder.file("target.raw");
    const failed = await img("convert", broken("none"), target);
    assertEquals([failed.status, failed.stderr], [
      1,
      "ovis img: error while reading at byte 0: Input/output error\n",
    ]);
    assertEquals(await Deno.stat(target).then(() => "there", () => "gone"), "gone");
    // The same without a format above: what lies in a file is still read through the filter.
    const { file: filter } = JSON.parse(broken("none").slice("json:".length));
    filter["inject-error"][0].sector = 100; // behind what is probed
    const filtered = await img("convert", `json:${JSON.stringify(filter)}`, target);
    assertEquals([filtered.status, filtered.stderr], [failed.status, failed.stderr]);
    await Deno.writeFile(target, noise(100, 1));
    const again = await img("convert", broken("none"), target);
    assertMatch(again.stderr, /Input\/output error\n'.*target\.raw' holds an incomplete copy\n$/);
    const salvaged = await img("convert", "--salvage", broken("none"), target);
    assertEquals(salvaged.status, 0);
    assertMatch(salvaged.stderr, /^ovis img: warning: error while reading at byte 1536: Input/);
    const [copy, whole] = [await Deno.readFile(target), await Deno.readFile(source)];
    whole.fill(0, 1536, 2048);
    assertEquals(copy, whole);
  },
});

Deno.test({
  name: "ovis img convert -p shows how far it is, as qemu-img",
  ...needs("qemu-img"),
  fn: async () => {
    await using folder = await Folder.make();
    const source = mixedDisk(folder);
    const shown = await imgOk("convert", "-p", source, folder.file("a.raw"));
    assertMatch(
      shown,
      /^ {4}\(0\.00\/100%\)\r( {4}\(\d+\.\d\d\/100%\)\r)* {4}\(100\.00\/100%\)\r\n$/,
    );
    assertEquals(await imgOk("convert", "-p", "-q", source, folder.file("a.raw")), "");
  },
});

Deno.test({
  name: "ovis img convert and compare read and write exports by NBD",
  ...needs("qemu-img", "qemu-nbd"),
  fn: async () => {
    await using folder = await Folder.make();
    const source = mixedDisk(folder);
    const target = folder.raw("target.raw", 8 * MiB, [[0, noise(8 * MiB, 9)]]);
    const socket = folder.file("socket");
    const server = new Deno.Command("qemu-nbd", {
      args: ["-t", "-f", "raw", "-k", socket, "--fork", target, `--pid-file=${folder.file("pid")}`],
    });
    assertEquals((await server.output()).code, 0);
    const uri = `nbd+unix:///?socket=${socket}`;
    try {
      await imgOk("convert", "-n", "-O", "raw", source, uri);
      assertEquals(await imgOk("compare", "-f", "raw", "-F", "raw", source, uri), IDENTICAL);
      await imgOk("convert", "-f", "raw", "-O", "qcow2", uri, folder.file("back.qcow2"));
      await assertSound(folder.file("back.qcow2"), source);
      const [ours, theirs] = [
        JSON.parse(await imgOk("map", "--output=json", "-f", "raw", uri)),
        JSON.parse(await qemuImgOk("map", "--output=json", "-f", "raw", uri)),
      ];
      const coarse = (map: Record<string, unknown>[]): unknown =>
        map.map(({ start, length, zero, data }) => ({ start, length, zero, data }));
      assertEquals(coarse(ours), coarse(theirs));
    } finally {
      Deno.kill(Number(await Deno.readTextFile(folder.file("pid"))), "SIGTERM");
    }
  },
});

const IDENTICAL = "Images are identical.\n";

Deno.test({
  name: "ovis img dd copies the blocks that qemu-img copies",
  ...needs("qemu-img"),
  fn: async () => {
    await using folder = await Folder.make();
    const source = folder.raw("source.raw", 100 * KiB, [[0, noise(100 * KiB, 1)]]);
    const cases = [
      [],
      ["bs=1k", "skip=2"],
      ["bs=1k", "skip=2", "count=5"],
      ["bs=1k", "count=500"],
      ["bs=3000", "count=7"],
      ["bs=1k", "skip=500"],
    ];
    for (const words of cases) {
      const [ours, theirs] = [folder.file("ours.raw"), folder.file("theirs.raw")];
      const mine = await img("dd", "-f", "raw", ...words, `if=${source}`, `of=${ours}`);
      const qemus = await qemuImg("dd", "-f", "raw", ...words, `if=${source}`, `of=${theirs}`);
      assertEquals(mine.status, qemus.status);
      assertEquals(await Deno.readFile(ours), await Deno.readFile(theirs), words.join(" "));
    }
    const image = folder.file("image.qcow2");
    await imgOk("dd", "-O", "qcow2", "bs=64k", `if=${source}`, `of=${image}`);
    await assertSound(image, source);
  },
});
