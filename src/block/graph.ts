/**
 * The block graph of one machine: named nodes, the edges between them, and drained sections.
 *
 * Every change of an edge is made, checked against the permission rules, and undone when they
 * forbid it: a failed call leaves the graph as it was. Nothing else writes edges.
 *
 * A drained section covers some nodes and everything above them: backends there queue new requests,
 * those in flight and the background work of covered nodes have ended when the section's action
 * starts. Sections nest and overlap. What comes to stand above a covered node while the section
 * lasts is held too, and what was held stays held to its end, so that an action may put filters in
 * and out in any order with no request in between.
 *
 * @module
 */

import { assert } from "./assert.ts";
import { BlockBackend } from "./backend.ts";
import { BlockEdge } from "./edge.ts";
import { BlockError } from "./errors.ts";
import { BlockNode } from "./node.ts";
import { parentsFirst, planPermissions } from "./permissions.ts";
import { type MaybePromise, PERM_ALL, PERM_RESIZE } from "./types.ts";

/** Longest name of a node, as in QEMU. */
const NODE_NAME_BYTES_MAX = 31;

/** The nodes of one machine. */
export class BlockGraph {
  readonly #nodes = new Map<string, BlockNode>();
  readonly #backends = new Set<BlockBackend>();
  readonly #sections = new Set<DrainedSection>();
  /** Nodes that go with their last user: nobody else holds them. */
  /** Nodes that left the graph and are being closed. */
  readonly #closing = new Set<BlockNode>();
  readonly #adopted = new Set<BlockNode>();
  #unnamedCount = 0;

