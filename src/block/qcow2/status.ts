/**
 * Block status of an image: what its own tables say. Where the image has nothing, the backing file
 * is to be asked; where there is none, or it ends before, it reads as zeroes.
 *
 * @module
 */

import type { Steps } from "../steps.ts";
import {
  type BlockStatus,
  STATUS_ALLOCATED,
  STATUS_COMPRESSED,
  STATUS_DATA,
  STATUS_ZERO,
} from "../types.ts";
import type { Qcow2Image } from "./image.ts";
import { CLUSTER, type ClusterKind } from "./l2_entry.ts";
import { lookUpUnlocked } from "./lookup.ts";

/** Runs that are joined in one answer: each may cost a read of a table. */
const RUN_COUNT_MAX = 1024;

const FLAGS: Record<ClusterKind, number> = {
  [CLUSTER.unallocated]: 0,
  [CLUSTER.unallocatedHosted]: 0,
  [CLUSTER.zeroPlain]: STATUS_ZERO | STATUS_ALLOCATED,
  [CLUSTER.zeroAllocated]: STATUS_ZERO | STATUS_ALLOCATED,
  [CLUSTER.normal]: STATUS_DATA | STATUS_ALLOCATED,
  [CLUSTER.compressed]: STATUS_DATA | STATUS_ALLOCATED | STATUS_COMPRESSED,
  [CLUSTER.invalid]: 0,
};

/** The run at `offset`: as long as neighbours are alike and lie one behind the other. */
export function* statusOf(image: Qcow2Image, offset: number, length: number): Steps<BlockStatus> {
  const run = image.scratchRun;
  const backingSize = image.backing()?.sizeBytes ?? 0;
  let done = 0;
  let flags = 0;
  let host = -1;
  for (let count = 0; count < RUN_COUNT_MAX && done < length; count++) {
    const at = offset + done;
    yield* lookUpUnlocked(image, at, length - done);
    let found = FLAGS[run.kind];
    let foundLength = run.length;
    if (found === 0) {
      if (at >= backingSize) found = STATUS_ZERO;
      else foundLength = Math.min(foundLength, backingSize - at);
    }
    const hasHost = run.kind === CLUSTER.normal || run.kind === CLUSTER.zeroAllocated;
    const foundHost = hasHost ? run.hostOffset : -1;
    if (done === 0) {
      flags = found;
      host = foundHost;
    } else if (found !== flags || foundHost !== (host < 0 ? -1 : host + done)) break;
    done += foundLength;
  }
  if (host < 0) return { length: done, flags };
  return { length: done, flags, host: { node: image.dataFile.node, offset: host } };
}
