/**
 * Power failures: random requests to an image over a file that loses, reorders and tears what was
 * not flushed, at a random moment. Whatever is left, the image has no corruption, everything that
 * was flushed is there, leaks can be repaired, and it works on.
 *
 * OVIS_CRASH_SEED and OVIS_CRASH_RUNS say where to start and how much to try.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { BlockError } from "../../../src/block/errors.ts";
import { IoVector } from "../../../src/block/io_vector.ts";
import type { BlockNode } from "../../../src/block/node.ts";
import { checkQcow2 } from "../../../src/block/qcow2/check.ts";
import type { Qcow2CreateOptions } from "../../../src/block/qcow2/create.ts";
import { Qcow2Node } from "../../../src/block/qcow2/node.ts";
import { REQ_FUA, REQ_MAY_UNMAP, REQ_WRITE_COMPRESSED } from "../../../src/block/types.ts";
import { findProgram } from "../../support/clients.ts";
import { CrashingFile } from "../../support/crashing_file.ts";
import { ImageFolder } from "../../support/qcow2_images.ts";
import { Random } from "../../support/simulation.ts";
import { contentOf, createImage, TINY_CACHES } from "./support.ts";

const SEED = Number(Deno.env.get("OVIS_CRASH_SEED") ?? 1);
const RUNS = Number(Deno.env.get("OVIS_CRASH_RUNS") ?? 8);
const SECTOR = 512;
/** Where the lowest byte of the incompatible features is. */
const INCOMPATIBLE_AT = 79;
const MiB = 1024 * 1024;

const KINDS: Record<string, Omit<Qcow2CreateOptions, "sizeBytes">> = {
  "default options": {},
  "512 B clusters": { clusterBytes: 512 },
  "4 KiB clusters, version 2": { clusterBytes: 4096, version: 2 },
  "subclusters": { hasExtendedL2: true, clusterBytes: 16384 },
  "64 bit refcounts, 512 B clusters": { clusterBytes: 512, refcountBits: 64 },
  "lazy refcounts": { clusterBytes: 4096, hasLazyRefcounts: true },
};

/** What each sector may hold after a crash: the flushed value first, the current one last. */
class DiskModel {
  readonly #histories: number[][];

  constructor(sectorCount: number) {
    this.#histories = Array.from({ length: sectorCount }, () => [0]);
  }

  get sectorCount(): number {
    return this.#histories.length;
  }

  history(sector: number): number[] {
    return this.#histories[sector] ?? [];
  }

  /** A request starts that may leave this value. */
  push(sector: number, value: number): void {
    this.history(sector).push(value);
  }

  current(sector: number): number {
    return this.history(sector).at(-1) ?? 0;
  }

  /** What is here now is there after any crash, if a flush that begins now ends well. */
  flushing(isBusy: (sector: number) => boolean): () => void {
    const keep = this.#histories.map((history, sector) => {
      return history.length - (isBusy(sector) ? 2 : 1);
    });
    return () => this.#histories.forEach((history, sector) => history.splice(0, keep[sector] ?? 0));
  }
}

function sectorsOf(bytes: Uint8Array): Uint32Array {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  return Uint32Array.from({ length: bytes.length / SECTOR }, (_, sector) => {
    const first = words[sector * SECTOR / 4] ?? 0;
    for (let at = 1; at < SECTOR / 4; at++) {
      assertEquals(words[sector * SECTOR / 4 + at], first, `sector ${sector} is torn`);
    }
    return first;
  });
}

function tagged(count: number, tag: number): IoVector {
  return IoVector.of(new Uint8Array(new Uint32Array(count * SECTOR / 4).fill(tag).buffer));
}

/** A run until the power fails. */
class Run {
  readonly random: Random;
  readonly model: DiskModel;
  readonly snapshots = new Map<string, Uint32Array>();
  /** A change of the COPIED bits was on its way: a check may find some of them too low. */
  isSnapshotChanging = false;
  readonly #file: CrashingFile;
  readonly #node: Qcow2Node;
  readonly #workers: number;
  readonly #busy = new Set<number>();
  #tag = 0;
  #snapshotCount = 0;

  constructor(
    random: Random,
    file: CrashingFile,
    node: Qcow2Node,
    workers: number,
  ) {
    this.random = random;
    this.#file = file;
    this.#node = node;
    this.#workers = workers;
    this.model = new DiskModel(node.sizeBytes / SECTOR);
  }

