/**
 * checkQcow2() beside `qemu-img check`: the same counts for good images and for damaged ones, and
 * repaired images that qemu-img finds nothing wrong with.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { IoVector } from "../../../src/block/io_vector.ts";
import { checkQcow2, type Qcow2CheckOptions } from "../../../src/block/qcow2/check.ts";
import type { Qcow2CheckResult } from "../../../src/block/qcow2/check_report.ts";
import { needs } from "../../support/clients.ts";
import { type ImageCheck, ImageFolder } from "../../support/qcow2_images.ts";
import { assertFails } from "../support.ts";

const CLUSTER = 65536;

async function check(
  folder: ImageFolder,
  name: string,
  options: Qcow2CheckOptions = {},
): Promise<Qcow2CheckResult> {
  const file = folder.open(name, (options.repair ?? "none") === "none");
  try {
    return await checkQcow2(file, options);
  } finally {
    await file.close();
  }
}

/** Ours in the words of qemu-img. */
function inWords(result: Qcow2CheckResult): ImageCheck {
  return {
    "check-errors": result.checkErrors,
    corruptions: result.corruptions,
    leaks: result.leaks,
    "image-end-offset": result.imageEndOffset,
    "total-clusters": result.totalClusters,
    "allocated-clusters": result.allocatedClusters,
    "fragmented-clusters": result.fragmentedClusters,
    "compressed-clusters": result.compressedClusters,
  };
}

async function assertAgrees(folder: ImageFolder, name: string): Promise<Qcow2CheckResult> {
  const theirs = await folder.check(name);
  const ours = await check(folder, name);
  const zeroes = {
    corruptions: 0,
    leaks: 0,
    "fragmented-clusters": 0,
    "compressed-clusters": 0,
    "allocated-clusters": 0,
  };
  if (theirs["check-errors"] > 0) {
    // It can't read refcount blocks at bad places and counts each cluster that they describe.
    assert(ours.corruptions > 0, name);
    return ours;
  }
  const known = { ...zeroes, ...theirs } as unknown as Record<string, unknown>;
  for (const key of ["filename", "format"]) delete known[key];
  assertEquals(inWords(ours) as unknown, known, name);
  return ours;
}

/** An image with a bit of everything. */
async function makeImage(folder: ImageFolder, name: string, options: string): Promise<void> {
  await folder.create(name, "32M", options);
  const hasSnapshots = !/data_file/.test(options);
  const hasCompression = hasSnapshots && !/preallocation/.test(options);
  const unit = options.includes("2M") ? "2M" : "64k";
  await folder.io(
    name,
    "write -P 1 0 1M",
    "write -P 2 5M 300k",
    "write -z 8M 1M",
    "write -P 3 20M 64k",
    "discard 5M 64k",
    ...(hasCompression ? [`write -c -P 4 24M ${unit}`, `write -c -P 5 26M ${unit}`] : []),
  );
  if (hasSnapshots) {
    await folder.do("qemu-img", "snapshot", "-c", "one", name);
    await folder.io(name, "write -P 6 512k 1M", "write -P 7 24M 64k");
    await folder.do("qemu-img", "snapshot", "-c", "two", name);
    await folder.io(name, "write -P 8 0 4k");
  }
  if (!/compat=0.10/.test(options)) {
    await folder.do("qemu-img", "bitmap", "--add", name, "b0");
    await folder.do("qemu-img", "bitmap", "--add", "-g", "4k", name, "b1");
    await folder.io(name, "write -P 9 30M 64k");
  }
}

const MATRIX = [
  "",
  "compat=0.10",
  "cluster_size=512",
  "cluster_size=4k,refcount_bits=1",
  "cluster_size=2M",
  "refcount_bits=64",
  "refcount_bits=8,lazy_refcounts=on",
  "extended_l2=on",
  "extended_l2=on,cluster_size=16k,compression_type=zstd",
  "preallocation=metadata",
  "preallocation=full",
  "data_file=DATA,data_file_raw=on",
];

Deno.test({
  name: "checkQcow2() counts what qemu-img counts, for every kind of image",
  ...needs("qemu-img", "qemu-io"),
  async fn() {
    using folder = new ImageFolder();
    for (const [index, options] of MATRIX.entries()) {
      const name = `${index}.qcow2`;
      const resolved = options.replace("DATA", `${index}.data`);
      // With one bit a cluster can't be shared.
      if (/refcount_bits=1$/.test(options)) {
        await folder.create(name, "32M", resolved);
        await folder.io(name, "write -P 1 0 1M", "write -z 8M 1M");
      } else await makeImage(folder, name, resolved);
      const result = await assertAgrees(folder, name);
      assertEquals([result.corruptions, result.leaks], [0, 0], options);
    }
  },
});

