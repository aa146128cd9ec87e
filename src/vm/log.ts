/**
 * The log that the service and its parts are given. Where the lines go is set up by the command
 * line.
 *
 * @module
 */

import type { Logger } from "@logtape/logtape";

/** A logger of logtape's: messages with `{name}`, and the values of those names beside them. */
export type Log = Logger;
