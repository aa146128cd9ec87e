/**
 * Clients that connect and then do nothing, or ask for much and never read: nobody else waits for
 * them, and neither does the end of the service.
 */
import { assert, assertEquals, assertLess } from "@std/assert";
import { type FleecingAnswer, Service, ServiceConsole, TOKEN } from "../support/service.ts";

const MiB = 1024 * 1024;
const DISK_BYTES = 64 * MiB;
const NBD_HEADER_BYTES = 18;
const REQUEST_COUNT = 64;
/** The service's own bounds together: requests, machines, one after the other. */
const STOP_DEADLINE_MS = 30_000;

/** A connection on which nothing is read beyond what the test asks for. */
class StuckClient implements Disposable {
  readonly #connection: Deno.Conn;

  private constructor(connection: Deno.Conn) {
    this.#connection = connection;
  }

  static async connect(url: string): Promise<StuckClient> {
    const { hostname, port } = new URL(url.replace("nbd:", "http:"));
    return new StuckClient(await Deno.connect({ hostname, port: Number(port) }));
  }

  async send(bytes: Uint8Array | string): Promise<void> {
    let rest = typeof bytes === "string" ? new TextEncoder().encode(bytes) : bytes;
    while (rest.length > 0) rest = rest.subarray(await this.#connection.write(rest));
  }

  /** Reads until `count` bytes came; that many at least. */
  async receive(count: number): Promise<string> {
    const buffer = new Uint8Array(4096);
    let text = "";
    while (text.length < count) {
      const length = await this.#connection.read(buffer);
      if (length === null) throw new Error(`the service hung up: ${text}`);
      text += String.fromCharCode(...buffer.subarray(0, length));
    }
    return text;
  }

  [Symbol.dispose](): void {
    this.#connection.close();
  }
}

/** What opens an export and asks for all of it, many times. */
function nbdFlood(exportName: string): Uint8Array {
  const name = new TextEncoder().encode(exportName);
  const bytes = new Uint8Array(4 + 16 + name.length + REQUEST_COUNT * 28);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 3); // NBD_FLAG_C_FIXED_NEWSTYLE, NBD_FLAG_C_NO_ZEROES
  view.setBigUint64(4, 0x49484156454f5054n); // IHAVEOPT
  view.setUint32(12, 1); // NBD_OPT_EXPORT_NAME
  view.setUint32(16, name.length);
  bytes.set(name, 20);
  for (let index = 0; index < REQUEST_COUNT; index++) {
    const at = 20 + name.length + index * 28;
    view.setUint32(at, 0x25609513); // NBD_REQUEST_MAGIC, NBD_CMD_READ
    view.setBigUint64(at + 8, BigInt(index));
    view.setUint32(at + 24, 32 * MiB);
  }
  return bytes;
}

/** A binary WebSocket frame; its mask is zero. */
function frame(payload: Uint8Array): Uint8Array {
  const head = new Uint8Array(8);
  head[0] = 0x82;
  head[1] = 0x80 | 126;
  new DataView(head.buffer).setUint16(2, payload.length);
  const bytes = new Uint8Array(head.length + payload.length);
  bytes.set(head);
  bytes.set(payload, head.length);
  return bytes;
}

function get(path: string, headers: string[] = []): string {
  return [`GET ${path} HTTP/1.1`, "Host: localhost", `Authorization: Bearer ${TOKEN}`, ...headers]
    .concat("", "").join("\r\n");
}

const UPGRADE = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
  .concat("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==");

/** One of each kind that gets stuck; `view`: the export that they ask for. */
async function openStuck(
  service: Service,
  view: FleecingAnswer["exports"][number],
  stack: DisposableStack,
): Promise<void> {
  const open = async (url: string) => stack.use(await StuckClient.connect(url));
  const base = `/v1/exports/${view.name}`;
  await open(service.url); // says nothing
  await (await open(service.url)).send("GET /v1/vms HTTP/1.1\r\nHost: loc");
  await (await open(service.url)).send(
    `POST /v1/vms HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${TOKEN}\r\n` +
      "Content-Length: 100\r\n\r\n{",
  );
  const content = await open(service.url);
  await content.send(get(`${base}/content`));
  await content.receive(12);
  const log = await open(service.url);
  await log.send(get("/v1/vms/talker/console/log?follow"));
  await log.receive(12);
  for (const path of [`${base}/nbd`, "/v1/vms/talker/console"]) {
    const socket = await open(service.url);
    await socket.send(get(path, UPGRADE));
    assert((await socket.receive(12)).startsWith("HTTP/1.1 101"));
    if (path.endsWith("/nbd")) await socket.send(frame(nbdFlood(view.name)));
  }
  await open(view.nbd); // says nothing
  const reader = await open(view.nbd);
  await reader.receive(NBD_HEADER_BYTES);
  await reader.send(nbdFlood(view.name));
}

/** Resident bytes of the service, in MiB. */
async function residentMiB(service: Service): Promise<number> {
  const status = await Deno.readTextFile(`/proc/${service.processId}/status`);
  return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) / 1024;
}

Deno.test("clients that never read hold up neither other clients nor the end", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const service = await Service.start(folder);
    for (const name of ["talker", "other"]) {
      const disks = [{ name: "disk0", sizeBytes: DISK_BYTES }];
      await service.call("POST", "/v1/vms", { name, image: "demo", memoryBytes: 32 * MiB, disks });
    }
    using stack = new DisposableStack();
    {
      await using guest = new ServiceConsole(service, "talker");
      await guest.waitFor(/demo> /);
      await guest.demo(`fill 0 0 ${DISK_BYTES} 0x41`);
      const path = "/v1/vms/talker/fleecings";
      const [view] = (await service.call<FleecingAnswer>("POST", path, {})).exports;
      if (view === undefined) throw new Error("a fleecing without export");
      const before = await residentMiB(service);
      for (let round = 0; round < 3; round++) await openStuck(service, view, stack);

      // Others read and write as ever; the guest, too, whose disk and console they stare at.
      await guest.demo(`fill 0 0 ${DISK_BYTES} 0x42`);
      const content = await service.request("GET", view.content);
      const bytes = new Uint8Array(await content.arrayBuffer());
      assertEquals(bytes.findIndex((byte) => byte !== 0x41), -1);
      await using other = new ServiceConsole(service, "other");
      await other.waitFor(/demo> /);
      await other.demo("write 0 0 undisturbed");
      assertLess(await residentMiB(service) - before, 512, "MiB that stuck clients cost");
    }
    const startedMs = performance.now();
    assertEquals(await service.stop(), 0, service.log);
    assertLess(performance.now() - startedMs, STOP_DEADLINE_MS, "ms to stop");
    assert(/stopped\n$/.test(service.log), service.log);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
