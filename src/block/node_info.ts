/**
 * Block nodes as the API shows them.
 *
 * @module
 */

import { permissionNames } from "./permissions.ts";
import type { BlockNode } from "./node.ts";

/** One edge, as its parent sees it. */
export interface BlockChildInfo {
  name: string;
  role: string;
  nodeName: string;
  /** The permissions that the parent uses, by name. */
  permissions: string;
  sharedPermissions: string;
}

/** A node. */
export interface BlockNodeInfo {
  nodeName: string;
  driver: string;
  sizeBytes: number;
  clusterSizeBytes: number | null;
  /** Bytes taken on the medium, null where nobody knows. */
  allocatedBytes: number | null;
  isReadOnly: boolean;
  discard: string;
  /** Who uses it: "node 'x'", "block device 'y'". */
  users: string[];
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
