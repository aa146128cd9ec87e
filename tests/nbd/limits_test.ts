// What slow, silent and greedy clients cost: nothing that lasts, and nothing that others feel.
import { assert, assertEquals } from "@std/assert";
import { limits } from "../../src/limits.ts";
import { concatBytes } from "../../src/nbd/codec.ts";
import { NbdServer, type NbdServerOptions } from "../../src/nbd/server.ts";
import { NbdSession } from "../../src/nbd/session.ts";
import { securableServer } from "../../src/nbd/transports/tls.ts";
import { makeCertificates } from "../support/certificates.ts";
import { needs } from "../support/clients.ts";
import { FakeClock, settleAll } from "../support/fake_clock.ts";
import { directoryOf, MemoryExport, type MemoryExportOptions } from "../support/memory_export.ts";
import { CLIENT_FLAGS, FedStream, go, option, pattern, request } from "../support/nbd.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const READ = 0;
const WRITE = 1;

interface Bench {
  server: NbdServer;
  clock: FakeClock;
  exported: MemoryExport;
  /** A client in transmission, with simple replies. */
  connect: () => FedStream;
}

function start(
  options: Partial<NbdServerOptions> = {},
  exportOptions: MemoryExportOptions = {},
): Bench {
  const clock = new FakeClock();
  const exported = new MemoryExport(pattern(8 * MiB), exportOptions);
  const server = new NbdServer({ directory: directoryOf(exported), clock, ...options });
  return {
    server,
    clock,
    exported,
    connect: () => {
      const stream = new FedStream();
      server.serve(stream);
      stream.feed(concatBytes([CLIENT_FLAGS, go()]));
      stream.take();
      return stream;
    },
  };
}

/** Lets a held stream take everything, in as many writes as it gets. */
async function readAll(stream: FedStream): Promise<void> {
  stream.isHolding = false;
  stream.release();
  await settleAll();
}

Deno.test("NbdServer ends connections that ask nothing for a day", async () => {
  const { server, clock, connect } = start();
  const idle = connect();
  const active = connect();
  const half = limits.nbdIdleMs / 2;
  await clock.advance(half);
  active.feed(request({ type: READ, length: 512 }));
  await clock.advance(half + 2 * limits.nbdSweepMs);
  assertEquals(idle.closedWith, "no request for long");
  assertEquals(active.closedWith, null);
  assertEquals(server.connections.cutOff, 1);
  await clock.advance(half);
  assertEquals(active.closedWith, "no request for long");
  // Nobody is there to be looked after any more.
  assertEquals(clock.timerCount, 0);
  await server.close();
});

Deno.test("NbdServer cuts off who stops in the middle of a write", async () => {
  const { server, clock, connect } = start();
  const stream = connect();
  stream.feed(request({ type: WRITE, payload: pattern(MiB) }).subarray(0, 100_000));
  assert(server.statistics.bufferedBytes > 0);
  await clock.advance(limits.nbdStallMs - limits.nbdSweepMs);
  assertEquals(stream.closedWith, null);
  await clock.advance(2 * limits.nbdSweepMs);
  assertEquals(stream.closedWith, "the client stopped in the middle");
  assertEquals(server.statistics.bufferedBytes, 0);
  await server.close();
});

Deno.test("NbdServer cuts off who takes no replies, not who waits for the disk", async () => {
  let release = () => {};
  const held = new Promise<void>((resolve) => release = resolve);
  const { server, clock, connect } = start({}, {
    before: (operation) => operation === "flush" ? held : undefined,
  });
  const deaf = connect();
  deaf.isHolding = true;
  deaf.feed(request({ type: READ, length: MiB }));
  const waiting = connect();
  waiting.feed(request({ type: 3 }));
  await clock.advance(limits.nbdStallMs + 2 * limits.nbdSweepMs);
  assertEquals(deaf.closedWith, "the client stopped in the middle");
  assertEquals(waiting.closedWith, null);
  assertEquals(server.statistics.inFlight, 1);
  release();
  await settleAll();
  assertEquals(waiting.take().length, 16);
  deaf.release();
  await server.close();
});

