import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { ThrottleNode } from "../../src/block/filters/throttle.ts";
import { ThrottleGroup, type ThrottleLimits } from "../../src/block/filters/throttle_group.ts";
import { BlockGraph } from "../../src/block/graph.ts";
import { describeNode } from "../../src/block/node_info.ts";
import { FakeClock, settleAll } from "../support/fake_clock.ts";
import { assertFails, filled, now, openDevice, RecordingNode } from "./support.ts";

const KiB = 1024;

/** A throttled disk whose starts are written down with their time. */
function throttled(limits: ThrottleLimits, nodeCount = 1) {
  const clock = new FakeClock();
  const graph = new BlockGraph();
  const group = new ThrottleGroup("g0", limits, clock);
  const starts: string[] = [];
  class TimedNode extends RecordingNode {
    protected override doRead(offset: number): void {
      starts.push(`${clock.now()} ${this.nodeName} read ${offset}`);
    }
    protected override doWrite(offset: number): void {
      starts.push(`${clock.now()} ${this.nodeName} write ${offset}`);
    }
  }
  const nodes = Array.from({ length: nodeCount }, (_, index) => {
    const file = graph.add(new TimedNode({ nodeName: `d${index}` }));
    return graph.add(new ThrottleNode({ nodeName: `t${index}`, file, group }));
  });
  return { clock, graph, group, starts, nodes, node: nodes[0] as ThrottleNode };
}

/** When each of `count` reads of one byte began. */
async function readTimes(limits: ThrottleLimits, count: number, bytes = 1): Promise<number[]> {
  const { clock, node, starts } = throttled(limits);
  const reads = Array.from({ length: count }, () => node.read(0, filled(bytes, 0)));
  for (let turn = 0; starts.length < count && turn < 1000; turn++) await clock.advance(1000);
  await Promise.all(reads);
  assertEquals(clock.timerCount, 0);
  return starts.map((start) => Number(start.split(" ")[0]));
}

Deno.test("ThrottleNode lets requests pass within the call while its limits allow", () => {
  const { node, starts, clock } = throttled({ requestsTotal: { average: 1000 } });
  for (let i = 0; i < 100; i++) now(node.read(i, filled(1, 0)));
  assertEquals([starts.length, clock.timerCount], [100, 0]);
});

Deno.test("ThrottleNode without limits never waits", () => {
  const { node, starts } = throttled({});
  for (let i = 0; i < 1000; i++) now(node.write(i, filled(1, 0)));
  assertEquals(starts.length, 1000);
});

Deno.test("ThrottleNode keeps the average of requests and of bytes", async () => {
  // A tenth of a second's worth at once, then one by one.
  const times = await readTimes({ requestsRead: { average: 10 } }, 12);
  assertEquals(times.slice(0, 5), [0, 0, 100, 200, 300]);
  assertEquals(times.at(-1), 1000);
  const bytes = await readTimes({ bytesTotal: { average: 100 * KiB } }, 11, 100 * KiB);
  assertEquals(bytes.slice(0, 3), [0, 900, 1900]);
  assertEquals(bytes.at(-1), 9900);
});

Deno.test("ThrottleNode allows bursts, for as long as they are allowed", async () => {
  const short = await readTimes({ requestsTotal: { average: 10, burst: 50 } }, 55);
  assertEquals(short.filter((time) => time === 0).length, 51);
  assertEquals(short.slice(51), [100, 200, 300, 400]);
  // 100 a second for 2 seconds, limited to bits of a tenth; then 10 a second.
  const long = await readTimes({
    requestsTotal: { average: 10, burst: 100, burstSeconds: 2 },
  }, 300);
  assertEquals(long.filter((time) => time === 0).length, 11);
  const within = (ms: number) => long.filter((time) => time <= ms).length;
  assert(within(1000) >= 105 && within(1000) <= 112, `${within(1000)} in the first second`);
  const late = within(6000) - within(5000);
  assert(late >= 9 && late <= 11, `${late} in a later second`);
});

Deno.test("ThrottleNode counts large requests as several where asked to", async () => {
  const limits = { requestsTotal: { average: 10 }, requestBytes: 4 * KiB };
  assertEquals(await readTimes(limits, 3, 40 * KiB), [0, 900, 1900]);
  assertEquals((await readTimes(limits, 3, 4 * KiB)).at(-1), 100);
});

Deno.test("ThrottleNode limits reads and writes apart, zeroes and discards as writes", async () => {
  const { node, starts, clock } = throttled({ requestsWrite: { average: 10 } });
  const writes = [0, 1, 2].map((at) => node.write(at, filled(1, 0)));
  const zeroes = node.writeZeroes(3, 1);
  const discard = node.discard(4, 1);
  for (let i = 0; i < 50; i++) now(node.read(i, filled(1, 0)));
  now(node.flush());
  now(node.blockStatus(0, 1));
  assertEquals(node.queuedCount, 3);
  assertEquals(describeNode(node).details, { throttleGroup: "g0", queuedCount: 3 });
  await clock.advance(1000);
  await Promise.all([...writes, zeroes, discard]);
  assertEquals(starts.filter((start) => start.includes("write")), [
    "0 d0 write 0",
    "0 d0 write 1",
    "100 d0 write 2",
    "200 d0 write 3",
  ]);
  assertEquals(node.queuedCount, 0);
});

