// Ext2, ext3 and ext4 as e2fsprogs makes them, read and compared file by file.
import { assert, assertEquals, assertRejects } from "@std/assert";
import { FileSystemError } from "../../../src/client/fs/source.ts";
import { openVolume } from "../../../src/client/fs/volume.ts";
import { needs } from "../../support/clients.ts";
import {
  assertTree,
  ImageSource,
  makeTree,
  type Manifest,
  randomBytes,
  run,
} from "../../support/file_tree.ts";

const SEED = 20261123;

/** Each kind of tree that mke2fs makes. */
const KINDS: Record<string, { args: string[]; type: string }> = {
  "ext2, 1 KiB blocks": { args: ["-t", "ext2", "-b", "1024"], type: "ext2" },
  "ext3": { args: ["-t", "ext3", "-b", "2048"], type: "ext3" },
  "ext4": { args: ["-t", "ext4", "-b", "4096"], type: "ext4" },
  "ext4, 1 KiB blocks": { args: ["-t", "ext4", "-b", "1024"], type: "ext4" },
  "ext4, inline data": {
    args: ["-t", "ext4", "-b", "4096", "-O", "inline_data", "-I", "256"],
    type: "ext4",
  },
  "ext4, meta_bg, no 64bit": {
    args: ["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,^64bit"],
    type: "ext4",
  },
  "ext4, bigalloc": { args: ["-t", "ext4", "-O", "bigalloc"], type: "ext4" },
  "ext4, 128-byte inodes, no checksums": {
    args: ["-t", "ext4", "-I", "128", "-O", "^metadata_csum"],
    type: "ext4",
  },
  "ext4, sparse_super2": {
    args: ["-t", "ext4", "-O", "sparse_super2,meta_bg,^resize_inode", "-b", "1024"],
    type: "ext4",
  },
};

async function withImage(
  args: string[],
  action: (image: string, manifest: Manifest) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    Deno.mkdirSync(`${folder}/tree`);
    const manifest = await makeTree(`${folder}/tree`, SEED, {
      holeBytes: 12 << 20,
      manyCount: 300,
    });
    const image = `${folder}/image`;
    const tree = `${folder}/tree`;
    run("mke2fs", "-q", "-F", "-L", "monday", "-d", tree, ...args, image, "96M");
    await action(image, manifest);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

for (const [name, { args, type }] of Object.entries(KINDS)) {
  Deno.test({
    name: `${name}: every file is what was written (seed ${SEED})`,
    ...needs("mke2fs"),
    fn: () =>
      withImage(args, async (image, manifest) => {
        using source = new ImageSource(image);
        const volume = await openVolume(source);
        assertEquals([volume.type, volume.label], [type, "monday"]);
        await assertTree(volume, manifest);
        const hard = await volume.stat("/hard");
        assertEquals([hard.linkCount, hard.id], [2, (await volume.stat("/sizes/f4096.bin")).id]);
        assertEquals((await volume.stat("/slow")).sizeBytes, 4097);
        assertEquals((await volume.stat("/slow", { noFollow: true })).kind, "symlink");
        await assertRejects(() => volume.stat("/loop"), FileSystemError, "symbolic links");
        await assertRejects(() => volume.stat("/none"), FileSystemError, "there is no none");
      }),
  });
}

Deno.test({
  name: "ext4: committed blocks in the journal are read in place of the old ones",
  ...needs("debugfs"),
  fn: () =>
    withImage(["-t", "ext4", "-b", "4096"], async (image) => {
      const block = run("debugfs", "-R", "blocks /sizes/f4096.bin", image).trim();
      const other = run("debugfs", "-R", "blocks /sizes/f4097.bin", image).trim().split(" ")[0];
      const content = `${image}.block`;
      const fresh = randomBytes(SEED + 7, 4096);
      // The journal must take a block that begins like one of its own apart.
      new DataView(fresh.buffer).setUint32(0, 0xc03b3998);
      const stale = new Uint8Array(8192);
      stale.set(randomBytes(SEED + 8, 4096));
      stale.set(fresh, 4096);
      Deno.writeFileSync(content, stale);
      Deno.writeFileSync(`${image}.fresh`, fresh);
      const before = await readAll(image, "/sizes/f4097.bin");
      Deno.writeTextFileSync(
        `${image}.commands`,
        [
          "jo",
          `jw -b ${block},${other} ${content}`,
          `jw -r ${other}`,
          `jw -b ${block} ${image}.fresh`,
          "jc",
        ].join("\n"),
      );
      run("debugfs", "-w", "-f", `${image}.commands`, image);
      assert(run("dumpe2fs", "-h", image).includes("needs_recovery"));
      assertEquals(await readAll(image, "/sizes/f4096.bin"), fresh);
      assertEquals(await readAll(image, "/sizes/f4097.bin"), before, "a revoked block is not read");
      run("e2fsck", "-fy", "-E", "journal_only", image);
      assertEquals(await readAll(image, "/sizes/f4096.bin"), fresh, "as e2fsck replays it");
      assertEquals(await readAll(image, "/sizes/f4097.bin"), before);
    }),
});

async function readAll(image: string, path: string): Promise<Uint8Array<ArrayBuffer>> {
  using source = new ImageSource(image);
  const file = await (await openVolume(source)).open(path);
  return await new Response(file.stream()).bytes();
}

Deno.test({
  name: `ext4: damage gives errors or other content, never a crash or endless work (seed ${SEED})`,
  ...needs("mke2fs"),
  fn: async () => {
    const folder = await Deno.makeTempDir();
    try {
      Deno.mkdirSync(`${folder}/tree`);
      await makeTree(`${folder}/tree`, SEED, { manyCount: 40, largestBytes: 200_000 });
      const image = `${folder}/image`;
      run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-d", `${folder}/tree`, image, "4M");
      const original = Deno.readFileSync(image);
      const outcomes = { error: 0, read: 0 };
      const random = new Uint32Array(randomBytes(SEED, 4 * 60 * 300).buffer);
      for (let round = 0; round < 200; round++) {
        const bytes = original.slice();
        // Metadata is at the beginning of so small a disk.
        for (let change = 0; change < 60; change++) {
          const word = random[round * 60 + change] ?? 0;
          bytes[1024 + (word >>> 8) % 300_000] = word & 0xff;
        }
        const source = {
          sizeBytes: bytes.length,
          read: (offset: number, length: number) =>
            Promise.resolve(bytes.slice(offset, offset + length)),
        };
        try {
          const volume = await openVolume(source);
          let entries = 0;
          for await (const { node } of volume.walk()) {
            if (++entries > 1000) break;
            if (node.kind === "file") await node.read(0, Math.min(node.sizeBytes, 1 << 20), {});
          }
          outcomes.read++;
        } catch (error) {
          if (!(error instanceof FileSystemError)) throw error;
          outcomes.error++;
        }
      }
      assert(outcomes.error > 10 && outcomes.read > 10, JSON.stringify(outcomes));
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});
