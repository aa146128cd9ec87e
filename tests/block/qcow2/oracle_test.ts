/**
 * Every kind of image that qemu-img makes: filled by qemu-io, read by us, written by us, read by
 * QEMU, written by QEMU, read by us. The bytes are always the same, and qemu-img check finds
 * nothing.
 *
 * @module
 */

import { assert } from "@std/assert";
import { IoVector } from "../../../src/block/io_vector.ts";
import type { BlockNode } from "../../../src/block/node.ts";
import { Qcow2Node } from "../../../src/block/qcow2/node.ts";
import { REQ_MAY_UNMAP, REQ_WRITE_COMPRESSED } from "../../../src/block/types.ts";
import { needs } from "../../support/clients.ts";
import { ImageFolder } from "../../support/qcow2_images.ts";
import { Random } from "../../support/simulation.ts";
import { assertSameBytes, contentOf } from "./support.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
/** The last cluster is short. */
const SIZE = 6 * MiB + 5 * 512;

interface Kind {
  options: string;
  backing?: { format: "raw" | "qcow2"; size: number; options?: string };
  hasDataFile?: boolean;
  /** `write -c` of qemu-io works only on whole clusters that are not allocated. */
  isPreallocated?: boolean;
}

const SHORTER = 2 * MiB + 512;
const LONGER = 9 * MiB;

const KINDS: Kind[] = [
  { options: "" },
  { options: "compat=0.10" },
  { options: "compat=0.10,cluster_size=512" },
  ...["512", "1k", "4k", "2M"].map((size) => ({ options: `cluster_size=${size}` })),
  ...["1", "2", "4", "8", "32", "64"].map((bits) => ({
    options: `refcount_bits=${bits},cluster_size=4k`,
  })),
  { options: "lazy_refcounts=on" },
  { options: "compression_type=zstd" },
  { options: "compression_type=zstd,cluster_size=2M" },
  { options: "extended_l2=on" },
  { options: "extended_l2=on,cluster_size=16k,compression_type=zstd" },
  { options: "extended_l2=on,cluster_size=2M" },
  ...["metadata", "falloc", "full"].map((mode) => ({
    options: `preallocation=${mode}`,
    isPreallocated: true,
  })),
  { options: "preallocation=metadata,extended_l2=on", isPreallocated: true },
  { options: "data_file=image.data", hasDataFile: true },
  { options: "data_file=image.data,data_file_raw=on", hasDataFile: true },
  { options: "data_file=image.data,extended_l2=on", hasDataFile: true },
  { options: "", backing: { format: "raw", size: SHORTER } },
  { options: "", backing: { format: "qcow2", size: LONGER } },
  { options: "compat=0.10", backing: { format: "qcow2", size: SHORTER } },
  { options: "extended_l2=on", backing: { format: "raw", size: LONGER } },
  {
    options: "cluster_size=4k,extended_l2=off",
    backing: { format: "qcow2", size: SHORTER, options: "cluster_size=2M" },
  },
  {
    options: "cluster_size=16k,extended_l2=on",
    backing: { format: "qcow2", size: SIZE, options: "cluster_size=512,compat=0.10" },
  },
  {
    options: "data_file=image.data",
    hasDataFile: true,
    backing: { format: "qcow2", size: SHORTER },
  },
];

/** A file with something everywhere, but for a hole. */
function makeRaw(folder: ImageFolder, name: string, size: number, random: Random): void {
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; at++) {
    bytes[at] = at % (3 * MiB) < MiB ? 0 : 97 + (at >> 9) % 23 + random.below(2);
  }
  Deno.writeFileSync(folder.file(name), bytes);
}

async function make(folder: ImageFolder, kind: Kind, random: Random): Promise<void> {
  const { backing } = kind;
  let options = kind.options;
  if (backing !== undefined) {
    makeRaw(folder, "base.raw", backing.size, random);
    if (backing.format === "qcow2") {
      const more = backing.options === undefined ? [] : ["-o", backing.options];
      await folder.do("qemu-img", "convert", "-O", "qcow2", ...more, "base.raw", "base.qcow2");
    }
    const file = `backing_file=base.${backing.format},backing_fmt=${backing.format}`;
    options = [options, file].filter((part) => part !== "").join(",");
  }
  await folder.create("image", SIZE, options);
}

