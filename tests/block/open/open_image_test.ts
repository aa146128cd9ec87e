import { assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../../src/block/errors.ts";
import { FileNode } from "../../../src/block/drivers/file.ts";
import { BlockGraph } from "../../../src/block/graph.ts";
import { IoVector } from "../../../src/block/io_vector.ts";
import { localContext } from "../../../src/block/open/drivers.ts";
import { openBlockdev } from "../../../src/block/open/open_blockdev.ts";
import { openImage, type OpenImageOptions } from "../../../src/block/open/open_image.ts";
import { createQcow2, type Qcow2CreateOptions } from "../../../src/block/qcow2/create.ts";
import { limits } from "../../../src/limits.ts";
import { createNbdDriver } from "../../../src/nbd/nbd_driver.ts";
import { compileKernels, Kernels } from "../../../src/wasm/kernels.ts";

const kernels = new Kernels(await compileKernels());
const context = localContext({ kernels, drivers: [createNbdDriver()] });
const MiB = 1024 * 1024;

interface Rig {
  folder: string;
  graph: BlockGraph;
  image: (name: string, options?: Partial<Qcow2CreateOptions>) => Promise<string>;
  open: (
    name: string,
    options?: OpenImageOptions,
    mayOpen?: (path: string) => boolean,
  ) => ReturnType<
    typeof openImage
  >;
}

async function withRig(run: (rig: Rig) => Promise<void>): Promise<void> {
  const folder = await Deno.realPath(await Deno.makeTempDir({ prefix: "ovis-open-" }));
  const graph = new BlockGraph();
  const image = async (name: string, options: Partial<Qcow2CreateOptions> = {}) => {
    const path = `${folder}/${name}`;
    const base = { nodeName: "", path, isReadOnly: false };
    const file = FileNode.open({ ...base, create: true, sizeBytes: 0 });
    await createQcow2(file, { sizeBytes: MiB, ...options });
    await file.close();
    return path;
  };
  try {
    await run({
      folder,
      graph,
      image,
      open: (name, options = {}, mayOpen = () => true) =>
        openImage(graph, name.startsWith("json:") ? name : `${folder}/${name}`, options, {
          ...context,
          mayOpen,
        }),
    });
  } finally {
    await graph.close();
    await Deno.remove(folder, { recursive: true });
  }
}

async function refused(call: () => Promise<unknown>, message: string | RegExp): Promise<void> {
  const error = await assertRejects(call, BlockError);
  if (typeof message === "string") assertEquals(error.message, message);
  else assertEquals(message.test(error.message), true, error.message);
}

Deno.test("openImage() opens the chain behind an image, names meant from its folder", () =>
  withRig(async ({ folder, graph, image, open }) => {
    await Deno.writeFile(`${folder}/base`, new Uint8Array(MiB).fill(7));
    await Deno.mkdir(`${folder}/sub`);
    await image("sub/mid", { backingFile: "../base", backingFormat: "raw" });
    await image("top", { backingFile: "sub/mid" });
    const { node, format, isProbed } = await open("top");
    assertEquals([format, isProbed, node.isReadOnly], ["qcow2", true, false]);
    const buffer = new Uint8Array(4);
    await node.read(MiB - 4, IoVector.of(buffer));
    assertEquals([...buffer], [7, 7, 7, 7]);
    const behind = graph.list().filter((each) => each !== node && each.driver !== "file");
    assertEquals(behind.map(({ driver, isReadOnly }) => [driver, isReadOnly]).sort(), [
      ["qcow2", true],
      ["raw", true],
    ]);
    await graph.remove(node.nodeName);
    assertEquals(graph.list(), []);
  }));

Deno.test("openImage() can do without the chain, and takes the format that is named", () =>
  withRig(async ({ graph, image, open }) => {
    await image("top", { backingFile: "gone" });
    await refused(
      () => open("top"),
      /^Could not open backing file: Could not open '.*gone': No such/,
    );
    assertEquals(graph.list(), []);
    const alone = await open("top", { withBacking: false });
    assertEquals(alone.node.backing, null);
    await graph.remove(alone.node.nodeName);
    const raw = await open("top", { format: "raw", isReadOnly: true });
    assertEquals([raw.node.driver, raw.isProbed, raw.node.isReadOnly], ["raw", false, true]);
    await refused(
      () => open("top", { format: "vmdk" }),
      "Parameter 'driver' does not accept value 'vmdk'",
    );
  }));

Deno.test("openImage() says that LUKS is not supported, unless it is to be taken as raw", () =>
  withRig(async ({ folder, open }) => {
    const bytes = new Uint8Array(MiB);
    bytes.set([0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe, 0, 1]);
    await Deno.writeFile(`${folder}/secret`, bytes);
    await assertRejects(
      () => open("secret"),
      BlockError,
      "LUKS images are not supported",
    );
    assertEquals((await open("secret", { format: "raw" })).format, "raw");
  }));

Deno.test("openImage() bounds loops and the depth of chains", () =>
  withRig(async ({ folder, graph, image, open }) => {
    await image("self", { backingFile: "self" });
    await refused(() => open("self"), /makes a loop$/);
    await image("a", { backingFile: "b" });
    await image("b", {
      backingFile: `json:{"driver":"qcow2","file":{"driver":"file","filename":"${folder}/a"}}`,
    });
    await refused(() => open("a"), /makes a loop$/);
    const json = `json:{"driver":"qcow2","file.driver":"file","file.filename":"${folder}/b"}`;
    await refused(() => open(json), /makes a loop$/);
    assertEquals(graph.list(), []);
    let nested = `{"driver": "file", "filename": "${folder}/a"}`;
    for (let depth = 0; depth <= limits.backingChainDepth; depth++) {
      nested = `{"driver": "raw", "file": ${nested}}`;
    }
    await refused(() => open(`json:${nested}`), /More than \d+ nodes stand above each other$/);
    assertEquals(graph.list(), []);
  }));

Deno.test("openImage() opens what headers name only where the policy allows that", () =>
  withRig(async ({ folder, graph, image, open }) => {
    await Deno.mkdir(`${folder}/in`);
    await Deno.writeFile(`${folder}/secret`, new Uint8Array(MiB));
    await Deno.symlink("../secret", `${folder}/in/link`);
    const inside = (path: string): boolean => path.startsWith(`${folder}/in/`);
    const names = [
      "../secret",
      "link",
      `${folder}/secret`,
      `file:${folder}/secret`,
      `json:{"driver":"file","filename":"${folder}/secret"}`,
    ];
    for (const [index, backingFile] of names.entries()) {
      await image(`in/i${index}`, { backingFile, backingFormat: "raw" });
      await refused(
        () => open(`in/i${index}`, {}, inside),
        /the file is not in an allowed folder$/,
      );
    }
    await image("in/fat", { backingFile: "fat:/etc", backingFormat: "raw" });
    await refused(
      () => open("in/fat", {}, inside),
      "Could not open backing file: Unknown protocol 'fat'",
    );
    const data = FileNode.open({
      nodeName: "",
      path: `${folder}/data`,
      isReadOnly: false,
      create: true,
      sizeBytes: 0,
    });
    await image("in/withdata", { dataFile: "../data", dataFileNode: data });
    await data.close();
    await refused(() => open("in/withdata", {}, inside), /the file is not in an allowed folder$/);
    assertEquals(graph.list(), []);
    await open("in/withdata");
    assertEquals(graph.list().map(({ driver }) => driver).sort(), ["file", "file", "qcow2"]);
  }));

Deno.test("openImage() knows protocols by name, and says which it doesn't", () =>
  withRig(async ({ graph }) => {
    const open = (name: string) => openImage(graph, name, {}, context);
    for (const name of ["fat:rw:/etc", "http://x/y", "ssh://x/y", "iscsi://x", "blkdebug::x"]) {
      await refused(() => open(name), `Unknown protocol '${name.split(":")[0]}'`);
    }
    await refused(() => open("nbd://127.0.0.1:1/x"), /^Failed to connect to '127.0.0.1:1'/);
    await refused(() => open("nbd+unix:///x?socket=/gone"), /^Failed to connect to '\/gone'/);
    await refused(() => open("json:{"), "JSON parse error, premature EOI");
    await refused(() => open("json:[]"), "Invalid JSON object given");
    await refused(() => open(""), "A file name must not be empty");
    await refused(() => open("a\0b"), "A path can't hold a NUL");
  }));

Deno.test("setReadOnly() makes an image with its file writable, and the way back", () =>
  withRig(async ({ graph, image, open }) => {
    await image("i");
    const { node } = await open("i", { isReadOnly: true });
    const data = IoVector.of(new Uint8Array(512).fill(3));
    await refused(async () => await node.write(0, data), "Block node is read-only");
    await graph.setReadOnly(node.nodeName, false);
    await node.write(0, data);
    await graph.setReadOnly(node.nodeName, true);
    await refused(async () => await node.write(0, data), "Block node is read-only");
    const read = new Uint8Array(512);
    await node.read(0, IoVector.of(read));
    assertEquals(read[511], 3);
  }));

Deno.test("detect-zeroes makes written zeroes cheap", () =>
  withRig(async ({ folder, graph }) => {
    await Deno.writeFile(`${folder}/disk`, new Uint8Array(MiB).fill(1));
    const node = await openBlockdev(graph, {
      driver: "file",
      "node-name": "d",
      filename: `${folder}/disk`,
      discard: "unmap",
      "detect-zeroes": "unmap",
    }, context);
    const before = node.allocatedBytes ?? 0;
    await node.write(0, IoVector.of(new Uint8Array(MiB)));
    assertEquals((node.allocatedBytes ?? 0) < before, true);
  }));
