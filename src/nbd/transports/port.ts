/**
 * A byte stream over a MessagePort, between the isolate that holds a WebSocket and the one that
 * serves its session. Either side sends up to NBD_PORT_WINDOW_BYTES that were not acknowledged and
 * is given credit as the other consumes, so nothing piles up in between.
 *
 * @module
 */

import { limits } from "../../limits.ts";
import type { ByteSink, ByteStream } from "../byte_stream.ts";

/**
 * `end` closes both directions; nothing follows it. Credit may bring buffers of messages back, to be
 * used again: a new one of this size costs the system more than the copy into it.
 */
export type NbdPortMessage =
  | { type: "data"; bytes: Uint8Array<ArrayBuffer> }
  | { type: "credit"; byteCount: number; buffers?: ArrayBuffer[] }
  | { type: "end"; reason: string };

/** Messages are no longer than the frames that they become. */
const MESSAGE_BYTES = limits.nbdWebSocketFrameBytes;
/** Shorter messages get a buffer of their own size. */
const SHORT_BYTES = 16 * 1024;
const BUFFERS_MAX = 16;

/** See the module's description. */
export class PortStream implements ByteStream {
  readonly peer: string;
  readonly #port: MessagePort;
  readonly #arrived: Uint8Array<ArrayBuffer>[] = [];
  #sink: ByteSink | null = null;
  #isPaused = false;
  #isClosed = false;
  #unacknowledged = 0;
  /** Of MESSAGE_BYTES each, and nobody's. */
  readonly #buffers: ArrayBuffer[] = [];
  #onCredit: () => void = () => {};

  /** Over a port that nobody else uses. */
  constructor(port: MessagePort, peer = "port") {
    this.#port = port;
    this.peer = peer;
  }

  start(sink: ByteSink): void {
    this.#sink = sink;
    this.#port.onmessage = ({ data }) => this.#onMessage(data as NbdPortMessage);
  }

  write(bytes: Uint8Array): void | Promise<void> {
    const isShort = bytes.length <= MESSAGE_BYTES;
    if (isShort && this.#unacknowledged < limits.nbdPortWindowBytes) this.#send(bytes);
    else return this.#sendAll(bytes);
  }

  pause(): void {
    this.#isPaused = true;
  }

  resume(): void {
    if (!this.#isPaused) return;
    this.#isPaused = false;
    if (this.#arrived.length > 0) queueMicrotask(() => this.#deliver());
  }

  close(reason: string): void {
    if (this.#isClosed) return;
    this.#post({ type: "end", reason });
    this.#stop();
  }

  async #sendAll(bytes: Uint8Array): Promise<void> {
    for (let position = 0; position < bytes.length; position += MESSAGE_BYTES) {
      while (!this.#isClosed && this.#unacknowledged >= limits.nbdPortWindowBytes) {
        await new Promise<void>((resolve) => this.#onCredit = resolve);
      }
      this.#send(bytes.subarray(position, position + MESSAGE_BYTES));
    }
  }

  #send(bytes: Uint8Array): void {
    if (this.#isClosed) throw new Error("the connection is closed");
    const copy = this.#copyOf(bytes);
    this.#unacknowledged += copy.length;
    this.#post({ type: "data", bytes: copy }, [copy.buffer]);
  }

  #copyOf(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
    if (bytes.length <= SHORT_BYTES) return bytes.slice();
    const copy = new Uint8Array(
      this.#buffers.pop() ?? new ArrayBuffer(MESSAGE_BYTES),
      0,
      bytes.length,
    );
    copy.set(bytes);
    return copy;
  }

  #post(message: NbdPortMessage, transfer: Transferable[] = []): void {
    this.#port.postMessage(message, transfer);
  }

  #stop(): void {
    this.#isClosed = true;
    this.#port.onmessage = null;
    this.#port.close();
    this.#onCredit();
  }

  #onMessage(message: NbdPortMessage): void {
    switch (message.type) {
      case "data":
        this.#arrived.push(message.bytes);
        this.#deliver();
        break;
      case "credit":
        this.#unacknowledged -= message.byteCount;
        for (const buffer of message.buffers ?? []) {
          const isOurs = buffer.byteLength === MESSAGE_BYTES;
          if (isOurs && this.#buffers.length < BUFFERS_MAX) this.#buffers.push(buffer);
        }
        this.#onCredit();
        break;
      case "end":
        this.#stop();
        this.#sink?.onEnd({ kind: "closed", message: message.reason });
    }
  }

  #deliver(): void {
    while (!this.#isPaused && !this.#isClosed) {
      const bytes = this.#arrived.shift();
      if (bytes === undefined) return;
      this.#post({ type: "credit", byteCount: bytes.length });
      this.#sink?.onData(bytes);
    }
  }
}
