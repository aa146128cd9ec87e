import { assert, assertEquals, assertRejects } from "@std/assert";
import { gunzipSync } from "node:zlib";
import { listArMembers } from "../../src/image/ar.ts";
import { CpioWriter } from "../../src/image/cpio.ts";
import { extractDeb } from "../../src/image/deb.ts";
import { aptMirror, type ArchiveOptions, releaseEntry } from "../../src/image/debian_archive.ts";
import { makeDebianImage } from "../../src/image/debian_image.ts";
import { ImageError } from "../../src/image/errors.ts";
import { loadOrder, moduleDependencies } from "../../src/image/kernel_module.ts";
import { needs } from "../support/clients.ts";
import { makeDeb, run, TestMirror } from "./support.ts";

async function withTempDir(action: (directory: string) => Promise<void>): Promise<void> {
  const directory = await Deno.makeTempDir();
  try {
    await action(directory);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** A module of the kernel's kind: just enough ELF for its .modinfo. */
function fakeModule(depends: string): Uint8Array<ArrayBuffer> {
  const names = "\0.modinfo\0";
  const info = `license=GPL\0depends=${depends}\0`;
  const elf = new Uint8Array(64 + 16 + 256 + 2 * 64);
  const view = new DataView(elf.buffer);
  const text = new TextEncoder();
  view.setUint32(0, 0x7f454c46);
  view.setUint8(4, 2);
  view.setBigUint64(0x28, 336n, true);
  view.setUint16(0x3a, 64, true);
  view.setUint16(0x3c, 2, true);
  view.setUint16(0x3e, 0, true);
  elf.set(text.encode(names), 64);
  elf.set(text.encode(info), 80);
  view.setBigUint64(336 + 0x18, 64n, true);
  view.setBigUint64(336 + 0x20, 10n, true);
  view.setUint32(400, 1, true);
  view.setBigUint64(400 + 0x18, 80n, true);
  view.setBigUint64(400 + 0x20, BigInt(info.length), true);
  return elf;
}

for (const compression of ["xz", "zstd", "gzip", "none"]) {
  Deno.test({
    name: `extractDeb() takes files out of a package packed by ${compression}`,
    ...needs("dpkg-deb"),
    async fn() {
      await withTempDir(async (directory) => {
        const path = `${directory}/a.deb`;
        const big = crypto.getRandomValues(new Uint8Array(65536));
        await makeDeb(path, { "usr/a": "first", "usr/skipped": big, "usr/z": big }, compression);
        const files = await extractDeb(path, { wants: (name) => name !== "usr/skipped" });
        assertEquals([...files.keys()].sort(), ["usr/a", "usr/z"]);
        assertEquals(new TextDecoder().decode(files.get("usr/a")), "first");
        assertEquals(files.get("usr/z"), big);
      });
    },
  });
}

Deno.test({
  name: "extractDeb() refuses a truncated or foreign file with a clear error",
  ...needs("dpkg-deb"),
  async fn() {
    await withTempDir(async (directory) => {
      const path = `${directory}/a.deb`;
      await makeDeb(path, { "usr/a": crypto.getRandomValues(new Uint8Array(9000)) }, "xz");
      const whole = await Deno.readFile(path);
      for (const length of [0, 7, 60, 100, whole.length - 4000]) {
        await Deno.writeFile(path, whole.subarray(0, length));
        await assertRejects(() => extractDeb(path, { wants: () => true }), ImageError);
      }
      await Deno.writeTextFile(path, "not a package at all");
      await assertRejects(() => extractDeb(path, { wants: () => true }), ImageError, "not an ar");
    });
  },
});

Deno.test("listArMembers() refuses a length that lies", async () => {
  await withTempDir(async (directory) => {
    const header = "data.tar".padEnd(48) + "999999999 `\n";
    await Deno.writeTextFile(`${directory}/a`, `!<arch>\n${header}`);
    using file = await Deno.open(`${directory}/a`);
    await assertRejects(() => listArMembers(file), ImageError, "damaged at byte 8");
  });
});

Deno.test({
  name: "CpioWriter writes what cpio reads",
  ...needs("cpio"),
  async fn() {
    await withTempDir(async (directory) => {
      const cpio = new CpioWriter();
      cpio.directory("bin");
      cpio.file("bin/run", "#!/bin/sh\n", 0o755);
      cpio.symlink("bin/sh", "run");
      await Deno.writeFile(`${directory}/a`, cpio.end());
      const list = await run("sh", ["-c", "cpio -i --quiet < a && cpio -t --quiet < a"], {
        cwd: directory,
      });
      assertEquals(new TextDecoder().decode(list), "bin\nbin/run\nbin/sh\n");
      assertEquals(await Deno.readTextFile(`${directory}/bin/sh`), "#!/bin/sh\n");
    });
  },
});

Deno.test("loadOrder() puts each module behind its needs, and leaves out what is built in", () => {
  const modules = new Map([
    ["ext4", fakeModule("jbd2,mbcache")],
    ["jbd2", fakeModule("")],
    ["mbcache", fakeModule("crc-it")],
    ["crc_it", fakeModule("")],
  ]);
  assertEquals(moduleDependencies(fakeModule("crc-it,b")), ["crc_it", "b"]);
  assertEquals(loadOrder(["ext4", "virtio"], (name) => modules.get(name)), [
    "jbd2",
    "crc_it",
    "mbcache",
    "ext4",
  ]);
});

Deno.test("aptMirror() reads both kinds of apt's lists, and falls back to Debian's own", async () => {
  await withTempDir(async (directory) => {
    assertEquals(await aptMirror(directory), "http://deb.debian.org/debian");
    await Deno.mkdir(`${directory}/sources.list.d`);
    await Deno.writeTextFile(
      `${directory}/sources.list.d/debian.sources`,
      "Types: deb\nURIs: https://mirror.example/debian/\nSuites: trixie\n",
    );
    assertEquals(await aptMirror(directory), "https://mirror.example/debian");
    await Deno.writeTextFile(
      `${directory}/sources.list`,
      "# deb http://no.example/debian x main\ndeb [arch=amd64] http://one.example/debian trixie main\n",
    );
    assertEquals(await aptMirror(directory), "http://one.example/debian");
  });
});

Deno.test("releaseEntry() reads the SHA-256 section alone", () => {
  const release =
    "MD5Sum:\n aa 1 main/x\nSHA256:\n bb 2 main/x\n cc 3 main/y\nAcquire-By-Hash: yes\n";
  assertEquals(releaseEntry(release, "main/x"), { sha256: "bb", sizeBytes: 2 });
  assertEquals(releaseEntry(release, "main/z"), undefined);
});

/** A mirror with a kernel, its metapackage and busybox; and options to pull from it. */
async function withMirror(
  action: (mirror: TestMirror, options: ArchiveOptions) => Promise<void>,
): Promise<void> {
  await withTempDir(async (directory) => {
    await using mirror = await TestMirror.create();
    const tree = "usr/lib/modules/1/kernel";
    const module = async (path: string, depends: string) => {
      await Deno.writeFile(`${directory}/m`, fakeModule(depends));
      return [`${tree}/${path}.ko.xz`, await run("xz", ["-c", `${directory}/m`])] as const;
    };
    await makeDeb(`${directory}/kernel`, {
      "boot/vmlinuz-1": crypto.getRandomValues(new Uint8Array(50000)),
      ...Object.fromEntries([
        await module("drivers/block/virtio_blk", ""),
        await module("drivers/virtio/virtio_mmio", "virtio_ring"),
        await module("drivers/virtio/virtio_ring", ""),
        await module("drivers/gpu/skipped", ""),
      ]),
    }, "xz");
    await makeDeb(`${directory}/busybox`, { "usr/bin/busybox": "busybox" }, "xz");
    await makeDeb(`${directory}/meta`, {}, "xz");
    await mirror.publish("trixie", [
      { name: "linux-image-1-riscv64", deb: await Deno.readFile(`${directory}/kernel`) },
      {
        name: "linux-image-riscv64",
        depends: "linux-base (= 1), linux-image-1-riscv64 (= 1-1)",
        deb: await Deno.readFile(`${directory}/meta`),
      },
      { name: "busybox-static", deb: await Deno.readFile(`${directory}/busybox`) },
    ]);
    await action(mirror, {
      mirror: mirror.url,
      suite: "trixie",
      architecture: "riscv64",
      keyring: mirror.keyring,
      cacheDirectory: `${directory}/cache`,
    });
  });
}

const mirrorNeeds = needs("gpg", "gpgv", "dpkg-deb", "xz", "cpio");

Deno.test({
  name: "makeDebianImage() verifies, unpacks and builds; a second pull fetches no package again",
  ...mirrorNeeds,
  async fn() {
    await withMirror(async (mirror, options) => {
      const image = await makeDebianImage(options);
      assertEquals(image.kernel.length, 50000);
      assertEquals(image.description, "linux-image-1-riscv64 1-1, busybox-static 1-1");
      await withTempDir(async (directory) => {
        await Deno.writeFile(`${directory}/initrd`, new Uint8Array(gunzipSync(image.initrd)));
        await run("sh", ["-c", "cpio -i --quiet < initrd"], { cwd: directory });
        assertEquals(
          await Deno.readTextFile(`${directory}/lib/modules/order`),
          "virtio_ring\nvirtio_mmio\nvirtio_blk\n",
        );
        assertEquals(await Deno.readTextFile(`${directory}/bin/busybox`), "busybox");
      });
      mirror.requests.length = 0;
      assertEquals((await makeDebianImage(options)).initrd, image.initrd);
      assertEquals(mirror.requests, ["dists/trixie/InRelease"]);
    });
  },
});

Deno.test({
  name: "makeDebianImage() finds a kernel that is split into packages",
  ...mirrorNeeds,
  async fn() {
    await withMirror(async (mirror, options) => {
      const deb = (name: string) => mirror.files.get(`pool/main/${name}.deb`) ?? new Uint8Array();
      await mirror.publish("trixie", [
        { name: "linux-binary-1-riscv64", deb: deb("linux-image-1-riscv64") },
        {
          name: "linux-image-1-riscv64",
          depends: "dracut | initramfs-tools, linux-binary-1-riscv64 (= 1-1)",
          deb: deb("linux-image-riscv64"),
        },
        {
          name: "linux-image-riscv64",
          depends: "linux-image-1-riscv64 (= 1-1)",
          deb: deb("linux-image-riscv64"),
        },
        { name: "busybox-static", deb: deb("busybox-static") },
      ]);
      assertEquals((await makeDebianImage(options)).kernel.length, 50000);
    });
  },
});

Deno.test({
  name: "makeDebianImage() continues a download that broke off",
  ...mirrorNeeds,
  async fn() {
    await withMirror(async (mirror, options) => {
      const path = "pool/main/linux-image-1-riscv64.deb";
      mirror.cutAfter = { path, byteCount: 1000 };
      await assertRejects(() => makeDebianImage(options));
      const image = await makeDebianImage(options);
      assertEquals(image.kernel.length, 50000);
      assert(mirror.requests.some((request) => request.startsWith(`${path} bytes=`)));
    });
  },
});

Deno.test({
  name: "makeDebianImage() refuses a changed package, a changed index and a bad signature",
  ...mirrorNeeds,
  async fn() {
    await withMirror(async (mirror, options) => {
      const damage = (path: string) => {
        const before = mirror.files.get(path) ?? new Uint8Array();
        const bytes = before.slice();
        // In a release the name of its suite, in a compressed file something in its middle.
        const at = path.endsWith("InRelease")
          ? new TextDecoder().decode(bytes).indexOf("trixie")
          : bytes.length >> 1;
        bytes[at] = (bytes[at] ?? 0) ^ 1;
        mirror.files.set(path, bytes);
        return () => mirror.files.set(path, before);
      };
      for (
        const [path, message] of [
          ["pool/main/busybox-static.deb", "is not what its signed index says"],
          ["dists/trixie/main/binary-riscv64/Packages.xz", "is not what its signed index says"],
          ["dists/trixie/InRelease", "signature"],
        ] as const
      ) {
        const repair = damage(path);
        await Deno.remove(options.cacheDirectory, { recursive: true }).catch(() => {});
        await assertRejects(() => makeDebianImage(options), ImageError, message);
        repair();
      }
      await makeDebianImage(options);
    });
  },
});
