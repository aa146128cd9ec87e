import { assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../../src/block/errors.ts";
import { BlockGraph } from "../../../src/block/graph.ts";
import { createDriverTable, localContext } from "../../../src/block/open/drivers.ts";
import type { JsonObject } from "../../../src/block/open/json.ts";
import { parseKeyval } from "../../../src/block/open/keyval.ts";
import { openBlockdev, openNode, parseBlockdev } from "../../../src/block/open/open_blockdev.ts";
import { openImage } from "../../../src/block/open/open_image.ts";
import { compileKernels, Kernels } from "../../../src/wasm/kernels.ts";

const kernels = new Kernels(await compileKernels());
const context = localContext({ kernels });

async function withFolder(run: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "ovis-open-" });
  try {
    await run(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

function makeFile(path: string, sizeBytes: number): string {
  Deno.writeFileSync(path, new Uint8Array(0));
  Deno.truncateSync(path, sizeBytes);
  return path;
}

async function assertRefused(graph: BlockGraph, input: JsonObject, message: string) {
  const before = graph.list().map(({ nodeName }) => nodeName);
  const error = await assertRejects(
    () => Promise.resolve().then(() => openBlockdev(graph, input, context)),
    BlockError,
  );
  assertEquals(error.message, message);
  assertEquals(graph.list().map(({ nodeName }) => nodeName), before);
}

Deno.test("openBlockdev() opens nested children, which go with their parent", () =>
  withFolder(async (folder) => {
    const filename = makeFile(`${folder}/disk`, 65536);
    const graph = new BlockGraph();
    const node = await openBlockdev(graph, {
      driver: "raw",
      "node-name": "disk",
      offset: 4096,
      size: 8192,
      file: { driver: "file", "node-name": "disk-file", filename },
    }, context);
    assertEquals(node.sizeBytes, 8192);
    assertEquals(node.discardMode, "ignore");
    assertEquals(graph.get("disk-file").discardMode, "unmap");
    assertEquals(graph.list().length, 2);
    await graph.remove("disk");
    assertEquals(graph.list(), []);
  }));

Deno.test("openBlockdev() takes key=value as it takes JSON", () =>
  withFolder(async (folder) => {
    const filename = makeFile(`${folder}/a,b`, 65536);
    const graph = new BlockGraph();
    const text = `raw,node-name=d,read-only=on,size=4096,file.driver=file,file.filename=${
      filename.replace(",", ",,")
    }`;
    const input = parseKeyval(text, "driver");
    const blockdev = parseBlockdev(input, context, { isKeyval: true });
    const node = await openNode(graph, blockdev, context);
    assertEquals([node.nodeName, node.sizeBytes, node.isReadOnly], ["d", 4096, true]);
    await graph.close();
  }));

Deno.test("openBlockdev() refuses in QEMU's words and leaves nothing behind", () =>
  withFolder(async (folder) => {
    const filename = makeFile(`${folder}/disk`, 4096);
    const graph = new BlockGraph();
    await openBlockdev(graph, { driver: "null-co", "node-name": "n", size: 4096 }, context);
    const refused = (input: JsonObject, message: string) => assertRefused(graph, input, message);
    await refused({ "node-name": "x" }, "Parameter 'driver' is missing");
    await refused({ driver: "nope" }, "Parameter 'driver' does not accept value 'nope'");
    await refused(
      { driver: "raw", file: 7 },
      "Invalid parameter type for 'file', expected: BlockdevRef",
    );
    await refused(
      { driver: "raw", file: "gone" },
      "Cannot find device='gone' nor node-name='gone'",
    );
    await refused(
      { driver: "raw", file: { driver: "file", filename, foo: 1 } },
      "Parameter 'file.foo' is unexpected",
    );
    await refused(
      { driver: "raw", "node-name": "n", file: { driver: "file", filename } },
      "Duplicate nodes with node-name='n'",
    );
    await refused(
      { driver: "raw", "node-name": "n/", file: { driver: "file", filename } },
      "Invalid node-name: 'n/'",
    );
    await refused(
      { driver: "file", filename: `${folder}/gone` },
      `Could not open '${folder}/gone': No such file or directory`,
    );
    await refused(
      { driver: "null-co", "detect-zeroes": "unmap" },
      "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
    );
    await refused(
      { driver: "throttle", "throttle-group": "q", file: { driver: "file", filename } },
      "Throttle group 'q' does not exist",
    );
    await graph.close();
  }));

Deno.test("openImage() keeps out of folders that are not allowed, also behind links", () =>
  withFolder(async (folder) => {
    await Deno.mkdir(`${folder}/in`);
    makeFile(`${folder}/outside`, 4096);
    await Deno.symlink("../outside", `${folder}/in/link`);
    makeFile(`${folder}/in/disk`, 4096);
    const inside = `${await Deno.realPath(folder)}/in/`;
    const limited = {
      ...context,
      drivers: createDriverTable(),
      mayOpen: (path: string) => path.startsWith(inside),
    };
    const graph = new BlockGraph();
    for (const name of [`${folder}/in/link`, `${folder}/in/../outside`, `file:${folder}/gone`]) {
      const error = await assertRejects(() => openImage(graph, name, {}, limited), BlockError);
      assertEquals(error.code, "EPERM");
      assertEquals(error.message.endsWith(": the file is not in an allowed folder"), true);
    }
    const { node, format, isProbed } = await openImage(graph, `${folder}/in/disk`, {}, limited);
    assertEquals([node.sizeBytes, format, isProbed], [4096, "raw", true]);
    await graph.close();
  }));
