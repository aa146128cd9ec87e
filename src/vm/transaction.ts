/**
 * A transaction of a machine: what is on record of it before and after the moment, which is the
 * worker's business (machine/storage_transaction.ts).
 *
 *   each action: on record --> all at one moment --> accepted
 *                                  \--failed--> all records are taken back, the last first
 *
 * @module
 */

import type { MachineDriver } from "./driver.ts";
import type { BitmapChange, TransactionAction, TransactionResult } from "../machine/messages.ts";
import type { Disks } from "./disks.ts";
import { ServiceError } from "./errors.ts";
import type { FleecingOrder, FleecingStatus } from "./fleecings.ts";
import type { JobEntry } from "./job_book.ts";
import type { JobOrder, JobStarter } from "./job_starter.ts";
import type { Machine } from "./machine.ts";

/** An action as a client asks for it. Names of disks are the machine's. */
export type TransactionOrder =
  | BitmapChange
  | { type: "fleecing"; order: FleecingOrder }
  | { type: "backup"; order: Extract<JobOrder, { type: "backup" }> }
  | { type: "snapshot"; disk: string };

/** What an action came to. */
export type TransactionOutcome =
  | { type: "fleecing"; status: FleecingStatus }
  | { type: "backup"; job: JobEntry }
  | { type: Exclude<TransactionOrder["type"], "fleecing" | "backup"> };

/** What a transaction needs of its machine. */
export interface TransactionContext {
  /** Whose disks they are. */
  machine: Machine;
  /** Its open workers. */
  driver: MachineDriver;
  /** Where overlays go. */
  disks: Disks;
  /** Puts backups on record. */
  jobs: JobStarter;
  /** All disks, where none is named. Throws badReference. */
  chooseDisks: (names: readonly string[]) => string[];
}

/** An action on record. */
interface Begun {
  action: TransactionAction;
  accept: (result: TransactionResult) => Promise<TransactionOutcome>;
  reject: () => Promise<void>;
}

/** Carries all out, or none. */
export async function runTransaction(
  orders: readonly TransactionOrder[],
  context: TransactionContext,
): Promise<TransactionOutcome[]> {
  const begun: Begun[] = [];
  let results: TransactionResult[];
  try {
    for (const order of orders) begun.push(await begin(order, context));
    const actions = begun.map(({ action }) => action);
    results = (await context.driver.call("transact", { actions })).results;
  } catch (error) {
    for (const { reject } of begun.reverse()) await reject();
    throw error;
  }
  const outcomes: TransactionOutcome[] = [];
  for (const [index, { accept }] of begun.entries()) {
    outcomes.push(await accept(results[index] ?? null));
  }
  return outcomes;
}

async function begin(order: TransactionOrder, context: TransactionContext): Promise<Begun> {
  const { machine, driver, disks, jobs } = context;
  switch (order.type) {
    case "fleecing": {
      const { fleecings } = machine;
      const name = order.order.name ?? fleecings.freeName();
      const chosen = context.chooseDisks(order.order.disks);
      const { request, accept, reject } = await fleecings.begin(driver, {
        ...order.order,
        name,
        disks: chosen,
      });
      return {
        action: { type: "fleecing", ...request },
        accept: async (result) => {
          if (result === null || !("fleecing" in result)) throw lost();
          return { type: "fleecing", status: await accept(result.fleecing) };
        },
        reject,
      };
    }
    case "backup": {
      const { disk } = order.order;
      const { request, accept, reject } = jobs.begin({
        ...order.order,
        disk: machine.resourceOf(disk),
      });
      if (request.type !== "backup") throw lost();
      return {
        action: { ...request, disk },
        accept: (result) => {
          if (result === null || !("job" in result)) throw lost();
          return Promise.resolve({ type: "backup", job: accept(result.job) });
        },
        reject,
      };
    }
    case "snapshot": {
      const overlay = disks.newOverlay(machine.resourceOf(order.disk));
      return plain({ ...order, overlay });
    }
    default:
      machine.resourceOf(order.disk);
      return plain(order);
  }
}

/** An action of which nothing is on record here. */
function plain(action: Extract<TransactionAction, { disk: string }>): Begun {
  const { type } = action;
  if (type === "backup") throw lost();
  return {
    action,
    accept: () => Promise.resolve({ type }),
    reject: () => Promise.resolve(),
  };
}

function lost(): ServiceError {
  return new ServiceError("machineFailed", "the worker's answer is to another question");
}
