/** All commands of the monitor. @module */

import type { QmpCommand } from "../command.ts";
import { bitmapCommands } from "./bitmap.ts";
import { blockdevCommands } from "./blockdev.ts";
import { controlCommands } from "./control.ts";
import { createCommands } from "./create.ts";
import { exportCommands } from "./export.ts";
import { jobCommands } from "./job.ts";
import { jobStartCommands } from "./job_start.ts";
import { machineCommands } from "./machine.ts";
import { objectCommands } from "./object.ts";
import { queryCommands } from "./query.ts";
import { transactionCommands } from "./transaction.ts";

/** The commands; those of a machine where there is one. */
export function allCommands(hasMachine: boolean): QmpCommand[] {
  return [
    ...controlCommands,
    ...objectCommands,
    ...exportCommands,
    ...bitmapCommands,
    ...blockdevCommands,
    ...queryCommands,
    ...jobCommands,
    ...jobStartCommands,
    ...transactionCommands,
    ...createCommands,
    ...(hasMachine ? machineCommands : []),
  ];
}
