// FAT, ISO 9660 and squashfs as their own tools make them, and partition tables as sfdisk does.
import { assert, assertEquals, assertRejects } from "@std/assert";
import { CachedSource } from "../../../src/client/fs/cache.ts";
import { readPartitions } from "../../../src/client/fs/partitions.ts";
import { FileSystemError, slice } from "../../../src/client/fs/source.ts";
import { tarOf } from "../../../src/client/fs/tar.ts";
import { openVolume } from "../../../src/client/fs/volume.ts";
import { needs } from "../../support/clients.ts";
import {
  assertTree,
  ImageSource,
  makeTree,
  type Manifest,
  randomBytes,
  run,
  type TreeOptions,
} from "../../support/file_tree.ts";

const SEED = 1123;

async function withTree(
  options: TreeOptions,
  action: (folder: string, manifest: Manifest) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    Deno.mkdirSync(`${folder}/tree`);
    await action(folder, await makeTree(`${folder}/tree`, SEED, options));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

for (const [bits, megabytes] of [[12, 4], [16, 24], [32, 80]] as const) {
  Deno.test({
    name: `FAT${bits}: every file is what was written (seed ${SEED})`,
    ...needs("mkfs.fat", "mcopy"),
    fn: () =>
      withTree({ hasLinks: false, manyCount: 80, largestBytes: 600_000 }, async (folder, tree) => {
        const image = `${folder}/image`;
        const size = `${megabytes * 1024}`;
        const cluster = bits === 12 ? "8" : "1";
        run("mkfs.fat", "-F", `${bits}`, "-s", cluster, "-n", "MONDAY", "-C", image, size);
        const names = [...Deno.readDirSync(`${folder}/tree`)].map(({ name }) => name);
        for (const name of names) {
          run("env", "LC_ALL=C.UTF-8", "mcopy", "-s", "-i", image, `${folder}/tree/${name}`, "::/");
        }
        using source = new ImageSource(image);
        const volume = await openVolume(source);
        assertEquals([volume.type, volume.label], [`fat${bits}`, "MONDAY"]);
        await assertTree(volume, tree);
      }),
  });
}

for (
  const [name, args] of Object.entries({
    "Rock Ridge": ["-R"],
    "Joliet": ["-J", "-joliet-long"],
    "Rock Ridge and Joliet": ["-R", "-J", "-joliet-long"],
  })
) {
  Deno.test({
    name: `ISO 9660 with ${name}: every file is what was written (seed ${SEED})`,
    ...needs("xorriso"),
    fn: () =>
      withTree({ hasLinks: args.includes("-R") }, async (folder, tree) => {
        const image = `${folder}/image`;
        const options = ["-as", "mkisofs", "-quiet", "-iso-level", "3", "-V", "MONDAY", ...args];
        // Its joliet names end at 64 or 103 characters.
        if (!args.includes("-R")) {
          const long = [...tree.keys()].find((path) => path.length > 80) ?? "";
          Deno.removeSync(`${folder}/tree${long}`);
          tree.delete(long);
        }
        run("xorriso", ...options, "-o", image, `${folder}/tree`);
        using source = new ImageSource(image);
        const volume = await openVolume(source);
        assertEquals([volume.type, volume.label], ["iso9660", "MONDAY"]);
        await assertTree(volume, tree);
      }),
  });
}

for (const compression of ["gzip", "xz", "lz4", "zstd"]) {
  Deno.test({
    name: `squashfs with ${compression}: every file is what was written (seed ${SEED})`,
    ...needs("mksquashfs"),
    fn: () =>
      withTree({ holeBytes: 4 << 20 }, async (folder, tree) => {
        const image = `${folder}/image`;
        run("mksquashfs", `${folder}/tree`, image, "-comp", compression, "-quiet", "-no-progress");
        using source = new ImageSource(image);
        const volume = await openVolume(source);
        assertEquals(volume.type, "squashfs");
        await assertTree(volume, tree);
        assertEquals((await volume.stat("/hard")).linkCount, 2);
      }),
  });
}

for (
  const [name, script] of Object.entries({
    gpt: 'label: gpt\nstart=2048, size=4096, name="boot"\nstart=8192, size=10000, name="root €"\n',
    mbr: "label: dos\nstart=2048, size=4096, type=83\nstart=8192, size=20000, type=5\n" +
      "start=10240, size=2048, type=82\nstart=14336, size=2048, type=83\n",
  })
) {
  Deno.test({
    name: `partitions of a disk with ${name} are sfdisk's`,
    ...needs("sfdisk"),
    fn: async () => {
      const folder = await Deno.makeTempDir();
      try {
        const image = `${folder}/disk`;
        Deno.writeFileSync(image, new Uint8Array());
        Deno.truncateSync(image, 32 << 20);
        Deno.writeTextFileSync(`${folder}/script`, script);
        run("sh", "-c", `sfdisk -q '${image}' < '${folder}/script'`);
        const table = JSON.parse(run("sfdisk", "-J", image)).partitiontable;
        using source = new ImageSource(image);
        const { scheme, partitions } = await readPartitions(source);
        const expected = table.partitions
          .filter(({ type }: { type: string }) => type !== "5")
          .map((each: { node: string; start: number; size: number; name?: string }) => ({
            number: Number(/\d+$/.exec(each.node)?.[0]),
            offset: each.start * 512,
            sizeBytes: each.size * 512,
            name: each.name ?? "",
          }));
        const seen = partitions.map(({ number, offset, sizeBytes, name }) => ({
          number,
          offset,
          sizeBytes,
          name,
        }));
        assertEquals([scheme, seen], [name, expected]);
        if (name !== "gpt") return;
        // The first header is overwritten: the copy at the end counts.
        using file = Deno.openSync(image, { write: true });
        file.seekSync(512, Deno.SeekMode.Start);
        file.writeSync(new Uint8Array(512));
        assertEquals((await readPartitions(source)).partitions.length, 2);
      } finally {
        await Deno.remove(folder, { recursive: true });
      }
    },
  });
}

Deno.test("a disk without partitions, an empty one, and one of noise are said to be so", async () => {
  const sourceOf = (bytes: Uint8Array<ArrayBuffer>) => ({
    sizeBytes: bytes.length,
    read: (offset: number, length: number) => Promise.resolve(bytes.slice(offset, offset + length)),
  });
  for (const bytes of [new Uint8Array(0), new Uint8Array(1 << 20), randomBytes(SEED, 1 << 20)]) {
    const source = sourceOf(bytes);
    assertEquals((await readPartitions(source)).scheme, "none");
    await assertRejects(() => openVolume(source), FileSystemError, "no file system");
  }
  await assertRejects(() => slice(sourceOf(new Uint8Array(4)), 2, 2).read(1, 2), FileSystemError);
});

Deno.test({
  name: `a tree as a tar is what tar reads (seed ${SEED})`,
  ...needs("mke2fs", "tar"),
  fn: () =>
    withTree({ manyCount: 100 }, async (folder) => {
      const image = `${folder}/image`;
      run("mke2fs", "-q", "-F", "-t", "ext4", "-d", `${folder}/tree`, image, "32M");
      using source = new ImageSource(image);
      const volume = await openVolume(source);
      let entries = 0;
      const stream = tarOf(volume, "/", {
        onProgress: (progress) => entries = progress.entryCount,
      });
      Deno.writeFileSync(`${folder}/archive.tar`, await new Response(stream).bytes());
      assert(entries > 100);
      Deno.mkdirSync(`${folder}/unpacked`);
      run("tar", "-xf", `${folder}/archive.tar`, "-C", `${folder}/unpacked`);
      Deno.removeSync(`${folder}/unpacked/lost+found`);
      run("diff", "-r", "--no-dereference", `${folder}/tree`, `${folder}/unpacked`);
      assertEquals(Deno.statSync(`${folder}/unpacked/hard`).nlink, 2);
      const some = tarOf(volume, "/deep/d0");
      Deno.writeFileSync(`${folder}/some.tar`, await new Response(some).bytes());
      assert(run("tar", "-tf", `${folder}/some.tar`).startsWith("d0/\nd0/d1/\n"));
    }),
});

Deno.test("a cache asks once for what is read twice, reads ahead, and keeps to its bound", async () => {
  const bytes = randomBytes(SEED, 8 << 20);
  const asked: [number, number][] = [];
  const source = {
    sizeBytes: bytes.length,
    read: (offset: number, length: number) => {
      asked.push([offset, length]);
      return Promise.resolve(bytes.slice(offset, offset + length));
    },
  };
  const cache = new CachedSource(source, { cacheBytes: 4 << 20 });
  const check = async (offset: number, length: number) =>
    assertEquals(await cache.read(offset, length), bytes.subarray(offset, offset + length));
  await Promise.all([check(100, 50), check(65530, 12)]);
  assertEquals(asked, [[0, 65536], [65536, 65536]]);
  for (let at = 0; at < 4 << 20; at += 4096) await check(at, 4096);
  assert(asked.length < 40, `${asked.length} requests`);
  // Everything once more: the first blocks are gone by now, the last are not.
  const before = asked.length;
  await check((4 << 20) - 4096, 4096);
  assertEquals(asked.length, before);
  await check(bytes.length - 10, 10);
  await check(0, 2 << 20);
  assertEquals(asked.at(-1), [0, 2 << 20], "a long read goes past the cache");
});
