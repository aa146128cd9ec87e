// What NBD_FLAG_CAN_MULTI_CONN promises: whatever was flushed on one connection, all see, and so
// does whoever reads the file itself.
import { Buffer } from "node:buffer";
import { assert, assertEquals } from "@std/assert";
import { FileNode } from "../../src/block/drivers/file.ts";
import { RawNode } from "../../src/block/drivers/raw.ts";
import { NodeExport } from "../../src/block/exports/node_export.ts";
import { BlockGraph } from "../../src/block/graph.ts";
import { NbdClient } from "../../src/nbd/client.ts";
import { NBD_FLAG_CAN_MULTI_CONN } from "../../src/nbd/codec.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { connectUnix } from "../../src/nbd/transports/unix.ts";
import { needs } from "../support/clients.ts";
import { directoryOf } from "../support/memory_export.ts";
import { pattern, seededRandom } from "../support/nbd.ts";

const SEED = Number(Deno.env.get("OVIS_SEED") ?? 20_260_105);
const MiB = 1024 * 1024;

/** A writable export of a file, on a unix socket. */
async function withFile(
  action: (place: { socket: string; path: string }) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir();
  const path = `${folder}/disk`;
  const graph = new BlockGraph();
  graph.add(
    FileNode.open({ nodeName: "f", path, isReadOnly: false, create: true, sizeBytes: 4 * MiB }),
  );
  graph.add(new RawNode({ nodeName: "disk", file: graph.get("f") }));
  const exported = new NodeExport(graph, { name: "disk", nodeName: "disk", isWritable: true });
  const server = new NbdServer({ directory: directoryOf(exported) });
  try {
    await server.listenUnix(`${folder}/s`);
    await action({ socket: `${folder}/s`, path });
  } finally {
    await server.close();
    await exported.close();
    await graph.close();
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("clients of several connections see what one of them flushed", () =>
  withFile(async ({ socket, path }) => {
    const random = seededRandom(SEED);
    const below = (limit: number) => Math.floor(random() * limit);
    const open = async () => await NbdClient.connect(await connectUnix(socket));
    const clients = await Promise.all([open(), open(), open(), open()]);
    const pick = () => clients[below(clients.length)] ?? clients[0];
    for (const client of clients) {
      assert((client.transmissionFlags & NBD_FLAG_CAN_MULTI_CONN) !== 0);
    }
    const model = new Uint8Array(4 * MiB);
    for (let round = 0; round < 20; round++) {
      // A burst of writes at places that do not meet, over all connections; then one flush.
      const writes = Array.from({ length: 1 + below(16) }, (_, index) => {
        const offset = index * 262_144 + below(200_000);
        const data = pattern(1 + below(60_000), round + index);
        model.set(data, offset);
        return pick()?.write(offset, data);
      });
      await Promise.all(writes);
      await pick()?.flush();
      const offset = below(3 * MiB);
      const expected = model.slice(offset, offset + MiB);
      const seen = await Promise.all(clients.map((client) => client.read(offset, MiB)));
      for (const bytes of seen) assert(equal(bytes, expected), `seed ${SEED} round ${round}`);
    }
    assert(equal(await Deno.readFile(path), model), `seed ${SEED}`);
    await Promise.all(clients.map((client) => client.close()));
  }));

Deno.test({
  name: "two handles of libnbd's see each other's flushed writes, and FUA writes at once",
  ...needs("nbdsh"),
  fn: () =>
    withFile(async ({ socket }) => {
      const script = `
uri = "nbd+unix:///?socket=${socket}"
other = nbd.NBD()
h.connect_uri(uri)
other.connect_uri(uri)
assert h.can_multi_conn() and other.can_multi_conn()
for turn in range(200):
    a, b = (h, other) if turn % 2 == 0 else (other, h)
    data = bytes([turn + 1]) * (4096 + turn)
    a.pwrite(data, turn * 8192, nbd.CMD_FLAG_FUA if turn % 3 == 0 else 0)
    if turn % 3 != 0:
        a.flush()
    assert b.pread(len(data), turn * 8192) == data, turn
h.shutdown()
other.shutdown()
`;
      const env = { PATH: `/usr/bin:${Deno.env.get("PATH") ?? ""}` };
      const { code, stderr } = await new Deno.Command("nbdsh", { args: ["-c", script], env })
        .output();
      assertEquals(code, 0, new TextDecoder().decode(stderr));
    }),
});

function equal(left: Uint8Array, right: Uint8Array): boolean {
  return Buffer.compare(left, right) === 0;
}
