/**
 * Persistent bitmaps that a copy takes along.
 *
 * @module
 */

import type { DirtyBitmap, DirtyBitmaps } from "../../block/dirty_bitmap.ts";
import { unfiltered } from "../../block/image/chain.ts";
import type { BlockNode } from "../../block/node.ts";
import { ImgError } from "./errors.ts";
import { errorMessage } from "./session.ts";

/** How to copy them. */
export interface CopyBitmapsOptions {
  /** Inconsistent ones are left out, instead of an error. */
  skipsBroken: boolean;
  /** Told of those. */
  warn: (message: string) => void;
}

/** Throws an ImgError where the bitmaps of `source` can't be copied; called before the copy. */
export function checkBitmaps(
  bitmaps: DirtyBitmaps,
  source: BlockNode,
  { skipsBroken }: { skipsBroken: boolean },
): void {
  if (unfiltered(source).bitmapStore === null) throw new ImgError("Source lacks bitmap support");
  const broken = persistent(bitmaps, source).find(({ isInconsistent }) => isInconsistent);
  if (skipsBroken || broken === undefined) return;
  throw new ImgError(
    `Cannot copy inconsistent bitmap '${broken.name}'\n` +
      "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
  );
}

/** Copies the bitmaps of `source` to `target`. Throws an ImgError. */
export function copyBitmaps(
  bitmaps: DirtyBitmaps,
  source: BlockNode,
  target: BlockNode,
  options: CopyBitmapsOptions,
): void {
  for (const bitmap of persistent(bitmaps, source)) {
    const { name } = bitmap;
    if (bitmap.isInconsistent) {
      options.warn(`Skipping inconsistent bitmap '${name}'`);
      continue;
    }
    let copy: DirtyBitmap;
    try {
      copy = bitmaps.add(unfiltered(target), {
        name,
        granularity: bitmap.bits.granularity,
        persistent: true,
        disabled: true,
      });
    } catch (error) {
      throw new ImgError(`Failed to create bitmap ${name}: ${errorMessage(error)}`);
    }
    try {
      bitmaps.merge(copy, [bitmap]);
    } catch (error) {
      throw new ImgError(`Failed to populate bitmap ${name}: ${errorMessage(error)}`);
    }
    copy.isRecording = bitmap.isRecording;
  }
}

function persistent(bitmaps: DirtyBitmaps, node: BlockNode): DirtyBitmap[] {
  return bitmaps.list(unfiltered(node)).filter(({ isPersistent }) => isPersistent);
}
