/**
 * Random requests to a qcow2 image against an array of bytes: for all kinds of images, with caches
 * that hold next to nothing, one after the other and many at once over a file whose requests
 * overtake each other. At the end the image is checked.
 */
import { assert, assertEquals } from "@std/assert";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { IoVector } from "../../../src/block/io_vector.ts";
import type { BlockNode } from "../../../src/block/node.ts";
import { checkQcow2 } from "../../../src/block/qcow2/check.ts";
import type { Qcow2CreateOptions } from "../../../src/block/qcow2/create.ts";
import type { Qcow2Node } from "../../../src/block/qcow2/node.ts";
import {
  REQ_MAY_UNMAP,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
} from "../../../src/block/types.ts";
import {
  assertSameBytes,
  contentOf,
  createImage,
  openImage,
  Random,
  ShufflingNode,
  TINY_CACHES,
} from "./support.ts";

const SEED = Number(Deno.env.get("OVIS_QCOW2_SEED") ?? 1);
const ROUNDS = Number(Deno.env.get("OVIS_QCOW2_ROUNDS") ?? 1);

interface Kind {
  name: string;
  options: Omit<Qcow2CreateOptions, "sizeBytes">;
  sizeBytes: number;
  /** Of the backing image, 0 for none. */
  backingBytes?: number;
  hasDataFile?: boolean;
}

const MiB = 1024 * 1024;
const KINDS: readonly Kind[] = [
  { name: "64 KiB clusters", options: {}, sizeBytes: 5 * MiB + 512 },
  { name: "512 B clusters", options: { clusterBytes: 512 }, sizeBytes: 300 * 1024 },
  { name: "2 MiB clusters", options: { clusterBytes: 2 * MiB }, sizeBytes: 9 * MiB - 512 },
  { name: "version 2", options: { version: 2, clusterBytes: 4096 }, sizeBytes: MiB + 1024 },
  { name: "64 bit refcounts", options: { clusterBytes: 512, refcountBits: 64 }, sizeBytes: MiB },
  { name: "1 bit refcounts", options: { clusterBytes: 1024, refcountBits: 1 }, sizeBytes: MiB },
  { name: "lazy refcounts", options: { hasLazyRefcounts: true }, sizeBytes: 3 * MiB },
  { name: "subclusters", options: { hasExtendedL2: true }, sizeBytes: 3 * MiB + 1536 },
  {
    name: "subclusters of 512 B",
    options: { hasExtendedL2: true, clusterBytes: 16384 },
    sizeBytes: MiB + 512,
  },
  { name: "preallocated", options: { preallocation: "metadata" }, sizeBytes: 2 * MiB + 512 },
  {
    name: "preallocated, subclusters and backing",
    options: { preallocation: "metadata", hasExtendedL2: true },
    sizeBytes: 2 * MiB,
    backingBytes: MiB + 512,
  },
  { name: "shorter backing", options: {}, sizeBytes: 3 * MiB, backingBytes: MiB + 4096 + 512 },
  { name: "longer backing", options: {}, sizeBytes: MiB + 512, backingBytes: 3 * MiB },
  {
    name: "subclusters, shorter backing",
    options: { hasExtendedL2: true },
    sizeBytes: 2 * MiB,
    backingBytes: MiB + 3 * 512,
  },
  {
    name: "version 2, shorter backing",
    options: { version: 2 },
    sizeBytes: 2 * MiB,
    backingBytes: MiB + 3 * 512,
  },
  { name: "data file", options: {}, sizeBytes: 2 * MiB + 512, hasDataFile: true },
  {
    name: "raw data file",
    options: { isDataFileRaw: true },
    sizeBytes: 2 * MiB + 512,
    hasDataFile: true,
  },
  {
    name: "data file, subclusters, backing",
    options: { hasExtendedL2: true },
    sizeBytes: 2 * MiB,
    hasDataFile: true,
    backingBytes: MiB,
  },
];

/** An image of a kind, with what it should hold. */
class Subject {
  readonly random: Random;
  node!: Qcow2Node;
  model = new Uint8Array(0);
  file!: MemoryNode;
  dataFile: MemoryNode | null = null;
  backing: MemoryNode | null = null;

  constructor(readonly kind: Kind, seed: number) {
    this.random = new Random(seed);
  }

  async create(): Promise<void> {
    const { options, sizeBytes, hasDataFile, backingBytes } = this.kind;
    if (hasDataFile) this.dataFile = new MemoryNode({ nodeName: "data", sizeBytes: 0 });
    this.file = await createImage({
      ...options,
      sizeBytes,
      ...this.dataFile === null ? {} : { dataFile: "data", dataFileNode: this.dataFile },
      ...backingBytes ? { backingFile: options.preallocation ? "b" : "backing" } : {},
    });
    this.model = new Uint8Array(sizeBytes);
    if (backingBytes) {
      this.backing = new MemoryNode({ nodeName: "backing", sizeBytes: backingBytes });
      const bytes = new Uint8Array(backingBytes);
      // Some of it stays zeroes.
      for (let at = 0; at < backingBytes; at += 1000) {
        bytes.fill(this.random.below(4) === 0 ? 0 : 1 + this.random.below(255), at, at + 1000);
      }
      await this.backing.write(0, IoVector.of(bytes));
      this.model.set(bytes.subarray(0, sizeBytes));
    }
  }

  async open(wrap: (file: BlockNode) => BlockNode = (file) => file): Promise<void> {
    this.node = await openImage(wrap(this.file), {
      ...TINY_CACHES,
      dataFile: this.dataFile === null ? null : wrap(this.dataFile),
      backing: this.backing === null ? null : wrap(this.backing),
    });
  }

