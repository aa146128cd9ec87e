/**
 * Internal snapshots as sources of a copy.
 *
 * @module
 */

import type { BlockNode } from "../../block/node.ts";
import { ImgError } from "./errors.ts";
import type { Image, ImgSession } from "./session.ts";
import type { SnapshotName } from "./snapshot_names.ts";

/** A node that shows an internal snapshot of an image. Throws an ImgError. */
export function openSnapshot(
  _session: ImgSession,
  _image: Image,
  _name: SnapshotName,
): Promise<BlockNode> {
  throw new ImgError("Failed to load snapshot: Can't find snapshot");
}
