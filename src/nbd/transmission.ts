/**
 * The transmission phase of one connection: executes requests on an export and queues their
 * replies.
 *
 * Exports that answer at once are served within the call: parse, read straight into the reply
 * buffer, next request, with no promise and no copy. Where an export answers later, requests run
 * concurrently and replies go out as they finish.
 *
 * Bounds: parsing stops while the output queue holds nbdOutputBytes, while nbdRequestsInFlight
 * requests or nbdBytesInFlight bytes are in flight; unparsed input then stays with its sender. So a
 * client that never reads costs one queue and one reply.
 *
 * Writes with FUA that come together share one flush.
 *
 * A large read is a job that goes on as the queue drains, one piece at a time; see also
 * file_sender.ts.
 *
 * Turns: on this runtime a socket that always has bytes is read again before anything else runs. So
 * after nbdTurnMs of work a connection stops and goes on behind whatever waits meanwhile.
 *
 * @module
 */

import { setImmediate } from "node:timers";
import type { BlockExport, MetaContext } from "../block/export.ts";
import { REQ_FUA } from "../block/types.ts";
import { limits } from "../limits.ts";
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_CONTEXT_BASE_ALLOCATION,
  NBD_EPERM,
  NBD_ESHUTDOWN,
  type ReplyStyle,
} from "./codec.ts";
import { askedOf, gatherExtents, type SelectedContext } from "./block_status.ts";
import type { ByteBudget } from "./byte_budget.ts";
import { failureOf, type NbdFailure } from "./errno.ts";
import { FileSender } from "./file_sender.ts";
import { CHUNK_DATA_BYTES, type OutputQueue } from "./output_queue.ts";
import { ACCESS_CONTEXT, findRefused, nextRun } from "./read_plan.ts";
import { type ContextExtents, ReplyWriter } from "./reply_writer.ts";
import { BAD_CONTEXT_IDS, checkRange, checkRequest, type RequestRules } from "./request_check.ts";
import { isFastZero, zeroFlags } from "./request_flags.ts";
import { type NbdRequest, RequestParser } from "./request_parser.ts";
import { NbdCounters } from "./statistics.ts";

/** What the handshake decided. */
export interface TransmissionOptions {
  /** What is served. */
  export: BlockExport;
  /** The headers that were agreed on. */
  style: ReplyStyle;
  /** NBD_FLAG_*, as the client was told. */
  transmissionFlags: number;
  /** What a block status answers. */
  contexts: readonly SelectedContext[];
  /** Work before other connections get a turn, limits.nbdTurnMs unless told otherwise. */
  turnMs?: number;
  /** What all connections may hold together; none unless given. */
  budget?: ByteBudget;
  /** Where requests are counted. */
  counters?: NbdCounters;
}

/** The clock is looked at once in so many requests, a power of two. */
const REQUESTS_PER_LOOK = 16;
/** Reads beyond this size look at the map first, so that holes are not read at all. */
const MAP_BYTES = 64 * 1024;

const SHUTDOWN: NbdFailure = Object.freeze({
  errno: NBD_ESHUTDOWN,
  message: "this export is going away",
});

/** A large read on its way. */
interface ReadJob {
  request: NbdRequest;
  /** Bytes answered. */
  done: number;
  /** Bytes left of the run that `done` lies in, and whether that run is zeroes. */
  runLeft: number;
  isZeroRun: boolean;
  /** It goes straight from a file, one piece when the one before is out. */
  isSent: boolean;
}

