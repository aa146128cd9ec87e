/** Dirty bitmaps: every text of QEMU's. @module */

import type { Json, QmpSide, Script } from "../support/qmp_sides.ts";
import { add, makeFile, showNodes as showAllNodes } from "./scripts_blockdev.ts";
import { connect, startNbd } from "./scripts_export.ts";

const MiB = 1024 * 1024;

/** Shows nodes, without how much room a format takes in its file. */
async function showNodes(side: QmpSide): Promise<void> {
  await showAllNodes(side, { flat: true });
  for (const { image } of (side.answers.at(-1) as { return: { image: Json }[] }).return) {
    delete image["actual-size"];
    if (image.format === "file") delete image["virtual-size"];
  }
}

/** See the module's head. */
export const bitmapScripts: Record<string, Script> = {
  "bitmaps": async (side) => {
    await add(side, { driver: "file", "node-name": "f", filename: await makeFile(side, "d") });
    await add(side, { driver: "raw", "node-name": "d", file: "f" });
    await add(side, { driver: "null-co", "node-name": "n", size: MiB });
    const run = (verb: string, args: Record<string, unknown>) =>
      side.run(`block-dirty-bitmap-${verb}`, args);
    await run("add", { node: "gone", name: "b0" });
    await run("add", { node: "d", name: "" });
    await run("add", { node: "d", name: "x".repeat(1024) });
    await run("add", { node: "d", name: "b", granularity: 1000 });
    await run("add", { node: "d", name: "b", granularity: 256 });
    await run("add", { node: "d", name: "b", granularity: 0 });
    await run("add", { node: "d", name: "b0" });
    await run("add", { node: "d", name: "b0" });
    await run("add", { node: "d", name: "b1", granularity: 512, disabled: true });
    await run("add", { node: "d", name: "bp", persistent: true });
    await run("add", { node: "f", name: "below", granularity: 131072 });
    await run("add", { node: "n", name: "other" });
    await showNodes(side);
    for (const verb of ["clear", "disable", "enable", "remove"]) {
      await run(verb, { node: "d", name: "gone" });
      await run(verb, { node: "gone", name: "b0" });
      await run(verb, { node: "d" });
    }
    for (const verb of ["clear", "disable", "disable", "enable", "enable"]) {
      await run(verb, { node: "d", name: "b0" });
    }
    await run("merge", { node: "d", target: "b0", bitmaps: ["b1", "gone"] });
    await run("merge", { node: "d", target: "gone", bitmaps: ["b1"] });
    await run("merge", { node: "gone", target: "b0", bitmaps: ["b1"] });
    await run("merge", { node: "d", target: "b0", bitmaps: ["b1", { node: "f", name: "below" }] });
    await run("merge", { node: "d", target: "b0", bitmaps: [{ node: "n", name: "other" }] });
    await run("merge", { node: "d", target: "b0", bitmaps: ["b0"] });
    await run("remove", { node: "d", name: "b1" });
    await showNodes(side);
    await side.run("blockdev-del", { "node-name": "d" });
  },
  "persistent bitmaps of a disk that is read-only for a while": async (side) => {
    const args = ["create", "-q", "-f", "qcow2", side.path("q"), "4M"];
    await new Deno.Command("qemu-img", { args }).output();
    const file = { driver: "file", filename: side.path("q") };
    const node = { driver: "qcow2", "node-name": "d", file };
    await add(side, node);
    await startNbd(side);
    const bitmap = { node: "d", name: "b" };
    await side.run("block-dirty-bitmap-add", { ...bitmap, persistent: true });
    await side.run("block-dirty-bitmap-add", { node: "d", name: "plain" });
    await side.run("block-export-add", { type: "nbd", id: "e", "node-name": "d", writable: true });
    const client = await connect(side, "d");
    await client.write(MiB, new Uint8Array(512).fill(1));
    await client.close();
    await side.run("block-export-del", { id: "e", mode: "hard" });
    const reopen = (more: Record<string, unknown>) =>
      side.run("blockdev-reopen", { options: [{ ...node, ...more }] });
    for (const isReadOnly of [true, false, true]) {
      await reopen({ "read-only": isReadOnly });
      await showNodes(side);
      for (const verb of ["disable", "enable"]) {
        await side.run(`block-dirty-bitmap-${verb}`, bitmap);
      }
    }
    await side.run("block-dirty-bitmap-clear", bitmap);
    await side.run("block-dirty-bitmap-remove", bitmap);
    await side.run("block-dirty-bitmap-merge", { node: "d", target: "b", bitmaps: ["plain"] });
    await side.run("block-dirty-bitmap-merge", { node: "d", target: "plain", bitmaps: ["b"] });
    await side.run("blockdev-del", { "node-name": "d" });
    await add(side, { ...node, "read-only": true });
    await showNodes(side);
    await side.run("blockdev-del", { "node-name": "d" });
    await add(side, node);
    await showNodes(side);
    await side.run("block-dirty-bitmap-remove", bitmap);
    await showNodes(side);
  },
  "bitmaps of a disk that is resized": async (side) => {
    const filename = await makeFile(side, "d", 16 * MiB);
    await add(side, { driver: "file", "node-name": "d", filename });
    await startNbd(side);
    await side.run("block-dirty-bitmap-add", { node: "d", name: "b" });
    await side.run("block-dirty-bitmap-add", { node: "d", name: "busy" });
    await side.run("block-export-add", { type: "nbd", id: "e", "node-name": "d", writable: true });
    const client = await connect(side, "d");
    await client.write(MiB, new Uint8Array(512).fill(1));
    await client.write(16 * MiB - 512, new Uint8Array(512).fill(1));
    await client.close();
    await side.run("block-export-del", { id: "e", mode: "hard" });
    for (const size of [32, 8, 16, 16]) {
      await side.run("block_resize", { "node-name": "d", size: size * MiB });
      await showNodes(side);
    }
  },
};
