/**
 * Random chains of images against arrays of bytes: writes of all kinds, zeroes, discards, overlays,
 * commits, internal snapshots, other sizes, dirty bitmaps, and everything closed and opened again.
 * At the end each image is checked, by qemu-img too, which also reads the whole chain.
 *
 * OVIS_CHAIN_SEED and OVIS_CHAIN_RUNS say where to start and how much to try.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { DirtyBitmaps } from "../../../src/block/dirty_bitmap.ts";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { IoVector } from "../../../src/block/io_vector.ts";
import { checkQcow2 } from "../../../src/block/qcow2/check.ts";
import { createQcow2, type Qcow2CreateOptions } from "../../../src/block/qcow2/create.ts";
import { Qcow2Node } from "../../../src/block/qcow2/node.ts";
import { REQ_MAY_UNMAP, REQ_WRITE_COMPRESSED, STATUS_ALLOCATED } from "../../../src/block/types.ts";
import { compileKernels, Kernels } from "../../../src/wasm/kernels.ts";
import { findProgram } from "../../support/clients.ts";
import { ImageFolder } from "../../support/qcow2_images.ts";
import { Random } from "../../support/simulation.ts";
import { assertSameBytes, contentOf, TINY_CACHES } from "./support.ts";

const SEED = Number(Deno.env.get("OVIS_CHAIN_SEED") ?? 1);
const RUNS = Number(Deno.env.get("OVIS_CHAIN_RUNS") ?? 10);
const STEPS = 150;
const SECTOR = 512;
const SIZE_MAX = 512 * 1024;
const kernelModule = await compileKernels();

const KINDS: readonly Omit<Qcow2CreateOptions, "sizeBytes">[] = [
  {},
  { clusterBytes: 512 },
  { clusterBytes: 4096, compressionType: "zstd" },
  { clusterBytes: 16384, hasExtendedL2: true },
  { hasExtendedL2: true, compressionType: "zstd" },
  { clusterBytes: 2048, version: 2 },
  { clusterBytes: 4096, refcountBits: 64 },
  { clusterBytes: 8192, hasLazyRefcounts: true },
];

/** One image of the chain. */
interface Layer {
  name: string;
  options: Omit<Qcow2CreateOptions, "sizeBytes">;
  file: MemoryNode;
  node: Qcow2Node;
  /** What a reader of this layer gets, for those below the top. */
  content: Uint8Array;
  snapshots: Map<string, Uint8Array>;
}

class Chain {
  readonly random: Random;
  readonly #layers: Layer[] = [];
  readonly #bitmaps = new DirtyBitmaps(new Kernels(kernelModule));
  /** Which granules of a bitmap were touched since it was clean. */
  readonly #dirty = new Map<string, { granularity: number; granules: Set<number> }>();
  #content = new Uint8Array();
  #names = 0;

  constructor(random: Random) {
    this.random = random;
  }

