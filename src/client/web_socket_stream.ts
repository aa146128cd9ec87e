/**
 * A byte stream over a browser's WebSocket: binary messages carry it, their borders mean nothing.
 *
 * A WebSocket can't be paused while it receives: whoever reads through it bounds what it asks for.
 *
 * @module
 */

import type { ByteSink, ByteStream } from "../nbd/byte_stream.ts";

/** Bytes that may wait to be sent before a write waits too. */
const BUFFERED_BYTES_MAX = 4 * 1024 * 1024;
const POLL_MS = 5;

/** See the module's description. */
export class WebSocketStream implements ByteStream {
  readonly peer: string;
  readonly #socket: WebSocket;
  #sink: ByteSink | null = null;
  #early: Uint8Array[] = [];
  #isPaused = false;
  #end: string | null = null;

  /** Over a socket that is open, or will be. */
  constructor(socket: WebSocket) {
    this.#socket = socket;
    this.peer = socket.url;
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => {
      if (data instanceof ArrayBuffer) this.#take(new Uint8Array(data));
      else this.close("the server sent text");
    };
    socket.onerror = () => this.#stop("the WebSocket failed");
    socket.onclose = ({ code, reason }) => {
      this.#stop(reason === "" ? `the WebSocket was closed (${code})` : reason);
    };
  }

  start(sink: ByteSink): void {
    this.#sink = sink;
    this.#deliver();
  }

  write(bytes: Uint8Array): void | Promise<void> {
    if (this.#socket.bufferedAmount > BUFFERED_BYTES_MAX) return this.#writeLater(bytes);
    this.#send(bytes);
  }

  pause(): void {
    this.#isPaused = true;
  }

  resume(): void {
    this.#isPaused = false;
    this.#deliver();
  }

  close(reason: string): void {
    this.#socket.close();
    this.#stop(reason);
  }

  async #writeLater(bytes: Uint8Array): Promise<void> {
    while (this.#end === null && this.#socket.bufferedAmount > BUFFERED_BYTES_MAX) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    this.#send(bytes);
  }

  #send(bytes: Uint8Array): void {
    if (this.#end !== null) throw new Error(this.#end);
    this.#socket.send(bytes as Uint8Array<ArrayBuffer>);
  }

  #take(bytes: Uint8Array): void {
    if (this.#sink !== null && !this.#isPaused && this.#early.length === 0) {
      this.#sink.onData(bytes);
    } else this.#early.push(bytes);
  }

  #deliver(): void {
    while (this.#sink !== null && !this.#isPaused) {
      const bytes = this.#early.shift();
      if (bytes === undefined) break;
      this.#sink.onData(bytes);
    }
    if (this.#end !== null) this.#tellEnd();
  }

  #stop(message: string): void {
    if (this.#end !== null) return;
    this.#end = message;
    if (this.#early.length === 0) this.#tellEnd();
  }

  #tellEnd(): void {
    this.#sink?.onEnd({ kind: "closed", message: this.#end ?? "" });
  }
}

/** Opens a WebSocket that speaks `protocols`; rejects where the server refuses. */
export function openWebSocket(
  url: string,
  protocols: string[],
  signal?: AbortSignal,
): Promise<WebSocketStream> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted === true) return reject(signal.reason);
    const socket = new WebSocket(url, protocols);
    const stream = new WebSocketStream(socket);
    const onAbort = () => {
      reject(signal?.reason);
      stream.close("aborted");
    };
    signal?.addEventListener("abort", onAbort, { once: true });
    const settle = (action: () => void) => () => {
      signal?.removeEventListener("abort", onAbort);
      action();
    };
    socket.addEventListener("open", settle(() => resolve(stream)));
    socket.addEventListener(
      "close",
      settle(() => reject(new Error(`${url}: the server refused the connection`))),
    );
  });
}
