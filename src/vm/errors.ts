/**
 * The errors of the control side: one class, a closed list of codes. src/http/problem.ts maps them
 * to HTTP statuses, in one table.
 *
 * @module
 */

import type { BlockErrorCode } from "../block/errors.ts";

/** What went wrong, as clients see it in the `code` of a problem. */
export type ServiceErrorCode =
  | "imageNotFound"
  | "vmNotFound"
  | "fleecingNotFound"
  | "exportNotFound"
  | "diskNotFound"
  | "bitmapNotFound"
  | "checkpointNotFound"
  | "jobNotFound"
  | "nameTaken" // a machine, image, fleecing or export of that name exists
  | "imageInUse" // a machine refers to the image
  | "imageBuiltIn" // the image belongs to the program and can't be changed
  | "imageIncomplete" // no kernel and no firmware was uploaded yet
  | "wrongState" // the machine's state does not allow it
  | "badReference" // a name in a request's body that does not exist
  | "limitReached" // one of limits.ts
  | "bootFailed" // the boot files don't fit the machine
  | "consoleBusy" // the guest does not read its console
  | "bodyBroken" // a body that ended too early
  | "tooLarge" // a body beyond its limit
  | "rangeForbidden" // a snapshot area that may not be read
  | "deviceBusy" // in use below
  | "outOfRange"
  | "noSpace"
  | "notSupported"
  | "timedOut"
  | "ioError"
  | "machineFailed" // a worker of the machine died: a bug of ours
  | "stopping"; // the service is going down

/** An operating error of the service. A bug is an assertion, never one of these. */
export class ServiceError extends Error {
  /** What stands before the message when it is printed. */
  override readonly name = "ServiceError";
  /** The first area to blame, where one is. */
  readonly range: { offset: number; length: number } | undefined;

  /** `message` is for people and reaches clients as the problem's `detail`. */
  constructor(
    readonly code: ServiceErrorCode,
    message: string,
    options: ErrorOptions & { range?: { offset: number; length: number } | undefined } = {},
  ) {
    super(message, options);
    this.range = options.range;
  }
}

const FROM_BLOCK: Record<BlockErrorCode, ServiceErrorCode> = {
  EACCES: "rangeForbidden",
  EBUSY: "deviceBusy",
  EFBIG: "noSpace",
  EINVAL: "outOfRange",
  EIO: "ioError",
  ENOENT: "exportNotFound",
  ENOSPC: "noSpace",
  ENOTSUP: "notSupported",
  EPERM: "deviceBusy",
  ESHUTDOWN: "stopping",
  ETIMEDOUT: "timedOut",
};

/**
 * The service's error for one that came from a worker or the operating system. Anything that
 * carries no errno is a bug and is returned as it is.
 */
export function toServiceError(error: unknown): unknown {
  if (error instanceof ServiceError || !(error instanceof Error)) return error;
  const { range } = error as { range?: { offset: number; length: number } };
  const code = errnoOf(error);
  if (code === undefined || !Object.hasOwn(FROM_BLOCK, code)) return error;
  return new ServiceError(FROM_BLOCK[code as BlockErrorCode], error.message, {
    cause: error,
    range,
  });
}

/** What SQLite says when its files can't grow. */
const SQLITE_FULL = 13;

function errnoOf(error: Error): string | undefined {
  const { code, errcode } = error as { code?: unknown; errcode?: unknown };
  if (errcode === SQLITE_FULL) return "ENOSPC";
  if (typeof code === "string") return code;
  // This runtime has no code for a file that is larger than its file system allows.
  return /\(os error 27\)/.test(error.message) ? "EFBIG" : undefined;
}
