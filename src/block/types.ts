/**
 * The vocabulary that block nodes, their users and their tests share.
 *
 * @module
 */

/**
 * Done at once, or later. A local file answers within the call (synchronous positional I/O is ten
 * to forty times cheaper on this runtime), a remote one does not; a caller on a hot path tests with
 * `instanceof Promise` and saves the promise. Errors are thrown in the first case and reject in the
 * second: a caller must handle both.
 */
export type MaybePromise<T> = T | Promise<T>;

/** Request flags, named as QEMU's BDRV_REQ_*. Combined with `|`. */
export const REQ_FUA = 1; // on stable storage before the request completes
export const REQ_MAY_UNMAP = 2; // write-zeroes may deallocate
export const REQ_NO_FALLBACK = 4; // write-zeroes fails with ENOTSUP unless it is faster than writing
export const REQ_WRITE_UNCHANGED = 8; // the write does not change what a reader sees

/** Block status flags. */
export const STATUS_DATA = 1; // allocated here and holding data
export const STATUS_ZERO = 2; // reads as zeroes
export const STATUS_ALLOCATED = 4; // this node, not its backing node, decides the content

/** The state of a run that starts at the offset asked for. */
export interface BlockStatus {
  /** Bytes that share these flags, at least 1, at most what was asked for. */
  length: number;
  /** STATUS_* flags. */
  flags: number;
}

/** Permissions on a node, named as QEMU's BLK_PERM_*. Combined with `|`. */
export const PERM_CONSISTENT_READ = 1;
export const PERM_WRITE = 2;
export const PERM_WRITE_UNCHANGED = 4;
export const PERM_RESIZE = 8;
export const PERM_ALL = 15;

/** A half-open range of bytes. */
export interface ByteRange {
  offset: number;
  length: number;
}
