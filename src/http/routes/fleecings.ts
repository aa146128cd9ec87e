/** Fleecings: frozen views of a machine's disks. @module */

import type { z } from "@hono/zod-openapi";
import { ServiceError } from "../../vm/errors.ts";
import type { FleecingOrder, FleecingStatus } from "../../vm/fleecings.ts";
import type { Machine } from "../../vm/machine.ts";
import type { Service } from "../../vm/service.ts";
import type { Links } from "../links.ts";
import { json, noContent, type Router } from "../router.ts";
import {
  CompleteFleecingSchema,
  DiscardFleecingSchema,
  FleecingParams,
  FleecingSchema,
  NewFleecingSchema,
  pageOf,
  PageQuery,
  VmParams,
} from "../schemas.ts";
import { readPage } from "../page.ts";
import type { Parsed } from "../zod_types.ts";

const tag = "Fleecings";

/** Adds the routes. */
export function addFleecingRoutes(router: Router, service: Service, links: Links): void {
  addStartRoute(router, service, links);
  addReadRoutes(router, service, links);
  addEndRoutes(router, service);
  addDiscardRoute(router, service);
}

function addStartRoute(router: Router, service: Service, links: Links): void {
  router.add({
    method: "post",
    path: "/v1/vms/{vm}/fleecings",
    tag,
    summary: "Freeze a view of disks",
    description:
      "From this moment on the exports show the disks as they are now, while the guest " +
      "goes on writing. All disks are frozen at one moment, between two guest requests. A write " +
      "that reached the disk is in the view; what the guest keeps in its own caches is not.",
    params: VmParams,
    body: NewFleecingSchema,
    answers: [{ status: 201, description: "The view stands", body: FleecingSchema }],
    problems: [
      "vmNotFound",
      "wrongState",
      "badReference",
      "nameTaken",
      "limitReached",
      "noSpace",
      "deviceBusy",
      "notSupported",
      "stopping",
    ],
  }, async ({ request, params, body }) => {
    const machine = service.machines.get(params.vm);
    const status = await machine.startFleecing(toFleecingOrder(body));
    return json(describeFleecing(status, { machine, links, request }), {
      status: 201,
      headers: { location: `/v1/vms/${params.vm}/fleecings/${status.fleecing.name}` },
    });
  });
}

function addReadRoutes(router: Router, service: Service, links: Links): void {
  router.add({
    method: "get",
    path: "/v1/vms/{vm}/fleecings",
    tag,
    summary: "List a machine's fleecings",
    params: VmParams,
    query: PageQuery,
    answers: [{ status: 200, description: "By name", body: pageOf(FleecingSchema) }],
    problems: ["vmNotFound"],
  }, async ({ request, params, query }) => {
    const machine = service.machines.get(params.vm);
    const page = readPage(query, {
      list: ({ after, limit }) =>
        machine.fleecings.list().filter(({ name }) => name > after).slice(0, limit),
      nameOf: ({ name }) => name,
      describe: ({ name }) => machine.fleecingStatus(name),
    });
    const items = await Promise.all(page.items);
    return json({
      ...page,
      items: items.map((status) => describeFleecing(status, { machine, links, request })),
    });
  });

  router.add({
    method: "get",
    path: "/v1/vms/{vm}/fleecings/{fleecing}",
    tag,
    summary: "Show a fleecing with its figures",
    params: FleecingParams,
    answers: [{ status: 200, description: "As it stands", body: FleecingSchema }],
    problems: ["vmNotFound", "fleecingNotFound"],
  }, async ({ request, params }) => {
    const machine = service.machines.get(params.vm);
    const status = await machine.fleecingStatus(params.fleecing);
    return json(describeFleecing(status, { machine, links, request }));
  });
}

