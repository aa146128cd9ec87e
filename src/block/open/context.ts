/**
 * What the opening of block nodes needs to know of its surroundings, and what a driver is to it.
 *
 * @module
 */

import type { Clock } from "../clock.ts";
import type { DirtyBitmaps } from "../dirty_bitmap.ts";
import type { ThrottleGroup } from "../filters/throttle_group.ts";
import type { BlockGraph } from "../graph.ts";
import type { BlockNode, DetectZeroes, DiscardMode } from "../node.ts";
import type { MaybePromise } from "../types.ts";
import type { Kernels } from "../../wasm/kernels.ts";
import type { Compressor } from "../qcow2/compress.ts";
import type { Qcow2CompressionType } from "../qcow2/format.ts";
import type { Blockdev, BlockdevRef, BlockdevTypes } from "./blockdev.ts";
import type { JsonObject } from "./json.ts";
import type { Fields } from "./qapi.ts";

/** The surroundings. */
export interface OpenContext {
  /** The drivers that there are. */
  readonly drivers: DriverTable;
  /**
   * The path policy: whether a file may be opened. `path` is absolute and free of symbolic links,
   * those of a file that does not exist yet excepted.
   */
  mayOpen(path: string): boolean;
  /** Where bitmaps live. */
  readonly kernels: Kernels;
  /** The dirty bitmaps of the graph's nodes. */
  readonly bitmaps: DirtyBitmaps;
  /** With which arguments nodes were opened, for reopening and queries. */
  readonly opened: WeakMap<BlockNode, Blockdev>;
  /** The group of that name, for driver throttle. */
  throttleGroup(name: string): ThrottleGroup | undefined;
  /** What compresses the clusters of qcow2 images; the images' own way unless given. */
  compressor?(type: Qcow2CompressionType): Compressor;
  /** For timeouts and delays; the machine's unless given. */
  readonly clock?: Clock;
  /** Gives openings up that wait for a server. */
  readonly signal?: AbortSignal;
}

/** Settings that nodes of all drivers have, children's defaults applied. */
export interface CommonSettings {
  /** Refuses writes, whoever asks. */
  readonly isReadOnly: boolean;
  /** Where it can't be opened for writing, it is opened for reading alone. */
  readonly isAutoReadOnly: boolean;
  /** What becomes of discards. */
  readonly discard: DiscardMode;
  /** What becomes of written zeroes. */
  readonly detectZeroes: DetectZeroes;
  /** The host's cache is passed by. */
  readonly cacheDirect: boolean;
  /** Flushes do nothing. */
  readonly cacheNoFlush: boolean;
  /** The image may be in use by others who write to it. */
  readonly forceShare: boolean;
}

/** What a driver is given to open a node. */
export interface OpenRequest {
  /** The node's name, "" for one that the graph invents. */
  readonly nodeName: string;
  /** The driver's own arguments, checked. */
  readonly options: Record<string, unknown>;
  /** The settings of all drivers. */
  readonly common: CommonSettings;
  /** Where the node is going to be. */
  readonly graph: BlockGraph;
  /** The surroundings. */
  readonly context: OpenContext;
  /**
   * Opens a child, or looks the node up that is meant. A backing child is opened for reading alone
   * unless its own options say otherwise.
   */
  child(reference: BlockdevRef, use?: ChildUse): Promise<BlockNode>;
  /** Opens the image that a format's header names as its backing file. */
  backingFile(file: HeaderFile): Promise<BlockNode>;
  /** Opens the file that a format's header names as its external data file. */
  dataFile(file: HeaderFile): Promise<BlockNode>;
}

/** What a child is opened for. */
export interface ChildUse {
  /** What the node holds nothing of is read from it. */
  isBacking?: boolean;
}

/** A file that an image's header names. */
export interface HeaderFile {
  /** As the header has it: relative names are meant from the image's folder. */
  readonly fileName: string;
  /** The header's word for its format; null: it is probed. */
  readonly format: string | null;
  /** The node that holds the image, to find its folder by. */
  readonly image: BlockNode;
}

/** A driver of the table. */
export interface BlockDriver {
  /** As blockdev-add names it. */
  readonly name: string;
  /** Its arguments, beside those of all drivers. */
  fields(types: BlockdevTypes): Fields;
  /** Makes the node. The caller adds it to the graph. Throws a BlockError. */
  open(request: OpenRequest): MaybePromise<BlockNode>;
  /**
   * For formats: how sure the driver is that the start of a file is of its format, 0 to 100. A
   * driver without it is never found by probing.
   */
  probe?(start: Uint8Array): number;
  /**
   * For protocols: the arguments that a file name of theirs (`nbd://...`) stands for, undefined for
   * one of another protocol. Throws a BlockError (EINVAL).
   */
  optionsOfFileName?(filename: string): JsonObject | undefined;
}

/** The drivers by name, and the types of their arguments. */
export interface DriverTable {
  /** By name. */
  readonly byName: ReadonlyMap<string, BlockDriver>;
  /** Their arguments. */
  readonly types: BlockdevTypes;
}
