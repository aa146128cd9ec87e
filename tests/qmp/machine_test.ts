import { assertEquals, assertRejects } from "@std/assert";
import { BlockBackend } from "../../src/block/backend.ts";
import { BlockLayer } from "../../src/block/block_layer.ts";
import { MemoryNode } from "../../src/block/drivers/memory.ts";
import { IoVector } from "../../src/block/io_vector.ts";
import type { JsonObject } from "../../src/block/open/json.ts";
import { PERM_CONSISTENT_READ, PERM_WRITE, PERM_WRITE_UNCHANGED } from "../../src/block/types.ts";
import { NbdClient } from "../../src/nbd/client.ts";
import { connectUnix } from "../../src/nbd/transports/unix.ts";
import type { QmpRunState } from "../../src/qmp/machine.ts";
import { Monitor } from "../../src/qmp/monitor.ts";
import { compileKernels, Kernels } from "../../src/wasm/kernels.ts";

const module = await compileKernels();
const MiB = 1024 * 1024;

interface Rig {
  monitor: Monitor;
  /** What the guest's device works on. */
  backend: BlockBackend;
  calls: string[];
  folder: string;
}

async function withMachine(run: (rig: Rig) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "ovis-qmp-" });
  const block = new BlockLayer(new Kernels(module));
  block.graph.add(new MemoryNode({ nodeName: "disk-0", sizeBytes: 4 * MiB }));
  const backend = new BlockBackend(block.graph, {
    name: "vda",
    nodeName: "disk-0",
    perm: PERM_CONSISTENT_READ | PERM_WRITE,
    shared: PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED,
  });
  const calls: string[] = [];
  let state: QmpRunState = "running";
  const become = (call: string, next: QmpRunState): void => {
    calls.push(call);
    state = next;
  };
  const monitor = new Monitor({
    block,
    mayOpen: (path) => path.startsWith(Deno.realPathSync(folder)),
    mayListen: () => true,
    quit: () => calls.push("quit"),
    machine: {
      name: "demo",
      runState: () => state,
      stop: () => become("stop", "paused"),
      cont: () => become("cont", "running"),
      reset: () => become("reset", "running"),
      powerdown: () => become("powerdown", "running"),
      disks: () => [{ name: "vda", qdev: "/machine/peripheral/vda/virtio-backend", backend }],
    },
  });
  try {
    await run({ monitor, backend, calls, folder });
  } finally {
    await monitor.close();
    await backend.release();
    await block.close();
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("a machine's monitor steers its run state", () =>
  withMachine(async ({ monitor, calls }) => {
    const run = (name: string) => monitor.execute(name);
    assertEquals(await run("query-status"), { status: "running", running: true });
    await run("stop");
    assertEquals(await run("query-status"), { status: "paused", running: false });
    for (const name of ["cont", "system_reset", "system_powerdown", "quit"]) await run(name);
    assertEquals(calls, ["stop", "cont", "reset", "powerdown", "quit"]);
    assertEquals(await run("query-name"), { name: "demo" });
  }));

Deno.test("query-block shows a machine's disks by device, and jobs are named after them", () =>
  withMachine(async ({ monitor }) => {
    const [disk] = await monitor.execute("query-block") as JsonObject[];
    const inserted = disk?.inserted as JsonObject;
    assertEquals([disk?.device, inserted["node-name"], inserted.ro], ["vda", "disk-0", false]);
    await monitor.execute("blockdev-add", { driver: "null-co", "node-name": "t", size: 4 * MiB });
    await monitor.execute("blockdev-backup", { device: "vda", target: "t", sync: "none" });
    const [job] = await monitor.execute("query-block-jobs") as JsonObject[];
    assertEquals(job?.device, "vda");
    await monitor.execute("job-cancel", { id: "vda" });
  }));

Deno.test("a disk of the machine's can't be deleted, its filter is put in by qom-set", () =>
  withMachine(async ({ monitor, backend, folder }) => {
    const run = (name: string, args: JsonObject) => monitor.execute(name, args);
    const refused = async (name: string, args: JsonObject, message: string): Promise<void> => {
      assertEquals((await assertRejects(() => run(name, args), Error)).message, message);
    };
    await refused("blockdev-del", { "node-name": "disk-0" }, "Node disk-0 is in use");
    await Deno.writeFile(`${folder}/scratch`, new Uint8Array(0));
    await Deno.truncate(`${folder}/scratch`, 4 * MiB);
    // As qmpbackup does it: target, filter, the device's drive, snapshot-access, export.
    await backend.write(0, IoVector.of(new Uint8Array(65536).fill(1)));
    await run("blockdev-add", {
      driver: "file",
      "node-name": "scratch",
      filename: `${folder}/scratch`,
    });
    await run("blockdev-add", {
      driver: "copy-before-write",
      "node-name": "cbw",
      file: "disk-0",
      target: "scratch",
      "on-cbw-error": "break-snapshot",
      "cbw-timeout": 45,
    });
    const drive = { path: "vda", property: "drive" };
    await refused(
      "qom-set",
      { ...drive, value: "gone" },
      "Cannot find device='gone' nor node-name='gone'",
    );
    await refused(
      "qom-set",
      { ...drive, value: 7 },
      "Invalid parameter type for 'drive', expected: string",
    );
    await refused(
      "qom-set",
      { path: "vdx", property: "drive", value: "cbw" },
      "Device 'vdx' not found",
    );
    await run("qom-set", { ...drive, value: "cbw" });
    assertEquals(await run("qom-get", drive), "cbw");
    assertEquals(backend.node.nodeName, "cbw");
    await run("blockdev-add", { driver: "snapshot-access", "node-name": "acc", file: "cbw" });
    const path = `${folder}/nbd`;
    await run("nbd-server-start", { addr: { type: "unix", data: { path } } });
    await run("block-export-add", { type: "nbd", id: "b", "node-name": "acc", name: "backup" });
    await backend.write(0, IoVector.of(new Uint8Array(65536).fill(2)));
    const client = await NbdClient.connect(await connectUnix(path), {
      exportName: "backup",
      requestBytesMax: MiB,
      outstandingBytesMax: MiB,
    });
    assertEquals((await client.read(0, 1))[0], 1);
    await client.close();
    await run("block-export-del", { id: "b", mode: "hard" });
    await run("nbd-server-stop", {});
    await run("blockdev-del", { "node-name": "acc" });
    await refused("blockdev-del", { "node-name": "cbw" }, "Node cbw is in use");
    await run("qom-set", {
      path: "/machine/peripheral/vda/virtio-backend",
      property: "drive",
      value: "disk-0",
    });
    await run("blockdev-del", { "node-name": "cbw" });
    await run("blockdev-del", { "node-name": "scratch" });
    const now = new Uint8Array(1);
    await backend.read(0, IoVector.of(now));
    assertEquals(now[0], 2);
  }));

Deno.test("a node of another size does not become a device's drive", () =>
  withMachine(async ({ monitor }) => {
    await monitor.execute("blockdev-add", { driver: "null-co", "node-name": "n", size: MiB });
    const args = { path: "vda", property: "drive", value: "n" };
    const error = await assertRejects(() => monitor.execute("qom-set", args), Error);
    assertEquals(error.message, `Node 'n' has ${MiB} bytes, not ${4 * MiB} as the device`);
  }));

Deno.test("query-qmp-schema describes all commands, with types that are there", () =>
  withMachine(async ({ monitor }) => {
    const schema = await monitor.execute("query-qmp-schema") as JsonObject[];
    const names = new Set(schema.map(({ name }) => name));
    assertEquals(names.size, schema.length);
    const commands = schema.filter((entry) => entry["meta-type"] === "command");
    assertEquals(commands.map(({ name }) => name), [...monitor.commands.keys()]);
    const used = JSON.stringify(schema).matchAll(/"(?:arg-|ret-|element-)?type":"([^"]+)"/g);
    for (const [, name] of used) assertEquals(names.has(name ?? ""), true, name);
  }));