function addEndRoutes(router: Router, service: Service): void {
  router.add({
    method: "post",
    path: "/v1/vms/{vm}/fleecings/{fleecing}/complete",
    tag,
    summary: "End a fleecing, saying what its reader made of it",
    description:
      "Its readers are cut off and its temporary images removed. A view that broke can " +
      "only be a failure.",
    params: FleecingParams,
    body: CompleteFleecingSchema,
    answers: [{ status: 204, description: "Gone" }],
    problems: ["vmNotFound", "fleecingNotFound", "wrongState", "stopping"],
  }, async ({ params, body }) => {
    await service.machines.get(params.vm).stopFleecing(params.fleecing, body.result);
    return noContent();
  });

  router.add({
    method: "delete",
    path: "/v1/vms/{vm}/fleecings/{fleecing}",
    tag,
    summary: "End a fleecing",
    description: "As `complete` with the result `failure`: its readers are cut off and its " +
      "temporary images removed, nothing is left behind, and nothing will be missed.",
    params: FleecingParams,
    answers: [{ status: 204, description: "Gone" }],
    problems: ["vmNotFound", "fleecingNotFound", "wrongState", "stopping"],
  }, async ({ params }) => {
    await service.machines.get(params.vm).stopFleecing(params.fleecing);
    return noContent();
  });
}

function addDiscardRoute(router: Router, service: Service): void {
  router.add({
    method: "post",
    path: "/v1/vms/{vm}/fleecings/{fleecing}/discard",
    tag,
    summary: "Say that a part was read",
    description: "It can't be read any more, what was copied of it is dropped, and guest writes " +
      "there copy nothing any more.",
    params: FleecingParams,
    body: DiscardFleecingSchema,
    answers: [{ status: 204, description: "Dropped" }],
    problems: [
      "vmNotFound",
      "fleecingNotFound",
      "badReference",
      "outOfRange",
      "notSupported",
      "wrongState",
    ],
  }, async ({ params, body }) => {
    const machine = service.machines.get(params.vm);
    const { exports } = machine.fleecings.get(params.fleecing);
    const isOnly = body.disk === undefined && exports.length === 1;
    const view = isOnly ? exports[0] : exports.find(({ disk }) => disk === body.disk);
    if (view === undefined) {
      const names = exports.map(({ disk }) => disk).join(", ");
      throw new ServiceError("badReference", `say which disk of the fleecing: ${names}`);
    }
    const { ranges } = body;
    await machine.call("exportDiscard", { exportName: view.name, ranges });
    return noContent();
  });
}

/** A fleecing as the service takes it. */
export function toFleecingOrder(body: Parsed<typeof NewFleecingSchema>): FleecingOrder {
  const { name = null, minClusterSize, ...rest } = body;
  return { ...rest, name, minClusterSizeBytes: minClusterSize };
}

/**
 * A fleecing as clients see it.
 *
 * @internal
 */
export function describeFleecing(
  { fleecing, disks }: FleecingStatus,
  { machine, links, request }: { machine: Machine; links: Links; request: Request },
): z.input<typeof FleecingSchema> {
  const { name, createdAt, onCbwError, cbwTimeoutSeconds, bitmap, brokenBy } = fleecing;
  const { scheme, since, checkpoint, expiresAt, estimate } = fleecing;
  const figuresOf = new Map(disks.map((disk) => [disk.disk, disk]));
  return {
    name,
    vm: machine.record.name,
    state: brokenBy === null ? "active" : "broken",
    brokenBy,
    createdAt,
    onCbwError,
    cbwTimeoutSeconds,
    bitmap,
    scheme,
    since,
    checkpoint,
    expiresAt,
    scratch: {
      maxBytes: fleecing.scratchMaxBytes,
      usedBytes: disks.reduce((sum, disk) => sum + disk.scratchUsedBytes, 0),
      estimateBytes: estimate.needBytes,
      roomBytes: estimate.roomBytes,
      warning: estimate.needBytes <= estimate.roomBytes
        ? null
        : "the guest may overwrite more than there is room for",
    },
    exports: fleecing.exports.flatMap((info) => {
      const figures = figuresOf.get(info.disk);
      if (figures === undefined) return [];
      const { tag: _, ...shown } = info;
      return [{
        ...shown,
        ...links.of(info, { request, nbd: machine.nbd }),
        incremental: figures.incremental,
        clusterSizeBytes: figures.clusterSizeBytes,
        copiedBytes: figures.copiedBytes,
        clustersDone: figures.clustersDone,
        clustersTotal: figures.clustersTotal,
        refusedReads: figures.refusedReads,
        guestWaitMs: figures.guestWaitMs,
        scratchUsedBytes: figures.scratchUsedBytes,
      }];
    }),
  };
}
