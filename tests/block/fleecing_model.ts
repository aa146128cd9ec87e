/**
 * The model of a disk with a guest and fleecings that the model test compares with. It is plain:
 * what a disk holds is an array; what a view shows is the array as it was at its moment; what a
 * reader may read is a flag for each cluster.
 *
 * The guest behaves: none of its requests overlaps, in bytes, another one that is in flight. (Two
 * of them in one cluster is what it does all the time.)
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { BlockBackend } from "../../src/block/backend.ts";
import { type DirtyBitmap, DirtyBitmaps } from "../../src/block/dirty_bitmap.ts";
import { BlockError, toBlockError } from "../../src/block/errors.ts";
import { SnapshotExport } from "../../src/block/exports/snapshot_export.ts";
import { CopyBeforeWriteNode } from "../../src/block/filters/copy_before_write.ts";
import { Fleecing } from "../../src/block/fleecing.ts";
import { IoVector } from "../../src/block/io_vector.ts";
import {
  type ByteRange,
  type MaybePromise,
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_WRITE,
} from "../../src/block/types.ts";
import { compileKernels, Kernels } from "../../src/wasm/kernels.ts";
import { FakeClock } from "../support/fake_clock.ts";
import {
  allSettled,
  type Counts,
  Random,
  Scheduler,
  SimulatedNode,
} from "../support/simulation.ts";
import { WatchedGraph } from "../support/watched_graph.ts";

const module = await compileKernels();
const CLUSTER = 64 * 1024;
/** Five clusters and a short one. */
const DISK_BYTES = 5 * CLUSTER + 3584;
const CLUSTER_COUNT = Math.ceil(DISK_BYTES / CLUSTER);
const REQUESTS_MAX = 14;
const FLEECINGS_MAX = 3;

/** A fleecing and what is to be seen in it. */
interface Model {
  name: string;
  fleecing: Fleecing | null;
  view: SnapshotExport | null;
  target: SimulatedNode;
  bitmap: DirtyBitmap | null;
  isStopping: boolean;
  /** Set at its moment. */
  filter: CopyBeforeWriteNode | null;
  frozen: Uint8Array;
  access: Access[];
}

/** Whether a cluster may be read; it is not known while a discard is on its way. */
type Access = "yes" | "unknown" | "no";

/** One run of the model. */
export class FleecingSimulation {
  readonly counts: Counts = {};
  readonly #random: Random;
  readonly #scheduler: Scheduler;
  readonly #graph = new WatchedGraph();
  readonly #kernels = new Kernels(module);
  readonly #bitmaps = new DirtyBitmaps(this.#kernels);
  readonly #clock = new FakeClock();
  readonly #disk: SimulatedNode;
  readonly #device: BlockBackend;
  /** What the guest knows the disk to hold. */
  readonly #expected: Uint8Array;
  /** A cluster where more happens than elsewhere. */
  readonly #hotOffset: number;
  /** What the disk held when the bitmap was made. */
  #atBitmap: Uint8Array | null = null;
  readonly #models: Model[] = [];
  readonly #guestRanges = new Set<ByteRange>();
  readonly #running = new Set<Promise<void>>();
  #nextNumber = 0;
  #pendingModel: Model | null = null;
  readonly #seen = new Set<CopyBeforeWriteNode>();

