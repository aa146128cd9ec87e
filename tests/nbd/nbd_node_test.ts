import { assert, assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../src/block/errors.ts";
import { IoVector } from "../../src/block/io_vector.ts";
import {
  REQ_FUA,
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
} from "../../src/block/types.ts";
import { formatNbdUri, parseNbdFilename } from "../../src/nbd/address.ts";
import { NbdNode, type NbdNodeOptions } from "../../src/nbd/nbd_node.ts";
import { NbdSession } from "../../src/nbd/session.ts";
import { needs } from "../support/clients.ts";
import { FakeClock, settleAll } from "../support/fake_clock.ts";
import { directoryOf, MemoryExport, type MemoryExportOptions } from "../support/memory_export.ts";
import { pattern, streamPair } from "../support/nbd.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const SERVER = { type: "inet", host: "test", port: 1 } as const;

/** A server in memory that can be unreachable, and cut connections. */
class Server {
  exported: MemoryExport;
  isUp = true;
  attempts = 0;
  readonly sessions: NbdSession[] = [];
  readonly #cuts: (() => void)[] = [];

  constructor(bytes: Uint8Array<ArrayBuffer>, options: MemoryExportOptions = {}) {
    this.exported = new MemoryExport(bytes, options);
  }

  connect = () => {
    this.attempts++;
    if (!this.isUp) return Promise.reject(new BlockError("EIO", "Connection refused"));
    const [ours, theirs] = streamPair();
    const session = new NbdSession(theirs, { directory: directoryOf(this.exported) });
    session.start();
    this.sessions.push(session);
    this.#cuts.push(() => theirs.close("cut"));
    return Promise.resolve(ours);
  };

  /** Cuts all connections. */
  cut(): void {
    for (const cut of this.#cuts.splice(0)) cut();
  }

  open(options: Partial<NbdNodeOptions> = {}): Promise<NbdNode> {
    return NbdNode.open({ nodeName: "remote", server: SERVER, connect: this.connect, ...options });
  }
}

async function readAll(node: NbdNode, offset: number, length: number): Promise<Uint8Array> {
  const target = new Uint8Array(length);
  await node.read(offset, IoVector.of(target));
  return target;
}

Deno.test("NbdNode does every request, of a size that is no multiple of 512", async () => {
  const server = new Server(pattern(MiB + 77));
  const node = await server.open();
  assertEquals(node.sizeBytes, MiB + 77);
  assertEquals(await readAll(node, MiB - 3, 80), server.exported.bytes.slice(MiB - 3));
  const parts = [new Uint8Array(100), new Uint8Array(0), new Uint8Array(new SharedArrayBuffer(50))];
  await node.read(1000, new IoVector(parts));
  assertEquals(parts[0], server.exported.bytes.slice(1000, 1100));
  assertEquals(parts[2]?.slice(), server.exported.bytes.slice(1100, 1150));
  parts[2]?.fill(7);
  await node.write(MiB, new IoVector([...parts.slice(2), Uint8Array.of(9)]), REQ_FUA);
  assertEquals(server.exported.calls.slice(-2), [`write ${MiB}+51`, "flush 0+0"]);
  assertEquals(server.exported.bytes.slice(MiB + 48, MiB + 51), Uint8Array.of(7, 7, 9));
  await node.writeZeroes(4096, 8192, REQ_MAY_UNMAP);
  assertEquals(server.exported.calls.at(-1), `writeZeroes 4096+8192 flags ${REQ_MAY_UNMAP}`);
  await assertRejects(
    async () => await node.writeZeroes(4096, 8191, REQ_NO_FALLBACK),
    BlockError,
    "not fast",
  );
  await node.discard(MiB, 77);
  await node.flush();
  assertEquals(server.exported.calls.slice(-2), [`discard ${MiB}+77`, "flush 0+0"]);
  assertEquals(await node.blockStatus(4096, 65536), {
    length: 8192,
    flags: STATUS_ZERO | STATUS_ALLOCATED,
  });
  assertEquals(await node.blockStatus(0, 1000), {
    length: 1000,
    flags: STATUS_DATA | STATUS_ALLOCATED,
  });
  assertEquals(node.details()["filename"], "nbd://test:1");
  await node.close();
});

Deno.test("NbdNode shows another meta context as block status when told to", async () => {
  const server = new Server(pattern(MiB), { forbidden: [{ offset: 0, length: 4096 }] });
  const node = await server.open({ statusContext: "x-ovis:access" });
  assertEquals(await node.blockStatus(0, MiB), { length: 4096, flags: STATUS_ALLOCATED });
  await assertRejects(() => readAll(node, 0, 10), BlockError, "may not be read");
  await node.close();
});

Deno.test("NbdNode.open() refuses a read-only export for writing, unless it may yield", async () => {
  const server = new Server(pattern(MiB), { isReadOnly: true });
  await assertRejects(
    () => server.open(),
    BlockError,
    "request on write denied without write permission",
  );
  for (const options of [{ isReadOnly: true }, { isAutoReadOnly: true }]) {
    const node = await server.open(options);
    assert(node.isReadOnly);
    await node.close();
  }
});

Deno.test("NbdNode.open() says what a server has not", async () => {
  const server = new Server(pattern(MiB));
  await assertRejects(
    () => server.open({ exportName: "other" }),
    BlockError,
    "Requested export not available",
  );
  assertEquals(server.attempts, 1);
});

Deno.test("NbdNode.open() attempts until openTimeoutMs has passed", async () => {
  const server = new Server(pattern(MiB));
  server.isUp = false;
  const clock = new FakeClock();
  const failing = assertRejects(
    () => server.open({ openTimeoutMs: 5_000, clock }),
    BlockError,
    "refused",
  );
  for (let second = 0; second < 6; second++) await clock.advance(1_000);
  await failing;
  assertEquals(server.attempts, 4); // after 0, 1, 3 and 5 seconds
  assertEquals(clock.timerCount, 0);

  const opening = server.open({ openTimeoutMs: 5_000, clock });
  await clock.advance(500);
  server.isUp = true;
  await clock.advance(1_000);
  const node = await opening;
  assertEquals(clock.timerCount, 0);
  await node.close();
});

Deno.test("NbdNode sends what was in flight again when the connection broke", async () => {
  let release = () => {};
  let held = new Promise<void>((resolve) => release = resolve);
  const server = new Server(pattern(MiB), { before: () => held });
  const clock = new FakeClock();
  const node = await server.open({ reconnectDelayMs: 10_000, clock });
  const reading = readAll(node, 0, 1000);
  const writing = node.write(5000, IoVector.of(pattern(100, 3)));
  await settleAll();
  assertEquals(server.exported.calls.length, 2);
  server.isUp = false;
  server.cut();
  await settleAll();
  const late = readAll(node, 5000, 100);
  await clock.advance(4_000);
  server.isUp = true;
  held = Promise.resolve();
  await clock.advance(4_000);
  assertEquals(await reading, pattern(1000));
  await writing;
  assertEquals((await late).length, 100);
  assertEquals(await readAll(node, 5000, 100), pattern(100, 3));
  assertEquals(node.details()["reconnects"], 1);
  assertEquals(clock.timerCount, 0);
  release();
  await node.close();
});

Deno.test("NbdNode fails requests once reconnectDelayMs has passed, and recovers later", async () => {
  const server = new Server(pattern(MiB));
  const clock = new FakeClock();
  const node = await server.open({ reconnectDelayMs: 3_000, clock });
  server.isUp = false;
  server.cut();
  await settleAll();
  const failing = assertRejects(() => readAll(node, 0, 10), BlockError, "refused");
  await clock.advance(3_001);
  await failing;
  await assertRejects(() => readAll(node, 0, 10), BlockError, "refused");
  server.isUp = true;
  // The first request that comes after it fails, and starts the attempt that succeeds.
  await readAll(node, 0, 10).catch(() => {});
  await settleAll();
  assertEquals(await readAll(node, 0, 10), pattern(10));
  assertEquals(clock.timerCount, 0);
  await node.close();
});

Deno.test("NbdNode.cancelInFlight() fails what waits for the server, which may come back", async () => {
  const server = new Server(pattern(MiB));
  const clock = new FakeClock();
  const node = await server.open({ reconnectDelayMs: 60_000, clock });
  node.cancelInFlight();
  assertEquals(await readAll(node, 0, 10), pattern(10), "what does not wait goes on");
  server.isUp = false;
  server.cut();
  await settleAll();
  const failing = assertRejects(() => readAll(node, 0, 10), BlockError, "refused");
  await settleAll();
  node.cancelInFlight();
  await failing;
  server.isUp = true;
  // The attempt that was under way has its time.
  await clock.advance(1_000);
  await readAll(node, 0, 10).catch(() => {});
  await settleAll();
  assertEquals(await readAll(node, 0, 10), pattern(10));
  await node.close();
  assertEquals(clock.timerCount, 0);
});

Deno.test("NbdNode without a delay fails what was in flight, and reconnects", async () => {
  const server = new Server(pattern(MiB), { before: () => new Promise(() => {}) });
  const node = await server.open();
  const failing = assertRejects(() => readAll(node, 0, 10), BlockError);
  await settleAll();
  server.cut();
  await failing;
  server.exported = new MemoryExport(pattern(MiB));
  await readAll(node, 0, 10).catch(() => {});
  await settleAll();
  assertEquals(await readAll(node, 0, 10), pattern(10));
  await node.close();
});

Deno.test("NbdNode refuses to go on with another export than it had", async () => {
  const server = new Server(pattern(MiB));
  const clock = new FakeClock();
  const node = await server.open({ reconnectDelayMs: 1_000, clock });
  server.exported = new MemoryExport(pattern(2 * MiB));
  server.cut();
  await settleAll();
  const failing = assertRejects(() => readAll(node, 0, 10), BlockError, "not the one");
  await clock.advance(1_001);
  await failing;
  await node.close();
  assertEquals(clock.timerCount, 0);
});

Deno.test("NbdNode.close() ends requests that wait for a connection", async () => {
  const server = new Server(pattern(MiB));
  const clock = new FakeClock();
  const node = await server.open({ reconnectDelayMs: 60_000, clock });
  server.isUp = false;
  server.cut();
  await settleAll();
  const failing = assertRejects(() => readAll(node, 0, 10), BlockError);
  await settleAll();
  await node.close();
  await failing;
  assertEquals(clock.timerCount, 0);
});

Deno.test("NbdNode spreads requests over connections where the server allows several", async () => {
  for (const canMultiConn of [true, false]) {
    const server = new Server(pattern(MiB), { canMultiConn });
    const node = await server.open({ connections: 3 });
    assertEquals(node.details()["connections"], canMultiConn ? 3 : 1);
    await Promise.all([0, 1, 2, 3].map((at) => readAll(node, at * 1000, 1000)));
    await node.close();
    await Promise.all(server.sessions.map((session) => session.closed));
  }
});

Deno.test({
  name: "NbdNode keeps to a server's blocks and writes what does not fill them",
  ...needs("nbdkit"),
  fn: async () => {
    const directory = await Deno.makeTempDir();
    const path = `${directory}/nbd.sock`;
    const args = ["-f", "-U", path, "--filter=blocksize-policy", "memory", "8192"];
    const policy = ["blocksize-minimum=512", "blocksize-error-policy=error"];
    const child = new Deno.Command("nbdkit", { args: [...args, ...policy] }).spawn();
    try {
      const node = await NbdNode.open({
        nodeName: "remote",
        server: { type: "unix", path },
        openTimeoutMs: 20_000,
      });
      const expected = pattern(8192);
      await node.write(0, IoVector.of(expected));
      const writes = [[100, 50], [500, 11], [511, 2], [513, 400], [1000, 3000], [8000, 192]];
      await Promise.all(writes.map(async ([offset = 0, length = 0], seed) => {
        expected.set(pattern(length, seed + 2), offset);
        await node.write(offset, IoVector.of(pattern(length, seed + 2)), REQ_FUA);
      }));
      await node.writeZeroes(4100, 20);
      expected.fill(0, 4100, 4120);
      await node.discard(100, 200);
      assertEquals(await readAll(node, 0, 8192), expected);
      assertEquals(await readAll(node, 333, 777), expected.slice(333, 1110));
      assertEquals((await node.blockStatus(700, 100)).length, 100);
      await node.close();
    } finally {
      child.kill("SIGKILL");
      await child.status;
      await Deno.remove(directory, { recursive: true });
    }
  },
});

Deno.test("parseNbdFilename() takes the forms that libnbd and QEMU take", () => {
  const forms = [
    ["nbd://host", { type: "inet", host: "host", port: 10809 }, ""],
    ["nbd://host:1/a%20b/c", { type: "inet", host: "host", port: 1 }, "a b/c"],
    ["nbd://[::1]:12/", { type: "inet", host: "::1", port: 12 }, ""],
    ["nbd://", { type: "inet", host: "localhost", port: 10809 }, ""],
    ["nbd+tcp://h:5/x", { type: "inet", host: "h", port: 5 }, "x"],
    ["nbd+unix:///name?socket=/tmp/a%20b", { type: "unix", path: "/tmp/a b" }, "name"],
    ["nbd+unix://?socket=rel", { type: "unix", path: "rel" }, ""],
    ["nbd:host:9:exportname=a:b", { type: "inet", host: "host", port: 9 }, "a:b"],
    ["nbd:unix:/tmp/s:exportname=x", { type: "unix", path: "/tmp/s" }, "x"],
    ["nbd:unix:/tmp/s", { type: "unix", path: "/tmp/s" }, ""],
  ] as const;
  for (const [text, address, exportName] of forms) {
    assertEquals(parseNbdFilename(text), { address, exportName, isTls: false }, text);
    const location = parseNbdFilename(text);
    assertEquals(parseNbdFilename(formatNbdUri(location)), location, formatNbdUri(location));
  }
  assert(parseNbdFilename("nbds://h/").isTls);
  const bad = [
    "nbd://h:0",
    "nbd://h:70000",
    "nbd+unix:///x",
    "nbd:h",
    "nbd://h/%zz",
    "nbd://h?a=b",
  ];
  for (const text of bad) {
    try {
      parseNbdFilename(text);
    } catch (error) {
      assert(error instanceof BlockError && error.code === "EINVAL", text);
      continue;
    }
    throw new Error(`${text} was taken`);
  }
});
