/**
 * The jobs of a worker's disks, as the control isolate knows them: it starts and commands them, and
 * is told of each change of status, of progress at most once a second, and of the end.
 *
 *   started --...--> concluded: told with its error, then dismissed here; the control isolate keeps it
 *
 * Jobs that a monitor started are told of too; only their monitor dismisses them.
 *
 * @module
 */

import type { BlockLayer } from "../block/block_layer.ts";
import type { Job } from "../block/jobs/job.ts";
import type { JobEvent } from "../block/jobs/types.ts";
import type { IoEvent, JobCommand, JobInfo } from "./messages.ts";

const PROGRESS_MS = 1000;

/** See the module's head. */
export class StorageJobs {
  readonly #block: BlockLayer;
  readonly #emit: (event: IoEvent) => void;
  readonly #unlisten: () => void;
  /** Those started here, with their disks. */
  readonly #own = new Map<string, { disk: string; onEnd: (job: Job) => Promise<void> }>();
  #timer: ReturnType<typeof setInterval> | null = null;

  /** Follows all jobs of `block`. */
  constructor(block: BlockLayer, emit: (event: IoEvent) => void) {
    this.#block = block;
    this.#emit = emit;
    this.#unlisten = block.jobs.onEvent((event) => this.#onEvent(event));
  }

  /** Starts a job on `disk` by `start`; `onEnd` puts away what only the job needed. */
  async start(
    id: string,
    options: { disk: string; start: () => Promise<Job>; onEnd?: (job: Job) => Promise<void> },
  ): Promise<JobInfo> {
    const onEnd = options.onEnd ?? (() => Promise.resolve());
    this.#own.set(id, { disk: options.disk, onEnd });
    try {
      return this.#describe(await options.start());
    } catch (error) {
      this.#own.delete(id);
      throw error;
    }
  }

  /** Asks something of a job. Throws where its status does not allow that, or it is not there. */
  async command(id: string, command: JobCommand): Promise<void> {
    const job = this.#block.jobs.get(id);
    switch (command) {
      case "cancel":
        // A mirror or commit that is ready ends without its switch; anything else just ends.
        return await job.cancel();
      case "finalize":
        return await job.finalize();
      default:
        job[command]();
    }
  }

  /** Changes a job's limit. */
  setSpeed(id: string, speed: number): void {
    this.#block.jobs.get(id).setSpeed(speed);
  }

  /** All jobs. */
  list(): JobInfo[] {
    return this.#block.jobs.list().map((job) => this.#describe(job));
  }

  /** Cancels all and waits for their end. */
  async close(): Promise<void> {
    await this.#block.jobs.close();
    this.#unlisten();
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
  }

  #describe(job: Job): JobInfo {
    const { id, type, status, currentProgress, totalProgress, error } = job.info();
    const disk = this.#own.get(id)?.disk ?? "";
    const { speed } = job;
    return { id, type, disk, status, currentProgress, totalProgress, speed, error: error ?? null };
  }

  #onEvent(event: JobEvent): void {
    if (event.event !== "JOB_STATUS_CHANGE") return;
    const { id, status } = event.data;
    const job = this.#block.jobs.find(id);
    if (job === undefined) return;
    if (status !== "null") this.#emit({ type: "job", job: this.#describe(job) });
    const own = this.#own.get(id);
    if (status === "concluded" && own !== undefined) {
      // The status is being changed right now.
      queueMicrotask(() => void this.#putAway(job, own.onEnd));
    }
    this.#follow();
  }

  async #putAway(job: Job, onEnd: (job: Job) => Promise<void>): Promise<void> {
    await job.whenConcluded();
    await onEnd(job);
    if (job.status === "concluded") job.dismiss();
    this.#own.delete(job.id);
    this.#follow();
  }

  /** A timer runs while there are jobs. */
  #follow(): void {
    const hasJobs = this.#block.jobs.list().length > 0;
    if (hasJobs && this.#timer === null) {
      this.#timer = setInterval(() => this.#report(), PROGRESS_MS);
    } else if (!hasJobs && this.#timer !== null) {
      clearInterval(this.#timer);
      this.#timer = null;
    }
  }

  #report(): void {
    for (const job of this.#block.jobs.list()) {
      if (job.status === "running" || job.status === "ready") {
        this.#emit({ type: "job", job: this.#describe(job) });
      }
    }
  }
}
