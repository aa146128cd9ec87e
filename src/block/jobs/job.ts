/**
 * A job: long work on block nodes that goes on behind the call that started it, and its life, which
 * is QEMU's (job.c, blockjob.c) to the letter: states, verbs, events and their order, error texts.
 *
 *   created --> running <--> paused           --+
 *                 |  \--> ready <--> standby  --+--> aborting --> concluded --> null
 *                 v         v                   |       ^
 *                waiting <--+ ------------------+       |
 *                  \--> pending (by itself, or when told: finalize) --> concluded --> null
 *
 * A job pauses for several reasons at a time, of which one may be a person's, and only between two
 * of its operations. It is "cancelled" by force, or asked to end: then its driver decides what that
 * means. What it does is its driver's (JobDriver); its end is its transaction's.
 *
 * Each operation of a job (`operate`) is one that drained sections wait for, and no new one begins
 * while one of them covers a node of the job. Between two operations the event loop gets a turn, so
 * that a guest never waits longer for a job than for one chunk.
 *
 * @module
 */

import { assert } from "../assert.ts";
import type { BlockBackend } from "../backend.ts";
import { BlockError, errorText } from "../errors.ts";
import type { BlockGraph } from "../graph.ts";
import type { BlockNode } from "../node.ts";
import type { MaybePromise } from "../types.ts";
import { JobBackend } from "./job_backend.ts";
import { JobTransaction } from "./job_transaction.ts";
import type { Jobs } from "./jobs.ts";
import { RateLimit } from "./rate_limit.ts";
import {
  type BlockJobEventData,
  type BlockJobInfo,
  type ErrorAction,
  type IoStatus,
  type JobInfo,
  type JobStatus,
  type JobType,
  type JobVerb,
  type OnError,
  STATES_AFTER,
  STATES_OF_VERB,
} from "./types.ts";

/** What a kind of job does at each point of its life. `job` is given by `Job`'s constructor. */
export interface JobDriver {
  /** What it does. */
  readonly type: JobType;
  /** It works on nodes of the graph: BLOCK_JOB_* events tell of it. */
  readonly isBlockJob: boolean;
  /**
   * The work. A BlockError fails the job. A cancelled job's ends as soon as it can; what it throws
   * then does not matter.
   */
  run(job: Job): Promise<void>;
  /** Waits for what is in flight, before the job stands still. */
  settle?(): Promise<unknown>;
  /** The last step that may fail, all jobs of the transaction having succeeded. */
  prepare?(job: Job): MaybePromise<void>;
  /** All of the transaction succeeded. Does not fail. */
  commit?(job: Job): MaybePromise<void>;
  /** This or another one of the transaction did not. Does not fail. */
  abort?(job: Job): MaybePromise<void>;
  /** After either. Does not fail. */
  clean?(job: Job): MaybePromise<void>;
  /** A ready job is to complete. */
  complete?(job: Job): void;
  /** Returns whether the job is cancelled by force; without this it always is. */
  cancel?(job: Job, force: boolean): boolean;
  /** More for query-block-jobs. */
  details?(): Partial<BlockJobInfo>;
}

/** What every kind of job is started with. */
export interface JobOptions {
  /** Unique among jobs; a letter, then letters, digits, -._ */
  jobId: string;
  /** Bytes a second at most, 0 (unless given): no limit. */
  speed?: number;
  /** Goes on from pending by itself; true unless given. */
  autoFinalize?: boolean;
  /** Vanishes when it has concluded; true unless given. */
  autoDismiss?: boolean;
  /** With which it ends; one of its own unless given. */
  transaction?: JobTransaction;
}

/** A failure whose message is QEMU's own, while that of a failed request is the C library's. */
export class JobFailure extends BlockError {}

