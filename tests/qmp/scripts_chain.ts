/** Backing chains: commit, stream, snapshots, transactions; fleecing as a whole. @module */

import { NbdError } from "../../src/nbd/client.ts";
import type { Json, QmpSide, Script } from "../support/qmp_sides.ts";
import { add, makeFile, showNodes as showAllNodes } from "./scripts_blockdev.ts";
import { connect, startNbd } from "./scripts_export.ts";
import { becomes } from "./scripts_job.ts";

const MiB = 1024 * 1024;
const KiB = 1024;

/** Shows nodes, without how much room a format takes in its file: that is its own affair. */
async function showNodes(side: QmpSide, args: Json = {}): Promise<void> {
  await showAllNodes(side, args);
  const forget = (image: Json | undefined): void => {
    if (image === undefined) return;
    delete image["actual-size"];
    if (image.format === "file") delete image["virtual-size"];
    forget(image["backing-image"] as Json | undefined);
  };
  for (const node of (side.answers.at(-1) as { return: Json[] }).return) forget(node.image as Json);
}

async function qemuImg(...args: string[]): Promise<void> {
  const { success } = await new Deno.Command("qemu-img", { args }).output();
  if (!success) throw new Error(`qemu-img ${args.join(" ")}`);
}

/** A chain base <- mid <- top, each with data of its own, opened as `top`. */
async function makeChain(side: QmpSide): Promise<void> {
  const q = (name: string) => side.path(name);
  await qemuImg("create", "-q", "-f", "qcow2", q("base"), "1M");
  await qemuImg("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", q("base"), q("mid"));
  await qemuImg("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", q("mid"), q("top"));
  for (const [index, name] of ["base", "mid", "top"].entries()) {
    const args = ["-f", "qcow2", "-c", `write -P ${index + 1} ${index * 64}k 64k`, q(name)];
    await new Deno.Command("qemu-io", { args }).output();
  }
  const open = (name: string, backing: string | null) =>
    add(side, {
      driver: "qcow2",
      "node-name": name,
      file: { driver: "file", filename: q(name) },
      backing,
    });
  await open("base", null);
  await open("mid", "base");
  await open("top", "mid");
}

