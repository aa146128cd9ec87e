/**
 * A disk in memory whose answers a test holds back at will.
 *
 * @module
 */

import { BlockError } from "../../src/block/errors.ts";
import type { IoVector } from "../../src/block/io_vector.ts";
import type { MaybePromise } from "../../src/block/types.ts";

/** A request as the disk saw it. */
export interface SeenRequest {
  kind: "read" | "write" | "writeZeroes" | "discard" | "flush";
  offset: number;
  length: number;
  flags: number;
}

/** Answers at once, unless `isHeld`: then a request runs when `release` picks it. */
export class TestDisk {
  readonly bytes: Uint8Array;
  readonly seen: SeenRequest[] = [];
  isHeld = false;
  /** The next requests fail with it. */
  error: BlockError | null = null;
  #held: (() => void)[] = [];

  constructor(readonly sizeBytes: number) {
    this.bytes = new Uint8Array(sizeBytes);
  }

  get heldCount(): number {
    return this.#held.length;
  }

  /** Lets the held request at `index` run. */
  release(index = 0): void {
    this.#held.splice(index, 1)[0]?.();
  }

  releaseAll(): void {
    while (this.#held.length > 0) this.release();
  }

  read(offset: number, target: IoVector): MaybePromise<void> {
    return this.#run({ kind: "read", offset, length: target.length, flags: 0 }, () => {
      target.copyFrom(this.bytes.subarray(offset, offset + target.length));
    });
  }

  write(offset: number, source: IoVector, flags = 0): MaybePromise<void> {
    return this.#run({ kind: "write", offset, length: source.length, flags }, () => {
      source.copyTo(this.bytes.subarray(offset, offset + source.length));
    });
  }

  writeZeroes(offset: number, length: number, flags = 0): MaybePromise<void> {
    return this.#run({ kind: "writeZeroes", offset, length, flags }, () => {
      this.bytes.fill(0, offset, offset + length);
    });
  }

  discard(offset: number, length: number): MaybePromise<void> {
    return this.#run({ kind: "discard", offset, length, flags: 0 }, () => {
      this.bytes.fill(0xdd, offset, offset + length);
    });
  }

  flush(): MaybePromise<void> {
    return this.#run({ kind: "flush", offset: 0, length: 0, flags: 0 }, () => {});
  }

  #run(request: SeenRequest, action: () => void): MaybePromise<void> {
    this.seen.push(request);
    if (request.offset + request.length > this.sizeBytes) {
      throw new Error(`${request.kind} outside the disk: the device did not check`);
    }
    const { error } = this;
    const answer = () => {
      if (error !== null) throw error;
      action();
    };
    if (!this.isHeld) return answer();
    return new Promise<void>((resolve) => this.#held.push(resolve)).then(answer);
  }
}