/** See the module's head. */
export class Job {
  /** Unique among jobs. */
  readonly id: string;
  /** What it does. */
  readonly type: JobType;
  /** Goes on from pending by itself. */
  readonly autoFinalize: boolean;
  /** Vanishes when it has concluded. */
  readonly autoDismiss: boolean;
  /** How far it is: bytes, mostly. */
  readonly progress = { current: 0, total: 0 };

  readonly #jobs: Jobs;
  readonly #driver: JobDriver;
  readonly #transaction: JobTransaction;
  readonly #limit: RateLimit;
  readonly #backends: BlockBackend[] = [];
  readonly #blockedNodes: BlockNode[] = [];
  readonly #runEnd = Promise.withResolvers<void>();
  readonly #concluded = Promise.withResolvers<void>();
  #status: JobStatus = "created";
  /** Reasons to stand still. */
  #pauseCount = 0;
  #isUserPaused = false;
  #isStarted = false;
  #hasRunEnded = false;
  #isCancelRequested = false;
  #isCancelled = false;
  #failure: BlockError | null = null;
  #ioStatus: IoStatus = "ok";
  #isBusy = false;
  /** Wakes it where it sleeps. */
  #wake: (() => void) | null = null;

  /** For Jobs.create. */
  constructor(jobs: Jobs, driver: JobDriver, options: JobOptions) {
    this.id = options.jobId;
    this.type = driver.type;
    this.autoFinalize = options.autoFinalize ?? true;
    this.autoDismiss = options.autoDismiss ?? true;
    this.#jobs = jobs;
    this.#driver = driver;
    this.#limit = new RateLimit(jobs.clock);
    checkSpeed(options.speed ?? 0);
    this.#limit.speed = options.speed ?? 0;
    this.#transaction = options.transaction ?? new JobTransaction();
    this.#transaction.join(this);
  }

  /** Where it is in its life. */
  get status(): JobStatus {
    return this.#status;
  }

  /** Where its nodes are. */
  get graph(): BlockGraph {
    return this.#jobs.graph;
  }

  /** Bytes a second at most, 0: no limit. */
  get speed(): number {
    return this.#limit.speed;
  }

  /** BLOCK_JOB_* events tell of it, and query-block-jobs. */
  get isBlockJob(): boolean {
    return this.#driver.isBlockJob;
  }

  /** Cancelled by force: it is to end now. */
  get isCancelled(): boolean {
    return this.#isCancelled;
  }

  /** Cancelled, or asked to end without completing. */
  get isCancelRequested(): boolean {
    return this.#isCancelRequested;
  }

  /** It may be completed. */
  get isReady(): boolean {
    return this.#status === "ready" || this.#status === "standby";
  }

  /** It has a reason to stand still. */
  get isPauseRequested(): boolean {
    return this.#pauseCount > 0;
  }

