/** Commands that watch and steer jobs. @module */

import { BlockError } from "../../block/errors.ts";
import type { Job } from "../../block/jobs/job.ts";
import type { BlockJobInfo, JobInfo } from "../../block/jobs/types.ts";
import type { JsonObject } from "../../block/open/json.ts";
import { bool, type Fields, int, optional, str } from "../../block/open/qapi.ts";
import type { MaybePromise } from "../../block/types.ts";
import { command, type QmpCommand } from "../command.ts";
import { QmpError } from "../errors.ts";
import type { Monitor } from "../monitor.ts";

/** JobInfo. */
function describeJob(info: JobInfo): JsonObject {
  const { id, type, status, currentProgress, totalProgress, error } = info;
  return {
    id,
    type,
    status,
    "current-progress": currentProgress,
    "total-progress": totalProgress,
    ...(error === undefined ? {} : { error }),
  };
}

/** BlockJobInfo. */
function describeBlockJob(info: BlockJobInfo): JsonObject {
  const { type, device, len, offset, busy, paused, speed, ready, status, error } = info;
  return {
    type,
    device,
    len,
    offset,
    busy,
    paused,
    speed,
    "io-status": info.ioStatus,
    ready,
    status,
    "auto-finalize": info.autoFinalize,
    "auto-dismiss": info.autoDismiss,
    ...(info.activelySynced === undefined ? {} : { "actively-synced": info.activelySynced }),
    ...(error === undefined ? {} : { error }),
  };
}

/** A block job by its id. Throws a QmpError in QEMU's words. */
function blockJob(monitor: Monitor, id: string): Job {
  const job = monitor.block.jobs.find(id);
  if (job?.isBlockJob) return job;
  throw new QmpError("DeviceNotActive", `Block job '${id}' not found`);
}

type Verb = (job: Job) => MaybePromise<void>;

/** job-VERB. */
function jobCommand(name: string, verb: Verb): QmpCommand {
  return command(name, { id: str }, ({ id }, monitor) => verb(monitor.block.jobs.get(id)));
}

/** block-job-VERB, which knows block jobs only. */
function blockJobCommand(name: string, verb: Verb): QmpCommand {
  return command(
    name,
    { device: str },
    ({ device }, monitor) => verb(blockJob(monitor, device)),
  );
}

const speedFields = { device: str, speed: int } satisfies Fields;

/** See the module's head. */
export const jobCommands: readonly QmpCommand[] = [
  command(
    "query-jobs",
    {},
    (_args, monitor) => monitor.block.jobs.list().map((job) => describeJob(job.info())),
  ),
  command(
    "query-block-jobs",
    {},
    (_args, monitor) =>
      monitor.block.jobs.list().filter((job) => job.isBlockJob)
        .map((job) => describeBlockJob(job.blockInfo())),
  ),
  jobCommand("job-pause", (job) => job.pause()),
  jobCommand("job-resume", (job) => job.resume()),
  jobCommand("job-cancel", (job) => job.cancel()),
  jobCommand("job-complete", (job) => job.complete()),
  jobCommand("job-dismiss", (job) => job.dismiss()),
  jobCommand("job-finalize", (job) => job.finalize()),
  command("block-job-set-speed", speedFields, ({ device, speed }, monitor) => {
    blockJob(monitor, device).setSpeed(speed);
  }),
  command(
    "block-job-cancel",
    { device: str, force: optional(bool) },
    ({ device, force = false }, monitor) => {
      const job = blockJob(monitor, device);
      if (!force && job.blockInfo().paused) {
        throw new BlockError(
          "EBUSY",
          `The block job for device '${device}' is currently paused`,
        );
      }
      return job.cancel({ force });
    },
  ),
  blockJobCommand("block-job-pause", (job) => job.pause()),
  blockJobCommand("block-job-resume", (job) => job.resume()),
  blockJobCommand("block-job-complete", (job) => job.complete()),
  command("block-job-finalize", { id: str }, ({ id }, monitor) => blockJob(monitor, id).finalize()),
  command("block-job-dismiss", { id: str }, ({ id }, monitor) => blockJob(monitor, id).dismiss()),
];
