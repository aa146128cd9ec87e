/**
 * Writes the changed slices of a metadata cache: neighbours in one request.
 *
 * @module
 */

import type { Steps } from "../steps.ts";
import type { ImageContext } from "./context.ts";
import type { MetadataCache, Slice } from "./metadata_cache.ts";

/** One request is no longer than this. */
const WRITE_BYTES_MAX = 256 * 1024;

/** Writes what is dirty, under the lock. `kind`: what the slices are of, for the overlap check. */
export function* writeSlices(
  context: ImageContext,
  cache: MetadataCache,
  kind: number,
): Steps<void> {
  let row: Slice[] = [];
  let end = 0;
  for (const slice of cache.dirtySlices()) {
    const [first] = row;
    if (first !== undefined && (slice.offset !== end || end - first.offset >= WRITE_BYTES_MAX)) {
      yield* writeRow(context, cache, kind, row);
      row = [];
    }
    row.push(slice);
    end = slice.offset + slice.bytes.length;
  }
  yield* writeRow(context, cache, kind, row);
}

function* writeRow(
  context: ImageContext,
  cache: MetadataCache,
  kind: number,
  row: readonly Slice[],
): Steps<void> {
  const [first] = row;
  if (first === undefined) return;
  let { bytes } = first;
  if (row.length > 1) {
    bytes = new Uint8Array(row.length * first.bytes.length);
    row.forEach((slice) => bytes.set(slice.bytes, slice.offset - first.offset));
  }
  yield* context.checkOverlap(first.offset, bytes.length, kind);
  yield* context.file.write(first.offset, bytes);
  for (const slice of row) cache.markClean(slice);
}
