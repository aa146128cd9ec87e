/** The NBD server, exports and objects. @module */

import { MemoryNode } from "../../src/block/drivers/memory.ts";
import { NodeExport } from "../../src/block/exports/node_export.ts";
import { BlockGraph } from "../../src/block/graph.ts";
import { NbdClient } from "../../src/nbd/client.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { connectUnix } from "../../src/nbd/transports/unix.ts";
import type { Json, QmpSide, Script } from "../support/qmp_sides.ts";
import { add, makeFile, showNodes } from "./scripts_blockdev.ts";

const MiB = 1024 * 1024;

/** Starts the side's NBD server at a socket in its folder. */
export async function startNbd(side: QmpSide): Promise<string> {
  const path = side.path("nbd");
  await side.run("nbd-server-start", { addr: { type: "unix", data: { path } } });
  return path;
}

/** Connects to an export of the side's. */
export async function connect(side: QmpSide, exportName: string): Promise<NbdClient> {
  return await NbdClient.connect(await connectUnix(side.path("nbd")), {
    exportName,
    requestBytesMax: 8 * MiB,
    outstandingBytesMax: 16 * MiB,
  });
}

/** See the module's head. */
export const exportScripts: Record<string, Script> = {
  "exports": async (side) => {
    await add(side, { driver: "file", "node-name": "f", filename: await makeFile(side, "d") });
    await add(side, { driver: "raw", "node-name": "d", file: "f" });
    await add(side, { driver: "raw", "node-name": "ro", file: "f", "read-only": true });
    const exportAdd = (args: Json) => side.run("block-export-add", { type: "nbd", ...args });
    await exportAdd({ id: "e", "node-name": "d" });
    await side.run("nbd-server-stop");
    await side.run("nbd-server-start", { addr: { type: "unix", data: { path: "/gone/nbd" } } });
    await startNbd(side);
    await startNbd(side);
    await exportAdd({ id: "e", "node-name": "d" });
    await exportAdd({ id: "e", "node-name": "d" });
    await exportAdd({ id: "e2", "node-name": "d" });
    await exportAdd({ id: "e 2", "node-name": "d" });
    await exportAdd({ id: "", "node-name": "d" });
    await exportAdd({ id: "e2", "node-name": "zz" });
    await exportAdd({ id: "e2", "node-name": "ro", writable: true });
    await exportAdd({ id: "e2", "node-name": "d", name: "x".repeat(4097) });
    await exportAdd({ id: "e2", "node-name": "d", name: "x", description: "x".repeat(4097) });
    await exportAdd({ id: "e2", "node-name": "d", type: "q" });
    await exportAdd({ id: "e2", "node-name": "d", x: 1 });
    await exportAdd({ "node-name": "d" });
    await exportAdd({ id: "e2", "node-name": "d", name: "second", iothread: "gone" });
    await exportAdd({ id: "e2", "node-name": "d", name: "second", writable: true });
    await side.run("query-block-exports");
    await side.run("blockdev-del", { "node-name": "d" });
    await side.run("block_resize", { "node-name": "d", size: MiB });
    await side.run("block-export-del", { id: "gone" });
    await side.run("block-export-del", { id: "e2", mode: "q" });
    await side.run("block-export-del", { id: "e2" });
    await side.run("block-export-del", { id: "e2" });
    await side.run("query-block-exports");
    await side.run("nbd-server-stop");
    await side.run("query-block-exports");
    await side.run("nbd-server-stop");
    await side.run("blockdev-del", { "node-name": "d" });
  },
  "an export in use": async (side) => {
    await add(side, { driver: "null-co", "node-name": "n", size: MiB });
    await startNbd(side);
    await side.run("block-export-add", { type: "nbd", id: "e", "node-name": "n" });
    const client = await connect(side, "n");
    await side.run("block-export-del", { id: "e" });
    await side.run("block-export-del", { id: "e", mode: "hard" });
    await side.until("BLOCK_EXPORT_DELETED");
    await client.close();
    await side.run("query-block-exports");
  },
  "bitmaps of exports": async (side) => {
    await add(side, { driver: "file", "node-name": "f", filename: await makeFile(side, "d") });
    await add(side, { driver: "raw", "node-name": "d", file: "f" });
    await side.run("block-dirty-bitmap-add", { node: "d", name: "b0" });
    await side.run("block-dirty-bitmap-add", { node: "f", name: "below", disabled: true });
    await startNbd(side);
    const exportAdd = (args: Json) =>
      side.run("block-export-add", { type: "nbd", id: "e", "node-name": "d", ...args });
    await exportAdd({ bitmaps: ["gone"] });
    await exportAdd({ bitmaps: ["below"] });
    await exportAdd({ bitmaps: [{ node: "d", name: "gone" }] });
    await exportAdd({ bitmaps: [{ node: "gone", name: "b0" }] });
    await exportAdd({ bitmaps: ["b0"] });
    await exportAdd({ bitmaps: [{ node: "d", name: "b0" }] });
    for (const verb of ["clear", "disable", "enable", "remove"]) {
      await side.run(`block-dirty-bitmap-${verb}`, { node: "d", name: "b0" });
    }
    await side.run("block-dirty-bitmap-merge", { node: "d", target: "b0", bitmaps: ["b0"] });
    await side.run("block-export-del", { id: "e" });
    await side.run("block-dirty-bitmap-disable", { node: "d", name: "b0" });
    await exportAdd({ bitmaps: ["b0"] });
    await side.run("block-export-del", { id: "e" });
    await exportAdd({ writable: true, bitmaps: ["b0"], "allocation-depth": true });
  },
  "nodes over NBD": async (side) => {
    const graph = new BlockGraph();
    const node = graph.add(new MemoryNode({ nodeName: "m", sizeBytes: MiB }));
    const disk = new NodeExport(graph, { name: "disk", nodeName: node.nodeName, isWritable: true });
    const frozen = new NodeExport(graph, { name: "frozen", nodeName: node.nodeName });
    const exports = [disk, frozen];
    const server = new NbdServer({
      directory: {
        find: (name) => exports.find((each) => each.name === name),
        list: () => exports,
      },
    });
    const path = side.path("elsewhere");
    await server.listenUnix(path);
    const unix = (path: string) => ({ type: "unix", path });
    const nbd = (more: Json) => add(side, { driver: "nbd", "node-name": "n", ...more });
    await nbd({});
    await nbd({ server: unix(side.path("gone")) });
    await nbd({ server: { type: "unix" } });
    await nbd({ server: { type: "inet", host: "127.0.0.1" } });
    await nbd({ server: { type: "carrier-pigeon" } });
    await nbd({ server: unix(path), export: "x".repeat(4097) });
    await nbd({ server: unix(path), export: "disk", "tls-creds": "gone" });
    await nbd({ server: unix(path), export: "disk", "reconnect-delay": -1 });
    await nbd({ server: unix(path), export: "disk" });
    await add(side, { driver: "raw", "node-name": "r", file: "n", size: 65536 });
    await nbd({ "node-name": "f", server: unix(path), export: "frozen", "auto-read-only": true });
    await showNodes(side);
    await side.run("block_resize", { "node-name": "n", size: 2 * MiB });
    for (const name of ["r", "n", "f"]) await side.run("blockdev-del", { "node-name": name });
    await server.close();
    for (const each of exports) await each.close();
    await graph.close();
  },
  "objects": async (side) => {
    const object = (args: Json) => side.run("object-add", args);
    await object({ "qom-type": "throttle-group", id: "g", limits: { "bps-write": 1000 } });
    await object({ "qom-type": "throttle-group", id: "g", limits: { "bps-write": 1000 } });
    await object({ "qom-type": "throttle-group", id: "h", "x-bps-total": 5, "x-bps-read": 4 });
    await object({ "qom-type": "throttle-group", id: "h", limits: { "bps-total-max": 5 } });
    await object({ "qom-type": "throttle-group", id: "h", limits: { "bps-total": -5 } });
    await object({
      "qom-type": "throttle-group",
      id: "h",
      limits: { "iops-total": 5, "iops-total-max": 4 },
    });
    await object({
      "qom-type": "throttle-group",
      id: "h",
      limits: { "iops-total": 5, "iops-total-max-length": 4 },
    });
    await object({ "qom-type": "throttle-group", id: "h", limits: { "iops-size": 4 } });
    await object({ "qom-type": "throttle-group", id: "h", limits: { nope: 4 } });
    await object({ "qom-type": "nope", id: "g" });
    await object({ "qom-type": "throttle-group" });
    await object({ "qom-type": "throttle-group", id: "1 2" });
    const limits = { path: "/objects/g", property: "limits" };
    await side.run("qom-get", limits);
    await side.run("qom-set", { ...limits, value: { "iops-total": 7 } });
    await side.run("qom-set", { ...limits, value: { "iops-read": 7 } });
    await side.run("qom-get", limits);
    await side.run("qom-get", { path: "/objects/gg", property: "limits" });
    await side.run("object-del", { id: "g" });
    await side.run("object-del", { id: "g" });
  },
};