/** Reads a number of an image's header. */
function header(folder: ImageFolder, name: string) {
  const view = new DataView(folder.bytes(name).buffer);
  return {
    view,
    l1: Number(view.getBigUint64(40)),
    refcountTable: Number(view.getBigUint64(48)),
    snapshots: Number(view.getBigUint64(64)),
  };
}

function number64(value: bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value);
  return bytes;
}

/** Ways to damage an image: what is left of the problems after repair=all must be nothing. */
const DAMAGES: Record<string, (folder: ImageFolder, name: string) => void> = {
  "a count that is too high"(folder, name) {
    const { view, refcountTable } = header(folder, name);
    const block = Number(view.getBigUint64(refcountTable));
    folder.patch(name, block + 2 * 9, Uint8Array.of(0, 9));
  },
  "counts of 0 and of 5 where 1 is right"(folder, name) {
    const { view, refcountTable, l1 } = header(folder, name);
    const block = Number(view.getBigUint64(refcountTable));
    folder.patch(name, block + 2 * (l1 / CLUSTER), Uint8Array.of(0, 5));
    const l2 = Number(view.getBigUint64(l1) & 0x00fffffffffffe00n);
    folder.patch(name, block + 2 * (l2 / CLUSTER), Uint8Array.of(0, 0));
  },
  "leaked clusters at the end"(folder, name) {
    const { view, refcountTable } = header(folder, name);
    const block = Number(view.getBigUint64(refcountTable));
    const end = Math.ceil(view.byteLength / CLUSTER);
    Deno.truncateSync(folder.file(name), (end + 3) * CLUSTER);
    folder.patch(name, block + 2 * end, Uint8Array.of(0, 1, 0, 1, 0, 1));
  },
  "no refcount block"(folder, name) {
    folder.patch(name, header(folder, name).refcountTable, new Uint8Array(8));
  },
  "a refcount block at a bad place"(folder, name) {
    folder.patch(name, header(folder, name).refcountTable, number64(0x12345600n));
  },
  "a refcount block behind the end"(folder, name) {
    folder.patch(name, header(folder, name).refcountTable + 8, number64(1n << 40n));
  },
  "a refcount block where the L1 table is"(folder, name) {
    const { refcountTable, l1 } = header(folder, name);
    folder.patch(name, refcountTable + 8, number64(BigInt(l1)));
  },
  "wrong COPIED bits"(folder, name) {
    const { view, l1 } = header(folder, name);
    const entry = view.getBigUint64(l1);
    const l2 = Number(entry & 0x00fffffffffffe00n);
    const copied = 1n << 63n;
    folder.patch(name, l1, number64(entry ^ copied));
    folder.patch(name, l2, number64(view.getBigUint64(l2) ^ copied));
  },
  "the dirty and the corrupt bit"(folder, name) {
    folder.patch(name, 72, number64(3n));
  },
  "a snapshot without the disk's size"(folder, name) {
    const { snapshots } = header(folder, name);
    const bytes = folder.bytes(name);
    const view = new DataView(bytes.buffer);
    const [extra, id] = [view.getUint32(snapshots + 36), view.getUint16(snapshots + 12)];
    const length = id + view.getUint16(snapshots + 14);
    const rest = bytes.slice(snapshots + 40 + extra, snapshots + 40 + extra + length);
    view.setUint32(snapshots + 36, 8);
    bytes.set(rest, snapshots + 48);
    // The entry is shorter now: the next one follows it.
    const before = Math.ceil((40 + extra + length) / 8) * 8;
    const after = Math.ceil((48 + length) / 8) * 8;
    bytes.copyWithin(snapshots + after, snapshots + before, snapshots + before + 4096);
    Deno.writeFileSync(folder.file(name), bytes);
  },
};

