import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { BlockError } from "../../../src/block/errors.ts";
import { ClusterCounter } from "../../../src/block/qcow2/cluster_counter.ts";

const MiB = 1024 * 1024;

Deno.test("ClusterCounter counts what a map counts", () => {
  const index = fc.oneof(fc.nat(20), fc.integer({ min: 4090, max: 4100 }), fc.nat(2 ** 31));
  const count = fc.oneof(fc.nat(3), fc.constantFrom(255, 256, 65536, 0xffffffff));
  fc.assert(
    fc.property(fc.array(fc.tuple(index, count), { maxLength: 60 }), (additions) => {
      const counter = new ClusterCounter(8 * MiB);
      const model = new Map<number, number>();
      for (const [at, times] of additions) {
        counter.add(at, times);
        model.set(at, Math.min((model.get(at) ?? 0) + times, 0xffffffff));
      }
      const used = [...model].filter(([, times]) => times > 0).map(([at]) => at);
      used.sort((a, b) => a - b);
      assertEquals([...counter.used()], used);
      for (const [at, times] of model) assertEquals(counter.get(at), times);
      const walked: number[] = [];
      const end = (used.at(-1) ?? 0) + 1;
      for (let at = counter.nextUsed(0, end); at < end; at = counter.nextUsed(at + 1, end)) {
        walked.push(at);
      }
      assertEquals(walked, used);
      for (const at of used) counter.subtract(at, counter.get(at));
      assertEquals([...counter.used()], []);
    }),
    { seed: 1, numRuns: 100 },
  );
});

Deno.test("ClusterCounter takes memory only near what is counted, and no more than it may", () => {
  const counter = new ClusterCounter(MiB);
  assertThrows(
    () => {
      for (let page = 0;; page++) counter.add(page * 4096, 1);
    },
    BlockError,
    "too many clusters to be checked",
  );
  assertEquals([...counter.used()].length, 256);
});
