import { setImmediate } from "node:timers";
import { assert, assertEquals } from "@std/assert";
import { limits } from "../../src/limits.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { directoryOf, MemoryExport } from "../support/memory_export.ts";
import {
  be,
  CLIENT_FLAGS,
  FedStream,
  go,
  hex,
  option,
  pattern,
  request,
  startSession,
  startTransmission,
  toHex,
} from "../support/nbd.ts";

const READ = 0, WRITE = 1, DISC = 2, FLUSH = 3;
const MiB = 1024 * 1024;

/** Promises of the export that the test resolves by hand, in any order. */
class Gate {
  readonly waiting: (() => void)[] = [];
  readonly before = () => new Promise<void>((resolve) => this.waiting.push(resolve));
}

/** Lets everything run that is ready. */
async function settle(): Promise<void> {
  for (let turn = 0; turn < 50; turn++) await Promise.resolve();
}

/** Cookies of the structured replies in a stream of replies without data beyond 4 KiB. */
function cookies(reply: Uint8Array): number[] {
  const view = new DataView(reply.buffer, reply.byteOffset);
  const found: number[] = [];
  for (let at = 0; at < reply.length; at += 20 + view.getUint32(at + 16)) {
    assertEquals(view.getUint32(at), 0x668e33ef);
    found.push(Number(view.getBigUint64(at + 8)));
  }
  return found;
}

Deno.test("NbdSession gives a silent handshake up after its deadline", async () => {
  const { stream, session } = startSession(new MemoryExport(pattern(512)), { handshakeMs: 5 });
  stream.feed(CLIENT_FLAGS);
  assertEquals(await session.closed, "the handshake took too long");
  assertEquals(stream.closedWith, "the handshake took too long");
});

Deno.test("NbdSession lets an idle client in transmission be", async () => {
  const { stream } = startTransmission(new MemoryExport(pattern(512)), { handshakeMs: 5 });
  await new Promise((resolve) => setTimeout(resolve, 20));
  assertEquals(stream.closedWith, null);
  stream.finish("over");
});

Deno.test("NbdSession answers many requests of one input with one write", () => {
  const { stream } = startTransmission(new MemoryExport(pattern(4096)));
  stream.writeCount = 0;
  const requests = Array.from(
    { length: 32 },
    (_, at) => toHex(request({ type: READ, cookie: at, offset: 16 * at, length: 16 })),
  );
  stream.feed(hex(...requests));
  assertEquals(stream.writeCount, 1);
  assertEquals(cookies(stream.take()), Array.from({ length: 32 }, (_, at) => at));
  stream.finish("over");
});

Deno.test("NbdSession answers in the order in which an export finishes", async () => {
  const gate = new Gate();
  const exported = new MemoryExport(pattern(4096), { before: gate.before });
  const { stream } = startTransmission(exported);
  for (let cookie = 0; cookie < 4; cookie++) {
    stream.feed(request({ type: READ, cookie, offset: cookie, length: 8 }));
  }
  assertEquals(stream.take().length, 0);
  for (const at of [2, 0, 3, 1]) {
    gate.waiting[at]?.();
    await settle();
  }
  const reply = stream.take();
  assertEquals(cookies(reply), [2, 0, 3, 1]);
  assertEquals(toHex(reply.subarray(28, 36)), toHex(exported.bytes.subarray(2, 10)));
  stream.finish("over");
});

Deno.test("NbdSession answers each of several requests with one cookie", async () => {
  const gate = new Gate();
  const { stream } = startTransmission(new MemoryExport(pattern(64), { before: gate.before }));
  for (let count = 0; count < 3; count++) stream.feed(request({ type: FLUSH, cookie: 9 }));
  for (const open of gate.waiting) open();
  await settle();
  assertEquals(cookies(stream.take()), [9, 9, 9]);
  stream.finish("over");
});

Deno.test("NbdSession keeps a late write's payload intact while more input comes", async () => {
  const gate = new Gate();
  const exported = new MemoryExport(new Uint8Array(4096), { before: gate.before });
  const { stream } = startTransmission(exported);
  for (let at = 0; at < 4; at++) {
    stream.feed(request({ type: WRITE, offset: 512 * at, payload: pattern(512, at) }));
  }
  for (const open of gate.waiting) open();
  await settle();
  for (let at = 0; at < 4; at++) {
    assertEquals(exported.bytes.subarray(512 * at, 512 * at + 512), pattern(512, at));
  }
  stream.finish("over");
});

