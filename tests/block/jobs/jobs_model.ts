/**
 * The model of a disk with a guest and one job after another, which the model test compares with.
 * What the disk holds is an array; what a backup has to hold is the array as it was at its moment;
 * which areas are dirty is a set of granules.
 *
 * The disk is a simulated node, or a chain of qcow2 images in simulated nodes: all requests take
 * several turns of a scheduler, so that guest, job and transaction meet in every order. The guest
 * behaves: none of its requests overlaps another one that is in flight.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import type { BlockBackend } from "../../../src/block/backend.ts";
import { BlockLayer } from "../../../src/block/block_layer.ts";
import type { DirtyBitmap } from "../../../src/block/dirty_bitmap.ts";
import { BlockError } from "../../../src/block/errors.ts";
import { IoVector } from "../../../src/block/io_vector.ts";
import { type BitmapMode, startBackup } from "../../../src/block/jobs/backup.ts";
import { startCommit } from "../../../src/block/jobs/commit.ts";
import type { Job } from "../../../src/block/jobs/job.ts";
import { startMirror } from "../../../src/block/jobs/mirror.ts";
import { startStream } from "../../../src/block/jobs/stream.ts";
import type { BlockNode } from "../../../src/block/node.ts";
import { checkQcow2 } from "../../../src/block/qcow2/check.ts";
import { createQcow2 } from "../../../src/block/qcow2/create.ts";
import { Qcow2Node } from "../../../src/block/qcow2/node.ts";
import type { ByteRange } from "../../../src/block/types.ts";
import { compileKernels, Kernels } from "../../../src/wasm/kernels.ts";
import { FakeClock } from "../../support/fake_clock.ts";
import {
  allSettled,
  type Counts,
  Random,
  Scheduler,
  SimulatedNode,
} from "../../support/simulation.ts";
import { openDevice } from "../support.ts";

const module = await compileKernels();
const CLUSTER = 64 * 1024;
const GRANULE = 16 * 1024;
/** Nine clusters and a short one. */
const DISK_BYTES = 9 * CLUSTER + 3584;
const GRANULES = Math.ceil(DISK_BYTES / GRANULE);
const REQUESTS_MAX = 6;
/** What targets hold at first. */
const GARBAGE = 0xa5;

type Kind = "backup" | "mirror" | "commit" | "stream";

/** The job that runs, and what it has to come to. */
interface Running {
  kind: Kind;
  job: Job | null;
  target: SimulatedNode | null;
  /** The disk at the job's moment. */
  frozen: Uint8Array;
  /** Granules that the job has to copy; all unless a bitmap says less. */
  wanted: Set<number>;
  bitmapMode: BitmapMode | null;
  isCancelled: boolean;
  mayFail: boolean;
}

/** One run of the model: one disk, one job. */
export class JobSimulation {
  readonly counts: Counts = {};
  readonly #random: Random;
  readonly #scheduler: Scheduler;
  readonly #clock = new FakeClock();
  readonly #kernels = new Kernels(module);
  readonly #layer = new BlockLayer(this.#kernels, { clock: this.#clock });
  readonly #expected = new Uint8Array(DISK_BYTES);
  readonly #guestRanges = new Set<ByteRange>();
  readonly #pending = new Set<Promise<void>>();
  /** Granules that were written since the bitmap came, and since the job's moment. */
  #dirty = new Set<number>();
  #dirtySince = new Set<number>();
  #images: SimulatedNode[] = [];
  #disk: BlockNode | null = null;
  #device: BlockBackend | null = null;
  #bitmap: DirtyBitmap | null = null;
  #failure: unknown = null;
  #running: Running | null = null;
  /** Not a chain: discarded areas read as zeroes. */
  #isPlain = false;
  readonly #hotOffset: number;