Deno.test({
  name: "checkQcow2() finds and repairs what is damaged, and loses nothing",
  ...needs("qemu-img", "qemu-io"),
  async fn() {
    using folder = new ImageFolder();
    await makeImage(folder, "good", "");
    await folder.do("qemu-img", "convert", "-O", "raw", "good", "active.raw");
    await folder.do("qemu-img", "convert", "-l", "one", "-O", "raw", "good", "one.raw");
    for (const [name, damage] of Object.entries(DAMAGES)) {
      Deno.copyFileSync(folder.file("good"), folder.file("bad"));
      damage(folder, "bad");
      const isSnapshotDamage = name.includes("snapshot");
      const before = isSnapshotDamage
        ? await check(folder, "bad")
        : await assertAgrees(folder, "bad");
      const isFlag = name.includes("dirty");
      assert(isFlag || before.corruptions + before.leaks > 0, name);

      Deno.copyFileSync(folder.file("bad"), folder.file("leaks"));
      const leaks = await check(folder, "leaks", { repair: "leaks" });
      assert(leaks.corruptions <= before.corruptions, name);
      assert(before.corruptions > 0 || leaks.leaks === 0, name);

      const issues: string[] = [];
      const onIssue = (issue: string) => issues.push(issue);
      const all = await check(folder, "bad", { repair: "all", onIssue });
      assertEquals([all.corruptions, all.leaks, all.checkErrors], [0, 0, 0], `${name}: ${issues}`);
      const fixed = [all.corruptionsFixed > 0, all.leaksFixed > 0];
      assertEquals(fixed, [before.corruptions > 0, before.leaks > 0], name);
      assert(isFlag || issues.length > 0, name);
      await folder.assertClean("bad");
      await assertAgrees(folder, "bad");
      await folder.do("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "bad", "active.raw");
      await folder.do("qemu-img", "convert", "-l", "one", "-O", "raw", "bad", "again.raw");
      await folder.do("qemu-img", "compare", "again.raw", "one.raw");
      await folder.do("qemu-img", "snapshot", "-d", "two", "bad");
      await folder.assertClean("bad");
    }
  },
});

Deno.test({
  name: "checkQcow2() repairs a dirty image of lazy refcounts as qemu-img does",
  ...needs("qemu-img", "qemu-io"),
  async fn() {
    using folder = new ImageFolder();
    await folder.create("lazy", "64M", "lazy_refcounts=on");
    // Killed before the refcounts were written.
    const args = [
      "-f",
      "qcow2",
      "-c",
      "write -P 5 0 3M",
      "-c",
      "flush",
      "-c",
      "sigraise 9",
      "lazy",
    ];
    await folder.run("qemu-io", ...args);
    const before = await check(folder, "lazy");
    assert(before.corruptions > 0);
    const after = await check(folder, "lazy", { repair: "all" });
    assertEquals(after.corruptions, 0);
    assert(after.corruptionsFixed > 0);
    await folder.assertClean("lazy");
    assert(!(await folder.do("qemu-img", "info", "lazy")).includes("dirty"));
    await folder.io("lazy", "read -P 5 0 3M");
  },
});

Deno.test({
  name: "checkQcow2() drops bitmaps that a stranger's write made worthless, as leaks",
  ...needs("qemu-img", "qemu-io"),
  async fn() {
    using folder = new ImageFolder();
    await makeImage(folder, "stale", "");
    folder.patch("stale", 88, new Uint8Array(8)); // autoclear bits
    const before = await assertAgrees(folder, "stale");
    assert(before.leaks > 0 && before.corruptions === 0);
    const after = await check(folder, "stale", { repair: "leaks" });
    assertEquals([after.leaks, after.leaksFixed], [0, before.leaks]);
    await folder.assertClean("stale");
    const info = await folder.run("qemu-img", "info", "stale");
    assert(!/bitmap/.test(info.stdout + info.stderr), info.stdout + info.stderr);
  },
});

Deno.test("checkQcow2() refuses what is no image, and bounds what an image claims", async () => {
  const node = new MemoryNode({ nodeName: "m", sizeBytes: 2 ** 50 });
  await assertFails(() => checkQcow2(node), "EINVAL", "Image is not in qcow2 format");
  const bytes = new DataView(new ArrayBuffer(CLUSTER));
  bytes.setUint32(0, 0x514649fb);
  bytes.setUint32(4, 3);
  bytes.setUint32(20, 9);
  bytes.setUint32(96, 4);
  bytes.setUint32(100, 104);
  bytes.setUint32(56, 1);
  bytes.setBigUint64(48, 512n);
  await node.write(0, IoVector.of(new Uint8Array(bytes.buffer)));
  await assertFails(() => checkQcow2(node), "EFBIG", /too large to be checked/);
  await node.close();
});
