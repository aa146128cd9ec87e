import { assertEquals } from "@std/assert";
import { BlockBackend } from "../../src/block/backend.ts";
import { MemoryNode } from "../../src/block/drivers/memory.ts";
import { RawNode } from "../../src/block/drivers/raw.ts";
import type { BlockEdge, ChildRole } from "../../src/block/edge.ts";
import { BlockGraph } from "../../src/block/graph.ts";
import type { BlockNode } from "../../src/block/node.ts";
import {
  cumulativePermissions,
  permissionNames,
  type Permissions,
} from "../../src/block/permissions.ts";
import {
  PERM_ALL,
  PERM_CONSISTENT_READ as READ,
  PERM_RESIZE as RESIZE,
  PERM_WRITE as WRITE,
  PERM_WRITE_UNCHANGED as UNCHANGED,
} from "../../src/block/types.ts";
import { assertFails, DEVICE_PERMISSIONS, openDevice, RecordingNode } from "./support.ts";

/** A node with one child in any role. */
class ParentNode extends RecordingNode {
  readonly edge: BlockEdge;

  constructor(nodeName: string, role: ChildRole, child: BlockNode, isReadOnly = false) {
    super({ nodeName, isReadOnly });
    this.edge = this.addChild(role === "cow" ? "backing" : "file", role, child);
  }
}

function memory(nodeName: string, isReadOnly = false): MemoryNode {
  return new MemoryNode({ nodeName, sizeBytes: 1 << 20, isReadOnly });
}

function permissionsOf(edge: BlockEdge): Permissions {
  return { perm: edge.perm, shared: edge.shared };
}

Deno.test("permissionNames() names them in QEMU's words and order", () => {
  assertEquals(permissionNames(0), "");
  assertEquals(permissionNames(WRITE), "write");
  assertEquals(permissionNames(PERM_ALL), "consistent read, write, write unchanged, resize");
});

Deno.test("A node takes on its child what QEMU's rules say, for every role", () => {
  const device = { perm: READ | WRITE, shared: READ | UNCHANGED };
  const reader = { perm: READ, shared: PERM_ALL };
  // role, read-only parent, user of the parent -> permissions on the child
  const cases: [ChildRole, boolean, Permissions | null, Permissions][] = [
    ["filtered", false, device, device],
    ["filtered", false, reader, reader],
    ["filtered", false, null, { perm: 0, shared: PERM_ALL }],
    ["image", false, device, { perm: READ | WRITE | RESIZE, shared: READ | UNCHANGED }],
    ["image", false, reader, { perm: READ | WRITE | RESIZE, shared: READ | UNCHANGED }],
    ["image", false, null, { perm: READ | WRITE | RESIZE, shared: READ | UNCHANGED }],
    ["image", true, reader, { perm: READ, shared: READ | UNCHANGED }],
    ["data", false, device, { perm: READ | WRITE | RESIZE, shared: READ | UNCHANGED }],
    ["data", false, reader, { perm: READ, shared: READ | WRITE | UNCHANGED }],
    ["cow", false, device, { perm: READ, shared: READ | UNCHANGED }],
    ["cow", false, reader, { perm: READ, shared: PERM_ALL }],
    ["cow", false, null, { perm: 0, shared: PERM_ALL }],
    ["snapshot", false, device, { perm: 0, shared: PERM_ALL }],
  ];
  for (const [role, isReadOnly, user, expected] of cases) {
    const graph = new BlockGraph();
    const child = graph.add(memory("child"));
    const parent = graph.add(new ParentNode("parent", role, child, isReadOnly));
    if (user !== null) new BlockBackend(graph, { name: "user", nodeName: "parent", ...user });
    assertEquals(permissionsOf(parent.edge), expected, `${role} ${isReadOnly}`);
    assertEquals(cumulativePermissions(child), expected);
  }
});

Deno.test("A raw node writes and resizes its file only where its users do", () => {
  const graph = new BlockGraph();
  const child = graph.add(memory("child"));
  graph.add(new RawNode({ nodeName: "part", file: child, offset: 512 }));
  const reader = new BlockBackend(graph, {
    name: "r",
    nodeName: "part",
    perm: READ,
    shared: PERM_ALL,
  });
  assertEquals(cumulativePermissions(child), { perm: READ, shared: READ | WRITE | UNCHANGED });
  graph.detachBackend(reader);
  openDevice(graph, "part");
  assertEquals(cumulativePermissions(child), { perm: READ | WRITE, shared: READ | UNCHANGED });
});