/** A chain base <- a <- b <- top, of which only `top` is named: the rest belongs to it. */
async function openWholeChain(side: QmpSide): Promise<void> {
  const q = (name: string) => side.path(name);
  await qemuImg("create", "-q", "-f", "qcow2", q("base"), "1M");
  let below = "base";
  for (const name of ["a", "b", "top"]) {
    await qemuImg("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, q(name));
    below = name;
  }
  await add(side, {
    driver: "qcow2",
    "node-name": "top",
    file: { driver: "file", filename: q("top") },
  });
}

/** See the module's head. */
export const chainScripts: Record<string, Script> = {
  "a chain whose nodes nobody named: stream": async (side) => {
    await openWholeChain(side);
    await side.run("block-stream", {
      "job-id": "s",
      device: "top",
      base: side.path("a"),
    });
    await becomes(side, "s", "null");
    await showNodes(side);
    await side.run("block-stream", { "job-id": "s2", device: "top" });
    await becomes(side, "s2", "null");
    await showNodes(side);
    await side.run("blockdev-del", { "node-name": "top" });
    await side.run("query-named-block-nodes");
  },
  "a chain whose nodes nobody named: commit": async (side) => {
    await openWholeChain(side);
    await side.run("block-commit", {
      "job-id": "c",
      device: "top",
      top: side.path("b"),
      base: side.path("a"),
    });
    await becomes(side, "c", "null");
    await showNodes(side);
    await side.run("block-commit", { "job-id": "c2", device: "top", base: side.path("a") });
    await becomes(side, "c2", "ready");
    await side.run("job-complete", { id: "c2" });
    await becomes(side, "c2", "null");
    await showNodes(side);
    await side.run("blockdev-del", { "node-name": "top" });
    await showNodes(side);
  },
  "commit": async (side) => {
    await makeChain(side);
    const commit = (args: Json) =>
      side.run("block-commit", { "job-id": "c", device: "top", ...args });
    await commit({ device: "gone" });
    await commit({ device: "mid" });
    await commit({ "top-node": "gone" });
    await commit({ "base-node": "gone" });
    await commit({ top: "gone" });
    await commit({ base: "gone" });
    await commit({ "top-node": "mid", top: side.path("mid") });
    await commit({ "base-node": "base", base: side.path("base") });
    await commit({ "top-node": "base" });
    await commit({ "top-node": "mid", "base-node": "top" });
    await commit({ "top-node": "mid", "base-node": "mid" });
    await commit({ speed: -1 });
    await commit({ "top-node": "mid", "base-node": "base" });
    await becomes(side, "c", "null");
    await showNodes(side);
  },
  "commit of the active layer": async (side) => {
    await makeChain(side);
    await side.run("block-commit", { "job-id": "c", device: "top", "base-node": "mid" });
    await becomes(side, "c", "ready");
    await side.run("query-jobs");
    await side.run("job-complete", { id: "c" });
    await becomes(side, "c", "null");
    await showNodes(side);
  },
  "stream": async (side) => {
    await makeChain(side);
    const stream = (args: Json) =>
      side.run("block-stream", { "job-id": "s", device: "top", ...args });
    await stream({ device: "gone" });
    await stream({ base: "gone" });
    await stream({ "base-node": "gone" });
    await stream({ "base-node": "top" });
    await stream({ base: side.path("base"), "base-node": "base" });
    await stream({ bottom: "mid", "base-node": "base" });
    await stream({ bottom: "gone" });
    await stream({ "backing-file": "x" });
    await stream({ "base-node": "base" });
    await becomes(side, "s", "null");
    await showNodes(side);
    await stream({});
    await becomes(side, "s", "null");
    await showNodes(side);
  },
  "snapshots by overlays": async (side) => {
    await makeChain(side);
    await qemuImg("create", "-q", "-f", "qcow2", side.path("new"), "1M");
    await add(side, {
      driver: "qcow2",
      "node-name": "new",
      file: { driver: "file", filename: side.path("new") },
    });
    await side.run("blockdev-snapshot", { node: "gone", overlay: "new" });
    await side.run("blockdev-snapshot", { node: "top", overlay: "gone" });
    await side.run("blockdev-snapshot", { node: "top", overlay: "top" });
    await side.run("blockdev-snapshot", { node: "top", overlay: "mid" });
    await side.run("blockdev-snapshot", { node: "new", overlay: "top" });
    await side.run("blockdev-snapshot", { node: "top", overlay: "new" });
    await showNodes(side);
  },
  "transactions": async (side) => {
    const transaction = (actions: Json[], properties?: Json) =>
      side.run("transaction", { actions, ...(properties === undefined ? {} : { properties }) });
    const bitmap = (verb: string, name: string, more: Json = {}) => ({
      type: `block-dirty-bitmap-${verb}`,
      data: { node: "d", name, ...more },
    });
    const abort = { type: "abort", data: {} };
    await add(side, { driver: "file", "node-name": "d", filename: await makeFile(side, "d") });
    await add(side, { driver: "file", "node-name": "t", filename: await makeFile(side, "t") });
    await transaction([]);
    await transaction([abort]);
    await transaction([{ type: "abort" }]);
    await transaction([{ type: "q", data: {} }]);
    await transaction([{ type: "blockdev-add", data: {} }]);
    await transaction([{ type: "abort", data: {}, x: 1 }]);
    await transaction([], { "completion-mode": "grouped" });
    await transaction([], { "completion-mode": "q" });
    await side.run("block-dirty-bitmap-add", { node: "d", name: "b0" });
    await side.run("block-dirty-bitmap-add", { node: "d", name: "b1", disabled: true });
    await transaction([
      bitmap("clear", "b0"),
      bitmap("add", "b2"),
      bitmap("disable", "b0"),
      bitmap("remove", "b1"),
      abort,
    ]);
    await showNodes(side);
    await transaction([bitmap("add", "b2"), bitmap("add", "b2")]);
    await transaction([bitmap("clear", "gone")]);
    await transaction([bitmap("add", "b2", { node: "gone" })]);
    await transaction([
      bitmap("add", "b2", { disabled: true }),
      { type: "block-dirty-bitmap-merge", data: { node: "d", target: "b2", bitmaps: ["b0"] } },
      bitmap("clear", "b0"),
    ]);
    await showNodes(side);
    const backup = (id: string, more: Json = {}) => ({
      type: "blockdev-backup",
      data: { "job-id": id, device: "d", target: "t", sync: "none", ...more },
    });
    await transaction([bitmap("add", "b3"), backup("j1"), abort]);
    await transaction([bitmap("add", "b3"), backup("j1", { sync: "bitmap" })]);
    await transaction([bitmap("add", "b3"), backup("j1")]);
    await becomes(side, "j1", "running");
    await side.run("job-cancel", { id: "j1" });
    await becomes(side, "j1", "null");
    await showNodes(side);
  },
  "fleecing": fleecing,
  "fleecing, with a job that discards what it has read": discardingBackup,
};

/** A fleecing whose view a job reads, forgetting what it has read: in both orders with a guest. */
async function discardingBackup(side: QmpSide): Promise<void> {
  const sparse = async (name: string, fill?: number): Promise<void> => {
    await makeFile(side, name);
    if (fill !== undefined) {
      await Deno.writeFile(side.path(name), new Uint8Array(4 * MiB).fill(fill));
    }
    await add(side, {
      driver: "raw",
      "node-name": name,
      discard: "unmap",
      file: { driver: "file", filename: side.path(name) },
    });
  };
  await sparse("d", 0x5d);
  await sparse("t");
  await sparse("backup");
  const unmapped = { discard: "unmap" };
  await add(side, {
    driver: "copy-before-write",
    "node-name": "cbw",
    file: "d",
    target: "t",
    ...unmapped,
  });
  await add(side, { driver: "snapshot-access", "node-name": "acc", file: "cbw", ...unmapped });
  await startNbd(side);
  const nbd = { type: "nbd", writable: true };
  await side.run("block-export-add", { ...nbd, id: "g", "node-name": "cbw" });
  await side.run("block-export-add", { ...nbd, id: "t", "node-name": "t", writable: false });
  const guest = await connect(side, "cbw");
  const scratch = await connect(side, "t");
  const held = async (): Promise<number> => {
    const extents = (await scratch.blockStatus(0, 4 * MiB)).get("base:allocation") ?? [];
    return extents.reduce((sum, { length, flags }) => (flags & 1) === 0 ? sum + length : sum, 0);
  };
  await guest.write(0, new Uint8Array(128 * KiB).fill(1));
  side.answers.push(await held());
  await side.run("blockdev-backup", {
    "job-id": "j",
    device: "acc",
    target: "backup",
    sync: "full",
    "discard-source": true,
    "auto-dismiss": false,
  });
  await becomes(side, "j", "concluded");
  await side.run("query-jobs");
  side.answers.push(await held());
  await guest.write(MiB, new Uint8Array(64 * KiB).fill(2));
  side.answers.push(await held());
  await guest.close();
  await scratch.close();
  await side.run("job-dismiss", { id: "j" });
  await side.run("block-export-add", { ...nbd, id: "v", "node-name": "acc", writable: false });
  const view = await connect(side, "acc");
  side.answers.push(await outcome(() => view.read(0, 512)));
  side.answers.push(await outcome(() => view.read(3 * MiB, 512)));
  await view.close();
  const copy = await Deno.readFile(side.path("backup"));
  side.answers.push(copy.every((byte) => byte === 0x5d));
}

/** What a reader gets, as a word. */
async function outcome(call: () => Promise<unknown>): Promise<unknown> {
  try {
    return await call();
  } catch (error) {
    if (!(error instanceof NbdError)) throw error;
    // QEMU's server has no number for a refusal, ours says EPERM; and ENOTSUP is for fast zeroes.
    const isRefused = error.message.includes("Permission denied") || error.errno === 1;
    return isRefused ? "refused" : error.errno === 95 ? "error 22" : `error ${error.errno}`;
  }
}

/** QEMU's own way of image fleecing, from the disk's export to the last node deleted. */
async function fleecing(side: QmpSide): Promise<void> {
  const disk = new Uint8Array(4 * MiB).fill(0x5d);
  await Deno.writeFile(side.path("disk"), disk);
  await add(side, {
    driver: "raw",
    "node-name": "d",
    discard: "unmap",
    file: { driver: "file", filename: side.path("disk") },
  });
  await add(side, { driver: "raw", "node-name": "top", file: "d", discard: "unmap" });
  await add(side, {
    driver: "raw",
    "node-name": "t",
    discard: "unmap",
    file: { driver: "file", filename: await makeFile(side, "temp"), discard: "unmap" },
  });
  await startNbd(side);
  await side.run("block-dirty-bitmap-add", { node: "d", name: "b0" });
  await side.run("block-export-add", { type: "nbd", id: "g", "node-name": "top", writable: true });
  const guest = await connect(side, "top");
  await guest.write(0, new Uint8Array(64 * KiB).fill(1));
  await guest.write(4 * 64 * KiB, new Uint8Array(100).fill(2));
  await showNodes(side, { flat: true });
  await side.run("transaction", {
    actions: [
      { type: "block-dirty-bitmap-disable", data: { node: "d", name: "b0" } },
      { type: "block-dirty-bitmap-add", data: { node: "d", name: "b1" } },
    ],
  });
  await add(side, {
    driver: "copy-before-write",
    "node-name": "cbw",
    file: "d",
    target: "t",
    discard: "unmap",
    bitmap: { node: "d", name: "b0" },
  });
  await side.run("blockdev-reopen", {
    options: [{ driver: "raw", "node-name": "top", file: "cbw", discard: "unmap" }],
  });
  await add(side, { driver: "snapshot-access", "node-name": "acc", file: "cbw", discard: "unmap" });
  await side.run("block-export-add", {
    type: "nbd",
    id: "v",
    "node-name": "acc",
    writable: true,
    bitmaps: [{ node: "d", name: "b0" }],
  });
  await guest.write(0, new Uint8Array(128 * KiB).fill(3));
  const view = await connect(side, "acc");
  const first = async (offset: number, length: number) => {
    const bytes = await view.read(offset, length);
    return [bytes[0], bytes.at(-1)];
  };
  side.answers.push(await outcome(() => first(0, 64 * KiB)));
  side.answers.push(await outcome(() => first(4 * 64 * KiB, 64 * KiB)));
  side.answers.push(await outcome(() => first(64 * KiB, 512)));
  side.answers.push(await outcome(() => first(0, 64 * KiB + 512)));
  side.answers.push(await outcome(() => view.trim(0, 64 * KiB)));
  side.answers.push(await outcome(() => first(0, 512)));
  side.answers.push(await outcome(() => view.write(4 * 64 * KiB, new Uint8Array(512))));
  await side.run("blockdev-del", { "node-name": "cbw" });
  await side.run("block-dirty-bitmap-remove", { node: "d", name: "b0" });
  await side.run("query-block-exports");
  await showNodes(side);
  await view.close();
  await side.run("block-export-del", { id: "v", mode: "hard" });
  await side.run("blockdev-del", { "node-name": "acc" });
  await side.run("blockdev-reopen", {
    options: [{ driver: "raw", "node-name": "top", file: "d", discard: "unmap" }],
  });
  for (const name of ["cbw", "t"]) await side.run("blockdev-del", { "node-name": name });
  await side.run("block-dirty-bitmap-remove", { node: "d", name: "b0" });
  await guest.write(MiB, new Uint8Array(512).fill(4));
  await guest.close();
  await showNodes(side);
}
