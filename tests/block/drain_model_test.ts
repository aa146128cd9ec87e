/**
 * Several users write to a slow disk at random while drained sections begin and end and filters
 * come and go. Nothing is lost, answered twice or reordered, and a section's action sees a quiet
 * disk.
 */
import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { BlockBackend } from "../../src/block/backend.ts";
import { RawNode } from "../../src/block/drivers/raw.ts";
import { ThrottleNode } from "../../src/block/filters/throttle.ts";
import { ThrottleGroup } from "../../src/block/filters/throttle_group.ts";
import { BlockGraph } from "../../src/block/graph.ts";
import type { IoVector } from "../../src/block/io_vector.ts";
import { BlockNode } from "../../src/block/node.ts";
import type { MaybePromise } from "../../src/block/types.ts";
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from "../../src/block/types.ts";
import { FakeClock, settleAll } from "../support/fake_clock.ts";
import { filled, readBytes } from "./support.ts";

const RUN_COUNT = 200;
const USER_COUNT = 3;
/** Bytes of a user's own area; each byte is one variable. */
const AREA_BYTES = 4;

type Step =
  | { kind: "write"; user: number; at: number; delayMs: number }
  | { kind: "drain"; node: number; lastsMs: number }
  | { kind: "insert"; user: number; isThrottle: boolean; lastsMs: number }
  | { kind: "advance"; ms: number };

const delay = fc.constantFrom(0, 0, 1, 5, 30);
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant("write" as const),
      user: fc.nat({ max: USER_COUNT - 1 }),
      at: fc.nat({ max: AREA_BYTES - 1 }),
      delayMs: delay,
    }),
  },
  fc.record({ kind: fc.constant("drain" as const), node: fc.nat({ max: 9 }), lastsMs: delay }),
  fc.record({
    kind: fc.constant("insert" as const),
    user: fc.nat({ max: USER_COUNT - 1 }),
    isThrottle: fc.boolean(),
    lastsMs: delay,
  }),
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant("advance" as const),
      ms: fc.constantFrom(0, 1, 7, 50),
    }),
  },
);

/** A disk that takes its time: a write is applied when its delay is over. */
class SlowDisk extends BlockNode {
  readonly bytes = new Uint8Array(USER_COUNT * AREA_BYTES);
  /** The value of each write, in the order in which writes began here. */
  readonly begun: number[] = [];
  readonly #clock: FakeClock;
  readonly #delays: Map<number, number>;
  busyCount = 0;

  constructor(clock: FakeClock, delays: Map<number, number>) {
    super({
      nodeName: "slow",
      driver: "slow",
      sizeBytes: USER_COUNT * AREA_BYTES,
      isReadOnly: false,
    });
    this.#clock = clock;
    this.#delays = delays;
  }

  protected override doRead(offset: number, target: IoVector): void {
    target.copyFrom(this.bytes.subarray(offset, offset + target.length));
  }

  protected override doWrite(offset: number, source: IoVector): MaybePromise<void> {
    const value = new Uint8Array(source.length);
    source.copyTo(value);
    const number = this.begun.length;
    this.begun.push(value[0] ?? 0);
    const delayMs = this.#delays.get(number) ?? 0;
    if (delayMs === 0) {
      this.bytes.set(value, offset);
      return;
    }
    this.busyCount++;
    return new Promise((resolve) => {
      this.#clock.after(delayMs, () => {
        this.bytes.set(value, offset);
        this.busyCount--;
        resolve();
      });
    });
  }
}

/** A user who writes counters into its area, never two at once into one byte. */
class User {
  readonly backend: BlockBackend;
  readonly issued: number[] = [];
  readonly expected = new Uint8Array(AREA_BYTES);
  /** The last write to each byte. */
  readonly #last: Promise<void>[] = new Array(AREA_BYTES).fill(Promise.resolve());
  readonly #base: number;
  answeredCount = 0;
  writeCount = 0;

  constructor(graph: BlockGraph, readonly number: number) {
    this.#base = number * AREA_BYTES;
    this.backend = new BlockBackend(graph, {
      name: `user${number}`,
      nodeName: "slow",
      perm: PERM_CONSISTENT_READ | PERM_WRITE,
      shared: PERM_ALL,
    });
  }

  write(at: number, value: number): void {
    this.writeCount++;
    this.expected[at] = value;
    this.#last[at] = this.#write(at, value, this.#last[at] ?? Promise.resolve());
  }

  /** A dependent write: it begins when the one before it was answered. */
  async #write(at: number, value: number, before: Promise<void>): Promise<void> {
    await before;
    this.issued.push(value);
    await this.backend.write(this.#base + at, filled(1, value));
    this.answeredCount++;
  }

