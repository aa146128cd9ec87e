/**
 * The maps that an export offers (NBD "Metadata querying"): what is allocated, what a snapshot
 * reader may read, what is dirty.
 *
 * One answer makes a bounded number of look-ups, whatever was asked: it may cover less than that,
 * which every reader has to expect anyway.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import type { DirtyBitmap } from "../dirty_bitmap.ts";
import type { Extent, MetaContext } from "../export.ts";
import type { AccessRun } from "../filters/copy_before_write.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import { type BlockStatus, type MaybePromise, STATUS_DATA, STATUS_ZERO } from "../types.ts";

/** NBD_STATE_HOLE, NBD_STATE_ZERO of `base:allocation`. */
const STATE_HOLE = 1;
const STATE_ZERO = 2;
/** Flag of `qemu:dirty-bitmap:`. */
const STATE_DIRTY = 1;
/** Flag of `x-ovis:access`: a reader may not read this. */
const STATE_FORBIDDEN = 1;

/** Look-ups for one answer: some milliseconds, where each asks a file system. */
const LOOKUPS_MAX = 2048;

/** What is at `offset`, for how many bytes on, at most `length`. */
export type LookUp = (offset: number, length: number) => MaybePromise<Extent>;

/** What clients are told to ask for in one piece: whole clusters, within what NBD allows. */
export function preferredBlockBytes(clusterSizeBytes: number | null): number {
  return Math.min(Math.max(clusterSizeBytes ?? 0, 4096), 32 * 1024 * 1024);
}

/** `base:allocation` of a node. */
export function allocationContext(
  status: (offset: number, length: number) => MaybePromise<BlockStatus>,
): MetaContext {
  return createContext("base:allocation", (offset, length) => {
    const found = status(offset, length);
    return found instanceof Promise ? found.then(allocationExtent) : allocationExtent(found);
  });
}

/**
 * `base:allocation` of a snapshot. What may not be read is a hole that does not read as zeroes,
 * rather than an error for the whole question. A snapshot that is broken has no map.
 */
export function snapshotAllocationContext(snapshot: {
  access: (offset: number, length: number) => AccessRun;
  status: (offset: number, length: number) => MaybePromise<BlockStatus>;
}): MetaContext {
  return createContext("base:allocation", (offset, length) => {
    const run = snapshot.access(offset, length);
    if (run.isForbidden) return { length: run.length, flags: STATE_HOLE };
    const found = snapshot.status(offset, run.length);
    return found instanceof Promise ? found.then(allocationExtent) : allocationExtent(found);
  });
}

/** `x-ovis:access` of a snapshot. */
export function accessContext(
  access: (offset: number, length: number) => AccessRun,
): MetaContext {
  return createContext("x-ovis:access", (offset, length) => {
    const run = access(offset, length);
    return { length: run.length, flags: run.isForbidden ? STATE_FORBIDDEN : 0 };
  });
}

/** `qemu:dirty-bitmap:NAME`. */
export function dirtyBitmapContext(bitmap: DirtyBitmap): MetaContext {
  return createContext(`qemu:dirty-bitmap:${bitmap.name}`, (offset, length) => {
    const { bits } = bitmap;
    const isDirty = bits.isSet(offset);
    const end = isDirty ? bits.nextClear(offset, length) : bits.nextSet(offset, length);
    return { length: end - offset, flags: isDirty ? STATE_DIRTY : 0 };
  });
}

function allocationExtent({ length, flags }: BlockStatus): Extent {
  const hole = (flags & STATUS_DATA) === 0 ? STATE_HOLE : 0;
  const zero = (flags & STATUS_ZERO) !== 0 ? STATE_ZERO : 0;
  return { length, flags: hole | zero };
}

/** A context whose runs are looked up one by one. */
export function createContext(name: string, lookUp: LookUp): MetaContext {
  return {
    name,
    extents: (offset, length, { maxExtents }) =>
      runSteps(collect(lookUp, { offset, length, maxExtents })),
  };
}

/** Extents till the end, the most that were asked for, or the most that one answer may cost. */
function* collect(
  lookUp: LookUp,
  { offset, length, maxExtents }: { offset: number; length: number; maxExtents: number },
): Steps<Extent[]> {
  const extents: Extent[] = [];
  const end = offset + length;
  let at = offset;
  for (let lookUps = 0; at < end && lookUps < LOOKUPS_MAX; lookUps++) {
    let found: Extent;
    try {
      found = yield* settle(lookUp(at, end - at));
    } catch (error) {
      // What is known is an answer; the next question meets the error again.
      if (error instanceof BlockError && extents.length > 0) break;
      throw error;
    }
    const last = extents.at(-1);
    if (last !== undefined && last.flags === found.flags) last.length += found.length;
    else if (extents.length < maxExtents) extents.push({ ...found });
    else break;
    at += found.length;
  }
  return extents;
}
