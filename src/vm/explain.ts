/**
 * What errors of a machine's workers mean to clients.
 *
 * @module
 */

import { ServiceError, toServiceError } from "./errors.ts";

/**
 * What a driver's error means to clients: without an errno a worker failed, which is ours to mend.
 */
export function explainDriver(name: string, error: unknown): ServiceError {
  const mapped = toServiceError(error);
  if (mapped instanceof ServiceError) return mapped;
  const message = error instanceof Error ? error.message : String(error);
  return new ServiceError("machineFailed", `machine ${name} failed: ${message}`, { cause: error });
}

/** Whatever a client named and isn't there is the client's mistake, not a missing export. */
export function explainReference(error: unknown): unknown {
  const mapped = toServiceError(error);
  return mapped instanceof ServiceError && mapped.code === "exportNotFound"
    ? new ServiceError("badReference", mapped.message, { cause: error })
    : mapped;
}

/** The same for a file that a client named: it may also be one that must not be opened. */
export function explainFile(error: unknown): unknown {
  const explained = explainReference(error);
  const isForbidden = (error as { code?: unknown } | null)?.code === "EPERM";
  return isForbidden && explained instanceof ServiceError
    ? new ServiceError("badReference", explained.message, { cause: error })
    : explained;
}

/** A machine that does not start: bad boot files are the client's doing. */
export function explainBoot(name: string, error: unknown): ServiceError {
  const explained = explainDriver(name, error);
  return ["outOfRange", "exportNotFound", "notSupported"].includes(explained.code)
    ? new ServiceError("bootFailed", `machine ${name} can't boot: ${explained.message}`, {
      cause: error,
    })
    : explained;
}
