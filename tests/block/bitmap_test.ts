import { assertEquals, assertThrows } from "@std/assert";
import { Bitmap } from "../../src/block/bitmap.ts";
import { BlockError } from "../../src/block/errors.ts";
import { compileKernels, Kernels } from "../../src/wasm/kernels.ts";

const module = await compileKernels();
const KiB = 1024;
const MiB = 1024 * KiB;

Deno.test("Bitmap.set() rounds outwards, and the last bit counts for what is left of the disk", () => {
  using bitmap = new Bitmap(new Kernels(module), {
    sizeBytes: 4 * MiB + 3584,
    granularity: 64 * KiB,
  });
  assertEquals(bitmap.bitCount, 65);
  bitmap.set(4 * MiB + 10, 1);
  assertEquals(bitmap.countBytes(), 3584);
  bitmap.set(64 * KiB - 1, 2);
  assertEquals(bitmap.countBytes(), 128 * KiB + 3584);
  assertEquals(bitmap.nextRun(0, bitmap.sizeBytes), { offset: 0, length: 128 * KiB });
  assertEquals(bitmap.nextRun(128 * KiB, bitmap.sizeBytes - 128 * KiB), {
    offset: 4 * MiB,
    length: 3584,
  });
  bitmap.setAll();
  assertEquals(bitmap.countBytes(), bitmap.sizeBytes);
});

Deno.test("Bitmap.nextSet() and nextClear() answer inside the range that was asked", () => {
  using bitmap = new Bitmap(new Kernels(module), { sizeBytes: MiB, granularity: 64 * KiB });
  bitmap.set(128 * KiB, 64 * KiB);
  assertEquals(bitmap.nextSet(0, 100), 100);
  assertEquals(bitmap.nextSet(130 * KiB, 10), 130 * KiB);
  assertEquals(bitmap.nextClear(130 * KiB, 1 * KiB), 131 * KiB);
  assertEquals(bitmap.nextClear(130 * KiB, 200 * KiB), 192 * KiB);
  assertEquals(bitmap.isAnySet(0, 128 * KiB), false);
  assertEquals(bitmap.isAnySet(0, 128 * KiB + 1), true);
  assertEquals(bitmap.isAllSet(128 * KiB, 64 * KiB), true);
  assertEquals(bitmap.isAllSet(128 * KiB, 64 * KiB + 1), false);
  assertEquals(bitmap.isAnySet(5, 0), false);
  assertEquals(bitmap.isAllSet(5, 0), true);
});

Deno.test("Bitmap.clear() takes whole bits only, the disk's end being one's end", () => {
  using bitmap = new Bitmap(new Kernels(module), { sizeBytes: 100 * KiB, granularity: 64 * KiB });
  bitmap.setAll();
  assertThrows(() => bitmap.clear(0, 1), RangeError, "whole bits");
  assertThrows(() => bitmap.clear(1, 64 * KiB), RangeError, "whole bits");
  bitmap.clear(64 * KiB, 36 * KiB);
  assertEquals(bitmap.countBytes(), 64 * KiB);
  assertThrows(() => bitmap.set(0, 100 * KiB + 1), RangeError, "not inside");
  assertThrows(() => bitmap.set(-1, 1), RangeError, "not inside");
});

Deno.test("Bitmap.merge() projects outwards to any granularity", () => {
  const kernels = new Kernels(module);
  const sizeBytes = 4 * MiB + 512;
  using source = new Bitmap(kernels, { sizeBytes, granularity: 64 * KiB });
  source.set(0, 1);
  source.set(4 * MiB, 512);
  for (const granularity of [512, 4 * KiB, 64 * KiB, 128 * KiB, MiB, 8 * MiB]) {
    using target = new Bitmap(kernels, { sizeBytes, granularity });
    target.merge(source);
    const first = Math.max(64 * KiB, granularity);
    const expected = granularity > sizeBytes ? sizeBytes : first + 512;
    assertEquals(target.countBytes(), expected, `granularity ${granularity}`);
  }
  using other = new Bitmap(kernels, { sizeBytes: MiB, granularity: 64 * KiB });
  assertThrows(() => other.merge(source), RangeError, "different disks");
});

Deno.test("Bitmap.subtract() clears what is set in the other", () => {
  const kernels = new Kernels(module);
  const shape = { sizeBytes: MiB, granularity: 64 * KiB };
  using a = new Bitmap(kernels, shape);
  using b = new Bitmap(kernels, shape);
  a.set(0, 256 * KiB);
  b.set(64 * KiB, 64 * KiB);
  a.subtract(b);
  assertEquals(a.countBytes(), 192 * KiB);
  assertEquals(a.isEmpty(), false);
  a.subtract(a);
  assertEquals(a.isEmpty(), true);
});

Deno.test("Bitmap gives its storage back, and says so when there is none", () => {
  const kernels = new Kernels(module, { maxBytes: 128 * KiB });
  const shape = { sizeBytes: 1024 * 1024 * MiB, granularity: 64 * KiB };
  const error = assertThrows(() => new Bitmap(kernels, shape), BlockError);
  assertEquals(error.code, "ENOSPC");
  {
    using bitmap = new Bitmap(kernels, { ...shape, granularity: 2 * MiB });
    bitmap.setAll();
    assertEquals(kernels.usedBytes, 64 * KiB);
  }
  assertEquals(kernels.usedBytes, 0);
  const tooFine = { sizeBytes: 2 ** 44, granularity: 512 };
  assertThrows(() => new Bitmap(kernels, tooFine), BlockError, "too fine");
});

Deno.test("Bitmap of an empty disk has no bits", () => {
  using bitmap = new Bitmap(new Kernels(module), { sizeBytes: 0, granularity: 64 * KiB });
  bitmap.setAll();
  assertEquals(bitmap.countBytes(), 0);
  assertEquals(bitmap.isEmpty(), true);
  assertEquals(bitmap.nextRun(0, 0), null);
});
