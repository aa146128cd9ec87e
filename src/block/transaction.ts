/**
 * Transactions: several actions at one moment, on several disks, all of them or none (QEMU's
 * `transaction`).
 *
 *   prepare, one after the other        what can be made before the moment
 *   one drained section over all disks: apply, one after the other; then finish, likewise
 *     | an error in any of these: undo, the last first; everything is as before
 *   commit, still in the section        can't fail; jobs start
 *
 * Each action sees what those before it did. No request is in flight between the first `apply` and
 * the last `commit`, nor can a guest see anything that is undone.
 *
 * @module
 */

import { type BitmapAction, type BitmapChange, changeBitmap } from "./bitmap_actions.ts";
import type { BlockLayer } from "./block_layer.ts";
import { toBlockError } from "./errors.ts";
import { type Fleecing, type FleecingOptions, FleecingStart } from "./fleecing.ts";
import { type BackupOptions, prepareBackup } from "./jobs/backup.ts";
import type { Job } from "./jobs/job.ts";
import { JobTransaction } from "./jobs/job_transaction.ts";
import type { BlockNode } from "./node.ts";
import { ExternalSnapshot, type ExternalSnapshotOptions } from "./external_snapshot.ts";
import type { MaybePromise } from "./types.ts";

/** One action. Those on bitmaps, and `abort`, which always fails, are BitmapAction. */
export type TransactionAction =
  | BitmapAction
  | { type: "blockdev-backup"; options: BackupOptions }
  | { type: "blockdev-snapshot"; options: ExternalSnapshotOptions }
  | { type: "fleecing"; options: FleecingOptions };

/** What an action left, in the place of the action: a job, a fleecing, an overlay, or nothing. */
export type TransactionResult = Job | Fleecing | BlockNode | null;

/** How jobs of a transaction end: each by itself, or all together. */
export type CompletionMode = "individual" | "grouped";

/** An action on its way: see the module's head. `undo` may come at any time. */
interface Step {
  /** Held still with all above them; asked for after `prepare`. */
  nodes(): readonly BlockNode[];
  prepare?(): MaybePromise<void>;
  apply(): MaybePromise<void>;
  finish?(): void;
  commit?(): MaybePromise<void>;
  undo(): MaybePromise<void>;
  result?(): TransactionResult;
}

/** Carries all actions out, or none: then throws the BlockError of the one that failed. */
export async function runTransaction(
  layer: BlockLayer,
  actions: readonly TransactionAction[],
  options: { completionMode?: CompletionMode } = {},
): Promise<TransactionResult[]> {
  const jobs = options.completionMode === "grouped" ? new JobTransaction() : null;
  const steps = actions.map((action) => stepOf(layer, action, jobs));
  const begun: Step[] = [];
  try {
    for (const step of steps) {
      begun.push(step);
      await step.prepare?.();
    }
    await layer.graph.drained(steps.flatMap((step) => step.nodes()), async () => {
      try {
        for (const step of steps) await step.apply();
        for (const step of steps) step.finish?.();
      } catch (error) {
        await undo(begun);
        throw error;
      }
      // The last first, as QEMU does it: so jobs start.
      for (const step of [...steps].reverse()) await step.commit?.();
    });
  } catch (error) {
    await undo(begun);
    throw toBlockError(error);
  }
  return steps.map((step) => step.result?.() ?? null);
}

/** Undoes what was done, the last first, once. */
async function undo(steps: Step[]): Promise<void> {
  for (const step of steps.splice(0).reverse()) await step.undo();
}

function stepOf(
  layer: BlockLayer,
  action: TransactionAction,
  jobs: JobTransaction | null,
): Step {
  switch (action.type) {
    case "blockdev-backup":
      return backupStep(
        layer,
        jobs === null ? action.options : {
          ...action.options,
          transaction: jobs,
        },
      );
    case "blockdev-snapshot": {
      const snapshot = new ExternalSnapshot(layer.graph, action.options);
      return {
        nodes: () => [action.options.node],
        prepare: () => snapshot.prepare(),
        apply: () => snapshot.apply(),
        commit: () => snapshot.commit(),
        undo: () => snapshot.undo(),
        result: () => snapshot.overlay,
      };
    }
    case "fleecing": {
      const start = new FleecingStart(layer.graph, action.options);
      return {
        nodes: () => start.nodes,
        prepare: () => start.prepare(),
        apply: () => start.freeze(),
        finish: () => start.show(),
        undo: () => start.undo(),
        result: () => start.result(),
      };
    }
    default:
      return bitmapStep(layer, action);
  }
}

function backupStep(layer: BlockLayer, options: BackupOptions): Step {
  let job: Job | null = null;
  return {
    nodes: () => [options.source],
    apply: async () => {
      job = await prepareBackup(layer, options);
    },
    commit: () => job?.start(),
    undo: () => job?.cancel(),
    result: () => job,
  };
}

function bitmapStep(layer: BlockLayer, action: BitmapAction): Step {
  let change: BitmapChange | null = null;
  return {
    nodes: () => "node" in action ? [action.node] : [],
    apply: () => {
      change = changeBitmap(layer.bitmaps, action);
    },
    commit: () => change?.commit?.(),
    undo: () => change?.undo(),
  };
}
