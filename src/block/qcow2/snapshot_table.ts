/**
 * The snapshot table of a qcow2 image: its entries, as they are read and written. An entry is
 *
 *   40 bytes of numbers | extra data | id | name | padding to 8 bytes
 *
 * and where the next one starts only its own lengths say. Extra data that nobody here knows is
 * kept.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import type { Steps } from "../steps.ts";
import { settle } from "../steps.ts";
import { SNAPSHOT_HEADER_BYTES } from "./format.ts";
import type { ImageFile } from "./image_file.ts";

/** QEMU's bounds (block/qcow2.h): of the whole table, and of the extra data of an entry. */
export const MAX_SNAPSHOT_TABLE_BYTES = 64 * 1024 * 1024;
/** See MAX_SNAPSHOT_TABLE_BYTES. */
export const MAX_SNAPSHOT_EXTRA_BYTES = 1024;
/** Extra data known here: size of the VM state, of the disk, count of instructions. */
const KNOWN_EXTRA_BYTES = 24;
/** Version 3 demands the first two of them. */
export const MIN_EXTRA_BYTES_V3 = 16;
const NO_ICOUNT = 0xffffffffffffffffn;
const READ_BYTES = 65536;

/** An entry. */
export interface SnapshotEntry {
  /** Where its L1 table is: unchecked, and not a safe integer where the image says nonsense. */
  l1TableOffset: number;
  /** How many entries that has, unchecked. */
  l1Size: number;
  /** Unique, as written: usually a number. */
  id: string;
  /** For people. */
  name: string;
  /** When it was made, by the clock of the wall. */
  dateSeconds: number;
  /** The rest of that. */
  dateNanoseconds: number;
  /** How long the machine had run. */
  vmClockNs: bigint;
  /** Bytes of the VM state behind the disk's end, 0 where there is none. */
  vmStateBytes: number;
  /** The disk's size then; that of now where the entry doesn't say. */
  diskSizeBytes: number;
  /** Instructions that the machine had run, where they were counted. */
  icount: bigint | null;
  /** Behind what is known here. */
  unknownExtra: Uint8Array;
  /** How much extra data there was in the image. */
  extraBytes: number;
}

/** Reads entries one after the other. */
export class SnapshotTableReader {
  readonly #file: ImageFile;
  readonly #start: number;
  #at: number;
  #buffer = new Uint8Array();
  #bufferAt = 0;

  /** `offset`: where the table starts. */
  constructor(file: ImageFile, offset: number) {
    this.#file = file;
    this.#start = this.#at = offset;
  }

  /** Bytes of the entries that were read, without padding behind the last one. */
  get tableBytes(): number {
    return this.#at - this.#start;
  }

  /** The next entry, if its extra data is not too large: see `nextLenient`. */
  *next(index: number, diskSizeBytes: number): Steps<SnapshotEntry> {
    const entry = yield* this.nextLenient(diskSizeBytes);
    if (entry.extraBytes <= MAX_SNAPSHOT_EXTRA_BYTES) return entry;
    throw new BlockError("EINVAL", `Too much extra metadata in snapshot table entry ${index}`);
  }

