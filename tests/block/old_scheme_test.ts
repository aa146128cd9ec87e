/**
 * The old scheme of fleecing: the target is an overlay of the disk itself, and what clients read. A
 * run follows from its seed alone.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { BlockLayer } from "../../src/block/block_layer.ts";
import { Fleecing, type FleecingOptions } from "../../src/block/fleecing.ts";
import { IoVector } from "../../src/block/io_vector.ts";
import { NodeExport } from "../../src/block/exports/node_export.ts";
import { startBackup } from "../../src/block/jobs/backup.ts";
import { createQcow2 } from "../../src/block/qcow2/create.ts";
import { Qcow2Node } from "../../src/block/qcow2/node.ts";
import type { MaybePromise } from "../../src/block/types.ts";
import { compileKernels, Kernels } from "../../src/wasm/kernels.ts";
import { FakeClock } from "../support/fake_clock.ts";
import { allSettled, Random, Scheduler, SimulatedNode } from "../support/simulation.ts";
import { openDevice } from "./support.ts";

const module = await compileKernels();
const CLUSTER = 64 * 1024;
const DISK_BYTES = 6 * CLUSTER;
const FIRST_SEED = Number(Deno.env.get("OVIS_SEED") ?? 20261123);
const RUNS = Number(Deno.env.get("OVIS_MODEL_RUNS") ?? 25);

/** A disk, an overlay of it, and a guest; all requests take several turns. */
class OverlayRig {
  readonly random: Random;
  readonly scheduler: Scheduler;
  readonly kernels = new Kernels(module);
  readonly layer = new BlockLayer(this.kernels, { clock: new FakeClock() });
  readonly disk: SimulatedNode;
  readonly file: SimulatedNode;
  readonly running = new Set<Promise<void>>();
  failure: unknown = null;

  constructor(seed: number) {
    this.random = new Random(seed);
    this.scheduler = new Scheduler(this.random);
    this.disk = this.#node("disk", DISK_BYTES, 40);
    this.file = this.#node("overlay-file", 0, 20);
    for (let at = 0; at < DISK_BYTES; at += 4096) {
      this.disk.bytes.fill(this.random.below(4) * 60, at, at + 4096);
    }
  }

  #node(nodeName: string, sizeBytes: number, waitPercent: number): SimulatedNode {
    return this.layer.graph.add(
      new SimulatedNode({
        nodeName,
        sizeBytes,
        scheduler: this.scheduler,
        waitPercent,
        fill: 0,
        zeroesDiscards: true,
      }),
    );
  }

  async overlay(): Promise<Qcow2Node> {
    const options = { sizeBytes: DISK_BYTES, backingFile: "disk.img", backingFormat: "raw" };
    await this.settled(createQcow2(this.file, options));
    const node = await this.settled(
      Qcow2Node.open({
        nodeName: "overlay",
        file: this.file,
        backing: this.disk,
        isReadOnly: false,
      }),
    );
    return this.layer.graph.add(node);
  }

  start(request: () => Promise<void>): void {
    const running: Promise<void> = request().catch((error) => {
      this.failure ??= error;
    }).finally(() => this.running.delete(running));
    this.running.add(running);
  }

  async settled<T>(value: MaybePromise<T>): Promise<T> {
    let isSettled = false;
    const promise = Promise.resolve(value).finally(() => isSettled = true);
    promise.catch(() => {});
    for (let i = 0; !isSettled; i++) {
      assert(i < 100_000, "it never ends");
      if (this.scheduler.heldCount > 0) await this.scheduler.step();
      else await allSettled();
    }
    return await promise;
  }
}

function options(rig: OverlayRig, overlay: Qcow2Node): FleecingOptions {
  const backend = openDevice(rig.layer.graph, "disk");
  return {
    name: "f",
    disks: [{
      name: "disk",
      exportName: "view",
      backend,
      bitmap: null,
      target: overlay,
      isTargetView: true,
    }],
    onCbwError: "break-snapshot",
    cbwTimeoutSeconds: 0,
    minClusterSizeBytes: 0,
    scratchMaxBytes: null,
    scratchDirectory: "",
    kernels: rig.kernels,
  };
}

/** Guest writes and reads of the overlay meet in every order; every read sees the moment. */
async function readWhileWriting(
  rig: OverlayRig,
  guest: { write(offset: number, source: IoVector): MaybePromise<void> },
  view: { read(offset: number, buffer: Uint8Array): MaybePromise<void> },
): Promise<void> {
  const frozen = rig.disk.bytes.slice();
  const { random } = rig;
  for (let i = 0; i < 150; i++) {
    const offset = random.below(DISK_BYTES - 9000);
    const length = 1 + random.below(9000);
    if (rig.running.size < 8 && random.chance(50)) {
      rig.start(async () => {
        await guest.write(offset, IoVector.of(new Uint8Array(length).fill(0xff)));
      });
    } else if (rig.running.size < 8) {
      rig.start(async () => {
        const buffer = new Uint8Array(length);
        await view.read(offset, buffer);
        const at = buffer.findIndex((byte, j) => byte !== frozen[offset + j]);
        assertEquals(at, -1, `byte ${offset + at} of the view is the guest's`);
      });
    }
    if (rig.scheduler.heldCount > 0) await rig.scheduler.step();
    else await allSettled();
    if (rig.failure !== null) throw rig.failure;
  }
  await rig.settled(Promise.all(rig.running));
  if (rig.failure !== null) throw rig.failure;
  const buffer = new Uint8Array(DISK_BYTES);
  await rig.settled(view.read(0, buffer));
  assertEquals(buffer.findIndex((byte, j) => byte !== frozen[j]), -1);
}

Deno.test(`old scheme: reads of the overlay see the moment, ${RUNS} runs from ${FIRST_SEED}`, async () => {
  for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
    const rig = new OverlayRig(seed);
    const overlay = await rig.overlay();
    const fleecingOptions = options(rig, overlay);
    const [{ backend: guest } = { backend: null }] = fleecingOptions.disks;
    if (guest === null) throw new Error("no disk");
    const fleecing = await rig.settled(Fleecing.start(rig.layer.graph, fleecingOptions));
    const [view] = fleecing.exports;
    if (!(view instanceof NodeExport)) throw new Error("no view");
    try {
      await readWhileWriting(rig, guest, view);
    } catch (error) {
      throw new Error(`seed ${seed}: ${error}`, { cause: error });
    }
    await rig.settled(fleecing.stop());
    await rig.settled(guest.release());
    await rig.settled(rig.layer.close());
    assertEquals(rig.kernels.usedBytes, 0);
  }
});

Deno.test("backup sync=none into an overlay of the disk is the third form of fleecing", async () => {
  for (let seed = FIRST_SEED; seed < FIRST_SEED + 5; seed++) {
    const rig = new OverlayRig(seed);
    const overlay = await rig.overlay();
    const guest = openDevice(rig.layer.graph, "disk");
    const job = await rig.settled(
      startBackup(rig.layer, {
        jobId: "job0",
        source: rig.disk,
        target: overlay,
        sync: "none",
      }),
    );
    const view = new NodeExport(rig.layer.graph, { name: "view", nodeName: "overlay" });
    await readWhileWriting(rig, guest, view);
    await rig.settled(job.cancel());
    await rig.settled(job.whenConcluded());
    await rig.settled(view.close());
    await rig.settled(guest.release());
    await rig.settled(rig.layer.close());
    assertEquals(rig.kernels.usedBytes, 0);
  }
});
