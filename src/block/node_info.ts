/**
 * Block nodes as the API shows them.
 *
 * @module
 */

import { permissionNames } from "./permissions.ts";
import type { BlockNode } from "./node.ts";

/** One edge, as its parent sees it. */
export interface BlockChildInfo {
  /** The child's name in its parent: "file" or "target". */
  name: string;
  /** What the parent does with it: see ChildRole. */
  role: string;
  /** The node that is there now. */
  nodeName: string;
  /** The permissions that the parent uses, by name. */
  permissions: string;
  /** Those that the parent lets others use, by name. */
  sharedPermissions: string;
}

/** A node with its users and children. */
export interface BlockNodeInfo {
  /** Unique in the graph. */
  nodeName: string;
  /** "file", "raw", "copy-before-write" and so on. */
  driver: string;
  /** The content's size. */
  sizeBytes: number;
  /** Unit of allocation, null where the driver has none. */
  clusterSizeBytes: number | null;
  /** Bytes taken on the medium, null where nobody knows. */
  allocatedBytes: number | null;
  /** Refuses writes, whoever asks. */
  isReadOnly: boolean;
  /** What becomes of discards: see DiscardMode. */
  discard: string;
  /** Who uses it: "node 'x'", "block device 'y'". */
  users: string[];
  /** The nodes that it uses. */
  children: BlockChildInfo[];
  /** What the driver has to say: paths, limits, what it can't do here. */
  details: Record<string, string | number | boolean | null>;
}

/** Describes a node. */
export function describeNode(node: BlockNode): BlockNodeInfo {
  return {
    nodeName: node.nodeName,
    driver: node.driver,
    sizeBytes: node.sizeBytes,
    clusterSizeBytes: node.clusterSizeBytes,
    allocatedBytes: node.allocatedBytes,
    isReadOnly: node.isReadOnly,
    discard: node.discardMode,
    users: [...node.parents].map((edge) => edge.parent.description),
    children: [...node.children.values()].map((edge) => ({
      name: edge.name,
      role: edge.role,
      nodeName: edge.node.nodeName,
      permissions: permissionNames(edge.perm),
      sharedPermissions: permissionNames(edge.shared),
    })),
    details: node.details(),
  };
}
