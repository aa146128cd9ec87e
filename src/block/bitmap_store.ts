/**
 * What keeps dirty bitmaps with a disk: a format that can (qcow2) offers one as `bitmapStore` of
 * its node, and DirtyBitmaps (dirty_bitmap.ts) asks it. The only implementation is
 * qcow2/bitmaps.ts.
 *
 *   node opened --load--> in memory, stored versions marked "in use" --store--> stored, free
 *
 * A stored bitmap that is in use while nobody has the disk open missed changes: its user was
 * killed. It is then inconsistent. Bitmaps of a node that is read-only stay as they are stored.
 *
 * @module
 */

import type { Bitmap } from "./bitmap.ts";
import type { MaybePromise } from "./types.ts";

/** A bitmap as it is stored, without its bits. */
export interface StoredBitmap {
  /** Unique in the store. */
  readonly name: string;
  /** Bytes that a bit stands for. */
  readonly granularity: number;
  /** Records as soon as it is loaded. */
  readonly isRecording: boolean;
  /** It may have missed a change: its bits can't be had. */
  readonly isInconsistent: boolean;
}

/** A bitmap to be stored. An inconsistent one stays as it is stored. */
export interface BitmapToStore extends StoredBitmap {
  /** What is dirty. */
  readonly bits: Bitmap;
}

/** See the module's head. */
export interface BitmapStore {
  /** What is stored. */
  list(): readonly StoredBitmap[];

  /**
   * Throws a BlockError where a bitmap can't be stored beside those of the names `others`, which
   * are loaded or to be stored.
   */
  checkNew(
    bitmap: { name: string; granularity: number; sizeBytes: number },
    others: readonly string[],
  ): void;

  /** Adds the stored bits of a consistent bitmap to `bits`, which has its granularity. */
  readBits(name: string, bits: Bitmap): MaybePromise<void>;

  /** Marks all that is stored, before the first change of the disk: see the module's head. */
  markInUse(): MaybePromise<void>;

  /** Stores exactly these. Nothing is stored or freed by halves, whatever happens meanwhile. */
  store(bitmaps: readonly BitmapToStore[]): MaybePromise<void>;

  /** Removes a bitmap, if it is stored. */
  remove(name: string): MaybePromise<void>;
}
