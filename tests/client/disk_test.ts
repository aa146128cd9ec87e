import { assert, assertEquals, assertRejects } from "@std/assert";
import { connect, NbdError, type StreamProgress } from "../../src/client/mod.ts";
import { CLIENT_ENTRY, CLIENT_MODULES, clientModule } from "../../src/client/modules.ts";
import { directoryOf, MemoryExport, type MemoryExportOptions } from "../support/memory_export.ts";
import { pattern } from "../support/nbd.ts";
import { serveOverWebSocket } from "../support/nbd_websocket.ts";

const MiB = 1024 * 1024;

/** 8 MiB, of which [2, 5) MiB are zeroes. */
function sparse(options: MemoryExportOptions = {}): MemoryExport {
  const bytes = pattern(8 * MiB);
  bytes.fill(0, 2 * MiB, 5 * MiB);
  return new MemoryExport(bytes, options);
}

Deno.test("connect() offers nbd and the ticket, and opens the URL's export", async () => {
  await using server = serveOverWebSocket(directoryOf(sparse()));
  const disk = await connect(server.url, { ticket: "abc-_1" });
  assertEquals(server.offers, ["nbd, base64url.bearer.authorization.abc-_1"]);
  assertEquals(disk.sizeBytes, 8 * MiB);
  assertEquals(disk.contexts, ["base:allocation", "x-ovis:access"]);
  await disk.close();
});

Deno.test("connect() rejects where nobody answers, and where it is aborted", async () => {
  const listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  const url = `ws://127.0.0.1:${listener.addr.port}/`;
  const abort = new AbortController();
  const connecting = connect(url, { signal: abort.signal });
  const conn = await listener.accept();
  abort.abort(new Error("enough"));
  await assertRejects(() => connecting, Error, "enough");
  conn.close();
  listener.close();
  await assertRejects(() => connect(url), Error, "refused");
  await assertRejects(() => connect(url, { signal: AbortSignal.abort(new Error("early")) }));
});

Deno.test("RemoteDisk.read() reads anything, anywhere", async () => {
  const exported = sparse();
  await using server = serveOverWebSocket(directoryOf(exported));
  const disk = await connect(server.url);
  for (const [offset, length] of [[0, 1], [511, 1026], [2 * MiB - 1, 2], [MiB, 6 * MiB]] as const) {
    assertEquals(await disk.read(offset, length), exported.bytes.slice(offset, offset + length));
  }
  await assertRejects(() => disk.read(8 * MiB, 1), NbdError);
  await disk.close();
});

Deno.test("RemoteDisk.blockStatus() gives a map without gaps", async () => {
  await using server = serveOverWebSocket(directoryOf(
    sparse({ forbidden: [{ offset: 6 * MiB, length: MiB }] }),
  ));
  const disk = await connect(server.url);
  assertEquals(await Array.fromAsync(disk.blockStatus(MiB, 7 * MiB)), [
    { offset: MiB, length: MiB, flags: 0 },
    { offset: 2 * MiB, length: 3 * MiB, flags: 3 },
    { offset: 5 * MiB, length: MiB, flags: 0 },
    { offset: 6 * MiB, length: MiB, flags: 1 },
    { offset: 7 * MiB, length: MiB, flags: 0 },
  ]);
  const access = await Array.fromAsync(
    disk.blockStatus(0, 8 * MiB, { context: "x-ovis:access" }),
  );
  assertEquals(access.map(({ flags }) => flags), [0, 1, 0]);
  await assertRejects(() => Array.fromAsync(disk.blockStatus(0, 1, { context: "x:none" })), Error);
  await disk.close();
});

Deno.test("RemoteDisk.stream() is the disk, its holes not transferred", async () => {
  const exported = sparse();
  await using server = serveOverWebSocket(directoryOf(exported));
  const disk = await connect(server.url);
  const steps: StreamProgress[] = [];
  const stream = disk.stream({ onProgress: (progress) => steps.push(progress) });
  assertEquals(new Uint8Array(await new Response(stream).arrayBuffer()), exported.bytes);
  assertEquals(steps.at(-1), { doneBytes: 8 * MiB, totalBytes: 8 * MiB, readBytes: 5 * MiB });
  const reads = exported.calls.map((call) => /^read (\d+)\+/.exec(call)?.[1])
    .filter((offset) => offset !== undefined).map(Number);
  assert(reads.every((offset) => offset < 2 * MiB || offset >= 5 * MiB));
  const part = disk.stream({ offset: 100, length: 3 * MiB });
  assertEquals(
    new Uint8Array(await new Response(part).arrayBuffer()),
    exported.bytes.slice(100, 100 + 3 * MiB),
  );
  await disk.close();
});

