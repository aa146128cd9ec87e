/**
 * What an NBD server counts, for its operator.
 *
 * @module
 */

import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
} from "./codec.ts";
import type { NbdRequest } from "./request_parser.ts";

/** Requests of one kind. */
export interface RequestCounts {
  /** How many were asked, the refused ones included. */
  count: number;
  /** Bytes of the export that they were about. */
  bytes: number;
}

/** The kinds of requests; "other" is what no server knows. */
export type RequestKind =
  | "read"
  | "write"
  | "flush"
  | "trim"
  | "cache"
  | "writeZeroes"
  | "blockStatus"
  | "other";

/** A server's figures: some since it was made, some of now. */
export interface NbdStatistics {
  /** How many there are and were. */
  connections: {
    /** Now. */
    open: number;
    /** Since the server was made. */
    accepted: number;
    /** Closed at once, since there were too many. */
    refused: number;
    /** Closed for having paused too long, or for holding most when nothing moved any more. */
    cutOff: number;
    /** Secured by TLS. */
    secured: number;
  };
  /** By kind. */
  requests: Record<RequestKind, RequestCounts>;
  /** Requests that were answered with an error. */
  failedRequests: number;
  /** Requests that are being worked on now. */
  inFlight: number;
  /** Bytes of requests and replies that are held now. */
  bufferedBytes: number;
}

/** What the sessions of a server count together. */
export class NbdCounters {
  /** By kind. */
  readonly requests: Record<RequestKind, RequestCounts> = {
    read: { count: 0, bytes: 0 },
    write: { count: 0, bytes: 0 },
    flush: { count: 0, bytes: 0 },
    trim: { count: 0, bytes: 0 },
    cache: { count: 0, bytes: 0 },
    writeZeroes: { count: 0, bytes: 0 },
    blockStatus: { count: 0, bytes: 0 },
    other: { count: 0, bytes: 0 },
  };
  /** Of all kinds. */
  total = 0;
  /** Answered with an error. */
  failedRequests = 0;
  /** Connections that were secured. */
  secured = 0;

  /** A request came. One that is refused is about no bytes. */
  add({ type, length, refusal }: NbdRequest): void {
    const counts = this.requests[kindOf(type)];
    this.total++;
    counts.count++;
    if (refusal === null) counts.bytes += length;
  }
}

function kindOf(type: number): RequestKind {
  switch (type) {
    case NBD_CMD_READ:
      return "read";
    case NBD_CMD_WRITE:
      return "write";
    case NBD_CMD_FLUSH:
      return "flush";
    case NBD_CMD_TRIM:
      return "trim";
    case NBD_CMD_CACHE:
      return "cache";
    case NBD_CMD_WRITE_ZEROES:
      return "writeZeroes";
    case NBD_CMD_BLOCK_STATUS:
      return "blockStatus";
    default:
      return "other";
  }
}
