/**
 * Mistakes and malice against the running service: each gets a clear answer, and a bystander,
 * another machine of the same service, notices nothing.
 */
import { assert, assertEquals } from "@std/assert";
import { createHash } from "node:crypto";
import { limits } from "../../src/limits.ts";
import { Service, ServiceConsole, TOKEN } from "../support/service.ts";

const MiB = 1024 * 1024;
const GUEST = new URL("../guests/demo/demo.elf", import.meta.url);

/** Runs `action` beside a machine whose disk and console must be as before in the end. */
async function besideBystander(action: (service: Service) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await using service = await Service.start(folder);
    await using bystander = await startGuest(service, "bystander");
    await bystander.demo("stress 0 1 500");
    const before = await bystander.demo("hash 0");
    await action(service);
    assertEquals(await bystander.demo("hash 0"), before);
    await bystander.demo("write 0 0 still-here");
    assertEquals(/unhandled|not handled|internal/i.test(service.log), false, service.log);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function startGuest(service: Service, name: string): Promise<ServiceConsole> {
  await service.call("POST", "/v1/vms", {
    name,
    image: "demo",
    memoryBytes: 32 * MiB,
    disks: [{ name: "disk0", sizeBytes: MiB }],
  });
  const guest = new ServiceConsole(service, name);
  await guest.waitFor(/demo> /);
  return guest;
}

/** Sends a request and returns "STATUS code: detail" of the problem, or the status alone. */
async function problemOf(
  service: Service,
  method: string,
  path: string,
  body?: unknown,
): Promise<string> {
  const response = await service.request(method, path, body);
  const text = await response.text();
  if (response.headers.get("content-type") !== "application/problem+json") {
    return `${response.status}`;
  }
  const { status, code, detail } = JSON.parse(text);
  assertEquals(status, response.status);
  return `${status} ${code}: ${detail}`;
}

function assertProblem(actual: string, expected: string): void {
  assert(actual.startsWith(expected), `${actual} is not ${expected}`);
}

Deno.test("requests that make no sense are refused with a code, each on its own", async () => {
  await besideBystander(async (service) => {
    const vm = (more: Record<string, unknown>) => ({ name: "bad", image: "demo", ...more });
    const disk = (sizeBytes: unknown) => vm({ disks: [{ name: "d", sizeBytes }] });
    const cases: [string, string, unknown, string][] = [
      ["POST", "/v1/vms", disk(0), "400 invalidRequest: #/disks/0/sizeBytes"],
      ["POST", "/v1/vms", disk(1), "400 invalidRequest: #/disks/0/sizeBytes"],
      ["POST", "/v1/vms", disk(2 ** 63), "400 invalidRequest: #/disks/0/sizeBytes"],
      ["POST", "/v1/vms", disk("1M"), "400 invalidRequest: #/disks/0/sizeBytes"],
      ["POST", "/v1/vms", vm({ name: "a/b" }), "400 invalidRequest: #/name"],
      ["POST", "/v1/vms", vm({ name: "../up" }), "400 invalidRequest: #/name"],
      ["POST", "/v1/vms", vm({ name: "" }), "400 invalidRequest: #/name"],
      ["POST", "/v1/vms", vm({ name: "bystander" }), "409 nameTaken: "],
      ["POST", "/v1/vms", vm({ image: "none" }), "422 badReference: "],
      ["POST", "/v1/vms", vm({ memoryBytes: MiB }), "400 invalidRequest: #/memoryBytes"],
      ["POST", "/v1/vms", vm({ memoryBytes: 2 ** 40 }), "400 invalidRequest: #/memoryBytes"],
      ["POST", "/v1/vms", vm({ harts: 99 }), "400 invalidRequest: #/harts"],
      ["POST", "/v1/vms", vm({ typo: 1 }), "400 invalidRequest: "],
      ["POST", "/v1/vms", "{", "400 invalidJson: "],
      ["POST", "/v1/vms", undefined, "400 invalidRequest: #/name"],
      ["PATCH", "/v1/vms/bystander", {}, "405 methodNotAllowed: "],
      ["GET", "/v1/vms/..%2f..%2fetc", undefined, "400 invalidRequest: "],
      ["POST", "/v1/images", { name: "a/b" }, "400 invalidRequest: #/name"],
      ["PUT", "/v1/images/demo/files/kernel", "x", "409 imageBuiltIn: "],
      ["DELETE", "/v1/images/demo", undefined, "409 imageBuiltIn: "],
      ["GET", "/v1/exports/none/content", undefined, "404 exportNotFound: "],
      ["GET", "/v1/exports/none/extents", undefined, "404 exportNotFound: "],
      ["POST", "/v1/exports/none/tickets", undefined, "404 exportNotFound: "],
      ["DELETE", "/v1/vms/bystander/fleecings/none", undefined, "404 fleecingNotFound: "],
      ["POST", "/v1/vms/bystander/fleecings", { disks: ["none"] }, "422 badReference: "],
      ["POST", "/v1/vms/bystander/fleecings", { bitmap: "none" }, "422 badReference: "],
      ["POST", "/v1/vms/bystander/fleecings", { minClusterSize: 3 }, "400 invalidRequest: "],
      ["GET", "/nowhere", undefined, "404 notFound: "],
    ];
    for (const [method, path, body, expected] of cases) {
      assertProblem(await problemOf(service, method, path, body), expected);
    }
    const { items } = await service.call<{ items: unknown[] }>("GET", "/v1/vms");
    assertEquals(items.length, 1, "a refused machine leaves nothing");
  });
});

Deno.test("a machine in the wrong state says so", async () => {
  await besideBystander(async (service) => {
    await service.call("POST", "/v1/vms", { name: "off", image: "demo", start: false });
    for (const request of ["pause", "resume", "reset", "fleecings", "console/input"]) {
      const problem = await problemOf(service, "POST", `/v1/vms/off/${request}`, "{}");
      assertProblem(problem, "409 wrongState: machine off can't ");
    }
    assertEquals(await problemOf(service, "POST", "/v1/vms/off/stop"), "200");
    assertEquals(await problemOf(service, "POST", "/v1/vms/bystander/start"), "200");
    await service.call("POST", "/v1/vms/bystander/fleecings", { name: "one" });
    const again = await problemOf(service, "POST", "/v1/vms/bystander/fleecings", { name: "one" });
    assertProblem(again, "409 nameTaken: ");
    // There are two: as many more as fit.
    for (let count = 3; count <= limits.vmCount; count++) {
      const vm = { name: `spare-${count}`, image: "demo", start: false, disks: [] };
      await service.call("POST", "/v1/vms", vm);
    }
    const tooMany = await problemOf(service, "POST", "/v1/vms", {
      name: "one-more",
      image: "demo",
    });
    assertProblem(tooMany, "409 limitReached: there are ");
  });
});

Deno.test("files that can't boot are refused with the reason, and leave no machine", async () => {
  await besideBystander(async (service) => {
    await service.call("POST", "/v1/images", { name: "odd" });
    const guest = await Deno.readFile(GUEST);
    const foreign = guest.slice();
    foreign[18] = 62; // e_machine: x86-64
    const gzipped = await new Response(
      new Blob([guest]).stream().pipeThrough(new CompressionStream("gzip")),
    ).bytes();
    const kernels: [string | Uint8Array<ArrayBuffer>, string][] = [
      ["#!/bin/sh\necho this is a text file\n", "kernel: this is a text file"],
      [foreign, "kernel: an ELF file, but not for 64-bit RISC-V"],
      [guest.slice(0, 3000), "kernel: an ELF segment lies behind the end of the file"],
      [gzipped.slice(0, 2000), "kernel: damaged or truncated gzip data"],
    ];
    const boot = () =>
      problemOf(service, "POST", "/v1/vms", { name: "odd", image: "odd", memoryBytes: 32 * MiB });
    assertProblem(await boot(), "409 imageIncomplete: ");
    const upload = (part: string, body: string | Uint8Array) =>
      service.call("PUT", `/v1/images/odd/files/${part}`, body);
    for (const [kernel, reason] of kernels) {
      await upload("kernel", kernel);
      assertProblem(await boot(), `422 bootFailed: machine odd can't boot: ${reason}`);
    }
    await upload("kernel", guest);
    await upload("initrd", new Uint8Array(40 * MiB));
    assertProblem(await boot(), "422 bootFailed: machine odd can't boot: initrd: 41943040 bytes");
    assertProblem(
      await problemOf(service, "PUT", "/v1/images/odd/files/kernel", ""),
      "422 outOfRange: the file is empty",
    );
    assertProblem(await problemOf(service, "GET", "/v1/vms/odd"), "404 vmNotFound: ");
    await service.call("DELETE", "/v1/images/odd");
  });
});

/** An HTTP request as bytes: fetch sets Host itself. The answer's first line. */
async function statusLine(service: Service, lines: string[]): Promise<string> {
  const { hostname, port } = new URL(service.url);
  using connection = await Deno.connect({ hostname, port: Number(port) });
  await connection.write(new TextEncoder().encode([...lines, "", ""].join("\r\n")));
  const reader = connection.readable.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    text += value ?? "";
    if (done || text.includes("\r\n")) break;
  }
  await reader.cancel();
  return text.split("\r\n", 1)[0] ?? "";
}

