/**
 * Who may do what to a node at the same time. Every edge takes permissions on its child (`perm`)
 * and says which ones others may take beside it (`shared`). Backends state theirs; a node derives
 * those on its children from what its own parents take and share, so that permissions flow from the
 * devices and exports down to the files. The rules and messages are QEMU's (block.c).
 *
 * `planPermissions` computes and checks without changing anything; the graph commits the plan or
 * undoes the change that made it necessary.
 *
 * @module
 */

import type { BlockEdge } from "./edge.ts";
import { BlockError } from "./errors.ts";
import type { BlockNode } from "./node.ts";
import {
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
} from "./types.ts";

/** Taken and shared permissions: of one edge, or of all parents of a node together. */
export interface Permissions {
  /** PERM_* that are used. */
  perm: number;
  /** PERM_* that others may use at the same time. */
  shared: number;
}

const PERM_NAMES: readonly [number, string][] = [
  [PERM_CONSISTENT_READ, "consistent read"],
  [PERM_WRITE, "write"],
  [PERM_WRITE_UNCHANGED, "write unchanged"],
  [PERM_RESIZE, "resize"],
];

/** The names of permissions as messages show them. */
export function permissionNames(perm: number): string {
  return PERM_NAMES.filter(([bit]) => (perm & bit) !== 0).map(([, name]) => name).join(", ");
}

/** The permissions that a node takes on a child unless its driver says otherwise. */
export function defaultChildPermissions(
  parent: BlockNode,
  edge: BlockEdge,
  above: Permissions,
): Permissions {
  switch (edge.role) {
    case "root":
    case "filtered":
      return { perm: above.perm, shared: above.shared };
    case "cow":
      // A backing node is only read. A parent that can live with changing data may get them.
      return {
        perm: above.perm & PERM_CONSISTENT_READ,
        shared: ((above.shared & PERM_WRITE) !== 0 ? PERM_WRITE | PERM_RESIZE : 0) |
          PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED,
      };
    case "image": {
      // Metadata may be written though the parent's user only reads, and nobody else may.
      const writes = parent.isReadOnly ? 0 : PERM_WRITE | PERM_RESIZE;
      return {
        perm: above.perm | writes | PERM_CONSISTENT_READ,
        shared: above.shared & ~(PERM_WRITE | PERM_RESIZE),
      };
    }
    case "data":
      return {
        perm: above.perm | ((above.perm & PERM_WRITE) !== 0 ? PERM_RESIZE : 0),
        shared: above.shared & ~PERM_RESIZE,
      };
    case "snapshot":
      return { perm: 0, shared: PERM_ALL };
  }
}

/** What all users of a node take together, and what all of them share. Nobody shares everything. */
export function cumulativePermissions(
  node: BlockNode,
  permissionsOf: (edge: BlockEdge) => Permissions = (edge) => edge,
): Permissions {
  let perm = 0;
  let shared = PERM_ALL;
  for (const edge of node.parents) {
    const own = permissionsOf(edge);
    perm |= own.perm;
    shared &= own.shared;
  }
  return { perm, shared };
}

/**
 * The permissions of every edge from a node of `nodes` to another, for the graph as it stands.
 * Throws a BlockError (EPERM) where two users contradict each other or a read-only node would be
 * written.
 */
export function planPermissions(nodes: Iterable<BlockNode>): Map<BlockEdge, Permissions> {
  const plan = new Map<BlockEdge, Permissions>();
  const permissionsOf = (edge: BlockEdge): Permissions => plan.get(edge) ?? edge;
  for (const node of parentsFirst(nodes)) {
    checkUsers(node, permissionsOf);
    const above = cumulativePermissions(node, permissionsOf);
    if ((above.perm & (PERM_WRITE | PERM_WRITE_UNCHANGED)) !== 0 && node.isReadOnly) {
      throw new BlockError("EPERM", "Block node is read-only");
    }
    for (const edge of node.children.values()) {
      plan.set(edge, node.childPermissions(edge, above));
    }
  }
  return plan;
}

function checkUsers(node: BlockNode, permissionsOf: (edge: BlockEdge) => Permissions): void {
  for (const owner of node.parents) {
    const { shared } = permissionsOf(owner);
    for (const user of node.parents) {
      if (user === owner) continue;
      const unshared = permissionsOf(user).perm & ~shared;
      if (unshared === 0) continue;
      throw new BlockError(
        "EPERM",
        `Permission conflict on node '${node.nodeName}': permissions ` +
          `'${permissionNames(unshared)}' are both required by ${describeUse(user)} ` +
          `and unshared by ${describeUse(owner)}.`,
      );
    }
  }
}

function describeUse(edge: BlockEdge): string {
  return `${edge.parent.description} (uses node '${edge.node.nodeName}' as '${edge.name}' child)`;
}

/** All nodes, each after every node above it. */
export function parentsFirst(nodes: Iterable<BlockNode>): BlockNode[] {
  const childrenFirst: BlockNode[] = [];
  const seen = new Set<BlockNode>();
  const visit = (node: BlockNode): void => {
    if (seen.has(node)) return;
    seen.add(node);
    for (const edge of node.children.values()) visit(edge.node);
    childrenFirst.push(node);
  };
  for (const node of nodes) visit(node);
  return childrenFirst.reverse();
}
