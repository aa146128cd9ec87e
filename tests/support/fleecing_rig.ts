/**
 * A disk with a guest and fleecings, all in memory, and the answers of both in words:
 *
 *   read     "11*65536 22*4096": runs of equal bytes, in hexadecimal
 *   others   "ok"
 *   failures "refused" (a snapshot reader may not), else the error's code
 *
 * The same words come from a QEMU storage daemon (qemu_fleecing.ts).
 *
 * @module
 */

import { BlockBackend } from "../../src/block/backend.ts";
import type { BitmapAction } from "../../src/block/bitmap_actions.ts";
import { BlockLayer } from "../../src/block/block_layer.ts";
import { MemoryNode } from "../../src/block/drivers/memory.ts";
import { toBlockError } from "../../src/block/errors.ts";
import { SnapshotExport } from "../../src/block/exports/snapshot_export.ts";
import { FaultInjectionNode, type FaultRule } from "../../src/block/filters/fault_injection.ts";
import { Fleecing, type FleecingOptions } from "../../src/block/fleecing.ts";
import { IoVector } from "../../src/block/io_vector.ts";
import {
  type MaybePromise,
  PERM_CONSISTENT_READ,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
  REQ_MAY_UNMAP,
} from "../../src/block/types.ts";
import { runTransaction } from "../../src/block/transaction.ts";
import { compileKernels, Kernels } from "../../src/wasm/kernels.ts";
import { FakeClock } from "./fake_clock.ts";
import { WatchedGraph } from "./watched_graph.ts";

export const KiB = 1024;
export const MiB = 1024 * KiB;
export const CLUSTER = 64 * KiB;

const module = await compileKernels();

/** Runs of equal bytes, in words. */
export function describeBytes(bytes: Uint8Array): string {
  const runs: string[] = [];
  for (let at = 0; at < bytes.length;) {
    let end = at + 1;
    while (end < bytes.length && bytes[end] === bytes[at]) end++;
    runs.push(`${(bytes[at] ?? 0).toString(16).padStart(2, "0")}*${end - at}`);
    at = end;
  }
  return runs.join(" ");
}

/** The answer of a call without result, in words. */
export async function outcome(call: () => MaybePromise<unknown>): Promise<string> {
  try {
    await call();
    return "ok";
  } catch (error) {
    const { code } = toBlockError(error);
    return code === "EACCES" ? "refused" : code;
  }
}

/** What one side, guest or view, can do; answers in words. */
export interface Side {
  read(offset: number, length: number): Promise<string>;
  write(offset: number, length: number, value: number): Promise<string>;
  zero(offset: number, length: number, options?: { unmap: boolean }): Promise<string>;
  trim(offset: number, length: number): Promise<string>;
  flush(): Promise<string>;
}

/** A side, by its requests. */
export function createSide(
  requests: {
    read(offset: number, buffer: Uint8Array): MaybePromise<void>;
    write(offset: number, data: Uint8Array): MaybePromise<void>;
    zero(offset: number, length: number, isUnmap: boolean): MaybePromise<void>;
    trim(offset: number, length: number): MaybePromise<void>;
    flush(): MaybePromise<void>;
  },
  answer: (call: () => MaybePromise<unknown>) => Promise<string> = outcome,
): Side {
  return {
    async read(offset, length) {
      const buffer = new Uint8Array(Math.max(length, 0)).fill(0xdb);
      const result = await answer(() => requests.read(offset, buffer));
      return result === "ok" ? describeBytes(buffer) : result;
    },
    write: (offset, length, value) =>
      answer(() => requests.write(offset, new Uint8Array(length).fill(value))),
    zero: (offset, length, { unmap } = { unmap: false }) =>
      answer(() => requests.zero(offset, length, unmap)),
    trim: (offset, length) => answer(() => requests.trim(offset, length)),
    flush: () => answer(() => requests.flush()),
  };
}

/** What a fleecing of the rig is started with: everything has a default. */
export type RigFleecingOptions = Partial<Omit<FleecingOptions, "disks">> & {
  bitmap?: string | null;
  allocatedBytesMax?: number;
  /** At the same moment. */
  bitmapChanges?: readonly BitmapAction[];
};

/** A fleecing of the rig, with its target. */
export interface RigFleecing {
  fleecing: Fleecing;
  export: SnapshotExport;
  view: Side;
  target: MemoryNode;
  faults: FaultInjectionNode;
}

/**
 *   device --> disk (fault-injection) --> disk-file (memory)
 *   fleecing target: tempN (fault-injection) --> temp-fileN (memory)
 */
export class Rig {
  readonly graph = new WatchedGraph();
  readonly kernels = new Kernels(module);
  readonly clock = new FakeClock();
  readonly layer = new BlockLayer(this.kernels, { graph: this.graph, clock: this.clock });
  readonly bitmaps = this.layer.bitmaps;
  readonly disk: FaultInjectionNode;
  readonly device: BlockBackend;
  readonly guest: Side;
  readonly sizeBytes: number;
  readonly broken: string[] = [];
  #targetCount = 0;

