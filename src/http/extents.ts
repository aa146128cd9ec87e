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

/** Asks a worker. */
export type ReadMap = (
  context: Exclude<MapContext, "zero">,
  part: MapRequest,
) => Promise<{ extents: ExtentInfo[] }>;

/** The answer to a question about something of `sizeBytes`; `read` asks its worker. */
export async function answerMap(
  query: MapQuery,
  sizeBytes: number,
  read: ReadMap,
): Promise<unknown> {
  const { offset, context } = query;
  if (offset >= sizeBytes) throw new ServiceError("outOfRange", `there are ${sizeBytes} bytes`);
  const length = Math.min(query.length ?? sizeBytes, sizeBytes - offset);
  const limit = Math.min(query.limit, limits.extentsPerAnswer);
  const part = { bitmap: query.bitmap ?? null, offset, length, limit };
  const extents = await readExtents(context, part, read);
  const last = extents.at(-1);
  const next = last === undefined ? offset + length : last.offset + last.length;
  return { extents, nextOffset: next < offset + length ? next : null };
}

async function readExtents(
  context: MapContext,
  part: MapRequest,
  read: ReadMap,
): Promise<DescribedExtent[]> {
  if (context !== "dirty") {
    const asked = context === "zero" ? "allocation" : context;
    const { extents } = await read(asked, part);
    return extents.map((extent) => describeExtent(extent, asked));
  }
  const [dirty, allocation] = await Promise.all([read("dirty", part), read("allocation", part)]);
  const extents = [...intersect(dirty.extents, allocation.extents)].slice(0, part.limit);
  return extents.map(({ offset, length, flags: [dirtyFlags, allocationFlags] }) => ({
    ...describeExtent({ offset, length, flags: dirtyFlags }, "dirty"),
    zero: (allocationFlags & NBD_STATE_ZERO) !== 0,
  }));
}

/** Runs in which neither map changes, as far as both go. Both begin at the same place. */
export function* intersect(
  first: readonly ExtentInfo[],
  second: readonly ExtentInfo[],
): Generator<{ offset: number; length: number; flags: [number, number] }> {
  let [i, j] = [0, 0];
  let at = first[0]?.offset ?? 0;
  for (;;) {
    const [a, b] = [first[i], second[j]];
    if (a === undefined || b === undefined) return;
    const [endA, endB] = [a.offset + a.length, b.offset + b.length];
    const end = Math.min(endA, endB);
    yield { offset: at, length: end - at, flags: [a.flags, b.flags] };
    at = end;
    if (endA === end) i++;
    if (endB === end) j++;
  }
}

/** A run as clients see it: which of the words it has depends on the context. */
interface DescribedExtent {
  offset: number;
  length: number;
  hole?: boolean;
  zero?: boolean;
  readable?: boolean;
  dirty?: boolean;
}

function describeExtent(
  { offset, length, flags }: ExtentInfo,
  context: Exclude<MapContext, "zero">,
): DescribedExtent {
  switch (context) {
    case "allocation": {
      const hole = (flags & NBD_STATE_HOLE) !== 0;
      return { offset, length, hole, zero: (flags & NBD_STATE_ZERO) !== 0 };
    }
    case "access":
      return { offset, length, readable: (flags & ACCESS_FORBIDDEN) === 0 };
    case "dirty":
      return { offset, length, dirty: (flags & STATE_DIRTY) !== 0 };
  }
}
