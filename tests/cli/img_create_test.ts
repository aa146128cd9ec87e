import { assertEquals, assertMatch } from "@std/assert";
import { needs } from "../support/clients.ts";
import {
  assertSound,
  Folder,
  img,
  imgOk,
  IS_QEMU_10,
  KiB,
  MiB,
  noise,
  qemuImg,
  qemuImgOk,
  qemuIo,
} from "./img_support.ts";

/** What `info --output=json` says, without what differs between equal images. */
function normalInfo(text: string): unknown {
  const normal = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(normal);
    if (typeof value !== "object" || value === null) return value;
    const members = Object.entries(value).filter(([key]) =>
      !["actual-size", "filename", "full-backing-filename", "date-sec", "date-nsec", "icount"]
        .includes(key) && (IS_QEMU_10 || key !== "children")
    );
    return Object.fromEntries(members.map(([key, member]) => [key, normal(member)]));
  };
  return normal(JSON.parse(text));
}

/** The same without sizes of files: ours may be laid out otherwise. */
function withoutFileSizes(info: unknown): unknown {
  const { children: _, ...rest } = info as Record<string, unknown>;
  return rest;
}

const QCOW2_OPTIONS: readonly string[] = [
  "",
  "compat=0.10",
  "cluster_size=512",
  "cluster_size=2M",
  "preallocation=metadata",
  "preallocation=falloc",
  "preallocation=full",
  "refcount_bits=1",
  "refcount_bits=64,cluster_size=4k",
  "lazy_refcounts=on",
  "compression_type=zstd",
  "extended_l2=on,cluster_size=128k",
  "extended_l2=on,preallocation=metadata",
];

Deno.test({
  name: "ovis img create makes images that qemu-img describes as its own",
  ...needs("qemu-img"),
  fn: async () => {
    await using folder = await Folder.make();
    for (const [index, options] of QCOW2_OPTIONS.entries()) {
      const words = ["create", "-f", "qcow2", ...(options === "" ? [] : ["-o", options])];
      const [ours, theirs] = [folder.file(`${index}a.qcow2`), folder.file(`${index}b.qcow2`)];
      const said = await imgOk(...words, ours, "5M");
      assertEquals(said, (await qemuImgOk(...words, theirs, "5M")).replace(theirs, ours));
      await assertSound(ours, theirs);
      const infos: unknown[] = [];
      for (const image of [ours, theirs]) {
        infos.push(withoutFileSizes(normalInfo(await qemuImgOk("info", "--output=json", image))));
      }
      assertEquals(infos[0], infos[1], options);
    }
  },
});

