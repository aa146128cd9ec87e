import { assertEquals } from "@std/assert";
import { BlockBackend } from "../../src/block/backend.ts";
import { MemoryNode } from "../../src/block/drivers/memory.ts";
import { RawNode } from "../../src/block/drivers/raw.ts";
import { BlockError } from "../../src/block/errors.ts";
import { FaultInjectionNode } from "../../src/block/filters/fault_injection.ts";
import { BlockGraph } from "../../src/block/graph.ts";
import {
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE_UNCHANGED,
  REQ_WRITE_UNCHANGED,
} from "../../src/block/types.ts";
import { settleAll } from "../support/fake_clock.ts";
import { assertFails, filled, now, openDevice, readBytes, RecordingNode } from "./support.ts";

/** A disk whose requests wait for `gate`, and a device on it. */
function gatedDisk() {
  const graph = new BlockGraph();
  const gate = Promise.withResolvers<void>();
  const memory = graph.add(new MemoryNode({ nodeName: "mem", sizeBytes: 1 << 20 }));
  const faults = graph.add(
    new FaultInjectionNode({
      nodeName: "src",
      file: memory,
      rules: [{ operations: ["read", "write", "flush"], gate: () => gate.promise }],
    }),
  );
  return { graph, gate, memory, faults, device: openDevice(graph, "src") };
}

Deno.test("BlockBackend passes requests on within the call where the node answers so", () => {
  const graph = new BlockGraph();
  graph.add(new MemoryNode({ nodeName: "src", sizeBytes: 4096 }));
  const device = openDevice(graph, "src");
  now(device.write(0, filled(10, 1)));
  now(device.read(0, filled(10, 0)));
  now(device.writeZeroes(0, 5));
  now(device.discard(0, 5));
  now(device.flush());
  now(device.blockStatus(0, 10));
  assertEquals(device.inFlightCount, 0);
  assertEquals(device.statistics, {
    read: { count: 1, bytes: 10, failedCount: 0 },
    write: { count: 1, bytes: 10, failedCount: 0 },
    writeZeroes: { count: 1, bytes: 5, failedCount: 0 },
    discard: { count: 1, bytes: 5, failedCount: 0 },
    flush: { count: 1, bytes: 0, failedCount: 0 },
  });
});

Deno.test("BlockBackend counts failures, and what fails is no longer in flight", async () => {
  const { device, gate, faults } = gatedDisk();
  await assertFails(() => device.read(1 << 20, filled(1, 0)), "EINVAL", /outside/);
  await assertFails(() => device.writeZeroes(-1, 1), "EINVAL", /outside/);
  faults.addRule({ operations: ["discard"], error: "EIO" });
  await assertFails(() => device.discard(0, 1), "EIO", /Injected/);
  const read = device.read(0, filled(1, 0));
  assertEquals(device.inFlightCount, 1);
  gate.reject(new BlockError("ETIMEDOUT", "gate"));
  await assertFails(() => read, "ETIMEDOUT", "gate");
  assertEquals(device.inFlightCount, 0);
  const { statistics } = device;
  assertEquals([
    statistics.read.failedCount,
    statistics.writeZeroes.failedCount,
    statistics.discard.failedCount,
  ], [2, 1, 1]);
  assertEquals(statistics.read.count, 0);
});

Deno.test("BlockBackend does only what its permissions allow", async () => {
  const graph = new BlockGraph();
  const node = graph.add(new RecordingNode({ nodeName: "src" }));
  const reader = new BlockBackend(graph, {
    name: "reader",
    nodeName: "src",
    perm: PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED,
    shared: PERM_ALL,
  });
  const refused = "block device 'reader' does not hold permission 'write' on node 'src'";
  await assertFails(() => reader.write(0, filled(1, 0)), "EPERM", refused);
  await assertFails(() => reader.writeZeroes(0, 1), "EPERM", refused);
  await assertFails(() => reader.discard(0, 1), "EPERM", refused);
  await assertFails(() => reader.resize(5), "EPERM", /'resize'/);
  now(reader.read(0, filled(1, 0)));
  now(reader.write(0, filled(1, 0), REQ_WRITE_UNCHANGED));
  assertEquals(node.calls, ["read 0 1", "write 0 1 8"]);
});

Deno.test("BlockBackend.resize() needs PERM_RESIZE", () => {
  const graph = new BlockGraph();
  graph.add(new MemoryNode({ nodeName: "src", sizeBytes: 4096 }));
  const owner = new BlockBackend(graph, {
    name: "",
    nodeName: "src",
    perm: PERM_RESIZE,
    shared: PERM_ALL,
  });
  now(owner.resize(8192));
  assertEquals(owner.sizeBytes, 8192);
});

