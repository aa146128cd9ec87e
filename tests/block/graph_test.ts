import { assert, assertEquals } from "@std/assert";
import { BlockBackend } from "../../src/block/backend.ts";
import { MemoryNode } from "../../src/block/drivers/memory.ts";
import { RawNode } from "../../src/block/drivers/raw.ts";
import type { BlockEdge } from "../../src/block/edge.ts";
import { BlockGraph, checkNodeName } from "../../src/block/graph.ts";
import type { BlockNode } from "../../src/block/node.ts";
import { describeNode } from "../../src/block/node_info.ts";
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from "../../src/block/types.ts";
import { assertFails, filled, openDevice, readBytes, RecordingNode } from "./support.ts";

function memory(nodeName: string, sizeBytes = 1 << 20): MemoryNode {
  return new MemoryNode({ nodeName, sizeBytes });
}

/** A filter with an own snapshot view above it, as copy-before-write has one. */
class ViewNode extends RecordingNode {
  constructor(nodeName: string, filter: BlockNode) {
    super({ nodeName });
    this.addChild("file", "snapshot", filter);
  }
}

Deno.test("checkNodeName() follows QEMU's rules", async () => {
  for (const name of ["a", "disk0", "A-b.c_d", "x".repeat(31)]) checkNodeName(name);
  for (const name of ["", "0a", "-a", "_a", "#block000", "a b", "a/b", "ä", "a\n", "a\0"]) {
    await assertFails(() => checkNodeName(name), "EINVAL", `Invalid node-name: '${name}'`);
  }
  await assertFails(() => checkNodeName("x".repeat(32)), "EINVAL", "Node name too long");
});

Deno.test("BlockGraph.add() names nameless nodes and refuses taken and bad names", async () => {
  const graph = new BlockGraph();
  const first = graph.add(memory(""));
  const second = graph.add(memory(""));
  assertEquals([first.nodeName, second.nodeName], ["#block000", "#block001"]);
  assertEquals(graph.get("#block001"), second);
  graph.add(memory("src"));
  await assertFails(
    () => graph.add(memory("src")),
    "EINVAL",
    "Duplicate nodes with node-name='src'",
  );
  await assertFails(() => graph.add(memory("#block002")), "EINVAL", /^Invalid node-name/);
  await assertFails(() => graph.get("nope"), "ENOENT", "Node 'nope' not found");
  assertEquals(graph.find("nope"), undefined);
  assertEquals(graph.list().map((node) => node.nodeName), ["#block000", "#block001", "src"]);
});

Deno.test("BlockGraph.add() takes no node whose child is elsewhere", async () => {
  const graph = new BlockGraph();
  const foreign = new BlockGraph().add(memory("src"));
  for (const child of [memory("loose"), foreign]) {
    const top = new RawNode({ nodeName: "top", file: child });
    await assertFails(() => graph.add(top), "EINVAL", /is not part of this graph/);
    assertEquals(child.parents.size, 0);
  }
  assertEquals(graph.list(), []);
});

Deno.test("BlockGraph.remove() closes a node that nobody uses, and no other", async () => {
  const graph = new BlockGraph();
  const src = graph.add(new RecordingNode({ nodeName: "src" }));
  graph.add(new RawNode({ nodeName: "top", file: src }));
  const backend = openDevice(graph, "top");
  await assertFails(() => graph.remove("src"), "EBUSY", "Node src is in use");
  await assertFails(() => graph.remove("top"), "EBUSY", "Node top is in use");
  await backend.release();
  await graph.remove("top");
  assertEquals(src.calls, []);
  await graph.remove("src");
  assertEquals(src.calls, ["close"]);
  assertEquals(graph.list(), []);
  await assertFails(() => graph.remove("src"), "ENOENT", "Node 'src' not found");
});

