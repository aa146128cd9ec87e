/**
 * A file that fails once, at any request: whatever was asked for then may be undone or done; all
 * else stays as it was, and the image sound but for leaks.
 */
import { assert, assertEquals } from "@std/assert";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { BlockError } from "../../../src/block/errors.ts";
import { IoVector } from "../../../src/block/io_vector.ts";
import { BlockNode } from "../../../src/block/node.ts";
import { checkQcow2 } from "../../../src/block/qcow2/check.ts";
import type { Qcow2CreateOptions } from "../../../src/block/qcow2/create.ts";
import type { Qcow2Node } from "../../../src/block/qcow2/node.ts";
import { REQ_MAY_UNMAP, REQ_WRITE_COMPRESSED } from "../../../src/block/types.ts";
import { contentOf, createImage, openImage, Random, TINY_CACHES } from "./support.ts";

const KiB = 1024;

/** Fails one request, of which it may have done a part. */
class FailingNode extends BlockNode {
  readonly #below: MemoryNode;
  readonly #isAsynchronous: boolean;
  /** Requests until the one that fails. */
  #left: number;

  constructor(below: MemoryNode, failing: number, isAsynchronous: boolean) {
    super({
      nodeName: "failing",
      driver: "failing",
      sizeBytes: below.sizeBytes,
      isReadOnly: false,
    });
    this.#below = below;
    this.#left = failing;
    this.#isAsynchronous = isAsynchronous;
  }

  get hasFailed(): boolean {
    return this.#left < 0;
  }

  protected override doRead(offset: number, target: IoVector): void | Promise<void> {
    return this.#request(() => this.#below.read(offset, target));
  }

  protected override doWrite(offset: number, source: IoVector): void | Promise<void> {
    const half = Math.floor(source.length / 1024) * 512;
    return this.#request(
      () => this.#below.write(offset, source),
      () => this.#below.write(offset, source.slice(0, half)),
    );
  }

  protected override doWriteZeroes(offset: number, length: number, flags: number) {
    return this.#request(() => this.#below.writeZeroes(offset, length, flags));
  }

  protected override doDiscard(offset: number, length: number): void | Promise<void> {
    return this.#request(() => this.#below.discard(offset, length));
  }

  protected override doFlush(): void | Promise<void> {
    return this.#request(() => {});
  }

  protected override doResize(sizeBytes: number): void | Promise<void> {
    return this.#request(() => {
      const resized = this.#below.resize(sizeBytes);
      this.setSize(sizeBytes);
      return resized;
    });
  }

  #request(
    action: () => void | Promise<void>,
    part: () => void | Promise<void> = () => {},
  ): void | Promise<void> {
    if (this.#isAsynchronous) return Promise.resolve().then(() => this.#carryOut(action, part));
    return this.#carryOut(action, part);
  }

  #carryOut(action: () => void | Promise<void>, part: () => void | Promise<void>) {
    if (this.#left-- !== 0) return action();
    part();
    throw new BlockError("EIO", "the request that fails");
  }
}

/** What a disk should hold: of some bytes it is not known which of several values. */
class Model {
  bytes: Uint8Array;
  /** The other value that a byte may have, -1 for any; undefined where there is none. */
  readonly others = new Map<number, Set<number>>();

  constructor(sizeBytes: number) {
    this.bytes = new Uint8Array(sizeBytes);
  }

  done(at: number, values: Uint8Array): void {
    this.bytes.set(values, at);
    for (let index = at; index < at + values.length; index++) this.others.delete(index);
  }

  failed(at: number, values: Uint8Array): void {
    values.forEach((value, index) => {
      const known = this.others.get(at + index) ?? new Set();
      this.others.set(at + index, known.add(value));
    });
  }

