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
 * used again: a new one of this size costs the system more than a copy into it.
 */
export type NbdPortMessage =
  | { type: "data"; bytes: Uint8Array<ArrayBuffer> }
  | { type: "credit"; byteCount: number; buffers?: ArrayBuffer[] }
  | { type: "end"; reason: string };

/** What is copied goes in messages no longer than the frames that they become. */
const MESSAGE_BYTES = limits.nbdWebSocketFrameBytes;

/** See the module's description. */
export class PortStream implements ByteStream {
  readonly peer: string;
  readonly #port: MessagePort;
  readonly #arrived: Uint8Array<ArrayBuffer>[] = [];
  #sink: ByteSink | null = null;
  #isPaused = false;
  #isClosed = false;
  #unacknowledged = 0;
  #onReturned: (buffer: ArrayBuffer) => void = () => {};
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
    if (isShort && this.#hasWindow) this.#send(bytes.slice());
    else return this.#sendAll(bytes);
  }

  writeAway(
    bytes: Uint8Array<ArrayBuffer>,
    onReturned: (buffer: ArrayBuffer) => void,
  ): void | Promise<void> {
    this.#onReturned = onReturned;
    if (this.#hasWindow) this.#send(bytes);
    else return this.#window().then(() => this.#send(bytes));
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

  get #hasWindow(): boolean {
    return this.#unacknowledged < limits.nbdPortWindowBytes;
  }

  async #window(): Promise<void> {
    while (!this.#isClosed && !this.#hasWindow) {
      await new Promise<void>((resolve) => this.#onCredit = resolve);
    }
  }

  async #sendAll(bytes: Uint8Array): Promise<void> {
    for (let position = 0; position < bytes.length; position += MESSAGE_BYTES) {
      await this.#window();
      this.#send(bytes.slice(position, position + MESSAGE_BYTES));
    }
  }

  /** The bytes' buffer goes with them. */
  #send(bytes: Uint8Array<ArrayBuffer>): void {
    if (this.#isClosed) throw new Error("the connection is closed");
    this.#unacknowledged += bytes.length;
    this.#post({ type: "data", bytes }, [bytes.buffer]);
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
        message.buffers?.forEach(this.#onReturned);
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