Deno.test("BlockGraph.insertFilter() puts a filter in one user's way only", async () => {
  const graph = new BlockGraph();
  const src = graph.add(memory("src"));
  const device = openDevice(graph, "src");
  const reader = new BlockBackend(graph, {
    name: "reader",
    nodeName: "src",
    perm: PERM_CONSISTENT_READ,
    shared: PERM_ALL,
  });
  const filter = new RawNode({ nodeName: "filter", file: src });
  await graph.insertFilter(filter, device.root);
  assertEquals([device.node, reader.node], [filter, src]);
  const second = graph.add(new RawNode({ nodeName: "second", file: filter }));
  await graph.insertFilter(second, device.root);
  await device.write(10, filled(3, 7));
  assertEquals(await readBytes(reader, 9, 5), new Uint8Array([0, 7, 7, 7, 0]));

  await graph.removeFilter(filter);
  assertEquals(device.node, second);
  assertEquals(second.children.get("file")?.node, src);
  await graph.removeFilter(second);
  assertEquals([device.node, reader.node], [src, src]);
  assertEquals(graph.list(), [src]);
  assertEquals(await readBytes(device, 9, 5), new Uint8Array([0, 7, 7, 7, 0]));
});

Deno.test("BlockGraph.insertFilter() works between two nodes", async () => {
  const graph = new BlockGraph();
  const src = graph.add(memory("src"));
  const top = graph.add(new RawNode({ nodeName: "top", file: src }));
  openDevice(graph, "top");
  const edge = top.children.get("file") as BlockEdge;
  const filter = new RawNode({ nodeName: "filter", file: src });
  await graph.insertFilter(filter, edge);
  assertEquals(edge.node, filter);
  assertEquals([...src.parents].map((parent) => parent.parent), [filter]);
});

Deno.test("BlockGraph.insertFilter() leaves the graph as it was when it fails", async () => {
  const graph = new BlockGraph();
  const src = graph.add(memory("src"));
  const other = graph.add(memory("other"));
  const device = openDevice(graph, "src");
  const writer = new BlockBackend(graph, {
    name: "writer",
    nodeName: "other",
    perm: PERM_WRITE,
    shared: PERM_ALL,
  });
  const before = describeAll(graph);

  await assertFails(
    () => graph.insertFilter(new RawNode({ nodeName: "f", file: other }), device.root),
    "EINVAL",
    "Node 'f' does not filter 'src'",
  );
  await assertFails(
    () => graph.insertFilter(memory("f"), device.root),
    "EINVAL",
    "Node 'f' does not filter 'src'",
  );
  await assertFails(
    () => graph.insertFilter(new RawNode({ nodeName: "other", file: src }), device.root),
    "EINVAL",
    "Duplicate nodes with node-name='other'",
  );
  const readOnly = new RawNode({ nodeName: "f", file: src, isReadOnly: true });
  await assertFails(
    () => graph.insertFilter(readOnly, device.root),
    "EPERM",
    "Block node is read-only",
  );
  assertEquals(readOnly.graph, null);
  assertEquals(describeAll(graph), before);
  assertEquals([device.node, writer.node], [src, other]);
  await device.write(0, filled(1, 1));
});

Deno.test("BlockGraph.removeFilter() refuses while the filter's snapshot is in use", async () => {
  const graph = new BlockGraph();
  const src = graph.add(memory("src"));
  const device = openDevice(graph, "src");
  const filter = new RawNode({ nodeName: "cbw", file: src });
  await graph.insertFilter(filter, device.root);
  graph.add(new ViewNode("acc", filter));
  await assertFails(() => graph.removeFilter(filter), "EBUSY", "Node cbw is in use");
  assertEquals(device.node, filter);
  await assertFails(() => graph.removeFilter(src), "EINVAL", "Node 'src' is not a filter");
  await graph.remove("acc");
  await graph.removeFilter(filter);
  assertEquals(device.node, src);
  await assertFails(() => graph.removeFilter(filter), "EINVAL", /not part of this graph/);
});

