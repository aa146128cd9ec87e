/** Block nodes: added, reopened, resized, deleted. @module */

import type { Json, QmpSide, Script } from "../support/qmp_sides.ts";

const MiB = 1024 * 1024;

/** Makes an empty file in the side's folder; returns its path. */
export async function makeFile(side: QmpSide, name: string, sizeBytes = 4 * MiB): Promise<string> {
  const path = side.path(name);
  await Deno.writeFile(path, new Uint8Array(0));
  await Deno.truncate(path, sizeBytes);
  return path;
}

/** Adds a node. */
export function add(side: QmpSide, args: Json): Promise<Json> {
  return side.run("blockdev-add", args);
}

/** Shows all nodes: in the order of their names, since drivers open their children differently. */
export async function showNodes(side: QmpSide, args: Json = {}): Promise<void> {
  await side.run("query-named-block-nodes", args);
  const answer = side.answers.at(-1) as { return: Json[] };
  const key = (node: Json): string => {
    const name = String(node["node-name"]);
    return `${name.startsWith("#") ? "#" : name} ${node.drv} ${node.file}`;
  };
  answer.return.sort((a, b) => key(a) < key(b) ? -1 : 1);
}

function qemuImg(...args: string[]): Promise<Deno.CommandOutput> {
  return new Deno.Command("qemu-img", { args }).output();
}

