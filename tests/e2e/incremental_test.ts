/**
 * Incremental backups of a Linux guest that writes files all along, by HTTP alone: a full backup
 * and a bitmap at one moment, then increments through fleecings, each pulled by an NBD client that
 * reads nothing but what is dirty, into a qcow2 image upon the last one. Every image of the chain
 * must be the file system as the guest had it at that moment, file by file.
 */
import { assert, assertEquals } from "@std/assert";
import { createHash } from "node:crypto";
import { BlockLayer } from "../../src/block/block_layer.ts";
import { IoVector } from "../../src/block/io_vector.ts";
import type { OpenContext } from "../../src/block/open/context.ts";
import { createDriverTable } from "../../src/block/open/drivers.ts";
import { openImage } from "../../src/block/open/open_image.ts";
import { NbdClient } from "../../src/nbd/client.ts";
import { connectTcp } from "../../src/nbd/transports/tcp.ts";
import { compileKernels, Kernels } from "../../src/wasm/kernels.ts";
import { needs } from "../support/clients.ts";
import { findDebian } from "../support/debian.ts";
import { run } from "../support/file_tree.ts";
import { Service, ServiceConsole } from "../support/service.ts";

const MiB = 1024 * 1024;
const DISK_BYTES = 48 * MiB;
const PIECE_BYTES = MiB;
const ROOT = new URL("../..", import.meta.url).pathname;
const debian = await findDebian();
const kernels = new Kernels(await compileKernels());

/** In the guest: files that come, change, grow and go, without an end. */
const WRITE_ON = "i=0; while :; do i=$((i + 1)); f=/mnt/w/$((i % 23)); " +
  "[ $((i % 7)) = 0 ] && rm -f $f || " +
  "dd if=/dev/urandom of=$f bs=3001 count=$((i % 11 + 1)) seek=$((i % 5)) conv=notrunc 2>/dev/null; " +
  "echo $i > /mnt/count; [ $((i % 10)) = 0 ] && sync; done";

/** An export of a fleecing, as far as it is read here. */
interface View {
  name: string;
  nbd: string;
  incremental: { isIncremental: boolean; reason: string | null } | null;
}

/** Paths with their SHA-256. */
type Sums = Record<string, string>;

/** The guest's file system stands still while `action` runs; what it holds then. */
async function frozen(guest: ServiceConsole, action: () => Promise<unknown>): Promise<Sums> {
  await guest.shell("fsfreeze --freeze /mnt");
  const text = await guest.shell("cd /mnt && find . -type f | xargs sha256sum; cd /");
  await action();
  await guest.shell("fsfreeze --unfreeze /mnt");
  const sums: Sums = {};
  for (const [, sum = "", path = ""] of text.matchAll(/^([0-9a-f]{64})\s+\.\/(\S+)/gm)) {
    sums[path] = sum;
  }
  assert("count" in sums, text);
  return sums;
}

/** What an NBD client pulls of a view: its data, or only what a bitmap marks. */
async function pull(
  view: View,
  { path, bitmap }: { path: string; bitmap: string | null },
): Promise<number> {
  const context = bitmap === null ? "base:allocation" : `qemu:dirty-bitmap:${bitmap}`;
  const { hostname: host, port } = new URL(view.nbd.replace(/^nbd/, "http"));
  const client = await NbdClient.connect(await connectTcp({ host, port: Number(port) }), {
    exportName: view.name,
    contexts: [context],
  });
  const image = await openForWriting(path);
  let pulledBytes = 0;
  for (let offset = 0; offset < client.sizeBytes;) {
    const status = await client.blockStatus(offset, client.sizeBytes - offset);
    for (const { length, flags } of status.get(context) ?? []) {
      const isWanted = bitmap === null ? (flags & 2) === 0 : (flags & 1) !== 0;
      for (let at = 0; isWanted && at < length; at += PIECE_BYTES) {
        const bytes = await client.read(offset + at, Math.min(PIECE_BYTES, length - at));
        await image.write(offset + at, bytes);
        pulledBytes += bytes.length;
      }
      offset += length;
    }
  }
  await client.close();
  await image.close();
  return pulledBytes;
}

async function openForWriting(path: string) {
  const layer = new BlockLayer(kernels);
  const context: OpenContext = {
    drivers: createDriverTable(),
    mayOpen: () => true,
    kernels,
    bitmaps: layer.bitmaps,
    opened: new WeakMap(),
    throttleGroup: () => undefined,
  };
  const { node } = await openImage(layer.graph, path, { format: "qcow2" }, context);
  return {
    write: (offset: number, bytes: Uint8Array) => node.write(offset, IoVector.of(bytes)),
    close: () => layer.close(),
  };
}

/** Files in an image as e2fsprogs reads them, from a copy that `flatten` freed of its chain. */
async function filesOf(image: string, flatten: (path: string) => void): Promise<Sums> {
  const copy = `${image}.copy.qcow2`;
  const raw = `${image}.raw`;
  const out = `${image}.files`;
  await Deno.copyFile(image, copy);
  flatten(copy);
  run("qemu-img", "convert", "-O", "raw", copy, raw);
  run("e2fsck", "-fn", raw);
  await Deno.mkdir(out);
  run("debugfs", "-R", `rdump / ${out}`, raw);
  const sums: Sums = {};
  for (const folder of ["", "w/"]) {
    for await (const { name, isFile } of Deno.readDir(`${out}/${folder}`)) {
      if (!isFile) continue;
      const bytes = await Deno.readFile(`${out}/${folder}${name}`);
      sums[folder + name] = createHash("sha256").update(bytes).digest("hex");
    }
  }
  for (const path of [copy, raw, out]) await Deno.remove(path, { recursive: true });
  return sums;
}