  /** Requests of all workers until the power fails. */
  async untilCrash(): Promise<void> {
    const work = Array.from({ length: this.#workers }, (_, worker) => this.#work(worker));
    for (const { status, reason } of await Promise.allSettled(work) as PromiseRejectedResult[]) {
      if (status !== "rejected") continue;
      if (!this.#file.hasCrashed || !(reason instanceof BlockError)) throw reason;
    }
    // What still waits may not go on when the image is looked at.
    try {
      await this.#node.flush();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
    }
  }

  async #work(worker: number): Promise<void> {
    while (!this.#file.hasCrashed) {
      const choice = this.random.below(100);
      if (choice < 10 && this.#workers === 1) await this.#writeCompressed();
      else if (choice < 55) await this.#write(worker);
      else if (choice < 70) await this.#zero(worker);
      else if (choice < 80 && this.#workers === 1) await this.#discard();
      else if (choice < 90 && worker === 0) await this.#flush();
      else if (this.#workers === 1 && this.random.chance(40)) await this.#snapshot();
    }
  }

  /** A range of sectors that no other worker touches, though clusters are shared. */
  #range(worker: number): { sector: number; count: number } {
    const stripe = 8;
    const stripes = Math.floor(this.model.sectorCount / stripe / this.#workers);
    if (this.#workers > 1) {
      const first = (this.random.below(stripes) * this.#workers + worker) * stripe;
      const skip = this.random.below(stripe);
      return { sector: first + skip, count: 1 + this.random.below(stripe - skip) };
    }
    const sector = this.random.below(this.model.sectorCount);
    const countMax = this.random.chance(20) ? 600 : 20;
    const count = Math.min(1 + this.random.below(countMax), this.model.sectorCount - sector);
    return { sector, count };
  }

  async #write(worker: number): Promise<void> {
    const { sector, count } = this.#range(worker);
    const tag = ++this.#tag;
    const isDurable = this.random.chance(5);
    await this.#change(sector, count, tag, () => {
      return this.#node.write(sector * SECTOR, tagged(count, tag), isDurable ? REQ_FUA : 0);
    });
  }

  async #writeCompressed(): Promise<void> {
    const unit = (this.#node.clusterSizeBytes ?? SECTOR) / SECTOR;
    const sector = this.random.below(this.model.sectorCount / unit) * unit;
    const tag = ++this.#tag;
    await this.#change(sector, unit, tag, () => {
      return this.#node.write(sector * SECTOR, tagged(unit, tag), REQ_WRITE_COMPRESSED);
    });
  }

  async #zero(worker: number): Promise<void> {
    const { sector, count } = this.#range(worker);
    const flags = this.random.chance(50) ? REQ_MAY_UNMAP : 0;
    await this.#change(sector, count, 0, () => {
      return this.#node.writeZeroes(sector * SECTOR, count * SECTOR, flags);
    });
  }

  async #discard(): Promise<void> {
    const { sector, count } = this.#range(0);
    await this.#change(sector, count, 0, () => {
      return this.#node.discard(sector * SECTOR, count * SECTOR);
    });
    // Only whole clusters were; or none.
    const bytes = new Uint8Array(count * SECTOR);
    await this.#node.read(sector * SECTOR, IoVector.of(bytes));
    sectorsOf(bytes).forEach((value, index) => this.model.push(sector + index, value));
  }

  async #change(
    sector: number,
    count: number,
    value: number,
    request: () => unknown,
  ): Promise<void> {
    for (let at = sector; at < sector + count; at++) {
      this.#busy.add(at);
      this.model.push(at, value);
    }
    await request();
    for (let at = sector; at < sector + count; at++) this.#busy.delete(at);
  }

  async #flush(): Promise<void> {
    const done = this.model.flushing((sector) => this.#busy.has(sector));
    await this.#node.flush();
    done();
  }

  async #snapshot(): Promise<void> {
    const { snapshots } = this.#node;
    const names = [...this.snapshots.keys()];
    this.isSnapshotChanging = true;
    if (names.length === 0 || this.random.chance(40)) {
      const name = `s${this.#snapshotCount++}`;
      const values = Uint32Array.from(
        { length: this.model.sectorCount },
        (_, sector) => this.model.current(sector),
      );
      this.snapshots.set(name, values);
      await snapshots.create({ name, dateMs: 0 });
    } else if (this.random.chance(50)) {
      const name = this.random.pick(names);
      const values = this.snapshots.get(name);
      values?.forEach((value, sector) => this.model.push(sector, value));
      await snapshots.apply(name);
    } else {
      const name = this.random.pick(names);
      await snapshots.remove(name);
      this.snapshots.delete(name);
    }
    this.isSnapshotChanging = false;
  }
}