  /**
   * Takes a node in, with edges to its children, which must be in the graph. Throws a BlockError on
   * a bad or taken name (EINVAL) or a permission conflict (EPERM); the caller then still owns the
   * node and closes it.
   */
  add<T extends BlockNode>(node: T): T {
    assert(node.graph === null, `${node.description} is already part of a graph`);
    const nodeName = node.nodeName === "" ? this.#inventName() : node.nodeName;
    if (node.nodeName !== "") checkNodeName(nodeName);
    if (this.#nodes.has(nodeName)) {
      throw new BlockError("EINVAL", `Duplicate nodes with node-name='${nodeName}'`);
    }
    for (const edge of node.children.values()) this.#checkMember(edge.node);
    const previousName = node.nodeName;
    node.setGraph(this, nodeName);
    this.#nodes.set(nodeName, node);
    this.#change(() => {
      for (const edge of node.children.values()) edge.node.addParent(edge);
    }, () => {
      for (const edge of node.children.values()) edge.node.removeParent(edge);
      this.#nodes.delete(nodeName);
      node.setGraph(null, previousName);
    });
    return node;
  }

  /** The node of that name. Throws a BlockError (ENOENT) where there is none. */
  get(nodeName: string): BlockNode {
    const node = this.#nodes.get(nodeName);
    if (node === undefined) throw new BlockError("ENOENT", `Node '${nodeName}' not found`);
    return node;
  }

  /** The node of that name, if there is one. */
  find(nodeName: string): BlockNode | undefined {
    return this.#nodes.get(nodeName);
  }

  /** All nodes, in the order of their coming. */
  list(): BlockNode[] {
    return [...this.#nodes.values()];
  }

  /** All backends, in the order of their coming. */
  listBackends(): BlockBackend[] {
    return [...this.#backends];
  }

  /**
   * Takes a node that nobody uses out and closes it, and the adopted ones that nobody uses without
   * it. Throws a BlockError (EBUSY) where one does.
   */
  async remove(nodeName: string): Promise<void> {
    const node = this.get(nodeName);
    if (node.parents.size > 0) throw inUse(node);
    this.#detach(node);
    try {
      await this.#close(node);
    } finally {
      await this.sweep();
    }
  }

  /**
   * The node belongs to its users: it is removed with the last of them. So it is with nodes that
   * were opened as somebody's child.
   */
  adopt(node: BlockNode): void {
    this.#checkMember(node);
    this.#adopted.add(node);
  }

  /** Whether the node goes with its last user. */
  isAdopted(node: BlockNode): boolean {
    return this.#adopted.has(node);
  }

  /** Removes the adopted nodes that nobody uses any more: after edges were changed. */
  async sweep(): Promise<void> {
    const errors: unknown[] = [];
    for (;;) {
      const node = [...this.#adopted].find((candidate) => this.#isUnused(candidate));
      if (node === undefined) break;
      this.#detach(node);
      await this.#close(node).catch((error) => errors.push(error));
    }
    if (errors.length > 0) throw errors[0];
  }

  /** A node that closes still uses its children: whoever closes it removes them then. */
  #isUnused(node: BlockNode): boolean {
    if (node.parents.size > 0) return false;
    for (const parent of this.#closing) {
      for (const edge of parent.children.values()) if (edge.node === node) return false;
    }
    return true;
  }

  async #close(node: BlockNode): Promise<void> {
    this.#closing.add(node);
    try {
      await node.close();
    } finally {
      this.#closing.delete(node);
    }
  }

  /**
   * Makes a node writable or read-only while it stands, with the adopted nodes below that keep its
   * data. Throws a BlockError and changes nothing where a file can't be opened so, or somebody
   * writes.
   */
  async setReadOnly(nodeName: string, isReadOnly: boolean): Promise<void> {
    const node = this.get(nodeName);
    await this.drained([node], async () => {
      const changed: BlockNode[] = [];
      // Children are writable before their parents are, and longer.
      const nodes = this.#dataNodes(node).filter((each) => each.isReadOnly !== isReadOnly);
      if (!isReadOnly) nodes.reverse();
      try {
        for (const each of nodes) {
          if (isReadOnly) await each.flush();
          each.configure({ isReadOnly });
          changed.push(each);
          if (isReadOnly) this.#change(() => {}, () => {});
          await each.setReadOnly(isReadOnly);
        }
        this.#change(() => {}, () => {});
      } catch (error) {
        for (const each of changed.reverse()) {
          each.configure({ isReadOnly: !isReadOnly });
          await each.setReadOnly(!isReadOnly);
        }
        this.#change(() => {}, () => {});
        throw error;
      }
    });
  }

  /** A node and the adopted ones that keep its data, parents first. */
  #dataNodes(node: BlockNode): BlockNode[] {
    const nodes = [node];
    for (const edge of node.children.values()) {
      if (edge.role === "cow" || edge.role === "snapshot" || !this.isAdopted(edge.node)) continue;
      nodes.push(...this.#dataNodes(edge.node));
    }
    return nodes;
  }

  /**
   * Puts `filter` between an edge's parent and its node, between two requests. The filter's
   * `filtered` child must be that node. A filter that is not in the graph yet is added; if anything
   * fails, the graph is as before.
   */
  async insertFilter(filter: BlockNode, edge: BlockEdge): Promise<void> {
    await this.drained([edge.node], () => {
      const { node } = edge;
      if (filteredChild(filter)?.node !== node) {
        throw new BlockError(
          "EINVAL",
          `Node '${filter.nodeName}' does not filter '${node.nodeName}'`,
        );
      }
      if (filter.graph === null) this.addAbove(filter, [edge]);
      else this.replaceChild(edge, filter);
    });
  }

  /**
   * Takes a node in and makes edges lead to it, which a drained section covers. If anything fails,
   * the graph is as before.
   */
  addAbove(node: BlockNode, edges: Iterable<BlockEdge>): void {
    this.add(node);
    try {
      this.replaceChildren(edges, node);
    } catch (error) {
      this.#detach(node);
      throw error;
    }
  }

  /**
   * Takes `filter` out of all paths through it, between two requests, and closes it. Throws a
   * BlockError (EBUSY) where somebody uses the filter's own snapshot.
   */
  async removeFilter(filter: BlockNode): Promise<void> {
    const child = filteredChild(filter);
    if (child === undefined) {
      throw new BlockError("EINVAL", `Node '${filter.nodeName}' is not a filter`);
    }
    this.#checkMember(filter);
    await this.drained([filter], () => {
      const edges = [...filter.parents];
      if (edges.some((edge) => edge.role === "snapshot")) throw inUse(filter);
      const attach = (node: BlockNode): void => {
        for (const edge of edges) moveEdge(edge, node);
      };
      // The filter leaves in the same change, so that its own permissions stand in nobody's way.
      this.#change(() => {
        attach(child.node);
        for (const edge of filter.children.values()) edge.node.removeParent(edge);
      }, () => {
        for (const edge of filter.children.values()) edge.node.addParent(edge);
        attach(filter);
      });
      this.#forget(filter);
      for (const edge of edges) notifyReplaced(edge);
    });
    await this.#close(filter);
  }

  /** `replaceChildren` for one edge. */
  replaceChild(edge: BlockEdge, node: BlockNode): void {
    this.replaceChildren([edge], node);
  }

  /**
   * Makes edges lead to another node, all in one change, so that their permissions stand in
   * nobody's way. They must be covered by a drained section: see `drained`. Throws a BlockError and
   * changes nothing on a permission conflict or a loop.
   */
  replaceChildren(edges: Iterable<BlockEdge>, node: BlockNode): void {
    this.#checkMember(node);
    const previous = new Map<BlockEdge, BlockNode>();
    for (const edge of edges) {
      if (edge.node === node) continue;
      checkNotFrozen(edge, node);
      assert(
        this.#isDrained(edge.node),
        `${edge.node.description} is replaced outside a drained section`,
      );
      if (edge.parent instanceof BlockNode && reaches(node, edge.parent)) {
        throw cycle(edge.parent, node, edge.name);
      }
      previous.set(edge, edge.node);
    }
    this.#change(() => {
      for (const edge of previous.keys()) moveEdge(edge, node);
    }, () => {
      for (const [edge, before] of previous) moveEdge(edge, before);
    });
    for (const edge of previous.keys()) notifyReplaced(edge);
  }

  /**
   * Gives a node another backing node, or none. A drained section must cover the node. Throws a
   * BlockError and changes nothing where the node can't have one, on a loop, and on a conflict.
   */
  setBacking(parent: BlockNode, node: BlockNode | null): void {
    this.#checkMember(parent);
    const edge = parent.backing;
    if (edge !== null && node !== null) return this.replaceChild(edge, node);
    assert(this.#isDrained(parent), `${parent.description} changes outside a drained section`);
    if (edge !== null) {
      checkNotFrozen(edge, null);
      return this.#changeChild(edge, false);
    }
    if (node === null) return;
    this.#checkMember(node);
    if (!parent.supportsBacking) {
      throw new BlockError(
        "EINVAL",
        `Driver '${parent.driver}' of node '${parent.nodeName}' does not support backing files`,
      );
    }
    if (reaches(node, parent)) throw cycle(parent, node, "backing");
    this.#changeChild(new BlockEdge(parent, "backing", "cow", node), true);
  }

  /** Changes a node's size, if all its users allow that, between two requests. */
  async resize(nodeName: string, sizeBytes: number): Promise<void> {
    const node = this.get(nodeName);
    const backend = new BlockBackend(this, {
      name: "",
      nodeName,
      perm: PERM_RESIZE,
      shared: PERM_ALL,
    });
    try {
      await this.drained([node], () => node.resize(sizeBytes));
    } finally {
      await backend.release();
    }
  }

  /**
   * Runs `action` while no request is in flight at the nodes or above them, nor can become so. An
   * error of the action ends the section and is thrown on.
   */
  async drained<T>(nodes: Iterable<BlockNode>, action: () => MaybePromise<T>): Promise<T> {
    const section = new DrainedSection([...nodes]);
    this.#sections.add(section);
    section.extend();
    try {
      await section.quiesce();
      return await action();
    } finally {
      this.#sections.delete(section);
      section.end();
    }
  }

  /** Closes all nodes, parents before children. Backends must have been released (else EBUSY). */
  async close(): Promise<void> {
    const [backend] = this.#backends;
    if (backend !== undefined) throw inUse(backend.node);
    const errors: unknown[] = [];
    for (const node of parentsFirst(this.#nodes.values())) {
      this.#detach(node);
      await node.close().catch((error) => errors.push(error));
    }
    if (errors.length > 0) throw errors[0];
  }

  // For BlockBackend.

  /** Called by a new backend: takes its permissions or throws. */
  attachBackend(backend: BlockBackend): void {
    const { root } = backend;
    this.#change(() => root.node.addParent(root), () => root.node.removeParent(root));
    this.#backends.add(backend);
  }

  /** Called by a backend that was released. A second call does nothing. */
  detachBackend(backend: BlockBackend): void {
    if (!this.#backends.delete(backend)) return;
    const { root } = backend;
    this.#change(() => root.node.removeParent(root), () => root.node.addParent(root));
  }

  /** Changes edges by `apply`; where the new graph breaks the permission rules, `undo`es that. */
  #change(apply: () => void, undo: () => void): void {
    apply();
    try {
      for (const [edge, { perm, shared }] of planPermissions(this.#nodes.values())) {
        edge.perm = perm;
        edge.shared = shared;
      }
    } catch (error) {
      undo();
      throw error;
    }
    for (const section of this.#sections) section.extend();
  }

  /** Adds a child's edge to its parent, a node, or takes it away. */
  #changeChild(edge: BlockEdge, isAdded: boolean): void {
    const { parent, node } = edge;
    assert(parent instanceof BlockNode, "a child's parent is a node");
    const attach = (): void => {
      parent.attachChild(edge);
      node.addParent(edge);
    };
    const detach = (): void => {
      parent.detachChild(edge);
      node.removeParent(edge);
    };
    if (isAdded) this.#change(attach, detach);
    else this.#change(detach, attach);
  }

  #detach(node: BlockNode): void {
    const edges = [...node.children.values()];
    this.#change(() => {
      for (const edge of edges) edge.node.removeParent(edge);
    }, () => {
      for (const edge of edges) edge.node.addParent(edge);
    });
    this.#forget(node);
  }

  #forget(node: BlockNode): void {
    this.#nodes.delete(node.nodeName);
    this.#adopted.delete(node);
    node.setGraph(null, node.nodeName);
  }

  #checkMember(node: BlockNode): void {
    if (node.graph !== this) {
      throw new BlockError("EINVAL", `Node '${node.nodeName}' is not part of this graph`);
    }
  }

  #isDrained(node: BlockNode): boolean {
    for (const section of this.#sections) {
      if (section.covers(node)) return true;
    }
    return false;
  }

  #inventName(): string {
    return `#block${String(this.#unnamedCount++).padStart(3, "0")}`;
  }
}

