/**
 * Many requests of one kind, so many in flight at a time: what `bench` measures.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import { IoVector } from "../io_vector.ts";
import type { BlockNode } from "../node.ts";
import { requestBuffer } from "../request_buffer.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import { REQ_FUA } from "../types.ts";

/** What is done. */
export interface RequestBench {
  /** Writes; else reads. */
  isWrite: boolean;
  /** Requests, flushes not counted. */
  count: number;
  /** In flight at a time. */
  depth: number;
  /** Where the first one goes. */
  offset: number;
  /** Of each. */
  bufferBytes: number;
  /** From one to the next; at the disk's end it goes on at its start. */
  stepBytes: number;
  /** The byte that is written. */
  pattern: number;
  /** A flush after so many writes; 0: none. */
  flushInterval: number;
  /** A flush comes when the writes before it have ended, and holds those after it back. */
  isDrained: boolean;
  /** Every write is on stable storage when it is answered. */
  isWritethrough: boolean;
}

/** Does it. Throws the first request's BlockError that failed. */
export async function runRequestBench(node: BlockNode, bench: RequestBench): Promise<void> {
  if (bench.bufferBytes > node.sizeBytes) {
    throw new BlockError("EINVAL", "A request is larger than the disk");
  }
  const run = new BenchRun(node, bench);
  const workers: Promise<void>[] = [];
  for (let index = 0; index < bench.depth && !run.isDone; index++) {
    // A disk that answers at once is done within the first worker's call.
    workers.push(Promise.try(() => runSteps(run.work())).catch((error) => run.fail(error)));
  }
  await Promise.all(workers);
  if (run.failure !== null) throw run.failure.error;
}

class BenchRun {
  failure: { error: unknown } | null = null;
  readonly #node: BlockNode;
  readonly #bench: RequestBench;
  #started = 0;
  #offset: number;
  #inFlight = 0;
  /** A drained flush: who comes now waits for it. */
  #flush: PromiseWithResolvers<void> | null = null;
  #idle: PromiseWithResolvers<void> | null = null;

  constructor(node: BlockNode, bench: RequestBench) {
    this.#node = node;
    this.#bench = bench;
    this.#offset = this.#inside(bench.offset);
  }

  get isDone(): boolean {
    return this.failure !== null || this.#started >= this.#bench.count;
  }

  fail(error: unknown): void {
    this.failure ??= { error };
    this.#flush?.resolve();
    this.#idle?.resolve();
  }

  *work(): Steps<void> {
    const { bufferBytes, pattern, isWrite, flushInterval, stepBytes, isWritethrough } = this.#bench;
    const data = IoVector.of(requestBuffer(bufferBytes).fill(pattern));
    const flags = isWritethrough ? REQ_FUA : 0;
    for (;;) {
      while (this.#flush !== null) yield this.#flush.promise;
      if (this.isDone) return;
      const offset = this.#offset;
      this.#offset = this.#inside(offset + stepBytes);
      const number = ++this.#started;
      this.#inFlight++;
      const node = this.#node;
      yield* settle(isWrite ? node.write(offset, data, flags) : node.read(offset, data));
      if (--this.#inFlight === 0) this.#idle?.resolve();
      if (flushInterval > 0 && number % flushInterval === 0) yield* this.#flushNow();
    }
  }

  *#flushNow(): Steps<void> {
    if (!this.#bench.isDrained) return yield* settle(this.#node.flush());
    while (this.#flush !== null) yield this.#flush.promise;
    const flush = this.#flush = Promise.withResolvers<void>();
    while (this.#inFlight > 0 && this.failure === null) {
      this.#idle = Promise.withResolvers<void>();
      yield this.#idle.promise;
    }
    yield* settle(this.#node.flush());
    this.#flush = null;
    flush.resolve();
  }

  /** Requests that would reach over the end start again at the disk's start, as in QEMU. */
  #inside(offset: number): number {
    const room = this.#node.sizeBytes - this.#bench.bufferBytes;
    return offset <= room ? offset : room === 0 ? 0 : offset % room;
  }
}
