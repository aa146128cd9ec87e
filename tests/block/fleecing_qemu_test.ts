/**
 * The scenarios of fleecing against a QEMU 10 storage daemon, where one is at hand: proves that
 * what the rows ask of Ovis is what QEMU does.
 *
 * @module
 */

import { NbdClient, NbdError } from "../../src/nbd/client.ts";
import { connectUnix } from "../../src/nbd/transports/unix.ts";
import { CLUSTER, createSide, MiB, type Side } from "../support/fleecing_rig.ts";
import {
  findQemu10,
  QemuStorageDaemon,
  type QmpArguments,
} from "../support/qemu_storage_daemon.ts";
import { type Scenario, scenarios, type ScenarioSetup } from "./fleecing_rows.ts";

const program = await findQemu10();
if (program === undefined) {
  // deno-lint-ignore no-console
  console.log("client not installed: skipped (qemu-storage-daemon 10: see OVIS_QEMU10_QSD)");
}

for (const scenario of scenarios) {
  Deno.test({
    name: `fleecing, QEMU 10: ${scenario.row}`,
    ignore: program === undefined,
    fn: () => runScenario(scenario),
  });
}

async function runScenario(scenario: Scenario): Promise<void> {
  if (program === undefined) throw new Error("no qemu-storage-daemon of version 10 or later");
  await using daemon = await QemuStorageDaemon.start(program);
  const setup = scenario.setup ?? {};
  await makeGraph(daemon, setup);
  const guest = await connect(daemon, "guest");
  const view = await connect(daemon, "view");
  const target = await connect(daemon, "target");
  try {
    await scenario.run({
      guest: nbdSide(guest, setup),
      view: nbdSide(view, setup),
      target: () => dataClusters(target),
      // What the throttled target still has to write, as it was set up.
      recovered: () => new Promise((resolve) => setTimeout(resolve, 4000)),
    });
  } finally {
    for (const client of [guest, view, target]) await client.close();
  }
}

async function makeGraph(daemon: QemuStorageDaemon, setup: ScenarioSetup): Promise<void> {
  const disk = new Uint8Array(4 * MiB);
  disk.fill(0x11, 0, MiB).fill(0x11, 2 * MiB, 3 * MiB);
  await writeSparse(`${daemon.directory}/disk`, disk);
  await writeSparse(`${daemon.directory}/temp`, new Uint8Array(4 * MiB));
  const add = (node: QmpArguments) => daemon.qmp("blockdev-add", { discard: "unmap", ...node });
  await add({ driver: "file", "node-name": "disk-file", filename: `${daemon.directory}/disk` });
  await add({ driver: "raw", "node-name": "disk", file: "disk-file" });
  await add({ driver: "file", "node-name": "temp-file", filename: `${daemon.directory}/temp` });
  await add({ driver: "raw", "node-name": "temp-raw", file: "temp-file" });
  if (setup.bitmap) await addBitmap(daemon, setup.bitmap);
  await addTarget(daemon, setup);
  await add({
    driver: "copy-before-write",
    "node-name": "cbw",
    file: "disk",
    target: setup.failsOnce || setup.isSlow ? "temp" : "temp-raw",
    "on-cbw-error": setup.onCbwError ?? "break-guest-write",
    "cbw-timeout": setup.cbwTimeoutSeconds ?? 0,
    ...(setup.bitmap ? { bitmap: { node: "disk", name: "b0" } } : {}),
  });
  await exportNode(daemon, "cbw", "guest");
  await add({ driver: "snapshot-access", "node-name": "acc", file: "cbw" });
  await exportNode(daemon, "acc", "view");
  await daemon.qmp("block-export-add", {
    type: "nbd",
    id: "target",
    "node-name": "temp-raw",
    name: "target",
  });
}

