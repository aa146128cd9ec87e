/**
 * What tests of the qcow2 driver share: images in memory, files whose requests overtake each other,
 * qemu-img beside.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { setImmediate } from "node:timers";
import { assertEquals } from "@std/assert";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { IoVector } from "../../../src/block/io_vector.ts";
import { BlockNode } from "../../../src/block/node.ts";
import { createQcow2, type Qcow2CreateOptions } from "../../../src/block/qcow2/create.ts";
import { Qcow2Node, type Qcow2NodeOptions } from "../../../src/block/qcow2/node.ts";
import type { BlockStatus, MaybePromise } from "../../../src/block/types.ts";

/** Pseudo-random numbers of a seed. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** 0 to `end - 1`. */
  below(end: number): number {
    // mulberry32
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(this.#state ^ this.#state >>> 15, this.#state | 1);
    mixed ^= mixed + Math.imul(mixed ^ mixed >>> 7, mixed | 61);
    return Math.floor(((mixed ^ mixed >>> 14) >>> 0) / 2 ** 32 * end);
  }

  pick<T>(values: readonly T[]): T {
    const value = values[this.below(values.length)];
    if (value === undefined) throw new Error("nothing to pick from");
    return value;
  }
}

/** The sizes of caches that hold next to nothing. */
export const TINY_CACHES = { l2CacheBytes: 1, refcountCacheBytes: 1 };

/** An image in memory. */
export async function createImage(options: Qcow2CreateOptions): Promise<MemoryNode> {
  const file = new MemoryNode({ nodeName: "file", sizeBytes: 0 });
  await createQcow2(file, options);
  return file;
}

/** Opens an image. */
export async function openImage(
  file: BlockNode,
  options: Partial<Qcow2NodeOptions> = {},
): Promise<Qcow2Node> {
  return await Qcow2Node.open({ nodeName: "q", file, isReadOnly: false, ...options });
}

/** All bytes of a node. */
export async function contentOf(node: BlockNode): Promise<Uint8Array> {
  const bytes = new Uint8Array(node.sizeBytes);
  await node.read(0, IoVector.of(bytes));
  return bytes;
}

/** assertEquals for large arrays. */
export function assertSameBytes(actual: Uint8Array, expected: Uint8Array, what: string): void {
  assertEquals(actual.length, expected.length, `${what}: length`);
  if (Buffer.compare(actual, expected) === 0) return;
  for (let at = 0; at < actual.length; at++) {
    if (actual[at] === expected[at]) continue;
    throw new Error(
      `${what}: byte ${at} (0x${at.toString(16)}) is ${actual[at]}, ` +
        `not ${expected[at]}`,
    );
  }
}

/**
 * A node over another one whose requests wait and are then carried out one by one, in an order that
 * a seed decides, each as a whole at the moment when it is answered.
 */
export class ShufflingNode extends BlockNode {
  readonly #below: BlockNode;
  readonly #random: Random;
  readonly #waiting: (() => void)[] = [];
  #isRunning = false;
  /** The most requests that ever waited at the same time. */
  waitingMax = 0;

  constructor(below: BlockNode, random: Random) {
    super({
      nodeName: "shuffle",
      driver: "shuffle",
      sizeBytes: below.sizeBytes,
      isReadOnly: below.isReadOnly,
    });
    this.#below = below;
    this.#random = random;
  }

  protected override doRead(offset: number, target: IoVector): Promise<void> {
    return this.#later(() => this.#below.read(offset, target));
  }

  protected override doWrite(offset: number, source: IoVector): Promise<void> {
    return this.#later(() => this.#below.write(offset, source));
  }

  protected override doWriteZeroes(offset: number, length: number, flags: number): Promise<void> {
    return this.#later(() => this.#below.writeZeroes(offset, length, flags));
  }

  protected override doDiscard(offset: number, length: number): Promise<void> {
    return this.#later(() => this.#below.discard(offset, length));
  }

  protected override doFlush(): Promise<void> {
    return this.#later(() => this.#below.flush());
  }

  protected override doBlockStatus(offset: number, length: number): Promise<BlockStatus> {
    return this.#later(() => this.#below.blockStatus(offset, length));
  }

  protected override doResize(sizeBytes: number): Promise<void> {
    return this.#later(async () => {
      await this.#below.resize(sizeBytes);
      this.setSize(sizeBytes);
    });
  }

  #later<T>(request: () => MaybePromise<T>): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    this.#waiting.push(() => {
      Promise.try(request).then(resolve, reject);
    });
    this.waitingMax = Math.max(this.waitingMax, this.#waiting.length);
    if (!this.#isRunning) this.#run();
    return promise;
  }

  async #run(): Promise<void> {
    this.#isRunning = true;
    while (this.#waiting.length > 0) {
      // As many turns as it takes that whoever can go on has asked for something.
      await new Promise((resolve) => setImmediate(resolve));
      const [request] = this.#waiting.splice(this.#random.below(this.#waiting.length), 1);
      request?.();
    }
    this.#isRunning = false;
  }
}

/** A program's exit status and output. */
export async function run(
  program: string,
  ...args: string[]
): Promise<{ code: number; output: string }> {
  const { code, stdout, stderr } = await new Deno.Command(program, {
    args,
    stdout: "piped",
    stderr: "piped",
  }).output();
  const text = new TextDecoder();
  return { code, output: text.decode(stdout) + text.decode(stderr) };
}

/** Runs qemu-img, which must succeed. */
export async function qemuImg(...args: string[]): Promise<string> {
  const { code, output } = await run("qemu-img", ...args);
  assertEquals(code, 0, `qemu-img ${args.join(" ")}: ${output}`);
  return output;
}

/** Runs an action in a new folder, which goes afterwards. */
export async function withFolder(action: (folder: string) => Promise<void>): Promise<void> {
  const folder = Deno.makeTempDirSync({ prefix: "qcow2-" });
  try {
    await action(folder);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

/** Writes a node's bytes to a file. */
export async function saveTo(node: BlockNode, path: string): Promise<void> {
  Deno.writeFileSync(path, await contentOf(node));
}
