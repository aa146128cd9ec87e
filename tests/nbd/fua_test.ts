// Writes with FUA: durable before their replies, at the price of one flush for all that come at
// once.
import { assertEquals } from "@std/assert";
import { BlockError } from "../../src/block/errors.ts";
import { concatBytes } from "../../src/nbd/codec.ts";
import { limits } from "../../src/limits.ts";
import { settleAll } from "../support/fake_clock.ts";
import { MemoryExport } from "../support/memory_export.ts";
import { FedStream, pattern, request, startTransmission } from "../support/nbd.ts";

const WRITE = 1;
const FUA = 1;

function fuaWrite(cookie: number, offset: number): Uint8Array<ArrayBuffer> {
  return request({ type: WRITE, flags: FUA, cookie, offset, payload: pattern(512, cookie) });
}

/** Cookies and errors of simple replies. */
function replies(stream: FedStream): [number, number][] {
  const bytes = stream.take();
  const view = new DataView(bytes.buffer);
  const all: [number, number][] = [];
  for (let at = 0; at < bytes.length; at += 16) {
    all.push([view.getUint32(at + 12), view.getUint32(at + 4)]);
  }
  return all;
}

Deno.test("Transmission flushes once for writes with FUA that come together", () => {
  const exported = new MemoryExport(pattern(65536));
  const { stream } = startTransmission(exported, { style: "simple" });
  stream.feed(concatBytes([
    ...[1, 2, 3].map((cookie) => fuaWrite(cookie, cookie * 512)),
    request({ type: WRITE, cookie: 4, offset: 4096, payload: pattern(512, 4) }),
    request({ type: WRITE, flags: FUA, cookie: 5, offset: 65536, payload: pattern(1) }),
  ]));
  // What needs no flush is answered before.
  assertEquals(replies(stream), [[4, 0], [5, 28], [1, 0], [2, 0], [3, 0]]);
  assertEquals(exported.calls.slice(-5), [
    "write 512+512",
    "write 1024+512",
    "write 1536+512",
    "write 4096+512",
    "flush 0+0",
  ]);
  stream.feed(fuaWrite(6, 0));
  assertEquals(replies(stream), [[6, 0]]);
  stream.finish("over");
});

Deno.test("Transmission fails all writes with FUA whose flush failed", async () => {
  for (const isLate of [false, true]) {
    const exported = new MemoryExport(pattern(65536), {
      before: (operation) => {
        if (operation !== "flush") return;
        const error = new BlockError("ENOSPC", "no room");
        if (isLate) return Promise.reject(error);
        throw error;
      },
    });
    const { stream } = startTransmission(exported, { style: "simple" });
    stream.feed(concatBytes([fuaWrite(1, 0), fuaWrite(2, 512)]));
    await settleAll();
    assertEquals(replies(stream), [[1, 28], [2, 28]]);
    stream.finish("over");
  }
});

Deno.test("Transmission goes on where more writes with FUA come than may be in flight", () => {
  const exported = new MemoryExport(pattern(65536));
  const { stream } = startTransmission(exported, { style: "simple" });
  const count = 3 * limits.nbdRequestsInFlight + 5;
  const writes = Array.from({ length: count }, (_, index) => fuaWrite(index + 1, 0));
  stream.feed(concatBytes(writes));
  assertEquals(replies(stream).length, count);
  assertEquals(exported.calls.filter((call) => call === "flush 0+0").length, 4);
  stream.finish("over");
});

Deno.test("Transmission asks an export that answers later for FUA by itself", async () => {
  const exported = new MemoryExport(pattern(65536), {
    before: () => Promise.resolve(),
  });
  const { stream } = startTransmission(exported, { style: "simple" });
  stream.feed(fuaWrite(1, 0));
  await settleAll();
  stream.feed(concatBytes([fuaWrite(2, 0), fuaWrite(3, 512)]));
  await settleAll();
  assertEquals(replies(stream), [[1, 0], [2, 0], [3, 0]]);
  assertEquals(exported.calls, [
    "write 0+512",
    "flush 0+0",
    "write 0+512 flags 1",
    "write 512+512 flags 1",
  ]);
  stream.finish("over");
});
