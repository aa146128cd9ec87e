/**
 * The control side of an NBD session over a WebSocket: moves bytes between the socket and a
 * MessagePort, at whose other end an I/O worker serves the session.
 *
 *   socket --binary messages--> inbound queue --window--> port
 *   socket <--frames, while bufferedAmount is low-- outbound queue <--window-- port
 *
 * Messages are parts of a byte stream; their borders mean nothing. This runtime can't pause what a
 * WebSocket client sends, so a client that sends faster than it is served is cut off at
 * nbdWebSocketQueueBytes. Towards a client that does not read, sending stops at
 * nbdWebSocketBufferedBytes, and with it credit, so that the session stops answering.
 *
 * @module
 */

import { limits } from "../../limits.ts";
import type { NbdPortMessage } from "./port.ts";

/** The subprotocol that a client offers and the server selects. */
export const NBD_SUBPROTOCOL = "nbd";

// Close codes of RFC 6455, section 7.4.1
const CLOSE_NORMAL = 1000;
const CLOSE_UNSUPPORTED_DATA = 1003;
const CLOSE_POLICY_VIOLATION = 1008;

/** A part of the window that the sender can do without. */
const CREDIT_BYTES = limits.nbdPortWindowBytes / 4;

/**
 * There is no event for room in a WebSocket: it is looked for again, less often while nothing
 * moves.
 */
const POLL_MIN_MS = 1;
const POLL_MAX_MS = 100;

/**
 * Relays until either side closes; resolves with the reason. The socket may still be connecting.
 * Call it right after the upgrade: messages that came before are lost.
 */
export function relayWebSocket(socket: WebSocket, port: MessagePort): Promise<string> {
  return new Promise((resolve) => new Relay(socket, port, resolve));
}

/** The same where the bytes are UTF-8 text, for the monitor: text messages both ways. */
export function relayTextSocket(socket: WebSocket, port: MessagePort): Promise<string> {
  return new Promise((resolve) => new Relay(socket, port, resolve, new TextDecoder()));
}

class Relay {
  readonly #socket: WebSocket;
  readonly #port: MessagePort;
  readonly #onClosed: (reason: string) => void;
  readonly #decoder: TextDecoder | null;
  readonly #inbound: Uint8Array<ArrayBuffer>[] = [];
  #inboundBytes = 0;
  /** Sent, and not yet told so. */
  #creditBytes = 0;
  readonly #sentBuffers: ArrayBuffer[] = [];
  #unacknowledged = 0;
  readonly #outbound: Uint8Array<ArrayBuffer>[] = [];
  #endReason: string | null = null;
  #isClosed = false;
  #poll: ReturnType<typeof setTimeout> | undefined;
  #pollMs = POLL_MIN_MS;
  #bufferedAmount = 0;
  /** How long nothing has moved, roughly. */
  #stillMs = 0;

  /** `decoder`: what is sent is text, which it decodes; text is taken too. */
  constructor(
    socket: WebSocket,
    port: MessagePort,
    onClosed: (reason: string) => void,
    decoder: TextDecoder | null = null,
  ) {
    this.#decoder = decoder;
    this.#socket = socket;
    this.#port = port;
    this.#onClosed = onClosed;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.#sendFrames();
    socket.onmessage = ({ data }) => this.#onFrame(data);
    socket.onclose = () => this.#finish("the client closed the WebSocket");
    socket.onerror = () => this.#finish("the WebSocket broke");
    port.onmessage = ({ data }) => this.#onPortMessage(data as NbdPortMessage);
  }

