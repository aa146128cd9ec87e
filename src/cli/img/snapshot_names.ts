/**
 * Names of internal snapshots in arguments.
 *
 * @module
 */

import { ImgError } from "./errors.ts";

/** Which snapshot is meant. */
export interface SnapshotName {
  /** Its id, null for any. */
  id: string | null;
  /** Its name, null for any. */
  name: string | null;
  /** The text stands for an id or, failing that, a name. */
  either: string | null;
}

/** `snapshot.id=ID,snapshot.name=NAME`, or an id or name. Throws an ImgError. */
export function parseSnapshotName(text: string): SnapshotName {
  if (!text.startsWith("snapshot.")) return { id: null, name: null, either: text };
  const found: SnapshotName = { id: null, name: null, either: null };
  for (const part of text.split(",")) {
    const [, key, value] = /^snapshot\.(id|name)=(.*)$/.exec(part) ?? [];
    if (value === undefined) throw new ImgError(`Failed in parsing snapshot param '${text}'`);
    if (key === "id") found.id = value;
    else found.name = value;
  }
  return found;
}

/** The one that is meant, if there is one. */
export function findSnapshot<T extends { id: string; name: string }>(
  snapshots: readonly T[],
  wanted: SnapshotName,
): T | undefined {
  const { id, name, either } = wanted;
  if (either !== null) {
    return snapshots.find((snapshot) => snapshot.id === either) ??
      snapshots.find((snapshot) => snapshot.name === either);
  }
  return snapshots.find((snapshot) =>
    (id === null || snapshot.id === id) && (name === null || snapshot.name === name)
  );
}
