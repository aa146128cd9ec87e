/** Dirty bitmaps of disks. @module */

import type { BitmapChange, DirtyBitmapInfo } from "../../machine/messages.ts";
import { ServiceError } from "../../vm/errors.ts";
import type { Service } from "../../vm/service.ts";
import {
  BitmapParams,
  BitmapSchema,
  DiskParams,
  MergeBitmapSchema,
  NewBitmapSchema,
} from "../disk_schemas.ts";
import { readPage } from "../page.ts";
import type { ProblemCode } from "../problem.ts";
import { json, noContent, type Router } from "../router.ts";
import { pageOf, PageQuery } from "../schemas.ts";
import { describeBitmap, explainBitmap } from "./disks.ts";

const tag = "Bitmaps";
const PATH = "/v1/disks/{disk}/bitmaps/{bitmap}";
const PROBLEMS: ProblemCode[] = [
  "diskNotFound",
  "bitmapNotFound",
  "deviceBusy",
  "outOfRange",
  "notSupported",
  "wrongState",
  "stopping",
];

/** What each request does, for the document. */
const REQUESTS = {
  clear: "Make a bitmap all clean",
  enable: "Let a bitmap record",
  disable: "Let a bitmap stand still",
} as const;

/** Adds the routes. */
export function addBitmapRoutes(router: Router, service: Service): void {
  addList(router, service);
  addMakeAndRemove(router, service);
  addRequests(router, service);
  addMerge(router, service);
}

function addList(router: Router, service: Service): void {
  router.add({
    method: "get",
    path: "/v1/disks/{disk}/bitmaps",
    tag,
    summary: "List a disk's bitmaps",
    params: DiskParams,
    query: PageQuery,
    answers: [{ status: 200, description: "By name", body: pageOf(BitmapSchema) }],
    problems: ["diskNotFound", "deviceBusy", "wrongState", "stopping"],
  }, async ({ params, query }) => {
    const bitmaps = await bitmapsOf(service, params.disk);
    bitmaps.sort((a, b) => a.name < b.name ? -1 : 1);
    return json(readPage(query, {
      list: ({ after, limit }) => bitmaps.filter(({ name }) => name > after).slice(0, limit),
      nameOf: ({ name }) => name,
      describe: describeBitmap,
    }));
  });
}

function addMakeAndRemove(router: Router, service: Service): void {
  router.add({
    method: "post",
    path: PATH,
    tag,
    summary: "Add a bitmap to a disk",
    description:
      "It marks what is written from now on. On qcow2 it is kept with the disk; on raw " +
      "it ends with the disk's worker: with its machine, or a while after its last use.",
    params: BitmapParams,
    body: NewBitmapSchema,
    answers: [{ status: 201, description: "Added", body: BitmapSchema }],
    problems: [...PROBLEMS, "nameTaken"],
  }, async ({ params, body }) => {
    const { granularityBytes = null, persistent = null, disabled } = body;
    if (await find(service, params) !== undefined) {
      const { disk, bitmap } = params;
      throw new ServiceError("nameTaken", `disk ${disk} has a bitmap named ${bitmap} already`);
    }
    await change(service, params.disk, (disk) => ({
      type: "bitmap-add",
      disk,
      name: params.bitmap,
      granularityBytes,
      isPersistent: persistent,
      isDisabled: disabled,
    }));
    return json(await show(service, params), { status: 201 });
  });

  router.add({
    method: "get",
    path: PATH,
    tag,
    summary: "Show a bitmap",
    params: BitmapParams,
    answers: [{ status: 200, description: "The bitmap", body: BitmapSchema }],
    problems: PROBLEMS,
  }, async ({ params }) => json(await show(service, params)));

  router.add({
    method: "delete",
    path: PATH,
    tag,
    summary: "Remove a bitmap",
    params: BitmapParams,
    answers: [{ status: 204, description: "Gone" }],
    problems: PROBLEMS,
  }, async ({ params }) => {
    const name = params.bitmap;
    await change(service, params.disk, (disk) => ({ type: "bitmap-remove", disk, name }));
    return noContent();
  });
}

function addRequests(router: Router, service: Service): void {
  for (const [request, summary] of Object.entries(REQUESTS)) {
    const type = `bitmap-${request as keyof typeof REQUESTS}` as const;
    router.add({
      method: "post",
      path: `${PATH}/${request}`,
      tag,
      summary,
      params: BitmapParams,
      answers: [{ status: 200, description: "Done", body: BitmapSchema }],
      problems: PROBLEMS,
    }, async ({ params }) => {
      await change(service, params.disk, (disk) => ({ type, disk, name: params.bitmap }));
      return json(await show(service, params));
    });
  }
}

function addMerge(router: Router, service: Service): void {
  router.add({
    method: "post",
    path: `${PATH}/merge`,
    tag,
    summary: "Add what other bitmaps mark to a bitmap",
    description: "Other disks' bitmaps only where one worker has both disks open: those of one " +
      "running machine.",
    params: BitmapParams,
    body: MergeBitmapSchema,
    answers: [{ status: 200, description: "Merged", body: BitmapSchema }],
    problems: [...PROBLEMS, "badReference"],
  }, async ({ params, body }) => {
    const holder = service.disks.holderOf(params.disk);
    const bitmaps = body.bitmaps.map(({ disk = params.disk, name }) => {
      const other = service.disks.holderOf(disk);
      if (disk !== params.disk && (other === null || other.vm !== holder?.vm)) {
        throw new ServiceError("badReference", `no worker has ${params.disk} and ${disk} open`);
      }
      return { disk: disk === params.disk ? null : other?.disk ?? null, name };
    });
    await change(service, params.disk, (own) => ({
      type: "bitmap-merge",
      disk: own,
      target: params.bitmap,
      bitmaps: bitmaps.map(({ disk, name }) => ({ disk: disk ?? own, name })),
    }));
    return json(await show(service, params));
  });
}

async function change(
  service: Service,
  disk: string,
  makeChange: (disk: string) => BitmapChange,
): Promise<void> {
  await service.disks.use(
    disk,
    (driver, own) => driver.call("transact", { actions: [makeChange(own)] }),
  ).catch(explainBitmap);
}

async function show(service: Service, params: { disk: string; bitmap: string }) {
  const found = await find(service, params);
  if (found !== undefined) return describeBitmap(found);
  throw new ServiceError("bitmapNotFound", `disk ${params.disk} has no bitmap ${params.bitmap}`);
}

async function find(
  service: Service,
  { disk, bitmap }: { disk: string; bitmap: string },
): Promise<DirtyBitmapInfo | undefined> {
  return (await bitmapsOf(service, disk)).find(({ name }) => name === bitmap);
}

async function bitmapsOf(service: Service, disk: string): Promise<DirtyBitmapInfo[]> {
  const { bitmaps } = await service.disks.use(
    disk,
    (driver, own) => driver.call("diskInfo", { disk: own }),
  );
  return [...bitmaps];
}
