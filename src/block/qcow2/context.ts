/**
 * What the parts of an image (refcounts, L2 tables, clusters) know of the whole: see image.ts,
 * which implements it.
 *
 * @module
 */

import type { Steps } from "../steps.ts";
import type { Geometry } from "./geometry.ts";
import type { Qcow2Header } from "./header.ts";
import type { ImageFile } from "./image_file.ts";
import type { MetadataMap } from "./overlap.ts";

/** See the module's head. */
export interface ImageContext {
  /** Where metadata is. */
  readonly file: ImageFile;
  /** Sizes. */
  readonly geometry: Geometry;
  /** As it stands in the file, or shall: written by `writeHeader`. */
  readonly header: Qcow2Header;
  /** Where metadata is, for the overlap check. */
  readonly metadata: MetadataMap;

  /** Writes the header. Under the lock. */
  writeHeader(): Steps<void>;

  /** To be called when L2 entries refer to something new, or refcounts were written: a barrier comes
   * before L2 tables are written. */
  reliesOn(): void;

  /** Everything that was written before is on stable storage then, data of the guest too. */
  barrier(): Steps<void>;

  /** Throws where a write would hit metadata other than `ignored`; the image is corrupt then. */
  checkOverlap(offset: number, length: number, ignored?: number): Steps<void>;

  /** Marks the image corrupt, where it may be written, and throws EIO. */
  corrupted(message: string): Steps<never>;
}
