/**
 * Words and numbers of `ovis vm`.
 *
 * @module
 */

import { InvalidArgumentError } from "commander";

const MiB = 1024 * 1024;
const UNITS: Record<string, number> = { "": 1, K: 1024, M: MiB, G: 1024 * MiB, T: MiB * MiB };

/** A machine's path. */
export function pathOf(name: string): string {
  return `/v1/vms/${encodeURIComponent(name)}`;
}

/** A disk's path. */
export function diskPath(name: string): string {
  return `/v1/disks/${encodeURIComponent(name)}`;
}

/** A job's path. */
export function jobPath(id: string): string {
  return `/v1/jobs/${encodeURIComponent(id)}`;
}

/** A whole number. */
export function parseCount(text: string): number {
  if (!/^\d+$/.test(text)) throw new InvalidArgumentError("not a number");
  return Number(text);
}

/** Bytes of `64M` and the like. */
export function parseSize(text: string): number {
  const [, digits, unit] = /^(\d+)([KMGT]?)$/i.exec(text) ?? [];
  if (digits === undefined || unit === undefined) {
    throw new InvalidArgumentError("not a size: a number with K, M, G or T behind it");
  }
  return Number(digits) * (UNITS[unit.toUpperCase()] ?? 1);
}

/** The other way round, rounded down. */
export function formatSize(bytes: number): string {
  const [unit, factor] = Object.entries(UNITS).findLast(([, size]) => bytes >= size) ?? ["", 1];
  return `${Math.floor(bytes / factor)}${unit}`;
}
