import { assertEquals } from "@std/assert";
import { BlockLayer } from "../../src/block/block_layer.ts";
import { limits } from "../../src/limits.ts";
import type { ByteSink, ByteStream } from "../../src/nbd/byte_stream.ts";
import { Monitor } from "../../src/qmp/monitor.ts";
import { QmpServer } from "../../src/qmp/server.ts";
import { compileKernels, Kernels } from "../../src/wasm/kernels.ts";

const module = await compileKernels();
const encoder = new TextEncoder();

/** A client's end of a stream, in this process. */
class FakeClient implements ByteStream {
  readonly peer = "test";
  isClosed = false;
  isPaused = false;
  /** Writes resolve only when the test says so. */
  isStalled = false;
  received = "";
  #sink: ByteSink | null = null;
  #waiters: (() => void)[] = [];
  /** What was sent while the session read nothing. */
  readonly #unread: string[] = [];

  start(sink: ByteSink): void {
    this.#sink = sink;
  }

  write(bytes: Uint8Array): Promise<void> {
    this.received += new TextDecoder().decode(bytes);
    for (const wake of this.#waiters.splice(0)) wake();
    return this.isStalled ? new Promise(() => {}) : Promise.resolve();
  }

  pause(): void {
    this.isPaused = true;
  }

  resume(): void {
    this.isPaused = false;
    for (const text of this.#unread.splice(0)) this.send(text);
    for (const wake of this.#waiters.splice(0)) wake();
  }

  close(): void {
    this.isClosed = true;
    for (const wake of this.#waiters.splice(0)) wake();
  }

  send(text: string): void {
    if (this.isPaused) this.#unread.push(text);
    else this.#sink?.onData(encoder.encode(text));
  }

  end(): void {
    this.#sink?.onEnd({ kind: "finished" });
  }

  async until(condition: () => boolean): Promise<void> {
    while (!condition()) await new Promise<void>((resolve) => this.#waiters.push(resolve));
  }

  /** The messages so far, once there are as many. */
  async messages(count: number): Promise<Record<string, unknown>[]> {
    await this.until(() => this.received.split("\r\n").length > count || this.isClosed);
    return this.received.split("\r\n").filter((line) => line !== "").map((line) =>
      JSON.parse(line)
    );
  }
}

async function withMonitor(
  run: (rig: { monitor: Monitor; server: QmpServer; connect: () => FakeClient }) => Promise<void>,
): Promise<void> {
  const block = new BlockLayer(new Kernels(module));
  const monitor = new Monitor({
    block,
    mayOpen: () => false,
    mayListen: () => false,
    quit: () => {},
  });
  const server = new QmpServer(monitor);
  const connect = (): FakeClient => {
    const client = new FakeClient();
    server.serve(client);
    return client;
  };
  try {
    await run({ monitor, server, connect });
  } finally {
    await monitor.close();
    await block.close();
  }
}

const error = (message: Record<string, unknown> | undefined) => message?.error;

Deno.test("a session wants qmp_capabilities first", () =>
  withMonitor(async ({ connect }) => {
    const client = connect();
    client.send('{"execute": "query-version", "id": 1}');
    client.send('{"execute": 5}{"execute": "qmp_capabilities", "arguments": {"enable": ["x"]}}');
    client.send('{"execute": "qmp_capabilities", "id": [2]}{"execute": "query-jobs"}');
    const messages = await client.messages(6);
    assertEquals(Object.keys(messages[0] ?? {}), ["QMP"]);
    assertEquals(messages.slice(1), [
      {
        error: {
          class: "CommandNotFound",
          desc: "Expecting capabilities negotiation with 'qmp_capabilities'",
        },
        id: 1,
      },
      {
        error: {
          class: "GenericError",
          desc: "QMP input member 'execute' must be a string",
        },
      },
      {
        error: {
          class: "GenericError",
          desc: "Parameter 'null' does not accept value 'x'",
        },
      },
      { return: {}, id: [2] },
      { return: [] },
    ]);
  }));

Deno.test("a session that negotiated oob may ask for it; no command can do it", () =>
  withMonitor(async ({ connect }) => {
    const client = connect();
    client.send('{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}');
    client.send('{"exec-oob": "query-jobs"}{"exec-oob": "nope"}{"exec-oob": 5}');
    client.send('{"exec-oob": "query-jobs", "execute": "query-jobs"}{"execute": "query-jobs"}');
    const messages = await client.messages(7);
    assertEquals(messages.slice(2).map((message) => message.error ?? message.return), [
      { class: "GenericError", desc: "The command query-jobs does not support OOB" },
      { class: "CommandNotFound", desc: "The command nope has not been found" },
      { class: "GenericError", desc: "QMP input member 'exec-oob' must be a string" },
      { class: "GenericError", desc: "QMP input member 'execute' clashes with 'exec-oob'" },
      [],
    ]);
  }));

Deno.test("events reach the sessions that have negotiated", () =>
  withMonitor(async ({ monitor, connect }) => {
    const [silent, ready] = [connect(), connect()];
    ready.send('{"execute": "qmp_capabilities"}');
    await ready.messages(2);
    monitor.emit({ event: "STOP" });
    const [, , event] = await ready.messages(3);
    assertEquals(event?.event, "STOP");
    assertEquals(Object.keys(event?.timestamp as object), ["seconds", "microseconds"]);
    assertEquals((await silent.messages(1)).length, 1);
  }));

Deno.test("commands of all sessions are carried out one after the other", () =>
  withMonitor(async ({ monitor, connect }) => {
    const gate = Promise.withResolvers<void>();
    const held = monitor.inTurn(() => gate.promise);
    const client = connect();
    client.send('{"execute": "qmp_capabilities"}{"execute": "query-jobs"}');
    await client.messages(2);
    // Nothing more is read while a command waits.
    assertEquals(client.isPaused, true);
    gate.resolve();
    await held;
    assertEquals((await client.messages(3))[2], { return: [] });
    await client.until(() => !client.isPaused);
  }));

Deno.test("a client that ends gets its last answer, then the session ends", () =>
  withMonitor(async ({ connect }) => {
    const client = connect();
    client.send('{"execute": "qmp_capabilities"}{"execute": "query-jobs"}');
    client.end();
    assertEquals((await client.messages(3)).length, 3);
    await client.until(() => client.isClosed);
  }));

Deno.test("a client that takes nothing is cut off at a bound", () =>
  withMonitor(async ({ monitor, connect }) => {
    const client = connect();
    client.send('{"execute": "qmp_capabilities"}');
    await client.messages(2);
    client.isStalled = true;
    const filler = "x".repeat(1024 * 1024);
    const bound = Math.ceil(limits.qmpOutputBytes / filler.length) + 2;
    for (let count = 0; count < bound; count++) {
      monitor.emit({ event: "STOP", data: { filler } });
    }
    // It no longer listens: what is to come is not kept for it.
    const before = client.received.length;
    monitor.emit({ event: "STOP" });
    assertEquals(client.received.length, before);
  }));

Deno.test("a path policy that allows nothing lets no file be opened or listened at", () =>
  withMonitor(async ({ connect }) => {
    const client = connect();
    const path = `${Deno.cwd()}/deno.json`;
    const send = (execute: string, args: unknown) =>
      client.send(JSON.stringify({ execute, arguments: args }));
    client.send('{"execute": "qmp_capabilities"}');
    send("blockdev-add", { driver: "file", "node-name": "f", filename: path });
    send("nbd-server-start", { addr: { type: "unix", data: { path: "/tmp/never" } } });
    send("blockdev-create", {
      "job-id": "j",
      options: { driver: "file", filename: path, size: 0 },
    });
    send("object-add", { "qom-type": "tls-creds-x509", id: "t", dir: "/etc", endpoint: "server" });
    // Four events tell of the job that fails.
    const messages = await client.messages(10);
    const desc = (index: number) => (error(messages[index]) as { desc: string } | undefined)?.desc;
    assertEquals(desc(2), `Could not open '${path}': the file is not in an allowed folder`);
    assertEquals(desc(3), "An NBD server may not be started at this address");
    client.send('{"execute": "query-jobs"}');
    const text = JSON.stringify(await client.messages(11));
    assertEquals(text.includes("not in an allowed folder"), true);
    assertEquals(text.includes("'/etc' is not in an allowed folder"), true);
  }));
