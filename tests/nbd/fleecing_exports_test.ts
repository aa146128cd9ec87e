// A disk that a guest goes on writing, read over NBD: its present, and a view of its past.
import { assert, assertEquals, assertRejects } from "@std/assert";
import { BlockBackend } from "../../src/block/backend.ts";
import { DirtyBitmaps } from "../../src/block/dirty_bitmap.ts";
import { FileNode } from "../../src/block/drivers/file.ts";
import { NodeExport } from "../../src/block/exports/node_export.ts";
import { Fleecing } from "../../src/block/fleecing.ts";
import { BlockGraph } from "../../src/block/graph.ts";
import { IoVector } from "../../src/block/io_vector.ts";
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from "../../src/block/types.ts";
import { NbdClient, NbdError } from "../../src/nbd/client.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { connectTcp, type TcpAddress } from "../../src/nbd/transports/tcp.ts";
import { compileKernels, Kernels } from "../../src/wasm/kernels.ts";
import { needs } from "../support/clients.ts";
import { directoryOf } from "../support/memory_export.ts";
import { pattern } from "../support/nbd.ts";

const module = await compileKernels();
const KiB = 1024;
const MiB = 1024 * KiB;
const CLUSTER = 64 * KiB;

/**
 * A guest's disk of 4 MiB with a view of it, of which only the clusters 0, 4, 5 and 40 are
 * readable.
 */
class Rig implements AsyncDisposable {
  readonly directory = Deno.makeTempDirSync();
  readonly old = pattern(4 * MiB);
  readonly graph = new BlockGraph();
  readonly device: BlockBackend;
  fleecing: Fleecing | null = null;
  present: NodeExport | null = null;
  server: NbdServer | null = null;
  address: TcpAddress = { host: "127.0.0.1", port: 0 };

  constructor() {
    const path = `${this.directory}/disk`;
    Deno.writeFileSync(path, this.old);
    Deno.mkdirSync(`${this.directory}/scratch`);
    this.graph.add(FileNode.open({ nodeName: "disk", path, isReadOnly: false }));
    this.device = new BlockBackend(this.graph, {
      name: "guest",
      nodeName: "disk",
      perm: PERM_CONSISTENT_READ | PERM_WRITE,
      shared: PERM_ALL,
    });
  }

  write(offset: number, length: number, value: number): unknown {
    return this.device.write(offset, IoVector.of(new Uint8Array(length).fill(value)));
  }

  async start(isWhole: boolean): Promise<Fleecing> {
    const kernels = new Kernels(module);
    const bitmaps = new DirtyBitmaps(kernels);
    const bitmap = isWhole
      ? null
      : bitmaps.add(this.device.node, { name: "b", granularity: CLUSTER });
    if (bitmap !== null) {
      for (const cluster of [0, 4, 5, 40]) await this.write(CLUSTER * cluster, 512, 0x11);
      this.device.read(0, IoVector.of(this.old));
    }
    this.fleecing = await Fleecing.start(this.graph, {
      name: "f",
      disks: [{ name: "disk", exportName: "view", backend: this.device, bitmap, target: null }],
      onCbwError: "break-snapshot",
      cbwTimeoutSeconds: 45,
      minClusterSizeBytes: 0,
      scratchMaxBytes: null,
      scratchDirectory: `${this.directory}/scratch`,
      kernels,
    });
    this.present = new NodeExport(this.graph, { name: "present", nodeName: "disk" });
    const exports = [...this.fleecing.exports, this.present];
    this.server = new NbdServer({ directory: directoryOf(...exports) });
    this.address = this.server.listenTcp(this.address);
    return this.fleecing;
  }

