/**
 * What an export offers to a reader, whatever carries the bytes: an NBD session, HTTP ranges, a
 * test. Errors are BlockErrors.
 *
 * @module
 */

import type { FilePart, MaybePromise } from "./types.ts";

/** One run of a meta context. */
export interface Extent {
  /** Bytes, at least 1. */
  length: number;
  /** 32 bits whose meaning is the context's. */
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
  /** By which clients open it; at most 4096 bytes of UTF-8 (NBD, "Conventions"). */
  readonly name: string;
  /** For people (NBD_INFO_DESCRIPTION), "" where there is nothing to say. */
  readonly description: string;
  /** Does not change while the export stands. */
  readonly sizeBytes: number;
  /** Writes fail with EPERM. */
  readonly isReadOnly: boolean;
  /** Discards are possible (also where isReadOnly: a fleecing view can be discarded). */
  readonly canDiscard: boolean;
  /** What is flushed on one connection is seen on all. */
  readonly canMultiConn: boolean;
  /** A power of two, 512 to 32 MiB. */
  readonly preferredBlockBytes: number;
  /** What maps it offers, each under a name of its own. */
  readonly contexts: readonly MetaContext[];

  /** Fills `buffer` with what is at `offset`. */
  read(offset: number, buffer: Uint8Array): MaybePromise<void>;
  /**
   * Where the range lies in a file, so that it can be sent without being read, null where it has to
   * be read. Holds until the caller returns to the event loop. Whoever sends it sends what others
   * write meanwhile, as a read that is under way may.
   */
  filePart?(offset: number, length: number): FilePart | null;
  /** `flags`: REQ_FUA. */
  write(offset: number, data: Uint8Array, flags: number): MaybePromise<void>;
  /** `flags`: REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK. */
  writeZeroes(offset: number, length: number, flags: number): MaybePromise<void>;
  /** What the range reads as afterwards is undefined. */
  discard(offset: number, length: number): MaybePromise<void>;
  /** What was written before, on any connection, is on stable storage afterwards. */
  flush(): MaybePromise<void>;
}

/** The exports that a server may open, by name. */
export interface ExportDirectory {
  /** The export of that name, "" being the default one, if this client may open it. */
  find(name: string): BlockExport | undefined;
  /** Those that this client may open, for NBD_OPT_LIST. */
  list(): Iterable<BlockExport>;
}