  /** A random range: any, or along clusters. */
  range(end = this.model.length, start = 0): { at: number; length: number } {
    const { random } = this;
    const cluster = this.node.clusterSizeBytes ?? 1;
    let at = start + random.below(end - start);
    if (random.below(3) === 0) at = Math.max(at - at % cluster, start);
    const most = random.pick([512, 4096, cluster, 3 * cluster, 200_000]);
    return { at, length: Math.min(1 + random.below(most), end - at) };
  }

  /** What a discard leaves. */
  discarded(at: number, length: number): void {
    if (this.kind.options.version === 2 && this.backing !== null) return;
    const cluster = this.node.clusterSizeBytes ?? 1;
    const start = Math.ceil(at / cluster) * cluster;
    const end = at + length === this.model.length
      ? at + length
      : at + length - (at + length) % cluster;
    if (end > start) this.model.fill(0, start, end);
  }

  /** Starts a request in a range; the model has its result at once. */
  async change(at: number, length: number): Promise<void> {
    const { node, model, random } = this;
    switch (random.below(6)) {
      case 0:
        model.fill(0, at, at + length);
        return await node.writeZeroes(at, length, random.pick([0, REQ_MAY_UNMAP]));
      case 1:
        this.discarded(at, length);
        return await node.discard(at, length);
      default: {
        const bytes = new Uint8Array(length).fill(1 + random.below(255));
        model.set(bytes, at);
        return await node.write(at, IoVector.of(bytes));
      }
    }
  }

  async check(what: string): Promise<void> {
    assertSameBytes(await contentOf(this.node), this.model, what);
    await this.checkStatus(what);
  }

  /** What is said to be zero is; runs follow each other. */
  async checkStatus(what: string): Promise<void> {
    const { model } = this;
    for (let at = 0; at < model.length;) {
      const status = await this.node.blockStatus(at, model.length - at);
      assert(status.length > 0 && status.length <= model.length - at, what);
      if ((status.flags & STATUS_ZERO) !== 0) {
        assert(model.subarray(at, at + status.length).every((byte) => byte === 0), what);
      }
      if (status.host !== undefined && (status.flags & STATUS_DATA) !== 0) {
        const length = Math.min(status.length, 4096);
        const bytes = new Uint8Array(length);
        const there = Math.max(
          Math.min(length, status.host.node.sizeBytes - status.host.offset),
          0,
        );
        await status.host.node.read(status.host.offset, IoVector.of(bytes.subarray(0, there)));
        assertSameBytes(bytes, model.subarray(at, at + length), `${what}: host offset`);
      }
      if ((status.flags & (STATUS_ALLOCATED | STATUS_ZERO)) === 0) assert(this.backing !== null);
      at += status.length;
    }
  }

  async checkImage(what: string): Promise<void> {
    const result = await checkQcow2(this.file);
    const { corruptions, leaks, checkErrors } = result;
    assertEquals({ corruptions, leaks, checkErrors }, {
      corruptions: 0,
      leaks: 0,
      checkErrors: 0,
    }, what);
  }
}

for (const kind of KINDS) {
  Deno.test(`Qcow2Node does what an array of bytes does: ${kind.name}`, async () => {
    for (let round = 0; round < ROUNDS; round++) {
      const seed = SEED + round;
      const subject = new Subject(kind, seed);
      await subject.create();
      for (let session = 0; session < 3; session++) {
        await subject.open();
        for (let count = 0; count < 60; count++) {
          const { at, length } = subject.range();
          if (subject.random.below(4) > 0) await subject.change(at, length);
          else {
            const bytes = new Uint8Array(length);
            await subject.node.read(at, IoVector.of(bytes));
            assertSameBytes(bytes, subject.model.subarray(at, at + length), `seed ${seed}`);
          }
          if (subject.random.below(10) === 0) await subject.node.flush();
        }
        await subject.check(`seed ${seed}, session ${session}`);
        await subject.node.close();
        await subject.checkImage(`seed ${seed}, session ${session}`);
      }
    }
  });

  Deno.test(`Qcow2Node keeps requests apart that share clusters: ${kind.name}`, async () => {
    for (let round = 0; round < ROUNDS; round++) {
      const seed = SEED + round;
      const subject = new Subject(kind, seed);
      await subject.create();
      const shuffled: ShufflingNode[] = [];
      await subject.open((below) => {
        const node = new ShufflingNode(below, subject.random);
        shuffled.push(node);
        return node;
      });
      for (let count = 0; count < 8; count++) {
        await changeApart(subject);
        await subject.check(`seed ${seed}, batch ${count}`);
      }
      assert(shuffled.some(({ waitingMax }) => waitingMax > 3), "requests ran at the same time");
      await subject.node.close();
      await subject.checkImage(`seed ${seed}`);
    }
  });
}

/** Requests at the same time in ranges that don't overlap, but share clusters. */
async function changeApart(subject: Subject): Promise<void> {
  const { random, model, node } = subject;
  const requests: Promise<void>[] = [];
  let at = random.below(Math.floor(model.length / 3));
  for (let count = 0; count < 12 && at < model.length; count++) {
    const { length } = subject.range(model.length, at);
    const what = random.below(5);
    if (what === 0) {
      const expected = model.slice(at, at + length);
      const bytes = new Uint8Array(length);
      const offset = at;
      requests.push(
        Promise.resolve(node.read(at, IoVector.of(bytes))).then(() => {
          assertSameBytes(bytes, expected, `read at ${offset} beside others`);
        }),
      );
    } else if (what === 1) requests.push(Promise.resolve(node.flush()));
    else requests.push(subject.change(at, length));
    at += length + random.pick([0, 0, 1, 512]);
  }
  const results = await Promise.allSettled(requests);
  for (const result of results) if (result.status === "rejected") throw result.reason;
}
