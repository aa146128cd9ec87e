/** Machines and their life. @module */

import type { z } from "@hono/zod-openapi";
import type { LifeCycleRequest } from "../../vm/life_cycle.ts";
import type { Machine } from "../../vm/machine.ts";
import { profileMachine } from "../../vm/profiler.ts";
import type { Service } from "../../vm/service.ts";
import { WaitQuery } from "../disk_schemas.ts";
import { readPage } from "../page.ts";
import { HttpError } from "../problem.ts";
import { json, noContent, type Router } from "../router.ts";
import {
  NewProfileSchema,
  NewVmSchema,
  pageOf,
  PageQuery,
  ProfileSchema,
  VmParams,
  VmSchema,
} from "../schemas.ts";

const tag = "Machines";

/** What each request does, for the document. */
const REQUESTS: Record<Exclude<LifeCycleRequest, "delete">, { summary: string; more: string }> = {
  start: {
    summary: "Start a stopped machine",
    more: "Boots from the image's files as they are now. A running machine stays as it is.",
  },
  stop: {
    summary: "Stop a machine",
    more: "As if its power was cut: requests that the disks have taken are finished and flushed, " +
      "the guest is not asked. Fleecings end. The disks stay.",
  },
  pause: { summary: "Pause a machine", more: "Its disks can still be read and fleeced." },
  resume: { summary: "Let a paused machine run on", more: "" },
  reset: {
    summary: "Reset a machine",
    more: "RAM and devices are cleared and it boots again. Fleecings stay.",
  },
};

/** Adds the routes. `stopping` ends waits. */
export function addVmRoutes(
  router: Router,
  service: Service,
  options: { stopping: AbortSignal },
): void {
  addListAndMake(router, service);
  addShowAndDelete(router, service);
  addRequests(router, service);
  addWait(router, service, options.stopping);
  addProfile(router, service, options.stopping);
}

function addListAndMake(router: Router, service: Service): void {
  router.add({
    method: "get",
    path: "/v1/vms",
    tag,
    summary: "List machines",
    query: PageQuery,
    answers: [{ status: 200, description: "By name", body: pageOf(VmSchema) }],
    problems: [],
  }, ({ query }) =>
    json(readPage(query, {
      list: (options) => service.machines.list(options),
      nameOf: ({ record }) => record.name,
      describe: (machine) => describeVm(machine, service),
    })));

  router.add({
    method: "post",
    path: "/v1/vms",
    tag,
    summary: "Make a machine and start it",
    description:
      "If it does not start, nothing of it is left. With `start: false` it is only made.",
    body: NewVmSchema,
    answers: [{ status: 201, description: "Made, and running if asked for", body: VmSchema }],
    problems: [
      "badReference",
      "deviceBusy",
      "outOfRange",
      "imageIncomplete",
      "nameTaken",
      "limitReached",
      "bootFailed",
      "machineFailed",
      "noSpace",
      "stopping",
    ],
  }, async ({ body }) => {
    const machine = await service.machines.create({
      name: body.name,
      image: body.image,
      memoryBytes: body.memoryBytes,
      hartCount: body.harts,
      accel: body.accel,
      disks: body.disks.map(({ name, readOnly, sizeBytes = 0, format, ...rest }) => ({
        name,
        sizeBytes,
        isReadOnly: readOnly,
        format: format ?? (rest.backing === undefined ? "raw" : "qcow2"),
        clusterSizeBytes: rest.clusterSizeBytes ?? null,
        backing: rest.backing ?? null,
        ...(rest.disk !== undefined && { disk: rest.disk }),
      })),
      start: body.start,
    });
    return json(describeVm(machine, service), {
      status: 201,
      headers: { location: `/v1/vms/${body.name}` },
    });
  });
}