Deno.test("NbdServer begins nothing while its connections hold too much, and goes on", async () => {
  const { server, connect } = start({ bufferedBytesMax: MiB });
  const greedy = connect();
  greedy.isHolding = true;
  greedy.feed(request({ type: READ, length: 2 * MiB }));
  const others = [connect(), connect(), connect()];
  for (const other of others) other.feed(request({ type: READ, length: 4096 }));
  await settleAll();
  assertEquals(others.map((other) => other.take().length), [0, 0, 0]);
  assert(others.every(({ isPaused }) => isPaused));
  await readAll(greedy);
  assertEquals(others.map((other) => other.take().length), [4112, 4112, 4112]);
  assert(others.every(({ isPaused }) => !isPaused));
  assertEquals(server.statistics.bufferedBytes, 0);
  await server.close();
});

Deno.test("NbdServer cuts off who holds most when nothing moves any more", async () => {
  const { server, clock, connect } = start({ bufferedBytesMax: MiB });
  const modest = connect();
  modest.isHolding = true;
  modest.feed(request({ type: READ, length: 64 * KiB }));
  const greedy = connect();
  greedy.isHolding = true;
  greedy.feed(request({ type: READ, length: 2 * MiB }));
  const other = connect();
  other.feed(request({ type: READ, length: 4096 }));
  await clock.advance(limits.nbdSweepMs);
  await clock.advance(limits.nbdSweepMs);
  assertEquals(greedy.closedWith, "others wait for what this client holds");
  greedy.release();
  await settleAll();
  assertEquals(other.take().length, 4112);
  assertEquals(modest.closedWith, null);
  modest.release();
  await server.close();
});

Deno.test("NbdServer bounds what half-sent writes of many clients take", async () => {
  const { server, clock, exported, connect } = start({ bufferedBytesMax: 4 * MiB });
  const streams = Array.from({ length: 32 }, connect);
  const bytes = request({ type: WRITE, payload: pattern(4 * MiB) });
  // A paused stream takes nothing more, as a socket would.
  for (let at = 0; at < 3 * MiB; at += 64 * KiB) {
    for (const stream of streams) {
      if (!stream.isPaused) stream.feed(bytes.subarray(at, at + 64 * KiB));
    }
  }
  const { bufferedBytes } = server.statistics;
  assert(bufferedBytes >= 4 * MiB && bufferedBytes < 8 * MiB, `${bufferedBytes}`);
  // An honest client gets its turn in the end.
  const honest = connect();
  honest.feed(request({ type: WRITE, payload: pattern(512, 5) }));
  for (let sweeps = 0; sweeps < 40 && honest.sent.length === 0; sweeps++) {
    await clock.advance(limits.nbdSweepMs);
  }
  assertEquals(honest.take().length, 16);
  assertEquals(exported.bytes.slice(0, 512), pattern(512, 5));
  await server.close();
  assertEquals(server.statistics.bufferedBytes, 0);
});

Deno.test("NbdServer.statistics counts what was asked and answered", async () => {
  const { server, connect } = start();
  const stream = connect();
  stream.feed(concatBytes([
    request({ type: READ, length: 4096 }),
    request({ type: READ, offset: 8 * MiB, length: 1 }),
    request({ type: WRITE, payload: pattern(512) }),
    request({ type: 3 }),
    request({ type: 77 }),
  ]));
  const { requests, failedRequests, inFlight, connections } = server.statistics;
  assertEquals(requests.read, { count: 2, bytes: 4096 });
  assertEquals(requests.write, { count: 1, bytes: 512 });
  assertEquals(requests.flush.count, 1);
  assertEquals(requests.other, { count: 1, bytes: 0 });
  assertEquals([failedRequests, inFlight, connections.open], [2, 0, 1]);
  await server.close();
});

Deno.test({
  name: "NbdSession gives up on clients that never begin TLS, or speak something else",
  ...needs("openssl"),
  fn: async () => {
    await using certificates = await makeCertificates();
    for (const garbage of [false, true]) {
      const stream = new FedStream();
      const secured = securableServer(stream, {
        cert: certificates.read("server-cert.pem"),
        key: certificates.read("server-key.pem"),
      });
      const session = new NbdSession(secured, {
        directory: directoryOf(new MemoryExport(pattern(512))),
        tlsMode: "required",
        handshakeMs: garbage ? 60_000 : 30,
      });
      session.start();
      stream.feed(concatBytes([CLIENT_FLAGS, option(5)]));
      if (garbage) stream.feed(pattern(4096));
      const reason = await session.closed;
      assert(garbage ? reason.startsWith("TLS") : reason === "the handshake took too long", reason);
      assert(stream.closedWith !== null);
    }
  },
});
