/**
 * The vocabulary of jobs: states, verbs, events and what queries show, in QEMU's words (job.c,
 * blockjob.c, qapi/job.json, qapi/block-core.json).
 *
 * @module
 */

/** What a job does. */
export type JobType = "backup" | "mirror" | "commit" | "stream" | "create";

/** Where a job is in its life: see job.ts. */
export type JobStatus =
  | "created"
  | "running"
  | "paused"
  | "ready"
  | "standby"
  | "waiting"
  | "pending"
  | "aborting"
  | "concluded"
  | "null";

/** What a person may do with a job. */
export type JobVerb =
  | "cancel"
  | "pause"
  | "resume"
  | "set-speed"
  | "complete"
  | "finalize"
  | "dismiss";

/** What a job does about an error of its source or target. */
export type OnError = "report" | "ignore" | "stop" | "enospc";

/** What it did. */
export type ErrorAction = "report" | "ignore" | "stop";

/** Whether a job goes well: "failed" and "nospace" while it stands still after an error. */
export type IoStatus = "ok" | "failed" | "nospace";

/** The state in which each verb is accepted (job.c, JobVerbTable). */
export const STATES_OF_VERB: Record<JobVerb, readonly JobStatus[]> = {
  cancel: ["created", "running", "paused", "ready", "standby", "waiting", "pending"],
  pause: ["created", "running", "paused", "ready", "standby"],
  resume: ["created", "running", "paused", "ready", "standby"],
  "set-speed": ["created", "running", "paused", "ready", "standby"],
  complete: ["ready", "standby"],
  finalize: ["pending"],
  dismiss: ["concluded"],
};

/** The states that may follow each state (job.c, JobSTT). */
export const STATES_AFTER: Record<JobStatus, readonly JobStatus[]> = {
  created: ["running", "aborting", "null"],
  running: ["paused", "ready", "waiting", "aborting"],
  paused: ["running"],
  ready: ["standby", "waiting", "aborting"],
  standby: ["ready"],
  waiting: ["pending", "aborting"],
  pending: ["aborting", "concluded"],
  aborting: ["aborting", "concluded"],
  concluded: ["null"],
  null: [],
};

/** What every event about a block job says of it. */
export interface BlockJobEventData {
  /** What it does. */
  type: JobType;
  /** The job's id. */
  device: string;
  /** Total progress. */
  len: number;
  /** Current progress. */
  offset: number;
  /** Bytes a second at most, 0: no limit. */
  speed: number;
  /** Of one that failed. */
  error?: string;
}

/** An event, with QEMU's names and fields. */
export type JobEvent =
  | { event: "JOB_STATUS_CHANGE"; data: { id: string; status: JobStatus } }
  | {
    event: "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED" | "BLOCK_JOB_READY";
    data: BlockJobEventData;
  }
  | { event: "BLOCK_JOB_PENDING"; data: { type: JobType; id: string } }
  | {
    event: "BLOCK_JOB_ERROR";
    data: { device: string; operation: "read" | "write"; action: ErrorAction };
  };

/** What query-jobs shows. */
export interface JobInfo {
  /** Unique among jobs. */
  id: string;
  /** What it does. */
  type: JobType;
  /** Where it is in its life. */
  status: JobStatus;
  /** Progress, in no unit that means anything; bytes, mostly. */
  currentProgress: number;
  /** What progress is going to be at the end, as far as is known. */
  totalProgress: number;
  /** Why it failed. */
  error?: string;
}

/** What query-block-jobs shows. */
export interface BlockJobInfo {
  /** What it does. */
  type: JobType;
  /** The job's id. */
  device: string;
  /** Total progress. */
  len: number;
  /** Current progress. */
  offset: number;
  /** It is doing something now. */
  busy: boolean;
  /** It is told not to. */
  paused: boolean;
  /** Bytes a second at most, 0: no limit. */
  speed: number;
  /** Whether it goes well. */
  ioStatus: IoStatus;
  /** It may be completed. */
  ready: boolean;
  /** Where it is in its life. */
  status: JobStatus;
  /** It goes on from pending by itself. */
  autoFinalize: boolean;
  /** It vanishes when it has concluded. */
  autoDismiss: boolean;
  /** Why it failed. */
  error?: string;
  /** Of a mirror: writes go to both sides now. */
  activelySynced?: boolean;
}