Deno.test("without the token, from foreign pages and under foreign names nothing is told", async () => {
  await besideBystander(async (service) => {
    const host = `Host: ${new URL(service.url).host}`;
    const token = `Authorization: Bearer ${TOKEN}`;
    const get = (...headers: string[]) =>
      statusLine(service, ["GET /v1/vms/bystander HTTP/1.1", "Connection: close", ...headers]);
    assertEquals(await get(host, token), "HTTP/1.1 200 OK");
    assertEquals(await get(host), "HTTP/1.1 401 Unauthorized");
    assertEquals(await get(host, "Authorization: Bearer wrong"), "HTTP/1.1 401 Unauthorized");
    assertEquals(await get(host, "Authorization: Basic eDp5"), "HTTP/1.1 401 Unauthorized");
    assertEquals(await get(host, token, "Origin: http://evil.example"), "HTTP/1.1 403 Forbidden");
    assertEquals(await get(host, token, "Origin: null"), "HTTP/1.1 403 Forbidden");
    const foreign = await get("Host: evil.example", token);
    assertEquals(foreign, "HTTP/1.1 421 Misdirected Request");
  });
});

/** Opens a WebSocket, lets `act` do its worst, and returns how it was closed. */
function abuse(
  service: Service,
  path: string,
  act: (socket: WebSocket) => void,
): Promise<CloseEvent> {
  // Deno's own extension: headers in the place of a browser's ticket.
  const socket = new WebSocket(`${service.url.replace("http", "ws")}${path}`, {
    headers: { authorization: `Bearer ${TOKEN}` },
    protocols: ["nbd"],
  } as unknown as string[]);
  socket.binaryType = "arraybuffer";
  return new Promise((resolve) => {
    socket.addEventListener("open", () => act(socket), { once: true });
    socket.addEventListener("close", resolve, { once: true });
  });
}

