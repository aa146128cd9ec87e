/**
 * Changes of dirty bitmaps as actions of a transaction (transaction.ts): each can be undone until
 * the transaction's end.
 *
 * @module
 */

import type { DirtyBitmap, DirtyBitmapOptions, DirtyBitmaps } from "./dirty_bitmap.ts";
import { BlockError } from "./errors.ts";
import type { BlockNode } from "./node.ts";
import type { MaybePromise } from "./types.ts";

/** A bitmap by its node and name. */
export interface BitmapReference {
  /** The node whose changes the bitmap records. */
  node: BlockNode;
  /** The bitmap's, unique at its node. */
  name: string;
}

/**
 * One change, named as QEMU's transaction actions (block-dirty-bitmap-add, ...; abort always
 * fails).
 */
export type BitmapAction =
  | { type: "add"; node: BlockNode; options: DirtyBitmapOptions }
  | ({ type: "remove" | "clear" | "enable" | "disable" } & BitmapReference)
  | { type: "merge"; node: BlockNode; target: string; bitmaps: BitmapReference[] }
  | { type: "abort" };

/** What an action leaves to be done at the transaction's end, whichever that is. */
export interface BitmapChange {
  /** All went well. Never fails. */
  commit?: () => MaybePromise<void>;
  /** Another action failed. */
  undo: () => void;
}

/**
 * Carries an action out. Throws its BlockError, having changed nothing. An undo with no
 * request in between leaves no trace.
 */
export function changeBitmap(bitmaps: DirtyBitmaps, action: BitmapAction): BitmapChange {
  switch (action.type) {
    case "add": {
      const bitmap = bitmaps.add(action.node, action.options);
      return {
        undo: () => {
          bitmaps.detach(bitmap);
          bitmap.dispose();
        },
      };
    }
    case "remove": {
      const bitmap = bitmaps.get(action.node, action.name);
      bitmap.check("remove");
      bitmaps.detach(bitmap);
      return {
        commit: () => removeStored(bitmaps, bitmap),
        undo: () => bitmaps.attach(bitmap),
      };
    }
    case "clear":
      return keepingBits(bitmaps, action, () => bitmaps.clear(action.node, action.name));
    case "enable":
    case "disable": {
      const bitmap = bitmaps.get(action.node, action.name);
      const wasRecording = bitmap.isRecording;
      bitmaps[action.type](action.node, action.name);
      return { undo: () => bitmap.isRecording = wasRecording };
    }
    case "merge": {
      const target = bitmaps.get(action.node, action.target);
      const sources = action.bitmaps.map(({ node, name }) => bitmaps.get(node, name));
      return keepingBits(bitmaps, { node: action.node, name: action.target }, () => {
        bitmaps.merge(target, sources);
      });
    }
    case "abort":
      throw new BlockError("EINVAL", "Transaction aborted using Abort action");
  }
}

/**
 * There is no way back at a transaction's end. What can't be removed from the disk now is not stored
 * again when its node closes, and until then counts as inconsistent there.
 */
function removeStored(bitmaps: DirtyBitmaps, bitmap: DirtyBitmap): MaybePromise<void> {
  const ignore = (error: unknown): void => {
    if (!(error instanceof BlockError)) throw error;
  };
  try {
    const result = bitmaps.drop(bitmap);
    return result instanceof Promise ? result.catch(ignore) : result;
  } catch (error) {
    ignore(error);
  }
}

/** Changes the bits of a bitmap, keeping a copy until the end. */
function keepingBits(
  bitmaps: DirtyBitmaps,
  { node, name }: BitmapReference,
  change: () => void,
): BitmapChange {
  const bitmap = bitmaps.get(node, name);
  const before = bitmap.bits.resized(bitmap.bits.sizeBytes);
  try {
    change();
  } catch (error) {
    before[Symbol.dispose]();
    throw error;
  }
  return {
    commit: () => before[Symbol.dispose](),
    undo: () => bitmap.replaceBits(before)[Symbol.dispose](),
  };
}
