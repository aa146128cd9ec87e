/**
 * Header extensions of a qcow2 image: (type, length, data padded to 8 bytes) from the end of the
 * header to an entry of type 0. They are kept in their order and with their data, those that nobody
 * here knows too, and written again whenever the header is.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import { EXTENSION_END, EXTENSION_FEATURE_NAMES, FEATURE_NAMES } from "./format.ts";

/** One header extension. */
export interface HeaderExtension {
  /** EXTENSION_*, or a number that nobody here knows. */
  type: number;
  /** Without padding. */
  data: Uint8Array;
}

/** Bytes of an entry of the feature name table: kind, bit, 46 bytes of name. */
const FEATURE_NAME_BYTES = 48;
const EXTENSION_HEADER_BYTES = 8;

/** The extensions in `bytes`, the part of the image between header and backing file name. */
export function parseExtensions(bytes: Uint8Array): HeaderExtension[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const extensions: HeaderExtension[] = [];
  let at = 0;
  while (at + EXTENSION_HEADER_BYTES <= bytes.length) {
    const type = view.getUint32(at);
    const length = view.getUint32(at + 4);
    at += EXTENSION_HEADER_BYTES;
    if (type === EXTENSION_END) break;
    if (length > bytes.length - at) throw new BlockError("EINVAL", "Header extension too large");
    extensions.push({ type, data: bytes.slice(at, at + length) });
    at += padded(length);
  }
  return extensions;
}

/** The extensions as they stand in an image, with their end. */
export function encodeExtensions(extensions: readonly HeaderExtension[]): Uint8Array {
  let length = EXTENSION_HEADER_BYTES;
  for (const { data } of extensions) length += EXTENSION_HEADER_BYTES + padded(data.length);
  const bytes = new Uint8Array(length);
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const { type, data } of extensions) {
    view.setUint32(at, type);
    view.setUint32(at + 4, data.length);
    bytes.set(data, at + EXTENSION_HEADER_BYTES);
    at += EXTENSION_HEADER_BYTES + padded(data.length);
  }
  return bytes;
}

/** The extension of that type, if there is one. */
export function findExtension(
  extensions: readonly HeaderExtension[],
  type: number,
): HeaderExtension | undefined {
  return extensions.find((extension) => extension.type === type);
}

/** An extension's data as text. */
export function extensionText(
  extensions: readonly HeaderExtension[],
  type: number,
): string | null {
  const extension = findExtension(extensions, type);
  return extension === undefined ? null : new TextDecoder().decode(extension.data);
}

/** The extensions with that one in place of another of its type, or without, where data is null. */
export function withExtension(
  extensions: readonly HeaderExtension[],
  type: number,
  data: Uint8Array | null,
): HeaderExtension[] {
  const changed = extensions.filter((extension) => extension.type !== type);
  if (data === null) return changed;
  const index = extensions.findIndex((extension) => extension.type === type);
  changed.splice(index < 0 ? changed.length : index, 0, { type, data });
  return changed;
}

/** The table of feature names that QEMU writes. */
export function featureNameTable(): HeaderExtension {
  const data = new Uint8Array(FEATURE_NAMES.length * FEATURE_NAME_BYTES);
  FEATURE_NAMES.forEach(([kind, bit, name], index) => {
    data[index * FEATURE_NAME_BYTES] = kind;
    data[index * FEATURE_NAME_BYTES + 1] = bit;
    data.set(new TextEncoder().encode(name), index * FEATURE_NAME_BYTES + 2);
  });
  return { type: EXTENSION_FEATURE_NAMES, data };
}

/** What incompatible features are called, by the image's own table, as QEMU lists them. */
export function describeIncompatible(
  extensions: readonly HeaderExtension[],
  features: bigint,
): string {
  const names: string[] = [];
  let unnamed = features;
  const table = findExtension(extensions, EXTENSION_FEATURE_NAMES)?.data ?? new Uint8Array();
  for (let at = 0; at + FEATURE_NAME_BYTES <= table.length; at += FEATURE_NAME_BYTES) {
    const bit = 1n << BigInt(table[at + 1] ?? 0);
    if (table[at] !== 0 || (features & bit) === 0n) continue;
    const name = table.subarray(at + 2, at + FEATURE_NAME_BYTES);
    const end = name.indexOf(0);
    names.push(new TextDecoder().decode(end < 0 ? name : name.subarray(0, end)));
    unnamed &= ~bit;
  }
  if (unnamed !== 0n) names.push(`Unknown incompatible feature: ${unnamed.toString(16)}`);
  return names.join(", ");
}

function padded(length: number): number {
  return Math.ceil(length / 8) * 8;
}
