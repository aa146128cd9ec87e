/**
 * The content of compressed clusters (qcow2 specification, "Compressed Clusters Descriptor").
 *
 * How long compressed data is, an image says in sectors only: what comes after its end, usually the
 * start of the next compressed cluster, is skipped. What is decompressed is always one whole
 * cluster; more is never unpacked, whatever the data asks for.
 *
 * @module
 */

import type { InputType, ZlibOptions, ZstdOptions } from "node:zlib";
import { BlockError } from "../errors.ts";
import type { MaybePromise } from "../types.ts";
import type { Qcow2CompressionType } from "./format.ts";

/** Compresses the clusters of one image. */
export interface Compressor {
  /**
   * The compressed cluster, or null where that is not smaller. `cluster` is whole: a short last
   * one is filled up with zeroes. It may be used for something else as soon as this returns.
   */
  compress(cluster: Uint8Array): MaybePromise<Uint8Array | null>;
}

/** Raw deflate with a window of 4 KiB, as the format demands, and otherwise as QEMU. */
const DEFLATE_OPTIONS: ZlibOptions = { windowBits: 12, memLevel: 9 };
/** A frame may ask for a window of that much: 8 MiB, what every decoder has to have (RFC 8878). */
const ZSTD_WINDOW_LOG_MAX = 23;

/** What does not become smaller becomes longer by less than this. */
const SLACK_BYTES = 8192;

/** Loaded when the first cluster comes: most images have no compressed ones. */
function zlib(): typeof import("node:zlib") {
  return globalThis.process.getBuiltinModule("node:zlib");
}

/** Compresses within the call. */
export const directCompressors: Record<Qcow2CompressionType, Compressor> = {
  zlib: { compress: (cluster) => compressWith(zlib().deflateRawSync, cluster, DEFLATE_OPTIONS) },
  zstd: {
    // A known size makes for smaller tables, which have to be cleared.
    compress: (cluster) =>
      compressWith(zlib().zstdCompressSync, cluster, { pledgedSrcSize: cluster.length }),
  },
};

/**
 * Fills `cluster` with what `data` unpacks to. Throws a BlockError (EIO) where that is not exactly
 * one cluster.
 */
export function decompressCluster(
  type: Qcow2CompressionType,
  data: Uint8Array,
  cluster: Uint8Array,
): void {
  let unpacked: Uint8Array;
  try {
    unpacked = unpack(type, data, cluster.length);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new BlockError("EIO", `A compressed cluster (${type}) can't be read: ${reason}`, {
      cause: error,
    });
  }
  if (unpacked.length !== cluster.length) {
    throw new BlockError(
      "EIO",
      `A compressed cluster (${type}) holds ${unpacked.length} bytes instead of ${cluster.length}`,
    );
  }
  cluster.set(unpacked);
}

function unpack(type: Qcow2CompressionType, data: Uint8Array, byteCount: number): Uint8Array {
  const bounds = { maxOutputLength: byteCount, chunkSize: Math.max(byteCount, 4096) };
  // "Any window" is read: the largest one does for all.
  if (type === "zlib") {
    // The end of the stream may be missing: its length is checked above.
    const finishFlush = zlib().constants.Z_SYNC_FLUSH;
    return zlib().inflateRawSync(data, { ...bounds, finishFlush });
  }
  const params = { [zlib().constants.ZSTD_d_windowLogMax]: ZSTD_WINDOW_LOG_MAX };
  const frame = data.subarray(0, zstdFrameBytes(data));
  return zlib().zstdDecompressSync(frame, { ...bounds, params });
}

/**
 * How long the zstd frame is that `data` starts with (RFC 8878, 3.1.1). The decoder would take what
 * follows for another frame. Beyond the end of `data` where the frame is not whole.
 */
function zstdFrameBytes(data: Uint8Array): number {
  const byte = (at: number): number => data[at] ?? 0;
  const descriptor = byte(4);
  const isSingleSegment = (descriptor & 0x20) !== 0;
  const contentSizeBytes = [isSingleSegment ? 1 : 0, 2, 4, 8][descriptor >> 6] ?? 0;
  const dictionaryIdBytes = [0, 1, 2, 4][descriptor & 3] ?? 0;
  let at = 5 + (isSingleSegment ? 0 : 1) + dictionaryIdBytes + contentSizeBytes;
  for (let isLast = false; !isLast && at < data.length;) {
    const header = byte(at) | (byte(at + 1) << 8) | (byte(at + 2) << 16);
    const isRun = ((header >> 1) & 3) === 1;
    at += 3 + (isRun ? 1 : header >> 3);
    isLast = (header & 1) !== 0;
  }
  return at + ((descriptor & 4) !== 0 ? 4 : 0);
}

function compressWith<T extends ZlibOptions | ZstdOptions>(
  compress: (data: InputType, options: T) => Uint8Array,
  cluster: Uint8Array,
  options: T,
): Uint8Array | null {
  // One piece of output, also for what becomes longer: two pieces take half as long again.
  const packed = compress(cluster, { ...options, chunkSize: cluster.length + SLACK_BYTES });
  return packed.length < cluster.length ? packed : null;
}
