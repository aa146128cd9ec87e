/**
 * What tests of jobs share: a block layer of memory or simulated disks, a guest, and the events as
 * they came.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import type { BlockBackend } from "../../../src/block/backend.ts";
import { BlockLayer } from "../../../src/block/block_layer.ts";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { FaultInjectionNode } from "../../../src/block/filters/fault_injection.ts";
import { IoVector } from "../../../src/block/io_vector.ts";
import type { Job } from "../../../src/block/jobs/job.ts";
import type { JobEvent } from "../../../src/block/jobs/types.ts";
import type { BlockNode } from "../../../src/block/node.ts";
import { compileKernels, Kernels } from "../../../src/wasm/kernels.ts";
import { FakeClock, settleAll } from "../../support/fake_clock.ts";
import { openDevice, readBytes } from "../support.ts";

export const KiB = 1024;
export const MiB = 1024 * KiB;
export const CLUSTER = 64 * KiB;

const module = await compileKernels();

/** See the module's head. */
export class JobRig {
  readonly clock = new FakeClock();
  readonly kernels = new Kernels(module);
  readonly layer = new BlockLayer(this.kernels, { clock: this.clock });
  readonly graph = this.layer.graph;
  readonly bitmaps = this.layer.bitmaps;
  readonly jobs = this.layer.jobs;
  readonly events: JobEvent[] = [];
  readonly #backends: BlockBackend[] = [];

  constructor() {
    this.jobs.onEvent((event) => this.events.push(event));
  }

  memory(nodeName: string, sizeBytes = 4 * MiB): MemoryNode {
    return this.graph.add(new MemoryNode({ nodeName, sizeBytes }));
  }

  /** A memory disk below a node that makes requests fail or wait. */
  faulty(nodeName: string, sizeBytes = 4 * MiB): FaultInjectionNode {
    const file = this.memory(`${nodeName}-file`, sizeBytes);
    return this.graph.add(new FaultInjectionNode({ nodeName, file, clock: this.clock }));
  }

  device(node: BlockNode, name = "disk0"): BlockBackend {
    const backend = openDevice(this.graph, node.nodeName, name);
    this.#backends.push(backend);
    return backend;
  }

  /** The events so far in short, which are then forgotten. */
  takeEvents(): string[] {
    return this.events.splice(0).map((event) => {
      if (event.event === "JOB_STATUS_CHANGE") return `${event.data.id} ${event.data.status}`;
      if (event.event === "BLOCK_JOB_ERROR") {
        return `${event.event} ${event.data.operation} ${event.data.action}`;
      }
      return "error" in event.data ? `${event.event}: ${event.data.error}` : event.event;
    });
  }

  /** Lets time go on until the job has concluded. */
  async conclude(job: Job): Promise<void> {
    await this.until(() => job.status === "concluded" || job.status === "null");
  }

  /** Lets everything that can happen do so until `isDone`. */
  async until(isDone: () => boolean): Promise<void> {
    for (let turn = 0; !isDone(); turn++) {
      if (turn === 100_000) throw new Error("it never comes to that");
      await this.clock.advance(1);
    }
  }

  /** Closes everything; nothing may be left behind. */
  async close(): Promise<void> {
    for (const backend of this.#backends) await backend.release();
    await this.layer.close();
    await settleAll();
    assertEquals(this.kernels.usedBytes, 0, "bitmaps are left");
    assertEquals(this.clock.timerCount, 0, "timers are left");
  }
}

/** Fills a range with a byte. */
export async function fill(
  target: { write(offset: number, source: IoVector): unknown },
  offset: number,
  length: number,
  value: number,
): Promise<void> {
  await target.write(offset, IoVector.of(new Uint8Array(length).fill(value)));
}

/** All that a node holds. */
export function content(node: BlockNode): Promise<Uint8Array> {
  return readBytes(node, 0, node.sizeBytes);
}

/** Asserts that two disks hold the same, saying where they don't. */
export function assertSameBytes(actual: Uint8Array, expected: Uint8Array, what = "content"): void {
  assertEquals(actual.length, expected.length, `${what}: size`);
  const at = actual.findIndex((byte, index) => byte !== expected[index]);
  if (at < 0) return;
  throw new Error(`${what}: byte ${at} is ${actual[at]}, not ${expected[at]}`);
}