Deno.test("NbdSession holds requests beyond those in flight back for later", async () => {
  const gate = new Gate();
  const { stream } = startTransmission(new MemoryExport(pattern(64), { before: gate.before }));
  const requests = Array.from(
    { length: 100 },
    (_, cookie) => toHex(request({ type: FLUSH, cookie })),
  );
  stream.feed(hex(...requests));
  assertEquals(gate.waiting.length, limits.nbdRequestsInFlight);
  assertEquals(stream.isPaused, true);
  while (gate.waiting.length > 0) {
    gate.waiting.shift()?.();
    await settle();
  }
  assertEquals(stream.isPaused, false);
  assertEquals(cookies(stream.take()), Array.from({ length: 100 }, (_, at) => at));
  stream.finish("over");
});

Deno.test("NbdSession takes no more bytes than may be in flight", () => {
  const gate = new Gate();
  const exported = new MemoryExport(pattern(32 * MiB), {
    before: (operation) => operation === "read" ? gate.before() : undefined,
  });
  const { stream } = startTransmission(exported);
  const requests = Array.from(
    { length: 64 },
    (_, cookie) => toHex(request({ type: READ, cookie, length: 32 * MiB })),
  );
  stream.feed(hex(...requests));
  // The first answered "later", the others are bounded.
  assert(gate.waiting.length <= 4, `${gate.waiting.length} reads of 32 MiB at a time`);
  assertEquals(stream.isPaused, true);
  stream.finish("over");
});

Deno.test("NbdSession queues little for a client that never reads", () => {
  const exported = new MemoryExport(pattern(32 * MiB));
  for (const style of ["simple", "structured"] as const) {
    const { stream } = startTransmission(exported, { style });
    stream.isHolding = true;
    exported.calls.length = 0;
    const length = style === "simple" ? MiB : 32 * MiB;
    const requests = Array.from(
      { length: 64 },
      (_, cookie) => toHex(request({ type: READ, cookie, length })),
    );
    stream.feed(hex(...requests));
    const readBytes = exported.calls
      .map((call) => /^read \d+\+(\d+)/.exec(call)?.[1])
      .reduce((sum, bytes) => sum + Number(bytes ?? 0), 0);
    assert(readBytes <= limits.nbdOutputBytes + MiB, `${readBytes} bytes read for nobody`);
    assertEquals(stream.isPaused, true);
    stream.finish("gone");
    assertEquals(stream.closedWith, "gone");
  }
});

Deno.test("NbdSession goes on with a large read as its client reads", async () => {
  const exported = new MemoryExport(pattern(8 * MiB));
  const { stream } = startTransmission(exported);
  stream.isHolding = true;
  stream.feed(request({ type: READ, length: 8 * MiB }));
  let received = 0;
  while (received < 8 * MiB) {
    const before = received;
    received += stream.take().length;
    stream.release();
    await settle();
    assert(received > before || stream.sent.length > 0, "stuck");
  }
  stream.finish("over");
});

Deno.test("NbdSession lets others have a turn and goes on with its input then", async () => {
  const exported = new MemoryExport(pattern(512));
  const { stream } = startTransmission(exported, { turnMs: 0 });
  const requests = Array.from(
    { length: 100 },
    (_, cookie) => toHex(request({ type: FLUSH, cookie })),
  );
  stream.feed(hex(...requests));
  assert(exported.calls.length < 100, "one connection did all its work in one turn");
  assertEquals(stream.isPaused, true);
  for (let turn = 0; turn < 100; turn++) await new Promise((resolve) => setImmediate(resolve));
  assertEquals(cookies(stream.take()), Array.from({ length: 100 }, (_, at) => at));
  assertEquals(stream.isPaused, false);
  stream.finish("over");
});

Deno.test("NbdSession answers what a client asked before it shut its side down", async () => {
  const gate = new Gate();
  const { stream, session } = startTransmission(
    new MemoryExport(pattern(64), { before: gate.before }),
  );
  stream.feed(request({ type: READ, cookie: 1, length: 8 }));
  stream.feed(request({ type: READ, cookie: 2, length: 8 }));
  stream.finish();
  assertEquals(stream.closedWith, null);
  for (const open of gate.waiting) open();
  assertEquals(await session.closed, "the client closed the connection");
  assertEquals(cookies(stream.take()), [1, 2]);
});

