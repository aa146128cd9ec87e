/**
 * Starts jobs on disks, in the worker that has the disk open, and puts away what a job leaves.
 *
 *   target on record as half made --> job runs --> concluded well: the target is a disk
 *                                              --> concluded badly: nothing of it is left
 *
 * @module
 */

import type {
  BackupRequest,
  JobCommand,
  JobErrorPolicy,
  JobRequest,
  JobRequestBase,
  NewImage,
} from "../machine/messages.ts";
import type { Disks } from "./disks.ts";
import { ServiceError } from "./errors.ts";
import type { JobBook, JobEntry } from "./job_book.ts";
import type { DiskFormat } from "./store.ts";

/** The disk that a job makes. */
export interface TargetOrder {
  /** Must be free. */
  name: string;
  format: DiskFormat;
  /** Of qcow2, null: its default. */
  clusterSizeBytes: number | null;
  /** The disk that it stands on, null: none. */
  backing: string | null;
}

/** A job as a client asks for it. */
export type JobOrder =
  & { id: string | null; disk: string; speed: number; isAutoFinalize: boolean }
  & (
    | (Omit<BackupRequest, keyof JobRequestBase | "target"> & {
      type: "backup";
      target: TargetOrder;
    })
    | {
      type: "mirror";
      sync: "full" | "top" | "none";
      copyMode: "background" | "write-blocking";
      target: TargetOrder;
      onSourceError: JobErrorPolicy;
      onTargetError: JobErrorPolicy;
    }
    | { type: "commit"; top: string | null; base: string | null; onError: JobErrorPolicy }
    | { type: "stream"; base: string | null; onError: JobErrorPolicy }
  );

/** See the module's head. */
export class JobStarter {
  /** All jobs, with what became of them. */
  readonly book: JobBook;
  readonly #disks: Disks;

  /** Jobs are on record in `book`. */
  constructor(book: JobBook, disks: Disks) {
    this.book = book;
    this.#disks = disks;
  }

  /** Starts a job. */
  async start(order: JobOrder): Promise<JobEntry> {
    return await this.prepare(order, async (request) => {
      await this.#disks.use(order.disk, async (driver, disk) => {
        const job = await driver.call("jobStart", { ...request, disk });
        const vm = this.#disks.holderOf(order.disk)?.vm ?? null;
        this.book.note({ ...job, disk: order.disk }, { vm, disk: order.disk });
      });
    });
  }

  /** Puts a job and its target on record, and calls `start`; takes both back where that fails. */
  async prepare(
    order: JobOrder,
    start: (request: JobRequest) => Promise<void>,
  ): Promise<JobEntry> {
    const id = order.id ?? this.book.freeId(order.type);
    const { disk, type, speed } = order;
    const source = this.#disks.get(disk);
    const vm = this.#disks.holderOf(disk)?.vm ?? null;
    const target = "target" in order ? order.target : null;
    this.book.begin(
      { id, type, speed, vm, disk, target: target?.name ?? null },
      (job) => this.#end(job),
    );
    try {
      const image = target && this.#disks.beginTarget(
        { ...target, sizeBytes: source.sizeBytes },
        disk,
      ).image;
      try {
        await start(requestOf(order, { id, image }));
      } catch (error) {
        if (target !== null) await this.#disks.endTarget(target.name, false);
        throw error;
      }
    } catch (error) {
      this.book.drop(id);
      throw error;
    }
    return this.book.get(id);
  }

  /** Asks something of a job. */
  async command(id: string, command: JobCommand): Promise<void> {
    const job = this.book.get(id);
    if (command === "dismiss") return this.book.dismiss(id);
    this.#checkRunning(job);
    await this.#disks.use(job.disk, (driver) => driver.call("jobCommand", { id, command }));
  }

  /** Changes a job's limit. */
  async setSpeed(id: string, speed: number): Promise<void> {
    const job = this.book.get(id);
    this.#checkRunning(job);
    await this.#disks.use(job.disk, (driver) => driver.call("jobSetSpeed", { id, speed }));
    job.speed = speed;
  }

  #checkRunning({ id, endedAt }: JobEntry): void {
    if (endedAt === null) return;
    throw new ServiceError("wrongState", `job ${id} has concluded`);
  }

  async #end(job: JobEntry): Promise<void> {
    if (job.target !== null) await this.#disks.endTarget(job.target, job.error === null);
    if (job.error !== null || (job.type !== "commit" && job.type !== "stream")) return;
    await this.#disks.use(job.disk, async (driver, disk) => {
      await this.#disks.dropOtherFiles(job.disk, await driver.call("diskInfo", { disk }));
    });
  }
}

function requestOf(
  order: JobOrder,
  { id, image }: { id: string; image: NewImage | null },
): JobRequest {
  const { target: _, ...rest } = { target: null, ...order };
  return { ...rest, id, ...(image && { target: image }) } as JobRequest;
}
