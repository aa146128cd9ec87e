/**
 * Lists in pages. A cursor is the name of the last item sent, so that items that come and go
 * between two pages neither repeat nor hide others.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { HttpError } from "./problem.ts";

/** Where items come from and how they look. */
export interface PageSource<T, D> {
  /** Up to `limit` items whose names come after `after`, ordered by name. */
  list: (options: { after: string; limit: number }) => T[];
  /** The name by which the list is ordered, unique in it. */
  nameOf: (item: T) => string;
  /** An item as its reader sees it. */
  describe: (item: T) => D;
}

/** The page behind the query's cursor, in the order of the source. Throws invalidRequest. */
export function readPage<T, D>(
  query: { limit: number; cursor?: string | undefined },
  source: PageSource<T, D>,
): { items: D[]; nextCursor: string | null } {
  const after = query.cursor === undefined ? "" : decodeCursor(query.cursor);
  const items = source.list({ after, limit: query.limit + 1 });
  const isLast = items.length <= query.limit;
  const shown = items.slice(0, query.limit);
  const last = shown.at(-1);
  const nextCursor = isLast || last === undefined
    ? null
    : Buffer.from(source.nameOf(last)).toString("base64url");
  return { items: shown.map(source.describe), nextCursor };
}

function decodeCursor(cursor: string): string {
  if (!/^[\w-]+$/.test(cursor)) {
    throw new HttpError("invalidRequest", "the cursor is not one of ours");
  }
  return Buffer.from(cursor, "base64url").toString();
}
