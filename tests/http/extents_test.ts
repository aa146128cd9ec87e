import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { intersect } from "../../src/http/extents.ts";

const SIZE = 64;

/** A map in which neighbours may be alike. */
const map = fc.array(fc.tuple(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 0, max: 3 })), {
  minLength: 1,
  maxLength: 12,
}).map((runs) => {
  let at = 7;
  return runs.map(([length, flags]) => {
    const extent = { offset: at, length, flags };
    at += length;
    return extent;
  });
});

function flagsAt(extents: readonly { offset: number; length: number; flags: number }[]) {
  return extents.flatMap(({ length, flags }) => Array(length).fill(flags)).slice(0, SIZE);
}

Deno.test("intersect() says of every byte what both maps say, as far as both go", () => {
  fc.assert(fc.property(map, map, (first, second) => {
    const runs = [...intersect(first, second)];
    let at = 7;
    for (const { offset, length } of runs) {
      assertEquals(offset, at);
      at += length;
    }
    const [a, b] = [flagsAt(first), flagsAt(second)];
    const both = runs.flatMap(({ length, flags }) => Array(length).fill(flags)).slice(0, SIZE);
    const expected = Array.from({ length: Math.min(a.length, b.length) }, (_, i) => [a[i], b[i]]);
    assertEquals(both, expected);
  }));
});
