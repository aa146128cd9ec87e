/** Disks: of machines, and by themselves. @module */

import type { z } from "@hono/zod-openapi";
import type { DirtyBitmapInfo, DiskInfo } from "../../machine/messages.ts";
import { ServiceError } from "../../vm/errors.ts";
import type { Service } from "../../vm/service.ts";
import type { DiskRecord } from "../../vm/store.ts";
import { forEachPiece } from "../body.ts";
import { streamContent } from "../content.ts";
import {
  type BitmapSchema,
  type DiskDetailsSchema,
  DiskDetailsSchema as Details,
  DiskParams,
  DiskSchema,
  JobSchema,
  NewDiskResourceSchema,
  ResizeDiskSchema,
  UploadQuery,
} from "../disk_schemas.ts";
import { answerMap, type ReadMap } from "../extents.ts";
import { readPage } from "../page.ts";
import { HttpError } from "../problem.ts";
import { chooseRange } from "../range.ts";
import { json, noContent, type Router } from "../router.ts";
import { ExtentsQuery, ExtentsSchema, pageOf, PageQuery } from "../schemas.ts";

const tag = "Disks";

/** Adds the routes. */
export function addDiskRoutes(router: Router, service: Service): void {
  addList(router, service);
  addMake(router, service);
  addShowAndChange(router, service);
  addContent(router, service);
  addExtents(router, service);
  addUpload(router, service);
}

function addList(router: Router, service: Service): void {
  router.add({
    method: "get",
    path: "/v1/disks",
    tag,
    summary: "List disks",
    description:
      "A machine's disk is the disk that it uses: one that was made with its machine is " +
      "named MACHINE:DISK and goes with it; one that was made here can be given to a machine and " +
      "stays when that goes.",
    query: PageQuery,
    answers: [{ status: 200, description: "By name", body: pageOf(DiskSchema) }],
    problems: [],
  }, ({ query }) =>
    json(readPage(query, {
      list: (page) => service.disks.list(page),
      nameOf: ({ name }) => name,
      describe: (record) => describeDisk(record, service),
    })));
}

function addMake(router: Router, service: Service): void {
  router.add({
    method: "post",
    path: "/v1/disks",
    tag,
    summary: "Make a disk",
    description: "Empty, upon another disk, from an image that is there, or as a copy: then the " +
      "answer is the job that makes it. Upload content with PUT.",
    body: NewDiskResourceSchema,
    answers: [
      { status: 201, description: "Made", body: DiskSchema },
      { status: 202, description: "A job makes it", body: JobSchema },
    ],
    problems: [
      "badReference",
      "nameTaken",
      "limitReached",
      "deviceBusy",
      "wrongState",
      "outOfRange",
      "noSpace",
      "stopping",
    ],
  }, async ({ body }) => {
    const { name, copyOf, clusterSizeBytes = null, backing = null, path = null } = body;
    const format = body.format ?? (backing === null && copyOf === undefined ? "raw" : "qcow2");
    if (copyOf !== undefined) {
      const job = await service.jobs.start({
        type: "backup",
        id: null,
        disk: copyOf,
        speed: 0,
        isAutoFinalize: true,
        sync: "full",
        bitmap: null,
        bitmapMode: null,
        isCompressed: false,
        onSourceError: "report",
        onTargetError: "report",
        target: { name, format, clusterSizeBytes, backing: null },
      });
      return json(job, { status: 202, headers: { location: `/v1/jobs/${job.id}` } });
    }
    const record = await service.disks.create({
      name,
      owner: null,
      sizeBytes: body.sizeBytes ?? null,
      format,
      clusterSizeBytes,
      backing,
      path,
    });
    return json(describeDisk(record, service), {
      status: 201,
      headers: { location: `/v1/disks/${name}` },
    });
  });
}

