/**
 * Reads, maps and writes of exports and disks, bounded, as HTTP asks for them.
 *
 * @module
 */

import type { Extent, MetaContext } from "../block/export.ts";
import { BlockError } from "../block/errors.ts";
import { limits } from "../limits.ts";
import type { ExtentInfo } from "./messages.ts";

/** A part of something. */
export interface Part {
  /** First byte. */
  offset: number;
  /** Bytes, perhaps none. */
  length: number;
}

/** Throws a BlockError (EINVAL) unless the part lies within `sizeBytes`. */
export function checkPart({ offset, length }: Part, sizeBytes: number): void {
  const isPart = Number.isSafeInteger(offset) && Number.isSafeInteger(length) &&
    offset >= 0 && length >= 0 && length <= sizeBytes - offset;
  if (!isPart) {
    throw new BlockError("EINVAL", `${length} bytes at ${offset} are outside of ${sizeBytes}`);
  }
}

/** The same for a part that is moved at once. */
export function checkPiece(part: Part, sizeBytes: number): void {
  checkPart(part, sizeBytes);
  if (part.length > limits.exportReadBytes) {
    throw new BlockError("EINVAL", `more than ${limits.exportReadBytes} bytes at once`);
  }
}

/** What a map says about a part, from its start on, in at most `limit` extents. */
export async function readMap(
  map: MetaContext,
  { offset, length, limit }: Part & { limit: number },
): Promise<ExtentInfo[]> {
  if (length === 0) return [];
  const maxExtents = Math.min(Math.max(limit, 1), limits.extentsPerAnswer);
  return place(offset, await map.extents(offset, length, { maxExtents }));
}

function place(offset: number, extents: readonly Extent[]): ExtentInfo[] {
  let at = offset;
  return extents.map(({ length, flags }) => {
    const placed = { offset: at, length, flags };
    at += length;
    return placed;
  });
}

/** Areas of so many bytes are looked at for zeroes as a whole. */
const ZERO_AREA_BYTES = 65536;

/** What is written, in runs of data and of zeroes. */
export function runsOf(bytes: Uint8Array): { offset: number; length: number; isZero: boolean }[] {
  const runs: { offset: number; length: number; isZero: boolean }[] = [];
  for (let offset = 0; offset < bytes.length; offset += ZERO_AREA_BYTES) {
    const area = bytes.subarray(offset, offset + ZERO_AREA_BYTES);
    const isZero = area.every((byte) => byte === 0);
    const last = runs.at(-1);
    if (last?.isZero === isZero) last.length += area.length;
    else runs.push({ offset, length: area.length, isZero });
  }
  return runs;
}