/** Random commands for qemu-io: none that depends on how the image is made. */
function commands(kind: Kind, random: Random, count: number): string[] {
  return Array.from({ length: count }, () => {
    const length = 512 * (1 + random.below(random.chance(30) ? 600 : 30));
    const offset = 512 * random.below((SIZE - length) / 512 + 1);
    const where = `${offset} ${length}`;
    const choice = random.below(100);
    if (choice < 60) return `write -P ${1 + random.below(255)} ${where}`;
    if (choice < 70) return `write -z ${where}`;
    if (choice < 80) return `write -z -u ${where}`;
    // A discard of a raw data file keeps what is there: QEMU and we agree on that below.
    return kind.hasDataFile ? `write -z ${where}` : `discard ${where}`;
  });
}

interface OpenChain {
  node: Qcow2Node;
  nodes: BlockNode[];
}

async function openChain(folder: ImageFolder, kind: Kind, isReadOnly: boolean): Promise<OpenChain> {
  const nodes: BlockNode[] = [];
  const keep = <T extends BlockNode>(node: T): T => {
    nodes.unshift(node);
    return node;
  };
  let backing: BlockNode | null = null;
  if (kind.backing !== undefined) {
    backing = keep(folder.open(`base.${kind.backing.format}`, true));
    if (kind.backing.format === "qcow2") {
      const options = { nodeName: "base", file: backing, isReadOnly: true };
      backing = keep(await Qcow2Node.open(options));
    }
  }
  const file = keep(folder.open("image", isReadOnly));
  const dataFile = kind.hasDataFile ? keep(folder.open("image.data", isReadOnly)) : null;
  const options = { nodeName: "top", file, dataFile, backing, isReadOnly };
  return { node: keep(await Qcow2Node.open(options)), nodes };
}

async function readOurs(folder: ImageFolder, kind: Kind): Promise<Uint8Array> {
  const { node, nodes } = await openChain(folder, kind, true);
  const content = await contentOf(node);
  for (const each of nodes) await each.close();
  return content;
}

async function readTheirs(folder: ImageFolder, ...options: string[]): Promise<Uint8Array> {
  await folder.do("qemu-img", "convert", ...options, "-O", "raw", "image", "out.raw");
  return folder.bytes("out.raw");
}

/** Random requests of ours; what the disk holds then. */
async function writeOurs(
  folder: ImageFolder,
  kind: Kind,
  random: Random,
): Promise<Uint8Array> {
  const { node, nodes } = await openChain(folder, kind, false);
  const content = await contentOf(node);
  const unit = node.clusterSizeBytes ?? 512;
  for (let count = 0; count < 60; count++) {
    const length = 1 + random.below(random.chance(30) ? 300_000 : 9000);
    const offset = random.below(SIZE - length + 1);
    const choice = random.below(100);
    if (choice < 60) {
      const bytes = new Uint8Array(length).fill(1 + random.below(255));
      await node.write(offset, IoVector.of(bytes));
      content.set(bytes, offset);
    } else if (choice < 80) {
      await node.writeZeroes(offset, length, random.chance(50) ? REQ_MAY_UNMAP : 0);
      content.fill(0, offset, offset + length);
    } else if (choice < 90 && !kind.hasDataFile) {
      const start = offset - offset % unit;
      const bytes = new Uint8Array(Math.min(unit, SIZE - start));
      bytes.forEach((_, at) => bytes[at] = at % 11 + random.below(3));
      await node.write(start, IoVector.of(bytes), REQ_WRITE_COMPRESSED);
      content.set(bytes, start);
    } else await node.flush();
  }
  for (const each of nodes) await each.close();
  return content;
}