function addShowAndDelete(router: Router, service: Service): void {
  router.add({
    method: "get",
    path: "/v1/vms/{vm}",
    tag,
    summary: "Show a machine",
    params: VmParams,
    answers: [{ status: 200, description: "The machine", body: VmSchema }],
    problems: ["vmNotFound"],
  }, ({ params }) => json(describeVm(service.machines.get(params.vm), service)));

  router.add({
    method: "delete",
    path: "/v1/vms/{vm}",
    tag,
    summary: "Stop a machine and delete it with its disks",
    params: VmParams,
    answers: [{ status: 204, description: "Gone" }],
    problems: ["vmNotFound", "stopping"],
  }, async ({ params }) => {
    await service.machines.remove(params.vm);
    return noContent();
  });
}

function addWait(router: Router, service: Service, stopping: AbortSignal): void {
  router.add({
    method: "get",
    path: "/v1/vms/{vm}/wait",
    tag,
    summary: "Wait for a machine's state",
    params: VmParams,
    query: WaitQuery,
    answers: [{ status: 200, description: "It is there", body: VmSchema }],
    problems: ["vmNotFound", "waitTimedOut"],
  }, async ({ request, params, query }) => {
    const states = query.state.length === 0 ? ["running"] : query.state;
    const machine = service.machines.get(params.vm);
    await service.events.waitFor(() => states.includes(machine.state), {
      timeoutMs: query.timeout * 1000,
      signal: AbortSignal.any([request.signal, stopping]),
    });
    if (states.includes(machine.state)) return json(describeVm(machine, service));
    throw new HttpError("waitTimedOut", `machine ${params.vm} is ${machine.state}`);
  });
}

function addProfile(router: Router, service: Service, stopping: AbortSignal): void {
  router.add({
    method: "post",
    path: "/v1/vms/{vm}/profile",
    tag,
    summary: "Look where a machine spends its time",
    description: "Every millisecond that a hart runs it is seen where it is. The guest notices " +
      "nothing. If the machine is stopped the answer comes at once, with what was seen.",
    params: VmParams,
    body: NewProfileSchema,
    answers: [{ status: 200, description: "What was seen", body: ProfileSchema }],
    problems: ["vmNotFound", "wrongState", "deviceBusy"],
  }, async ({ request, params, body }) => {
    const signal = AbortSignal.any([request.signal, stopping]);
    const machine = service.machines.get(params.vm);
    return json(await profileMachine(machine, { seconds: body.seconds, signal }));
  });
}

function addRequests(router: Router, service: Service): void {
  for (const [request, { summary, more }] of Object.entries(REQUESTS)) {
    router.add({
      method: "post",
      path: `/v1/vms/{vm}/${request}`,
      tag,
      summary,
      ...(more !== "" && { description: more }),
      params: VmParams,
      answers: [{ status: 200, description: "The machine is there", body: VmSchema }],
      problems: ["vmNotFound", "wrongState", "bootFailed", "machineFailed", "noSpace", "stopping"],
    }, async ({ params }) => {
      const machine = service.machines.get(params.vm);
      await machine.request(request as LifeCycleRequest);
      return json(describeVm(machine, service));
    });
  }
}

function describeVm(machine: Machine, service: Service): z.input<typeof VmSchema> {
  const { record, state, since, failure, exit, fleecings } = machine;
  return {
    name: record.name,
    state,
    since: since.toISOString(),
    failure,
    exit,
    image: record.image,
    memoryBytes: record.memoryBytes,
    harts: record.hartCount,
    accel: record.accel ?? "interpreter",
    translator: machine.translator,
    disks: record.disks.map(({ name, sizeBytes, isReadOnly }) => {
      const disk = machine.resourceOf(name);
      const found = service.disks.find(disk);
      const format = found?.format ?? "raw";
      return { name, disk, format, sizeBytes: found?.sizeBytes ?? sizeBytes, readOnly: isReadOnly };
    }),
    qmp: machine.qmp,
    checkpoints: machine.checkpoints.list().map(({ name }) => name),
    fleecings: fleecings.list().map(({ name }) => name),
    createdAt: record.createdAt,
  };
}
