/**
 * Driver blkdebug: errors on demand, in QEMU's arguments, over the fault injection filter. Rules
 * name kinds of requests (`iotype`) or the events that stand for them; QEMU's events inside its
 * formats' metadata have no counterpart here and are refused, and so are states.
 *
 * @module
 */

import type { BlockErrorCode } from "../errors.ts";
import type { FaultOperation, FaultRule } from "../filters/fault_injection.ts";
import type { BlockdevTypes } from "./blockdev.ts";
import type { BlockDriver } from "./context.ts";
import {
  bool,
  type Fields,
  inputError,
  int,
  list,
  oneOf,
  optional,
  type Parsed,
  str,
  struct,
} from "./qapi.ts";

const IO_TYPES = ["read", "write", "write-zeroes", "discard", "flush", "block-status"] as const;
const SECTOR_BYTES = 512;

const OPERATIONS: Record<typeof IO_TYPES[number], FaultOperation> = {
  read: "read",
  write: "write",
  "write-zeroes": "writeZeroes",
  discard: "discard",
  flush: "flush",
  "block-status": "blockStatus",
};

/** Of QEMU's events those that a request as a whole is. */
const EVENTS: Record<string, readonly FaultOperation[]> = {
  none: ["read", "write", "writeZeroes", "discard", "flush"],
  read_aio: ["read"],
  write_aio: ["write"],
  pwritev: ["write"],
  pwritev_zero: ["writeZeroes"],
  pwritev_done: ["write"],
  flush_to_os: ["flush"],
  flush_to_disk: ["flush"],
};

const ERRNO_CODES: Record<number, BlockErrorCode> = {
  1: "EPERM",
  2: "ENOENT",
  5: "EIO",
  13: "EACCES",
  16: "EBUSY",
  22: "EINVAL",
  27: "EFBIG",
  28: "ENOSPC",
  95: "ENOTSUP",
  108: "ESHUTDOWN",
  110: "ETIMEDOUT",
};

const injectErrorFields = {
  event: oneOf("BlkdebugEvent", Object.keys(EVENTS)),
  state: optional(int),
  iotype: optional(oneOf("BlkdebugIOType", IO_TYPES)),
  errno: optional(int),
  sector: optional(int),
  once: optional(bool),
  immediately: optional(bool),
  "delay-ns": optional(int),
} satisfies Fields;

function fields(types: BlockdevTypes) {
  return {
    image: types.ref,
    config: optional(str),
    "inject-error": optional(list(struct("BlkdebugInjectErrorOptions", injectErrorFields))),
  } satisfies Fields;
}

/** See the module's head. */
export const blkdebugDriver: BlockDriver = {
  name: "blkdebug",
  fields,
  open: async ({ nodeName, options, child, context }) => {
    const parsed = options as unknown as Parsed<ReturnType<typeof fields>>;
    if (parsed.config !== undefined) throw inputError("'config' is not supported");
    const rules = (parsed["inject-error"] ?? []).map(faultRule);
    const file = await child(parsed.image);
    const { FaultInjectionNode } = await import("../filters/fault_injection.ts");
    return new FaultInjectionNode({
      nodeName,
      driver: "blkdebug",
      file,
      rules,
      ...(context.clock === undefined ? {} : { clock: context.clock }),
    });
  },
};

function faultRule(rule: Parsed<typeof injectErrorFields>): FaultRule {
  if ((rule.state ?? 0) > 1) throw inputError("blkdebug's states are not supported");
  const { sector } = rule;
  return {
    operations: rule.iotype === undefined ? EVENTS[rule.event] ?? [] : [OPERATIONS[rule.iotype]],
    error: ERRNO_CODES[rule.errno ?? 5] ?? "EIO",
    ...(rule.once ? { count: 1 } : {}),
    ...(rule["delay-ns"] === undefined ? {} : { delayMs: rule["delay-ns"] / 1e6 }),
    ...(sector === undefined || sector < 0
      ? {}
      : { range: { offset: sector * SECTOR_BYTES, length: SECTOR_BYTES } }),
  };
}