  #onFrame(message: unknown): void {
    const isText = typeof message === "string" && this.#decoder !== null;
    const data = isText ? new TextEncoder().encode(message).buffer : message;
    if (!(data instanceof ArrayBuffer)) {
      this.#refuse(CLOSE_UNSUPPORTED_DATA, "NBD needs binary messages");
      return;
    }
    if (data.byteLength === 0) return;
    this.#inboundBytes += data.byteLength;
    if (this.#inboundBytes > limits.nbdWebSocketQueueBytes) {
      this.#refuse(CLOSE_POLICY_VIOLATION, "more bytes than the server is ready to hold");
      return;
    }
    this.#inbound.push(new Uint8Array(data));
    this.#passInbound();
  }

  #passInbound(): void {
    while (this.#unacknowledged < limits.nbdPortWindowBytes) {
      const bytes = this.#inbound.shift();
      if (bytes === undefined) return;
      this.#unacknowledged += bytes.length;
      this.#post({ type: "data", bytes }, [bytes.buffer]);
    }
  }

  #onPortMessage(message: NbdPortMessage): void {
    switch (message.type) {
      case "data":
        this.#outbound.push(message.bytes);
        this.#sendFrames();
        break;
      case "credit":
        this.#unacknowledged -= message.byteCount;
        this.#inboundBytes -= message.byteCount;
        this.#passInbound();
        break;
      case "end":
        this.#endReason = message.reason;
        this.#sendFrames();
    }
  }

  #sendFrames(): void {
    if (this.#isClosed || this.#socket.readyState !== WebSocket.OPEN) return;
    while (this.#socket.bufferedAmount < limits.nbdWebSocketBufferedBytes) {
      const bytes = this.#outbound.shift();
      if (bytes === undefined) {
        if (this.#endReason !== null) this.#refuse(CLOSE_NORMAL, this.#endReason);
        return;
      }
      for (let at = 0; at < bytes.length; at += limits.nbdWebSocketFrameBytes) {
        const frame = bytes.subarray(at, at + limits.nbdWebSocketFrameBytes);
        this.#socket.send(this.#decoder?.decode(frame, { stream: true }) ?? frame);
      }
      this.#giveCredit(bytes);
      // There was room: whatever is buffered now, things are moving.
      this.#bufferedAmount = Infinity;
    }
    this.#pollForRoom();
  }

  /** The socket has copied the bytes. Credit is given in parts of the window, with its buffers. */
  #giveCredit(bytes: Uint8Array<ArrayBuffer>): void {
    this.#creditBytes += bytes.length;
    this.#sentBuffers.push(bytes.buffer);
    if (this.#creditBytes < CREDIT_BYTES) return;
    const buffers = this.#sentBuffers.splice(0);
    this.#post({ type: "credit", byteCount: this.#creditBytes, buffers }, buffers);
    this.#creditBytes = 0;
  }

  #pollForRoom(): void {
    if (this.#poll !== undefined) return;
    const { bufferedAmount } = this.#socket;
    const hasMoved = bufferedAmount < this.#bufferedAmount;
    this.#bufferedAmount = bufferedAmount;
    this.#pollMs = hasMoved ? POLL_MIN_MS : Math.min(2 * this.#pollMs, POLL_MAX_MS);
    this.#stillMs = hasMoved ? 0 : this.#stillMs + this.#pollMs;
    if (this.#endReason !== null && this.#stillMs > limits.nbdCloseMs) {
      this.#refuse(CLOSE_NORMAL, this.#endReason);
      return;
    }
    this.#poll = setTimeout(() => {
      this.#poll = undefined;
      this.#sendFrames();
    }, this.#pollMs);
  }

  #post(message: NbdPortMessage, transfer: Transferable[] = []): void {
    this.#port.postMessage(message, transfer);
  }

  #refuse(code: number, reason: string): void {
    // A close frame has room for 123 bytes of reason (RFC 6455, section 5.5).
    try {
      this.#socket.close(code, shorten(reason));
    } catch {
      // Not open yet or not any more: then nobody is told.
    }
    this.#finish(reason);
  }

  #finish(reason: string): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearTimeout(this.#poll);
    if (this.#endReason === null) this.#post({ type: "end", reason });
    this.#port.onmessage = null;
    this.#port.close();
    this.#onClosed(reason);
  }
}

function shorten(reason: string): string {
  const target = new Uint8Array(123);
  const { written } = new TextEncoder().encodeInto(reason, target);
  return new TextDecoder().decode(target.subarray(0, written));
}
