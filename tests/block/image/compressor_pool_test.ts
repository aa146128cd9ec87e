import { assertEquals, assertRejects } from "@std/assert";
import { CompressorPool } from "../../../src/block/image/compressor_pool.ts";
import { decompressCluster, directCompressors } from "../../../src/block/qcow2/compress.ts";

const CLUSTER = 65536;

/** The first bytes alike, the last ones noise. */
function cluster(seed: number, noiseBytes = 1000 * seed): Uint8Array {
  const bytes = new Uint8Array(CLUSTER).fill(seed);
  let state = seed + 1;
  for (let at = CLUSTER - noiseBytes; at < CLUSTER; at++) {
    state = Math.imul(state, 1664525) + 1013904223 | 0;
    bytes[at] = state >>> 24;
  }
  return bytes;
}

function directly(type: "zlib" | "zstd", bytes: Uint8Array): Uint8Array {
  const packed = directCompressors[type].compress(bytes);
  if (!(packed instanceof Uint8Array)) throw new Error("it was not compressed");
  return new Uint8Array(packed);
}

Deno.test("CompressorPool compresses as one compressor does, many clusters at a time", async () => {
  const pool = new CompressorPool();
  try {
    for (const type of ["zlib", "zstd"] as const) {
      const compressor = pool.compressor(type);
      const clusters = Array.from({ length: 40 }, (_, index) => cluster(index % 20));
      const packed = await Promise.all(clusters.map((bytes) => compressor.compress(bytes)));
      for (const [index, bytes] of clusters.entries()) {
        const data = packed[index] ?? null;
        assertEquals(data, directly(type, bytes));
        const unpacked = new Uint8Array(CLUSTER);
        if (data !== null) decompressCluster(type, data, unpacked);
        assertEquals(unpacked, bytes);
      }
      assertEquals(await compressor.compress(cluster(1, CLUSTER)), null);
    }
  } finally {
    pool.close();
  }
});

Deno.test("CompressorPool has copied a cluster when compress() returns", async () => {
  const pool = new CompressorPool();
  try {
    const bytes = cluster(5);
    const expected = directly("zstd", bytes);
    const packed = pool.compressor("zstd").compress(bytes);
    bytes.fill(0);
    assertEquals(await packed, expected);
  } finally {
    pool.close();
  }
});

Deno.test("CompressorPool.close() fails what is not done", async () => {
  const pool = new CompressorPool();
  const packed = Promise.resolve(pool.compressor("zlib").compress(cluster(7)));
  await Promise.resolve();
  const failed = assertRejects(() => packed, Error, "The compressor was closed");
  pool.close();
  await failed;
});
