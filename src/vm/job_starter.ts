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
  JobInfo,
  JobRequest,
  JobRequestBase,
  NewImage,
} from "../machine/messages.ts";
import type { Disks } from "./disks.ts";
import { ServiceError } from "./errors.ts";
import { explainReference } from "./explain.ts";
import type { JobBook, JobEntry } from "./job_book.ts";
import type { DiskFormat } from "./store.ts";

/** The disk that a job makes. */
export interface TargetOrder {
  /** Must be free. */
  name: string;
  /** How its content is kept. */
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

/** A job on record that is about to start. */
export interface BegunJob {
  /** What the worker is asked for; the disk's name is still the resource's. */
  readonly request: JobRequest;
  /** The worker has started it. */
  readonly accept: (job: JobInfo) => JobEntry;
  /** It has not: nothing is left. */
  readonly reject: () => Promise<void>;
}

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
    const begun = this.begin(order);
    try {
      return await this.#disks.use(
        order.disk,
        async (driver, disk) =>
          begun.accept(await driver.call("jobStart", { ...begun.request, disk })),
      );
    } catch (error) {
      await begun.reject();
      // Bitmaps and nodes that the order names are a client's mistake, where they are not there.
      throw explainReference(error);
    }
  }

  /** Puts a job and its target on record before it starts, alone or in a transaction. */
  begin(order: JobOrder): BegunJob {
    const id = order.id ?? this.book.freeId(order.type);
    const { disk, type, speed } = order;
    const { sizeBytes } = this.#disks.get(disk);
    const vm = this.#disks.holderOf(disk)?.vm ?? null;
    const target = "target" in order ? order.target : null;
    this.book.begin(
      { id, type, speed, vm, disk, target: target?.name ?? null },
      (job) => this.#end(job),
    );
    const reject = async () => {
      this.book.drop(id);
      if (target !== null) await this.#disks.endTarget(target.name, false);
    };
    try {
      const image = target && this.#disks.beginTarget({ ...target, sizeBytes }, disk).image;
      const accept = (job: JobInfo) => {
        this.book.note({ ...job, disk }, { vm, disk });
        return this.book.get(id);
      };
      return { request: requestOf(order, { id, image }), accept, reject };
    } catch (error) {
      this.book.drop(id);
      throw error;
    }
  }

  /** Asks something of a job. */
  async command(id: string, command: JobCommand): Promise<void> {
    const job = this.book.get(id);
    if (command === "dismiss") return this.book.dismiss(id);
    this.#checkRunning(job);
    await this.#disks.useFor(job, (driver) => driver.call("jobCommand", { id, command }));
  }

  /** Changes a job's limit. */
  async setSpeed(id: string, speed: number): Promise<void> {
    const job = this.book.get(id);
    this.#checkRunning(job);
    await this.#disks.useFor(job, (driver) => driver.call("jobSetSpeed", { id, speed }));
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
