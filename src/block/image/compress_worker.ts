/**
 * A worker that compresses clusters: see compressor_pool.ts.
 *
 * @module
 */

import { directCompressors } from "../qcow2/compress.ts";
import type { CompressAnswer, CompressQuestion } from "./compressor_pool.ts";

/** What a worker's global scope has, as far as it is used here. */
interface WorkerScope {
  onmessage: ((event: MessageEvent<CompressQuestion>) => void) | null;
  postMessage(message: CompressAnswer, transfer: Transferable[]): void;
}

const scope = self as unknown as WorkerScope;

scope.onmessage = async ({ data }) => {
  const { id, type, clusterBytes, clusters } = data;
  try {
    // What is compressed is smaller, so that it fits in front of what is left.
    const lengths: number[] = [];
    let end = 0;
    for (let at = 0; at < clusters.length; at += clusterBytes) {
      const cluster = clusters.subarray(at, at + clusterBytes);
      const packed = await directCompressors[type].compress(cluster);
      lengths.push(packed?.length ?? 0);
      if (packed === null) continue;
      clusters.set(packed, end);
      end += packed.length;
    }
    const bytes = clusters.subarray(0, end);
    scope.postMessage({ id, bytes, lengths }, [bytes.buffer]);
  } catch (error) {
    scope.postMessage({ id, error: error instanceof Error ? error.message : String(error) }, []);
  }
};