Deno.test("Two devices can't write one node, and the message names both", async () => {
  const graph = new BlockGraph();
  const src = graph.add(memory("src"));
  openDevice(graph, "src", "disk0");
  await assertFails(
    () => openDevice(graph, "src", "disk1"),
    "EPERM",
    "Permission conflict on node 'src': permissions 'write' are both required by " +
      "block device 'disk1' (uses node 'src' as 'root' child) and unshared by " +
      "block device 'disk0' (uses node 'src' as 'root' child).",
  );
  assertEquals(src.parents.size, 1);
  assertEquals(graph.listBackends().length, 1);
});

Deno.test("A conflict far below its cause is found, and names the nodes that meet", async () => {
  const graph = new BlockGraph();
  const src = graph.add(memory("src"));
  const left = graph.add(new RawNode({ nodeName: "left", file: src }));
  graph.add(new RawNode({ nodeName: "left2", file: left }));
  graph.add(new RawNode({ nodeName: "right", file: src }));
  openDevice(graph, "left2");
  await assertFails(
    () =>
      new BlockBackend(graph, {
        name: "",
        nodeName: "right",
        perm: WRITE | RESIZE,
        shared: PERM_ALL,
      }),
    "EPERM",
    "Permission conflict on node 'src': permissions 'write, resize' are both required by " +
      "node 'right' (uses node 'src' as 'file' child) and unshared by " +
      "node 'left' (uses node 'src' as 'file' child).",
  );
});

Deno.test("The user that came first may be the one who asks too much", async () => {
  const graph = new BlockGraph();
  graph.add(memory("src"));
  new BlockBackend(graph, { name: "w", nodeName: "src", perm: WRITE, shared: PERM_ALL });
  await assertFails(
    () => openDevice(graph, "src"),
    "EPERM",
    "Permission conflict on node 'src': permissions 'write' are both required by " +
      "block device 'w' (uses node 'src' as 'root' child) and unshared by " +
      "block device 'disk0' (uses node 'src' as 'root' child).",
  );
});

Deno.test("A read-only node has no writers, directly or through a filter", async () => {
  const graph = new BlockGraph();
  const src = graph.add(memory("src", true));
  await assertFails(() => openDevice(graph, "src"), "EPERM", "Block node is read-only");
  graph.add(new RawNode({ nodeName: "top", file: src, isReadOnly: false }));
  await assertFails(() => openDevice(graph, "top"), "EPERM", "Block node is read-only");
  const unchanged = { name: "u", nodeName: "src", perm: UNCHANGED, shared: PERM_ALL };
  await assertFails(() => new BlockBackend(graph, unchanged), "EPERM", "Block node is read-only");
  new BlockBackend(graph, { name: "r", nodeName: "top", perm: READ, shared: PERM_ALL });
  // A writable image on a read-only file can't even be added: it would write metadata.
  const image = new ParentNode("image", "image", src);
  await assertFails(() => graph.add(image), "EPERM", "Block node is read-only");
  assertEquals(image.graph, null);
  assertEquals(graph.find("image"), undefined);
});

Deno.test("A node without users needs nothing, so that a second one can be prepared", () => {
  const graph = new BlockGraph();
  const src = graph.add(memory("src"));
  openDevice(graph, "src");
  const idle = graph.add(new RawNode({ nodeName: "idle", file: src }));
  assertEquals(permissionsOf([...idle.children.values()][0] as BlockEdge), {
    perm: 0,
    shared: PERM_ALL,
  });
});

Deno.test("BlockGraph.resize() needs everybody's consent", async () => {
  const graph = new BlockGraph();
  const src = graph.add(memory("src"));
  const top = graph.add(new RawNode({ nodeName: "top", file: src }));
  const device = openDevice(graph, "top");
  for (const nodeName of ["src", "top"]) {
    await assertFails(
      () => graph.resize(nodeName, 2 << 20),
      "EPERM",
      /permissions 'resize' are both required by an unnamed block device .* and unshared by/,
    );
  }
  await device.release();
  new BlockBackend(graph, {
    name: "disk0",
    nodeName: "top",
    ...DEVICE_PERMISSIONS,
    shared: DEVICE_PERMISSIONS.shared | RESIZE,
  });
  await graph.resize("top", 3 << 20);
  assertEquals([src.sizeBytes, top.sizeBytes], [3 << 20, 3 << 20]);
  await graph.resize("src", 1000);
  assertEquals([src.sizeBytes, top.sizeBytes], [1000, 1000]);
  assertEquals(graph.listBackends().length, 1);
});
