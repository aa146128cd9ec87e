/**
 * A file on a disk that loses power. What was written since the last flush is kept apart, sector by
 * sector; when the power fails each sector holds what it held at the flush or any of what was
 * written to it since, whatever the others hold: writes are lost, overtake each other and are torn.
 * A flush makes durable what was answered before it was asked for, nothing else.
 *
 * Requests are answered at once, or later and in any order.
 *
 * @module
 */

import { setImmediate } from "node:timers";
import { BlockError } from "../../src/block/errors.ts";
import type { IoVector } from "../../src/block/io_vector.ts";
import { BlockNode } from "../../src/block/node.ts";
import type { MaybePromise } from "../../src/block/types.ts";
import type { Random } from "./simulation.ts";

const SECTOR = 512;
const BYTES_MAX = 64 * 1024 * 1024;

interface Version {
  /** When it was written: a count of requests. */
  time: number;
  bytes: Uint8Array;
}

/** What `CrashingFile` takes. */
export interface CrashingFileOptions {
  random: Random;
  /** The content at first: all of it durable. */
  content: Uint8Array;
  /** The power fails with this request of those that change something or flush. */
  requestsUntilCrash: number;
  /** Requests overtake each other. */
  isAsynchronous: boolean;
}

/** See the module's head. */
export class CrashingFile extends BlockNode {
  readonly #random: Random;
  readonly #isAsynchronous: boolean;
  #bytes: Uint8Array;
  #durableSize: number;
  /** Versions since the flush, by sector: the durable one first. */
  readonly #pending = new Map<number, Version[]>();
  readonly #waiting: (() => void)[] = [];
  #isRunning = false;
  #requestsLeft: number;
  #time = 0;

  constructor(options: CrashingFileOptions) {
    super({
      nodeName: "crashing",
      driver: "crashing",
      sizeBytes: options.content.length,
      isReadOnly: false,
    });
    this.#random = options.random;
    this.#isAsynchronous = options.isAsynchronous;
    this.#bytes = options.content.slice();
    this.#durableSize = options.content.length;
    this.#requestsLeft = options.requestsUntilCrash;
  }

  /** The power has failed. */
  get hasCrashed(): boolean {
    return this.#requestsLeft <= 0;
  }

  /** What a crash now leaves on the medium. */
  remains(): Uint8Array {
    const bytes = this.#bytes.slice(0, Math.max(this.sizeBytes, this.#durableSize));
    const sizes = [this.#durableSize, this.sizeBytes];
    const low = Math.min(...sizes);
    sizes.push(low + this.#random.below(Math.abs(this.sizeBytes - this.#durableSize) + 1));
    for (const [sector, versions] of this.#pending) {
      const { bytes: version } = this.#random.pick(versions);
      if (sector * SECTOR < bytes.length) {
        bytes.set(version.subarray(0, bytes.length - sector * SECTOR), sector * SECTOR);
      }
    }
    return bytes.slice(0, this.#random.pick(sizes));
  }

  protected override doRead(offset: number, target: IoVector): MaybePromise<void> {
    return this.#later(() => {
      if (this.hasCrashed) throw crashed();
      target.copyFrom(this.#bytes.subarray(offset, offset + target.length));
    });
  }

  protected override doWrite(offset: number, source: IoVector): MaybePromise<void> {
    return this.#later(() => {
      this.#change(offset, source.length, () => {
        source.copyTo(this.#bytes.subarray(offset, offset + source.length));
      });
    });
  }

  protected override doWriteZeroes(offset: number, length: number): MaybePromise<void> {
    return this.#later(() => {
      this.#change(offset, length, () => this.#bytes.fill(0, offset, offset + length));
    });
  }

  protected override doDiscard(offset: number, length: number): MaybePromise<void> {
    return this.doWriteZeroes(offset, length);
  }

  protected override doFlush(): MaybePromise<void> {
    const asked = this.#time;
    return this.#later(() => {
      this.#count();
      for (const [sector, versions] of this.#pending) {
        const kept = versions.findLastIndex(({ time }) => time <= asked);
        versions.splice(0, Math.max(kept, 0));
        if (versions.length === 1) this.#pending.delete(sector);
      }
      this.#durableSize = this.sizeBytes;
    });
  }

  protected override doResize(sizeBytes: number): MaybePromise<void> {
    return this.#later(() => {
      if (sizeBytes > BYTES_MAX) throw new BlockError("ENOSPC", "The simulated disk is full");
      this.#count();
      const before = this.sizeBytes;
      if (sizeBytes > this.#bytes.length) {
        const larger = new Uint8Array(Math.min(sizeBytes * 2, BYTES_MAX));
        larger.set(this.#bytes);
        this.#bytes = larger;
      }
      if (sizeBytes < before) this.#keep(sizeBytes, before - sizeBytes);
      this.#bytes.fill(0, sizeBytes);
      if (sizeBytes < before) this.#addVersions(sizeBytes, before - sizeBytes);
      this.setSize(sizeBytes);
    });
  }

  #change(offset: number, length: number, change: () => void): void {
    if (this.hasCrashed) throw crashed();
    this.#keep(offset, length);
    change();
    this.#addVersions(offset, length);
    this.#count();
  }

  /** The request with which the power fails is done or not, like all since the flush. */
  #count(): void {
    if (this.hasCrashed) throw crashed();
    this.#time++;
    if (--this.#requestsLeft <= 0) throw crashed();
  }

  #keep(offset: number, length: number): void {
    this.#eachSector(offset, length, (sector) => {
      if (!this.#pending.has(sector)) this.#pending.set(sector, [this.#version(sector, 0)]);
    });
  }

  #addVersions(offset: number, length: number): void {
    this.#eachSector(offset, length, (sector) => {
      this.#pending.get(sector)?.push(this.#version(sector, this.#time + 1));
    });
  }

  #version(sector: number, time: number): Version {
    const bytes = new Uint8Array(SECTOR);
    bytes.set(this.#bytes.subarray(sector * SECTOR, (sector + 1) * SECTOR));
    return { time, bytes };
  }

  #eachSector(offset: number, length: number, action: (sector: number) => void): void {
    const end = Math.ceil((offset + length) / SECTOR);
    for (let sector = Math.floor(offset / SECTOR); sector < end; sector++) action(sector);
  }

  #later(request: () => void): MaybePromise<void> {
    if (!this.#isAsynchronous) return request();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#waiting.push(() => {
      try {
        resolve(request());
      } catch (error) {
        reject(error);
      }
    });
    if (!this.#isRunning) this.#run();
    return promise;
  }

  async #run(): Promise<void> {
    this.#isRunning = true;
    while (this.#waiting.length > 0) {
      await new Promise((resolve) => setImmediate(resolve));
      const [request] = this.#waiting.splice(this.#random.below(this.#waiting.length), 1);
      request?.();
    }
    this.#isRunning = false;
  }
}

function crashed(): BlockError {
  return new BlockError("EIO", "The power has failed");
}
