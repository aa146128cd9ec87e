/**
 * Which part of a run is copied how, by what the disk says of it in pieces of 4 KiB.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { CopyBeforeWriteNode } from "../../src/block/filters/copy_before_write.ts";
import { BlockGraph } from "../../src/block/graph.ts";
import { IoVector } from "../../src/block/io_vector.ts";
import { compileKernels, Kernels } from "../../src/wasm/kernels.ts";
import { CLUSTER, describeBytes } from "../support/fleecing_rig.ts";
import { Random, Scheduler, SimulatedNode } from "../support/simulation.ts";
import { now } from "./support.ts";

const module = await compileKernels();
const SIZE = 8 * CLUSTER + 3000;

/** Data from `offset` on; the filter overwrites all of it; how the copies were made. */
async function copyAll(data: readonly (readonly [number, number])[]) {
  const graph = new BlockGraph();
  const kernels = new Kernels(module);
  const scheduler = new Scheduler(new Random(1));
  const node = (nodeName: string, fill: number) =>
    graph.add(
      new SimulatedNode({
        nodeName,
        sizeBytes: SIZE,
        scheduler,
        waitPercent: 0,
        fill,
        zeroesDiscards: true,
        splitPercent: 0,
      }),
    );
  const [file, target] = [node("disk", 0), node("temp", 0xa5)];
  for (const [offset, length] of data) file.bytes.fill(0x11, offset, offset + length);
  const before = describeBytes(file.bytes);
  const filter = graph.add(new CopyBeforeWriteNode({ nodeName: "cbw", file, target, kernels }));
  now(filter.write(0, IoVector.of(new Uint8Array(SIZE).fill(0x22))));
  const old = new Uint8Array(SIZE);
  now(filter.snapshotRead(0, IoVector.of(old)));
  assertEquals(describeBytes(old), before);
  assertEquals(describeBytes(target.bytes), before);
  const { copiedBytes, clustersDone, scratchUsedBytes } = filter.info();
  assertEquals(clustersDone, 9);
  assertEquals(scratchUsedBytes, copiedBytes);
  await graph.close();
  assertEquals(kernels.usedBytes, 0);
  return copiedBytes;
}

Deno.test("a cluster is copied as zeroes only where all of it is zero", async () => {
  assertEquals(await copyAll([]), 0);
  assertEquals(await copyAll([[0, SIZE]]), SIZE);
  // After clusters of zeroes, one that begins with zeroes.
  assertEquals(await copyAll([[3 * CLUSTER + 8192, 4096]]), CLUSTER);
  // After data, one that ends with zeroes; then zeroes up to the disk's end.
  assertEquals(await copyAll([[0, 4096], [CLUSTER, CLUSTER + 4096]]), 3 * CLUSTER);
  // The last byte of the short last cluster.
  assertEquals(await copyAll([[SIZE - 1, 1]]), 3000);
  assertEquals(await copyAll([[2 * CLUSTER - 1, 2], [6 * CLUSTER, CLUSTER]]), 3 * CLUSTER);
});
