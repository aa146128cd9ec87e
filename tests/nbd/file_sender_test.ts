// Large reads that the system sends from a file: the same bytes as if they had been read, whatever
// the socket takes at once, and nothing left behind by clients that stop, vanish, or see the file
// cut short.
import { assert, assertEquals, assertRejects } from "@std/assert";
import { FileNode } from "../../src/block/drivers/file.ts";
import { RawNode } from "../../src/block/drivers/raw.ts";
import { NodeExport } from "../../src/block/exports/node_export.ts";
import { BlockGraph } from "../../src/block/graph.ts";
import type { FilePart } from "../../src/block/types.ts";
import type { ByteStream } from "../../src/nbd/byte_stream.ts";
import { NbdClient } from "../../src/nbd/client.ts";
import { concatBytes } from "../../src/nbd/codec.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { NbdSession } from "../../src/nbd/session.ts";
import { connectTcp } from "../../src/nbd/transports/tcp.ts";
import { connectUnix } from "../../src/nbd/transports/unix.ts";
import { directoryOf, MemoryExport } from "../support/memory_export.ts";
import {
  CLIENT_FLAGS,
  FedStream,
  go,
  option,
  pattern,
  request,
  seededRandom,
  startTransmission,
} from "../support/nbd.ts";

const SEED = Number(Deno.env.get("OVIS_SEED") ?? 20_260_112);
const KiB = 1024;
const MiB = 1024 * KiB;
const READ = 0;
const LENGTHS = [1000, 70_000, 3 * MiB];

/** An export whose bytes count as a file's, up to where that is cut. */
class FileExport extends MemoryExport {
  cutAt = Infinity;

  filePart(offset: number): FilePart {
    return { fd: -1, offset };
  }

  override read(offset: number, buffer: Uint8Array) {
    if (offset + buffer.length > this.cutAt) throw new Error("the file ends before");
    return super.read(offset, buffer);
  }
}

/** A stream that takes so many bytes of each file as it is told. */
class FileStream extends FedStream {
  sentBytes = 0;
  readonly #exported: FileExport;
  readonly #takes: () => number;

  constructor(exported: FileExport, takes: () => number) {
    super();
    this.#exported = exported;
    this.#takes = takes;
  }