  /** Its work has ended, well or not. */
  get isCompleted(): boolean {
    return ["waiting", "pending", "aborting", "concluded", "null"].includes(this.#status);
  }

  /** It failed or was cancelled. */
  get hasFailed(): boolean {
    return this.#failure !== null || this.#isCancelled;
  }

  /** Why it failed, in our own words; null also for one that was cancelled. */
  get failure(): BlockError | null {
    return this.#failure;
  }

  /** Why it failed, in QEMU's words. */
  get error(): string | null {
    if (!this.isCompleted) return null;
    const failure = this.#failure;
    if (failure !== null) {
      return failure instanceof JobFailure ? failure.message : errorText(failure.code);
    }
    return this.#isCancelled ? "Operation canceled" : null;
  }

  /** What query-jobs shows. */
  info(): JobInfo {
    return {
      id: this.id,
      type: this.type,
      status: this.#status,
      currentProgress: this.progress.current,
      totalProgress: this.progress.total,
      ...(this.error === null ? {} : { error: this.error }),
    };
  }

  /** What query-block-jobs shows. */
  blockInfo(): BlockJobInfo {
    return {
      type: this.type,
      device: this.id,
      len: this.progress.total,
      offset: this.progress.current,
      busy: this.#isBusy,
      paused: this.#pauseCount > 0,
      speed: this.speed,
      ioStatus: this.#ioStatus,
      ready: this.isReady,
      status: this.#status,
      autoFinalize: this.autoFinalize,
      autoDismiss: this.autoDismiss,
      ...(this.error === null ? {} : { error: this.error }),
      ...this.#driver.details?.(),
    };
  }

  /** Resolves when it has concluded. */
  whenConcluded(): Promise<void> {
    return this.#concluded.promise;
  }

  // Verbs, for people.

  /** Lets it stand still after what it is doing now. */
  pause(): void {
    this.#checkVerb("pause");
    if (this.#isUserPaused) throw new BlockError("EINVAL", "Job is already paused");
    this.#isUserPaused = true;
    this.#pauseCount++;
    this.wake();
  }

  /** Lets it go on, unless it stands still for another reason. */
  resume(): void {
    if (!this.#isUserPaused) {
      throw new BlockError("EINVAL", "Can't resume a job that was not paused");
    }
    this.#checkVerb("resume");
    this.#endUserPause();
    this.wake();
  }

  /** Ends it early. Without `force` a ready job may end well, as its kind decides. */
  async cancel({ force = true }: { force?: boolean } = {}): Promise<void> {
    this.#checkVerb("cancel");
    this.requestCancel(force);
    if (!this.#isStarted) return await this.#completed();
    if (!this.#hasRunEnded) return this.wake();
    if (force) await this.#transaction.abort(this);
  }

  /** Completes a ready job. Its end comes later. */
  complete(): void {
    this.#checkVerb("complete");
    if (this.#isCancelRequested || this.#driver.complete === undefined) {
      const message = `The active block job '${this.id}' cannot be completed`;
      throw new BlockError("EINVAL", message);
    }
    this.#driver.complete(this);
    this.wake();
  }

  /** Ends a pending job, and those of its transaction. */
  async finalize(): Promise<void> {
    this.#checkVerb("finalize");
    await this.#transaction.finalize();
  }

  /** Forgets a concluded job. */
  dismiss(): void {
    this.#checkVerb("dismiss");
    this.#dismiss();
  }

  /** Bytes a second at most from now on, 0: no limit. */
  setSpeed(speed: number): void {
    this.#checkVerb("set-speed");
    checkSpeed(speed);
    const isFaster = speed === 0 || speed > this.speed;
    this.#limit.speed = speed;
    if (isFaster) this.wake();
  }

  // For whoever starts it.

  /** Takes a node for its work: see BlockBackendOptions. Others' jobs are kept off the node. */
  addNode(node: BlockNode, use: { name: string; perm: number; shared: number }): BlockBackend {
    const backend = new JobBackend(this.graph, {
      name: this.id,
      nodeName: node.nodeName,
      perm: use.perm,
      shared: use.shared,
      description: `${this.type} job '${this.id}'`,
      edgeName: use.name,
    });
    this.#backends.push(backend);
    this.#blockedNodes.push(node);
    this.#jobs.block(node, this);
    return backend;
  }

  /** Gives its nodes back. */
  async releaseNodes(): Promise<void> {
    for (const node of this.#blockedNodes.splice(0)) this.#jobs.unblock(node, this);
    for (const backend of this.#backends.splice(0).reverse()) await backend.release();
  }

  /** Begins the work. */
  start(): void {
    assert(this.#status === "created", `job '${this.id}' is started twice`);
    this.#isStarted = true;
    this.#isBusy = true;
    this.#become("running");
    this.#run().catch((error) => this.#jobs.reportBug(error));
  }

  // For drivers.

  /** A drained section covers a node of the job: no operation may begin. */
  get isHeld(): boolean {
    return this.#backends.some(({ isHeld }) => isHeld);
  }

  /** Resolves when that has changed. Look again then. */
  async whenFree(): Promise<void> {
    await this.#backends.find(({ isHeld }) => isHeld)?.whenFree();
  }

  /**
   * Begins an operation on the job's nodes, which drained sections wait for. Its requests go to the
   * nodes, not to the backends. The job must not be held.
   */
  async begin<T>(operation: () => MaybePromise<T>): Promise<T> {
    const backends = [...this.#backends];
    for (const backend of backends) backend.beginOperation();
    try {
      return await operation();
    } finally {
      for (const backend of backends) backend.endOperation();
    }
  }

  /** Begins an operation as soon as the job is not held. */
  async operate<T>(operation: () => MaybePromise<T>): Promise<T> {
    while (this.isHeld) await this.whenFree();
    return await this.begin(operation);
  }

  /** Gives the event loop a turn, then stands still as long as there is a reason to. */
  async pausePoint(): Promise<void> {
    await new Promise<void>((resolve) => globalThis.setImmediate(resolve));
    if (!this.isPauseRequested || this.#isCancelled) return;
    await this.#driver.settle?.();
    if (!this.isPauseRequested || this.#isCancelled) return;
    const status = this.#status;
    this.#become(status === "ready" ? "standby" : "paused");
    while (this.isPauseRequested && !this.#isCancelled) await this.#sleep(null);
    this.#become(status);
  }

  /** Sleeps, unless it is told to stand still or to end; `null`: until it is woken. */
  async sleep(ms: number | null): Promise<void> {
    if (this.#isCancelled) return;
    if (!this.isPauseRequested) await this.#sleep(ms);
    await this.pausePoint();
  }

  /** Wakes it where it sleeps. */
  wake(): void {
    this.#wake?.();
  }

  /** Keeps to the speed limit after `bytes` were moved. A faster limit ends the wait. */
  async keepSpeed(bytes: number): Promise<void> {
    const delayMs = this.#limit.delayMs(bytes);
    if (delayMs > 0) await this.sleep(delayMs);
  }

  /** It may be completed now. */
  becomeReady(): void {
    this.#become("ready");
    this.#emitBlockJob("BLOCK_JOB_READY");
  }

  /** What to do about an error, as its policy says; tells of it, and lets the job stand still. */
  handleError(policy: OnError, isRead: boolean, error: BlockError): ErrorAction {
    const isFull = error.code === "ENOSPC";
    const action = policy === "enospc" ? (isFull ? "stop" : "report") : policy;
    this.#jobs.emit({
      event: "BLOCK_JOB_ERROR",
      data: { device: this.id, operation: isRead ? "read" : "write", action },
    });
    if (action === "stop") {
      if (!this.#isUserPaused) {
        this.#isUserPaused = true;
        this.#pauseCount++;
      }
      if (this.#ioStatus === "ok") this.#ioStatus = isFull ? "nospace" : "failed";
    }
    return action;
  }

  // For its transaction.

  /** Asks it to end, by force or not; it is not woken. */
  requestCancel(force: boolean): void {
    const isForced = this.#driver.cancel?.(this, force) ?? true;
    if (this.#isUserPaused) this.#endUserPause();
    if (!isForced && this.#hasRunEnded) return;
    this.#isCancelRequested = true;
    if (isForced) this.#isCancelled = true;
    this.wake();
  }

  /** All of its transaction succeeded. */
  becomePending(): void {
    this.#become("pending");
    if (this.autoFinalize || !this.isBlockJob) return;
    this.#jobs.emit({ event: "BLOCK_JOB_PENDING", data: { type: this.type, id: this.id } });
  }

  /** The last step that may fail. */
  async prepareEnd(): Promise<void> {
    try {
      await this.#driver.prepare?.(this);
    } catch (error) {
      this.#fail(error);
    }
    this.#noteFailure();
  }

  /** Resolves when its work has ended. */
  async whenCompleted(): Promise<void> {
    if (this.#isStarted) await this.#runEnd.promise;
    this.#noteFailure();
  }

  /** Commits or aborts what it did, and tells. */
  async end(): Promise<void> {
    this.#noteFailure();
    if (this.hasFailed) await this.#driver.abort?.(this);
    else await this.#driver.commit?.(this);
    await this.#driver.clean?.(this);
    await this.releaseNodes();
    if (!this.#isStarted) return;
    this.#emitBlockJob(this.#isCancelled ? "BLOCK_JOB_CANCELLED" : "BLOCK_JOB_COMPLETED");
  }

  /** It is over. */
  conclude(): void {
    this.#become("concluded");
    if (this.autoDismiss || !this.#isStarted) this.#dismiss();
    this.#concluded.resolve();
  }

  /** What should have followed its creation failed: it is not to be. */
  async discard(): Promise<void> {
    await this.releaseNodes();
    this.#transaction.leave(this);
    this.#dismiss();
  }

  /** The state it is created in, told to all. For Jobs. */
  announce(): void {
    this.#emitStatus();
  }

  async #run(): Promise<void> {
    await this.#standHeld();
    await this.pausePoint();
    try {
      if (!this.#isCancelled) await this.#driver.run(this);
    } catch (error) {
      this.#fail(error);
    }
    await this.#completed();
  }

  /** A job that is started in a drained section stands still to its end. */
  async #standHeld(): Promise<void> {
    if (!this.isHeld) return;
    this.#become("paused");
    while (this.isHeld && !this.#isCancelled) await this.whenFree();
    this.#become("running");
  }

  async #completed(): Promise<void> {
    this.#hasRunEnded = true;
    this.#isBusy = false;
    this.#noteFailure();
    if (!this.hasFailed) this.#become("waiting");
    this.#runEnd.resolve();
    if (this.hasFailed) await this.#transaction.abort(this);
    else await this.#transaction.succeeded();
  }

  #fail(error: unknown): void {
    if (!(error instanceof BlockError)) throw error;
    if (!this.#isCancelled) this.#failure ??= error;
  }

  #noteFailure(): void {
    if (this.hasFailed && this.#status !== "aborting") this.#become("aborting");
  }

  #endUserPause(): void {
    this.#isUserPaused = false;
    this.#ioStatus = "ok";
    this.#pauseCount--;
  }

  async #sleep(ms: number | null): Promise<void> {
    let stopTimer = (): void => {};
    this.#isBusy = false;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      if (ms !== null) stopTimer = this.#jobs.clock.after(ms, resolve);
    });
    this.#wake = null;
    stopTimer();
    this.#isBusy = true;
  }

  #dismiss(): void {
    this.#become("null");
    this.#jobs.forget(this);
  }

  #checkVerb(verb: JobVerb): void {
    if (STATES_OF_VERB[verb].includes(this.#status)) return;
    throw new BlockError(
      "EPERM",
      `Job '${this.id}' in state '${this.#status}' cannot accept command verb '${verb}'`,
    );
  }

  #become(status: JobStatus): void {
    if (status === this.#status) return;
    assert(STATES_AFTER[this.#status].includes(status), `job: ${this.#status} to ${status}`);
    this.#status = status;
    this.#emitStatus();
  }

  #emitStatus(): void {
    this.#jobs.emit({
      event: "JOB_STATUS_CHANGE",
      data: { id: this.id, status: this.#status },
    });
  }

  #emitBlockJob(event: "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED" | "BLOCK_JOB_READY"): void {
    if (!this.isBlockJob) return;
    const data: BlockJobEventData = {
      type: this.type,
      device: this.id,
      len: this.progress.total,
      offset: this.progress.current,
      speed: this.speed,
    };
    if (event === "BLOCK_JOB_COMPLETED" && this.error !== null) data.error = this.error;
    this.#jobs.emit({ event, data });
  }
}

function checkSpeed(speed: number): void {
  if (Number.isSafeInteger(speed) && speed >= 0) return;
  throw new BlockError("EINVAL", "Parameter 'speed' expects a non-negative value");
}
