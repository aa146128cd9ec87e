/**
 * Internal snapshots as a table.
 *
 * @module
 */

import { formatSize } from "./sizes.ts";

/** QAPI's SnapshotInfo. */
export interface SnapshotInfo {
  /** Unique. */
  id: string;
  /** For people. */
  name: string;
  /** Bytes of the machine's state. */
  "vm-state-size": number;
  /** When it was made. */
  "date-sec": number;
  /** See date-sec. */
  "date-nsec": number;
  /** How long the machine had run. */
  "vm-clock-sec": number;
  /** See vm-clock-sec. */
  "vm-clock-nsec": number;
  /** How many instructions it had run, where those were counted. */
  icount?: number;
}

/** The table's lines, its head included. */
export function formatSnapshots(snapshots: readonly SnapshotInfo[]): string[] {
  const rows = snapshots.map((snapshot) => [
    snapshot.id,
    snapshot.name,
    formatSize(snapshot["vm-state-size"]),
    formatDate(snapshot["date-sec"]),
    formatClock(snapshot["vm-clock-sec"], snapshot["vm-clock-nsec"]),
    snapshot.icount === undefined ? "--" : String(snapshot.icount),
  ]);
  const head = ["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"];
  return [head, ...rows].map(([id = "", tag = "", size = "", date = "", clock = "", icount = ""]) =>
    `${id.padEnd(7)} ${tag.padEnd(16)} ${size.padStart(8)}${date.padStart(20)}` +
    `${clock.padStart(16)}${icount.padStart(11)}`
  );
}

/** In the zone of whoever looks. */
function formatDate(seconds: number): string {
  const date = new Date(seconds * 1000);
  const two = (value: number): string => String(value).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ` +
    `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

function formatClock(seconds: number, nanoseconds: number): string {
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  const parts = [
    String(hours).padStart(4, "0"),
    String(minutes).padStart(2, "0"),
    String(seconds % 60).padStart(2, "0"),
  ];
  return `${parts.join(":")}.${String(Math.floor(nanoseconds / 1e6)).padStart(3, "0")}`;
}
