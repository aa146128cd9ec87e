/**
 * What block nodes are made of and told, and who follows their changes: see node.ts, where users
 * import them from.
 *
 * @module
 */

import { BlockError } from "./errors.ts";
import type { MaybePromise } from "./types.ts";

/** What every node is made of. */
export interface BlockNodeOptions {
  /** See checkNodeName in graph.ts. Empty: the graph names it ("#block000"). */
  nodeName: string;
  /** The driver's name: "file", "raw", "copy-before-write". */
  driver: string;
  /** At first; `setSize` changes it. */
  sizeBytes: number;
  /** Refuses writes, whoever asks. */
  isReadOnly: boolean;
  /** Unit of allocation, where the driver has one. */
  clusterSizeBytes?: number | null;
  /** "ignore" swallows discards and says success, as QEMU's default does. "unmap" unless given. */
  discard?: DiscardMode;
  /** doWrite and doWriteZeroes handle REQ_FUA; else a flush follows such a request. */
  handlesFua?: boolean;
}

/** What a node does with discards. */
export type DiscardMode = "unmap" | "ignore";

/** What a node does with written zeroes: nothing, zeroes them cheaply, and may also unmap them. */
export type DetectZeroes = "off" | "on" | "unmap";

/** What nodes of all drivers can be told, when they are opened and while they stand. */
export interface NodeSettings {
  /** Refuses writes, whoever asks. */
  isReadOnly: boolean;
  /** What becomes of discards. */
  discard: DiscardMode;
  /** What becomes of written zeroes. */
  detectZeroes: DetectZeroes;
  /** Flushes do nothing: whoever says so can do without the data after a crash. */
  ignoresFlush: boolean;
}

/** Who follows the changes of a node's content: its dirty bitmaps (see dirty_bitmap.ts). */
export interface NodeObserver {
  /** A write, write-zeroes or discard of this range ended, well or not. */
  changed(offset: number, length: number): void;
  /** The node is about to be resized. Throws to refuse that. */
  resizing(sizeBytes: number): void;
  /** The node has another size now. */
  resized(sizeBytes: number): void;
  /** The node is about to become read-only, or is writable from now. */
  readOnlyChanges(isReadOnly: boolean): MaybePromise<void>;
  /** The content is about to become another one, as a whole. Throws to refuse that. */
  replacing(): void;
  /** The node is about to be closed: nobody uses it any more, its children still answer. */
  closed(): MaybePromise<void>;
}

/** Throws a BlockError (EINVAL) where a number can't be a node's size. */
export function checkSize(sizeBytes: number): void {
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0) {
    throw new BlockError("EINVAL", `${sizeBytes} is not a size in bytes`);
  }
}
