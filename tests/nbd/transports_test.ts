import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { limits } from "../../src/limits.ts";
import type { ByteStream } from "../../src/nbd/byte_stream.ts";
import { NbdClient } from "../../src/nbd/client.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { ChunkPool, OutputQueue } from "../../src/nbd/output_queue.ts";
import { type NbdPortMessage, PortStream } from "../../src/nbd/transports/port.ts";
import { connectTcp } from "../../src/nbd/transports/tcp.ts";
import { connectUnix } from "../../src/nbd/transports/unix.ts";
import { relayWebSocket } from "../../src/nbd/transports/websocket.ts";
import { WebSocketStream } from "../../src/client/web_socket_stream.ts";
import { directoryOf, MemoryExport } from "../support/memory_export.ts";
import { CLIENT_FLAGS, go, hex, pattern, request, toHex } from "../support/nbd.ts";

const MiB = 1024 * 1024;

/** Reads and writes a little over a stream, and much. */
async function exercise(stream: ByteStream, exported: MemoryExport): Promise<void> {
  const client = await NbdClient.connect(stream, { outstandingBytesMax: 8 * MiB });
  assertEquals(client.style, "extended");
  assertEquals(await client.read(0, exported.bytes.length), exported.bytes);
  const written = pattern(3 * MiB, 5);
  await client.write(MiB, written);
  assertEquals(exported.bytes.subarray(MiB, 4 * MiB), written);
  assertEquals(await client.read(MiB + 1, 10), written.slice(1, 11));
  await client.close();
}

Deno.test("listenTcp() and connectTcp() carry sessions", async () => {
  const exported = new MemoryExport(pattern(8 * MiB));
  await using server = closing(new NbdServer({ directory: directoryOf(exported) }));
  const address = server.listenTcp({ host: "127.0.0.1", port: 0 });
  assert(address.port > 0);
  await Promise.all([1, 2, 3].map(async () => exercise(await connectTcp(address), exported)));
});

Deno.test("listenUnix() and connectUnix() carry sessions, for the owner only", async () => {
  const exported = new MemoryExport(pattern(8 * MiB));
  const directory = await Deno.makeTempDir();
  const path = `${directory}/nbd.sock`;
  {
    await using server = closing(new NbdServer({ directory: directoryOf(exported) }));
    await server.listenUnix(path);
    assertEquals((Deno.statSync(path).mode ?? 0) & 0o777, 0o600);
    await exercise(await connectUnix(path), exported);
    const second = new NbdServer({ directory: directoryOf(exported) });
    await assertRejects(() => second.listenUnix(path), Deno.errors.AddrInUse);
  }
  assertThrows(() => Deno.statSync(path), Deno.errors.NotFound);
  await Deno.remove(directory, { recursive: true });
});

Deno.test("listenUnix() replaces a socket whose server is gone, and nothing else", async () => {
  const directory = await Deno.makeTempDir();
  const path = `${directory}/nbd.sock`;
  const script = `Deno.listen({ transport: "unix", path: ${
    JSON.stringify(path)
  } }); Deno.kill(Deno.pid, "SIGKILL");`;
  await new Deno.Command(Deno.execPath(), { args: ["eval", script], stderr: "null" }).output();
  assertEquals(Deno.statSync(path).isSocket, true);
  const exported = new MemoryExport(pattern(512));
  {
    await using server = closing(new NbdServer({ directory: directoryOf(exported) }));
    await server.listenUnix(path);
    const client = await NbdClient.connect(await connectUnix(path));
    assertEquals(client.sizeBytes, 512);
    await client.close();
  }
  await Deno.writeTextFile(path, "precious");
  const server = new NbdServer({ directory: directoryOf(exported) });
  await assertRejects(() => server.listenUnix(path));
  assertEquals(await Deno.readTextFile(path), "precious");
  await Deno.remove(directory, { recursive: true });
});

