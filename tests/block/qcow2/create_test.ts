/**
 * Images of all options beside those of qemu-img: the same header, found right by qemu-img, read by
 * each other with the same bytes.
 */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { FileNode } from "../../../src/block/drivers/file.ts";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { IoVector } from "../../../src/block/io_vector.ts";
import { createQcow2, type Qcow2CreateOptions } from "../../../src/block/qcow2/create.ts";
import { needs } from "../../support/clients.ts";
import { assertFails } from "../support.ts";
import {
  assertSameBytes,
  contentOf,
  openImage,
  qemuImg,
  Random,
  saveTo,
  withFolder,
} from "./support.ts";

const MiB = 1024 * 1024;

interface Case {
  /** As qemu-img takes them. */
  arguments: string;
  options: Omit<Qcow2CreateOptions, "sizeBytes" | "dataFileNode">;
  sizeBytes?: number;
}

const CASES: readonly Case[] = [
  { arguments: "compat=1.1", options: {} },
  { arguments: "compat=1.1", options: {}, sizeBytes: 0 },
  { arguments: "compat=1.1", options: {}, sizeBytes: 70 * 1024 * MiB },
  { arguments: "compat=0.10", options: { version: 2 } },
  { arguments: "cluster_size=512", options: { clusterBytes: 512 } },
  { arguments: "cluster_size=512", options: { clusterBytes: 512 }, sizeBytes: 300 * MiB },
  { arguments: "cluster_size=2M", options: { clusterBytes: 2 * MiB } },
  { arguments: "refcount_bits=1", options: { refcountBits: 1 } },
  { arguments: "refcount_bits=8", options: { refcountBits: 8 } },
  { arguments: "refcount_bits=64", options: { refcountBits: 64 } },
  {
    arguments: "refcount_bits=64,cluster_size=512",
    options: { refcountBits: 64, clusterBytes: 512 },
    sizeBytes: 100 * MiB,
  },
  { arguments: "lazy_refcounts=on", options: { hasLazyRefcounts: true } },
  { arguments: "compression_type=zstd", options: { compressionType: "zstd" } },
  { arguments: "extended_l2=on", options: { hasExtendedL2: true } },
  {
    arguments: "extended_l2=on,cluster_size=16k",
    options: { hasExtendedL2: true, clusterBytes: 16384 },
  },
  { arguments: "preallocation=metadata", options: { preallocation: "metadata" } },
  {
    arguments: "preallocation=metadata,cluster_size=1k",
    options: { preallocation: "metadata", clusterBytes: 1024 },
  },
  { arguments: "preallocation=falloc", options: { preallocation: "falloc" } },
  { arguments: "preallocation=full", options: { preallocation: "full" } },
  {
    arguments: "preallocation=metadata,extended_l2=on",
    options: { preallocation: "metadata", hasExtendedL2: true },
  },
  { arguments: "data_file=data", options: { dataFile: "data" } },
  {
    arguments: "data_file=data,data_file_raw=on",
    options: { dataFile: "data", isDataFileRaw: true },
  },
  {
    arguments: "backing_file=base,backing_fmt=raw",
    options: { backingFile: "base", backingFormat: "raw" },
  },
  {
    arguments: "backing_file=base,backing_fmt=raw,compat=0.10",
    options: { backingFile: "base", backingFormat: "raw", version: 2 },
  },
];

/** A new file. */
function newFile(path: string): FileNode {
  return FileNode.open({ nodeName: "f", path, isReadOnly: false, create: true, sizeBytes: 0 });
}

function oldFile(path: string): FileNode {
  return FileNode.open({ nodeName: "f", path, isReadOnly: false });
}

/** Makes our image of a case. */
async function create(
  folder: string,
  { options, sizeBytes = 8 * MiB + 512 }: Case,
): Promise<string> {
  const file = newFile(`${folder}/ours.qcow2`);
  const data = options.dataFile ? newFile(`${folder}/${options.dataFile}`) : null;
  await createQcow2(file, {
    ...options,
    sizeBytes,
    ...data === null ? {} : { dataFile: data.path, dataFileNode: data },
  });
  await file.close();
  await data?.close();
  return file.path;
}

/** Bytes of the header, extensions and names. */
function headerOf(path: string, clusterBytes: number): Uint8Array {
  return Deno.readFileSync(path).subarray(0, Math.min(clusterBytes, 4096));
}

for (const [index, each] of CASES.entries()) {
  const { sizeBytes = 8 * MiB + 512, options } = each;
  Deno.test({
    name: `createQcow2() makes what qemu-img create makes: ${each.arguments}, ${sizeBytes}`,
    ...needs("qemu-img"),
    fn: () =>
      withFolder(async (folder) => {
        const path = await create(folder, each);
        Deno.writeFileSync(`${folder}/base`, new Uint8Array(MiB));
        const theirs = `${folder}/theirs.qcow2`;
        await qemuImg(
          ...["create", "-q", "-f", "qcow2"],
          ...["-o", each.arguments.replace("data_file=data", `data_file=${folder}/data2`), theirs],
          String(sizeBytes),
        );
        const clusterBytes = options.clusterBytes ?? 65536;
        // Of preallocated images QEMU lays the tables out elsewhere.
        if (options.dataFile === undefined && options.preallocation === undefined) {
          assertSameBytes(headerOf(path, clusterBytes), headerOf(theirs, clusterBytes), "header");
        }
        assertStringIncludes(await qemuImg("check", path), "No errors were found");
        const info = JSON.parse(await qemuImg("info", "--output=json", path));
        const expected = JSON.parse(await qemuImg("info", "--output=json", theirs));
        if (options.dataFile !== undefined) {
          expected["format-specific"].data["data-file"] = `${folder}/data`;
        }
        assertEquals(info["format-specific"], expected["format-specific"]);
        assertEquals(info["virtual-size"], sizeBytes);
        assertEquals(info["cluster-size"], clusterBytes);
        if (options.preallocation !== undefined) {
          const map = JSON.parse(await qemuImg("map", "--output=json", path));
          assertEquals(
            map.reduce((sum: number, run: { offset?: number; length: number }) => {
              return sum + (run.offset === undefined ? 0 : run.length);
            }, 0),
            sizeBytes,
          );
        }
        await readBoth(folder, each, index);
      }),
  });
}

