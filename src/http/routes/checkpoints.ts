/** Checkpoints: moments from which on changes are recorded. @module */

import type { z } from "@hono/zod-openapi";
import type { DirtyBitmapInfo } from "../../machine/messages.ts";
import type { Machine } from "../../vm/machine.ts";
import type { Service } from "../../vm/service.ts";
import type { CheckpointRecord } from "../../vm/store.ts";
import { CheckpointParams, CheckpointSchema } from "../disk_schemas.ts";
import { readPage } from "../page.ts";
import { json, noContent, type Router } from "../router.ts";
import { pageOf, PageQuery, VmParams } from "../schemas.ts";

const tag = "Checkpoints";

/** Adds the routes. */
export function addCheckpointRoutes(router: Router, service: Service): void {
  router.add({
    method: "get",
    path: "/v1/vms/{vm}/checkpoints",
    tag,
    summary: "List a machine's checkpoints",
    description:
      "A fleecing with `checkpoint` begins one; a later fleecing `since` it shows what " +
      "changed, and ends it when it is completed with success.",
    params: VmParams,
    query: PageQuery,
    answers: [{ status: 200, description: "By name", body: pageOf(CheckpointSchema) }],
    problems: ["vmNotFound"],
  }, async ({ params, query }) => {
    const machine = service.machines.get(params.vm);
    const page = readPage(query, {
      list: ({ after, limit }) =>
        machine.checkpoints.list().filter(({ name }) => name > after).slice(0, limit),
      nameOf: ({ name }) => name,
      describe: (record) => describe(record, { machine, service }),
    });
    return json({ ...page, items: await Promise.all(page.items) });
  });

  router.add({
    method: "get",
    path: "/v1/vms/{vm}/checkpoints/{checkpoint}",
    tag,
    summary: "Show a checkpoint with what changed since",
    params: CheckpointParams,
    answers: [{ status: 200, description: "The checkpoint", body: CheckpointSchema }],
    problems: ["vmNotFound", "checkpointNotFound"],
  }, async ({ params }) => {
    const machine = service.machines.get(params.vm);
    return json(await describe(machine.checkpoints.get(params.checkpoint), { machine, service }));
  });

  router.add({
    method: "delete",
    path: "/v1/vms/{vm}/checkpoints/{checkpoint}",
    tag,
    summary: "Remove a checkpoint with its bitmaps",
    params: CheckpointParams,
    answers: [{ status: 204, description: "Gone" }],
    problems: ["vmNotFound", "checkpointNotFound", "deviceBusy", "stopping"],
  }, async ({ params }) => {
    await service.machines.get(params.vm).removeCheckpoint(params.checkpoint);
    return noContent();
  });
}

async function describe(
  { name, vm, createdAt, disks }: CheckpointRecord,
  { machine, service }: { machine: Machine; service: Service },
): Promise<z.input<typeof CheckpointSchema>> {
  const shown = await Promise.all(disks.map(async (disk) => {
    const bitmap = await findBitmap(service, { resource: machine.resourceOf(disk), name });
    const isUsable = bitmap !== undefined && !bitmap.inconsistent;
    return {
      disk,
      usable: isUsable,
      dirtyBytes: isUsable ? bitmap.count : null,
      persistent: bitmap?.persistent ?? null,
    };
  }));
  return { name, vm, createdAt, disks: shown };
}

async function findBitmap(
  service: Service,
  { resource, name }: { resource: string; name: string },
): Promise<DirtyBitmapInfo | undefined> {
  const { bitmaps } = await service.disks.use(
    resource,
    (driver, disk) => driver.call("diskInfo", { disk }),
  );
  return bitmaps.find((bitmap) => bitmap.name === name);
}
