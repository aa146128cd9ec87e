/**
 * What tests of the block layer share.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { BlockBackend } from "../../src/block/backend.ts";
import { BlockError, type BlockErrorCode } from "../../src/block/errors.ts";
import type { BlockGraph } from "../../src/block/graph.ts";
import { IoVector } from "../../src/block/io_vector.ts";
import { BlockNode, type BlockNodeOptions } from "../../src/block/node.ts";
import {
  type MaybePromise,
  PERM_CONSISTENT_READ,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
} from "../../src/block/types.ts";

/** What a guest's disk takes and shares. */
export const DEVICE_PERMISSIONS = {
  perm: PERM_CONSISTENT_READ | PERM_WRITE,
  shared: PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED,
};

/** A backend as a guest's disk has it. */
export function openDevice(graph: BlockGraph, nodeName: string, name = "disk0"): BlockBackend {
  return new BlockBackend(graph, { name, nodeName, ...DEVICE_PERMISSIONS });
}

/** The error of a call that must fail, now or later. */
export async function blockError(action: () => unknown): Promise<BlockError> {
  try {
    await action();
  } catch (error) {
    if (error instanceof BlockError) return error;
    throw error;
  }
  throw new Error("the call did not fail");
}

/** Asserts that a call fails so. */
export async function assertFails(
  action: () => unknown,
  code: BlockErrorCode,
  message: string | RegExp,
): Promise<void> {
  const error = await blockError(action);
  assertEquals(error.code, code, error.message);
  if (typeof message === "string") assertEquals(error.message, message);
  else assert(message.test(error.message), error.message);
}

/** The value of a call that must answer within the call. */
export function now<T>(value: MaybePromise<T>): T {
  if (value instanceof Promise) throw new Error("the call did not answer at once");
  return value;
}

/** Who can be read. */
interface Readable {
  read(offset: number, target: IoVector): MaybePromise<void>;
}

/** The bytes of a range. */
export async function readBytes(
  source: Readable,
  offset: number,
  length: number,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(length).fill(0xee);
  await source.read(offset, IoVector.of(bytes));
  return bytes;
}

/** A vector of `length` times `value`. */
export function filled(length: number, value: number): IoVector {
  return IoVector.of(new Uint8Array(length).fill(value));
}

/** A driver that writes down what reaches it. */
export class RecordingNode extends BlockNode {
  readonly calls: string[] = [];

  constructor(options: Partial<BlockNodeOptions> = {}) {
    super({
      nodeName: "rec",
      driver: "recording",
      sizeBytes: 1 << 20,
      isReadOnly: false,
      ...options,
    });
  }

  protected override doRead(offset: number, target: IoVector): MaybePromise<void> {
    this.calls.push(`read ${offset} ${target.length}`);
  }

  protected override doWrite(offset: number, source: IoVector, flags: number): MaybePromise<void> {
    this.calls.push(`write ${offset} ${source.length} ${flags}`);
  }

  protected override doDiscard(offset: number, length: number): void {
    this.calls.push(`discard ${offset} ${length}`);
  }

  protected override doFlush(): void {
    this.calls.push("flush");
  }

  protected override doClose(): void {
    this.calls.push("close");
  }
}
