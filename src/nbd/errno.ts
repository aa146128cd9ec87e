/**
 * The one place where an error of the block layer becomes an error number of the protocol. The
 * allowed numbers are a closed list ("Error values"); what the list lacks is answered by its
 * nearest relative, and the reason goes into the text of a structured error.
 *
 * @module
 */

import { type BlockErrorCode, toBlockError } from "../block/errors.ts";
import { NBD_EINVAL, NBD_EIO, NBD_ENOSPC, NBD_ENOTSUP, NBD_EPERM, NBD_ESHUTDOWN } from "./codec.ts";

/** What goes on the wire for a failed request. */
export interface NbdFailure {
  /** NBD_E*. */
  readonly errno: number;
  /** For humans, where the reply has room for it. */
  readonly message: string;
}

/**
 * The answer to whatever an export threw. `isFastZero`: the request was NBD_CMD_WRITE_ZEROES with
 * NBD_CMD_FLAG_FAST_ZERO, the only one that may fail with NBD_ENOTSUP.
 */
export function failureOf(error: unknown, isFastZero = false): NbdFailure {
  const { code, message } = toBlockError(error);
  return { errno: errnoOf(code, isFastZero), message: message === "" ? code : message };
}

function errnoOf(code: BlockErrorCode, isFastZero: boolean): number {
  switch (code) {
    case "EACCES": // the protocol has none: a forbidden area of a view
    case "EPERM":
      return NBD_EPERM;
    case "ENOSPC":
    case "EFBIG":
      return NBD_ENOSPC;
    case "EINVAL":
      return NBD_EINVAL;
    case "ENOTSUP":
      return isFastZero ? NBD_ENOTSUP : NBD_EINVAL;
    case "ESHUTDOWN":
      return NBD_ESHUTDOWN;
    case "EBUSY":
    case "EIO":
    case "ENOENT":
    case "ETIMEDOUT":
      return NBD_EIO;
  }
}
