/**
 * Random operations on a block graph against a model that knows the permission rules in another
 * form: sets of names, worked out anew for every edge.
 */
import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { BlockBackend } from "../../src/block/backend.ts";
import { MemoryNode } from "../../src/block/drivers/memory.ts";
import type { BlockEdge, ChildRole } from "../../src/block/edge.ts";
import { BlockError } from "../../src/block/errors.ts";
import { BlockGraph } from "../../src/block/graph.ts";
import { BlockNode } from "../../src/block/node.ts";
import { RecordingNode } from "./support.ts";

const RUN_COUNT = 200;
const NAMES = ["read", "write", "unchanged", "resize"] as const;
type Name = typeof NAMES[number];
const ROLES = ["filtered", "image", "data", "cow", "snapshot"] as const;

type Operation =
  | { kind: "addLeaf"; isReadOnly: boolean }
  | { kind: "addParent"; role: ChildRole; child: number; isReadOnly: boolean }
  | { kind: "addPair"; child: number; backing: number }
  | { kind: "open"; node: number; perm: number; shared: number }
  | { kind: "release"; backend: number }
  | { kind: "insert"; edge: number; isReadOnly: boolean }
  | { kind: "removeFilter"; node: number }
  | { kind: "replace"; edge: number; node: number }
  | { kind: "remove"; node: number };

const index = fc.nat({ max: 40 });
const operation: fc.Arbitrary<Operation> = fc.oneof(
  fc.record({ kind: fc.constant("addLeaf" as const), isReadOnly: fc.boolean() }),
  fc.record({
    kind: fc.constant("addParent" as const),
    role: fc.constantFrom(...ROLES),
    child: index,
    isReadOnly: fc.boolean(),
  }),
  fc.record({ kind: fc.constant("addPair" as const), child: index, backing: index }),
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant("open" as const),
      node: index,
      perm: fc.integer({ min: 0, max: 15 }),
      shared: fc.oneof(fc.constant(15), fc.integer({ min: 0, max: 15 })),
    }),
  },
  fc.record({ kind: fc.constant("release" as const), backend: index }),
  fc.record({ kind: fc.constant("insert" as const), edge: index, isReadOnly: fc.boolean() }),
  fc.record({ kind: fc.constant("removeFilter" as const), node: index }),
  fc.record({ kind: fc.constant("replace" as const), edge: index, node: index }),
  fc.record({ kind: fc.constant("remove" as const), node: index }),
);

/** A node with any children. */
class ParentNode extends RecordingNode {
  constructor(nodeName: string, isReadOnly: boolean, children: [ChildRole, BlockNode][]) {
    super({ nodeName, isReadOnly });
    for (const [role, node] of children) {
      this.addChild(role === "cow" ? "backing" : "file", role, node);
    }
  }
}

interface ModelEdge {
  /** A node's name, or "backend N". */
  parent: string;
  name: string;
  role: ChildRole;
  child: string;
  /** Of a backend. */
  perm?: Set<Name>;
  shared?: Set<Name>;
}

/** The graph as the model sees it. */
class Model {
  readOnly = new Map<string, boolean>();
  edges: ModelEdge[] = [];

  copy(): Model {
    const copy = new Model();
    copy.readOnly = new Map(this.readOnly);
    copy.edges = this.edges.map((edge) => ({ ...edge }));
    return copy;
  }

  usersOf(node: string): ModelEdge[] {
    return this.edges.filter((edge) => edge.child === node);
  }

  /** What an edge takes and shares, worked out from the backends above. */
  rights(edge: ModelEdge): { takes: Set<Name>; shares: Set<Name> } {
    if (edge.perm !== undefined && edge.shared !== undefined) {
      return { takes: edge.perm, shares: edge.shared };
    }
    const above = this.usersOf(edge.parent).map((user) => this.rights(user));
    const takes = new Set(NAMES.filter((name) => above.some((user) => user.takes.has(name))));
    const shares = new Set(NAMES.filter((name) => above.every((user) => user.shares.has(name))));
    switch (edge.role) {
      case "image":
        takes.add("read");
        if (!this.readOnly.get(edge.parent)) takes.add("write").add("resize");
        shares.delete("write");
        shares.delete("resize");
        return { takes, shares };
      case "data":
        if (takes.has("write")) takes.add("resize");
        shares.delete("resize");
        return { takes, shares };
      case "cow": {
        const mayChange = shares.has("write");
        const shared: Name[] = mayChange ? [...NAMES] : ["read", "unchanged"];
        return { takes: new Set(takes.has("read") ? ["read"] : []), shares: new Set(shared) };
      }
      case "snapshot":
        return { takes: new Set(), shares: new Set(NAMES) };
      default:
        return { takes, shares };
    }
  }