  constructor(options: { sizeBytes?: number; discard?: "ignore" | "unmap" } = {}) {
    this.sizeBytes = options.sizeBytes ?? 4 * MiB;
    const file = this.graph.add(
      new MemoryNode({
        nodeName: "disk-file",
        sizeBytes: this.sizeBytes,
        discard: options.discard ?? "unmap",
      }),
    );
    this.disk = this.graph.add(
      new FaultInjectionNode({ nodeName: "disk", file, clock: this.clock }),
    );
    this.device = new BlockBackend(this.graph, {
      name: "device",
      nodeName: "disk",
      perm: PERM_CONSISTENT_READ | PERM_WRITE,
      shared: PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED,
    });
    this.guest = createSide({
      read: (offset, buffer) => this.device.read(offset, IoVector.of(buffer)),
      write: (offset, data) => this.device.write(offset, IoVector.of(data)),
      zero: (offset, length, isUnmap) =>
        this.device.writeZeroes(offset, length, isUnmap ? REQ_MAY_UNMAP : 0),
      trim: (offset, length) => this.device.discard(offset, length),
      flush: () => this.device.flush(),
    });
  }

  /** A fleecing into a new target. Throws as Fleecing.start does. */
  async fleece(options: RigFleecingOptions = {}): Promise<RigFleecing> {
    const number = this.#targetCount++;
    const { bitmap, allocatedBytesMax, bitmapChanges = [], ...fleecingOptions } = options;
    const target = this.graph.add(
      new MemoryNode({
        nodeName: `temp-file${number}`,
        sizeBytes: this.sizeBytes,
        ...(allocatedBytesMax === undefined ? {} : { allocatedBytesMax }),
      }),
    );
    const faults = this.graph.add(
      new FaultInjectionNode({ nodeName: `temp${number}`, file: target, clock: this.clock }),
    );
    const all: FleecingOptions = {
      name: `fleecing${number}`,
      disks: [{
        name: "disk0",
        exportName: `view${number}`,
        backend: this.device,
        bitmap: bitmap ? this.bitmaps.get(this.disk, bitmap) : null,
        target: faults,
      }],
      onCbwError: "break-guest-write",
      cbwTimeoutSeconds: 0,
      minClusterSizeBytes: 0,
      scratchMaxBytes: null,
      scratchDirectory: "",
      kernels: this.kernels,
      clock: this.clock,
      onBroken: (disk, error) => this.broken.push(`${disk}: ${error.code}`),
      ...fleecingOptions,
    };
    const actions = [{ type: "fleecing", options: all } as const, ...bitmapChanges];
    const [fleecing] = await runTransaction(this.layer, actions);
    if (!(fleecing instanceof Fleecing)) throw new Error("no fleecing");
    const [view] = fleecing.exports;
    if (!(view instanceof SnapshotExport)) throw new Error("no view");
    return { fleecing, export: view, view: exportSide(view), target, faults };
  }

  /** Closes everything. What is left then is a leak. */
  async close(...fleecings: RigFleecing[]): Promise<void> {
    for (const { fleecing } of fleecings) await fleecing.stop();
    await this.device.release();
    await this.graph.close();
    if (this.kernels.usedBytes > 0) throw new Error(`${this.kernels.usedBytes} bytes of bitmaps`);
    if (this.clock.timerCount > 0) throw new Error("a timer is left");
  }
}

/** The view of an export. */
export function exportSide(view: Fleecing["exports"][number]): Side {
  return createSide({
    read: (offset, buffer) => view.read(offset, buffer),
    write: () => view.write(0, new Uint8Array(1), 0),
    zero: () => view.writeZeroes(0, 1, 0),
    trim: (offset, length) => view.discard(offset, length),
    flush: () => view.flush(),
  });
}

/** The runs of a node that hold data, as "offset+length", in units of 64 KiB. */
export function dataClusters(node: MemoryNode): string {
  const runs: string[] = [];
  for (let at = 0; at < node.sizeBytes;) {
    const status = node.blockStatus(at, node.sizeBytes - at);
    if (status instanceof Promise) throw new Error("a memory node answers at once");
    if ((status.flags & 1) !== 0) {
      runs.push(`${at / CLUSTER}+${Math.ceil(status.length / CLUSTER)}`);
    }
    at += status.length;
  }
  return runs.join(" ");
}

/** A rule that holds requests until `open` is called. */
export function gate(
  operations: FaultRule["operations"],
  options: Pick<FaultRule, "when" | "count" | "range" | "error"> = {},
): { rule: FaultRule; open: () => void; waiting: () => number } {
  let waitingCount = 0;
  const opening = Promise.withResolvers<void>();
  const rule: FaultRule = {
    operations,
    ...options,
    gate: () => {
      waitingCount++;
      return opening.promise;
    },
  };
  return { rule, open: () => opening.resolve(), waiting: () => waitingCount };
}
