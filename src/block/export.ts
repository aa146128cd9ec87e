/**
 * What an export offers to a reader, whatever carries the bytes: an NBD session, HTTP ranges, a
 * test. Errors are BlockErrors.
 *
 * @module
 */

import type { MaybePromise } from "./types.ts";

/** One run of a meta context. */
export interface Extent {
  length: number;
  flags: number;
}

/** A meta context (NBD "Metadata querying"): a map of the export, by name. */
export interface MetaContext {
  /** `base:allocation`, `qemu:dirty-bitmap:NAME`, `x-ovis:access`. */
  readonly name: string;
  /**
   * The runs from `offset` on, covering at most `length` bytes, at most `maxExtents` of them, at
   * least one; neighbours differ in their flags.
   */
  extents(
    offset: number,
    length: number,
    options: { maxExtents: number },
  ): MaybePromise<Extent[]>;
}

/** A disk as its readers see it. Offsets and lengths were checked by the edge that calls. */
export interface BlockExport {
  readonly name: string;
  readonly description: string;
  readonly sizeBytes: number;
  readonly isReadOnly: boolean;
  /** Discards are possible (also where isReadOnly: a fleecing view can be discarded). */
  readonly canDiscard: boolean;
  /** What is flushed on one connection is seen on all. */
  readonly canMultiConn: boolean;
  /** A power of two, 512 to 32 MiB. */
  readonly preferredBlockBytes: number;
  readonly contexts: readonly MetaContext[];

  read(offset: number, buffer: Uint8Array): MaybePromise<void>;
  /** `flags`: REQ_FUA. */
  write(offset: number, data: Uint8Array, flags: number): MaybePromise<void>;
  /** `flags`: REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK. */
  writeZeroes(offset: number, length: number, flags: number): MaybePromise<void>;
  discard(offset: number, length: number): MaybePromise<void>;
  flush(): MaybePromise<void>;
}

/** The exports that a server may open, by name. */
export interface ExportDirectory {
  /** The export of that name, "" being the default one, if this client may open it. */
  find(name: string): BlockExport | undefined;
  list(): Iterable<BlockExport>;
}