Deno.test("ThrottleNode starts requests of one direction in their order", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(
        fc.record({ pauseMs: fc.nat({ max: 300 }), bytes: fc.integer({ min: 1, max: 5000 }) }),
        {
          minLength: 5,
          maxLength: 40,
        },
      ),
      async (requests) => {
        const { node, starts, clock } = throttled({
          requestsTotal: { average: 20, burst: 40, burstSeconds: 2 },
          bytesTotal: { average: 10_000 },
        });
        const all: unknown[] = [];
        for (const [at, { pauseMs, bytes }] of requests.entries()) {
          all.push(node.write(at, filled(bytes, 0)));
          await clock.advance(pauseMs);
        }
        for (let turn = 0; starts.length < requests.length && turn < 1000; turn++) {
          await clock.advance(1000);
        }
        await Promise.all(all);
        assertEquals(starts.map((start) => Number(start.split(" ")[3])), [...requests.keys()]);
        // In any second no more than the burst's and the average's worth.
        const times = starts.map((start) => Number(start.split(" ")[0]));
        for (const start of times) {
          const count = times.filter((time) => time >= start && time < start + 1000).length;
          assert(count <= 40 * 1.1 + 2, `${count} requests in a second`);
        }
      },
    ),
    { numRuns: 50 },
  );
});

Deno.test("Members of a throttle group share its limits and take turns", async () => {
  const { nodes, starts, clock } = throttled({ requestsTotal: { average: 10 } }, 3);
  const reads = nodes.flatMap((node) => [0, 1, 2].map((at) => node.read(at, filled(1, 0))));
  await clock.advance(2000);
  await Promise.all(reads);
  assertEquals(starts.map((start) => start.replace(/ read/, "")), [
    "0 d0 0",
    "0 d0 1",
    "100 d0 2",
    "200 d1 0",
    "300 d2 0",
    "400 d1 1",
    "500 d2 1",
    "600 d1 2",
    "700 d2 2",
  ]);
});

Deno.test("A drained section lets a throttled queue go at once, in order", async () => {
  const { graph, node, starts, clock } = throttled({ requestsTotal: { average: 1 } });
  const device = openDevice(graph, "t0");
  const writes = [0, 1, 2, 3].map((at) => device.write(at, filled(1, 0)));
  assertEquals([device.inFlightCount, node.queuedCount], [3, 3]);
  // Also where the drained node is below the throttle.
  await graph.drained([graph.get("d0")], () => {
    assertEquals([device.inFlightCount, node.queuedCount, clock.timerCount], [0, 0, 0]);
  });
  await Promise.all(writes);
  assertEquals(starts, [0, 1, 2, 3].map((at) => `0 d0 write ${at}`));
  // They count all the same: the next one pays for them.
  const next = device.write(4, filled(1, 0));
  await clock.advance(3800);
  assertEquals(starts.length, 4);
  await clock.advance(200);
  await next;
  assertEquals(starts.length, 5);
});

Deno.test("A throttled request that fails fails alone", async () => {
  const { node, clock } = throttled({ requestsTotal: { average: 10 } });
  now(node.read(0, filled(1, 0)));
  now(node.read(0, filled(1, 0)));
  const file = [...node.children.values()][0]?.node;
  const bad = node.write(0, filled(1, 0), 0);
  const good = node.read(0, filled(1, 0));
  Object.assign(file as object, {
    doWrite: () => {
      throw new Error("broken");
    },
  });
  const outcome = Promise.resolve(bad).then(() => "ok", (error) => error.message);
  await clock.advance(1000);
  assertEquals(await outcome, "broken");
  await good;
});

Deno.test("A throttle node leaves its group when it closes", async () => {
  const { graph, group, nodes, starts, clock } = throttled({ requestsTotal: { average: 10 } }, 2);
  await graph.remove("t0");
  const reads = [0, 1, 2].map((at) => nodes[1]?.read(at, filled(1, 0)));
  await clock.advance(1000);
  await Promise.all(reads);
  assertEquals(starts.length, 3);
  const file = graph.get("d0");
  const again = graph.add(new ThrottleNode({ nodeName: "t0", file, group }));
  now(again.read(0, filled(1, 0)));
  await settleAll();
});

Deno.test("ThrottleGroup refuses limits that make no sense", async () => {
  const bad: [ThrottleLimits, RegExp][] = [
    [{ bytesTotal: { average: 0 } }, /rates must be between 1 and/],
    [{ bytesTotal: { average: -1 } }, /rates/],
    [{ bytesTotal: { average: NaN } }, /rates/],
    [{ bytesTotal: { average: 1e16 } }, /rates/],
    [{ bytesTotal: { average: 1, burst: 1e16 } }, /rates/],
    [{ bytesTotal: { average: 10, burst: 5 } }, /lower than the average/],
    [{ bytesTotal: { average: 10, burst: NaN } }, /rates/],
    [{ bytesTotal: { average: 10, burstSeconds: 2 } }, /requires a burst rate/],
    [{ bytesTotal: { average: 10, burst: 20, burstSeconds: 0.5 } }, /at least one second/],
    [{ bytesTotal: { average: 10, burst: 1e15, burstSeconds: 2 } }, /too long/],
    [{ bytesTotal: { average: 1 }, bytesRead: { average: 1 } }, /at the same time/],
    [{ requestsTotal: { average: 1 }, requestsWrite: { average: 1 } }, /at the same time/],
    [{ requestBytes: 0 }, /request size/],
  ];
  for (const [limits, message] of bad) {
    await assertFails(() => new ThrottleGroup("g", limits, new FakeClock()), "EINVAL", message);
  }
});
