import { assert, assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../src/block/errors.ts";
import { NbdClient, type NbdClientOptions, NbdError } from "../../src/nbd/client.ts";
import { NbdHandshakeError } from "../../src/nbd/client_handshake.ts";
import { concatBytes } from "../../src/nbd/codec.ts";
import { NbdSession } from "../../src/nbd/session.ts";
import { directoryOf, MemoryExport, type MemoryExportOptions } from "../support/memory_export.ts";
import { FedStream, hex, pattern, seededRandom, streamPair } from "../support/nbd.ts";

const SEED = Number(Deno.env.get("OVIS_SEED") ?? 20_260_102);
const STYLES = ["simple", "structured", "extended"] as const;
const MiB = 1024 * 1024;

async function connected(
  bytes: Uint8Array<ArrayBuffer>,
  options: MemoryExportOptions = {},
  clientOptions: NbdClientOptions = {},
): Promise<{ client: NbdClient; exported: MemoryExport; session: NbdSession }> {
  const exported = new MemoryExport(bytes, options);
  const [ours, theirs] = streamPair();
  const session = new NbdSession(theirs, { directory: directoryOf(exported) });
  session.start();
  return { client: await NbdClient.connect(ours, clientOptions), exported, session };
}

for (const style of STYLES) {
  Deno.test(`NbdClient does every request with ${style} headers`, async () => {
    const { client, exported, session } = await connected(pattern(MiB), {}, {
      style,
      contexts: ["base:allocation", "x-ovis:access", "x-none:such"],
    });
    assertEquals(client.style, style);
    assertEquals(client.sizeBytes, MiB);
    assertEquals(client.isReadOnly, false);
    assertEquals(await client.read(1000, 5000), exported.bytes.slice(1000, 6000));
    await client.write(77, pattern(1000, 9), { isFua: true });
    assertEquals(exported.bytes.slice(77, 1077), pattern(1000, 9));
    await client.writeZeroes(4096, 8192);
    assertEquals(await client.read(4095, 2), Uint8Array.of(exported.bytes[4095] ?? 0, 0));
    await client.writeZeroes(4096, 512, { mayUnmap: false, isFast: true });
    await client.trim(65536, 65536);
    await client.cache(0, MiB);
    await client.flush();
    if (style === "simple") {
      assertEquals(client.contexts, []);
      await assertRejects(() => client.blockStatus(0, MiB), NbdError, "");
    } else {
      assertEquals(client.contexts, ["base:allocation", "x-ovis:access"]);
      const status = await client.blockStatus(0, 16384);
      assertEquals(status.get("base:allocation"), [
        { length: 4096, flags: 0 },
        { length: 8192, flags: 3 },
        { length: 4096, flags: 0 },
      ]);
      assertEquals(status.get("x-ovis:access"), [{ length: 16384, flags: 0 }]);
      const one = await client.blockStatus(0, 16384, { isOne: true });
      assertEquals(one.get("base:allocation"), [{ length: 4096, flags: 0 }]);
    }
    await client.close();
    assertEquals(await session.closed, "the client disconnected");
  });
}

Deno.test("NbdClient.read() puts replies together that come in any order", async () => {
  const random = seededRandom(SEED);
  const waiting: (() => void)[] = [];
  const { client, exported } = await connected(pattern(4 * MiB), {
    before: (operation) =>
      operation !== "read"
        ? undefined
        : new Promise((resolve) =>
          waiting.splice(Math.floor(random() * (waiting.length + 1)), 0, resolve)
        ),
  }, { requestBytesMax: 64 * 1024 });
  const reading = client.read(12_345, 3 * MiB);
  let isDone = false;
  reading.then(() => isDone = true);
  for (let turn = 0; turn < 100_000 && !isDone; turn++) {
    if (turn % 7 === 0) waiting.shift()?.();
    await Promise.resolve();
  }
  assertEquals(await reading, exported.bytes.slice(12_345, 12_345 + 3 * MiB), `seed ${SEED}`);
  await client.close();
});

Deno.test("NbdClient bounds what is outstanding", async () => {
  let pending = 0;
  let most = 0;
  const { client } = await connected(pattern(MiB), {
    before: async (operation) => {
      if (operation !== "read") return;
      most = Math.max(most, ++pending);
      await new Promise((resolve) => setTimeout(resolve, 0));
      pending--;
    },
  }, { requestBytesMax: 4096, outstandingBytesMax: 20_000, requestsMax: 16 });
  await client.read(0, 50 * 4096);
  assert(most > 1 && most <= 4, `${most} reads of 4096 bytes at a time`);
  await client.close();
});

Deno.test("NbdClient passes the server's reason on", async () => {
  const { client } = await connected(pattern(MiB), { forbidden: [{ offset: 512, length: 512 }] });
  const error = await assertRejects(() => client.read(0, 1024), NbdError);
  assertEquals(error.errno, 1);
  assertEquals(error.message, "bytes at 512 may not be read");
  assertEquals((await client.read(0, 512)).length, 512);
  await client.close();
});

Deno.test("NbdClient refuses what is not in the export without asking", async () => {
  const { client, exported } = await connected(pattern(512));
  for (const [offset, length] of [[0, 513], [513, 0], [-1, 1], [0.5, 1], [NaN, 1]] as const) {
    await assertRejects(() => client.read(offset, length), NbdError);
  }
  assertEquals(exported.calls, []);
  await client.close();
});

Deno.test("NbdClient.read() can be aborted, and the connection goes on", async () => {
  const gates: (() => void)[] = [];
  const { client, exported } = await connected(pattern(4096), {
    before: (operation) =>
      operation === "read" ? new Promise((resolve) => gates.push(resolve)) : undefined,
  }, { requestsMax: 1 });
  const pendingAbort = new AbortController();
  const waitingAbort = new AbortController();
  const pending = client.read(0, 100, { signal: pendingAbort.signal });
  const waiting = client.read(100, 100, { signal: waitingAbort.signal });
  while (gates.length === 0) await Promise.resolve();
  pendingAbort.abort(new Error("enough"));
  waitingAbort.abort(new Error("enough"));
  await assertRejects(() => pending, Error, "enough");
  await assertRejects(() => waiting, Error, "enough");
  await assertRejects(() => client.read(0, 1, { signal: AbortSignal.abort(new Error("early")) }));
  const later = client.read(200, 100);
  gates.shift()?.();
  while (gates.length === 0) await Promise.resolve();
  gates.shift()?.();
  assertEquals(await later, exported.bytes.slice(200, 300));
  assertEquals(exported.calls.filter((call) => call === "read 100+100"), []);
  await client.close();
});

Deno.test("NbdClient fails what waits and is pending when the server goes away", async () => {
  const { client, stream } = await withServer();
  const reads = Array.from({ length: 40 }, (_, at) => client.read(at, 10));
  await Promise.resolve();
  stream.finish("the cable was cut");
  for (const read of reads) await assertRejects(() => read, NbdError, "the cable was cut");
  await assertRejects(() => client.flush(), NbdError, "the cable was cut");
  await client.close();
});

Deno.test("NbdClient.connect() tells why an export can't be opened", async () => {
  const [ours, theirs] = streamPair();
  new NbdSession(theirs, { directory: directoryOf(new MemoryExport(pattern(512))) }).start();
  const error = await assertRejects(
    () => NbdClient.connect(ours, { exportName: "no" }),
    NbdHandshakeError,
  );
  assertEquals(error.message, 'no export is named "no"');
  assertEquals(error.replyType, 0x80000006);
});

Deno.test("NbdClient.list() lists exports", async () => {
  const [ours, theirs] = streamPair();
  const directory = directoryOf(
    new MemoryExport(pattern(512)),
    new MemoryExport(pattern(512), { name: "second" }),
  );
  new NbdSession(theirs, { directory }).start();
  assertEquals(await NbdClient.list(ours), [
    { name: "mem", description: "bytes in memory" },
    { name: "second", description: "bytes in memory" },
  ]);
});

Deno.test("NbdClient.connect() gives up with its signal", async () => {
  const stream = new FedStream();
  const abort = new AbortController();
  const connecting = NbdClient.connect(stream, { signal: abort.signal });
  abort.abort(new Error("too slow"));
  await assertRejects(() => connecting, Error, "too slow");
  assertEquals(stream.closedWith, "the handshake failed");
});

Deno.test("NbdClient falls back to EXPORT_NAME at a server that knows nothing else", async () => {
  const stream = new FedStream();
  const connecting = NbdClient.connect(stream);
  const unsupported = (option: number) =>
    hex("0003e889045565a9", option.toString(16).padStart(8, "0"), "80000001 00000000");
  stream.feed(hex("'NBDMAGIC' 'IHAVEOPT' 0001"));
  for (const option of [11, 8, 7]) {
    for (let turn = 0; turn < 20; turn++) await Promise.resolve();
    stream.feed(unsupported(option));
  }
  for (let turn = 0; turn < 20; turn++) await Promise.resolve();
  stream.feed(hex("0000000000001000 0003", "00".repeat(124)));
  const client = await connecting;
  assertEquals([client.sizeBytes, client.style, client.isReadOnly], [4096, "simple", true]);
  const closing = client.close();
  for (let turn = 0; turn < 20; turn++) await Promise.resolve();
  await closing;
});

/** A client in transmission with a server that the test plays; `extended` headers, one context. */
async function withServer(): Promise<{ client: NbdClient; stream: FedStream }> {
  const stream = new FedStream();
  const connecting = NbdClient.connect(stream, { contexts: [] });
  stream.feed(hex("'NBDMAGIC' 'IHAVEOPT' 0003 0003e889045565a9 0000000b 00000001 00000000"));
  for (let turn = 0; turn < 20; turn++) await Promise.resolve();
  stream.feed(hex(
    "0003e889045565a9 00000007 00000003 0000000c 0000 0000000000100000 0001",
    "0003e889045565a9 00000007 00000001 00000000",
  ));
  const client = await connecting;
  stream.take();
  return { client, stream };
}

const REPLY = "6e8a278c 0001";
for (
  const [what, reply] of [
    ["a wrong magic", hex("6e8a278d 0001 0000 0000000000000001", "00".repeat(16))],
    ["a cookie nobody sent", hex(REPLY, "0000 0000000000000009", "00".repeat(16))],
    ["data that was not asked for", dataChunk(1, 4096, 10)],
    ["data beyond what was asked for", dataChunk(1, 0, 101)],
    ["data of no bytes", hex(REPLY, "0001 0000000000000001 0000000000000000 0000000000000008")],
    ["a hole of no bytes", holeChunk(0, 0)],
    ["a hole beyond what was asked for", holeChunk(50, 51)],
    ["2^63 bytes", hex(REPLY, "0001 0000000000000001 0000000000000000 8000000000000000")],
    ["an error of 1 GiB", hex(REPLY, "8001 0000000000000001", "00".repeat(8), "0000000040000000")],
    ["a chunk type nobody knows", hex(REPLY, "0007 0000000000000001", "00".repeat(16))],
    ["a status that is miscounted", statusChunk("00000000 00000002")],
    ["an extent of no bytes", statusChunk("00000000 00000001", 0)],
  ] as const
) {
  Deno.test(`NbdClient ends the connection at a server that sends ${what}`, async () => {
    const { client, stream } = await withServer();
    const reading = client.read(0, 100);
    await Promise.resolve();
    stream.feed(reply);
    await assertRejects(() => reading, NbdError, "protocol error");
    assert(stream.closedWith?.startsWith("protocol error"));
    await assertRejects(() => client.read(0, 1), NbdError, "protocol error");
  });
}

function word(value: number): string {
  return value.toString(16).padStart(16, "0");
}

function dataChunk(cookie: number, offset: number, length: number): Uint8Array {
  return hex(
    REPLY,
    "0001",
    word(cookie),
    word(0),
    word(8 + length),
    word(offset),
    "aa".repeat(length),
  );
}

function holeChunk(offset: number, length: number): Uint8Array {
  return hex(REPLY, "0002", word(1), word(0), word(12), word(offset), word(length).slice(8));
}

function statusChunk(head: string, length = 1): Uint8Array {
  return hex(REPLY, "0006", word(1), word(0), word(24), head, word(length), word(0));
}

Deno.test("NbdClient fails a read whose reply is incomplete", async () => {
  const { client, stream } = await withServer();
  const reading = client.read(0, 100);
  await Promise.resolve();
  stream.feed(dataChunk(1, 0, 99));
  await assertRejects(() => reading, NbdError, "less than was asked for");
});

Deno.test("NbdClient.read() hands on what came in one piece, and copies a small part", async () => {
  const { client, stream } = await withServer();
  const whole = client.read(0, 100);
  await Promise.resolve();
  stream.feed(dataChunk(1, 0, 100));
  assertEquals(await whole, new Uint8Array(100).fill(0xaa));
  assert((await whole).buffer.byteLength > 100, "a part of what came");
  const small = client.read(0, 100);
  const split = client.read(4096, 4000);
  await Promise.resolve();
  const more = dataChunk(3, 4096, 4000);
  stream.feed(concatBytes([dataChunk(2, 0, 100), more.subarray(0, 3000)]));
  stream.feed(more.subarray(3000));
  assertEquals(await small, new Uint8Array(100).fill(0xaa));
  assertEquals((await small).buffer.byteLength, 100);
  assertEquals(await split, new Uint8Array(4000).fill(0xaa));
});

Deno.test("NbdClient reads the same, however a reply is cut", async () => {
  const random = seededRandom(SEED);
  for (let round = 0; round < 200; round++) {
    const { client, stream } = await withServer();
    const reading = client.read(0, 100);
    await Promise.resolve();
    const first = dataChunk(1, 40, 60);
    first[5] = 0;
    const bytes = concatBytes([first, holeChunk(0, 40)]);
    for (let at = 0; at < bytes.length;) {
      const length = 1 + Math.floor(random() * 50);
      stream.feed(bytes.subarray(at, at + length));
      at += length;
    }
    const expected = new Uint8Array(100).fill(0xaa, 40);
    assertEquals(await reading, expected, `seed ${SEED} round ${round}`);
  }
});

Deno.test("NbdClient stands noise from a server", async () => {
  const random = seededRandom(SEED);
  for (let round = 0; round < 300; round++) {
    const { client, stream } = await withServer();
    const reading = client.read(0, 100);
    await Promise.resolve();
    const noise = dataChunk(1, 0, 100);
    for (let change = 0; change < 3; change++) {
      noise[Math.floor(random() * 48)] = Math.floor(random() * 256);
    }
    stream.feed(noise);
    stream.finish("over");
    // Whatever it was, the read ends, and with nothing else than these.
    const [result] = await Promise.allSettled([reading]);
    assert(
      result?.status === "fulfilled" || result?.reason instanceof NbdError,
      `seed ${SEED} round ${round}`,
    );
  }
});

Deno.test("NbdClient leaves errors without a text their name", async () => {
  const { client } = await connected(pattern(512), {
    before: (operation) => {
      if (operation === "flush") throw new BlockError("ENOSPC", "full");
    },
  }, { style: "simple" });
  const error = await assertRejects(() => client.flush(), NbdError);
  assertEquals([error.errno, error.message], [28, "ENOSPC"]);
  await client.close();
});