  isValid(): boolean {
    for (const [node, isReadOnly] of this.readOnly) {
      const users = this.usersOf(node).map((edge) => this.rights(edge));
      for (const [i, user] of users.entries()) {
        if (isReadOnly && (user.takes.has("write") || user.takes.has("unchanged"))) return false;
        for (const [j, other] of users.entries()) {
          if (i !== j && [...user.takes].some((name) => !other.shares.has(name))) return false;
        }
      }
    }
    return true;
  }

  reaches(node: string, other: string): boolean {
    return node === other ||
      this.edges.some((edge) => edge.parent === node && this.reaches(edge.child, other));
  }

  show(): string[] {
    return this.edges.map((edge) => {
      const { takes, shares } = this.rights(edge);
      const names = (set: Set<Name>) => NAMES.filter((name) => set.has(name)).join("+");
      return `${edge.parent} -${edge.name}-> ${edge.child}: ${names(takes)} | ${names(shares)}`;
    }).sort();
  }
}

/** The real graph, shown like the model. */
function show(graph: BlockGraph): string[] {
  const lines: string[] = [];
  for (const node of graph.list()) {
    for (const edge of node.parents) {
      const names = (perm: number) => NAMES.filter((_, bit) => (perm & (1 << bit)) !== 0).join("+");
      const parent = parentName(edge);
      const rights = `${names(edge.perm)} | ${names(edge.shared)}`;
      lines.push(`${parent} -${edge.name}-> ${edge.node.nodeName}: ${rights}`);
    }
    for (const edge of node.children.values()) assertEquals(edge.node.parents.has(edge), true);
  }
  return lines.sort();
}

function parentName(edge: BlockEdge): string {
  return edge.parent instanceof BlockNode
    ? edge.parent.nodeName
    : (edge.parent as BlockBackend).name;
}

function namesOf(perm: number): Set<Name> {
  return new Set(NAMES.filter((_, bit) => (perm & (1 << bit)) !== 0));
}

/** One run: the graph, the model, and a counter for names. */
class Run {
  readonly graph = new BlockGraph();
  model = new Model();
  #count = 0;

  async step(operation: Operation): Promise<void> {
    const next = this.model.copy();
    const attempt = this.#prepare(operation, next);
    if (attempt === null) return;
    const isAllowed = attempt.isPossible && next.isValid();
    let failure: BlockError | null = null;
    try {
      await attempt.act();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      failure = error;
    }
    assertEquals(failure === null, isAllowed, `${JSON.stringify(operation)}: ${failure?.message}`);
    if (isAllowed) this.model = next;
    assertEquals(show(this.graph), this.model.show());
    assertEquals(this.graph.list().map((node) => node.nodeName), [...this.model.readOnly.keys()]);
  }