Deno.test("WebSocket clients that send garbage are closed, and only they", async () => {
  await besideBystander(async (service) => {
    await service.call("POST", "/v1/vms/bystander/fleecings", { name: "f" });
    const nbd = "/v1/exports/bystander-disk0-f/nbd";
    const noise = createHash("sha512").update("seed").digest();
    const text = await abuse(service, nbd, (socket) => socket.send("hello"));
    assertEquals([text.code, text.reason], [1003, "NBD needs binary messages"]);
    const garbage = await abuse(service, nbd, (socket) => socket.send(noise));
    assert(/unknown client flags/.test(garbage.reason), garbage.reason);
    await abuse(service, nbd, (socket) => socket.send(new Uint8Array(64 * MiB)));
    await using victim = await startGuest(service, "victim");
    const flood = (socket: WebSocket) => {
      for (let count = 0; count < 40; count++) socket.send(new Uint8Array(64 * 1024));
    };
    await abuse(service, "/v1/vms/victim/console", flood);
    await service.call("POST", "/v1/vms/victim/reset");
    await victim.waitFor(/Ovis demo guest[^]*demo> /);
    await victim.demo("echo well");
    const view = await service.request("GET", "/v1/exports/bystander-disk0-f/content");
    assertEquals((await view.arrayBuffer()).byteLength, MiB);
  });
});