/** See the module's description. */
export class Transmission {
  readonly #export: BlockExport;
  readonly #contexts: readonly SelectedContext[];
  readonly #allocation: MetaContext | undefined;
  readonly #access: MetaContext | undefined;
  readonly #queue: OutputQueue;
  readonly #replies: ReplyWriter;
  readonly #sender: FileSender;
  readonly #parser: RequestParser;
  readonly #onSettled: () => void;
  readonly #budget: ByteBudget | undefined;
  readonly #counters: NbdCounters;
  readonly #onRoom = () => {
    this.#wantsRoom = false;
    queueMicrotask(() => this.#onSettled());
  };
  /** Input waits until the connections hold less together. */
  #wantsRoom = false;
  /** Of what is held here, what the budget knows. */
  #countedBytes = 0;
  #countedErrors = 0;
  #isReleased = false;
  #job: ReadJob | null = null;
  #inFlight = 0;
  #bytesInFlight = 0;
  #borrowers = 0;
  /** Writes with FUA that are done and wait for the flush that they share. */
  readonly #unflushed: NbdRequest[] = [];
  /** The export's last write was a promise: the next one is asked for FUA by itself. */
  #writesLater = false;
  /** The export's last read was a promise: the next one gets a buffer of its own. */
  #answersLater = false;
  #isDisconnecting = false;
  #isShuttingDown = false;
  #isSettling = false;
  readonly #turnMsMax: number;
  #turnMs = 0;
  #isYielding = false;