  constructor(seed: number) {
    this.#random = new Random(seed);
    this.#scheduler = new Scheduler(this.#random);
    this.#disk = this.#graph.add(
      new SimulatedNode({
        nodeName: "disk",
        sizeBytes: DISK_BYTES,
        scheduler: this.#scheduler,
        waitPercent: this.#random.pick([0, 20, 50]),
        fill: 0,
        zeroesDiscards: true,
      }),
    );
    // Runs of data and of zeroes whose borders are seldom those of clusters.
    for (let at = 0; at < DISK_BYTES;) {
      const end = at + 4096 * (1 + this.#random.below(30));
      this.#disk.bytes.fill(this.#random.chance(50) ? 1 + this.#random.below(255) : 0, at, end);
      at = end;
    }
    this.#hotOffset = this.#random.below(CLUSTER_COUNT) * CLUSTER;
    this.#expected = this.#disk.bytes.slice();
    this.#device = new BlockBackend(this.#graph, {
      name: "device",
      nodeName: "disk",
      perm: PERM_CONSISTENT_READ | PERM_WRITE,
      shared: PERM_ALL & ~PERM_WRITE,
    });
    this.#graph.onMoment = () => {
      for (const node of this.#graph.list()) {
        if (!(node instanceof CopyBeforeWriteNode) || this.#seen.has(node)) continue;
        this.#seen.add(node);
        this.#freeze(node);
      }
    };
  }

  /** Does `count` random things, then lets everything end and looks at what is left. */
  async run(count: number): Promise<void> {
    for (let i = 0; i < count; i++) {
      if (this.#scheduler.heldCount > 0 && this.#random.chance(60)) await this.#scheduler.step();
      else if (this.#running.size >= REQUESTS_MAX) await this.#goOn();
      else this.#act();
      await allSettled();
    }
    await this.#finish();
    this.#checkGuest();
    for (const model of [...this.#models]) {
      this.#stop(model);
      await this.#finish();
    }
    if (this.#atBitmap !== null) this.#bitmaps.remove(this.#disk, "b0");
    assertEquals(this.#kernels.usedBytes, 0, "bitmaps are left");
    assertEquals(this.#graph.list().map(({ nodeName }) => nodeName), ["disk"]);
    assertEquals(this.#clock.timerCount, 0);
    this.#checkGuest();
    await this.#device.release();
    await this.#graph.close();
  }

  #act(): void {
    const die = this.#random.below(100);
    if (die < 32) this.#guestChange();
    else if (die < 36) this.#guestRead();
    else if (die < 38) {
      this.#start(this.#count("guest flush", () => this.#device.flush()), () => {});
    } else if (die < 70) this.#viewRead();
    else if (die < 78) this.#viewStatus();
    else if (die < 83) this.#viewDiscard();
    else if (die < 88) this.#fleece();
    else if (die < 91) this.#fail();
    else if (die < 93) this.#addBitmap();
    else if (die < 96) this.#start(() => this.#clock.advance(this.#random.below(2500)), () => {});
    else if (this.#models.length > 0 && die < 99) this.#stop(this.#random.pick(this.#models));
  }

  // The guest.

  #guestChange(): void {
    const range = this.#guestRange();
    if (range === null) return;
    const { offset, length } = range;
    const end = offset + length;
    const kind = this.#random.pick(["write", "write", "zero", "discard"]);
    const value = kind === "write" ? 1 + this.#random.below(255) : 0;
    const request = {
      write: () => this.#device.write(offset, IoVector.of(new Uint8Array(length).fill(value))),
      zero: () => this.#device.writeZeroes(offset, length, 0),
      discard: () => this.#device.discard(offset, length),
    }[kind] ?? (() => {});
    const done = (error: BlockError | null): void => {
      this.#guestRanges.delete(range);
      if (error === null) this.#expected.fill(value, offset, end);
      else {
        this.#note(`guest ${kind} failed: ${error.code}`);
        assert(["EIO", "ENOSPC", "ETIMEDOUT"].includes(error.code), error.message);
      }
      // Done as a whole, or not at all.
      assertSame(this.#disk.bytes, this.#expected, offset, length, `guest ${kind}`);
    };
    this.#start(this.#count(`guest ${kind}`, request), done);
  }

  #guestRead(): void {
    const range = this.#guestRange();
    if (range === null) return;
    const { offset, length } = range;
    const buffer = new Uint8Array(length);
    this.#start(
      this.#count("guest read", () => this.#device.read(offset, IoVector.of(buffer))),
      (error) => {
        this.#guestRanges.delete(range);
        if (error !== null) assertEquals(error.code, "EIO");
        else assertEquals(differ(buffer, this.#expected.subarray(offset, offset + length)), -1);
      },
    );
  }

  /** A range that no request of the guest's is in. */
  #guestRange(): ByteRange | null {
    const range = this.#anyRange();
    for (const { offset, length } of this.#guestRanges) {
      if (range.offset < offset + length && offset < range.offset + range.length) return null;
    }
    this.#guestRanges.add(range);
    return range;
  }

  #checkGuest(): void {
    assertSame(this.#disk.bytes, this.#expected, 0, DISK_BYTES, "the disk");
  }

  // The views.

  #viewRead(): void {
    const model = this.#anyView();
    if (model === null) return;
    const { offset, length } = this.#anyRange();
    const buffer = new Uint8Array(length).fill(0xdb);
    const wasForbidden = accessOf(model, offset, length).includes("no");
    this.#start(
      this.#count("view read", () => model.view?.read(offset, buffer)),
      (error) => {
        if (error === null) {
          assert(!wasForbidden, `${model.name}: ${offset}+${length} was read`);
          const at = differ(buffer, model.frozen.subarray(offset, offset + length));
          assertEquals(at, -1, `${model.name}: read ${offset}+${length} is not old`);
          return;
        }
        this.#checkRefusal(error, model, offset, length);
        // A refusal gives nothing.
        if (error.code === "EACCES") assertEquals(buffer.some((b) => b !== 0 && b !== 0xdb), false);
      },
    );
  }

  #viewStatus(): void {
    const model = this.#anyView();
    if (model === null || model.view === null) return;
    const { offset, length } = this.#anyRange();
    const [allocation, access] = model.view.contexts;
    let forbidden: { length: number; flags: number }[] = [];
    this.#start(
      this.#count("view status", async () => {
        forbidden = await access?.extents(offset, length, { maxExtents: 100 }) ?? [];
        let at = offset;
        for (const { length, flags } of forbidden) {
          const wrong = flags === 0 ? "no" : "yes";
          assertEquals(accessOf(model, at, length).includes(wrong), false, `not ${wrong}`);
          at += length;
        }
        at = offset;
        const extents = await allocation?.extents(offset, length, { maxExtents: 100 }) ?? [];
        assert(extents.length > 0);
        for (const { length, flags } of extents) {
          const part = model.frozen.subarray(at, at + length);
          if ((flags & 2) !== 0) assertEquals(part.some((byte) => byte !== 0), false, "no zeroes");
          at += length;
        }
      }),
      (error) => error !== null && this.#checkRefusal(error, model, offset, length),
    );
  }

  #viewDiscard(): void {
    const model = this.#anyView();
    if (model === null) return;
    const { offset, length } = this.#anyRange();
    const inside = (i: number): boolean => {
      const end = Math.min((i + 1) * CLUSTER, DISK_BYTES);
      return i * CLUSTER >= offset && end <= offset + length;
    };
    model.access = model.access.map((was, i) => inside(i) && was === "yes" ? "unknown" : was);
    this.#start(
      this.#count("view discard", () => model.view?.discard(offset, length)),
      (error) => {
        if (error?.code === "ESHUTDOWN") return;
        model.access = model.access.map((was, i) => inside(i) ? "no" : was);
        if (error !== null) assert(["EIO", "ENOSPC"].includes(error.code));
      },
    );
  }

  #checkRefusal(error: BlockError, model: Model, offset: number, length: number): void {
    this.#note(`view refused: ${error.code}`);
    if (error.code === "EACCES") {
      const isBroken = model.filter?.brokenBy !== null;
      const access = accessOf(model, offset, length);
      assert(isBroken || access.some((one) => one !== "yes"), error.message);
      assert(error.range !== null);
    } else if (error.code === "ESHUTDOWN") {
      assert(model.isStopping);
    } else {
      assert(error.code === "EIO" || error.code === "ENOSPC", error.message);
    }
  }

  #anyView(): Model | null {
    const models = this.#models.filter(({ fleecing }) => fleecing !== null);
    return models.length === 0 ? null : this.#random.pick(models);
  }

  // Fleecings.

  #fleece(): void {
    if (this.#models.length >= FLEECINGS_MAX || this.#pendingModel !== null) return;
    const number = this.#nextNumber++;
    const target = this.#graph.add(
      new SimulatedNode({
        nodeName: `temp${number}`,
        sizeBytes: DISK_BYTES,
        scheduler: this.#scheduler,
        waitPercent: this.#random.pick([0, 20, 50, 80]),
        fill: 0xa5,
        zeroesDiscards: false,
      }),
    );
    const hasBitmap = this.#atBitmap !== null && this.#random.chance(40);
    const model: Model = {
      name: `view${number}`,
      fleecing: null,
      view: null,
      target,
      bitmap: hasBitmap ? this.#bitmaps.get(this.#disk, "b0") : null,
      isStopping: false,
      filter: null,
      frozen: new Uint8Array(0),
      access: [],
    };
    this.#pendingModel = model;
    const start = (): Promise<Fleecing> =>
      Fleecing.start(this.#graph, {
        name: model.name,
        disks: [{
          name: "disk",
          exportName: model.name,
          backend: this.#device,
          bitmap: model.bitmap,
          target,
        }],
        onCbwError: this.#random.pick(["break-guest-write", "break-snapshot"]),
        cbwTimeoutSeconds: this.#random.pick([0, 1, 2]),
        minClusterSizeBytes: 0,
        scratchMaxBytes: this.#random.pick([null, null, 3 * CLUSTER]),
        scratchDirectory: "",
        kernels: this.#kernels,
        clock: this.#clock,
        onBroken: () => this.#note("broken"),
      });
    const started = async (): Promise<void> => {
      model.fleecing = await start();
      const [view] = model.fleecing.exports;
      model.view = view instanceof SnapshotExport ? view : null;
      this.#models.push(model);
    };
    this.#start(this.#count("start", started), (error) => {
      this.#pendingModel = null;
      if (error !== null) throw error;
    });
  }

  /** The moment of the fleecing that is being started. */
  #freeze(filter: CopyBeforeWriteNode): void {
    const model = this.#pendingModel;
    if (model === null) throw new Error("a filter that nobody asked for");
    model.filter = filter;
    model.frozen = this.#disk.bytes.slice();
    // Nothing of the guest's is in flight, so that all is known.
    assertSame(model.frozen, this.#expected, 0, DISK_BYTES, "the moment");
    model.access = Array.from({ length: CLUSTER_COUNT }, (_, i) => {
      const offset = i * CLUSTER;
      const length = Math.min(CLUSTER, DISK_BYTES - offset);
      const isDirty = model.bitmap === null || model.bitmap.bits.isAnySet(offset, length);
      return isDirty ? "yes" : "no";
    });
    this.#checkBitmap();
  }

  #stop(model: Model): void {
    if (model.isStopping) return;
    model.isStopping = true;
    const stop = async (): Promise<void> => {
      await model.fleecing?.stop();
      await this.#graph.remove(model.target.nodeName);
    };
    this.#models.splice(this.#models.indexOf(model), 1);
    this.#start(this.#count("stop", stop), (error) => {
      if (error !== null) throw error;
    });
  }

  /** The next requests to a node fail. */
  #fail(): void {
    const targets = this.#models.map(({ target }) => target);
    const node = this.#random.pick([this.#disk, ...targets, ...targets]);
    const kind = this.#random.pick(["failingWrites", "failingReads"] as const);
    node[kind] = 1 + this.#random.below(3);
    node.failureCode = this.#random.pick(["EIO", "ENOSPC"]);
    if (node === this.#disk) node.failureCode = "EIO";
  }

  // The bitmap.

  #addBitmap(): void {
    if (this.#atBitmap !== null || this.#running.size > 0) return;
    this.#bitmaps.add(this.#disk, {
      name: "b0",
      granularity: this.#random.pick([512, 4096, CLUSTER, 4 * CLUSTER]),
    });
    this.#atBitmap = this.#disk.bytes.slice();
    this.#note("bitmap");
  }

  /** What differs from the disk as it was when the bitmap was made is dirty. */
  #checkBitmap(): void {
    const before = this.#atBitmap;
    if (before === null) return;
    const { bits } = this.#bitmaps.get(this.#disk, "b0");
    for (let i = 0; i < DISK_BYTES; i++) {
      if (before[i] !== this.#disk.bytes[i]) assert(bits.isSet(i), `byte ${i} is not dirty`);
    }
  }

  // Requests.

  #anyRange(): ByteRange {
    const r = this.#random;
    switch (r.below(7)) {
      case 0: { // whole clusters
        const first = r.below(CLUSTER_COUNT);
        const offset = first * CLUSTER;
        const length = (1 + r.below(3)) * CLUSTER;
        return { offset, length: Math.min(length, DISK_BYTES - offset) };
      }
      case 1: { // a little
        const offset = r.below(DISK_BYTES);
        return { offset, length: Math.min(1 + r.below(2000), DISK_BYTES - offset) };
      }
      case 2: { // across a border
        const border = (1 + r.below(CLUSTER_COUNT - 1)) * CLUSTER;
        const offset = border - 1 - r.below(1000);
        return { offset, length: Math.min(1 + r.below(3000), DISK_BYTES - offset) };
      }
      case 3:
      case 4:
      case 5: { // in one cluster, beside others
        const offset = this.#hotOffset + r.below(Math.min(CLUSTER, DISK_BYTES - this.#hotOffset));
        return { offset, length: Math.min(1 + r.below(6000), DISK_BYTES - offset) };
      }
      default: { // anything
        const offset = r.below(DISK_BYTES);
        return { offset, length: 1 + r.below(DISK_BYTES - offset) };
      }
    }
  }

  #count<T>(what: string, request: () => T): () => T {
    return () => {
      this.#note(what);
      return request();
    };
  }

  #note(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1;
  }

  /** Starts a request; `done` looks at what came of it. */
  #start(request: () => MaybePromise<unknown>, done: (error: BlockError | null) => void): void {
    const run = async (): Promise<void> => {
      let error: BlockError | null = null;
      try {
        await request();
      } catch (thrown) {
        if (!(thrown instanceof BlockError)) throw thrown;
        error = toBlockError(thrown);
      }
      done(error);
    };
    const running = run().catch((error) => {
      this.#failure ??= error;
    }).finally(() => this.#running.delete(running));
    this.#running.add(running);
  }

  /** The first failed check: the run ends with it. */
  #failure: unknown = null;

  /** Lets something happen while nothing new is started. */
  async #goOn(): Promise<void> {
    if (this.#scheduler.heldCount > 0) await this.#scheduler.step();
    else await this.#clock.advance(1000);
    if (this.#failure !== null) throw this.#failure;
  }

  /** Lets all requests end. That they don't is a deadlock. */
  async #finish(): Promise<void> {
    for (let i = 0; this.#running.size > 0; i++) {
      assert(i < 100_000, `${this.#running.size} requests never end`);
      await this.#goOn();
      await allSettled();
    }
    while (this.#scheduler.heldCount > 0) await this.#scheduler.step();
    await allSettled();
    if (this.#failure !== null) throw this.#failure;
  }
}

/** The access of the clusters that a range touches. */
function accessOf(model: Model, offset: number, length: number): Access[] {
  const last = Math.floor((offset + length - 1) / CLUSTER);
  return model.access.slice(Math.floor(offset / CLUSTER), last + 1);
}

/** The first index at which two arrays differ, or -1. */
function differ(a: Uint8Array, b: Uint8Array): number {
  assertEquals(a.length, b.length);
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return i;
  return -1;
}

function assertSame(
  actual: Uint8Array,
  expected: Uint8Array,
  offset: number,
  length: number,
  what: string,
): void {
  const end = offset + length;
  const at = differ(actual.subarray(offset, end), expected.subarray(offset, end));
  if (at < 0) return;
  const [is, should] = [actual[offset + at], expected[offset + at]];
  throw new Error(`${what}: byte ${offset + at} is ${is}, not ${should}`);
}
