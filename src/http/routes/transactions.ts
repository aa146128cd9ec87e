/** Transactions: several actions on a machine's disks at one moment. @module */

import { z } from "@hono/zod-openapi";
import type { Machine } from "../../vm/machine.ts";
import type { Service } from "../../vm/service.ts";
import type { TransactionOrder, TransactionOutcome } from "../../vm/transaction.ts";
import { JobSchema, TransactionSchema } from "../disk_schemas.ts";
import type { Links } from "../links.ts";
import { json, type Router } from "../router.ts";
import { FleecingSchema, VmParams } from "../schemas.ts";
import type { Parsed } from "../zod_types.ts";
import { describeFleecing, toFleecingOrder } from "./fleecings.ts";
import { toJobOrder } from "./jobs.ts";

const ResultsSchema = z.object({
  results: z.array(z.object({
    type: z.string(),
    fleecing: FleecingSchema.optional(),
    job: JobSchema.optional(),
  })).describe("In the order of the actions"),
}).openapi("TransactionResults");

/** Adds the route. */
export function addTransactionRoute(router: Router, service: Service, links: Links): void {
  router.add({
    method: "post",
    path: "/v1/vms/{vm}/transactions",
    tag: "Transactions",
    summary: "Carry out actions at one moment",
    description: "Between two guest requests, on several disks, all or none: fleecings, backups, " +
      "snapshots (a new active image upon the one before) and changes of bitmaps. Disks have their " +
      "names in the machine. A fleecing sees bitmaps as they were before the changes behind it.",
    params: VmParams,
    body: TransactionSchema,
    answers: [{ status: 201, description: "All done", body: ResultsSchema }],
    problems: [
      "vmNotFound",
      "wrongState",
      "badReference",
      "nameTaken",
      "limitReached",
      "deviceBusy",
      "outOfRange",
      "notSupported",
      "noSpace",
      "stopping",
    ],
  }, async ({ request, params, body }) => {
    const machine = service.machines.get(params.vm);
    const outcomes = await machine.transact(body.actions.map(toOrder));
    const results = outcomes.map((outcome) => describe(outcome, { machine, links, request }));
    return json({ results }, { status: 201 });
  });
}

function toOrder(action: Parsed<typeof TransactionSchema>["actions"][number]): TransactionOrder {
  switch (action.type) {
    case "fleecing": {
      const { type, ...body } = action;
      return { type, order: toFleecingOrder(body) };
    }
    case "backup": {
      const order = toJobOrder(action);
      if (order.type !== "backup") throw new Error("a backup that is none");
      return { type: "backup", order };
    }
    case "bitmap-add": {
      const { type, disk, name, granularityBytes = null, persistent = null, disabled } = action;
      const options = { granularityBytes, isPersistent: persistent, isDisabled: disabled };
      return { type, disk, name, ...options };
    }
    case "bitmap-merge": {
      const { type, disk: own, target } = action;
      const bitmaps = action.bitmaps.map(({ disk = own, name }) => ({ disk, name }));
      return { type, disk: own, target, bitmaps };
    }
    default:
      return action;
  }
}

function describe(
  outcome: TransactionOutcome,
  context: { machine: Machine; links: Links; request: Request },
): z.input<typeof ResultsSchema>["results"][number] {
  const { type } = outcome;
  if (outcome.type === "fleecing") {
    return { type, fleecing: describeFleecing(outcome.status, context) };
  }
  return outcome.type === "backup" ? { type, job: outcome.job } : { type };
}