Deno.test("RemoteDisk.stream() reads ahead within its bound, until cancelled", async () => {
  const exported = new MemoryExport(pattern(32 * MiB));
  await using server = serveOverWebSocket(directoryOf(exported));
  const disk = await connect(server.url, { outstandingBytesMax: 2 * MiB });
  const reader = disk.stream().getReader();
  await reader.read();
  await disk.read(0, 1);
  await reader.cancel();
  await disk.read(0, 1);
  const furthest = Math.max(
    ...exported.calls.map((call) => Number(/^read (\d+)\+/.exec(call)?.[1] ?? 0)),
  );
  assert(furthest < 4 * MiB, `read up to ${furthest}`);
  await disk.close();
});

Deno.test("RemoteDisk.stream() fails with the server's reason, or its signal's", async () => {
  const exported = sparse({ forbidden: [{ offset: 6 * MiB, length: 512 }] });
  await using server = serveOverWebSocket(directoryOf(exported));
  const disk = await connect(server.url);
  await assertRejects(
    () => new Response(disk.stream()).arrayBuffer(),
    NbdError,
    "may not be read",
  );
  const abort = new AbortController();
  const reader = disk.stream({ signal: abort.signal }).getReader();
  await reader.read();
  abort.abort(new Error("enough"));
  await assertRejects(
    async () => {
      while (!(await reader.read()).done);
    },
    Error,
    "enough",
  );
  assertEquals((await disk.read(0, 4)).length, 4);
  await disk.close();
});

Deno.test("a disk whose connection breaks connects again, with another ticket, and goes on", async () => {
  const exported = sparse();
  await using server = serveOverWebSocket(directoryOf(exported));
  let tickets = 0;
  const attempts: number[] = [];
  const disk = await connect(server.url, {
    ticket: () => Promise.resolve(`ticket-${++tickets}`),
    onReconnect: (attempt) => attempts.push(attempt),
  });
  let offset = 0;
  for await (const chunk of disk.chunks()) {
    assertEquals(chunk.offset, offset);
    offset += chunk.length;
    const bytes = chunk.bytes ?? new Uint8Array(chunk.length);
    assertEquals(bytes, exported.bytes.subarray(chunk.offset, offset));
    if (chunk.offset === MiB || chunk.offset === 6 * MiB) server.cut();
  }
  assertEquals(offset, 8 * MiB);
  server.cut();
  const [a, b] = await Promise.all([disk.read(0, 4), disk.read(MiB, 4)]);
  assertEquals([a, b], [exported.bytes.slice(0, 4), exported.bytes.slice(MiB, MiB + 4)]);
  assert(attempts.length >= 1 && attempts.every((attempt) => attempt === 1), `${attempts}`);
  assertEquals(server.offers.length, attempts.length + 1);
  await disk.close();
});

Deno.test("a disk that can't connect again says why the connection broke", async () => {
  const server = serveOverWebSocket(directoryOf(sparse()));
  const once = await connect(server.url, { ticket: "only-one" });
  const twice = await connect(server.url, { reconnectAttempts: 2 });
  await server[Symbol.asyncDispose]();
  await assertRejects(() => once.read(0, 1), NbdError);
  await assertRejects(() => twice.read(0, 1), Error, "refused");
  await Promise.all([once.close(), twice.close()]);
});

Deno.test("CLIENT_MODULES is what the library imports, all fit for browsers", async () => {
  const seen = new Set<string>();
  const waiting = [CLIENT_ENTRY];
  for (let path = waiting.pop(); path !== undefined; path = waiting.pop()) {
    if (seen.has(path)) continue;
    seen.add(path);
    const code = await clientModule(path);
    if (code === undefined) throw new Error(`${path} is not served`);
    assert(!/\bDeno\b|"(?:node|npm):/.test(code.replaceAll(/\/\*[^]*?\*\/|\/\/.*/g, "")), path);
    for (const [, specifier] of code.matchAll(/(?:from |import |import\()"([^"]+)"/g)) {
      waiting.push(new URL(specifier ?? "", `file:///${path}`).pathname.slice(1));
    }
  }
  seen.delete(CLIENT_ENTRY);
  assertEquals([...seen].sort(), [...CLIENT_MODULES].sort());
  assertEquals(await clientModule("src/limits.ts"), undefined);
  assertEquals(await clientModule("../etc/passwd"), undefined);
});