Deno.test({
  name: "ovis img info says of every image what qemu-img says",
  ...needs("qemu-img", "qemu-io"),
  fn: async () => {
    await using folder = await Folder.make();
    const base = folder.file("base.qcow2");
    await qemuImgOk("create", "-q", "-f", "qcow2", base, "10M");
    await qemuIo(base, "write -P 1 0 1M");
    await qemuImgOk("snapshot", "-c", "first", base);
    await qemuIo(base, "write -P 2 512k 1M");
    await qemuImgOk("bitmap", "--add", "-g", "32k", base, "b0");
    await qemuImgOk("bitmap", "--add", "--disable", base, "b1");
    const top = folder.file("top.qcow2");
    await qemuImgOk("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top);
    const data = folder.file("with-data.qcow2");
    const dataOptions = `data_file=${folder.file("data.raw")},data_file_raw=on`;
    await qemuImgOk("create", "-q", "-f", "qcow2", "-o", dataOptions, data, "3M");
    const old = folder.file("old.qcow2");
    await qemuImgOk("create", "-q", "-f", "qcow2", "-o", "compat=0.10,cluster_size=4k", old, "1M");
    const raw = folder.raw("plain.raw", 100 * KiB + 1, [[0, noise(1000, 1)]]);
    for (const image of [base, top, data, old, raw]) {
      for (const extra of [[], ["--backing-chain"], ["-U"]]) {
        const words = ["info", "--output=json", ...extra, image];
        assertEquals(normalInfo(await imgOk(...words)), normalInfo(await qemuImgOk(...words)));
      }
      if (!IS_QEMU_10) continue;
      assertEquals(await imgOk("info", image), await qemuImgOk("info", image));
      const json = `json:{"driver":"${
        image === raw ? "raw" : "qcow2"
      }","file":{"driver":"file","filename":"${image}"}}`;
      assertEquals(await imgOk("info", json), await qemuImgOk("info", json));
    }
    const listed = ["snapshot", "-l", base];
    if (IS_QEMU_10) assertEquals(await imgOk(...listed), await qemuImgOk(...listed));
  },
});

Deno.test({
  name: "ovis img create with a backing file takes its size, and opens it unless told not to",
  ...needs("qemu-img"),
  fn: async () => {
    await using folder = await Folder.make();
    const base = folder.raw("base.raw", 3 * MiB, [[0, noise(MiB, 1)]]);
    const overlay = folder.file("overlay.qcow2");
    await imgOk("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", overlay);
    await assertSound(overlay, base);
    const missing = ["-b", "missing.raw", "-F", "raw"];
    const failed = await img("create", "-f", "qcow2", ...missing, folder.file("x.qcow2"), "1M");
    assertEquals(failed.status, 1);
    assertMatch(failed.stderr, /No such file or directory\nCould not open backing image\.\n$/);
    const unsafe = folder.file("unsafe.qcow2");
    await imgOk("create", "-q", "-u", "-f", "qcow2", ...missing, unsafe, "1M");
    assertMatch(await qemuImgOk("info", "-U", unsafe), /backing file: missing\.raw/);
  },
});

Deno.test("ovis img create -o help lists the options", async () => {
  const qcow2 = await imgOk("create", "-f", "qcow2", "-o", "help");
  assertMatch(qcow2, /^Supported qcow2 options:\n/);
  assertMatch(qcow2, /\n {2}cluster_size=<size> {4}- qcow2 cluster size\n/);
  assertMatch(await imgOk("create", "-o", "help", "x"), /preallocation=<str>/);
});

Deno.test({
  name: "ovis img create leaves an image alone that somebody uses",
  ...needs("qemu-img"),
  fn: async () => {
    await using folder = await Folder.make();
    const image = folder.raw("used.raw", MiB, [[0, noise(MiB, 1)]]);
    const before = await Deno.readFile(image);
    const { status, stderr } = await img("convert", "-f", "raw", "-O", "raw", image, image);
    assertEquals(status, 1);
    assertMatch(stderr, /error while converting raw: Failed to get .*lock/);
    assertEquals(await Deno.readFile(image), before);
  },
});

Deno.test({
  name: "ovis img resize grows and shrinks as qemu-img, and allocates what is new",
  ...needs("qemu-img", "qemu-io"),
  fn: async () => {
    await using folder = await Folder.make();
    for (const format of ["raw", "qcow2"]) {
      const image = folder.file(`image.${format}`);
      await qemuImgOk("create", "-q", "-f", format, image, "4M");
      await qemuIo(image, "write -P 5 0 4M");
      const steps: string[][] = [
        ["+1M"],
        ["6M"],
        ["--preallocation=falloc", "7M"],
        [
          "--preallocation=full",
          "+1M",
        ],
        ["--shrink", "-5M"],
        ["--shrink", "1536k"],
      ];
      let size = 4 * MiB;
      for (const step of steps) {
        assertEquals(await imgOk("resize", "-f", format, image, ...step), "Image resized.\n");
        await assertSound(image);
        const { "virtual-size": now } = JSON.parse(await qemuImgOk("info", "--output=json", image));
        const amount = step.at(-1) ?? "";
        size = amount === "1536k"
          ? 1536 * KiB
          : /^[+-]/.test(amount)
          ? size + parseInt(amount) * MiB
          : parseInt(amount) * MiB;
        assertEquals(now, size);
      }
      const shrunk = await img("resize", "-f", format, image, "1M");
      assertEquals(shrunk.status, 1);
      assertMatch(shrunk.stderr, /Use the --shrink option/);
    }
  },
});

Deno.test({
  name: "ovis img measure agrees with qemu-img on every format and option",
  ...needs("qemu-img", "qemu-io"),
  fn: async () => {
    await using folder = await Folder.make();
    const sparse = folder.raw("sparse.raw", 50 * MiB, [[MiB, noise(3 * MiB, 1)]]);
    const image = folder.file("image.qcow2");
    await qemuImgOk("convert", "-O", "qcow2", sparse, image);
    await qemuImgOk("bitmap", "--add", image, "b0");
    await qemuImgOk("snapshot", "-c", "kept", image);
    await qemuIo(image, "write -P 1 20M 5M");
    const options = ["", "cluster_size=4k", "refcount_bits=1", "compat=0.10", "preallocation=full"]
      .map((option) => option === "" ? [] : ["-o", option]);
    for (const option of [...options, ["-o", "extended_l2=on"]]) {
      for (const source of [["--size", "0"], ["--size", "1G"], ["--size", "77T"], [image]]) {
        const words = ["measure", "-O", "qcow2", ...option, "--output=json", ...source];
        const [ours, theirs] = [await img(...words), await qemuImg(...words)];
        assertEquals(ours.status, theirs.status, words.join(" "));
        if (ours.status === 0) assertEquals(JSON.parse(ours.stdout), JSON.parse(theirs.stdout));
      }
    }
    for (const words of [["-O", "raw", image], ["-O", "qcow2", sparse], ["-l", "kept", image]]) {
      assertEquals(await imgOk("measure", ...words), await qemuImgOk("measure", ...words));
    }
  },
});
