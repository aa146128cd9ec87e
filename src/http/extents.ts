/**
 * Maps of exports and disks as clients see them.
 *
 * @module
 */

import { limits } from "../limits.ts";
import type { ExtentInfo } from "../machine/messages.ts";
import { ServiceError } from "../vm/errors.ts";

const NBD_STATE_HOLE = 1;
const NBD_STATE_ZERO = 2;
/** Of `x-ovis:access`. */
const ACCESS_FORBIDDEN = 1;
/** Of `qemu:dirty-bitmap:`. */
const STATE_DIRTY = 1;

/** What a client can ask for: `zero` is imageio's word for `allocation`. */
export type MapContext = "allocation" | "zero" | "access" | "dirty";

/** A client's question. */
export interface MapQuery {
  /** What the map shows. */
  context: MapContext;
  /** Which bitmap. */
  bitmap?: string | undefined;
  /** First byte. */
  offset: number;
  /** Bytes, to the end unless given. */
  length?: number | undefined;
  /** Extents at most. */
  limit: number;
}

/** What is asked of a worker. */
export interface MapRequest {
  /** With context `dirty`: which bitmap, null where there is only one. */
  bitmap: string | null;
  /** First byte. */
  offset: number;
  /** Bytes. */
  length: number;
  /** Extents at most. */
  limit: number;
}

/** The answer to a question about something of `sizeBytes`; `read` asks its worker. */
export async function answerMap(
  query: MapQuery,
  sizeBytes: number,
  read: (request: MapRequest) => Promise<{ extents: ExtentInfo[] }>,
): Promise<unknown> {
  const { offset, context } = query;
  if (offset >= sizeBytes) throw new ServiceError("outOfRange", `there are ${sizeBytes} bytes`);
  const length = Math.min(query.length ?? sizeBytes, sizeBytes - offset);
  const { extents } = await read({
    bitmap: query.bitmap ?? null,
    offset,
    length,
    limit: Math.min(query.limit, limits.extentsPerAnswer),
  });
  const last = extents.at(-1);
  const next = last === undefined ? offset + length : last.offset + last.length;
  return {
    extents: extents.map((extent) => describeExtent(extent, context)),
    nextOffset: next < offset + length ? next : null,
  };
}

function describeExtent({ offset, length, flags }: ExtentInfo, context: MapContext) {
  switch (context) {
    case "allocation":
    case "zero": {
      const hole = (flags & NBD_STATE_HOLE) !== 0;
      return { offset, length, hole, zero: (flags & NBD_STATE_ZERO) !== 0 };
    }
    case "access":
      return { offset, length, readable: (flags & ACCESS_FORBIDDEN) === 0 };
    case "dirty":
      return { offset, length, dirty: (flags & STATE_DIRTY) !== 0 };
  }
}
