/** Commands about the monitor itself. @module */

import { BlockError } from "../../block/errors.ts";
import { list, oneOf, optional } from "../../block/open/qapi.ts";
import { command, type QmpCommand } from "../command.ts";
import { describeCommands } from "../schema.ts";
import { versionInfo } from "../session.ts";

/** See the module's head. */
export const controlCommands: readonly QmpCommand[] = [
  // Sessions answer it themselves; it is here to be listed and described.
  command("qmp_capabilities", {
    enable: optional(list(oneOf("QMPCapability", ["oob"]))),
  }, () => {
    throw new BlockError("EINVAL", "Capabilities negotiation is already complete, command ignored");
  }),
  command("query-version", {}, () => versionInfo()),
  command(
    "query-commands",
    {},
    (_args, monitor) => [...monitor.commands.keys()].map((name) => ({ name })).reverse(),
  ),
  command("query-qmp-schema", {}, (_args, monitor) => describeCommands(monitor)),
  command("quit", {}, (_args, monitor) => monitor.quit()),
];