for (const [index, kind] of KINDS.entries()) {
  const base = kind.backing === undefined
    ? ""
    : ` over ${kind.backing.size / MiB} MiB of ${kind.backing.format}`;
  Deno.test({
    name: `QEMU and we read and write the same: ${kind.options || "default options"}${base}`,
    ...needs("qemu-img", "qemu-io"),
    async fn() {
      const random = new Random(index + 1);
      using folder = new ImageFolder();
      await make(folder, kind, random);
      assertSameBytes(await readOurs(folder, kind), await readTheirs(folder), "new");

      await folder.io("image", ...commands(kind, random, 25));
      const unit = /2M/.test(kind.options) ? 2 * MiB : 64 * KiB;
      // In version 2 a discard over a backing file does nothing.
      const isStuck = kind.options.includes("compat=0.10") && kind.backing !== undefined;
      if (!kind.hasDataFile && !kind.isPreallocated && !isStuck) {
        // Its compressed clusters, each in a place of its own.
        await folder.io("image", `discard 4M 2M`, `write -c -P 65 4M ${unit}`);
      }
      assertSameBytes(await readOurs(folder, kind), await readTheirs(folder), "written by QEMU");

      const content = await writeOurs(folder, kind, random);
      await folder.assertClean("image");
      assertSameBytes(await readTheirs(folder), content, "written by us");

      await folder.io("image", ...commands(kind, random, 25));
      assertSameBytes(await readOurs(folder, kind), await readTheirs(folder), "written by both");
      await folder.assertClean("image");
      if (kind.hasDataFile && kind.options.includes("raw=on")) {
        const raw = folder.bytes("image.data").subarray(0, SIZE); // QEMU fills up the last cluster
        assertSameBytes(raw, await readTheirs(folder), "the data file");
      }
    },
  });
}

Deno.test({
  name: "what qemu-img compresses is read by us, and the other way round",
  ...needs("qemu-img", "qemu-io"),
  async fn() {
    for (const type of ["zlib", "zstd"]) {
      for (const size of ["512", "64k", "2M"]) {
        using folder = new ImageFolder();
        makeRaw(folder, "raw", SIZE, new Random(7));
        const options = `compression_type=${type},cluster_size=${size}`;
        const how = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options];
        await folder.do("qemu-img", ...how, "raw", "image");
        const raw = folder.bytes("raw");
        assertSameBytes(await readOurs(folder, { options }), raw, options);
        await folder.do("qemu-img", "snapshot", "-c", "one", "image");
        const content = await writeOurs(folder, { options }, new Random(8));
        assertSameBytes(await readTheirs(folder), content, options);
        assertSameBytes(await readTheirs(folder, "-l", "one"), raw, options);
        await folder.assertClean("image");
        const { "compressed-clusters": compressed = 0 } = await folder.check("image");
        assert(compressed > 0 || size === "2M", options);
      }
    }
  },
});

Deno.test({
  name: "what we call zeroes is what qemu-img map calls zeroes",
  ...needs("qemu-img", "qemu-io"),
  async fn() {
    for (const kind of KINDS.filter(({ backing, isPreallocated }) => !backing && !isPreallocated)) {
      using folder = new ImageFolder();
      const random = new Random(5);
      await make(folder, kind, random);
      await folder.io("image", ...commands(kind, random, 20));
      const theirs: { start: number; length: number; zero: boolean; data: boolean }[] = JSON.parse(
        await folder.do("qemu-img", "map", "--output=json", "image"),
      );
      const { node, nodes } = await openChain(folder, kind, true);
      const zero = new Uint8Array(Math.ceil(SIZE / 512));
      for (const { start, length, zero: isZero } of theirs) {
        if (isZero) zero.fill(1, start / 512, (start + length) / 512);
      }
      for (let offset = 0; offset < SIZE;) {
        const { length, flags } = await node.blockStatus(offset, SIZE - offset);
        // Without a backing file what is not there reads as zeroes.
        const isZero = (flags & 2) !== 0 || (flags & 4) === 0;
        for (let at = offset; at < offset + length; at += 512) {
          // QEMU also finds holes of the file below.
          assert(!isZero || zero[at / 512] === 1, `${kind.options} at ${at}`);
        }
        offset += length;
      }
      for (const each of nodes) await each.close();
    }
  },
});
