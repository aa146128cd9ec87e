import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { compileKernels, isZero, Kernels } from "../../src/wasm/kernels.ts";

const module = await compileKernels();
const SEED = 20260723;

/** A bitmap of `bitCount` bits in the kernels, and its plain twin. */
class Twin {
  readonly address: number;
  readonly bits: boolean[];
  readonly byteCount: number;

  constructor(readonly kernels: Kernels, readonly bitCount: number) {
    this.byteCount = Math.max(16, Math.ceil(bitCount / 128) * 16);
    this.address = kernels.allocate(this.byteCount) ?? 0;
    this.bits = new Array(bitCount).fill(false);
  }

  change(value: boolean, start: number, end: number): void {
    const { setRange, clearRange } = this.kernels.functions;
    (value ? setRange : clearRange)(this.address, start, end);
    this.bits.fill(value, start, end);
  }

  check(): void {
    const bytes = this.kernels.bytes(this.address, this.byteCount);
    const actual = this.bits.map((_, i) => ((bytes[i >> 3] ?? 0) >> (i & 7) & 1) === 1);
    assertEquals(actual, this.bits);
    for (let i = this.bitCount; i < this.byteCount * 8; i++) {
      assertEquals((bytes[i >> 3] ?? 0) >> (i & 7) & 1, 0, `bit ${i}, beyond the end`);
    }
  }

  next(value: boolean, start: number, end: number): number {
    const found = this.bits.indexOf(value, start);
    return found < 0 || found > end ? end : found;
  }
}

const range = fc.tuple(fc.nat(1500), fc.nat(1500)).map(([a, b]) => a < b ? [a, b] : [b, a]);
const changes = fc.array(fc.tuple(fc.boolean(), range), { maxLength: 20 });

Deno.test("kernels do to a bitmap what a plain loop does, on random ranges", () => {
  fc.assert(
    fc.property(changes, fc.array(range, { maxLength: 20 }), (changes, questions) => {
      const twin = new Twin(new Kernels(module), 1500);
      const { nextSet, nextClear, count, test } = twin.kernels.functions;
      for (const [value, [start = 0, end = 0]] of changes) twin.change(value, start, end);
      twin.check();
      for (const [start = 0, end = 0] of questions) {
        const part = twin.bits.slice(start, end);
        assertEquals(count(twin.address, start, end), part.filter((bit) => bit).length);
        assertEquals(nextSet(twin.address, start, end), twin.next(true, start, end));
        assertEquals(nextClear(twin.address, start, end), twin.next(false, start, end));
        if (start < 1500) assertEquals(test(twin.address, start) === 1, twin.bits[start]);
      }
    }),
    { seed: SEED, numRuns: 500 },
  );
});

Deno.test("kernels merge, subtract and project as a plain loop does", () => {
  fc.assert(
    fc.property(changes, changes, fc.nat(9), (first, second, shift) => {
      const kernels = new Kernels(module);
      const [a, b] = [new Twin(kernels, 1500), new Twin(kernels, 1500)];
      for (const [value, [start = 0, end = 0]] of first) a.change(value, start, end);
      for (const [value, [start = 0, end = 0]] of second) b.change(value, start, end);
      kernels.functions.merge(a.address, b.address, a.byteCount);
      a.bits.forEach((bit, i) => a.bits[i] = bit || b.bits[i] === true);
      a.check();

      const coarse = new Twin(kernels, Math.ceil(1500 / 2 ** shift));
      kernels.functions.projectCoarser(coarse.address, b.address, 1500, shift);
      b.bits.forEach((bit, i) => bit && (coarse.bits[i >> shift] = true));
      coarse.check();

      const fine = new Twin(kernels, 1500);
      kernels.functions.projectFiner(fine.address, 1500, coarse.address, coarse.bitCount, shift);
      fine.bits.forEach((_, i) => fine.bits[i] = coarse.bits[i >> shift] === true);
      fine.check();

      kernels.functions.andNot(a.address, b.address, a.byteCount);
      a.bits.forEach((bit, i) => a.bits[i] = bit && b.bits[i] === false);
      a.check();
    }),
    { seed: SEED, numRuns: 500 },
  );
});

Deno.test("kernels count a large bitmap whose bits are all set", () => {
  const twin = new Kernels(module);
  const bitCount = 2 ** 24 + 77;
  const address = twin.allocate(bitCount / 8) ?? 0;
  twin.functions.setRange(address, 0, bitCount);
  assertEquals(twin.functions.count(address, 0, bitCount), bitCount);
  assertEquals(twin.functions.count(address, 13, bitCount - 5), bitCount - 18);
  assertEquals(twin.functions.nextClear(address, 0, bitCount), bitCount);
});

Deno.test("Kernels.allocate() hands out zeroed pieces that don't overlap, and joins what is freed", () => {
  const kernels = new Kernels(module, { maxBytes: 1 << 20 });
  const seen = new Map<number, number>();
  let state = SEED;
  const random = (below: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor(state / 2 ** 32 * below);
  };
  for (let step = 0; step < 3000; step++) {
    if (random(2) === 0) {
      const size = 1 + random(40_000);
      const address = kernels.allocate(size);
      if (address === null) continue;
      assertEquals(address % 16, 0);
      const bytes = kernels.bytes(address, size);
      assertEquals(isZero(bytes), true, `step ${step}`);
      bytes.fill(0xff);
      for (const [other, length] of seen) {
        assertEquals(address + size <= other || other + length <= address, true);
      }
      seen.set(address, size);
    } else {
      const address = [...seen.keys()][random(seen.size)];
      if (address === undefined) continue;
      kernels.free(address, seen.get(address) ?? 0);
      seen.delete(address);
    }
  }
  for (const [address, size] of seen) kernels.free(address, size);
  assertEquals(kernels.usedBytes, 0);
  // Everything is one piece again, and the bound holds.
  const all = kernels.allocate(1 << 20);
  assertEquals(typeof all, "number");
  assertEquals(kernels.allocate(1 << 17), null);
});

Deno.test("Kernels.free() refuses a piece that is free", () => {
  const kernels = new Kernels(module);
  const address = kernels.allocate(100) ?? 0;
  kernels.allocate(100);
  kernels.free(address, 100);
  assertThrows(() => kernels.free(address, 100), Error, "freed twice");
});

Deno.test("isZero() finds one byte anywhere, in plain and shared memory", () => {
  const kernels = new Kernels(module);
  const address = kernels.allocate(200_000) ?? 0;
  for (const buffer of [new ArrayBuffer(200_000), new SharedArrayBuffer(200_000)]) {
    const whole = new Uint8Array(buffer);
    for (const length of [0, 1, 7, 8, 63, 64, 65, 4096, 65_536, 65_537, 140_001]) {
      const view = whole.subarray(3, 3 + length);
      assertEquals(isZero(view), true, `${length} zeroes`);
      for (const at of [0, 1, length >> 1, length - 1]) {
        if (at < 0 || at >= length) continue;
        view[at] = 1;
        kernels.bytes(address, length).set(view);
        assertEquals(isZero(view), false, `byte ${at} of ${length}`);
        assertEquals(kernels.functions.isZero(address, length), 0, `byte ${at} of ${length}`);
        view[at] = 0;
      }
      whole[2] = whole[3 + length] = 1;
      kernels.bytes(address, length).fill(0);
      assertEquals(isZero(view), true, `${length} zeroes among others`);
      assertEquals(kernels.functions.isZero(address, length), 1, `${length} zeroes`);
      whole[2] = whole[3 + length] = 0;
    }
  }
});
