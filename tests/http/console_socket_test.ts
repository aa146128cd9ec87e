import { assertEquals } from "@std/assert";
import { serveConsole } from "../../src/http/console_socket.ts";
import { limits } from "../../src/limits.ts";
import { openTestApp } from "./support.ts";

/** A WebSocket whose peer reads only when it is told to. */
class SilentSocket extends EventTarget {
  readyState: number = WebSocket.OPEN;
  bufferedAmount = 0;
  closedWith: number | null = null;

  send(bytes: Uint8Array): void {
    this.bufferedAmount += bytes.length;
  }
  close(code: number): void {
    this.closedWith = code;
    this.readyState = WebSocket.CLOSING;
    this.dispatchEvent(new Event("close"));
  }
}

Deno.test("serveConsole() closes a client that does not read, and holds no more for it", async () => {
  await using test = await openTestApp();
  await test.send("POST", "/v1/vms", { name: "t1", image: "demo" });
  const machine = test.service.machines.get("t1");
  const socket = new SilentSocket();
  serveConsole(socket as unknown as WebSocket, machine);
  socket.dispatchEvent(new Event("open"));
  const piece = new Uint8Array(64 * 1024);
  for (let sent = 0; socket.closedWith === null; sent += piece.length) {
    assertEquals(sent <= 2 * limits.consoleLogBytes, true, "nothing was closed");
    machine.console.append(piece);
    // Its loop runs in microtasks.
    for (let turn = 0; turn < 10; turn++) await Promise.resolve();
  }
  assertEquals(socket.closedWith, 1008);
  const held = socket.bufferedAmount;
  machine.console.append(piece);
  for (let turn = 0; turn < 10; turn++) await Promise.resolve();
  assertEquals(socket.bufferedAmount, held);
});
