/**
 * The console between a machine's rings and the control isolate.
 *
 *   output ring --pump--> event (at most a window unacknowledged, else it stays in the ring)
 *   `input` --> queue (bounded) --pump--> input ring
 *
 * A full output ring holds the guest up, as a slow serial line would; nothing is lost on the way.
 * The first bytes after a pause are sent at once, what follows soon after them in larger pieces.
 *
 * @module
 */

import { limits } from "../limits.ts";
import type { GuestMemory } from "./guest_memory.ts";

/** How long output that closely follows other output is collected. */
const COLLECT_MS = 2;
/** The UART calls its transmitter busy while the ring has less room. */
const FIFO_BYTES = 16;

/** What a pump needs. */
export interface ConsolePumpOptions {
  /** Takes output; the bytes are its own. */
  emit: (bytes: Uint8Array<ArrayBuffer>) => void;
  /** Calls `action` in a moment (COLLECT_MS). */
  defer?: (action: () => void) => void;
}

/** Moves bytes between the rings and the outside. */
export class ConsolePump {
  readonly #memory: GuestMemory;
  readonly #emit: (bytes: Uint8Array<ArrayBuffer>) => void;
  readonly #defer: (action: () => void) => void;
  /** Bytes of input that the ring had no room for. */
  #input: Uint8Array[] = [];
  #inputCount = 0;
  #unacknowledged = 0;
  #isCollecting = false;
  #isClosed = false;

  /** Does nothing by itself: see `pump`. */
  constructor(memory: GuestMemory, options: ConsolePumpOptions) {
    this.#memory = memory;
    this.#emit = options.emit;
    this.#defer = options.defer ?? ((action) => void setTimeout(action, COLLECT_MS));
  }

  /** Moves what can be moved. To be called when the console's doorbell rang. */
  pump(): void {
    this.#pumpInput();
    if (!this.#isCollecting) this.#collect();
  }

  /** Takes input; returns how much of it there was room for. */
  input(bytes: Uint8Array): number {
    const accepted = Math.min(bytes.length, limits.consoleInputBytes - this.#inputCount);
    if (accepted > 0) {
      this.#input.push(bytes.slice(0, accepted));
      this.#inputCount += accepted;
      this.#pumpInput();
    }
    return accepted;
  }

  /** The other side has taken `byteCount` bytes of output. */
  acknowledge(byteCount: number): void {
    this.#unacknowledged -= byteCount;
    this.pump();
  }

  /**
   * Sends what the ring still holds, whether there is room for it or not: the guest writes no more.
   */
  flush(): void {
    this.#pumpOutput(Infinity);
  }

  /** The same, and nothing is sent afterwards. */
  close(): void {
    this.flush();
    this.#isClosed = true;
  }

  /** Input that nobody has read belongs to the machine's last run. */
  discardInput(): void {
    this.#input = [];
    this.#inputCount = 0;
  }

  #collect(): void {
    if (!this.#pumpOutput(limits.consoleWindowBytes - this.#unacknowledged)) return;
    this.#isCollecting = true;
    this.#defer(() => {
      this.#isCollecting = false;
      this.#collect();
    });
  }

  /** Sends at most `room` bytes. True if there was something to send. */
  #pumpOutput(room: number): boolean {
    if (this.#isClosed) return false;
    const { layout, bytes } = this.#memory;
    const size = layout.CONSOLE_RING_BYTES;
    const tail = this.#memory.loadWord(layout.CONSOLE_OUT_TAIL_WORD);
    const filled = (this.#memory.loadWord(layout.CONSOLE_OUT_HEAD_WORD) - tail) >>> 0;
    const count = Math.min(filled, size, room);
    if (count <= 0) return false;
    const output = new Uint8Array(count);
    const start = tail & (size - 1);
    const first = Math.min(count, size - start);
    const ring = layout.CONSOLE_OUT_RING;
    output.set(bytes.subarray(ring + start, ring + start + first));
    output.set(bytes.subarray(ring, ring + count - first), first);
    this.#memory.storeWord(layout.CONSOLE_OUT_TAIL_WORD, tail + count);
    // A hart that found the ring full before the tail moved waits for an interrupt.
    const head = this.#memory.loadWord(layout.CONSOLE_OUT_HEAD_WORD);
    if (((head - tail) >>> 0) > size - FIFO_BYTES) this.#memory.wakeHarts();
    this.#unacknowledged += count;
    this.#emit(output);
    return true;
  }

  #pumpInput(): void {
    const { layout, bytes } = this.#memory;
    const size = layout.CONSOLE_RING_BYTES;
    const start = this.#memory.loadWord(layout.CONSOLE_IN_HEAD_WORD);
    let head = start;
    const filled = (head - this.#memory.loadWord(layout.CONSOLE_IN_TAIL_WORD)) >>> 0;
    let room = size - Math.min(filled, size);
    while (room > 0) {
      const chunk = this.#input[0];
      if (chunk === undefined) break;
      const position = head & (size - 1);
      const count = Math.min(chunk.length, room, size - position);
      bytes.set(chunk.subarray(0, count), layout.CONSOLE_IN_RING + position);
      head = (head + count) >>> 0;
      room -= count;
      this.#inputCount -= count;
      if (count === chunk.length) this.#input.shift();
      else this.#input[0] = chunk.subarray(count);
    }
    if (head === start) return;
    this.#memory.storeWord(layout.CONSOLE_IN_HEAD_WORD, head);
    this.#memory.wakeHarts();
  }
}
