/**
 * All jobs of the service, in QEMU's words: those that run, and the newest of those that ended.
 *
 *   begin --> (what the worker says) --> concluded --forget--> (gone)
 *
 * A job lives in the worker of its disk and ends with it. The worker forgets a job when it has
 * concluded; this book keeps how it ended until it is dismissed, or too many others have ended.
 *
 * @module
 */

import { limits } from "../limits.ts";
import type { JobInfo } from "../machine/messages.ts";
import { ServiceError } from "./errors.ts";
import type { EventLog } from "./event_log.ts";
import type { Log } from "./log.ts";

/** A job as clients see it. */
export interface JobEntry extends JobInfo {
  /** The machine that has the disk, null: none has. */
  readonly vm: string | null;
  /** The disk that the job makes, null: none. */
  readonly target: string | null;
  /** ISO 8601, UTC. */
  readonly createdAt: string;
  /** When it concluded: ISO 8601, UTC. */
  endedAt: string | null;
}

/** Where a job lives. `disk`: the resource. */
export interface JobOrigin {
  /** The machine, null: none. */
  vm: string | null;
  /** The disk. */
  disk: string;
}

/** See the module's head. */
export class JobBook {
  readonly #events: EventLog;
  readonly #log: Log;
  readonly #jobs = new Map<string, JobEntry>();
  /** What is to be done when a job has concluded. */
  readonly #onEnd = new Map<string, (job: JobEntry) => Promise<void>>();
  /** Ends of jobs that are being put away. */
  readonly #ending = new Set<Promise<void>>();
  #count = 0;

  /** Empty. */
  constructor(events: EventLog, log: Log) {
    this.#events = events;
    this.#log = log;
  }

  /** An id for a job that got none. */
  freeId(type: string): string {
    for (;;) {
      const id = `${type}-${++this.#count}`;
      if (!this.#jobs.has(id)) return id;
    }
  }

  /**
   * A job that is about to start. Throws nameTaken. `onEnd` is called once, when it has concluded.
   */
  begin(
    job: { id: string; type: string; speed: number; target: string | null } & JobOrigin,
    onEnd: (job: JobEntry) => Promise<void>,
  ): void {
    if (this.#jobs.has(job.id)) {
      throw new ServiceError("nameTaken", `there is a job named ${job.id} already`);
    }
    const active = this.list().filter((other) => other.disk === job.disk && other.endedAt === null);
    if (active.length >= limits.jobsPerVm) {
      throw new ServiceError("limitReached", `disk ${job.disk} has ${limits.jobsPerVm} jobs`);
    }
    this.#forgetOld();
    const createdAt = new Date().toISOString();
    const progress = { currentProgress: 0, totalProgress: 0 };
    const state = { status: "created", error: null, endedAt: null };
    this.#jobs.set(job.id, { ...job, ...progress, ...state, createdAt });
    this.#onEnd.set(job.id, onEnd);
  }

  /** It did not start. */
  drop(id: string): void {
    this.#jobs.delete(id);
    this.#onEnd.delete(id);
  }

  /** A job; throws jobNotFound. */
  get(id: string): JobEntry {
    const job = this.#jobs.get(id);
    if (job === undefined) throw new ServiceError("jobNotFound", `there is no job named ${id}`);
    return job;
  }

  /** By id. */
  list(): JobEntry[] {
    return [...this.#jobs.values()].sort((a, b) => a.id < b.id ? -1 : 1);
  }

  /** Whether a machine or a disk has jobs that go on. */
  hasActive(of: { vm?: string; disk?: string }): boolean {
    return this.#activeOf(of).length > 0;
  }

  /** What a worker says of a job: perhaps of one that a monitor started. */
  note(info: JobInfo, origin: JobOrigin): void {
    const known = this.#jobs.get(info.id);
    if (known?.endedAt) return;
    const job: JobEntry = known ??
      { ...info, ...origin, target: null, createdAt: new Date().toISOString(), endedAt: null };
    Object.assign(job, { ...info, disk: job.disk });
    this.#jobs.set(job.id, job);
    if (job.status === "concluded" || job.status === "null") this.#conclude(job);
    this.#tell(job);
  }

  /** The worker of these jobs has ended: so have they. */
  endAll(of: { vm?: string; disk?: string }, reason: string): void {
    for (const job of this.#activeOf(of)) {
      job.status = "concluded";
      job.error ??= reason;
      this.#conclude(job);
      this.#tell(job);
    }
  }

  /** Resolves when what ended jobs leave is put away. */
  async settle(): Promise<void> {
    await Promise.all(this.#ending);
  }

  /** A job that has concluded is no longer shown. */
  dismiss(id: string): void {
    if (this.get(id).endedAt === null) {
      throw new ServiceError("wrongState", `job ${id} has not concluded`);
    }
    this.#jobs.delete(id);
    this.#events.add("job.dismissed", { id });
  }

  /** Resolves when the job has one of the states, or has concluded; false: it took too long. */
  async waitFor(
    id: string,
    states: readonly string[],
    options: { timeoutMs: number; signal: AbortSignal },
  ): Promise<boolean> {
    this.get(id);
    const isThere = () => {
      const { status, endedAt } = this.#jobs.get(id) ?? { status: "null", endedAt: "" };
      return endedAt !== null || states.includes(status);
    };
    await this.#events.waitFor(isThere, options);
    // Whoever waited for the end finds disks as the job leaves them.
    if (this.#jobs.get(id)?.endedAt) await this.settle();
    return isThere();
  }

  #conclude(job: JobEntry): void {
    job.endedAt = new Date().toISOString();
    const onEnd = this.#onEnd.get(job.id);
    this.#onEnd.delete(job.id);
    if (onEnd === undefined) return;
    const ending = onEnd(job).catch((error: unknown) =>
      this.#log.error("what job {job} leaves could not be put away: {error}", {
        job: job.id,
        error,
      })
    ).finally(() => this.#ending.delete(ending));
    this.#ending.add(ending);
  }

  #tell(job: JobEntry): void {
    this.#events.add("job.changed", { ...job });
  }

  #activeOf({ vm, disk }: { vm?: string; disk?: string }): JobEntry[] {
    return [...this.#jobs.values()].filter((job) =>
      job.endedAt === null && (vm === undefined ? job.disk === disk : job.vm === vm)
    );
  }

  #forgetOld(): void {
    const ended = [...this.#jobs.values()].filter(({ endedAt }) => endedAt !== null);
    for (const { id } of ended.slice(0, Math.max(0, ended.length - limits.jobsKept + 1))) {
      this.#jobs.delete(id);
    }
  }
}
