/**
 * The bytes of an export or a disk as a stream: read in pieces, one ahead of the reader, no faster
 * than the reader takes them. A read that fails breaks the transfer off, so that nobody takes a
 * part for all.
 *
 * @module
 */

import { limits } from "../limits.ts";
import { ServiceError } from "../vm/errors.ts";
import type { Machine } from "../vm/machine.ts";

/** A part of an export. */
export interface ExportRange {
  /** The export's name, which exists. */
  exportName: string;
  /** First byte, within the export. */
  offset: number;
  /** Bytes, from 0 to the end of the export. */
  length: number;
}

/** Small enough to be collected early, large enough to hide the way to the worker and back. */
const PIECE_BYTES = limits.exportReadBytes / 4;
/** Flag of the `access` context: a reader may not read this. */
const ACCESS_FORBIDDEN = 1;

/** Throws rangeForbidden, naming the first area of `range` that may not be read. */
export async function checkReadable(machine: Machine, range: ExportRange): Promise<void> {
  const end = range.offset + range.length;
  let { offset } = range;
  while (offset < end) {
    const { extents } = await machine.call("exportExtents", {
      exportName: range.exportName,
      context: "access",
      bitmap: null,
      offset,
      length: end - offset,
      limit: limits.extentsPerAnswer,
    });
    for (const extent of extents) {
      if ((extent.flags & ACCESS_FORBIDDEN) !== 0) {
        throw new ServiceError(
          "rangeForbidden",
          `bytes ${extent.offset} to ${extent.offset + extent.length - 1} may not be read`,
          { range: { offset: extent.offset, length: extent.length } },
        );
      }
      offset = extent.offset + extent.length;
    }
    if (extents.length === 0) throw new ServiceError("ioError", "the map of the export ends early");
  }
}

/** The bytes of a range, which `read` gives in pieces. */
export function streamContent(
  range: { offset: number; length: number },
  read: (piece: { offset: number; length: number }) => Promise<ArrayBuffer>,
): ReadableStream<Uint8Array<ArrayBuffer>> {
  const end = range.offset + range.length;
  let { offset } = range;
  let ahead: Promise<ArrayBuffer> | null = null;
  const readNext = (): Promise<ArrayBuffer> | null => {
    if (offset >= end) return null;
    const length = Math.min(PIECE_BYTES, end - offset);
    const piece = read({ offset, length });
    // Whoever awaits it gets the error; nobody does if the reader goes away first.
    piece.catch(() => {});
    offset += length;
    return piece;
  };
  return new ReadableStream({
    async pull(controller) {
      ahead ??= readNext();
      if (ahead === null) return controller.close();
      const bytes = await ahead;
      ahead = readNext();
      controller.enqueue(new Uint8Array(bytes));
      if (ahead === null) controller.close();
    },
  }, { highWaterMark: 1 });
}
