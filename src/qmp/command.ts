/**
 * What a command of the monitor is: a name, the type of its arguments, declared once, from which
 * they are checked and described (query-qmp-schema), and what it does.
 *
 * @module
 */

import type { BlockdevTypes } from "../block/open/blockdev.ts";
import type { JsonObject, JsonValue } from "../block/open/json.ts";
import { type Fields, type Parsed, type QapiType, rootPlace, struct } from "../block/open/qapi.ts";
import type { MaybePromise } from "../block/types.ts";
import type { Monitor } from "./monitor.ts";

/** What commands give back: JSON, or nothing, which is answered with `{}`. */
export type CommandResult = JsonValue | void;

/** A command, its arguments of whatever type. */
export interface QmpCommand {
  /** As clients name it. */
  readonly name: string;
  /** The type of its arguments. `types`: those of blockdev-add. */
  arguments(types: BlockdevTypes): QapiType<unknown>;
  /** Checks arguments and carries the command out. Throws BlockErrors and QmpErrors. */
  run(input: JsonObject, monitor: Monitor, form?: { isKeyval?: boolean }): MaybePromise<
    CommandResult
  >;
}

/** A command whose arguments are an object with these members. */
export function command<F extends Fields>(
  name: string,
  fields: F | ((types: BlockdevTypes) => F),
  run: (args: Parsed<F>, monitor: Monitor) => MaybePromise<CommandResult>,
): QmpCommand {
  return commandOf(name, (types) => {
    return struct(`q_obj_${name}-arg`, typeof fields === "function" ? fields(types) : fields);
  }, run);
}

/** A command whose arguments are of any type. */
export function commandOf<T>(
  name: string,
  type: (types: BlockdevTypes) => QapiType<T>,
  run: (args: T, monitor: Monitor) => MaybePromise<CommandResult>,
): QmpCommand {
  return {
    name,
    arguments: type,
    run: (input, monitor, form = {}) => {
      const parsed = type(monitor.context.drivers.types).parse(input, rootPlace(form));
      return run(parsed, monitor);
    },
  };
}
