/**
 * Errors as the monitor answers them: QEMU's classes, and the one place that maps the block layer's
 * errors to them.
 *
 * @module
 */

import { BlockError } from "../block/errors.ts";

/** QEMU's classes of errors. All but a few are GenericError: their text says what is wrong. */
export type QmpErrorClass =
  | "GenericError"
  | "CommandNotFound"
  | "DeviceNotActive"
  | "DeviceNotFound";

/** An error with a class of its own. */
export class QmpError extends Error {
  /** What stands before the message when it is printed. */
  override readonly name = "QmpError";

  /** `description`: for people, and for clients that look at texts. */
  constructor(readonly errorClass: QmpErrorClass, description: string) {
    super(description);
  }
}

/** What a client is told of an error, null for one that is a bug of ours. */
export function describeError(error: unknown): { class: QmpErrorClass; desc: string } | null {
  if (error instanceof QmpError) return { class: error.errorClass, desc: error.message };
  if (error instanceof BlockError) return { class: "GenericError", desc: error.message };
  return null;
}