Deno.test("NbdServer answers a client that shuts its side down at once", async () => {
  const exported = new MemoryExport(pattern(4096));
  await using server = closing(new NbdServer({ directory: directoryOf(exported) }));
  const conn = await Deno.connect(server.listenTcp({ host: "127.0.0.1", port: 0 }) as Address);
  await conn.write(hex(
    toHex(CLIENT_FLAGS),
    toHex(go()),
    toHex(request({ type: 0, cookie: 7, length: 4096 })),
  ));
  await conn.closeWrite();
  const answer = new Uint8Array(await new Response(conn.readable).arrayBuffer());
  assertEquals(answer.subarray(answer.length - 4096), exported.bytes);
});

type Address = { port: number };

Deno.test("NbdServer bounds a TCP client that asks for much and never reads", async () => {
  const exported = new MemoryExport(pattern(32 * MiB));
  await using server = closing(new NbdServer({ directory: directoryOf(exported) }));
  const conn = await Deno.connect(server.listenTcp({ host: "127.0.0.1", port: 0 }) as Address);
  const reads = Array.from(
    { length: 64 },
    (_, cookie) => toHex(request({ type: 0, cookie, length: MiB })),
  );
  await conn.write(hex(toHex(CLIENT_FLAGS), toHex(go()), ...reads));
  // Another client is served meanwhile, and sees how far the first one got.
  const other = await NbdClient.connect(await connectTcp(server.addresses));
  for (let turn = 0; turn < 50; turn++) await other.read(0, 512);
  const count = exported.calls.filter((call) => call === `read 0+${MiB}`).length;
  assert(count < 32, `${count} of 64 reads executed for a client that reads nothing`);
  await other.close();
  conn.close();
});

/** A server that a test closes by leaving its block, and the address that it listens on. */
function closing(server: NbdServer) {
  let addresses = { host: "", port: 0 };
  return {
    get addresses() {
      return addresses;
    },
    listenTcp: (address: { host: string; port: number }) => addresses = server.listenTcp(address),
    listenUnix: (path: string) => server.listenUnix(path),
    serve: (stream: ByteStream) => server.serve(stream),
    [Symbol.asyncDispose]: () => server.close(),
  };
}

Deno.test("PortStream carries sessions", async () => {
  const exported = new MemoryExport(pattern(16 * MiB));
  await using server = closing(new NbdServer({ directory: directoryOf(exported) }));
  const { port1, port2 } = new MessageChannel();
  const closed = server.serve(new PortStream(port2));
  await exercise(new PortStream(port1), exported);
  assertEquals(await closed, "the client disconnected");
});

Deno.test("PortStream.write() stops at the window and goes on with credit", async () => {
  const { port1, port2 } = new MessageChannel();
  const stream = new PortStream(port1);
  stream.start({ onData: () => false, onEnd: () => {} });
  let isDone = false;
  const writing = Promise.resolve(stream.write(new Uint8Array(8 * MiB))).then(() => isDone = true);
  let received = 0;
  let unacknowledged = 0;
  let most = 0;
  await new Promise<void>((resolve) => {
    port2.onmessage = ({ data }) => {
      if (data.type !== "data") return;
      received += data.bytes.length;
      unacknowledged += data.bytes.length;
      most = Math.max(most, unacknowledged);
      if (unacknowledged >= limits.nbdPortWindowBytes) {
        assertEquals(isDone, received === 8 * MiB);
        port2.postMessage({ type: "credit", byteCount: unacknowledged });
        unacknowledged = 0;
      }
      if (received === 8 * MiB) resolve();
    };
  });
  await writing;
  assert(most < limits.nbdPortWindowBytes + limits.nbdWebSocketFrameBytes, `${most} bytes`);
  stream.close("done");
  port2.close();
});

/** A WebSocket server whose sessions run behind a message port, as the service has it. */
function serveWebSocket(server: { serve: (stream: ByteStream) => Promise<string> }) {
  const reasons: Promise<string>[] = [];
  const http = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen: () => {} }, (incoming) => {
    const { socket, response } = Deno.upgradeWebSocket(incoming, { protocol: "nbd" });
    const { port1, port2 } = new MessageChannel();
    reasons.push(relayWebSocket(socket, port1));
    server.serve(new PortStream(port2));
    return response;
  });
  return {
    url: `ws://127.0.0.1:${http.addr.port}`,
    reasons,
    [Symbol.asyncDispose]: () => http.shutdown(),
  };
}

