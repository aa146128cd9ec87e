/**
 * The errors of the block layer. One class, a closed list of codes named as in errno(3): every edge
 * (virtio status, NBD error number, HTTP problem) maps them in exactly one function of its own.
 *
 * @module
 */

import type { ByteRange } from "./types.ts";

/** What went wrong, in the words of errno(3). */
export type BlockErrorCode =
  | "EACCES" // a snapshot area that may not be read, or a snapshot that broke
  | "EBUSY" // in use: node, bitmap, file
  | "EFBIG" // a file system's largest file was exceeded
  | "EINVAL" // out of range, or arguments that contradict each other
  | "EIO" // the medium failed
  | "ENOENT" // no such node, bitmap or file
  | "ENOSPC" // no room left
  | "ENOTSUP" // the driver can't do that
  | "EPERM" // a permission that the user of a node does not hold, or a read-only node
  | "ESHUTDOWN" // the service is stopping
  | "ETIMEDOUT"; // outran its time limit

/** An operating error of a block node. A bug is an assertion, never one of these. */
export class BlockError extends Error {
  /** What stands before the message when it is printed. */
  override readonly name = "BlockError";
  /** The first area that is to blame, where one is: what a reader of a snapshot may not read. */
  readonly range: ByteRange | null;

  /** `message` is for people: it reaches the log, and clients of HTTP and NBD. */
  constructor(
    readonly code: BlockErrorCode,
    message: string,
    options: ErrorOptions & { range?: ByteRange } = {},
  ) {
    super(message, options);
    this.range = options.range ?? null;
  }
}

/** The block error for anything that was thrown: itself, a mapped system error, else EIO. */
export function toBlockError(error: unknown): BlockError {
  if (error instanceof BlockError) return error;
  const message = error instanceof Error ? error.message : String(error);
  const code: unknown = (error as { code?: unknown } | null)?.code ?? systemCode(message);
  switch (code) {
    case "EACCES":
    case "EBUSY":
    case "EFBIG":
    case "EINVAL":
    case "ENOENT":
    case "ENOSPC":
    case "EPERM":
    case "ETIMEDOUT":
      return new BlockError(code, message, { cause: error });
    case "EDQUOT":
      return new BlockError("ENOSPC", message, { cause: error });
    case "ENOTSUP":
    case "EOPNOTSUPP":
      return new BlockError("ENOTSUP", message, { cause: error });
    default:
      return new BlockError("EIO", message, { cause: error });
  }
}

/** Linux error numbers for which the runtime gives no code, only the number in the message. */
const SYSTEM_CODES: Record<string, string> = { "27": "EFBIG", "95": "EOPNOTSUPP", "122": "EDQUOT" };

function systemCode(message: string): string | undefined {
  return SYSTEM_CODES[/\(os error (\d+)\)$/.exec(message)?.[1] ?? ""];
}

const ERROR_TEXTS: Record<BlockErrorCode, string> = {
  EACCES: "Permission denied",
  EBUSY: "Device or resource busy",
  EFBIG: "File too large",
  EINVAL: "Invalid argument",
  EIO: "Input/output error",
  ENOENT: "No such file or directory",
  ENOSPC: "No space left on device",
  ENOTSUP: "Operation not supported",
  EPERM: "Operation not permitted",
  ESHUTDOWN: "Cannot send after transport endpoint shutdown",
  ETIMEDOUT: "Connection timed out",
};

/** The C library's text for an error: what QEMU shows of a request that failed. */
export function errorText(code: BlockErrorCode): string {
  return ERROR_TEXTS[code];
}
