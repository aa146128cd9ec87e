/**
 * The bytes of the bitmaps extension: what is written is read, and what is wrong is said in QEMU's
 * words.
 *
 * @module
 */

import { assertEquals, assertThrows } from "@std/assert";
import {
  BITMAP_AUTO,
  BITMAP_IN_USE,
  checkBitmapConstraints,
  directoryBytes,
  type DirectoryEntry,
  encodeBitmapExtension,
  encodeDirectory,
  parseBitmapExtension,
  parseDirectory,
  parseTableEntry,
} from "../../../src/block/qcow2/bitmap_directory.ts";
import { BlockError } from "../../../src/block/errors.ts";

const CLUSTER = 65536;
const IMAGE = { clusterSize: CLUSTER, sizeBytes: 2 ** 30 };

function entry(name: string, changes: Partial<DirectoryEntry> = {}): DirectoryEntry {
  return {
    name,
    nameBytes: new TextEncoder().encode(name),
    tableOffset: 5 * CLUSTER,
    tableSize: 1,
    flags: BITMAP_AUTO,
    granularityBits: 16,
    ...changes,
  };
}

function fails(action: () => unknown, message: string): void {
  assertEquals(assertThrows(action, BlockError).message, message);
}

Deno.test("directories and extensions are read as they were written", () => {
  const entries = [entry("a"), entry("ö".repeat(511), { flags: BITMAP_IN_USE }), entry("12345678")];
  const bytes = encodeDirectory(entries);
  assertEquals(bytes.length % 8, 0);
  assertEquals(bytes.length, directoryBytes(entries.map(({ name }) => name)));
  assertEquals(parseDirectory(bytes, 3, IMAGE), entries);
  const extension = { count: 3, directoryOffset: 7 * CLUSTER, directoryBytes: bytes.length };
  assertEquals(parseBitmapExtension(encodeBitmapExtension(extension), CLUSTER), extension);
});

Deno.test("a name that is no text is kept as it is", () => {
  const odd = entry("\ufffd", { nameBytes: Uint8Array.of(0xff) });
  assertEquals(parseDirectory(encodeDirectory([odd]), 1, IMAGE), [odd]);
});

Deno.test("parseBitmapExtension() refuses what contradicts itself", () => {
  const good = { count: 1, directoryOffset: CLUSTER, directoryBytes: 32 };
  const changed = (at: number, value: number) => {
    const data = encodeBitmapExtension(good);
    new DataView(data.buffer).setUint32(at, value);
    return () => parseBitmapExtension(data, CLUSTER);
  };
  fails(
    () => parseBitmapExtension(new Uint8Array(23), CLUSTER),
    "bitmaps_ext: Invalid extension length",
  );
  fails(changed(0, 0), "found bitmaps extension with zero bitmaps");
  fails(
    changed(0, 65536),
    "bitmaps_ext: image has 65536 bitmaps, exceeding the QEMU supported maximum of 65535",
  );
  fails(changed(4, 1), "bitmaps_ext: Reserved field is not zero");
  fails(changed(20, CLUSTER + 512), "bitmaps_ext: invalid bitmap directory offset");
  fails(changed(16, 0x80000000), "bitmaps_ext: invalid bitmap directory offset");
  fails(
    changed(8, 1),
    "bitmaps_ext: bitmap directory size (4294967328) exceeds the maximum supported size (67107840)",
  );
});

Deno.test("parseDirectory() refuses entries that make no sense", () => {
  const parse = (changes: Partial<DirectoryEntry>, count = 1) => () =>
    parseDirectory(encodeDirectory([entry("b", changes)]), count, IMAGE);
  const constraints = "Bitmap 'b' doesn't satisfy the constraints";
  fails(parse({ tableOffset: 0 }), constraints);
  fails(parse({ tableOffset: CLUSTER + 512 }), constraints);
  fails(parse({ tableSize: 0 }), constraints);
  fails(parse({ tableSize: 0x20000 }), constraints);
  fails(parse({ granularityBits: 8 }), constraints);
  fails(parse({ granularityBits: 32 }), constraints);
  fails(parse({ flags: 4 }), constraints);
  // Too small for the disk, unless its bits don't count any more.
  fails(() =>
    parseDirectory(encodeDirectory([entry("b", { granularityBits: 9 })]), 1, {
      ...IMAGE,
      sizeBytes: 2 ** 40,
    }), constraints);
  fails(parse({}, 0), "More bitmaps found than specified in header extension");
  fails(parse({}, 2), "Less bitmaps found than specified in header extension");
  const twice = encodeDirectory([entry("b"), entry("b")]);
  fails(() => parseDirectory(twice, 2, IMAGE), "Bitmap already exists: b");
  const bytes = encodeDirectory([entry("b")]);
  fails(() => parseDirectory(bytes.subarray(0, 16), 1, IMAGE), "Broken bitmap directory");
  bytes[23] = 1; // extra data
  fails(() => parseDirectory(bytes, 1, IMAGE), "Bitmap extra data is not supported");
});

Deno.test("parseTableEntry() knows zeroes, ones, clusters, and nothing else", () => {
  assertEquals(parseTableEntry(0n, CLUSTER), "zeroes");
  assertEquals(parseTableEntry(1n, CLUSTER), "ones");
  assertEquals(parseTableEntry(BigInt(3 * CLUSTER), CLUSTER), { offset: 3 * CLUSTER });
  for (const value of [2n, BigInt(CLUSTER) + 1n, BigInt(CLUSTER) + 512n, 1n << 60n]) {
    assertEquals(parseTableEntry(value, CLUSTER), "invalid");
  }
});

Deno.test("checkBitmapConstraints() says what there is no room for", () => {
  const check = (changes: { granularity?: number; sizeBytes?: number; name?: string }) => () =>
    checkBitmapConstraints(
      { name: "b", granularity: 65536, sizeBytes: 2 ** 40, ...changes },
      CLUSTER,
    );
  check({})();
  fails(check({ name: "x".repeat(1024) }), "Name length exceeds maximum (1023 characters)");
  fails(check({ granularity: 256 }), "Granularity is under minimum (512 bytes)");
  fails(check({ granularity: 2 ** 32 }), "Granularity exceeds maximum (2147483648 bytes)");
  fails(
    check({ granularity: 512, sizeBytes: 2 ** 42 }),
    "Too much space will be occupied by the bitmap. Use larger granularity",
  );
});