Deno.test("PortStream.writeAway() takes the buffer along, and credit brings one back", async () => {
  const { port1, port2 } = new MessageChannel();
  const stream = new PortStream(port2);
  stream.start({ onData: () => false, onEnd: () => {} });
  const messages: Uint8Array<ArrayBuffer>[] = [];
  let arrived = () => {};
  port1.onmessage = ({ data }: MessageEvent<NbdPortMessage>) => {
    if (data.type === "data") messages.push(data.bytes);
    arrived();
  };
  let buffer = new ArrayBuffer(limits.nbdPortWindowBytes);
  for (const [round, length] of [limits.nbdPortWindowBytes, 60_000, 100, 262_144].entries()) {
    const bytes = new Uint8Array(buffer, 0, length);
    bytes.set(pattern(length, round));
    const next = new Promise<void>((resolve) => arrived = resolve);
    const returned = Promise.withResolvers<ArrayBuffer>();
    assertEquals(stream.writeAway(bytes, returned.resolve), undefined);
    assertEquals(bytes.byteLength, 0);
    await next;
    const message = messages.at(-1) ?? new Uint8Array(0);
    assertEquals(message, pattern(length, round));
    if (round === 0) {
      // The window is full: the next waits for credit.
      const more = stream.writeAway(pattern(10, 99), returned.resolve);
      const later = new Promise<void>((resolve) => arrived = resolve);
      credit(port1, message);
      await more;
      await later;
      assertEquals(messages.at(-1), pattern(10, 99));
    } else credit(port1, message);
    buffer = await returned.promise;
    assertEquals(buffer.byteLength, limits.nbdPortWindowBytes);
  }
  stream.close("over");
  port1.close();
});

/** As a receiver that is done with a message. */
function credit(port: MessagePort, { length, buffer }: Uint8Array<ArrayBuffer>): void {
  const message: NbdPortMessage = { type: "credit", byteCount: length, buffers: [buffer] };
  port.postMessage(message, [buffer]);
}

Deno.test("OutputQueue gives chunks away where the stream takes them, and uses them again", () => {
  const written: string[] = [];
  const away: ArrayBuffer[] = [];
  let giveBack: (buffer: ArrayBuffer) => void = () => {};
  const stream: ByteStream = {
    peer: "test",
    start: () => {},
    write: (bytes) => void written.push(`copied ${bytes.length}`),
    writeAway: (bytes, onReturned) => {
      written.push(`away ${bytes.length}`);
      giveBack = onReturned;
      away.push(structuredClone(bytes.buffer, { transfer: [bytes.buffer] }));
    },
    pause: () => {},
    resume: () => {},
    close: () => {},
  };
  const queue = new OutputQueue(stream, new ChunkPool(), {
    onProgress: () => {},
    onBroken: (error) => {
      throw error;
    },
  });
  const send = (length: number) => {
    const chunk = queue.reserve(length);
    queue.commit(length);
    queue.flush();
    assertEquals(queue.pendingBytes, 0);
    return chunk;
  };
  const small = send(100);
  const large = send(200_000);
  assert(small === large, "a chunk that was copied from is used again");
  const buffer = away[0] ?? new ArrayBuffer(0);
  assertEquals(large.bytes.length, 0);
  assert(send(200_000).bytes.length === 0);
  giveBack(buffer);
  assert(queue.reserve(10).bytes.buffer === buffer);
  assertEquals(written, ["copied 100", "away 200000", "away 200000"]);
});

Deno.test("relayWebSocket() carries sessions", async () => {
  const exported = new MemoryExport(pattern(16 * MiB));
  await using server = closing(new NbdServer({ directory: directoryOf(exported) }));
  await using relay = serveWebSocket(server);
  const socket = new WebSocket(relay.url, ["nbd"]);
  const stream = new WebSocketStream(socket);
  await new Promise((resolve) => socket.addEventListener("open", resolve));
  await exercise(stream, exported);
  await relay.reasons[0];
});

/** Opens a raw WebSocket and resolves with how it was closed. */
function closeOf(socket: WebSocket): Promise<CloseEvent> {
  return new Promise((resolve) => socket.addEventListener("close", resolve, { once: true }));
}

