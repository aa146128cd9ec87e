/**
 * The loop of a job that copies chunk by chunk: several chunks at a time where nodes take their
 * time, one for each turn of the event loop where they answer at once; pauses, cancellation, speed
 * limit and error policies in between.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import type { ByteRange, MaybePromise } from "../types.ts";
import type { Job } from "./job.ts";
import type { ErrorAction } from "./types.ts";

/** After an error that is ignored the job waits so long before it tries again. */
const RETRY_MS = 100;

/** What is copied, and how. */
export interface ChunkWork<C extends ByteRange = ByteRange> {
  /** Chunks at a time, at most. */
  workers: number;
  /** The next chunk, null where there is none now. It is being copied when this is called again. */
  next(): C | null;
  /** Copies a chunk. Returns how many bytes count for the speed limit. */
  copy(chunk: C): MaybePromise<number>;
  /** What to do about a failed chunk, which `next` is to give again if it is to be copied still. */
  failed(error: BlockError, chunk: C): ErrorAction;
}

/** See the module's head. */
export class ChunkRunner {
  readonly #inFlight = new Set<Promise<void>>();
  #failure: BlockError | null = null;
  #movedBytes = 0;
  #isToWait = false;

  /** Chunks in flight. */
  get inFlightCount(): number {
    return this.#inFlight.size;
  }

  /** Copies until no chunk is left or in flight, or the job is cancelled. Throws if it fails. */
  async run<C extends ByteRange>(job: Job, work: ChunkWork<C>): Promise<void> {
    try {
      while (await this.step(job, work)) { /* on */ }
    } finally {
      await this.settle();
    }
    if (this.#failure !== null) throw this.#failure;
  }

  /** Starts one chunk, or waits for one. False where nothing is left, or the job is to end. */
  async step<C extends ByteRange>(job: Job, work: ChunkWork<C>): Promise<boolean> {
    await job.pausePoint();
    if (this.#isToWait) {
      this.#isToWait = false;
      await job.sleep(RETRY_MS);
    }
    const movedBytes = this.#movedBytes;
    this.#movedBytes = 0;
    if (movedBytes > 0) await job.keepSpeed(movedBytes);
    if (this.#failure !== null) throw this.#failure;
    while (job.isHeld && !job.isCancelled) await job.whenFree();
    if (job.isCancelled) return false;
    const chunk = this.#inFlight.size < work.workers ? work.next() : null;
    if (chunk !== null) this.#start(job, work, chunk);
    else if (this.#inFlight.size === 0) return false;
    else await Promise.race(this.#inFlight);
    return true;
  }

  /** Resolves when nothing is in flight. */
  async settle(): Promise<void> {
    while (this.#inFlight.size > 0) await Promise.all(this.#inFlight);
  }

  #start<C extends ByteRange>(job: Job, work: ChunkWork<C>, chunk: C): void {
    const ended = job.begin(() => work.copy(chunk)).then((bytes) => {
      this.#movedBytes += bytes;
    }, (error) => {
      if (!(error instanceof BlockError)) throw error;
      if (job.isCancelled || this.#failure !== null) return;
      const action = work.failed(error, chunk);
      if (action === "report") this.#failure = error;
      else if (action === "ignore") this.#isToWait = true;
    }).finally(() => this.#inFlight.delete(ended));
    this.#inFlight.add(ended);
  }
}