  /** Changes the model and says how to do the same to the graph; null where nothing can be done. */
  #prepare(
    operation: Operation,
    next: Model,
  ): { isPossible: boolean; act: () => unknown } | null {
    const { graph } = this;
    const nodes = graph.list();
    const edges = [
      ...graph.listBackends().map((backend) => backend.root),
      ...nodes.flatMap((node) => [...node.children.values()]),
    ];
    const pick = <T>(list: T[], at: number): T | undefined => list[at % Math.max(list.length, 1)];
    switch (operation.kind) {
      case "addLeaf": {
        const nodeName = `n${this.#count++}`;
        const { isReadOnly } = operation;
        next.readOnly.set(nodeName, isReadOnly);
        const node = new MemoryNode({ nodeName, sizeBytes: 4096, isReadOnly });
        return { isPossible: true, act: () => graph.add(node) };
      }
      case "addParent":
      case "addPair": {
        const child = pick(nodes, operation.child);
        if (child === undefined) return null;
        const isPair = operation.kind === "addPair";
        const children: [ChildRole, BlockNode][] = [[isPair ? "image" : operation.role, child]];
        const backing = isPair ? pick(nodes, operation.backing) : undefined;
        if (backing !== undefined) children.push(["cow", backing]);
        return this.#prepareAdd(next, children, isPair ? false : operation.isReadOnly);
      }
      case "open":
        return this.#prepareOpen(next, operation, pick(nodes, operation.node));
      case "release": {
        const backend = pick(graph.listBackends(), operation.backend);
        if (backend === undefined) return null;
        next.edges = next.edges.filter((edge) => edge.parent !== backend.name);
        return { isPossible: true, act: () => backend.release() };
      }
      case "insert":
        return this.#prepareInsert(next, pick(edges, operation.edge), operation.isReadOnly);
      case "removeFilter":
        return this.#prepareRemoveFilter(next, pick(nodes, operation.node));
      case "replace":
        return this.#prepareReplace(next, pick(edges, operation.edge), pick(nodes, operation.node));
      case "remove": {
        const node = pick(nodes, operation.node);
        if (node === undefined) return null;
        const isPossible = next.usersOf(node.nodeName).length === 0;
        next.readOnly.delete(node.nodeName);
        next.edges = next.edges.filter((edge) => edge.parent !== node.nodeName);
        return { isPossible, act: () => graph.remove(node.nodeName) };
      }
    }
  }

  #prepareAdd(next: Model, children: [ChildRole, BlockNode][], isReadOnly: boolean) {
    const nodeName = `n${this.#count++}`;
    next.readOnly.set(nodeName, isReadOnly);
    for (const [role, child] of children) {
      const name = role === "cow" ? "backing" : "file";
      next.edges.push({ parent: nodeName, name, role, child: child.nodeName });
    }
    const node = new ParentNode(nodeName, isReadOnly, children);
    return { isPossible: true, act: () => this.graph.add(node) };
  }

  #prepareOpen(next: Model, operation: { perm: number; shared: number }, node?: BlockNode) {
    if (node === undefined) return null;
    const { nodeName } = node;
    const name = `backend ${this.#count++}`;
    const { perm, shared } = operation;
    next.edges.push({
      parent: name,
      name: "root",
      role: "root",
      child: nodeName,
      perm: namesOf(perm),
      shared: namesOf(shared),
    });
    const act = () => new BlockBackend(this.graph, { name, nodeName, perm, shared });
    return { isPossible: true, act };
  }

  #prepareInsert(next: Model, edge: BlockEdge | undefined, isReadOnly: boolean) {
    if (edge === undefined) return null;
    const nodeName = `n${this.#count++}`;
    const child = edge.node.nodeName;
    next.readOnly.set(nodeName, isReadOnly);
    moveModelEdge(next, edge, nodeName);
    next.edges.push({ parent: nodeName, name: "file", role: "filtered", child });
    const filter = new ParentNode(nodeName, isReadOnly, [["filtered", edge.node]]);
    return { isPossible: true, act: () => this.graph.insertFilter(filter, edge) };
  }

  #prepareRemoveFilter(next: Model, node: BlockNode | undefined) {
    if (node === undefined) return null;
    const { nodeName } = node;
    const child = next.edges.find((edge) => edge.parent === nodeName && edge.role === "filtered");
    const users = next.usersOf(nodeName);
    const isPossible = child !== undefined && users.every((edge) => edge.role !== "snapshot");
    for (const edge of users) edge.child = child?.child ?? "";
    next.edges = next.edges.filter((edge) => edge.parent !== nodeName);
    next.readOnly.delete(nodeName);
    return { isPossible, act: () => this.graph.removeFilter(node) };
  }

  #prepareReplace(next: Model, edge: BlockEdge | undefined, node: BlockNode | undefined) {
    if (edge === undefined || node === undefined) return null;
    const parent = parentName(edge);
    const isPossible = !next.reaches(node.nodeName, parent);
    if (isPossible) moveModelEdge(next, edge, node.nodeName);
    const { graph } = this;
    const act = () => graph.drained([edge.node], () => graph.replaceChild(edge, node));
    return { isPossible, act };
  }

  async end(): Promise<void> {
    for (const backend of this.graph.listBackends()) await backend.release();
    await this.graph.close();
    assertEquals(this.graph.list(), []);
  }
}

function moveModelEdge(model: Model, edge: BlockEdge, child: string): void {
  const parent = parentName(edge);
  for (const other of model.edges) {
    if (other.parent === parent && other.name === edge.name) other.child = child;
  }
}

Deno.test("BlockGraph does what its rules allow; a refused change changes nothing", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(operation, { minLength: 40, maxLength: 120, size: "max" }),
      async (operations) => {
        const run = new Run();
        for (const operation of operations) await run.step(operation);
        await run.end();
      },
    ),
    { numRuns: RUN_COUNT },
  );
});