Deno.test("A drained section starts when nothing is in flight and holds what comes", async () => {
  const { graph, gate, device, memory } = gatedDisk();
  const log: string[] = [];
  const writes: Promise<unknown>[] = [];
  const write = (value: number): void => {
    const written = Promise.resolve(device.write(value, filled(1, value)));
    writes.push(written.then(() => log.push(`write ${value}`)));
  };
  write(1);
  const section = graph.drained([memory], async () => {
    log.push("drained");
    assertEquals(device.inFlightCount, 0);
    write(3);
    await settleAll();
    assertEquals(device.queuedCount, 2);
    assertEquals(await readBytes(memory, 0, 5), new Uint8Array([0, 1, 0, 0, 0]));
    log.push("end");
  });
  write(2);
  await settleAll();
  assertEquals([log, device.inFlightCount, device.queuedCount], [[], 1, 1]);
  gate.resolve();
  await section;
  await Promise.all(writes);
  assertEquals(log, ["write 1", "drained", "end", "write 2", "write 3"]);
  assertEquals(await readBytes(memory, 0, 5), new Uint8Array([0, 1, 2, 3, 0]));
});

Deno.test("A drained section's end starts the queue in order", async () => {
  const { graph, gate, device, memory } = gatedDisk();
  gate.resolve();
  const order: number[] = [];
  const writes: Promise<unknown>[] = [];
  await graph.drained([memory], () => {
    for (let value = 1; value <= 20; value++) {
      const write = Promise.resolve(device.write(0, filled(1, value)));
      writes.push(write.then(() => order.push(value)));
    }
    assertEquals(device.queuedCount, 20);
  });
  await Promise.all(writes);
  assertEquals(order, Array.from({ length: 20 }, (_, index) => index + 1));
  assertEquals(await readBytes(device, 0, 1), new Uint8Array([20]));
});

Deno.test("Drained sections nest and overlap; the last one's end lets go", async () => {
  const { graph, gate, device, memory, faults } = gatedDisk();
  gate.resolve();
  const inner = Promise.withResolvers<void>();
  const outer = Promise.withResolvers<void>();
  const log: string[] = [];
  const outerSection = graph.drained([faults], async () => {
    await graph.drained([memory], () => log.push("nested"));
    log.push("outer");
    await outer.promise;
  });
  const overlapping = graph.drained([memory], () => inner.promise);
  await settleAll();
  const read = readBytes(device, 0, 1).then(() => log.push("read"));
  outer.resolve();
  await outerSection;
  await settleAll();
  assertEquals(log, ["nested", "outer"]);
  assertEquals(device.queuedCount, 1);
  inner.resolve();
  await overlapping;
  await read;
  assertEquals(log, ["nested", "outer", "read"]);
});

Deno.test("A drained section covers what is above its nodes, and nothing else", async () => {
  const graph = new BlockGraph();
  const a = graph.add(new MemoryNode({ nodeName: "a", sizeBytes: 4096 }));
  graph.add(new MemoryNode({ nodeName: "b", sizeBytes: 4096 }));
  const aTop = graph.add(new RawNode({ nodeName: "a-top", file: a }));
  const deviceA = openDevice(graph, "a-top", "disk-a");
  const deviceB = openDevice(graph, "b", "disk-b");
  await graph.drained([a], () => {
    now(deviceB.write(0, filled(1, 1)));
    deviceA.write(0, filled(1, 1));
    assertEquals(deviceA.queuedCount, 1);
  });
  await graph.drained([aTop], () => now(deviceB.flush()));
  // A reader that comes while its node is drained is held as well.
  let read: unknown;
  await graph.drained([a], () => {
    const late = new BlockBackend(graph, {
      name: "late",
      nodeName: "a",
      perm: PERM_CONSISTENT_READ,
      shared: PERM_ALL,
    });
    read = readBytes(late, 0, 1);
    assertEquals(late.queuedCount, 1);
  });
  assertEquals(await read, new Uint8Array([1]));
});

Deno.test("A failed action ends its drained section", async () => {
  const { graph, gate, device, memory } = gatedDisk();
  gate.resolve();
  await assertFails(
    () =>
      graph.drained([memory], () => {
        throw new BlockError("EIO", "action");
      }),
    "EIO",
    "action",
  );
  await device.write(0, filled(1, 1));
  assertEquals(device.queuedCount, 0);
});

Deno.test("A drained section waits for the background work of its nodes", async () => {
  const work = Promise.withResolvers<void>();
  class BackgroundNode extends RecordingNode {
    start(): void {
      this.trackBackground(work.promise);
    }
  }
  const graph = new BlockGraph();
  const node = graph.add(new BackgroundNode({ nodeName: "src" }));
  node.start();
  let isDrained = false;
  const section = graph.drained([node], () => {
    isDrained = true;
  });
  await settleAll();
  assertEquals(isDrained, false);
  work.resolve();
  await section;
  assertEquals(isDrained, true);
});

Deno.test("BlockBackend.release() fails the queue and waits for the rest", async () => {
  const { graph, gate, device, memory, faults } = gatedDisk();
  const inFlight = device.write(0, filled(1, 1));
  const section = graph.drained([memory], () => {});
  const queued = device.write(0, filled(1, 2));
  const released = device.release();
  await assertFails(() => queued, "ESHUTDOWN", "block device 'disk0' was released");
  await assertFails(() => device.read(0, filled(1, 0)), "ESHUTDOWN", /released/);
  assertEquals(faults.parents.size, 1);
  gate.resolve();
  await Promise.all([inFlight, section, released, device.release()]);
  assertEquals(faults.parents.size, 0);
  await assertFails(() => device.flush(), "ESHUTDOWN", /released/);
  assertEquals(await readBytes(memory, 0, 1), new Uint8Array([1]));
  openDevice(graph, "src", "next");
});