/** What ours writes qemu-img reads, and what qemu-img writes ours reads. */
async function readBoth(folder: string, each: Case, seed: number): Promise<void> {
  const { sizeBytes = 8 * MiB + 512, options } = each;
  if (sizeBytes === 0 || sizeBytes > 64 * MiB || options.backingFile) return;
  const random = new Random(seed);
  const file = oldFile(`${folder}/ours.qcow2`);
  const data = options.dataFile ? oldFile(`${folder}/${options.dataFile}`) : null;
  const node = await openImage(file, { dataFile: data });
  for (let count = 0; count < 20; count++) {
    const length = 1 + random.below(200_000);
    const bytes = new Uint8Array(length).fill(1 + random.below(255));
    await node.write(random.below(sizeBytes - length), IoVector.of(bytes));
  }
  await saveTo(node, `${folder}/expected.raw`);
  await node.close();
  await file.close();
  await data?.close();
  const compare = ["compare", "-q", "-f", "qcow2", "-F", "raw"];
  await qemuImg(...compare, `${folder}/ours.qcow2`, `${folder}/expected.raw`);
  await qemuImg("check", "-q", `${folder}/ours.qcow2`);

  const made = each.arguments.replace("data_file=data", `data_file=${folder}/data3`);
  await qemuImg(
    ...["convert", "-q", "-f", "raw", "-O", "qcow2", "-o", made],
    ...[`${folder}/expected.raw`, `${folder}/made.qcow2`],
  );
  const madeFile = oldFile(`${folder}/made.qcow2`);
  const madeData = options.dataFile ? oldFile(`${folder}/data3`) : null;
  const reader = await openImage(madeFile, { dataFile: madeData, isReadOnly: true });
  const expected = Deno.readFileSync(`${folder}/expected.raw`);
  assertSameBytes(await contentOf(reader), expected, "an image of qemu-img's");
  await reader.close();
  await madeFile.close();
  await madeData?.close();
}

Deno.test("createQcow2() refuses options that don't go, with QEMU's texts", async () => {
  const v3 = "compatibility level 1.1 and above (use version=v3 or greater)";
  const cases: [Partial<Qcow2CreateOptions>, string][] = [
    [{ sizeBytes: 1000 }, "Image size must be a multiple of 512 bytes"],
    [{ clusterBytes: 256 }, "Cluster size must be a power of two between 512 and 2048k"],
    [{ clusterBytes: 3000 }, "Cluster size must be a power of two between 512 and 2048k"],
    [{ clusterBytes: 4 * MiB }, "Cluster size must be a power of two between 512 and 2048k"],
    [{ refcountBits: 3 }, "Refcount width must be a power of two and may not exceed 64 bits"],
    [{ refcountBits: 128 }, "Refcount width must be a power of two and may not exceed 64 bits"],
    [
      { refcountBits: 8, version: 2 },
      "Different refcount widths than 16 bits require compatibility level 1.1 or above " +
      "(use version=v3 or greater)",
    ],
    [{ hasLazyRefcounts: true, version: 2 }, `Lazy refcounts only supported with ${v3}`],
    [
      { hasExtendedL2: true, version: 2 },
      `Extended L2 entries are only supported with ${v3}`,
    ],
    [
      { hasExtendedL2: true, clusterBytes: 8192 },
      "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
    ],
    [
      { compressionType: "zstd", version: 2 },
      `Non-zlib compression type is only supported with ${v3}`,
    ],
    [{ backingFormat: "raw" }, "Backing format cannot be used without backing file"],
    [{ backingFile: "x".repeat(1024) }, "Backing file name too long"],
    [
      { backingFile: "x", preallocation: "full" },
      "Backing file and preallocation can only be used at the same time if extended_l2 is enabled",
    ],
    [{ isDataFileRaw: true }, "data-file-raw requires data-file"],
  ];
  for (const [options, message] of cases) {
    const file = new MemoryNode({ nodeName: "f", sizeBytes: 0 });
    await assertFails(() => createQcow2(file, { sizeBytes: MiB, ...options }), "EINVAL", message);
  }
  const file = new MemoryNode({ nodeName: "f", sizeBytes: 0 });
  await assertFails(
    () => createQcow2(file, { sizeBytes: 2 ** 50, clusterBytes: 512 }),
    "EFBIG",
    "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
  );
});

Deno.test("createQcow2() makes an image of whatever was in the file", async () => {
  const file = new MemoryNode({ nodeName: "f", sizeBytes: 10 * MiB });
  await file.write(0, IoVector.of(new Uint8Array(10 * MiB).fill(0xaa)));
  await createQcow2(file, { sizeBytes: MiB });
  const node = await openImage(file);
  await node.write(100, IoVector.of(new Uint8Array(1).fill(1)));
  const expected = new Uint8Array(MiB);
  expected[100] = 1;
  assertSameBytes(await contentOf(node), expected, "content");
  await node.close();
});
