/** Jobs: long work on disks, in QEMU's words. @module */

import type { JobCommand } from "../../machine/messages.ts";
import type { JobOrder } from "../../vm/job_starter.ts";
import type { Service } from "../../vm/service.ts";
import { ChangeJobSchema, JobParams, JobSchema, NewJobSchema, WaitQuery } from "../disk_schemas.ts";
import { readPage } from "../page.ts";
import { HttpError } from "../problem.ts";
import { json, type Router } from "../router.ts";
import { pageOf, PageQuery } from "../schemas.ts";
import type { Parsed } from "../zod_types.ts";

const tag = "Jobs";

/** What each request does, for the document. */
const REQUESTS: Record<JobCommand, { summary: string; more: string }> = {
  cancel: { summary: "Cancel a job", more: "What it made is removed, unless it was ready." },
  pause: { summary: "Pause a job", more: "" },
  resume: { summary: "Let a paused job go on", more: "" },
  complete: {
    summary: "Complete a job that is ready",
    more: "A mirror's target, or a commit's base, becomes the disk's active image.",
  },
  finalize: { summary: "Let a pending job conclude", more: "" },
  dismiss: { summary: "Forget a job that has concluded", more: "" },
};

/** Adds the routes. `stopping` ends waits. */
export function addJobRoutes(
  router: Router,
  service: Service,
  options: { stopping: AbortSignal },
): void {
  addStartAndList(router, service);
  addShowAndChange(router, service);
  addWait(router, service, options.stopping);
  addRequests(router, service);
}

function addStartAndList(router: Router, service: Service): void {
  router.add({
    method: "post",
    path: "/v1/jobs",
    tag,
    summary: "Start a job",
    description:
      "With the arguments of QEMU's blockdev-backup, blockdev-mirror, block-commit and " +
      "block-stream. backup and mirror make a disk; its content is whole when the job concluded " +
      "without an error, and nothing is left of it otherwise. A mirror that is completed leaves " +
      "the disk's former file to the disk that it made.",
    body: NewJobSchema,
    answers: [{ status: 202, description: "It runs", body: JobSchema }],
    problems: [
      "diskNotFound",
      "badReference",
      "nameTaken",
      "limitReached",
      "deviceBusy",
      "wrongState",
      "outOfRange",
      "notSupported",
      "noSpace",
      "stopping",
    ],
  }, async ({ body }) => {
    const job = await service.jobs.start(toJobOrder(body));
    return json(job, { status: 202, headers: { location: `/v1/jobs/${job.id}` } });
  });

  router.add({
    method: "get",
    path: "/v1/jobs",
    tag,
    summary: "List jobs",
    description: "Those that run, and the newest that have concluded and were not dismissed.",
    query: PageQuery,
    answers: [{ status: 200, description: "By id", body: pageOf(JobSchema) }],
    problems: [],
  }, ({ query }) =>
    json(readPage(query, {
      list: ({ after, limit }) =>
        service.jobs.book.list().filter(({ id }) => id > after).slice(0, limit),
      nameOf: ({ id }) => id,
      describe: (job) => job,
    })));
}

function addShowAndChange(router: Router, service: Service): void {
  router.add({
    method: "get",
    path: "/v1/jobs/{job}",
    tag,
    summary: "Show a job with its progress",
    params: JobParams,
    answers: [{ status: 200, description: "The job", body: JobSchema }],
    problems: ["jobNotFound"],
  }, ({ params }) => json(service.jobs.book.get(params.job)));

  router.add({
    method: "patch",
    path: "/v1/jobs/{job}",
    tag,
    summary: "Change a job's speed limit",
    params: JobParams,
    body: ChangeJobSchema,
    answers: [{ status: 200, description: "The job", body: JobSchema }],
    problems: ["jobNotFound", "wrongState", "outOfRange", "stopping"],
  }, async ({ params, body }) => {
    await service.jobs.setSpeed(params.job, body.speed);
    return json(service.jobs.book.get(params.job));
  });
}

function addWait(router: Router, service: Service, stopping: AbortSignal): void {
  router.add({
    method: "get",
    path: "/v1/jobs/{job}/wait",
    tag,
    summary: "Wait for a job's state",
    params: JobParams,
    query: WaitQuery,
    answers: [{ status: 200, description: "It is there, or has concluded", body: JobSchema }],
    problems: ["jobNotFound", "waitTimedOut"],
  }, async ({ request, params, query }) => {
    const { book } = service.jobs;
    const isThere = await book.waitFor(params.job, query.state, {
      timeoutMs: query.timeout * 1000,
      signal: AbortSignal.any([request.signal, stopping]),
    });
    const job = book.get(params.job);
    if (isThere) return json(job);
    throw new HttpError("waitTimedOut", `job ${job.id} is ${job.status}`);
  });
}

function addRequests(router: Router, service: Service): void {
  for (const [request, { summary, more }] of Object.entries(REQUESTS)) {
    const command = request as JobCommand;
    router.add({
      method: "post",
      path: `/v1/jobs/{job}/${request}`,
      tag,
      summary,
      ...(more !== "" && { description: more }),
      params: JobParams,
      answers: [{ status: 200, description: "The job", body: JobSchema }],
      problems: ["jobNotFound", "wrongState", "outOfRange", "deviceBusy", "stopping"],
    }, async ({ params }) => {
      const job = service.jobs.book.get(params.job);
      await service.jobs.command(params.job, command);
      return json(job);
    });
  }
}

/** A job as the service takes it. */
export function toJobOrder(body: Parsed<typeof NewJobSchema>): JobOrder {
  const { id = null, disk, speed, autoFinalize: isAutoFinalize } = body;
  const common = { id, disk, speed, isAutoFinalize };
  switch (body.type) {
    case "backup":
    case "mirror": {
      const { clusterSizeBytes = null, backing = null, ...rest } = body.target;
      const target = { ...rest, clusterSizeBytes, backing };
      const { onSourceError, onTargetError } = body;
      const shared = { ...common, target, onSourceError, onTargetError };
      if (body.type === "mirror") {
        const { sync, copyMode } = body;
        return { ...shared, type: "mirror", sync, copyMode };
      }
      const { sync, bitmap = null, bitmapMode = null, compress: isCompressed } = body;
      return { ...shared, type: "backup", sync, bitmap, bitmapMode, isCompressed };
    }
    case "commit": {
      const { top = null, base = null, onError } = body;
      return { ...common, type: "commit", top, base, onError };
    }
    case "stream": {
      const { base = null, onError } = body;
      return { ...common, type: "stream", base, onError };
    }
  }
}