  sendFile(head: Uint8Array<ArrayBuffer>, part: FilePart & { length: number }): number {
    const { bytes, cutAt } = this.#exported;
    const data = bytes.subarray(part.offset, Math.min(part.offset + part.length, cutAt));
    const taken = concatBytes([head, data]).subarray(0, this.#takes());
    this.sent.push(taken);
    this.sentBytes += taken.length;
    return taken.length;
  }
}

/** What a session without files answers to the same requests. */
function answerByReading(exported: MemoryExport, requests: Uint8Array[], style: Style): Uint8Array {
  const { stream } = startTransmission(new MemoryExport(exported.bytes), { style });
  for (const bytes of requests) stream.feed(bytes);
  stream.finish("over");
  return stream.take();
}

type Style = "simple" | "structured" | "extended";

/** A session over a FileStream in its transmission phase. */
function startSending(
  exported: FileExport,
  { takes, style = "structured" }: { takes: () => number; style?: Style },
): { stream: FileStream; session: NbdSession } {
  const stream = new FileStream(exported, takes);
  const session = new NbdSession(stream, { directory: directoryOf(exported), turnMs: Infinity });
  session.start();
  stream.feed(CLIENT_FLAGS);
  if (style === "structured") stream.feed(option(8));
  if (style === "extended") stream.feed(option(11));
  stream.feed(go());
  stream.take();
  return { stream, session };
}

Deno.test("FileSender gives the bytes of a read, however much the stream takes at once", () => {
  const random = seededRandom(SEED);
  const below = (limit: number) => Math.floor(random() * limit);
  const bytes = pattern(3 * MiB);
  bytes.fill(0, 200 * KiB, 300 * KiB);
  bytes.fill(0, MiB, MiB + 5000);
  bytes.fill(0, 2 * MiB, 2 * MiB + 256 * KiB);
  const takes = [
    () => Infinity,
    () => 0,
    () => 1,
    () => 27,
    () => 28,
    () => 29,
    () => 100_000,
    () => below(300_000),
  ];
  for (const style of ["simple", "structured", "extended"] as const) {
    for (const [index, take] of takes.entries()) {
      const exported = new FileExport(bytes);
      const { stream } = startSending(exported, { takes: take, style });
      const requests = Array.from({ length: 12 }, (_, cookie) => {
        const offset = below(3 * MiB);
        const length = 1 + below(Math.min(3 * MiB - offset, LENGTHS[cookie % 3] ?? MiB));
        return request({ type: READ, cookie, offset, length, isExtended: style === "extended" });
      });
      for (const bytes of requests) stream.feed(bytes);
      const where = `seed ${SEED}, ${style}, takes ${index}`;
      const expected = answerByReading(exported, requests, style);
      assertEquals(sumOf(stream.take()), sumOf(expected), where);
      assertEquals(stream.sentBytes > 0, style !== "simple" && index !== 1, where);
      stream.finish("over");
    }
  }
});

Deno.test("FileSender sends behind what was written before, one piece at a time", async () => {
  const exported = new FileExport(pattern(2 * MiB));
  const { stream } = startSending(exported, { takes: () => 100_000 });
  stream.isHolding = true;
  const requests = [
    request({ type: READ, cookie: 1, length: 512 }),
    request({ type: READ, cookie: 2, length: MiB }),
    request({ type: READ, cookie: 3, offset: MiB, length: 4096 }),
  ];
  stream.feed(concatBytes(requests));
  const expected = answerByReading(exported, requests, "structured");
  assertEquals(stream.sentBytes, 0);
  let sent = stream.take();
  while (sent.length < expected.length) {
    const before = stream.sentBytes;
    stream.release();
    await new Promise((resolve) => setTimeout(resolve));
    assert(stream.sentBytes - before <= 100_000, "a piece went before the rest of the last one");
    sent = concatBytes([sent, stream.take()]);
  }
  assertEquals(sumOf(sent), sumOf(expected));
  assertEquals(stream.sentBytes, 4 * 100_000);
  stream.release();
  stream.finish("over");
});

Deno.test("FileSender breaks the connection where a file is cut short behind the header", async () => {
  const exported = new FileExport(pattern(MiB));
  const { stream, session } = startSending(exported, { takes: () => Infinity });
  exported.cutAt = 400 * KiB;
  stream.feed(request({ type: READ, length: MiB }));
  // The first piece, the header of the second, and what is left of the file.
  assertEquals(stream.take().length, 28 + 256 * KiB + 28 + 144 * KiB);
  assertEquals(await session.closed, "the file ends before");
  assertEquals(stream.closedWith, "the file ends before");
});

/** A file behind a raw node, served on both kinds of sockets. */
async function withServer(
  bytes: Uint8Array<ArrayBuffer>,
  action: (place: {
    server: NbdServer;
    path: string;
    /** Bytes that were read and not sent from the file. */
    readBytes: () => number;
    connect: Record<"tcp" | "unix", () => Promise<ByteStream>>;
    open: Record<"tcp" | "unix", () => Promise<Deno.Conn>>;
  }) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir();
  const path = `${folder}/disk`;
  await Deno.writeFile(path, bytes);
  const graph = new BlockGraph();
  graph.add(FileNode.open({ nodeName: "f", path, isReadOnly: true }));
  graph.add(new RawNode({ nodeName: "disk", file: graph.get("f"), offset: 512 }));
  const exported = new NodeExport(graph, { name: "disk", nodeName: "disk" });
  const read = exported.read.bind(exported);
  let readBytes = 0;
  exported.read = (offset, buffer) => {
    readBytes += buffer.length;
    return read(offset, buffer);
  };
  const server = new NbdServer({ directory: directoryOf(exported) });
  const address = server.listenTcp({ host: "127.0.0.1", port: 0 });
  try {
    await server.listenUnix(`${folder}/s`);
    await action({
      server,
      path,
      readBytes: () => readBytes,
      connect: { tcp: () => connectTcp(address), unix: () => connectUnix(`${folder}/s`) },
      open: {
        tcp: () => Deno.connect({ hostname: address.host, port: address.port }),
        unix: () => Deno.connect({ transport: "unix", path: `${folder}/s` }),
      },
    });
  } finally {
    await server.close();
    await exported.close();
    await graph.close();
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("a file is sent over TCP and unix sockets, to several clients at once", async () => {
  const bytes = pattern(8 * MiB + 512);
  bytes.fill(0, 5 * MiB, 6 * MiB);
  const disk = bytes.subarray(512);
  await withServer(bytes, async ({ connect, readBytes }) => {
    for (const transport of ["tcp", "unix"] as const) {
      const before = readBytes();
      await Promise.all([1, 2, 3, 4].map(async (seed) => {
        const random = seededRandom(SEED + seed);
        const below = (limit: number) => Math.floor(random() * limit);
        const stream = await connect[transport]();
        const client = await NbdClient.connect(stream, { requestBytesMax: 2 * MiB });
        assertEquals(sumOf(await client.read(0, disk.length)), sumOf(disk));
        for (let round = 0; round < 20; round++) {
          const offset = below(disk.length);
          const length = 1 + below(Math.min(disk.length - offset, 700_000));
          const expected = sumOf(disk.subarray(offset, offset + length));
          assertEquals(sumOf(await client.read(offset, length)), expected, `seed ${SEED + seed}`);
        }
        await client.close();
      }));
      // Each of them got the disk once, and more.
      assert(readBytes() - before < 4 * disk.length / 2, `${readBytes() - before} bytes were read`);
    }
  });
});

Deno.test("clients that stop reading or vanish leave others their bytes, and no descriptor", async () => {
  const bytes = pattern(16 * MiB + 512);
  await withServer(bytes, async ({ server, connect, open, readBytes }) => {
    const countOpen = () => [...Deno.readDirSync("/proc/self/fd")].length;
    const other = await NbdClient.connect(await connect.unix());
    await other.read(0, 512);
    const openBefore = countOpen();
    for (const transport of ["tcp", "unix"] as const) {
      const before = readBytes();
      const stopped = await Promise.all([1, 2, 3].map(async () => {
        const conn = await open[transport]();
        const reads = [0, 1, 2].map(() => request({ type: READ, length: 16 * MiB }));
        await conn.write(concatBytes([CLIENT_FLAGS, option(8), go(), ...reads]));
        return conn;
      }));
      for (let turn = 0; turn < 50; turn++) {
        const offset = turn * 200 * KiB;
        const expected = sumOf(bytes.subarray(512 + offset, 512 + offset + 200 * KiB));
        assertEquals(sumOf(await other.read(offset, 200 * KiB)), expected);
      }
      assert(readBytes() - before < 48 * MiB, "a client that reads nothing was served all");
      assert(server.statistics.bufferedBytes < 4 * MiB, `${server.statistics.bufferedBytes} held`);
      for (const conn of stopped) conn.close();
    }
    while (server.connections.open > 1) await new Promise((resolve) => setTimeout(resolve, 5));
    assertEquals(countOpen(), openBefore);
    await other.close();
  });
});

Deno.test("a file that is cut short ends the connections that read it, not the server", async () => {
  await withServer(pattern(4 * MiB + 512), async ({ server, path, connect }) => {
    for (const transport of ["tcp", "unix"] as const) {
      await Deno.writeFile(path, pattern(4 * MiB + 512));
      const client = await NbdClient.connect(await connect[transport]());
      await client.read(0, MiB);
      await Deno.truncate(path, 700 * KiB);
      await assertRejects(() => client.read(0, 4 * MiB));
      await client.close().catch(() => {});
      while (server.connections.open > 0) await new Promise((resolve) => setTimeout(resolve, 5));
    }
  });
});

/** Length and a hash (FNV-1a). */
function sumOf(bytes: Uint8Array): string {
  let hash = 0x811c9dc5;
  for (const byte of bytes) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return `${bytes.length}:${hash.toString(16)}`;
}