/** One drained section: what it covers only grows until it ends. */
class DrainedSection {
  readonly #targets: readonly BlockNode[];
  readonly #nodes = new Set<BlockNode>();
  readonly #backends = new Set<BlockBackend>();
  /** Nodes below the held backends: they let go of requests that they hold back. */
  readonly #below = new Set<BlockNode>();
  #isQuiesced = false;

  constructor(targets: readonly BlockNode[]) {
    this.#targets = targets;
  }

  covers(node: BlockNode): boolean {
    return this.#isQuiesced && this.#nodes.has(node);
  }

  /** Takes in what stands above the covered nodes now. */
  extend(): void {
    const pending = [...this.#targets, ...this.#nodes];
    const seen = new Set<BlockNode>();
    for (let node = pending.pop(); node !== undefined; node = pending.pop()) {
      if (seen.has(node)) continue;
      seen.add(node);
      for (const { parent } of node.parents) {
        if (parent instanceof BlockNode) pending.push(parent);
        else if (parent instanceof BlockBackend) this.#holdBackend(parent);
      }
    }
    for (const node of seen) this.#nodes.add(node);
    const backendNodes = [...this.#backends].map((backend) => backend.node);
    for (const node of parentsFirst([...seen, ...backendNodes])) this.#letGo(node);
  }

  /** Waits until nothing is in flight. */
  async quiesce(): Promise<void> {
    for (;;) {
      const work: Promise<unknown>[] = [];
      for (const backend of this.#backends) {
        if (backend.inFlightCount > 0) work.push(backend.idle());
      }
      for (const node of this.#nodes) work.push(...node.backgroundWork);
      if (work.length === 0) break;
      await Promise.all(work);
    }
    this.#isQuiesced = true;
  }

  end(): void {
    for (const node of this.#below) node.drainEnd();
    for (const backend of this.#backends) backend.drainEnd();
  }

  #holdBackend(backend: BlockBackend): void {
    if (this.#backends.has(backend)) return;
    this.#backends.add(backend);
    backend.drainBegin();
  }

  #letGo(node: BlockNode): void {
    if (this.#below.has(node)) return;
    this.#below.add(node);
    node.drainBegin();
  }
}

/**
 * Throws a BlockError (EINVAL) unless `name` follows QEMU's rules: a letter, then letters, digits,
 * -._
 */
export function checkNodeName(name: string): void {
  if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(name)) {
    throw new BlockError("EINVAL", `Invalid node-name: '${name}'`);
  }
  if (name.length > NODE_NAME_BYTES_MAX) throw new BlockError("EINVAL", "Node name too long");
}

function inUse(node: BlockNode): BlockError {
  return new BlockError("EBUSY", `Node ${node.nodeName} is in use`);
}

function cycle(parent: BlockNode, node: BlockNode, name: string): BlockError {
  return new BlockError(
    "EINVAL",
    `Making '${node.nodeName}' a ${name} child of '${parent.nodeName}' would create a cycle`,
  );
}

function checkNotFrozen(edge: BlockEdge, node: BlockNode | null): void {
  if (edge.frozenCount === 0) return;
  const from = edge.parent instanceof BlockNode ? edge.parent.nodeName : edge.parent.description;
  throw new BlockError(
    "EPERM",
    node === null
      ? `Cannot remove frozen '${edge.name}' link from '${from}' to '${edge.node.nodeName}'`
      : `Cannot change frozen '${edge.name}' link from '${from}' to '${edge.node.nodeName}'`,
  );
}

/** The edge to the child whose content a filter shows; undefined where the node is none. */
export function filteredChild(node: BlockNode): BlockEdge | undefined {
  for (const edge of node.children.values()) {
    if (edge.role === "filtered") return edge;
  }
  return undefined;
}

function moveEdge(edge: BlockEdge, node: BlockNode): void {
  edge.node.removeParent(edge);
  edge.node = node;
  node.addParent(edge);
}

function notifyReplaced(edge: BlockEdge): void {
  if (edge.parent instanceof BlockNode) edge.parent.childReplaced(edge);
}

/** Whether `node` is `other` or stands above it. */
function reaches(node: BlockNode, other: BlockNode): boolean {
  return parentsFirst([node]).includes(other);
}
