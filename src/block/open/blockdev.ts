/**
 * The arguments of blockdev-add, in the names and types of QEMU's BlockdevOptions: those that all
 * drivers have, and each driver's own (see DriverTable in context.ts).
 *
 * @module
 */

import type { BlockDriver } from "./context.ts";
import {
  alternate,
  bool,
  type Fields,
  nothing,
  oneOf,
  optional,
  type QapiType,
  str,
  struct,
  union,
} from "./qapi.ts";

const cacheFields = { direct: optional(bool), "no-flush": optional(bool) } satisfies Fields;

function baseFields(drivers: readonly string[]) {
  return {
    driver: oneOf("BlockdevDriver", drivers),
    "node-name": optional(str),
    discard: optional(oneOf("BlockdevDiscardOptions", ["ignore", "unmap"])),
    cache: optional(struct("BlockdevCacheOptions", cacheFields)),
    active: optional(bool),
    "read-only": optional(bool),
    "auto-read-only": optional(bool),
    "force-share": optional(bool),
    "detect-zeroes": optional(oneOf("BlockdevDetectZeroesOptions", ["off", "on", "unmap"])),
  } satisfies Fields;
}

/** The arguments that all drivers have: BlockdevOptions' base. */
export interface BlockdevBase {
  /** The driver. */
  driver: string;
  /** The node's name; invented unless given. */
  "node-name"?: string;
  /** What becomes of discards. */
  discard?: "ignore" | "unmap";
  /** How the host's cache is used. */
  cache?: { direct?: boolean; "no-flush"?: boolean };
  /** False: the node is not used for now. */
  active?: boolean;
  /** Refuses writes, whoever asks. */
  "read-only"?: boolean;
  /** Where it can't be opened for writing, it is opened for reading alone. */
  "auto-read-only"?: boolean;
  /** Others may write to the image meanwhile. */
  "force-share"?: boolean;
  /** What becomes of written zeroes. */
  "detect-zeroes"?: "off" | "on" | "unmap";
}

/** A node to be opened, checked. */
export interface Blockdev {
  /** What all drivers have. */
  readonly base: BlockdevBase;
  /** The driver's name. */
  readonly tag: string;
  /** The driver's own arguments. */
  readonly variant: Record<string, unknown>;
}

/** A node to be opened, or the name of one that there is. */
export type BlockdevRef = string | Blockdev;

/** The types of nodes' arguments, for one table of drivers. */
export interface BlockdevTypes {
  /** BlockdevOptions. */
  readonly options: QapiType<Blockdev>;
  /** BlockdevRef. */
  readonly ref: QapiType<BlockdevRef>;
  /** BlockdevRefOrNull. */
  readonly refOrNull: QapiType<BlockdevRef | null>;
}

/** The types for a table of drivers. */
export function createBlockdevTypes(drivers: readonly BlockDriver[]): BlockdevTypes {
  const sorted = [...drivers].sort((a, b) => a.name < b.name ? -1 : 1);
  const variants = (): Map<string, Fields> =>
    new Map(sorted.map((driver) => [driver.name, driver.fields(types)]));
  let known: Map<string, Fields> | null = null;
  const options: QapiType<Blockdev> = union("BlockdevOptions", {
    base: baseFields(sorted.map(({ name }) => name)),
    tag: "driver",
    variants: () => known ??= variants(),
  });
  const ref = alternate<BlockdevRef>("BlockdevRef", {
    object: () => options,
    string: () => str,
  });
  const refOrNull = alternate<BlockdevRef | null>("BlockdevRefOrNull", {
    object: () => options,
    string: () => str,
    null: () => nothing,
  });
  const types: BlockdevTypes = { options, ref, refOrNull };
  return types;
}
