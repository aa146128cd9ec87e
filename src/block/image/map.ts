/**
 * The map of a disk: runs of the same state, joined as far as they go on.
 *
 * @module
 */

import type { BlockNode } from "../node.ts";
import type { Steps } from "../steps.ts";
import { STATUS_ALLOCATED, STATUS_COMPRESSED, STATUS_DATA, STATUS_ZERO } from "../types.ts";
import { type DiskRun, DiskStatus, sectorBytes } from "./chain.ts";

/** An entry of the map, as QAPI's MapEntry. */
export interface MapEntry {
  /** First byte. */
  start: number;
  /** Bytes. */
  length: number;
  /** It is data of a node. */
  isData: boolean;
  /** It reads as zeroes. */
  isZero: boolean;
  /** A node keeps it compressed. */
  isCompressed: boolean;
  /** A node of the chain decides the content. */
  isPresent: boolean;
  /** How far down the chain it lies. */
  depth: number;
  /** Where in the file of that node it lies as it is. */
  host: { node: BlockNode; offset: number } | null;
}

/** Which part of the disk, and how the entries are made. */
export interface MapOptions {
  /** First byte, 0 unless given. */
  start?: number;
  /** Where the map ends; the disk's end unless given. */
  end?: number;
  /** Changes an entry before it is joined with its neighbours. */
  simplify?: (entry: MapEntry) => MapEntry;
}

/**
 * Tells the entries to `each`, in order. Where the map is empty, one empty entry is told, as by
 * qemu-img.
 */
export function* mapDisk(
  top: BlockNode,
  options: MapOptions,
  each: (entry: MapEntry) => void,
): Steps<void> {
  const { start = 0, simplify = (entry) => entry } = options;
  const end = Math.min(options.end ?? Infinity, sectorBytes(top));
  const status = new DiskStatus(top);
  let current: MapEntry | null = null;
  for (let offset = start; offset < end;) {
    const run: DiskRun = yield* status.at(offset, end - offset);
    const next: MapEntry = simplify(entryOf(offset, run));
    offset += next.length;
    if (current !== null && continues(current, next)) {
      current.length += next.length;
      continue;
    }
    if (current !== null) each(current);
    current = next;
  }
  each(current ?? entryOf(start, { length: 0, flags: 0, depth: 0, host: null }));
}

function entryOf(start: number, { length, flags, depth, host }: DiskRun): MapEntry {
  return {
    start,
    length,
    isData: (flags & STATUS_DATA) !== 0,
    isZero: (flags & STATUS_ZERO) !== 0,
    isCompressed: (flags & STATUS_COMPRESSED) !== 0,
    isPresent: (flags & STATUS_ALLOCATED) !== 0,
    depth,
    host: (flags & STATUS_COMPRESSED) !== 0 ? null : host,
  };
}

function continues(current: MapEntry, next: MapEntry): boolean {
  if (
    current.isData !== next.isData || current.isZero !== next.isZero ||
    current.isCompressed !== next.isCompressed || current.isPresent !== next.isPresent ||
    current.depth !== next.depth || (current.host === null) !== (next.host === null)
  ) return false;
  if (current.host === null || next.host === null) return true;
  return current.host.node === next.host.node &&
    current.host.offset + current.length === next.host.offset;
}
