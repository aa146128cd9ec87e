/**
 * Compressed clusters: both types there and back, other people's streams, hostile ones.
 *
 * @module
 */

import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import zlib from "node:zlib";
import { BlockError } from "../../../src/block/errors.ts";
import { decompressCluster, directCompressors } from "../../../src/block/qcow2/compress.ts";
import { now } from "../support.ts";

const TYPES = ["zlib", "zstd"] as const;

/** Text that compresses to about a third. */
function text(length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => 64 + (i * i * 7 + (i >> 5)) % 13);
}

function random(length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; at += 65536) {
    crypto.getRandomValues(bytes.subarray(at, Math.min(at + 65536, length)));
  }
  return bytes;
}

function concat(first: Uint8Array, second: Uint8Array): Uint8Array {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

/** The window that a raw deflate stream needs: distances may not reach further back. */
function inflatesWithWindow(packed: Uint8Array, windowBits: number): boolean {
  try {
    zlib.inflateRawSync(packed, { windowBits });
    return true;
  } catch {
    return false;
  }
}

for (const type of TYPES) {
  Deno.test(`${type}: clusters of every size come back, whatever follows them`, () => {
    for (const size of [512, 4096, 65536, 2 * 1024 * 1024]) {
      for (const cluster of [text(size), new Uint8Array(size), text(size).fill(0, 100)]) {
        const packed = now(directCompressors[type].compress(cluster));
        if (packed === null) throw new Error("not compressed");
        assert(packed.length < size);
        for (const tail of [new Uint8Array(), random(512), packed, text(size)]) {
          const back = new Uint8Array(size).fill(0xee);
          decompressCluster(type, concat(packed, tail), back);
          assertEquals(back, cluster);
        }
      }
    }
  });

  Deno.test(`${type}: what does not become smaller is not compressed`, () => {
    for (const size of [512, 65536]) {
      assertEquals(now(directCompressors[type].compress(random(size))), null);
    }
  });

  Deno.test(`${type}: too little, too much, torn and random data are errors`, () => {
    const pack = (cluster: Uint8Array) => now(directCompressors[type].compress(cluster));
    const fails = (data: Uint8Array | null, size: number) => {
      if (data === null) throw new Error("not compressed");
      const error = assertThrows(
        () => decompressCluster(type, data, new Uint8Array(size)),
        BlockError,
      );
      assertEquals(error.code, "EIO");
      assert(error.message.startsWith(`A compressed cluster (${type}) `), error.message);
    };
    fails(pack(text(4096)), 65536);
    fails(pack(text(65536)), 4096);
    fails(pack(new Uint8Array(64 * 1024 * 1024)), 65536);
    const packed = pack(text(65536)) ?? new Uint8Array();
    for (const length of [0, 1, 5, 100, packed.length >> 1]) {
      fails(packed.subarray(0, length), 65536);
    }
    fails(new Uint8Array(1000).fill(0xff), 65536);
  });

  Deno.test(`${type}: damaged data never gives anything but a cluster or an error`, () => {
    const packed = now(directCompressors[type].compress(text(4096))) ?? new Uint8Array();
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(packed.length - 1), fc.nat(255)), { maxLength: 8 }),
        (changes) => {
          const data = packed.slice();
          for (const [at, value] of changes) data[at] = value;
          try {
            decompressCluster(type, data, new Uint8Array(4096));
          } catch (error) {
            if (!(error instanceof BlockError)) throw error;
          }
        },
      ),
      { numRuns: 300 },
    );
  });
}

Deno.test("zlib: what is written needs a window of 4 KiB, what is read may have any", () => {
  const far = random(40000);
  const cluster = new Uint8Array(65536);
  cluster.set(far.subarray(0, 20000));
  cluster.set(far.subarray(0, 20000), 20000); // repeats further back than 4 KiB
  const packed = now(directCompressors.zlib.compress(cluster));
  assert(packed !== null && inflatesWithWindow(packed, 12));
  const wide = zlib.deflateRawSync(cluster, { windowBits: 15 });
  assert(!inflatesWithWindow(wide, 12));
  const back = new Uint8Array(65536);
  decompressCluster("zlib", wide, back);
  assertEquals(back, cluster);
});

Deno.test("zstd: a frame with a checksum comes back, whatever follows it", () => {
  for (const size of [512, 4096, 65536]) {
    const params = { [zlib.constants.ZSTD_c_checksumFlag]: 1 };
    const packed = zlib.zstdCompressSync(text(size), { params });
    const back = new Uint8Array(size);
    decompressCluster("zstd", concat(packed, random(300)), back);
    assertEquals(back, text(size));
  }
});

Deno.test("zstd: a frame that asks for a huge window is refused", () => {
  const windowLog = 27;
  const blockHeader = 1 | (1 << 1) | (4096 << 3); // the last one, of 4096 equal bytes
  const frame = Uint8Array.of(
    ...[0x28, 0xb5, 0x2f, 0xfd, 0, (windowLog - 10) << 3],
    ...[blockHeader & 255, (blockHeader >> 8) & 255, blockHeader >> 16, 0x41],
  );
  assertThrows(() => decompressCluster("zstd", frame, new Uint8Array(4096)), BlockError, "memory");
  frame[5] = (23 - 10) << 3;
  const cluster = new Uint8Array(4096);
  decompressCluster("zstd", frame, cluster);
  assertEquals(cluster, new Uint8Array(4096).fill(0x41));
});
