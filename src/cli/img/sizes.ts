/**
 * Sizes in arguments and for people, as QEMU reads and writes them (util/cutils.c).
 *
 * @module
 */

import { ImgError } from "./errors.ts";

const UNITS = "BKMGTPE";
/** INT64_MAX. */
const SIZE_MAX = 2n ** 63n - 1n;

/** What `parseSize` takes beside the text. */
export interface SizeBounds {
  /** What messages call the value. */
  name: string;
  /** 0 unless given. */
  min?: number;
  /** INT64_MAX unless given. */
  max?: number;
}

/** A number of bytes with an optional suffix. Throws an ImgError. */
export function parseSize(text: string, bounds: SizeBounds): number {
  return checkBounds(text, sizeOf(text), bounds);
}

/** A number without suffix. Throws an ImgError. */
export function parseNumber(text: string, bounds: SizeBounds): number {
  const match = /^\s*\+?(0x[0-9a-f]+|0[0-7]*|[1-9]\d*)$/i.exec(text);
  const digits = match?.[1];
  const isNegative = /^\s*-\d+$/.test(text);
  const value = isNegative ? -1n : digits === undefined ? null : BigInt(decimal(digits));
  return checkBounds(text, value, bounds);
}

/** The octal form of C has no prefix that BigInt knows. */
function decimal(digits: string): string {
  return /^0[0-7]+$/.test(digits) ? `0o${digits.slice(1)}` : digits;
}

/** The value of a size, which may be out of range; null where the text is none. */
export function sizeOf(text: string): bigint | null {
  const hex = /^\s*\+?(0x[0-9a-f]+)([kmgtp])?$/i.exec(text);
  if (hex?.[1] !== undefined) return BigInt(hex[1]) * unitOf(hex[2]);
  if (/^\s*-\d+[bkmgtpe]?$/i.test(text)) return -1n;
  const match = /^\s*\+?(\d+)(?:\.(\d*))?([bkmgtpe])?$/i.exec(text);
  if (match === null) return null;
  const [, whole = "0", fraction, suffix] = match;
  const unit = unitOf(suffix);
  if (fraction === undefined || /^0*$/.test(fraction)) return BigInt(whole) * unit;
  // A part of a byte is no size.
  if (unit === 1n) return null;
  return BigInt(whole) * unit + BigInt(Math.round(Number(`0.${fraction}`) * Number(unit)));
}

function unitOf(suffix: string | undefined): bigint {
  return 1024n ** BigInt(Math.max(UNITS.indexOf((suffix ?? "B").toUpperCase()), 0));
}

function checkBounds(text: string, value: bigint | null, bounds: SizeBounds): number {
  const { name, min = 0, max = null } = bounds;
  if (value === null) throw new ImgError(`Invalid ${name} specified: '${text}'.`);
  const highest = max === null ? SIZE_MAX : BigInt(max);
  if (value < BigInt(min) || value > highest) {
    throw new ImgError(`Invalid ${name} specified. Must be between ${min} and ${highest}.`);
  }
  // What no driver here can hold is refused there, by a number that is still exact here.
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new ImgError(`The ${name} must be at most ${Number.MAX_SAFE_INTEGER} bytes`);
  }
  return Number(value);
}

/** As people read it: "1.5 MiB", "64 GiB", "0 B". */
export function formatSize(bytes: number): string {
  // QEMU's size_to_str: the unit in which the number is below 1000, three digits.
  let unit = 0;
  while (unit < UNITS.length - 1 && bytes / 1024 ** unit >= 1000) unit++;
  const value = bytes / 1024 ** unit;
  return `${significant(value)} ${unit === 0 ? "B" : `${UNITS[unit]}iB`}`;
}

/** printf's "%0.3g": three digits, the even one where a number lies between two. */
function significant(value: number): string {
  if (value === 0) return "0";
  const scale = 10 ** (2 - Math.floor(Math.log10(value)));
  const scaled = value * scale;
  const low = Math.floor(scaled);
  const isUp = scaled - low > 0.5 || (scaled - low === 0.5 && low % 2 === 1);
  return String((low + (isUp ? 1 : 0)) / scale);
}
