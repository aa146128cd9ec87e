/**
 * Jobs that end together (QEMU's JobTxn): all of them finish, or all are cancelled. A job without
 * company has a transaction of its own.
 *
 *   each job ends well --> waiting --all wait--> pending --finalize--> all concluded
 *     | one fails
 *     +--> all others are cancelled by force and waited for; all concluded
 *
 * @module
 */

import type { Job } from "./job.ts";

/** See the module's head. */
export class JobTransaction {
  #jobs: Job[] = [];
  #isAborting = false;
  /** Jobs do the last that may fail: one that is cancelled meanwhile is seen when that is done. */
  #isPreparing = false;
  /** All are prepared: nothing can go wrong any more. */
  #isConcluding = false;
  #ending: Promise<void> | null = null;

  /** A job that has not started becomes part of it. The last to come is the first in everything. */
  join(job: Job): void {
    this.#jobs.unshift(job);
  }

  /** A job that has not started is none of it any more. */
  leave(job: Job): void {
    this.#jobs = this.#jobs.filter((other) => other !== job);
  }

  /** The job's work ended well: it waits for the others. */
  async succeeded(): Promise<void> {
    if (this.#isAborting || this.#jobs.some((job) => !job.isCompleted)) return;
    for (const job of this.#jobs) job.becomePending();
    if (this.#jobs.every((job) => job.autoFinalize)) await this.finalize();
  }

  /** Ends all jobs, which are pending. */
  finalize(): Promise<void> {
    this.#ending ??= this.#finalize();
    return this.#ending;
  }

  /** A job failed, or was cancelled: so do all. */
  async abort(failed: Job): Promise<void> {
    if (this.#isPreparing || this.#isConcluding) return await this.#ending ?? undefined;
    if (this.#isAborting) return;
    this.#isAborting = true;
    for (const job of this.#jobs) if (job !== failed) job.requestCancel(true);
    for (const job of [...this.#jobs]) {
      await job.whenCompleted();
      await this.#conclude(job);
    }
  }

  async #finalize(): Promise<void> {
    this.#isPreparing = true;
    let failed: Job | undefined;
    for (const job of this.#jobs) {
      failed ??= this.#jobs.find(({ hasFailed }) => hasFailed);
      if (failed === undefined) await job.prepareEnd();
    }
    this.#isPreparing = false;
    failed ??= this.#jobs.find(({ hasFailed }) => hasFailed);
    if (failed !== undefined) return await this.abort(failed);
    this.#isConcluding = true;
    for (const job of [...this.#jobs]) await this.#conclude(job);
  }

  async #conclude(job: Job): Promise<void> {
    await job.end();
    this.leave(job);
    job.conclude();
  }
}
