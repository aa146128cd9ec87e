/**
 * What needs a real server: WebSockets, clients that go away, the stop of the server.
 *
 * @module
 */

import { assertEquals, assertMatch } from "@std/assert";
import { startHttpServer } from "../../src/http/server.ts";
import { limits } from "../../src/limits.ts";
import { openTestApp, TOKEN } from "./support.ts";

async function openServer(options: { hasAuth?: boolean } = {}) {
  const test = await openTestApp(options);
  const server = startHttpServer(test.app, { host: "127.0.0.1", port: 0 });
  const headers = options.hasAuth ? { authorization: `Bearer ${TOKEN}` } : {};
  const call = async (method: string, path: string, body?: unknown) => {
    const response = await fetch(server.url + path, {
      method,
      headers,
      ...(body !== undefined && { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    return text.startsWith("{") ? JSON.parse(text) : text;
  };
  return {
    ...test,
    server,
    call,
    async [Symbol.asyncDispose]() {
      await server.close();
      await test[Symbol.asyncDispose]();
    },
  };
}

/** A WebSocket's events, one after the other. */
class Peer {
  readonly socket: WebSocket;
  text = "";
  #wake = () => {};
  readonly opened: Promise<boolean>;
  readonly closed: Promise<CloseEvent>;

  constructor(url: string, options: { protocols?: string[]; headers?: Record<string, string> }) {
    this.socket = new WebSocket(url.replace(/^http/, "ws"), options as unknown as string[]);
    this.socket.binaryType = "arraybuffer";
    this.opened = new Promise((resolve) => {
      this.socket.onopen = () => resolve(true);
      this.socket.onerror = () => resolve(false);
    });
    this.closed = new Promise((resolve) => this.socket.onclose = resolve);
    this.socket.onmessage = ({ data }) => {
      this.text += new TextDecoder().decode(data);
      this.#wake();
    };
  }

  async until(pattern: RegExp): Promise<void> {
    while (!pattern.test(this.text)) {
      await new Promise<void>((resolve) => this.#wake = resolve);
    }
  }
}

/** Sends a request as a client that reads nothing before all is sent; the answer's first line. */
async function sendAll(url: string, path: string, byteCount: number): Promise<string> {
  const { hostname, port } = new URL(url);
  using connection = await Deno.connect({ hostname, port: Number(port) });
  const head = `PUT ${path} HTTP/1.1\r\nHost: ${hostname}:${port}\r\n` +
    `Content-Length: ${byteCount}\r\nConnection: close\r\n\r\n`;
  const writer = connection.writable.getWriter();
  await writer.write(new TextEncoder().encode(head));
  const piece = new Uint8Array(65536);
  for (let sent = 0; sent < byteCount; sent += piece.length) {
    await writer.write(piece.subarray(0, byteCount - sent));
  }
  writer.releaseLock();
  const answer = await new Response(connection.readable).text();
  return answer.slice(0, answer.indexOf("\r\n"));
}

Deno.test("an upload that fails is answered also to who sends all of it before he reads", async (t) => {
  await using test = await openServer();
  const bytes = 32 * 1024 * 1024;
  await test.call("POST", "/v1/disks", { name: "d1", sizeBytes: bytes });
  const send = (path: string, byteCount = bytes) => sendAll(test.server.url, path, byteCount);
  await t.step("before anything was read", async () => {
    assertMatch(await send("/v1/disks/none/content"), / 404 /);
    assertMatch(await send("/v1/nothing"), / 404 /);
    assertMatch(await send("/v1/disks/d1/content", bytes + 512), / 413 /);
  });
  await t.step("in the middle", async () => {
    assertMatch(await send("/v1/disks/d1/content"), / 204 /);
    const storage = test.storages.at(-1);
    if (storage !== undefined) storage.isFull = true;
    assertMatch(await send("/v1/disks/d1/content"), / 507 /);
  });
});

Deno.test("the console's WebSocket carries both ways, beginning with what was before", async () => {
  await using test = await openServer();
  await test.call("POST", "/v1/vms", { name: "t1", image: "demo" });
  const { events, typed } = test.driver();
  const say = (text: string) => events.onConsole(new TextEncoder().encode(text));
  say("early ");
  const peer = new Peer(`${test.server.url}/v1/vms/t1/console`, {});
  assertEquals(await peer.opened, true);
  say("late");
  await peer.until(/^early late$/);
  peer.socket.send("ab");
  peer.socket.send(new Uint8Array([0x63, 0xff]));
  await test.call("POST", "/v1/vms/t1/console/input", "sent after the frames");
  while (typed.length < 4 + 23) await new Promise((resolve) => setTimeout(resolve, 1));
  assertEquals(typed.filter((byte) => byte === 0x63 || byte === 0xff).length >= 2, true);
  await test.call("DELETE", "/v1/vms/t1");
  assertEquals((await peer.closed).code, 1000);
});

Deno.test("a console client that sends more than the guest takes is closed", async () => {
  await using test = await openServer();
  await test.call("POST", "/v1/vms", { name: "t1", image: "demo" });
  test.driver().consoleRoom = 0;
  const peer = new Peer(`${test.server.url}/v1/vms/t1/console`, {});
  await peer.opened;
  for (let sent = 0; sent <= limits.requestBodyBytes; sent += 65536) {
    peer.socket.send(new Uint8Array(65536));
  }
  assertEquals((await peer.closed).code, 1009);
  assertEquals((await test.call("GET", "/v1/vms/t1")).state, "running");
});

Deno.test("a browser's NBD WebSocket opens with a ticket, once, and only nbd is echoed", async () => {
  await using test = await openServer({ hasAuth: true });
  await test.call("POST", "/v1/vms", { name: "t1", image: "demo" });
  await test.call("POST", "/v1/vms/t1/fleecings", { name: "f1" });
  const url = `${test.server.url}/v1/exports/t1-disk0-f1/nbd`;
  const { protocol } = await test.call("POST", "/v1/exports/t1-disk0-f1/tickets");
  assertMatch(protocol, /^base64url\.bearer\.authorization\./);
  const first = new Peer(url, { protocols: ["nbd", protocol] });
  assertEquals(await first.opened, true);
  assertEquals(first.socket.protocol, "nbd");
  const again = new Peer(url, { protocols: ["nbd", protocol] });
  assertEquals(await again.opened, false);
  const none = new Peer(url, { protocols: ["nbd"] });
  assertEquals(await none.opened, false);
  const native = new Peer(url, { headers: { authorization: `Bearer ${TOKEN}` } });
  assertEquals(await native.opened, true);
  assertEquals(native.socket.protocol, "");
  const foreign = new Peer(url, {
    headers: { authorization: `Bearer ${TOKEN}`, origin: "https://evil.example" },
  });
  assertEquals(await foreign.opened, false);
  for (const peer of [first, native]) peer.socket.close();
  await Promise.all([first, native, again, none, foreign].map(({ closed }) => closed));
});

Deno.test("HttpServer.close() ends followed logs and WebSockets", async () => {
  await using test = await openServer();
  await test.call("POST", "/v1/vms", { name: "t1", image: "demo" });
  const peer = new Peer(`${test.server.url}/v1/vms/t1/console`, {});
  assertEquals(await peer.opened, true);
  const followed = await fetch(`${test.server.url}/v1/vms/t1/console/log?follow`);
  const text = followed.text();
  await test.server.close();
  assertEquals((await peer.closed).code, 1001);
  assertEquals(await text, "");
});

Deno.test("an upload whose client goes away leaves nothing behind", async () => {
  await using test = await openServer();
  await test.call("POST", "/v1/images", { name: "held" });
  const { hostname, port } = new URL(test.server.url);
  {
    using connection = await Deno.connect({ hostname, port: Number(port) });
    const head = `PUT /v1/images/held/files/kernel HTTP/1.1\r\nhost: ${hostname}\r\n` +
      "content-length: 1000000\r\n\r\n";
    await connection.write(new TextEncoder().encode(head + "x".repeat(1000)));
    const folder = `${test.dataPath}/images/held`;
    const isBegun = () => {
      try {
        return [...Deno.readDirSync(folder)].length > 0;
      } catch {
        return false;
      }
    };
    while (!isBegun()) await new Promise((resolve) => setTimeout(resolve, 1));
  }
  while ([...Deno.readDirSync(`${test.dataPath}/images/held`)].length > 0) {
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  assertEquals((await test.call("GET", "/v1/images/held")).files, {});
});

Deno.test("a reader that goes away in the middle of a disk costs no more reads", async () => {
  await using test = await openServer();
  const disks = [{ name: "disk0", sizeBytes: 256 * limits.exportReadBytes }];
  await test.call("POST", "/v1/vms", { name: "t1", image: "demo", disks });
  await test.call("POST", "/v1/vms/t1/fleecings", { name: "f1" });
  const response = await fetch(`${test.server.url}/v1/exports/t1-disk0-f1/content`);
  const reader = response.body?.getReader();
  await reader?.read();
  await reader?.cancel();
  await test.server.close();
  const { readCount } = test.driver();
  assertEquals(readCount < 512, true, `${readCount} pieces were read`);
});
