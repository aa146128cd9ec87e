import { assert, assertEquals } from "@std/assert";
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

/** What a compressor gave, whichever class it is of. */
function plain(packed: Uint8Array | null | undefined): Uint8Array {
  if (!packed) throw new Error("it was not compressed");
  return new Uint8Array(packed);
}

/** A pool whose workers have started: they take the next cluster. */
async function startedPool(type: "zlib" | "zstd"): Promise<CompressorPool> {
  const pool = new CompressorPool();
  const compressor = pool.compressor(type);
  for (;;) {
    const packed = compressor.compress(cluster(3));
    if (packed instanceof Promise) {
      await packed;
      return pool;
    }
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

const NEEDS_PROCESSORS = { ignore: navigator.hardwareConcurrency < 2 };

for (const type of ["zlib", "zstd"] as const) {
  Deno.test({
    name: `CompressorPool compresses as one compressor does, many clusters at a time: ${type}`,
    ...NEEDS_PROCESSORS,
    async fn() {
      const pool = await startedPool(type);
      try {
        const compressor = pool.compressor(type);
        const clusters = Array.from({ length: 60 }, (_, index) => cluster(index % 20));
        const answers = clusters.map((bytes) => compressor.compress(bytes));
        assert(answers.some((answer) => answer instanceof Promise), "nothing went to a worker");
        const packed = await Promise.all(answers);
        for (const [index, bytes] of clusters.entries()) {
          const data = plain(packed[index]);
          assertEquals(data, directly(type, bytes));
          const unpacked = new Uint8Array(CLUSTER);
          decompressCluster(type, data, unpacked);
          assertEquals(unpacked, bytes);
        }
        assertEquals(await compressor.compress(cluster(1, CLUSTER)), null);
        // Of another size, or another type, than the first one.
        const small = cluster(2).subarray(0, CLUSTER / 2);
        assertEquals(plain(await compressor.compress(small)), directly(type, small));
        const other = type === "zlib" ? "zstd" : "zlib";
        assertEquals(
          plain(await pool.compressor(other).compress(cluster(2))),
          directly(other, cluster(2)),
        );
      } finally {
        pool.close();
      }
    },
  });
}

Deno.test({
  name: "CompressorPool has copied a cluster when compress() returns",
  ...NEEDS_PROCESSORS,
  async fn() {
    const pool = await startedPool("zstd");
    try {
      const bytes = cluster(5);
      const expected = directly("zstd", bytes);
      const packed = pool.compressor("zstd").compress(bytes);
      bytes.fill(0);
      assertEquals(await packed, expected);
    } finally {
      pool.close();
    }
  },
});

Deno.test({
  name: "CompressorPool.close() fails what is not done, and ends workers that wait",
  ...NEEDS_PROCESSORS,
  async fn() {
    const pool = await startedPool("zlib");
    const compressor = pool.compressor("zlib");
    const asked = Array.from({ length: 4 }, () => compressor.compress(cluster(60)));
    pool.close();
    for (const outcome of await Promise.allSettled(asked)) {
      // One may have been done before.
      if (outcome.status === "fulfilled") {
        assertEquals(plain(outcome.value), directly("zlib", cluster(60)));
      } else assertEquals(outcome.reason.message, "The compressor was closed");
    }
    assert(!(compressor.compress(cluster(60)) instanceof Promise));
  },
});

Deno.test("CompressorPool starts no worker for a few clusters", () => {
  const pool = new CompressorPool();
  const packed = pool.compressor("zstd").compress(cluster(4));
  if (packed instanceof Promise) throw new Error("it went to a worker");
  assertEquals(plain(packed), directly("zstd", cluster(4)));
  pool.close();
});
