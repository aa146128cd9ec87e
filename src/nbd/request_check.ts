/**
 * Whether a request may be executed, judged by its header alone: the choke point between the wire
 * and an export. Behind it offsets and lengths are in range, and commands and flags are ones that
 * were advertised. Pure; answers are constants, so that the path of good requests allocates
 * nothing.
 *
 * @module
 */

import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_PAYLOAD_LEN,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_EINVAL,
  NBD_ENOSPC,
  NBD_EOVERFLOW,
  NBD_EPERM,
  NBD_FLAG_BLOCK_STATUS_PAYLOAD,
  NBD_FLAG_SEND_DF,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FUA,
  type ReplyStyle,
} from "./codec.ts";
import type { NbdFailure } from "./errno.ts";
import type { NbdRequest } from "./request_parser.ts";

/** What requests on a connection are judged by. */
export interface RequestRules {
  /** Bytes of the export. */
  sizeBytes: number;
  /** Writes are refused. */
  isReadOnly: boolean;
  /** NBD_CMD_TRIM is possible. */
  canDiscard: boolean;
  /** NBD_FLAG_*, as the client was told. */
  transmissionFlags: number;
  /** The headers that were agreed on. */
  style: ReplyStyle;
  /** The longest read or write. */
  payloadBytesMax: number;
  /** How many meta contexts were selected. */
  contextCount: number;
}

function refusal(errno: number, message: string): NbdFailure {
  return Object.freeze({ errno, message });
}

const UNKNOWN_COMMAND = refusal(NBD_EINVAL, "unknown command");
const UNKNOWN_FLAG = refusal(
  NBD_EINVAL,
  "a command flag that is unknown, not advertised or not valid for this command",
);
const READ_ONLY = refusal(NBD_EPERM, "this export is read-only");
const NO_TRIM = refusal(NBD_EINVAL, "this export does not support NBD_CMD_TRIM");
const PAST_END = refusal(NBD_EINVAL, "the request reaches past the end of the export");
const NO_SPACE = refusal(NBD_ENOSPC, "the request reaches past the end of the export");
const WRITE_TOO_LONG = refusal(NBD_EINVAL, "longer than the maximum payload");
const READ_TOO_LONG = refusal(NBD_EOVERFLOW, "longer than the maximum payload");
const NO_CONTEXT = refusal(NBD_EINVAL, "no metadata context was negotiated for this export");
const NO_LENGTH = refusal(NBD_EINVAL, "a block status of no bytes");
const BAD_STATUS_PAYLOAD = refusal(
  NBD_EINVAL,
  "the payload must be an effect length and at least one negotiated context id, each once",
);

/** The answer to a block status whose payload names contexts that were not negotiated, or twice. */
export const BAD_CONTEXT_IDS: NbdFailure = BAD_STATUS_PAYLOAD;

/** The answer to a block status whose effect length (in its payload) is out of range. */
export function checkRange(offset: number, length: number, sizeBytes: number): NbdFailure | null {
  if (length === 0) return NO_LENGTH;
  return length > sizeBytes || offset > sizeBytes - length ? PAST_END : null;
}

/** The reason to refuse the request, or null. */
export function checkRequest(request: NbdRequest, rules: RequestRules): NbdFailure | null {
  const { type, flags, offset, length } = request;
  if (type === NBD_CMD_DISC) return null;
  if ((flags & ~validFlags(type, rules)) !== 0) {
    return type > NBD_CMD_BLOCK_STATUS ? UNKNOWN_COMMAND : UNKNOWN_FLAG;
  }
  const isPastEnd = length > rules.sizeBytes || offset > rules.sizeBytes - length;
  switch (type) {
    case NBD_CMD_READ:
      if (length > rules.payloadBytesMax) {
        return rules.style === "simple" ? WRITE_TOO_LONG : READ_TOO_LONG;
      }
      return isPastEnd ? PAST_END : null;
    case NBD_CMD_WRITE:
      if (rules.isReadOnly) return READ_ONLY;
      if (length > rules.payloadBytesMax) return WRITE_TOO_LONG;
      return isPastEnd ? NO_SPACE : null;
    case NBD_CMD_FLUSH:
      return null;
    case NBD_CMD_TRIM:
      if (!rules.canDiscard) return rules.isReadOnly ? READ_ONLY : NO_TRIM;
      return isPastEnd ? PAST_END : null;
    case NBD_CMD_CACHE:
      return isPastEnd ? PAST_END : null;
    case NBD_CMD_WRITE_ZEROES:
      if (rules.isReadOnly) return READ_ONLY;
      return isPastEnd ? NO_SPACE : null;
    case NBD_CMD_BLOCK_STATUS:
      return checkBlockStatus(request, rules);
    default:
      return UNKNOWN_COMMAND;
  }
}

function checkBlockStatus(request: NbdRequest, rules: RequestRules): NbdFailure | null {
  if (rules.contextCount === 0) return NO_CONTEXT;
  if ((request.flags & NBD_CMD_FLAG_PAYLOAD_LEN) !== 0) {
    const idBytes = request.length - 8;
    const isPlausible = idBytes > 0 && idBytes % 4 === 0 && idBytes / 4 <= rules.contextCount;
    return isPlausible ? null : BAD_STATUS_PAYLOAD;
  }
  return checkRange(request.offset, request.length, rules.sizeBytes);
}

/** The flags that a command may carry on this connection ("Command flags"). */
function validFlags(type: number, rules: RequestRules): number {
  const can = rules.transmissionFlags;
  const common = (can & NBD_FLAG_SEND_FUA) !== 0 ? NBD_CMD_FLAG_FUA : 0;
  switch (type) {
    case NBD_CMD_READ:
      return common | ((can & NBD_FLAG_SEND_DF) !== 0 ? NBD_CMD_FLAG_DF : 0);
    case NBD_CMD_WRITE:
      return common | (rules.style === "extended" ? NBD_CMD_FLAG_PAYLOAD_LEN : 0);
    case NBD_CMD_WRITE_ZEROES:
      return common | NBD_CMD_FLAG_NO_HOLE |
        ((can & NBD_FLAG_SEND_FAST_ZERO) !== 0 ? NBD_CMD_FLAG_FAST_ZERO : 0);
    case NBD_CMD_BLOCK_STATUS:
      return common | NBD_CMD_FLAG_REQ_ONE |
        ((can & NBD_FLAG_BLOCK_STATUS_PAYLOAD) !== 0 ? NBD_CMD_FLAG_PAYLOAD_LEN : 0);
    default:
      return common;
  }
}