/** See the module's head. */
export const blockdevScripts: Record<string, Script> = {
  "file and raw nodes": async (side) => {
    const filename = await makeFile(side, "disk");
    await add(side, { driver: "file", filename });
    await add(side, { driver: "file", "node-name": "f", filename: side.path("gone") });
    await add(side, { driver: "file", "node-name": "f", filename: side.folder });
    await add(side, { driver: "file", "node-name": "1f", filename });
    await add(side, { driver: "file", "node-name": "", filename });
    await add(side, { driver: "file", "node-name": "f".repeat(32), filename });
    await add(side, { driver: "file", "node-name": "f", filename });
    await add(side, { driver: "file", "node-name": "f", filename });
    await add(side, { driver: "raw", "node-name": "r", file: "gone" });
    await add(side, { driver: "raw", "node-name": "r", file: "f" });
    await add(side, { driver: "raw", "node-name": "part", file: "f", offset: 512, size: 1024 });
    await add(side, { driver: "raw", "node-name": "p2", file: "f", offset: 512, size: 4 * MiB });
    await add(side, { driver: "raw", "node-name": "p3", file: "f", offset: 5 * MiB });
    await add(side, { driver: "raw", "node-name": "dz", file: "f", "detect-zeroes": "unmap" });
    await add(side, {
      driver: "raw",
      "node-name": "dz",
      file: "f",
      "detect-zeroes": "unmap",
      discard: "unmap",
    });
    await showNodes(side);
    await showNodes(side, { flat: true });
    for (const name of ["f", "gone", "dz", "part", "r", "f"]) {
      await side.run("blockdev-del", { "node-name": name });
    }
    await side.run("query-named-block-nodes");
  },
  "children that belong to their parent": async (side) => {
    const filename = await makeFile(side, "disk");
    const file = { driver: "file", "node-name": "f", filename };
    await add(side, { driver: "raw", "node-name": "r", file });
    await side.run("blockdev-del", { "node-name": "f" });
    await add(side, { driver: "raw", "node-name": "r2", file: "f" });
    await side.run("blockdev-del", { "node-name": "r" });
    await showNodes(side);
    await side.run("blockdev-del", { "node-name": "r2" });
    await side.run("query-named-block-nodes");
    await add(side, { driver: "raw", "node-name": "a", file: { driver: "raw", file: "gone" } });
    await add(side, {
      driver: "raw",
      "node-name": "a",
      "read-only": true,
      file: { driver: "raw", "node-name": "b", file },
    });
    await showNodes(side);
    await side.run("blockdev-del", { "node-name": "a" });
    await add(side, {
      driver: "raw",
      "node-name": "a",
      file: { driver: "raw", "node-name": "a", file },
    });
    await side.run("query-named-block-nodes");
  },
  "null-co, throttle, blkdebug, copy-before-write, snapshot-access": async (side) => {
    await add(side, { driver: "null-co", "node-name": "n", size: MiB, "read-zeroes": true });
    await add(side, { driver: "throttle", "node-name": "t", "throttle-group": "g", file: "n" });
    await side.run("object-add", { "qom-type": "throttle-group", id: "g" });
    await add(side, { driver: "throttle", "node-name": "t", "throttle-group": "g", file: "n" });
    await side.run("object-del", { id: "g" });
    const filename = await makeFile(side, "disk");
    await add(side, { driver: "file", "node-name": "f", filename });
    await add(side, {
      driver: "blkdebug",
      "node-name": "d",
      image: "f",
      "inject-error": [{ event: "none", iotype: "write", errno: 28, once: true }],
    });
    await add(side, { driver: "blkdebug", "node-name": "d2", image: "f", "inject-error": [{}] });
    await add(side, {
      driver: "blkdebug",
      "node-name": "d2",
      image: "f",
      "inject-error": [{ event: "q" }],
    });
    await add(side, {
      driver: "raw",
      "node-name": "t1",
      file: { driver: "file", filename: await makeFile(side, "t1") },
    });
    await add(side, { driver: "copy-before-write", "node-name": "c", file: "f" });
    await add(side, { driver: "copy-before-write", "node-name": "c", file: "f", target: "gone" });
    await add(side, {
      driver: "copy-before-write",
      "node-name": "c",
      file: "f",
      target: "t1",
      "cbw-timeout": -1,
    });
    await add(side, {
      driver: "copy-before-write",
      "node-name": "c",
      file: "f",
      target: "t1",
      "on-cbw-error": "nope",
    });
    await add(side, {
      driver: "copy-before-write",
      "node-name": "c",
      file: "f",
      target: "t1",
      "min-cluster-size": 1000,
    });
    await add(side, {
      driver: "copy-before-write",
      "node-name": "c",
      file: "f",
      target: "t1",
      bitmap: { node: "f", name: "nope" },
    });
    await add(side, {
      driver: "copy-before-write",
      "node-name": "c",
      file: "f",
      target: "t1",
      bitmap: { node: "nope", name: "nope" },
    });
    await add(side, { driver: "copy-before-write", "node-name": "c", file: "f", target: "t1" });
    await add(side, { driver: "snapshot-access", "node-name": "s", file: "c" });
    await add(side, { driver: "snapshot-access", "node-name": "s2", file: "c", x: 1 });
    await showNodes(side);
    for (const name of ["c", "t1", "s", "c", "t1", "d", "f", "t", "n"]) {
      await side.run("blockdev-del", { "node-name": name });
    }
    await side.run("object-del", { id: "g" });
  },
  "read-only and its inheritance": async (side) => {
    const filename = await makeFile(side, "disk");
    await add(side, {
      driver: "raw",
      "node-name": "ro",
      "read-only": true,
      file: { driver: "file", "node-name": "f", filename },
    });
    await showNodes(side);
    await side.run("block_resize", { "node-name": "ro", size: 8 * MiB });
    await side.run("block_resize", { "node-name": "f", size: 8 * MiB });
    await side.run("blockdev-del", { "node-name": "ro" });
    await Deno.chmod(filename, 0o400);
    await add(side, {
      driver: "raw",
      "node-name": "rw",
      file: { driver: "file", "node-name": "f", filename, "read-only": true },
    });
    await showNodes(side);
    await add(side, { driver: "null-co", "node-name": "n", size: 4 * MiB });
    await add(side, { driver: "copy-before-write", "node-name": "c", file: "n", target: "f" });
  },
  "reopening": async (side) => {
    const [d, e] = [await makeFile(side, "d"), await makeFile(side, "e")];
    await add(side, { driver: "file", "node-name": "f", filename: d });
    await add(side, { driver: "file", "node-name": "g", filename: e });
    await add(side, { driver: "null-co", "node-name": "n", size: 65536 });
    await add(side, { driver: "raw", "node-name": "r", file: "f" });
    const reopen = (...options: Json[]) => side.run("blockdev-reopen", { options });
    await reopen({ driver: "null-co" });
    await reopen({ driver: "null-co", "node-name": "zz" });
    await reopen({ driver: "null-co", "node-name": "n", size: 7 });
    await reopen({ driver: "null-co", "node-name": "n" });
    await reopen({ driver: "null-co", "node-name": "n", size: 65536, "read-only": true });
    await reopen({ driver: "raw", "node-name": "r", file: "g" });
    await reopen({ driver: "raw", "node-name": "r" });
    await reopen({ driver: "raw", "node-name": "r", file: { driver: "file", filename: d } });
    await reopen({ driver: "raw", "node-name": "r", file: "r" });
    await reopen({ driver: "raw", "node-name": "r", file: "nope" });
    await reopen({
      driver: "raw",
      "node-name": "r",
      file: "g",
      discard: "unmap",
      "detect-zeroes": "unmap",
    });
    await reopen({ driver: "raw", "node-name": "r", file: "g", "detect-zeroes": "unmap" });
    await reopen({ driver: "file", "node-name": "g", filename: d });
    await reopen({ driver: "file", "node-name": "g", filename: e, "read-only": true });
    await side.run("blockdev-del", { "node-name": "g" });
    await side.run("blockdev-del", { "node-name": "f" });
    await showNodes(side);
  },
  "reopening with other options": async (side) => {
    const [d, e] = [await makeFile(side, "d"), await makeFile(side, "e")];
    await add(side, { driver: "file", "node-name": "f", filename: d });
    await add(side, { driver: "file", "node-name": "t", filename: e });
    await add(side, { driver: "raw", "node-name": "r", file: "f", offset: 4096, size: 8192 });
    const reopen = (...options: Json[]) => side.run("blockdev-reopen", { options });
    const part = (options: Json) =>
      reopen({ driver: "raw", "node-name": "r", file: "f", ...options });
    await part({ offset: 512, size: 1024 });
    await showNodes(side);
    await part({ offset: 2 ** 40 });
    await part({ offset: 0, size: 2 ** 40 });
    // All or nothing.
    await reopen(
      { driver: "raw", "node-name": "r", file: "f", offset: 1024, size: 512 },
      { driver: "raw", "node-name": "nope", file: "f" },
    );
    await showNodes(side);
    await part({});
    await showNodes(side);
    await part({ offset: 65536 });
    await showNodes(side);
    const filter = { driver: "copy-before-write", "node-name": "c", file: "r", target: "t" };
    await add(side, filter);
    await add(side, { driver: "snapshot-access", "node-name": "a", file: "c" });
    await reopen(filter);
    await reopen({ ...filter, "on-cbw-error": "break-snapshot" });
    await reopen({ driver: "snapshot-access", "node-name": "a", file: "c" });
  },
  "resizing": async (side) => {
    const filename = await makeFile(side, "disk");
    await add(side, { driver: "file", "node-name": "f", filename });
    await add(side, { driver: "raw", "node-name": "r", file: "f" });
    await side.run("block_resize", { size: 1 });
    await side.run("block_resize", { size: 1, "node-name": "z" });
    await side.run("block_resize", { size: 1, device: "q" });
    await side.run("block_resize", { size: -1, "node-name": "r" });
    await side.run("block_resize", { size: 8 * MiB, "node-name": "r" });
    await showNodes(side);
  },
  "qcow2 and its backing chain": async (side) => {
    await makeFile(side, "base", 8 * MiB);
    const q = (name: string) => side.path(name);
    await qemuImg("create", "-q", "-f", "qcow2", "-F", "raw", "-b", q("base"), q("mid"));
    await qemuImg("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "mid", q("top"));
    await qemuImg("create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "gone", q("lost"), "1M");
    const file = { driver: "file", filename: q("top") };
    await add(side, { driver: "qcow2", "node-name": "t", file });
    await showNodes(side, { flat: true });
    await side.run("blockdev-del", { "node-name": "t" });
    await side.run("query-named-block-nodes");
    await add(side, { driver: "qcow2", "node-name": "t", file, backing: null });
    await showNodes(side);
    await side.run("blockdev-del", { "node-name": "t" });
    await add(side, { driver: "null-co", "node-name": "b", size: 8 * MiB, "read-only": true });
    await add(side, { driver: "qcow2", "node-name": "t", file, backing: "b" });
    await showNodes(side);
    await side.run("blockdev-del", { "node-name": "b" });
    await add(side, {
      driver: "qcow2",
      "node-name": "l",
      file: { driver: "file", filename: q("lost") },
    });
    await add(side, {
      driver: "qcow2",
      "node-name": "l",
      file: { driver: "file", filename: q("base") },
    });
    await add(side, { driver: "qcow2", "node-name": "l", file: "b" });
    await side.run("query-block");
  },
};
