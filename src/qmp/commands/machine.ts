/** Commands on a machine's run state. @module */

import { command, type QmpCommand } from "../command.ts";
import type { QmpMachine } from "../machine.ts";
import type { Monitor } from "../monitor.ts";

function machineOf(monitor: Monitor): QmpMachine {
  if (monitor.machine === null) throw new Error("a machine's command without a machine");
  return monitor.machine;
}

/** See the module's head. */
export const machineCommands: readonly QmpCommand[] = [
  command("query-status", {}, (_args, monitor) => {
    const status = machineOf(monitor).runState();
    return { status, running: status === "running" };
  }),
  command("query-name", {}, (_args, monitor) => ({ name: machineOf(monitor).name })),
  command("stop", {}, (_args, monitor) => machineOf(monitor).stop()),
  command("cont", {}, (_args, monitor) => machineOf(monitor).cont()),
  command("system_reset", {}, (_args, monitor) => machineOf(monitor).reset()),
  command("system_powerdown", {}, (_args, monitor) => machineOf(monitor).powerdown()),
];
