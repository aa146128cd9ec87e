import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { convertDisks, zeroAndDataRuns } from "../../../src/block/image/convert.ts";
import { IoVector } from "../../../src/block/io_vector.ts";

const KiB = 1024;

Deno.test("zeroAndDataRuns() tells every byte once, and nothing but zeroes as zero", () => {
  fc.assert(fc.property(
    fc.array(fc.tuple(fc.nat(30), fc.boolean()), { maxLength: 20 }),
    fc.nat(100),
    fc.integer({ min: 1, max: 16 }),
    (pieces, offset, unit) => {
      const data = Uint8Array.from(
        pieces.flatMap(([length, isZero]) => new Array<number>(length).fill(isZero ? 0 : 7)),
      );
      let at = 0;
      let before: boolean | null = null;
      for (const run of zeroAndDataRuns(data, offset, unit)) {
        assertEquals(run.offset, at);
        assert(run.length > 0 && run.isZero !== before);
        const bytes = data.subarray(at, at + run.length);
        if (run.isZero) assert(bytes.every((byte) => byte === 0));
        else assert(bytes.some((byte) => byte !== 0));
        // Where runs meet, a unit of the disk begins.
        if (at > 0) assertEquals((offset + at) % unit, 0);
        before = run.isZero;
        at += run.length;
      }
      assertEquals(at, data.length);
    },
  ));
});

Deno.test("convertDisks() copies random disks, whatever the options", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.nat(63), fc.integer({ min: 1, max: 8 }), fc.nat(2)), { maxLength: 12 }),
      fc.constantFrom(0, 512, 4096, 65536),
      fc.integer({ min: 1, max: 8 }),
      fc.boolean(),
      async (pieces, sparseBytes, parallel, isTargetZero) => {
        const sizeBytes = 256 * KiB + 512;
        const content = new Uint8Array(sizeBytes);
        for (const [start, length, value] of pieces) {
          content.fill(value, start * 4096, (start + length) * 4096);
        }
        const source = memory("source", sizeBytes);
        source.write(0, IoVector.of(content));
        const target = memory("target", sizeBytes);
        if (!isTargetZero) target.write(0, IoVector.of(new Uint8Array(sizeBytes).fill(9)));
        await convertDisks({ sources: [source], target, sparseBytes, isTargetZero, parallel });
        const copy = new Uint8Array(sizeBytes);
        target.read(0, IoVector.of(copy));
        assertEquals(copy, content);
      },
    ),
    { numRuns: 60 },
  );
});

function memory(nodeName: string, sizeBytes: number): MemoryNode {
  return new MemoryNode({ nodeName, sizeBytes });
}
