/**
 * The maps of a disk with its backing chain: `base:allocation`, and `qemu:allocation-depth`, which
 * says how far down the chain the content of an area comes from.
 *
 * @module
 */

import type { BlockBackend } from "../backend.ts";
import type { MetaContext } from "../export.ts";
import { chainOf, type DiskRun, DiskStatus } from "../image/chain.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import { type BlockStatus, type MaybePromise, STATUS_ALLOCATED } from "../types.ts";
import { allocationContext, createContext } from "./meta_contexts.ts";

/** `base:allocation` of the disk that a backend works on. */
export function diskAllocationContext(backend: BlockBackend): MetaContext {
  return allocationContext((offset, length) => diskStatus(backend, offset, length));
}

/**
 * `qemu:allocation-depth`: 1 where the disk's own node has it, 2 and more further down the chain, 0
 * where nobody has it.
 */
export function allocationDepthContext(backend: BlockBackend): MetaContext {
  return createContext("qemu:allocation-depth", (offset, length) => {
    const extent = ({ length, flags, depth }: Run) => {
      if ((flags & STATUS_ALLOCATED) !== 0) return { length, flags: depth + 1 };
      // Behind its end a backing node counts as having it, as in QEMU.
      const below = chainOf(backend.node)[depth + 1];
      return { length, flags: below !== undefined && offset >= below.sizeBytes ? depth + 2 : 0 };
    };
    const run = diskStatus(backend, offset, length);
    return run instanceof Promise ? run.then(extent) : extent(run);
  });
}

/** What is of interest here in a DiskRun. */
type Run = Pick<DiskRun, "length" | "flags" | "depth">;

/** What the disk's own node has is known by one question; the rest the chain knows. */
function diskStatus(backend: BlockBackend, offset: number, length: number): MaybePromise<Run> {
  const own = backend.blockStatus(offset, length);
  if (!(own instanceof Promise) && (own.flags & STATUS_ALLOCATED) !== 0) {
    return { length: own.length, flags: own.flags, depth: 0 };
  }
  return runSteps(statusInChain(backend, { offset, length, own }));
}

/** One operation of several questions, in which no drained section changes the chain. */
function* statusInChain(
  backend: BlockBackend,
  { offset, length, own }: { offset: number; length: number; own: MaybePromise<BlockStatus> },
): Steps<Run> {
  const known = yield* settle(own);
  if ((known.flags & STATUS_ALLOCATED) !== 0) return { ...known, depth: 0 };
  // A question of nothing waits as long as the backend is held, and fails once it is released.
  while (backend.isHeld) yield* settle(backend.blockStatus(offset, 0));
  backend.beginOperation();
  try {
    return yield* new DiskStatus(backend.node).at(offset, length);
  } finally {
    backend.endOperation();
  }
}