  /** The next entry, with as much extra data as is allowed. Throws where the table is too big. */
  *nextLenient(diskSizeBytes: number): Steps<SnapshotEntry> {
    this.#at = this.#start + padded(this.#at - this.#start);
    const head = view(yield* this.#take(SNAPSHOT_HEADER_BYTES));
    const extraBytes = head.getUint32(36);
    const extra = (yield* this.#take(Math.min(extraBytes, MAX_SNAPSHOT_EXTRA_BYTES))).slice();
    this.#at += extraBytes - extra.length;
    const id = new TextDecoder().decode(yield* this.#take(head.getUint16(12)));
    const name = new TextDecoder().decode(yield* this.#take(head.getUint16(14)));
    if (this.tableBytes > MAX_SNAPSHOT_TABLE_BYTES) {
      throw new BlockError("EFBIG", "Snapshot table is too big");
    }
    const values = view(extra);
    const icount = extraBytes >= 24 ? values.getBigUint64(16) : NO_ICOUNT;
    return {
      l1TableOffset: Number(head.getBigUint64(0)),
      l1Size: head.getUint32(8),
      id,
      name,
      dateSeconds: head.getUint32(16),
      dateNanoseconds: head.getUint32(20),
      vmClockNs: head.getBigUint64(24),
      vmStateBytes: extraBytes >= 8 ? Number(values.getBigUint64(0)) : head.getUint32(32),
      diskSizeBytes: extraBytes >= 16 ? Number(values.getBigUint64(8)) : diskSizeBytes,
      icount: icount === NO_ICOUNT ? null : icount,
      unknownExtra: extra.slice(KNOWN_EXTRA_BYTES),
      extraBytes,
    };
  }

  *#take(length: number): Steps<Uint8Array> {
    const offset = this.#at;
    const isBuffered = offset >= this.#bufferAt &&
      offset + length <= this.#bufferAt + this.#buffer.length;
    if (!isBuffered) {
      this.#buffer = new Uint8Array(Math.max(length, READ_BYTES));
      this.#bufferAt = offset;
      yield* settle(this.#file.read(offset, this.#buffer));
    }
    this.#at += length;
    const start = offset - this.#bufferAt;
    return this.#buffer.subarray(start, start + length);
  }
}

/** The whole table. Throws where it is beyond QEMU's bounds. */
export function* readSnapshotTable(
  file: ImageFile,
  header: { snapshotsOffset: number; snapshotCount: number; sizeBytes: number },
): Steps<{ entries: SnapshotEntry[]; tableBytes: number }> {
  const entries: SnapshotEntry[] = [];
  const reader = new SnapshotTableReader(file, header.snapshotsOffset);
  for (let index = 0; index < header.snapshotCount; index++) {
    entries.push(yield* reader.next(index, header.sizeBytes));
  }
  return { entries, tableBytes: reader.tableBytes };
}

/** The table as it stands in an image. */
export function encodeSnapshotTable(entries: readonly SnapshotEntry[]): Uint8Array {
  const parts = entries.map(encodeEntry);
  let length = 0;
  for (const part of parts) length = padded(length) + part.length;
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    at = padded(at);
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

function encodeEntry(entry: SnapshotEntry): Uint8Array {
  const id = new TextEncoder().encode(entry.id);
  const name = new TextEncoder().encode(entry.name);
  const extraBytes = KNOWN_EXTRA_BYTES + entry.unknownExtra.length;
  const bytes = new Uint8Array(SNAPSHOT_HEADER_BYTES + extraBytes + id.length + name.length);
  const numbers = view(bytes);
  numbers.setBigUint64(0, BigInt(entry.l1TableOffset));
  numbers.setUint32(8, entry.l1Size);
  numbers.setUint16(12, id.length);
  numbers.setUint16(14, name.length);
  numbers.setUint32(16, entry.dateSeconds);
  numbers.setUint32(20, entry.dateNanoseconds);
  numbers.setBigUint64(24, entry.vmClockNs);
  // Who doesn't know the extra data takes a snapshot whose state is too big for one without.
  numbers.setUint32(32, entry.vmStateBytes <= 0xffffffff ? entry.vmStateBytes : 0);
  numbers.setUint32(36, extraBytes);
  numbers.setBigUint64(40, BigInt(entry.vmStateBytes));
  numbers.setBigUint64(48, BigInt(entry.diskSizeBytes));
  numbers.setBigUint64(56, entry.icount ?? NO_ICOUNT);
  let at = SNAPSHOT_HEADER_BYTES + KNOWN_EXTRA_BYTES;
  for (const part of [entry.unknownExtra, id, name]) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function padded(length: number): number {
  return Math.ceil(length / 8) * 8;
}
