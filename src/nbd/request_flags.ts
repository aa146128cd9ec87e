/**
 * What the flags of a request say to the block layer.
 *
 * @module
 */

import { REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK } from "../block/types.ts";
import {
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_WRITE_ZEROES,
} from "./codec.ts";
import type { NbdRequest } from "./request_parser.ts";

/** Whether zeroes are wanted only where that is faster than writing them. */
export function isFastZero(request: NbdRequest): boolean {
  return request.type === NBD_CMD_WRITE_ZEROES && (request.flags & NBD_CMD_FLAG_FAST_ZERO) !== 0;
}

/** The block layer's flags for a write-zeroes command. */
export function zeroFlags({ flags }: NbdRequest): number {
  return ((flags & NBD_CMD_FLAG_FUA) !== 0 ? REQ_FUA : 0) |
    ((flags & NBD_CMD_FLAG_NO_HOLE) === 0 ? REQ_MAY_UNMAP : 0) |
    ((flags & NBD_CMD_FLAG_FAST_ZERO) !== 0 ? REQ_NO_FALLBACK : 0);
}