function addShowAndChange(router: Router, service: Service): void {
  const describe = async (name: string) => {
    const info = await service.disks.use(name, (driver, disk) => driver.call("diskInfo", { disk }));
    return json(describeDetails(service.disks.get(name), { info, service }));
  };

  router.add({
    method: "get",
    path: "/v1/disks/{disk}",
    tag,
    summary: "Show a disk with its chain and bitmaps",
    params: DiskParams,
    answers: [{ status: 200, description: "The disk", body: Details }],
    problems: ["diskNotFound", "deviceBusy", "wrongState", "ioError", "stopping"],
  }, ({ params }) => describe(params.disk));

  router.add({
    method: "patch",
    path: "/v1/disks/{disk}",
    tag,
    summary: "Resize a disk",
    description: "Also while a machine runs with it: its guest is told. Refused while a fleecing " +
      "or a job needs the size as it is.",
    params: DiskParams,
    body: ResizeDiskSchema,
    answers: [{ status: 200, description: "The disk", body: Details }],
    problems: [
      "diskNotFound",
      "deviceBusy",
      "wrongState",
      "outOfRange",
      "noSpace",
      "notSupported",
      "ioError",
      "stopping",
    ],
  }, async ({ params, body }) => {
    await service.disks.resize(params.disk, body);
    return await describe(params.disk);
  });

  router.add({
    method: "delete",
    path: "/v1/disks/{disk}",
    tag,
    summary: "Delete a disk",
    description: "Refused where a machine has it, or other disks stand on it.",
    params: DiskParams,
    answers: [{ status: 204, description: "Gone" }],
    problems: ["diskNotFound", "deviceBusy", "stopping"],
  }, async ({ params }) => {
    await service.disks.remove(params.disk);
    return noContent();
  });
}

function addContent(router: Router, service: Service): void {
  router.add({
    method: "get",
    path: "/v1/disks/{disk}/content",
    tag,
    summary: "Read a disk as it is now",
    description: "The raw bytes; `Range` is honoured (one range). While a guest writes this is " +
      "not one moment: take a fleecing for that.",
    params: DiskParams,
    answers: [
      { status: 200, description: "The whole disk", body: "application/octet-stream" },
      { status: 206, description: "The range", body: "application/octet-stream" },
    ],
    problems: [
      "diskNotFound",
      "rangeNotSatisfiable",
      "deviceBusy",
      "wrongState",
      "ioError",
      "stopping",
    ],
  }, ({ request, params }) => {
    const { name, sizeBytes } = service.disks.get(params.disk);
    const isGet = request.method === "GET";
    const choice = chooseRange(isGet ? request.headers.get("range") : null, sizeBytes);
    if (choice.kind === "unsatisfiable") {
      throw new HttpError("rangeNotSatisfiable", `the disk has ${sizeBytes} bytes`, {
        headers: { "content-range": `bytes */${sizeBytes}` },
      });
    }
    const isPart = choice.kind === "part";
    const { offset, length } = isPart ? choice : { offset: 0, length: sizeBytes };
    const headers = new Headers({
      "accept-ranges": "bytes",
      "content-type": "application/octet-stream",
      "content-disposition": `attachment; filename="${name.replace(":", "-")}.img"`,
      "content-length": String(length),
    });
    if (isPart) {
      headers.set("content-range", `bytes ${offset}-${offset + length - 1}/${sizeBytes}`);
    }
    const body = isGet
      ? streamContent(
        { offset, length },
        (part) =>
          service.disks.use(name, async (driver, disk) =>
            (await driver.call("diskRead", { disk, ...part })).bytes),
      )
      : null;
    return new Response(body, { status: isPart ? 206 : 200, headers });
  });
}