  async finished(): Promise<Uint8Array> {
    await Promise.all(this.#last);
    return await readBytes(this.backend, this.#base, AREA_BYTES);
  }
}

/** One run of steps. */
class Run {
  readonly clock = new FakeClock();
  readonly graph = new BlockGraph();
  readonly #delays = new Map<number, number>();
  readonly disk = this.graph.add(new SlowDisk(this.clock, this.#delays));
  readonly users = Array.from({ length: USER_COUNT }, (_, number) => new User(this.graph, number));
  readonly #sections: Promise<void>[] = [];
  readonly #owner = new Map<number, number>();
  #writeCount = 0;
  sectionCount = 0;

  async step(step: Step): Promise<void> {
    switch (step.kind) {
      case "write": {
        // There are fewer steps than values of a byte: each value is written once.
        const value = this.#writeCount + 1;
        this.#delays.set(this.#writeCount++, step.delayMs);
        this.#owner.set(value, step.user);
        this.users[step.user]?.write(step.at, value);
        return;
      }
      case "drain": {
        const nodes = this.graph.list();
        const node = nodes[step.node % nodes.length] ?? this.disk;
        this.#sections.push(this.#drain(node, step.lastsMs));
        return;
      }
      case "insert":
        this.#sections.push(this.#filter(step));
        return;
      case "advance":
        await this.clock.advance(step.ms);
    }
  }

  async #drain(node: BlockNode, lastsMs: number): Promise<void> {
    await this.graph.drained([node], async () => {
      const above = this.users.filter(({ backend }) => isAbove(backend, node));
      for (const { backend } of above) assertEquals(backend.inFlightCount, 0);
      if (above.length === USER_COUNT) assertEquals(this.disk.busyCount, 0);
      const begunCount = this.disk.begun.length;
      await new Promise<void>((resolve) => this.clock.after(lastsMs, resolve));
      for (const { backend } of above) assertEquals(backend.inFlightCount, 0);
      for (const value of this.disk.begun.slice(begunCount)) {
        assert(
          !above.some(({ number }) => number === this.#owner.get(value)),
          `${value} slipped in`,
        );
      }
      this.sectionCount++;
    });
  }

  async #filter({ user, isThrottle, lastsMs }: Extract<Step, { kind: "insert" }>): Promise<void> {
    const backend = this.users[user]?.backend;
    if (backend === undefined) return;
    const file = backend.node;
    const group = new ThrottleGroup("g", { requestsWrite: { average: 100 } }, this.clock);
    const filter = isThrottle
      ? new ThrottleNode({ nodeName: "", file, group })
      : new RawNode({ nodeName: "", file });
    try {
      await this.graph.insertFilter(filter, backend.root);
    } catch (error) {
      // Another filter went in or out meanwhile.
      assert(error instanceof Error && /does not filter|not part of/.test(error.message));
      return;
    }
    await new Promise<void>((resolve) => this.clock.after(lastsMs, resolve));
    await this.graph.removeFilter(filter);
    this.sectionCount += 2;
  }

  /** Lets everything come to its end and checks it. */
  async end(): Promise<void> {
    await settleAll();
    for (let turn = 0; this.clock.timerCount > 0 && turn < 10_000; turn++) {
      await this.clock.advance(100);
    }
    await Promise.all(this.#sections);
    for (const user of this.users) {
      assertEquals(user.answeredCount, user.writeCount, "writes were lost");
      assertEquals(await user.finished(), user.expected);
      const begun = this.disk.begun.filter((value) => user.issued.includes(value));
      assertEquals(begun, user.issued, "writes were reordered");
      assertEquals([user.backend.queuedCount, user.backend.inFlightCount], [0, 0]);
      assertEquals(user.backend.statistics.write.count, user.writeCount);
      await user.backend.release();
    }
    assertEquals(this.graph.list(), [this.disk]);
    await this.graph.close();
  }
}

function isAbove(backend: BlockBackend, node: BlockNode): boolean {
  for (let at: BlockNode | undefined = backend.node; at !== undefined;) {
    if (at === node) return true;
    at = [...at.children.values()][0]?.node;
  }
  return false;
}

Deno.test("Drained sections and filters that come and go lose and reorder no request", async () => {
  let sectionCount = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { minLength: 30, maxLength: 200, size: "max" }),
      async (steps) => {
        const run = new Run();
        for (const step of steps) await run.step(step);
        await run.end();
        sectionCount += run.sectionCount;
      },
    ),
    { numRuns: RUN_COUNT },
  );
  assert(sectionCount > RUN_COUNT, `only ${sectionCount} sections`);
});