  constructor(seed: number) {
    this.#random = new Random(seed);
    this.#hotOffset = this.#random.below(8) * CLUSTER;
    this.#scheduler = new Scheduler(this.#random);
    this.#layer.jobs.onEvent((event) => {
      if (event.event !== "JOB_STATUS_CHANGE") return;
      this.#note(`status ${event.data.status}`);
      // Nothing is in flight then.
      if (event.data.status === "created") this.#moment();
      const target = this.#running?.target;
      if (event.data.status === "waiting" && target) target.failingWrites = 0;
    });
  }

  /** Does `count` random things around one job, then lets everything end and looks. */
  async run(count: number): Promise<void> {
    const kind = this.#random.pick<Kind>([
      ...(["backup", "backup", "mirror", "mirror", "commit", "stream"] as const),
    ]);
    await this.#prepare(kind);
    for (let i = 0; i < count; i++) {
      if (i === 10) this.#startJob(kind);
      if (this.#scheduler.heldCount > 0 && this.#random.chance(60)) await this.#scheduler.step();
      else if (this.#pending.size >= REQUESTS_MAX) await this.#goOn();
      else this.#act();
      await allSettled();
      if (this.#failure !== null) throw this.#failure;
    }
    await this.#endJob();
    await this.#finish();
    await this.#compare();
    await this.#close();
  }

  // The disk.

  async #prepare(kind: Kind): Promise<void> {
    const isChain = kind === "commit" || kind === "stream" || this.#random.chance(30);
    this.#isPlain = !isChain;
    if (isChain) await this.#prepareChain();
    else this.#disk = this.#image("disk", DISK_BYTES, 0, this.#random.pick([0, 20, 50]));
    const disk = this.#disk;
    if (disk === null) throw new Error("no disk");
    for (const name of isChain ? ["base", "mid", "top"] : ["disk"]) {
      await this.#fill(this.#layer.graph.get(name), isChain ? 40 : 100);
    }
    this.#device = openDevice(this.#layer.graph, disk.nodeName);
    if (kind === "backup" && this.#random.chance(60)) {
      this.#bitmap = this.#layer.bitmaps.add(disk, { name: "b0", granularity: GRANULE });
    }
  }

  /** Writes runs of data and of zeroes, to some of the areas. */
  async #fill(node: BlockNode, percent: number): Promise<void> {
    for (let at = 0; at < DISK_BYTES;) {
      const end = Math.min(at + 4096 * (1 + this.#random.below(30)), DISK_BYTES);
      const byte = this.#random.chance(60) ? 1 + this.#random.below(255) : 0;
      if (this.#random.chance(percent)) {
        await this.#settled(node.write(at, IoVector.of(new Uint8Array(end - at).fill(byte))));
        this.#expected.fill(byte, at, end);
      }
      at = end;
    }
  }

  async #prepareChain(): Promise<void> {
    let backing: Qcow2Node | null = null;
    for (const name of ["base", "mid", "top"]) {
      const file = this.#image(`${name}-file`, 0, 0, this.#random.pick([0, 10, 30]));
      const backingFile = backing === null ? null : `${backing.nodeName}.img`;
      const size = Math.ceil(DISK_BYTES / 512) * 512;
      await this.#settled(
        Promise.resolve(createQcow2(file, { sizeBytes: size, clusterBytes: CLUSTER, backingFile })),
      );
      const opened = Qcow2Node.open({ nodeName: name, file, backing, isReadOnly: false });
      const node: Qcow2Node = await this.#settled(opened);
      backing = this.#layer.graph.add(node);
    }
    this.#disk = backing;
  }

  #image(nodeName: string, sizeBytes: number, fill: number, waitPercent: number): SimulatedNode {
    const node = new SimulatedNode({
      nodeName,
      sizeBytes,
      scheduler: this.#scheduler,
      waitPercent,
      fill,
      zeroesDiscards: true,
    });
    this.#images.push(node);
    return this.#layer.graph.add(node);
  }

  // The guest.

  #act(): void {
    const die = this.#random.below(100);
    if (die < 55) this.#guestChange();
    else if (die < 70) this.#guestRead();
    else if (die < 78) this.#jobVerb();
    else if (die < 82) this.#fail();
    else if (die < 90) void this.#clock.advance(1 + this.#random.below(200));
  }

  #guestChange(): void {
    const range = this.#guestRange();
    const device = this.#device;
    if (range === null || device === null) return;
    const { offset, length } = range;
    const kinds = ["write", "write", "zero", ...(this.#isPlain ? ["discard", "discard"] : [])];
    const kind = this.#random.pick(kinds);
    const value = kind === "write" ? 1 + this.#random.below(255) : 0;
    this.#note(`guest ${kind}`);
    this.#follow(async () => {
      let isDone = true;
      try {
        if (kind === "zero") await device.writeZeroes(offset, length);
        else if (kind === "discard") await device.discard(offset, length);
        else await device.write(offset, IoVector.of(new Uint8Array(length).fill(value)));
      } catch (error) {
        // A backup's target failed: its filter breaks the guest's write, the disk is untouched.
        if (!(error instanceof BlockError) || this.#running?.kind !== "backup") throw error;
        this.#note("guest write failed");
        isDone = false;
      }
      this.#guestRanges.delete(range);
      if (isDone) this.#expected.fill(value, offset, offset + length);
      if (isDone) this.#touch(range);
    });
  }

  #touch({ offset, length }: ByteRange): void {
    for (let i = Math.floor(offset / GRANULE); i * GRANULE < offset + length; i++) {
      this.#dirty.add(i);
      this.#dirtySince.add(i);
    }
  }

  #guestRead(): void {
    const range = this.#guestRange();
    if (range === null) return;
    const { offset, length } = range;
    this.#note("guest read");
    this.#follow(async () => {
      const buffer = new Uint8Array(length);
      await this.#device?.read(offset, IoVector.of(buffer));
      this.#guestRanges.delete(range);
      this.#same(buffer, this.#expected.subarray(offset, offset + length), "guest read");
    });
  }

  #guestRange(): ByteRange | null {
    // Half of what happens is at one place.
    const offset = this.#random.chance(50)
      ? this.#hotOffset + this.#random.below(2 * GRANULE)
      : this.#random.below(DISK_BYTES);
    const most = this.#random.pick([1000, 1000, 20_000, 3 * CLUSTER]);
    const length = Math.min(1 + this.#random.below(most), DISK_BYTES - offset);
    for (const held of this.#guestRanges) {
      if (offset < held.offset + held.length && held.offset < offset + length) return null;
    }
    const range = { offset, length };
    this.#guestRanges.add(range);
    return range;
  }

  // The job.

  #startJob(kind: Kind): void {
    const disk = this.#disk;
    if (disk === null) throw new Error("no disk");
    const running: Running = {
      kind,
      job: null,
      target: null,
      frozen: new Uint8Array(0),
      wanted: new Set(Array.from({ length: GRANULES }, (_, i) => i)),
      bitmapMode: null,
      isCancelled: false,
      mayFail: false,
    };
    this.#running = running;
    this.#follow(async () => {
      running.job = await this.#start(kind, disk, running);
    });
  }

  #start(kind: Kind, disk: BlockNode, running: Running): Promise<Job> {
    const common = { jobId: "job0", speed: this.#random.pick([0, 0, 1024 * 1024]) };
    const policy = this.#random.pick(["report", "stop", "ignore"] as const);
    const withTarget = (): SimulatedNode => {
      running.target = this.#image(
        "target",
        disk.sizeBytes,
        GARBAGE,
        this.#random.pick([0, 30, 60]),
      );
      return running.target;
    };
    switch (kind) {
      case "backup": {
        const options = { ...common, source: disk, target: withTarget(), onTargetError: policy };
        running.mayFail = policy === "report";
        if (this.#bitmap === null) return startBackup(this.#layer, { ...options, sync: "full" });
        const bitmapMode = this.#random.pick(["on-success", "always", "never"] as const);
        running.bitmapMode = bitmapMode;
        const sync = this.#random.pick(["bitmap", "bitmap", "full"] as const);
        if (sync === "full" && bitmapMode === "never") running.bitmapMode = "always";
        const mode = running.bitmapMode;
        if (sync === "bitmap") running.wanted = new Set(); // see #moment
        return startBackup(this.#layer, { ...options, sync, bitmap: "b0", bitmapMode: mode });
      }
      case "mirror":
        running.mayFail = policy === "report";
        return startMirror(this.#layer, {
          ...common,
          source: disk,
          target: withTarget(),
          sync: "full",
          copyMode: this.#random.pick(["background", "write-blocking"]),
          granularity: this.#random.pick([4096, CLUSTER]),
          onTargetError: policy,
        });
      case "commit": {
        const top = this.#random.chance(50) ? disk : this.#layer.graph.get("mid");
        return startCommit(this.#layer, { ...common, device: disk, top });
      }
      case "stream": {
        const base = this.#layer.graph.get("base");
        const options = this.#random.chance(50) ? { base } : {};
        return startStream(this.#layer, { ...common, device: disk, ...options });
      }
    }
  }

  #moment(): void {
    const running = this.#running;
    if (running === null) return;
    // What ended just now is known to the guest a little later.
    running.frozen = this.#disk instanceof SimulatedNode
      ? this.#disk.bytes.slice()
      : this.#expected.slice();
    this.#dirtySince = new Set();
    if (running.wanted.size === 0) {
      // Clusters are copied as a whole.
      for (const granule of this.#dirty) {
        const first = Math.floor(granule * GRANULE / CLUSTER) * (CLUSTER / GRANULE);
        for (let i = 0; i < CLUSTER / GRANULE; i++) running.wanted.add(first + i);
      }
    }
  }

  #jobVerb(): void {
    const running = this.#running;
    const job = running?.job;
    if (!job) return;
    const verb = this.#random.pick(["pause", "resume", "resume", "complete", "speed", "cancel"]);
    // A stream is over soon: else hardly any would be cancelled.
    const cancelPercent = running.kind === "stream" ? 100 : 15;
    try {
      if (verb === "pause") job.pause();
      else if (verb === "resume") job.resume();
      else if (verb === "complete") job.complete();
      else if (verb === "speed") job.setSpeed(this.#random.pick([0, 1024 * 1024]));
      else if (this.#random.chance(cancelPercent)) this.#cancel(job);
      this.#note(`job ${verb}`);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
    }
  }

  #cancel(job: Job): void {
    const running = this.#running;
    if (running === null || job.isCompleted) return;
    running.isCancelled = true;
    this.#note(`cancelled ${running.kind}`);
    this.#follow(() => job.cancel());
  }

  /** The next requests that change the target fail. */
  #fail(): void {
    const target = this.#running?.target;
    // A mirror's target may be the guest's disk afterwards.
    if (!target || this.#running?.job?.isCompleted !== false) return;
    target.failingWrites = 1 + this.#random.below(2);
    this.#note("target fails");
  }

  /** Lets the job come to its end. */
  async #endJob(): Promise<void> {
    for (let turn = 0; turn < 20_000; turn++) {
      const running = this.#running;
      const job = running?.job;
      if (job?.status === "null") return;
      if (running?.target) running.target.failingWrites = 0;
      const stands = job?.status === "paused" || job?.status === "standby";
      if (stands && !job?.isCancelRequested) job?.resume();
      else if (job?.status === "ready" && !job.isCancelRequested) job.complete();
      // The guest goes on for a while.
      if (turn < 300 && this.#pending.size < REQUESTS_MAX) this.#guestChange();
      await this.#goOn();
      await this.#clock.advance(turn < 300 ? 1 : 100);
    }
    throw new Error(`the job never ends: ${this.#running?.job?.status}`);
  }

  // The end.

  async #compare(): Promise<void> {
    const { running, device } = { running: this.#running, device: this.#device };
    if (!running?.job || device === null) throw new Error("no job");
    const hasFailed = running.job.hasFailed;
    assert(!hasFailed || running.isCancelled || running.mayFail, `${running.job.failure}`);
    this.#note(`${running.kind} ${hasFailed ? "failed" : "done"}`);
    const seen = new Uint8Array(DISK_BYTES);
    await this.#settled(device.read(0, IoVector.of(seen)));
    this.#same(seen, this.#expected, "the disk");
    if (running.kind === "backup") this.#compareBackup(running, hasFailed);
    if (running.kind === "mirror" && !hasFailed) {
      assertEquals(device.node, running.target);
      this.#same(running.target?.bytes ?? seen, this.#expected, "the mirror");
    }
    if (running.kind === "stream") {
      assertEquals(this.#disk?.backing?.node.nodeName === "mid", hasFailed);
    }
    for (const node of this.#layer.graph.list()) {
      if (!(node instanceof Qcow2Node)) continue;
      const file = node.children.get("file")?.node;
      if (file === undefined) throw new Error("no file");
      // What was given up is free in the image with the flush after the next.
      for (let i = 0; i < 2; i++) await this.#settled(node.flush());
      const result = await this.#settled(checkQcow2(file, {}));
      assertEquals([result.corruptions, result.leaks], [0, 0], node.nodeName);
    }
  }

  #compareBackup({ frozen, wanted, target, bitmapMode }: Running, hasFailed: boolean): void {
    if (target === null) throw new Error("no target");
    const isFree = Array.from({ length: GRANULES }, (_, i) => !wanted.has(i));
    for (let i = 0; i < DISK_BYTES; i++) {
      const granule = Math.floor(i / GRANULE);
      const byte = target.bytes[i];
      if (isFree[granule]) assertEquals(byte, GARBAGE, `byte ${i} is not to be copied`);
      else if (!hasFailed) assertEquals(byte, frozen[i], `byte ${i} of the backup`);
      else if (byte !== GARBAGE && !this.#dirtySince.has(granule)) {
        // Once it was given up, a copy in flight may have met a guest's write.
        assertEquals(byte, frozen[i], `byte ${i} of half a backup`);
      }
    }
    const bitmap = this.#bitmap;
    if (bitmap === null) return;
    assertEquals(bitmap.isBusy, false);
    for (let i = 0; i < GRANULES; i++) {
      const offset = i * GRANULE;
      const isDirty = bitmap.bits.isSet(offset);
      // Failed writes mark too: those are not in the sets.
      if (this.#dirtySince.has(i)) assert(isDirty, `granule ${i} was written since`);
      const keepsAll = bitmapMode === "never" || (hasFailed && bitmapMode === "on-success");
      if (keepsAll && this.#dirty.has(i)) assert(isDirty, `granule ${i} is kept`);
      if (!hasFailed && bitmapMode !== "never" && isDirty && !this.counts["guest write failed"]) {
        assert(this.#dirtySince.has(i), `granule ${i} was backed up`);
      }
      if (!hasFailed || isDirty || !wanted.has(i)) continue;
      // Clean after a failure: it was copied.
      const end = Math.min(offset + GRANULE, DISK_BYTES);
      if (bitmapMode !== "always" || !this.#dirty.has(i)) continue;
      this.#same(target.bytes.subarray(offset, end), frozen.subarray(offset, end), `granule ${i}`);
    }
  }

  async #close(): Promise<void> {
    const disk = this.#disk;
    await this.#settled(this.#device?.release());
    if (disk !== null && this.#bitmap !== null) this.#layer.bitmaps.remove(disk, "b0");
    await this.#settled(this.#layer.close());
    assertEquals(this.#kernels.usedBytes, 0, "bitmaps are left");
    assertEquals(this.#clock.timerCount, 0, "timers are left");
  }

  // Requests.

  #note(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1;
  }

  #follow(action: () => Promise<unknown>): void {
    const pending: Promise<void> = action().then(() => {}, (error) => {
      this.#failure ??= error;
    }).finally(() => this.#pending.delete(pending));
    this.#pending.add(pending);
  }

  async #goOn(): Promise<void> {
    if (this.#scheduler.heldCount > 0) await this.#scheduler.step();
    else await this.#clock.advance(100);
    if (this.#failure !== null) throw this.#failure;
  }

  async #finish(): Promise<void> {
    for (let i = 0; this.#pending.size > 0; i++) {
      assert(i < 100_000, `${this.#pending.size} requests never end`);
      await this.#goOn();
      await allSettled();
    }
  }

  /** Lets what a promise waits for happen. */
  async #settled<T>(value: T | Promise<T>): Promise<T> {
    let isSettled = false;
    const promise = Promise.resolve(value).finally(() => isSettled = true);
    promise.catch(() => {});
    for (let i = 0; !isSettled; i++) {
      assert(i < 100_000, "it never ends");
      if (this.#scheduler.heldCount > 0) await this.#scheduler.step();
      else await this.#clock.advance(1);
    }
    return await promise;
  }

  #same(actual: Uint8Array, expected: Uint8Array, what: string): void {
    const at = actual.findIndex((byte, i) => i < expected.length && byte !== expected[i]);
    if (at >= 0) throw new Error(`${what}: byte ${at} is ${actual[at]}, not ${expected[at]}`);
  }
}