async function crashOnce(
  seed: number,
  options: Omit<Qcow2CreateOptions, "sizeBytes">,
  isAsynchronous: boolean,
): Promise<void> {
  const random = new Random(seed);
  const sizeBytes = options.refcountBits === 64 ? 3 * MiB : MiB;
  const made = await createImage({ ...options, sizeBytes });
  const file = new CrashingFile({
    random,
    content: await contentOf(made),
    requestsUntilCrash: 1 + random.below(random.chance(30) ? 40 : 600),
    isAsynchronous,
  });
  const caches = random.chance(60) ? TINY_CACHES : {};
  const nodeOptions = { nodeName: "disk", file, isReadOnly: false, ...caches };
  // Opening changes nothing that is clean: the power can't fail yet.
  const node = await Qcow2Node.open(nodeOptions);
  const run = new Run(random, file, node, isAsynchronous ? 4 : 1);
  await run.untilCrash();
  const bytes = file.remains();
  try {
    await checkRemains(bytes, run);
    if (seed % 8 === 0) await checkWithQemu(bytes, run, options);
  } catch (error) {
    Deno.writeFileSync(`${Deno.env.get("TMPDIR") ?? "/tmp"}/ovis-crash-${seed}.qcow2`, bytes);
    throw error;
  }
}

async function load(bytes: Uint8Array): Promise<MemoryNode> {
  const node = new MemoryNode({ nodeName: "file", sizeBytes: bytes.length });
  await node.write(0, IoVector.of(bytes));
  return node;
}

async function checkRemains(
  bytes: Uint8Array,
  run: Run,
): Promise<void> {
  const file = await load(bytes);
  const issues: string[] = [];
  const onIssue = (issue: string) => issues.push(issue);
  // With lazy refcounts the image may be dirty: then it is repaired when it is opened.
  const isLazy = ((bytes[INCOMPATIBLE_AT] ?? 0) & 1) !== 0;
  if (!isLazy && !run.isSnapshotChanging) {
    const { corruptions, checkErrors } = await checkQcow2(file, { onIssue });
    assertEquals([corruptions, checkErrors], [0, 0], issues.join("\n"));
  }
  const repaired = await checkQcow2(file, { repair: isLazy ? "all" : "leaks", onIssue });
  const { corruptions, leaks, checkErrors } = repaired;
  assertEquals([corruptions, leaks, checkErrors], [0, 0, 0], issues.join("\n"));
  await checkContent(file, run);
  await worksOn(file);
}

async function checkContent(file: BlockNode, run: Run): Promise<void> {
  const node = await Qcow2Node.open({ nodeName: "disk", file, isReadOnly: true });
  sectorsOf(await contentOf(node)).forEach((value, sector) => {
    const allowed = run.model.history(sector);
    assert(allowed.includes(value), `sector ${sector}: ${value} is none of ${allowed.join(" ")}`);
  });
  for (const { name } of node.snapshots.list()) {
    const view = await Qcow2Node.open({ nodeName: "view", file, isReadOnly: true });
    await view.snapshots.show(name);
    const expected = run.snapshots.get(name);
    if (expected === undefined) continue; // its removal was on its way
    assertEquals(sectorsOf(await contentOf(view)), expected, `snapshot ${name}`);
  }
}

/** The image can be written and is right afterwards. */
async function worksOn(file: BlockNode): Promise<void> {
  const node = await Qcow2Node.open({ nodeName: "disk", file, isReadOnly: false });
  const tag = 0x7fffffff;
  await node.write(0, tagged(node.sizeBytes / SECTOR, tag));
  await node.close();
  const { corruptions, leaks } = await checkQcow2(file);
  assertEquals([corruptions, leaks], [0, 0], "written after the crash");
  const again = await Qcow2Node.open({ nodeName: "disk", file, isReadOnly: true });
  assert(sectorsOf(await contentOf(again)).every((value) => value === tag));
}

async function checkWithQemu(
  bytes: Uint8Array,
  run: Run,
  options: Omit<Qcow2CreateOptions, "sizeBytes">,
): Promise<void> {
  if (findProgram("qemu-img") === undefined) return;
  using folder = new ImageFolder();
  Deno.writeFileSync(folder.file("image"), bytes);
  if (!options.hasLazyRefcounts && !run.isSnapshotChanging) {
    assertEquals((await folder.check("image")).corruptions ?? 0, 0);
  }
  await folder.check("image", options.hasLazyRefcounts ? "all" : "leaks");
  await folder.assertClean("image");
}

for (const [name, options] of Object.entries(KINDS)) {
  for (const isAsynchronous of [false, true]) {
    const how = isAsynchronous ? "many requests at once" : "one request after the other";
    Deno.test(`nothing flushed is lost in a power failure: ${name}, ${how}`, async () => {
      for (let seed = SEED; seed < SEED + RUNS; seed++) {
        try {
          await crashOnce(seed, options, isAsynchronous);
        } catch (error) {
          throw new Error(`seed ${seed}: ${error instanceof Error ? error.message : error}`, {
            cause: error,
          });
        }
      }
    });
  }
}