Deno.test("BlockGraph.replaceChild() makes no loops and needs a drained section", async () => {
  const graph = new BlockGraph();
  const src = graph.add(memory("src"));
  const low = graph.add(new RawNode({ nodeName: "low", file: src }));
  const high = graph.add(new RawNode({ nodeName: "high", file: low }));
  const edge = low.children.get("file") as BlockEdge;
  await graph.drained([src], async () => {
    for (const node of [low, high]) {
      await assertFails(
        () => graph.replaceChild(edge, node),
        "EINVAL",
        `Making '${node.nodeName}' a file child of 'low' would create a cycle`,
      );
    }
    await assertFails(() => graph.replaceChild(edge, memory("x")), "EINVAL", /not part of/);
  });
  assertEquals(edge.node, src);
  const other = graph.add(memory("other", 4096));
  let wasRefused = false;
  try {
    graph.replaceChild(edge, other);
  } catch (error) {
    wasRefused = error instanceof Error && error.name === "AssertionError";
  }
  assert(wasRefused);
  await graph.drained([src], () => graph.replaceChild(edge, other));
  assertEquals([low.sizeBytes, high.sizeBytes], [4096, 4096]);
});

Deno.test("BlockGraph.close() closes parents first, and all in spite of failures", async () => {
  const order: string[] = [];
  class ClosingNode extends RecordingNode {
    constructor(nodeName: string, ...children: BlockNode[]) {
      super({ nodeName });
      children.forEach((child, index) => this.addChild(`file${index}`, "filtered", child));
    }
    protected override doClose(): void {
      order.push(this.nodeName);
      if (this.nodeName === "b") throw new Error("b is stuck");
    }
  }
  const graph = new BlockGraph();
  const a = graph.add(new ClosingNode("a"));
  const b = graph.add(new ClosingNode("b", a));
  const c = graph.add(new ClosingNode("c", a, b));
  const backend = new BlockBackend(graph, {
    name: "reader",
    nodeName: "c",
    perm: PERM_CONSISTENT_READ,
    shared: PERM_ALL,
  });
  await assertFails(() => graph.close(), "EBUSY", "Node c is in use");
  assertEquals(order, []);
  await backend.release();
  let failure = "";
  await graph.close().catch((error) => failure = error.message);
  assertEquals([failure, order], ["b is stuck", ["c", "b", "a"]]);
  assertEquals(graph.list(), []);
  assertEquals([a, b, c].map((node) => node.parents.size), [0, 0, 0]);
});

Deno.test("describeNode() shows a node, its users and its children", async () => {
  const graph = new BlockGraph();
  const src = graph.add(memory("src"));
  graph.add(new RawNode({ nodeName: "top", file: src, discard: "ignore" }));
  const device = openDevice(graph, "top");
  await device.write(0, filled(1, 1));
  assertEquals(describeNode(graph.get("top")), {
    nodeName: "top",
    driver: "raw",
    sizeBytes: 1 << 20,
    clusterSizeBytes: null,
    allocatedBytes: 65536,
    isReadOnly: false,
    discard: "ignore",
    users: ["block device 'disk0'"],
    children: [{
      name: "file",
      role: "filtered",
      nodeName: "src",
      permissions: "consistent read, write",
      sharedPermissions: "consistent read, write unchanged",
    }],
    details: { offset: 0 },
  });
  const { users, allocatedBytes, children } = describeNode(src);
  assertEquals({ users, allocatedBytes, children }, {
    users: ["node 'top'"],
    allocatedBytes: 65536,
    children: [],
  });
});

/** Everything that a failed change must not change. */
function describeAll(graph: BlockGraph): unknown {
  return graph.list().map((node) => describeNode(node));
}

Deno.test("BlockGraph.sweep() leaves the children of a node that is still closing", async () => {
  class SlowFormat extends RecordingNode {
    readonly closing = Promise.withResolvers<void>();
    constructor(readonly below: BlockNode) {
      super({ nodeName: "format" });
      this.addChild("file", "image", below);
    }
    protected override async doClose(): Promise<void> {
      await this.closing.promise;
      await this.below.flush();
    }
  }
  const graph = new BlockGraph();
  const file = graph.add(memory("file"));
  graph.adopt(file);
  const format = graph.add(new SlowFormat(file));
  const removed = graph.remove("format");
  await graph.sweep();
  assertEquals(graph.find("file"), file);
  format.closing.resolve();
  await removed;
  assertEquals(graph.list(), []);
});