Deno.test("relayWebSocket() closes on text with 1003", async () => {
  const exported = new MemoryExport(pattern(512));
  await using server = closing(new NbdServer({ directory: directoryOf(exported) }));
  await using relay = serveWebSocket(server);
  const socket = new WebSocket(relay.url, ["nbd"]);
  const closed = closeOf(socket);
  socket.onopen = () => socket.send("NBDMAGIC");
  assertEquals((await closed).code, 1003);
  assertEquals(await relay.reasons[0], "NBD needs binary messages");
});

Deno.test("relayWebSocket() closes with the session's reason on garbage", async () => {
  const exported = new MemoryExport(pattern(512));
  await using server = closing(new NbdServer({ directory: directoryOf(exported) }));
  await using relay = serveWebSocket(server);
  const socket = new WebSocket(relay.url, ["nbd"]);
  const closed = closeOf(socket);
  socket.onopen = () => socket.send(pattern(100));
  const { code, reason } = await closed;
  assertEquals(code, 1000);
  assert(reason.startsWith("unknown client flags"), reason);
});

Deno.test("relayWebSocket() cuts off a client that sends more than it may", async () => {
  // A session that never takes anything: the other end of the port is silent.
  const { port1, port2 } = new MessageChannel();
  let relayed: Promise<string> = Promise.resolve("");
  const http = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen: () => {} }, (incoming) => {
    const { socket, response } = Deno.upgradeWebSocket(incoming);
    relayed = relayWebSocket(socket, port1);
    return response;
  });
  const socket = new WebSocket(`ws://127.0.0.1:${http.addr.port}`);
  const closed = closeOf(socket);
  await new Promise((resolve) => socket.addEventListener("open", resolve));
  const frame = new Uint8Array(4 * MiB);
  for (let sent = 0; sent <= limits.nbdWebSocketQueueBytes; sent += frame.length) {
    socket.send(frame);
  }
  assertEquals((await closed).code, 1008);
  assertEquals(await relayed, "more bytes than the server is ready to hold");
  port2.close();
  await http.shutdown();
});

Deno.test("relayWebSocket() stops asking for replies while the client does not read", async () => {
  const exported = new MemoryExport(pattern(32 * MiB));
  await using server = closing(new NbdServer({ directory: directoryOf(exported) }));
  await using relay = serveWebSocket(server);
  // A client of our own, below WebSocket's API, which could not refrain from reading.
  const { hostname, port } = new URL(relay.url);
  const conn = await Deno.connect({ hostname, port: Number(port) });
  await conn.write(new TextEncoder().encode([
    "GET / HTTP/1.1",
    `Host: ${hostname}:${port}`,
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Protocol: nbd",
    "\r\n",
  ].join("\r\n")));
  const response = new Uint8Array(4096);
  await conn.read(response);
  assert(new TextDecoder().decode(response).startsWith("HTTP/1.1 101"));
  const reads = Array.from(
    { length: 64 },
    (_, cookie) => toHex(request({ type: 0, cookie, length: MiB })),
  );
  await conn.write(frame(hex(toHex(CLIENT_FLAGS), toHex(go()), ...reads)));
  const count = () => exported.calls.filter((call) => call === `read 0+${MiB}`).length;
  // It is at rest when a second, well-behaved client sees no more reads happen.
  const other = await NbdClient.connect(
    await connectTcp(
      server.listenTcp({ host: "127.0.0.1", port: 0 }),
    ),
  );
  let before = -1;
  for (let rounds = 0; rounds < 100 && (before !== count() || before === 0); rounds++) {
    before = count();
    for (let turn = 0; turn < 200; turn++) await other.read(0, 512);
  }
  // Window, buffer, session queue and the kernel's buffers, in MiB; far from 64.
  assert(before < 32, `${before} of 64 reads executed for a client that reads nothing`);
  await other.close();
  conn.close();
  await relay.reasons[0];
});

/** One binary WebSocket frame of a client's, masked with zeroes (RFC 6455, section 5.2). */
function frame(payload: Uint8Array): Uint8Array {
  const length = payload.length.toString(16).padStart(4, "0");
  return hex("82", "fe", length, "00000000", toHex(payload));
}