/** qemu-img writes what the backing files hold into the image, and forgets them; so does ours. */
const FLATTEN: Record<string, (path: string) => void> = {
  "qemu-img": (path) => run("qemu-img", "rebase", "-f", "qcow2", "-b", "", path),
  ovis: (path) =>
    run(
      Deno.execPath(),
      ...["run", "-P=ovis", "--config", `${ROOT}deno.json`, `${ROOT}main.ts`],
      ...["img", "rebase", "-f", "qcow2", "-b", "", path],
    ),
};

/** A disk with a file system, made by the host and uploaded, in a machine that boots Linux. */
async function startLinux(service: Service, folder: string): Promise<void> {
  await service.call("POST", "/v1/images", { name: "debian", cmdline: "console=ttyS0 quiet" });
  for (const [part, path] of Object.entries(debian.files)) {
    await service.putImageFile("debian", part, path);
  }
  const fileSystem = `${folder}/ext4.img`;
  run("mke2fs", "-q", "-F", "-t", "ext4", fileSystem, `${DISK_BYTES / MiB}M`);
  await service.call("POST", "/v1/disks", {
    name: "data",
    sizeBytes: DISK_BYTES,
    format: "qcow2",
  });
  const bytes = await Deno.readFile(fileSystem);
  assertEquals(await service.status("PUT", "/v1/disks/data/content", bytes), 204);
  await service.call("POST", "/v1/vms", {
    name: "linux",
    image: "debian",
    memoryBytes: 256 * MiB,
    disks: [{ name: "disk0", disk: "data" }],
  });
}

Deno.test({
  name: "full and incremental backups of a writing Linux guest are the guest's files, each",
  ignore: debian.ignore ||
    needs("qemu-img", "mke2fs", "debugfs", "e2fsck").ignore,
  async fn() {
    const folder = await Deno.makeTempDir();
    try {
      await using service = await Service.start(`${folder}/data`);
      await startLinux(service, folder);
      await using guest = new ServiceConsole(service, "linux");
      await guest.waitFor(/Disks: vda[^]*~ # /);
      await guest.shell("mount -t ext4 -o noatime /dev/vda /mnt && mkdir /mnt/w");
      await guest.shell(`eval '(${WRITE_ON}) &'`);

      const images: string[] = [];
      const moments: Sums[] = [];
      const pulled: number[] = [];
      const fleecings = "/v1/vms/linux/fleecings";
      /** One backup: a moment, a pull while the guest writes on, and what its reader says of it. */
      const backUp = async (since: string | null, checkpoint: string, isGood = true) => {
        let view: View | undefined;
        const sums = await frozen(guest, async () => {
          const body = { name: "f", since, checkpoint };
          [view] = (await service.call<{ exports: View[] }>("POST", fleecings, body)).exports;
        });
        if (view === undefined) throw new Error("a fleecing without a view");
        assertEquals(view.incremental?.isIncremental ?? null, since === null ? null : true);
        const path = `${folder}/${checkpoint}.qcow2`;
        const last = images.at(-1);
        const backing = last === undefined ? [] : ["-b", last, "-F", "qcow2"];
        run("qemu-img", "create", "-q", "-f", "qcow2", ...backing, path, `${DISK_BYTES}`);
        const bytes = await pull(view, { path, bitmap: since });
        const result = isGood ? "success" : "failure";
        await service.call("POST", `${fleecings}/f/complete`, { result });
        if (!isGood) return;
        images.push(path);
        moments.push(sums);
        pulled.push(bytes);
      };

      await backUp(null, "c0");
      await backUp("c0", "c1");
      // A reader that fails: its increment is thrown away, and the next one misses nothing.
      await backUp("c1", "lost", false);
      await backUp("c1", "c2");
      await backUp("c2", "c3");
      const { checkpoints } = await service.call<{ checkpoints: string[] }>(
        "GET",
        "/v1/vms/linux",
      );
      assertEquals(checkpoints, ["c3"]);
      // The guest hears of a larger disk, under its mounted file system.
      await service.call("PATCH", "/v1/disks/data", { sizeBytes: 2 * DISK_BYTES });
      const sectors = `${2 * DISK_BYTES / 512}`;
      await guest.shell(`until grep -q ${sectors} /sys/block/vda/size; do :; done`);
      await service.call("DELETE", "/v1/vms/linux");

      for (const [index, image] of images.entries()) {
        run("qemu-img", "check", "-q", image);
        assert(index === 0 || (pulled[index] ?? 0) < DISK_BYTES / 2, "an increment is small");
        for (const [program, flatten] of Object.entries(FLATTEN)) {
          const files = await filesOf(image, flatten);
          assertEquals(files, moments[index], `${image} by ${program}`);
        }
      }
      const counts = new Set(moments.map(({ count }) => count));
      assertEquals(counts.size, moments.length, "the guest wrote between the moments");
      assertEquals(await service.status("DELETE", "/v1/disks/data"), 204);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});
