/** Standard input and output as one byte stream. @module */

import type { ByteSink, ByteStream } from "../nbd/byte_stream.ts";

const BUFFER_BYTES = 16 * 1024;

/** See the module's head. There is one of each in a process. */
export class StdioStream implements ByteStream {
  readonly peer = "standard input";
  #isPaused = false;
  #isClosed = false;
  #wake: () => void = () => {};

  start(sink: ByteSink): void {
    this.#readAll(sink);
  }

  async write(bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.length;) done += await Deno.stdout.write(bytes.subarray(done));
  }

  pause(): void {
    this.#isPaused = true;
  }

  resume(): void {
    this.#isPaused = false;
    this.#wake();
  }

  close(): void {
    this.#isClosed = true;
    this.#wake();
  }

  async #readAll(sink: ByteSink): Promise<void> {
    const buffer = new Uint8Array(BUFFER_BYTES);
    while (!this.#isClosed) {
      if (this.#isPaused) await new Promise<void>((resolve) => this.#wake = resolve);
      if (this.#isClosed) return;
      const byteCount = await Deno.stdin.read(buffer);
      // Its end is no reason to end the monitor: answers and events can still be read.
      if (byteCount === null) return;
      sink.onData(buffer.subarray(0, byteCount));
    }
  }
}
