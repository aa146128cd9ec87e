/**
 * A console in a WebSocket: what the guest writes goes out in binary frames, as it comes, beginning
 * with the last 16 KiB that it wrote before; text and binary frames that come in are typed.
 *
 * A client that does not read, or that sends more than the guest takes, is closed: it can connect
 * again.
 *
 * @module
 */

import { limits } from "../limits.ts";
import type { Machine } from "../vm/machine.ts";

const REPLAY_BYTES = 16 * 1024;
const CLOSE_NORMAL = 1000;
const CLOSE_POLICY = 1008;
const CLOSE_TOO_BIG = 1009;

/** Serves a socket until it closes or the machine is deleted. */
export function serveConsole(socket: WebSocket, machine: Machine): void {
  const closed = new AbortController();
  socket.addEventListener("close", () => closed.abort(), { once: true });
  socket.addEventListener("open", () => void sendOutput(socket, machine, closed.signal));
  takeInput(socket, machine, closed.signal);
}

async function sendOutput(
  socket: WebSocket,
  machine: Machine,
  signal: AbortSignal,
): Promise<void> {
  const log = machine.console;
  let position = Math.max(log.begin, log.end - REPLAY_BYTES);
  while (!signal.aborted) {
    await log.wait(position, signal);
    if (socket.readyState !== WebSocket.OPEN) return;
    const { bytes, next } = log.read(position);
    if (bytes.length === 0 && log.isClosed) {
      return socket.close(CLOSE_NORMAL, "the machine is gone");
    }
    if (bytes.length > 0) socket.send(bytes);
    if (socket.bufferedAmount > limits.consoleLogBytes) {
      return socket.close(CLOSE_POLICY, "the client does not read");
    }
    position = next;
  }
}

/** Input is typed frame by frame, in order; what waits is bounded. */
function takeInput(socket: WebSocket, machine: Machine, signal: AbortSignal): void {
  let waitingBytes = 0;
  let tail: Promise<void> = Promise.resolve();
  socket.addEventListener("message", ({ data }: MessageEvent<string | ArrayBuffer>) => {
    const bytes = typeof data === "string" ? new TextEncoder().encode(data) : new Uint8Array(data);
    waitingBytes += bytes.length;
    if (waitingBytes > limits.requestBodyBytes) {
      if (!signal.aborted) socket.close(CLOSE_TOO_BIG, "the guest does not take so much input");
      return;
    }
    tail = tail.then(() => machine.consoleInput(bytes, signal))
      // A machine that is stopped, or does not read, takes no input: as with a real terminal.
      .catch(() => {})
      .then(() => {
        waitingBytes -= bytes.length;
      });
  });
}
