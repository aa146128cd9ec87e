/**
 * Transactions of a worker's disks in the words of messages.ts: several actions at one moment, all or
 * none (block/transaction.ts).
 *
 * @module
 */

import type { BitmapAction } from "../block/bitmap_actions.ts";
import type { BlockLayer } from "../block/block_layer.ts";
import type { Fleecing } from "../block/fleecing.ts";
import type { Job } from "../block/jobs/job.ts";
import type { TransactionAction as BlockAction } from "../block/transaction.ts";
import type {
  BackupRequest,
  BitmapChange,
  FleecingRequest,
  TransactionAction,
  TransactionResult,
} from "./messages.ts";
import { bitmapAction } from "./storage_bitmaps.ts";
import type { StorageDisks } from "./storage_disks.ts";
import type { StorageFleecings } from "./storage_fleecings.ts";
import type { StorageImages } from "./storage_images.ts";
import type { StorageJobs } from "./storage_jobs.ts";

/** What actions work on. */
export interface TransactionSurroundings {
  /** Carries them out. */
  block: BlockLayer;
  /** Found by name. */
  disks: StorageDisks;
  /** Makes overlays. */
  images: StorageImages;
  /** Takes the fleecings. */
  fleecings: StorageFleecings;
  /** Takes the backups. */
  jobs: StorageJobs;
}

/** An action, as the block layer takes it. */
interface Begun {
  actions: BlockAction[];
  /** What came of the first of `actions`. */
  accept: (result: unknown) => TransactionResult;
  reject: () => Promise<void>;
}

/** Carries out all, or none: then throws the error of the one that failed. */
export async function carryOut(
  actions: readonly TransactionAction[],
  around: TransactionSurroundings,
): Promise<TransactionResult[]> {
  const begun: Begun[] = [];
  try {
    for (const action of actions) begun.push(await begin(action, around));
    const { runTransaction } = await import("../block/transaction.ts");
    const results = await runTransaction(around.block, begun.flatMap(({ actions }) => actions));
    let index = 0;
    return begun.map(({ actions, accept }) => {
      const result = results[index];
      index += actions.length;
      return accept(result);
    });
  } catch (error) {
    for (const { reject } of begun.reverse()) await reject();
    throw error;
  }
}

function begin(action: TransactionAction, around: TransactionSurroundings): Promise<Begun> {
  switch (action.type) {
    case "fleecing":
      return beginFleecing(action, around);
    case "backup":
      return beginBackup(action, around);
    case "snapshot":
      return Promise.resolve(beginSnapshot(action, around));
    case "abort":
      return Promise.resolve(plain({ type: "abort" }));
    default:
      return Promise.resolve(plain(bitmapAction(action satisfies BitmapChange, around.disks)));
  }
}

async function beginFleecing(
  request: FleecingRequest,
  { fleecings }: TransactionSurroundings,
): Promise<Begun> {
  const { options, changes, accept, reject } = await fleecings.begin(request);
  return {
    // The view is of the bitmaps as they are before the changes.
    actions: [{ type: "fleecing", options }, ...changes],
    accept: (result) => ({ fleecing: accept(result as Fleecing) }),
    reject,
  };
}

async function beginBackup(
  request: BackupRequest,
  { jobs }: TransactionSurroundings,
): Promise<Begun> {
  const { options, accept, reject } = await jobs.beginBackup(request);
  return {
    actions: [{ type: "blockdev-backup", options }],
    accept: (result) => ({ job: accept(result as Job) }),
    reject,
  };
}

function beginSnapshot(
  { disk, overlay }: Extract<TransactionAction, { type: "snapshot" }>,
  { block, disks, images }: TransactionSurroundings,
): Begun {
  const options = {
    node: disks.get(disk).node,
    overlay: () => images.make(overlay),
    jobs: block.jobs,
  };
  return {
    actions: [{ type: "blockdev-snapshot", options }],
    accept: () => null,
    reject: () => Promise.resolve(images.discard(overlay.path)),
  };
}

function plain(action: BitmapAction): Begun {
  return { actions: [action], accept: () => null, reject: () => Promise.resolve() };
}
