/**
 * Internal snapshots as sources of a copy.
 *
 * @module
 */

import { unfiltered } from "../../block/image/chain.ts";
import type { BlockNode } from "../../block/node.ts";
import { Qcow2Node } from "../../block/qcow2/node.ts";
import { ImgError } from "./errors.ts";
import { errorMessage, type Image } from "./session.ts";
import { findSnapshot, type SnapshotName } from "./snapshot_names.ts";

/** Makes an image, which is open for reading alone, show an internal snapshot. */
export async function openSnapshot(image: Image, name: SnapshotName): Promise<BlockNode> {
  const node = unfiltered(image.node);
  const snapshots = node instanceof Qcow2Node ? node.snapshots : null;
  if (snapshots === null) {
    throw new ImgError(
      `Failed to load snapshot: Block format '${node.driver}' used by device '' does not ` +
        "support temporarily loading internal snapshots",
    );
  }
  const found = findSnapshot(snapshots.list(), name);
  if (found === undefined) throw new ImgError("Failed to load snapshot: Can't find snapshot");
  try {
    await snapshots.show(found.id);
  } catch (error) {
    throw new ImgError(`Failed to load snapshot: ${errorMessage(error)}`, 1, { cause: error });
  }
  return image.node;
}