  check(content: Uint8Array, what: string): void {
    assertEquals(content.length, this.bytes.length, what);
    content.forEach((value, at) => {
      if (value === this.bytes[at] || this.others.get(at)?.has(value)) return;
      throw new Error(`${what}: byte ${at} is ${value}, not ${this.bytes[at]}`);
    });
  }
}

const KINDS: Record<string, Omit<Qcow2CreateOptions, "sizeBytes">> = {
  "512 B clusters, 64 bit refcounts": { clusterBytes: 512, refcountBits: 64 },
  "subclusters": { clusterBytes: 16384, hasExtendedL2: true },
  "4 KiB clusters": { clusterBytes: 4096 },
};

for (const [name, options] of Object.entries(KINDS)) {
  for (const isAsynchronous of [false, true]) {
    const how = isAsynchronous ? "answers later" : "answers at once";
    Deno.test(`an image outlives one failed request to its file: ${name}, ${how}`, async () => {
      const step = Number(Deno.env.get("OVIS_QCOW2_FAULT_STEP") ?? 7);
      let hasFailed = true;
      for (let failing = 0; hasFailed; failing += step) {
        hasFailed = await failOnce(options, failing, isAsynchronous);
      }
    });
  }
}

/** Whether anything failed. */
async function failOnce(
  options: Omit<Qcow2CreateOptions, "sizeBytes">,
  failing: number,
  isAsynchronous: boolean,
): Promise<boolean> {
  const what = `request ${failing}`;
  const random = new Random(17);
  const file = await createImage({ ...options, sizeBytes: 200 * KiB });
  const faulty = new FailingNode(file, failing, isAsynchronous);
  const model = new Model(200 * KiB);
  let node: Qcow2Node;
  try {
    node = await openImage(faulty, TINY_CACHES);
  } catch (error) {
    assert(error instanceof BlockError, what);
    return true;
  }
  for (let count = 0; count < 40; count++) await change(node, model, random);
  // A read may be what fails; the next one doesn't.
  model.check(await contentOf(node).catch(() => contentOf(node)), what);
  let isClosed = true;
  try {
    await node.close();
  } catch (error) {
    assert(error instanceof BlockError, what);
    isClosed = false;
  }
  const { corruptions, leaks, checkErrors } = await checkQcow2(file);
  assertEquals([corruptions, checkErrors], [0, 0], what);
  if (!faulty.hasFailed) assertEquals(leaks, 0);
  if (isClosed) {
    const again = await openImage(file, { isReadOnly: true });
    model.check(await contentOf(again), `${what}, opened again`);
    await again.close();
  }
  return faulty.hasFailed;
}

async function change(node: Qcow2Node, model: Model, random: Random): Promise<void> {
  const size = model.bytes.length;
  const cluster = node.clusterSizeBytes ?? 1;
  const what = random.below(10);
  let at = random.below(size);
  let length = Math.min(1 + random.below(12 * KiB), size - at);
  const value = 1 + random.below(255);
  if (what === 7) {
    at -= at % cluster;
    length = Math.min(2 * cluster, size - at);
  }
  const values = new Uint8Array(length).fill(what === 0 || what === 1 ? 0 : value);
  const flags = random.pick([0, REQ_MAY_UNMAP]);
  const sizeBytes = size + 512 * random.below(300);
  try {
    if (what <= 1) await node.writeZeroes(at, length, flags);
    else if (what === 7) await node.write(at, IoVector.of(values), REQ_WRITE_COMPRESSED);
    else if (what === 8) await node.flush();
    else if (what === 9) {
      await node.resize(sizeBytes);
      const grown = new Uint8Array(sizeBytes);
      grown.set(model.bytes);
      model.bytes = grown;
    } else await node.write(at, IoVector.of(values));
    if (what < 8) model.done(at, values);
  } catch (error) {
    if (!(error instanceof BlockError) || !/the request that fails/.test(error.message)) {
      throw error;
    }
    if (what < 8) model.failed(at, values);
  }
  assertEquals(node.sizeBytes, model.bytes.length);
}
