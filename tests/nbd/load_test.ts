// Many clients at once on loopback, some cut off in the middle of things: every byte that is read
// is checked, and nothing of a connection that was cut stays behind.
import { assertEquals } from "@std/assert";
import { type ByteStream } from "../../src/nbd/byte_stream.ts";
import { NbdClient } from "../../src/nbd/client.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { connectTcp } from "../../src/nbd/transports/tcp.ts";
import { directoryOf, MemoryExport } from "../support/memory_export.ts";
import { pattern, seededRandom } from "../support/nbd.ts";

const SEED = Number(Deno.env.get("OVIS_SEED") ?? 20_260_103);
const MiB = 1024 * 1024;
const CLIENTS = 12;
const ROUNDS = 40;
/** Each client writes to a part of its own, so that it knows what it must read. */
const PART = MiB;

Deno.test("NbdServer serves many clients that come, work and are cut off", async () => {
  const exported = new MemoryExport(pattern(CLIENTS * PART), {
    // A third of the requests answer later, in an order of their own.
    before: (operation, offset) =>
      operation !== "extents" && offset % 3 === 0 ? Promise.resolve() : undefined,
  });
  const server = new NbdServer({ directory: directoryOf(exported) });
  const address = server.listenTcp({ host: "127.0.0.1", port: 0 });
  let cuts = 0;
  await Promise.all(Array.from({ length: CLIENTS }, async (_, index) => {
    const random = seededRandom(SEED + index);
    const below = (limit: number) => Math.floor(random() * limit);
    const model = exported.bytes.slice(index * PART, (index + 1) * PART);
    let connection: { client: NbdClient; stream: ByteStream } | null = null;
    for (let round = 0; round < ROUNDS; round++) {
      if (connection === null) {
        const stream = await connectTcp(address);
        connection = {
          client: await NbdClient.connect(stream, { requestBytesMax: 65536 }),
          stream,
        };
      }
      const { client, stream } = connection;
      const offset = below(PART);
      const length = 1 + below(Math.min(PART - offset, 200_000));
      const at = index * PART + offset;
      const action = random();
      if (action < 0.1) {
        // Cut with reads under way: they fail, and the next round starts afresh.
        const reading = Promise.allSettled([client.read(at, length), client.read(at, 1)]);
        stream.close("cut");
        await client.close().catch(() => {});
        await reading;
        connection = null;
        cuts++;
      } else if (action < 0.45) {
        const data = pattern(length, below(1000));
        await client.write(at, data, { isFua: random() < 0.2 });
        model.set(data, offset);
      } else if (action < 0.55) {
        await client.writeZeroes(at, length);
        model.fill(0, offset, offset + length);
      } else {
        const bytes = await client.read(at, length);
        const where = `seed ${SEED} client ${index} round ${round}`;
        assertEquals(sumOf(bytes), sumOf(model.subarray(offset, offset + length)), where);
      }
    }
    await connection?.client.close();
    const part = exported.bytes.subarray(index * PART, (index + 1) * PART);
    assertEquals(sumOf(part), sumOf(model), `seed ${SEED} client ${index}`);
  }));
  assertEquals(cuts > 0, true);
  await server.close();
  assertEquals(server.connections.open, 0);
});

/** Length and a hash (FNV-1a). */
function sumOf(bytes: Uint8Array): string {
  let hash = 0x811c9dc5;
  for (const byte of bytes) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return `${bytes.length}:${hash.toString(16)}`;
}