  /** `onSettled`: a request that answered later is done; call `pump`. */
  constructor(options: TransmissionOptions, queue: OutputQueue, onSettled: () => void) {
    this.#export = options.export;
    this.#contexts = options.contexts;
    const named = (name: string) => options.export.contexts.find((one) => one.name === name);
    this.#allocation = named(NBD_CONTEXT_BASE_ALLOCATION);
    this.#access = named(ACCESS_CONTEXT);
    this.#queue = queue;
    this.#replies = new ReplyWriter(queue, options.style);
    this.#sender = new FileSender(this.#export, queue, this.#replies);
    this.#onSettled = onSettled;
    this.#budget = options.budget;
    this.#counters = options.counters ?? new NbdCounters();
    this.#turnMsMax = options.turnMs ?? limits.nbdTurnMs;
    const rules: RequestRules = {
      sizeBytes: options.export.sizeBytes,
      isReadOnly: options.export.isReadOnly,
      canDiscard: options.export.canDiscard,
      transmissionFlags: options.transmissionFlags,
      style: options.style,
      payloadBytesMax: limits.nbdPayloadBytes,
      contextCount: options.contexts.length,
    };
    this.#parser = new RequestParser({
      isExtended: options.style === "extended",
      payloadBytesMax: limits.nbdPayloadBytes,
      check: (request) => this.#isShuttingDown ? SHUTDOWN : checkRequest(request, rules),
    });
  }

  /** The name of what is served. */
  get exportName(): string {
    return this.#export.name;
  }

  /** Requests that the export has not answered yet. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** Input waits for requests to finish, replies to be read, or another turn. */
  get isBlocked(): boolean {
    return this.#job !== null || this.#parser.hasInput || this.#isYielding || this.#wantsRoom;
  }

  /** Bytes of requests and replies. */
  get heldBytes(): number {
    return this.#queue.pendingBytes + this.#bytesInFlight + this.#parser.heldBytes;
  }

  /** Tells the budget what is held now: after everything that may have changed it. */
  account(): void {
    if (this.#isReleased) return;
    const held = this.heldBytes;
    if (held !== this.#countedBytes) {
      const change = held - this.#countedBytes;
      this.#countedBytes = held;
      this.#budget?.change(change);
    }
    this.#counters.failedRequests += this.#replies.errorCount - this.#countedErrors;
    this.#countedErrors = this.#replies.errorCount;
  }

  /** The connection is closed: what its stream still holds goes with it. */
  release(): void {
    this.#isReleased = true;
    this.#budget?.forget(this.#onRoom);
    this.#budget?.change(-this.#countedBytes);
    this.#countedBytes = 0;
  }

  /** The client said goodbye, or what can't be understood: nothing that follows is looked at. */
  get isDisconnecting(): boolean {
    return this.#isDisconnecting;
  }

  /** From now on every request is answered with NBD_ESHUTDOWN. */
  shutDown(): void {
    this.#isShuttingDown = true;
    const job = this.#job;
    this.#job = null;
    if (job !== null) this.#replies.error(job.request, SHUTDOWN, job.request.offset + job.done);
  }

  /** Takes input; only while not blocked. */
  push(bytes: Uint8Array): void {
    this.#parser.push(bytes);
  }

  /** Whether someone still refers to the bytes that were pushed last. */
  get keepsInput(): boolean {
    return this.#parser.hasInput || this.#borrowers > 0;
  }

  /** Executes what can be executed now and starts writing. Returns false after a violation. */
  pump(): boolean {
    const start = performance.now();
    let isGood = true;
    let count = 0;
    do {
      while (this.#mayGoOn()) {
        if (this.#job === null) {
          const step = this.#parser.next();
          if (step === "more") break;
          if (step === "violation") {
            this.#isDisconnecting = true;
            isGood = false;
            break;
          }
          this.#execute(this.#parser.request);
        } else {
          this.#continueRead(this.#job);
        }
        if (++count % REQUESTS_PER_LOOK === 0) this.#spend(performance.now() - start);
      }
      this.#flushShared();
      this.#queue.flush();
      // Writes that waited for the flush they share may have been what stood in the way.
    } while ((this.#parser.hasInput || this.#job !== null) && this.#mayGoOn());
    this.account();
    this.#awaitRoom();
    if (count > 0) {
      this.#turnMs += performance.now() - start;
      this.#spend(0);
    }
    return isGood;
  }

  #mayGoOn(): boolean {
    return !this.#isDisconnecting && !this.#isYielding && !this.#queue.isBroken && this.#hasRoom();
  }

  /** Ends this connection's turn if it has lasted too long. */
  #spend(busyMs: number): void {
    if (this.#isYielding || this.#turnMs + busyMs < this.#turnMsMax) return;
    this.#isYielding = true;
    setImmediate(() => {
      this.#isYielding = false;
      this.#turnMs = 0;
      this.#onSettled();
    });
  }

  #hasRoom(): boolean {
    const outputMax = this.#job?.isSent === true ? 1 : limits.nbdOutputBytes;
    return this.#queue.pendingBytes < outputMax &&
      this.#inFlight + this.#unflushed.length < limits.nbdRequestsInFlight &&
      this.#bytesInFlight < limits.nbdBytesInFlight && (this.#budget?.hasRoom ?? true);
  }

  /** What is not begun, or not all there yet, waits while the connections hold too much. */
  #awaitRoom(): void {
    const budget = this.#budget;
    if (budget === undefined || budget.hasRoom || this.#wantsRoom) return;
    if (this.#isDisconnecting || this.#isReleased) return;
    if (this.#job === null && !this.#parser.hasInput && this.#parser.heldBytes === 0) return;
    this.#wantsRoom = true;
    budget.wait(this.#onRoom);
  }

  #execute(request: NbdRequest): void {
    this.#counters.add(request);
    if (request.refusal !== null) {
      this.#replies.error(request, request.refusal);
      return;
    }
    try {
      this.#dispatch(request);
    } catch (error) {
      this.#replies.error(request, failureOf(error, isFastZero(request)));
    }
  }

  #dispatch(request: NbdRequest): void {
    const { type, offset, length } = request;
    if (type === NBD_CMD_READ) {
      this.#read(request);
      return;
    }
    if (type === NBD_CMD_DISC) {
      this.#isDisconnecting = true;
      return;
    }
    if (type === NBD_CMD_BLOCK_STATUS) {
      this.#blockStatus(request);
      return;
    }
    if (type === NBD_CMD_WRITE) {
      this.#write(request);
      return;
    }
    let result: void | Promise<void> = undefined;
    if (type === NBD_CMD_FLUSH) result = this.#export.flush();
    else if (type === NBD_CMD_TRIM && length > 0) result = this.#trim(request);
    else if (type === NBD_CMD_WRITE_ZEROES && length > 0) {
      result = this.#export.writeZeroes(offset, length, zeroFlags(request));
    } else if (type === NBD_CMD_CACHE) {
      // A hint, and every export here is as near as its cache: nothing to do.
    }
    if (result instanceof Promise) this.#answerLater(request.copy(), result, 0);
    else this.#replies.done(request);
  }

  #trim(request: NbdRequest): void | Promise<void> {
    const discarded = this.#export.discard(request.offset, request.length);
    if ((request.flags & NBD_CMD_FLAG_FUA) === 0) return discarded;
    if (discarded instanceof Promise) return discarded.then(() => this.#export.flush());
    return this.#export.flush();
  }

  #write(request: NbdRequest): void {
    const { payload, offset, isBorrowed } = request;
    if (payload === null) {
      this.#replies.done(request);
      return;
    }
    const isFua = (request.flags & NBD_CMD_FLAG_FUA) !== 0;
    const isShared = isFua && !this.#writesLater;
    const result = this.#export.write(offset, payload, isFua && !isShared ? REQ_FUA : 0);
    this.#writesLater = result instanceof Promise;
    if (!(result instanceof Promise)) {
      if (!isBorrowed) this.#parser.recycle(payload);
      if (isShared) this.#unflushed.push(request.copy());
      else this.#replies.done(request);
      return;
    }
    if (isBorrowed) this.#borrowers++;
    const durable = isShared ? result.then(() => this.#export.flush()) : result;
    this.#answerLater(request.copy(), durable, payload.length, isBorrowed);
  }

  /** Makes what was written with FUA durable, all of it at once, and answers. */
  #flushShared(): void {
    if (this.#unflushed.length === 0) return;
    const requests = this.#unflushed.splice(0);
    try {
      const result = this.#export.flush();
      if (result instanceof Promise) {
        for (const request of requests) this.#answerLater(request, result, 0);
      } else {
        for (const request of requests) this.#replies.done(request);
      }
    } catch (error) {
      for (const request of requests) this.#replies.error(request, failureOf(error));
    }
  }

  /** Waits for an export that answers later. */
  async #answerLater(
    request: NbdRequest,
    result: Promise<void>,
    byteCount: number,
    isBorrowed = false,
  ): Promise<void> {
    this.#enter(byteCount);
    try {
      await result;
      this.#replies.done(request);
    } catch (error) {
      this.#replies.error(request, failureOf(error, isFastZero(request)));
    }
    if (isBorrowed) this.#borrowers--;
    this.#leave(byteCount);
  }

  #enter(byteCount: number): void {
    this.#inFlight++;
    this.#bytesInFlight += byteCount;
  }

  /** Requests that settle in one turn of the event loop share one `onSettled`, and so one write. */
  #leave(byteCount: number): void {
    this.#inFlight--;
    this.#bytesInFlight -= byteCount;
    if (this.#isSettling) return;
    this.#isSettling = true;
    queueMicrotask(() => {
      this.#isSettling = false;
      this.#onSettled();
    });
  }

  #read(request: NbdRequest): void {
    const { offset, length, flags } = request;
    if (length === 0) {
      this.#replies.done(request);
      return;
    }
    const maySplit = this.#replies.style !== "simple" && (flags & NBD_CMD_FLAG_DF) === 0;
    if (this.#answersLater) {
      this.#readApart(request.copy(), 0);
    } else if (maySplit && length > MAP_BYTES) {
      if (this.#refuses(request)) return;
      const start = { done: 0, runLeft: 0, isZeroRun: false, isSent: false };
      this.#job = { request: request.copy(), ...start };
    } else {
      const position = this.#replies.dataPosition;
      const chunk = this.#queue.reserve(position + length);
      const start = this.#queue.position + position;
      const result = this.#export.read(offset, chunk.bytes.subarray(start, start + length));
      if (result instanceof Promise) {
        const frame = chunk.bytes.subarray(start - position, start + length);
        this.#detachRead(request.copy(), frame, { done: 0, length }, result);
      } else {
        this.#replies.data(chunk, request, { offset, length, isLast: true });
      }
    }
  }

  /**
   * A view must give no data at all where any byte of a request is refused. The export sees to that
   * for one read; a read that will be split is looked at as a whole here.
   */
  #refuses(request: NbdRequest): boolean {
    const access = this.#access;
    if (access === undefined) return false;
    const found = findRefused(access, request.offset, request.length);
    if (found === null) return false;
    if (found === "later") {
      // The export itself looks at a request that is read as one.
      this.#readApart(request.copy(), 0);
      return true;
    }
    const { offset, length } = found;
    const message = `access denied: bytes ${offset} to ${offset + length} may not be read`;
    this.#replies.error(request, { errno: NBD_EPERM, message }, offset);
    return true;
  }

  /** One more chunk of a large read. */
  #continueRead(job: ReadJob): void {
    const { request } = job;
    const offset = request.offset + job.done;
    try {
      if (job.runLeft === 0) {
        const run = nextRun(this.#allocation, offset, request.length - job.done);
        job.runLeft = run.length;
        job.isZeroRun = run.isZero;
        job.isSent = !run.isZero && this.#sender.canSend(offset, run.length);
        if (!this.#hasRoom()) return;
      }
      if (job.isZeroRun) {
        const length = job.runLeft;
        this.#advance(job, length);
        this.#replies.hole(request, { offset, length, isLast: this.#job === null });
        return;
      }
      const length = Math.min(job.runLeft, CHUNK_DATA_BYTES);
      const isLast = job.done + length === request.length;
      if (job.isSent && this.#sender.send(request, { offset, length, isLast })) {
        this.#advance(job, length);
        return;
      }
      const position = this.#replies.dataPosition;
      const chunk = this.#queue.reserve(position + length);
      const start = this.#queue.position + position;
      const result = this.#export.read(offset, chunk.bytes.subarray(start, start + length));
      if (result instanceof Promise) {
        this.#job = null;
        const frame = chunk.bytes.subarray(start - position, start + length);
        this.#detachRead(request, frame, { done: job.done, length }, result);
        return;
      }
      this.#advance(job, length);
      this.#replies.data(chunk, request, { offset, length, isLast: this.#job === null });
    } catch (error) {
      this.#job = null;
      this.#replies.error(request, failureOf(error), job.done === 0 ? undefined : offset);
    }
  }

  #advance(job: ReadJob, length: number): void {
    job.done += length;
    job.runLeft -= length;
    if (job.done === job.request.length) this.#job = null;
  }

  /**
   * A read into the reply buffer turned out to answer later: it keeps the buffer, the others go on.
   */
  async #detachRead(
    request: NbdRequest,
    frame: Uint8Array,
    { done, length }: { done: number; length: number },
    result: Promise<void>,
  ): Promise<void> {
    this.#queue.detach();
    this.#answersLater = true;
    this.#enter(frame.length);
    const offset = request.offset + done;
    const end = done + length;
    try {
      await result;
      const isLast = end === request.length;
      this.#replies.dataFrame(frame, request, { offset, length, isLast });
      if (!isLast) this.#readApart(request, end);
    } catch (error) {
      this.#replies.error(request, failureOf(error), done === 0 ? undefined : offset);
    }
    this.#leave(frame.length);
  }

  /** Reads the request's bytes from `done` on into a buffer of their own. */
  async #readApart(request: NbdRequest, done: number): Promise<void> {
    const offset = request.offset + done;
    const length = request.length - done;
    const position = this.#replies.dataPosition;
    this.#enter(length);
    try {
      const frame = new Uint8Array(position + length);
      const result = this.#export.read(offset, frame.subarray(position));
      this.#answersLater = result instanceof Promise;
      if (result instanceof Promise) await result;
      this.#replies.dataFrame(frame, request, { offset, length, isLast: true });
    } catch (error) {
      this.#replies.error(request, failureOf(error));
    }
    this.#leave(length);
  }

  #blockStatus(request: NbdRequest): void {
    const asked = askedOf(request, this.#contexts);
    if (asked === null) {
      this.#replies.error(request, BAD_CONTEXT_IDS);
      return;
    }
    const { contexts, length } = asked;
    const refusal = checkRange(request.offset, length, this.#export.sizeBytes);
    if (refusal !== null) {
      this.#replies.error(request, refusal);
      return;
    }
    const isOne = (request.flags & NBD_CMD_FLAG_REQ_ONE) !== 0;
    const answer = gatherExtents(contexts, { offset: request.offset, length, isOne });
    if (answer instanceof Promise) this.#mapLater(request.copy(), answer);
    else this.#replies.blockStatus(request, answer);
  }

  async #mapLater(request: NbdRequest, answer: Promise<ContextExtents[]>): Promise<void> {
    this.#enter(0);
    try {
      this.#replies.blockStatus(request, await answer);
    } catch (error) {
      this.#replies.error(request, failureOf(error));
    }
    this.#leave(0);
  }
}
