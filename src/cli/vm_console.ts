/** A terminal joined to a machine's console. @module */

import { ClientError } from "./client.ts";
import { printBytes, printError } from "./output.ts";

/** Ctrl-], as in telnet and virsh. */
const LEAVE = 0x1d;

/** Joins this terminal and the console behind `socket` until either ends. */
export async function attachConsole(socket: WebSocket): Promise<void> {
  const closed = new Promise<CloseEvent>((resolve) =>
    socket.addEventListener("close", resolve, { once: true })
  );
  socket.addEventListener(
    "message",
    ({ data }: MessageEvent<ArrayBuffer>) => printBytes(new Uint8Array(data)),
  );
  const opened = new Promise<void>((resolve, reject) => {
    socket.addEventListener("open", () => resolve(), { once: true });
    socket.addEventListener(
      "error",
      (event) => reject(new ClientError("refused", `no console: ${(event as ErrorEvent).message}`)),
      { once: true },
    );
  });
  await opened;
  const isTerminal = Deno.stdin.isTerminal();
  if (isTerminal) {
    printError("(Ctrl-] leaves)");
    Deno.stdin.setRaw(true);
  }
  try {
    void sendInput(socket);
    const { reason } = await closed;
    if (reason !== "") printError(`\r\n(${reason})`);
  } finally {
    if (isTerminal) Deno.stdin.setRaw(false);
  }
  // A read of standard input that still waits would keep the process.
  Deno.exit(0);
}

async function sendInput(socket: WebSocket): Promise<void> {
  const buffer = new Uint8Array(4096);
  for (;;) {
    const count = await Deno.stdin.read(buffer);
    if (socket.readyState !== WebSocket.OPEN) return;
    const bytes = buffer.slice(0, count ?? 0);
    const leave = bytes.indexOf(LEAVE);
    socket.send(leave === -1 ? bytes : bytes.subarray(0, leave));
    if (leave !== -1) return socket.close(1000, "left");
    // Without a terminal: what the guest answers to the last line is still wanted.
    if (count === null) return;
  }
}