Deno.test("NbdSession answers requests in flight before it closes on DISC", async () => {
  const gate = new Gate();
  const { stream, session } = startTransmission(
    new MemoryExport(pattern(64), { before: gate.before }),
  );
  for (let cookie = 0; cookie < 16; cookie++) {
    stream.feed(request({ type: READ, cookie, length: 8 }));
  }
  stream.feed(request({ type: DISC }));
  assertEquals(stream.closedWith, null);
  for (const open of gate.waiting) open();
  await session.closed;
  assertEquals(cookies(stream.take()), Array.from({ length: 16 }, (_, at) => at));
});

Deno.test("NbdSession survives a client that vanishes with requests in flight", async () => {
  const gate = new Gate();
  const { stream, session } = startTransmission(
    new MemoryExport(pattern(64), { before: gate.before }),
  );
  stream.feed(request({ type: READ, length: 8 }));
  stream.finish("connection reset");
  assertEquals(stream.closedWith, "connection reset");
  let isClosed = false;
  session.closed.then(() => isClosed = true);
  await settle();
  assertEquals(isClosed, false);
  for (const open of gate.waiting) open();
  assertEquals(await session.closed, "connection reset");
});

Deno.test("NbdSession cuts a client off that does not take the last replies", async () => {
  const { stream, session } = startTransmission(new MemoryExport(pattern(64)), { closeMs: 5 });
  stream.isHolding = true;
  stream.feed(request({ type: READ, length: 8 }));
  stream.feed(request({ type: DISC }));
  assertEquals(await session.closed, "the client disconnected");
  stream.release();
});

Deno.test("NbdServer.closeExport() ends sessions after what is in flight", async () => {
  const gate = new Gate();
  const held = new MemoryExport(pattern(64), { before: gate.before });
  const other = new MemoryExport(pattern(64), { name: "other" });
  const server = new NbdServer({ directory: directoryOf(held, other) });
  const streams = ["", "other"].map((name) => {
    const stream = new FedStream();
    server.serve(stream);
    stream.feed(CLIENT_FLAGS);
    stream.feed(option(8));
    stream.feed(option(7, hex(be(4, name.length), `'${name}'`, "0000")));
    stream.take();
    return stream;
  });
  const [first, second] = streams;
  first?.feed(request({ type: READ, cookie: 5, length: 8 }));
  let isClosed = false;
  const closing = server.closeExport("mem").then(() => isClosed = true);
  await settle();
  assertEquals(isClosed, false);
  for (const open of gate.waiting) open();
  await closing;
  assertEquals(cookies(first?.take() ?? new Uint8Array(0)), [5]);
  assertEquals(first?.closedWith, "export mem went away");
  assertEquals(second?.closedWith, null);
  assertEquals(server.connections, { open: 1, accepted: 2, refused: 0, cutOff: 0, secured: 0 });
  await server.close();
  assertEquals(second?.closedWith, "the server is stopping");
});

Deno.test("NbdServer.closeExport() answers ESHUTDOWN to what was not begun", async () => {
  const gate = new Gate();
  const server = new NbdServer({
    directory: directoryOf(new MemoryExport(pattern(64), { before: gate.before })),
  });
  const stream = new FedStream();
  server.serve(stream);
  stream.feed(CLIENT_FLAGS);
  stream.feed(go());
  stream.take();
  const requests = Array.from(
    { length: 70 },
    (_, cookie) => toHex(request({ type: FLUSH, cookie })),
  );
  stream.feed(hex(...requests));
  const closing = server.closeExport("mem");
  for (const open of gate.waiting) open();
  await closing;
  await settle();
  const reply = stream.take();
  const view = new DataView(reply.buffer);
  const errors = Array.from({ length: 70 }, (_, at) => view.getUint32(16 * at + 4));
  assertEquals(errors, [...new Array(64).fill(0), ...new Array(6).fill(108)]);
  await server.close();
});

Deno.test("NbdServer.serve() refuses more connections than it may have", async () => {
  const server = new NbdServer({
    directory: directoryOf(new MemoryExport(pattern(64))),
    connectionsMax: 1,
  });
  const streams = [new FedStream(), new FedStream()];
  for (const stream of streams) server.serve(stream);
  assertEquals(streams.map((stream) => stream.closedWith), [null, "too many connections"]);
  assertEquals(server.connections, { open: 1, accepted: 2, refused: 1, cutOff: 0, secured: 0 });
  await server.close();
});
