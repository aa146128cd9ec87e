/**
 * A disk that is not there: writes are thrown away, reads leave the buffer as it is, or zero it
 * with
 * `readZeroes`. For measurements, and as a target whose content nobody wants.
 *
 * @module
 */

import { type Clock, systemClock } from "../clock.ts";
import type { IoVector } from "../io_vector.ts";
import { BlockNode } from "../node.ts";
import {
  type BlockStatus,
  type MaybePromise,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
} from "../types.ts";

/** What a null-co node is made of. */
export interface NullCoNodeOptions {
  /** Unique in the graph. */
  nodeName: string;
  /** The size that it pretends to have. */
  sizeBytes: number;
  /** False unless given. */
  isReadOnly?: boolean;
  /** Reads return zeroes. */
  readZeroes?: boolean;
  /** How long a read, a write or a flush takes; 0 unless given: it is answered at once. */
  latencyMs?: number;
  /** What measures that; the system's unless given. */
  clock?: Clock;
}

/** Driver "null-co". */
export class NullCoNode extends BlockNode {
  readonly #readZeroes: boolean;
  readonly #latencyMs: number;
  readonly #clock: Clock;

  /** Any size costs nothing. */
  constructor(options: NullCoNodeOptions) {
    super({
      nodeName: options.nodeName,
      driver: "null-co",
      sizeBytes: options.sizeBytes,
      isReadOnly: options.isReadOnly ?? false,
      handlesFua: true,
    });
    this.#readZeroes = options.readZeroes ?? false;
    this.#latencyMs = options.latencyMs ?? 0;
    this.#clock = options.clock ?? systemClock;
  }

  /** Zeroes with `readZeroes`; else the buffer stays as it is. */
  protected override doRead(_offset: number, target: IoVector): MaybePromise<void> {
    if (this.#readZeroes) target.fill(0);
    return this.#wait();
  }

  /** Forgets the data. */
  protected override doWrite(
    _offset: number,
    _source: IoVector,
    _flags: number,
  ): MaybePromise<void> {
    return this.#wait();
  }

  /** Nothing to do. */
  protected override doWriteZeroes(
    _offset: number,
    _length: number,
    _flags: number,
  ): MaybePromise<void> {
    return this.#wait();
  }

  /** Nothing to do. */
  protected override doFlush(): MaybePromise<void> {
    return this.#wait();
  }

  /** One run: zeroes with `readZeroes`, else data. */
  protected override doBlockStatus(_offset: number, length: number): BlockStatus {
    return { length, flags: STATUS_ALLOCATED | (this.#readZeroes ? STATUS_ZERO : STATUS_DATA) };
  }

  /** To any size. */
  protected override doResize(sizeBytes: number): void {
    this.setSize(sizeBytes);
  }

  /** Nothing. */
  override get allocatedBytes(): number {
    return 0;
  }

  /** How it reads. */
  override details(): Record<string, boolean> {
    return { readZeroes: this.#readZeroes };
  }

  #wait(): MaybePromise<void> {
    if (this.#latencyMs === 0) return;
    return new Promise((resolve) => this.#clock.after(this.#latencyMs, resolve));
  }
}
