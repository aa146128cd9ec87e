/**
 * A byte stream over a connected socket of Deno's, TCP or unix.
 *
 * The read buffer starts small and grows when the peer sends more than it takes, so that idle
 * connections cost little; a buffer that the sink keeps is left to it.
 *
 * @module
 */

import type { ByteSink, ByteStream } from "../byte_stream.ts";
import type { AcceptedSocket } from "./accepted_sockets.ts";

const SMALL_BUFFER_BYTES = 8 * 1024;
const LARGE_BUFFER_BYTES = 256 * 1024;
/** So many reads in a row that a small buffer would have taken, and the large one is given up. */
const SMALL_READS = 256;

/** See the module's description. */
export class ConnStream implements ByteStream {
  readonly peer: string;
  declare readonly sendFile?: NonNullable<ByteStream["sendFile"]>;
  readonly #socket: AcceptedSocket | null;
  readonly #conn: Deno.Conn;
  #isPaused = false;
  #isClosed = false;
  #wake: () => void = () => {};

  /** Over a connected socket. `socket`: the same, where its listener knows it. */
  constructor(conn: Deno.Conn, peer: string, socket: AcceptedSocket | null = null) {
    this.#conn = conn;
    this.peer = peer;
    this.#socket = socket;
    if (socket !== null) {
      this.sendFile = (head, part) => this.#isClosed ? 0 : socket.sendFile(head, part);
    }
  }

  start(sink: ByteSink): void {
    this.#readAll(sink);
  }

  write(bytes: Uint8Array): Promise<void> {
    return this.#writeAll(bytes);
  }

  pause(): void {
    this.#isPaused = true;
  }

  resume(): void {
    if (!this.#isPaused) return;
    this.#isPaused = false;
    this.#wake();
  }

  close(_reason: string): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#wake();
    this.#socket?.release();
    this.#conn.close();
  }

  async #readAll(sink: ByteSink): Promise<void> {
    let buffer = new Uint8Array(SMALL_BUFFER_BYTES);
    let smallReads = 0;
    try {
      for (;;) {
        if (this.#isPaused) await new Promise<void>((resolve) => this.#wake = resolve);
        if (this.#isClosed) return;
        const byteCount = await this.#conn.read(buffer);
        if (byteCount === null) break;
        const isKept = sink.onData(buffer.subarray(0, byteCount));
        smallReads = byteCount < SMALL_BUFFER_BYTES ? smallReads + 1 : 0;
        let wanted = buffer.length;
        if (byteCount === buffer.length) wanted = LARGE_BUFFER_BYTES;
        else if (smallReads >= SMALL_READS) wanted = SMALL_BUFFER_BYTES;
        if (isKept || wanted !== buffer.length) buffer = new Uint8Array(wanted);
      }
    } catch (error) {
      if (!this.#isClosed) {
        sink.onEnd({ kind: "closed", message: error instanceof Error ? error.message : "" });
      }
      return;
    }
    sink.onEnd({ kind: "finished" });
  }

  async #writeAll(bytes: Uint8Array): Promise<void> {
    let done = await this.#conn.write(bytes);
    while (done < bytes.length) done += await this.#conn.write(bytes.subarray(done));
  }
}