  get #top(): Layer {
    const top = this.#layers.at(-1);
    if (top === undefined) throw new Error("no image");
    return top;
  }

  async addLayer(): Promise<void> {
    const below = this.#layers.at(-1);
    if (below !== undefined) {
      this.#dirty.clear();
      await this.#close();
      below.content = this.#content.slice();
    }
    const sizeBytes = below === undefined || this.random.chance(30)
      ? this.#randomSize()
      : this.#content.length;
    const name = `layer${this.#names++}`;
    const options = this.random.pick(KINDS);
    const file = new MemoryNode({ nodeName: "file", sizeBytes: 0 });
    const backing = below === undefined ? {} : { backingFile: below.name, backingFormat: "qcow2" };
    await createQcow2(file, { ...options, ...backing, sizeBytes });
    this.#setSize(sizeBytes);
    const layer = { name, options, file, content: new Uint8Array(), snapshots: new Map() };
    await this.#open([...this.#layers.splice(0), layer]);
  }

  async step(): Promise<void> {
    const choice = this.random.below(100);
    if (choice < 35) await this.#write();
    else if (choice < 45) await this.#writeCompressed();
    else if (choice < 58) await this.#zero();
    else if (choice < 66) await this.#discard();
    else if (choice < 76) await this.#compareSome();
    else if (choice < 80) await this.#top.node.flush();
    else if (choice < 86) await this.#snapshot();
    else if (choice < 89) await this.#resize();
    else if (choice < 93) await this.#bitmap();
    else if (choice < 96) await this.#reopen();
    else if (choice < 98 && this.#layers.length < 4) await this.addLayer();
    else if (this.#layers.length > 1) await this.#commit();
  }

  /** All of it is right, for us and for QEMU. */
  async finish(): Promise<void> {
    assertSameBytes(await contentOf(this.#top.node), this.#content, "the disk");
    await this.#reopen();
    assertSameBytes(await contentOf(this.#top.node), this.#content, "the disk, opened again");
    await this.#checkBitmaps();
    await this.#close();
    for (const { name, file } of this.#layers) await checkClean(name, file);
    if (findProgram("qemu-img") === undefined) return;
    using folder = new ImageFolder();
    for (const { name, file } of this.#layers) {
      Deno.writeFileSync(folder.file(name), await contentOf(file));
    }
    for (const { name } of this.#layers) await folder.assertClean(name);
    const { name, snapshots } = this.#top;
    await folder.do("qemu-img", "convert", "-f", "qcow2", "-O", "raw", name, "all.raw");
    assertSameBytes(folder.bytes("all.raw"), this.#content, "the disk as QEMU reads it");
    for (const [id, content] of snapshots) {
      // It shows snapshots in the size that the disk has now.
      if (content.length !== this.#content.length) continue;
      await folder.do("qemu-img", "convert", "-l", id, "-O", "raw", name, "one.raw");
      assertSameBytes(folder.bytes("one.raw"), content, `snapshot ${id} as QEMU reads it`);
    }
  }

  #randomSize(): number {
    return SECTOR * (1 + this.random.below(SIZE_MAX / SECTOR));
  }

  #setSize(sizeBytes: number): void {
    const content = new Uint8Array(sizeBytes);
    content.set(this.#content.subarray(0, sizeBytes));
    this.#content = content;
  }

  async #close(): Promise<void> {
    for (const { node } of [...this.#layers].reverse()) await node.close();
  }

  /** Opens a chain from its last image up: all but the top are read-only. */
  async #open(layers: Omit<Layer, "node">[], writable = layers.length - 1): Promise<void> {
    let backing: Qcow2Node | null = null;
    for (const [index, layer] of layers.entries()) {
      const caches = this.random.chance(50) ? TINY_CACHES : {};
      const isReadOnly = index !== writable;
      const { file } = layer;
      const options = { nodeName: layer.name, file, backing, isReadOnly, ...caches };
      const node: Qcow2Node = await Qcow2Node.open(options);
      await this.#bitmaps.load(node);
      this.#layers.push({ ...layer, node });
      backing = node;
    }
  }

  async #reopen(): Promise<void> {
    await this.#close();
    if (this.random.chance(30)) {
      for (const { name, file } of this.#layers) await checkClean(name, file);
    }
    await this.#open(this.#layers.splice(0));
    await this.#checkBitmaps();
  }

  #range(unit = 1): { offset: number; length: number } {
    const size = this.#content.length;
    const length = Math.min(1 + this.random.below(this.random.chance(20) ? 200_000 : 6000), size);
    const offset = this.random.below(size - length + 1);
    if (unit === 1 || this.random.chance(20)) return { offset, length };
    const start = offset - offset % unit;
    return { offset: start, length: Math.min(Math.ceil(length / unit) * unit, size - start) };
  }

  #touch(offset: number, length: number): void {
    for (const { granularity, granules } of this.#dirty.values()) {
      const end = Math.ceil((offset + length) / granularity);
      for (let granule = Math.floor(offset / granularity); granule < end; granule++) {
        granules.add(granule);
      }
    }
  }

  #randomBytes(length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    const isText = this.random.chance(60);
    for (let at = 0; at < length; at++) bytes[at] = isText ? 65 + at % 7 : this.random.below(256);
    if (isText && length > 0) bytes[this.random.below(length)] = this.random.below(256);
    return bytes;
  }

  async #write(flags = 0, range = this.#range()): Promise<void> {
    const bytes = this.#randomBytes(range.length);
    await this.#top.node.write(range.offset, IoVector.of(bytes), flags);
    this.#content.set(bytes, range.offset);
    this.#touch(range.offset, range.length);
  }

  async #writeCompressed(): Promise<void> {
    const unit = this.#top.node.clusterSizeBytes ?? SECTOR;
    const { offset } = this.#range();
    const start = offset - offset % unit;
    const wanted = unit * (1 + this.random.below(3));
    const length = Math.min(wanted, this.#content.length - start);
    await this.#write(REQ_WRITE_COMPRESSED, { offset: start, length });
  }

  async #zero(): Promise<void> {
    const { offset, length } = this.#range(4096);
    const flags = this.random.chance(50) ? REQ_MAY_UNMAP : 0;
    await this.#top.node.writeZeroes(offset, length, flags);
    this.#content.fill(0, offset, offset + length);
    this.#touch(offset, length);
  }

  async #discard(): Promise<void> {
    const { offset, length } = this.#range(4096);
    await this.#top.node.discard(offset, length);
    this.#touch(offset, length);
    const after = new Uint8Array(length);
    await this.#top.node.read(offset, IoVector.of(after));
    after.forEach((byte, at) => {
      assert(byte === 0 || byte === this.#content[offset + at], `byte ${offset + at} is ${byte}`);
    });
    this.#content.set(after, offset);
  }

  async #compareSome(): Promise<void> {
    const { offset, length } = this.#range();
    const bytes = new Uint8Array(length);
    await this.#top.node.read(offset, IoVector.of(bytes));
    assertSameBytes(bytes, this.#content.subarray(offset, offset + length), `at ${offset}`);
  }

  async #snapshot(): Promise<void> {
    const { node, snapshots } = this.#top;
    const names = [...snapshots.keys()];
    if (names.length === 0 || names.length < 4 && this.random.chance(50)) {
      const name = `s${this.#names++}`;
      await node.snapshots.create({ name, dateMs: 0 });
      snapshots.set(name, this.#content.slice());
      return;
    }
    const name = this.random.pick(names);
    const content = snapshots.get(name) ?? new Uint8Array();
    if (this.random.chance(40)) {
      await node.snapshots.remove(name);
      snapshots.delete(name);
    } else if (this.#dirty.size === 0) {
      await node.snapshots.apply(name);
      this.#content = content.slice();
      assertEquals(node.sizeBytes, content.length);
    }
  }

  async #resize(): Promise<void> {
    const { node, snapshots, options } = this.#top;
    if (options.version === 2 && snapshots.size > 0) return;
    const sizeBytes = this.#randomSize();
    await node.resize(sizeBytes);
    this.#setSize(sizeBytes);
    for (const { granularity, granules } of this.#dirty.values()) {
      const count = Math.ceil(sizeBytes / granularity);
      for (const granule of granules) if (granule >= count) granules.delete(granule);
    }
  }

  async #bitmap(): Promise<void> {
    const { node, options } = this.#top;
    const [name] = this.#dirty.keys();
    if (name !== undefined && this.random.chance(40)) {
      await this.#checkBitmaps();
      await this.#bitmaps.remove(node, name);
      this.#dirty.delete(name);
    } else if (options.version !== 2 && this.#dirty.size < 3) {
      const name = `b${this.#names++}`;
      const granularity = this.random.pick([512, 4096, 65536]);
      this.#bitmaps.add(node, { name, granularity, persistent: true });
      this.#dirty.set(name, { granularity, granules: new Set() });
    }
  }

  /** A write marks what it touches, and nothing else. */
  #checkBitmaps(): void {
    for (const [name, { granularity, granules }] of this.#dirty) {
      const { bits, isInconsistent } = this.#bitmaps.get(this.#top.node, name);
      assert(!isInconsistent, name);
      for (let granule = 0; granule < bits.bitCount; granule++) {
        const isSet = bits.isSet(granule * granularity);
        assertEquals(isSet, granules.has(granule), `bitmap ${name}, bit ${granule}`);
      }
    }
  }

  /** Brings what the top image has into the one below, which is the top then. */
  async #commit(): Promise<void> {
    const { node } = this.#top;
    const runs: { offset: number; bytes: Uint8Array }[] = [];
    for (let offset = 0; offset < node.sizeBytes;) {
      const { length, flags } = await node.blockStatus(offset, node.sizeBytes - offset);
      if ((flags & STATUS_ALLOCATED) !== 0) {
        runs.push({ offset, bytes: this.#content.slice(offset, offset + length) });
      }
      offset += length;
    }
    const below = this.#layers.at(-2);
    const isStuck = below?.options.version === 2 && below.snapshots.size > 0;
    if (below === undefined || isStuck && below.content.length < this.#content.length) return;
    await this.#close();
    this.#dirty.clear();
    const layers = this.#layers.splice(0).slice(0, -1);
    await this.#open(layers);
    const { node: base } = this.#top;
    const frozen = this.#content;
    this.#content = below.content.slice();
    // Its bitmaps were left to their own devices since it was frozen.
    for (const { name } of this.#bitmaps.list(base)) await this.#bitmaps.remove(base, name);
    if (base.sizeBytes < frozen.length) {
      await base.resize(frozen.length);
      this.#setSize(frozen.length);
    }
    for (const { offset, bytes } of runs) {
      await base.write(offset, IoVector.of(bytes));
      this.#content.set(bytes, offset);
    }
    assertSameBytes(this.#content.subarray(0, frozen.length), frozen, "committed");
  }
}

async function checkClean(name: string, file: MemoryNode): Promise<void> {
  const issues: string[] = [];
  const result = await checkQcow2(file, { onIssue: (issue) => issues.push(issue) });
  const { corruptions, leaks, checkErrors } = result;
  assertEquals([corruptions, leaks, checkErrors], [0, 0, 0], `${name}: ${issues.join("\n")}`);
}

Deno.test("random chains of images are what a model says", async () => {
  for (let seed = SEED; seed < SEED + RUNS; seed++) {
    const chain = new Chain(new Random(seed));
    let step = 0;
    try {
      await chain.addLayer();
      for (; step < STEPS; step++) await chain.step();
      await chain.finish();
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      throw new Error(`seed ${seed}, step ${step}: ${reason}`, { cause: error });
    }
  }
});
