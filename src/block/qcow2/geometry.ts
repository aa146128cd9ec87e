/**
 * The sizes that follow from a qcow2 header, computed once. Everything of them is a power of two,
 * so that `offset & (size - 1)` is right for every safe integer.
 *
 * @module
 */

import { INCOMPAT_EXTENDED_L2, SUBCLUSTERS_PER_CLUSTER } from "./format.ts";
import type { Qcow2Header } from "./header.ts";

/** Metadata tables are cached and written in pieces of this size, or of a cluster if smaller. */
const SLICE_BYTES_MAX = 4096;

/** See the module's head. */
export interface Geometry {
  /** 3: zero clusters exist. */
  readonly version: 2 | 3;
  /** log2 of the cluster size. */
  readonly clusterBits: number;
  /** Bytes of a cluster. */
  readonly clusterSize: number;
  /** L2 entries have subclusters. */
  readonly isExtended: boolean;
  /** Bytes of an L2 entry: 8, or 16 with subclusters. */
  readonly l2EntryBytes: number;
  /** Guest bytes that one L2 table describes. */
  readonly l2Coverage: number;
  /** Subclusters of a cluster, 1 without. */
  readonly subclusterCount: number;
  /** Bytes of a subcluster: of a cluster, without them. */
  readonly subclusterSize: number;
  /** Bytes of a cached piece of an L2 table or refcount block. */
  readonly sliceBytes: number;
  /** L2 entries of such a piece. */
  readonly sliceEntries: number;
  /** Guest bytes that it describes. */
  readonly sliceCoverage: number;
  /** log2 of the width of a refcount in bits. */
  readonly refcountOrder: number;
  /** Host clusters that one refcount block describes. */
  readonly refcountBlockEntries: number;
  /** Bits of the sector count of a compressed cluster. */
  readonly compressedSectorBits: number;
}

/** The sizes of an image with that header. */
export function geometryOf(
  header: Pick<Qcow2Header, "version" | "clusterBits" | "incompatibleFeatures" | "refcountOrder">,
): Geometry {
  const clusterSize = 2 ** header.clusterBits;
  const isExtended = (header.incompatibleFeatures & INCOMPAT_EXTENDED_L2) !== 0n;
  const l2EntryBytes = isExtended ? 16 : 8;
  const subclusterCount = isExtended ? SUBCLUSTERS_PER_CLUSTER : 1;
  const sliceBytes = Math.min(clusterSize, SLICE_BYTES_MAX);
  const sliceEntries = sliceBytes / l2EntryBytes;
  return {
    version: header.version,
    clusterBits: header.clusterBits,
    clusterSize,
    isExtended,
    l2EntryBytes,
    l2Coverage: clusterSize / l2EntryBytes * clusterSize,
    subclusterCount,
    subclusterSize: clusterSize / subclusterCount,
    sliceBytes,
    sliceEntries,
    sliceCoverage: sliceEntries * clusterSize,
    refcountOrder: header.refcountOrder,
    refcountBlockEntries: clusterSize * 8 / 2 ** header.refcountOrder,
    compressedSectorBits: header.clusterBits - 8,
  };
}