  async connect(exportName: string): Promise<NbdClient> {
    return await NbdClient.connect(await connectTcp(this.address), {
      exportName,
      contexts: ["base:allocation", "x-ovis:access"],
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server?.close();
    await this.present?.close();
    await this.fleecing?.stop();
    await this.device.release();
    await this.graph.close();
    await Deno.remove(this.directory, { recursive: true });
  }
}

Deno.test("a view is read over NBD while the guest overwrites everything", async () => {
  await using rig = new Rig();
  await rig.start(true);
  const view = await rig.connect("view");
  const present = await rig.connect("present");
  for (let at = 0; at < 4 * MiB; at += 256 * KiB) {
    const reading = view.read(0, 4 * MiB);
    await rig.write(at + 1000, 128 * KiB, 0xab);
    assertEquals(await reading, rig.old);
    assertEquals((await present.read(at + 1000, 4))[0], 0xab);
  }
  assertEquals(await view.read(0, 4 * MiB), rig.old);
  assertEquals(view.isReadOnly, false);
  assertEquals(present.isReadOnly, true);
  await assertRejects(() => view.write(0, new Uint8Array(512)), NbdError, "read-only");
  await Promise.all([view.close(), present.close()]);
});

Deno.test("a view refuses over NBD what it may not show, and goes on", async () => {
  await using rig = new Rig();
  await rig.start(false);
  const view = await rig.connect("view");
  const at = (cluster: number) => rig.old.slice(CLUSTER * cluster, CLUSTER * (cluster + 1));
  for (
    const [offset, length] of [
      [CLUSTER, CLUSTER],
      [0, 2 * CLUSTER],
      [4 * CLUSTER, 2 * CLUSTER + 1],
      [CLUSTER - 1, 2],
      [0, 4 * MiB],
    ] as const
  ) {
    const error = await assertRejects(() => view.read(offset, length), NbdError);
    assertEquals(error.errno, 1);
    assert(error.message.length > 5, error.message);
    assertEquals(await view.read(0, CLUSTER), at(0));
  }
  assertEquals(await view.read(4 * CLUSTER, 2 * CLUSTER), rig.old.slice(4 * CLUSTER, 6 * CLUSTER));
  const status = await view.blockStatus(0, 4 * MiB);
  assertEquals(status.get("x-ovis:access"), [
    { length: CLUSTER, flags: 0 },
    { length: 3 * CLUSTER, flags: 1 },
    { length: 2 * CLUSTER, flags: 0 },
    { length: 34 * CLUSTER, flags: 1 },
    { length: CLUSTER, flags: 0 },
    { length: 23 * CLUSTER, flags: 1 },
  ]);
  const allocation = status.get("base:allocation") ?? [];
  assertEquals(allocation.map(({ flags }) => flags), [0, 1, 0, 1, 0, 1]);
  await view.trim(4 * CLUSTER, CLUSTER);
  await assertRejects(() => view.read(4 * CLUSTER, 512), NbdError);
  assertEquals(await view.read(5 * CLUSTER, CLUSTER), at(5));
  await view.close();
});

Deno.test("a view that goes away ends its sessions and leaves others alone", async () => {
  await using rig = new Rig();
  const fleecing = await rig.start(true);
  const view = await rig.connect("view");
  const present = await rig.connect("present");
  await view.read(0, 512);
  await rig.server?.closeExport("view");
  await fleecing.stop();
  await assertRejects(() => view.read(0, 512), NbdError);
  assertEquals((await present.read(0, 512)).length, 512);
  await present.close();
});

Deno.test({
  name: "nbdinfo maps a view with forbidden areas, and nbdcopy and qemu-img read a whole one",
  ...needs("nbdinfo", "nbdcopy", "qemu-img"),
  fn: async () => {
    for (const isWhole of [true, false]) {
      await using rig = new Rig();
      await rig.start(isWhole);
      const uri = `nbd://127.0.0.1:${rig.address.port}/view`;
      const run = async (program: string, ...args: string[]) => {
        const { success, stdout, stderr } = await new Deno.Command(program, { args }).output();
        assert(success, new TextDecoder().decode(stderr));
        return new TextDecoder().decode(stdout);
      };
      if (!isWhole) {
        const map = JSON.parse(await run("nbdinfo", "--map=x-ovis:access", "--json", uri));
        const types = map.map((one: Record<string, unknown>) => one.type);
        assertEquals(types, [0, 1, 0, 1, 0, 1]);
        assert(JSON.parse(await run("nbdinfo", "--map", "--json", uri)).length >= 6);
        continue;
      }
      await rig.write(MiB, MiB, 0xcd);
      await run("nbdcopy", uri, `${rig.directory}/a.img`);
      assertEquals(await Deno.readFile(`${rig.directory}/a.img`), rig.old);
      await rig.write(0, MiB, 0xce);
      await run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, `${rig.directory}/b.img`);
      assertEquals(await Deno.readFile(`${rig.directory}/b.img`), rig.old);
    }
  },
});