async function addBitmap(
  daemon: QemuStorageDaemon,
  { granularity, dirty }: NonNullable<ScenarioSetup["bitmap"]>,
): Promise<void> {
  await daemon.qmp("block-dirty-bitmap-add", { node: "disk", name: "b0", granularity });
  await exportNode(daemon, "disk", "early");
  const early = await connect(daemon, "early");
  // Writes of what is there already: all dirty areas of the rows are data.
  for (const [offset, length] of dirty) {
    await early.write(offset, await early.read(offset, length));
  }
  await early.close();
  await daemon.qmp("block-export-del", { id: "early", mode: "hard" });
}

async function addTarget(daemon: QemuStorageDaemon, setup: ScenarioSetup): Promise<void> {
  const base = { "node-name": "temp", discard: "unmap" };
  if (setup.failsOnce) {
    await daemon.qmp("blockdev-add", {
      ...base,
      driver: "blkdebug",
      image: "temp-raw",
      "inject-error": [{ event: "none", iotype: "write", errno: 5, once: true }],
    });
  } else if (setup.isSlow) {
    await daemon.qmp("object-add", {
      "qom-type": "throttle-group",
      id: "slow",
      "x-bps-write": 20_000,
    });
    await daemon.qmp("blockdev-add", {
      ...base,
      driver: "throttle",
      file: "temp-raw",
      "throttle-group": "slow",
    });
  }
}

async function exportNode(daemon: QemuStorageDaemon, node: string, name: string): Promise<void> {
  await daemon.qmp("block-export-add", {
    type: "nbd",
    id: name,
    "node-name": node,
    name,
    writable: true,
  });
}

async function connect(daemon: QemuStorageDaemon, exportName: string): Promise<NbdClient> {
  return await NbdClient.connect(await connectUnix(daemon.nbdPath), {
    exportName,
    requestBytesMax: 8 * MiB,
    outstandingBytesMax: 16 * MiB,
  });
}

function nbdSide(client: NbdClient, setup: ScenarioSetup): Side {
  return createSide({
    read: (offset, buffer) => client.readInto(offset, buffer),
    write: (offset, data) => client.write(offset, data),
    zero: (offset, length, isUnmap) => client.writeZeroes(offset, length, { mayUnmap: isUnmap }),
    trim: (offset, length) => client.trim(offset, length),
    flush: () => client.flush(),
  }, async (call) => {
    try {
      await call();
      return "ok";
    } catch (error) {
      if (!(error instanceof NbdError)) {
        if (error instanceof RangeError) return "EINVAL"; // the client's own check
        throw error;
      }
      return errorName(error, setup);
    }
  });
}

/** NBD knows few numbers: EACCES and ETIMEDOUT come as EINVAL, a text comes with some. */
function errorName({ errno, message }: NbdError, setup: ScenarioSetup): string {
  if (errno === 5) return "EIO";
  if (errno !== 22) return `errno ${errno}`;
  if (message.includes("Permission denied")) return "refused";
  return setup.isSlow ? "ETIMEDOUT" : "EINVAL";
}

async function dataClusters(client: NbdClient): Promise<string> {
  const runs: string[] = [];
  const extents = (await client.blockStatus(0, 4 * MiB)).get("base:allocation") ?? [];
  let at = 0;
  for (const { length, flags } of extents) {
    if ((flags & 1) === 0) runs.push(`${at / CLUSTER}+${Math.ceil(length / CLUSTER)}`);
    at += length;
  }
  return runs.join(" ");
}

/** Writes only the blocks that are not zero. */
async function writeSparse(path: string, bytes: Uint8Array): Promise<void> {
  using file = await Deno.open(path, { write: true, create: true });
  await file.truncate(bytes.length);
  for (let at = 0; at < bytes.length; at += CLUSTER) {
    const part = bytes.subarray(at, at + CLUSTER);
    if (part.every((byte) => byte === 0)) continue;
    await file.seek(at, Deno.SeekMode.Start);
    let done = 0;
    while (done < part.length) done += await file.write(part.subarray(done));
  }
}
