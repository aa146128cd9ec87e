// The maps of a chain of images, beside those of qemu-nbd over the same files.
import { assertEquals } from "@std/assert";
import { NodeExport } from "../../src/block/exports/node_export.ts";
import { BlockGraph } from "../../src/block/graph.ts";
import { localContext } from "../../src/block/open/drivers.ts";
import { openImage } from "../../src/block/open/open_image.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { compileKernels, Kernels } from "../../src/wasm/kernels.ts";
import { needs } from "../support/clients.ts";
import { directoryOf } from "../support/memory_export.ts";

async function run(program: string, args: string[]): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command(program, { args }).output();
  const text = new TextDecoder().decode(stdout);
  assertEquals(code, 0, `${program} ${args.join(" ")}: ${text}${new TextDecoder().decode(stderr)}`);
  return text;
}

/** base (4 MiB) <- mid (4 MiB) <- top (8 MiB, with a dirty bitmap). */
async function makeChain(folder: string): Promise<string> {
  const [base, mid, top] = ["base.img", "mid.qcow2", "top.qcow2"].map((name) =>
    `${folder}/${name}`
  ) as [string, string, string];
  const write = (path: string, format: string, ...commands: string[]) =>
    run("qemu-io", ["-f", format, ...commands.flatMap((command) => ["-c", command]), path]);
  await run("qemu-img", ["create", "-q", "-f", "raw", base, "4M"]);
  await write(base, "raw", "write -P 1 0 1M");
  await run("qemu-img", ["create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", mid]);
  await write(mid, "qcow2", "write -P 2 1M 512k");
  await run("qemu-img", ["create", "-q", "-f", "qcow2", "-b", mid, "-F", "qcow2", top, "8M"]);
  await run("qemu-img", ["bitmap", "--add", "-g", "64k", top, "changed"]);
  await write(top, "qcow2", "write -P 3 2M 64k", "write -z 64k 64k", "write -P 4 7M 128k");
  return top;
}

const CONTEXTS = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:changed"];

async function mapsOf(uri: string): Promise<string[]> {
  return await Promise.all(CONTEXTS.map((context) => run("nbdinfo", [`--map=${context}`, uri])));
}

Deno.test({
  name: "maps of a chain of images are those of qemu-nbd",
  ...needs("qemu-img", "qemu-io", "qemu-nbd", "nbdinfo"),
  fn: async () => {
    const folder = await Deno.makeTempDir();
    try {
      const top = await makeChain(folder);
      const socket = `${folder}/theirs`;
      const child = new Deno.Command("qemu-nbd", {
        args: ["-t", "-r", "-f", "qcow2", "-A", "-B", "changed", "-e", "8", "-k", socket, top],
        stderr: "null",
      }).spawn();
      while (!(await Deno.lstat(socket).then(() => true, () => false))) {
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      const theirs = await mapsOf(`nbd+unix:///?socket=${socket}`);
      child.kill();
      await child.status;

      const graph = new BlockGraph();
      const context = localContext({ kernels: new Kernels(await compileKernels()) });
      const { node } = await openImage(graph, top, { isReadOnly: true }, context);
      const exported = new NodeExport(graph, {
        name: "disk",
        nodeName: node.nodeName,
        bitmaps: context.bitmaps.list(node),
        showsDepth: true,
      });
      const server = new NbdServer({ directory: directoryOf(exported) });
      await server.listenUnix(`${folder}/ours`);
      const uri = `nbd+unix:///?socket=${folder}/ours`;
      assertEquals(await mapsOf(uri), theirs);
      const listed = JSON.parse(await run("nbdinfo", ["--json", uri]));
      assertEquals(listed.exports[0].contexts, CONTEXTS);
      await server.close();
      await exported.close();
      await graph.close();
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});
