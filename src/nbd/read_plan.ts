/**
 * What the export's maps say of a large read before it is made: whether a byte of it is refused, and
 * which parts are zeroes, which need not be read at all.
 *
 * @module
 */

import type { Extent, MetaContext } from "../block/export.ts";
import { NBD_STATE_ZERO } from "./codec.ts";

/** The context in which flag 1 means that a reader is refused. */
export const ACCESS_CONTEXT = "x-ovis:access";
const ACCESS_REFUSED = 1;
/** Shorter runs of zeroes are sent as data: a chunk costs more. */
const HOLE_BYTES_MIN = 4096;

/**
 * The first run of `[offset, offset + length)` that may not be read, null where all may; "later" if
 * the map does not answer at once.
 */
export function findRefused(
  access: MetaContext,
  offset: number,
  length: number,
): { offset: number; length: number } | "later" | null {
  const end = offset + length;
  for (let at = offset; at < end;) {
    const runs = access.extents(at, end - at, { maxExtents: 2 });
    if (runs instanceof Promise) {
      runs.catch(() => {});
      return "later";
    }
    for (const run of runs) {
      if ((run.flags & ACCESS_REFUSED) !== 0) return { offset: at, length: run.length };
      at += run.length;
    }
    if (runs.length === 0) return null;
  }
  return null;
}

/**
 * The run at `offset`, of at most `left` bytes: zeroes, or what has to be read. A map that fails or
 * answers later is done without.
 */
export function nextRun(
  allocation: MetaContext | undefined,
  offset: number,
  left: number,
): { length: number; isZero: boolean } {
  const unknown = { length: left, isZero: false };
  if (allocation === undefined) return unknown;
  let runs: Extent[] | Promise<Extent[]>;
  try {
    runs = allocation.extents(offset, left, { maxExtents: 1 });
  } catch {
    return unknown;
  }
  if (runs instanceof Promise) {
    runs.catch(() => {});
    return unknown;
  }
  const [run] = runs;
  if (run === undefined || run.length <= 0 || run.length > left) return unknown;
  const isZero = (run.flags & NBD_STATE_ZERO) !== 0;
  return isZero && run.length < HOLE_BYTES_MIN ? unknown : { length: run.length, isZero };
}