function addExtents(router: Router, service: Service): void {
  router.add({
    method: "get",
    path: "/v1/disks/{disk}/extents",
    tag,
    summary: "The map of a disk as it is now",
    description: "Runs from `offset` on, without gaps; neighbours differ. context=dirty shows " +
      "what a bitmap marks.",
    params: DiskParams,
    query: ExtentsQuery,
    answers: [{ status: 200, description: "Runs", body: ExtentsSchema }],
    problems: [
      "diskNotFound",
      "bitmapNotFound",
      "outOfRange",
      "notSupported",
      "deviceBusy",
      "wrongState",
      "ioError",
      "stopping",
    ],
  }, async ({ params, query }) => {
    const { name, sizeBytes } = service.disks.get(params.disk);
    if (query.context === "access") {
      throw new ServiceError("notSupported", "only a frozen view limits what may be read");
    }
    const read: ReadMap = (asked, part) => {
      const context = asked === "dirty" ? "dirty" : "allocation";
      return service.disks.use(
        name,
        (driver, disk) => driver.call("diskExtents", { disk, context, ...part }),
      ).catch(explainBitmap);
    };
    return json(await answerMap(query, sizeBytes, read));
  });
}

function addUpload(router: Router, service: Service): void {
  router.add({
    method: "put",
    path: "/v1/disks/{disk}/content",
    tag,
    summary: "Write to a disk that no machine has open",
    description: "The body goes to `offset`; areas of zeroes take no room. Answered when " +
      "everything is on stable storage. A body that breaks off leaves what came.",
    params: DiskParams,
    query: UploadQuery,
    rawBody: "Raw bytes, no more than the disk has from `offset` on",
    answers: [{ status: 204, description: "Written" }],
    problems: [
      "diskNotFound",
      "deviceBusy",
      "wrongState",
      "bodyBroken",
      "tooLarge",
      "noSpace",
      "outOfRange",
      "ioError",
      "stopping",
    ],
  }, async ({ request, params, query }) => {
    const { name, sizeBytes } = service.disks.get(params.disk);
    const holder = service.disks.holderOf(name);
    if (holder !== null) {
      throw new ServiceError("deviceBusy", `machine ${holder.vm} has disk ${name} open`);
    }
    if (service.disks.isStoodUpon(name)) {
      throw new ServiceError("deviceBusy", `other disks stand on disk ${name}`);
    }
    const roomBytes = Math.max(0, sizeBytes - query.offset);
    await service.disks.use(name, async (driver, disk) => {
      await forEachPiece(
        request,
        roomBytes,
        (piece, at) =>
          driver.call("diskWrite", { disk, offset: query.offset + at, bytes: piece }, [
            piece.buffer,
          ]),
      );
      await driver.call("diskFlush", { disk });
    });
    return noContent();
  });
}

/** What is missing is the bitmap, where the disk is there. */
export function explainBitmap(error: unknown): never {
  if (error instanceof ServiceError && error.code === "exportNotFound") {
    throw new ServiceError("bitmapNotFound", error.message, { cause: error });
  }
  throw error;
}

/**
 * A bitmap as clients see it.
 *
 * @internal
 */
export function describeBitmap(info: DirtyBitmapInfo): z.input<typeof BitmapSchema> {
  const { name, count, granularity, recording, busy, persistent, inconsistent } = info;
  return {
    name,
    dirtyBytes: count,
    granularityBytes: granularity,
    recording,
    busy,
    persistent,
    inconsistent,
  };
}

function describeDisk(record: DiskRecord, service: Service): z.input<typeof DiskSchema> {
  const { name, owner, format, sizeBytes, backing, createdAt } = record;
  const vm = service.disks.holderOf(name)?.vm ?? null;
  return { name, vm, owner, format, sizeBytes, backing, createdAt };
}

function describeDetails(
  record: DiskRecord,
  { info, service }: { info: DiskInfo; service: Service },
): z.input<typeof DiskDetailsSchema> {
  return {
    ...describeDisk(record, service),
    sizeBytes: info.sizeBytes,
    readOnly: info.isReadOnly,
    clusterSizeBytes: info.clusterSizeBytes,
    allocatedBytes: info.allocatedBytes,
    chain: info.chain,
    bitmaps: info.bitmaps.map(describeBitmap),
  };
}
