/**
 * The vocabulary that block nodes, their users and their tests share.
 *
 * @module
 */

import type { BlockNode } from "./node.ts";

/**
 * Done at once, or later. A local file answers within the call (synchronous positional I/O is ten
 * to forty times cheaper on this runtime), a remote one does not; a caller on a hot path tests with
 * `instanceof Promise` and saves the promise. Errors are thrown in the first case and reject in the
 * second: a caller must handle both.
 */
export type MaybePromise<T> = T | Promise<T>;

// Request flags, named as QEMU's BDRV_REQ_*. Combined with `|`.

/** On stable storage before the request completes. */
export const REQ_FUA = 1;
/** Write-zeroes may deallocate. */
export const REQ_MAY_UNMAP = 2;
/** Write-zeroes fails with ENOTSUP unless it is faster than writing. */
export const REQ_NO_FALLBACK = 4;
/** The write does not change what a reader sees. */
export const REQ_WRITE_UNCHANGED = 8;
/** The write is stored compressed: whole clusters, or up to the node's end. */
export const REQ_WRITE_COMPRESSED = 16;

// Block status flags. Combined with `|`.

/** Allocated here and holding data. */
export const STATUS_DATA = 1;
/** Reads as zeroes. */
export const STATUS_ZERO = 2;
/** This node, not its backing node, decides the content. */
export const STATUS_ALLOCATED = 4;

/** The node holds the data compressed. */
export const STATUS_COMPRESSED = 8;

/** The state of a run that starts at the offset asked for. */
export interface BlockStatus {
  /** Bytes that share these flags, at least 1, at most what was asked for. */
  length: number;
  /** STATUS_* flags. */
  flags: number;
  /**
   * Where a format's node keeps the run, in one piece and as it is: at `offset` of its child node.
   */
  host?: { node: BlockNode; offset: number };
}

/** Bytes that lie in an open file as they are. */
export interface FilePart {
  /** The operating system's number. */
  fd: number;
  /** Of the first byte. */
  offset: number;
}

// Permissions on a node, named as QEMU's BLK_PERM_*. Combined with `|`.

/** What is read must make sense as a disk: no job is in the middle of making it. */
export const PERM_CONSISTENT_READ = 1;
/** The content may be changed. */
export const PERM_WRITE = 2;
/** Writes with REQ_WRITE_UNCHANGED are allowed. */
export const PERM_WRITE_UNCHANGED = 4;
/** The size may be changed. */
export const PERM_RESIZE = 8;
/** Every permission. */
export const PERM_ALL = 15;

/** A half-open range of bytes. */
export interface ByteRange {
  /** First byte. */
  offset: number;
  /** Bytes; the range ends before `offset + length`. */
  length: number;
}
