// Large reads: sent in pieces, their holes unread, and given whole or not at all where a view
// refuses.
import { assertEquals } from "@std/assert";
import { BlockError } from "../../src/block/errors.ts";
import { MemoryExport } from "../support/memory_export.ts";
import { be, hex, pattern, request, startTransmission, toHex } from "../support/nbd.ts";

const READ = 0, FLUSH = 3;
const DF = 4;
const COOKIE = 0x1122334455667788n;
const MiB = 1024 * 1024;

/** The last structured chunk of a reply, by its type and payload. */
function chunk(type: number, payload: string) {
  return hex("668e33ef 0001", be(2, type), be(8, COOKIE), be(4, hex(payload).length), payload);
}

/** The payload of an error chunk with an offset. */
function failure(errno: number, message: string, offset: number): string {
  const text = new TextEncoder().encode(message);
  return [be(4, errno), be(2, text.length), toHex(text), be(8, offset)].join(" ");
}

const NONE = chunk(0, "");

/** Zeroes [64 KiB, 128 KiB) and [1 MiB, 2 MiB) of 3 MiB. */
function sparse(options: ConstructorParameters<typeof MemoryExport>[1] = {}): MemoryExport {
  const bytes = pattern(3 * MiB);
  bytes.fill(0, 64 * 1024, 128 * 1024);
  bytes.fill(0, MiB, 2 * MiB);
  return new MemoryExport(bytes, options);
}

/** Offsets, lengths and types of the content chunks of a structured reply; checks their bytes. */
function contents(reply: Uint8Array, bytes: Uint8Array): string[] {
  const view = new DataView(reply.buffer, reply.byteOffset);
  const found: string[] = [];
  for (let at = 0; at < reply.length;) {
    assertEquals(view.getUint32(at), 0x668e33ef);
    const isDone = view.getUint16(at + 4) === 1;
    const type = view.getUint16(at + 6);
    const length = view.getUint32(at + 16);
    const offset = Number(view.getBigUint64(at + 20));
    if (type === 1) {
      const data = reply.subarray(at + 28, at + 20 + length);
      assertEquals(toHexEnds(data), toHexEnds(bytes.subarray(offset, offset + data.length)));
      found.push(`data ${offset}+${length - 8}`);
    } else found.push(type === 2 ? `hole ${offset}+${view.getUint32(at + 28)}` : `type ${type}`);
    at += 20 + length;
    assertEquals(isDone, at === reply.length);
  }
  return found;
}

/** Enough of long bytes to compare: their ends and their sum. */
function toHexEnds(bytes: Uint8Array): string {
  let sum = 0;
  for (const byte of bytes) sum = (Math.imul(sum, 31) + byte) >>> 0;
  return `${bytes.length} ${sum}`;
}

Deno.test("Transmission sends a large read in pieces, its holes unread", () => {
  const exported = sparse();
  const { stream } = startTransmission(exported);
  stream.feed(request({ type: READ, offset: 512, length: 3 * MiB - 512 }));
  const K = 1024;
  assertEquals(contents(stream.take(), exported.bytes), [
    `data 512+${64 * K - 512}`,
    `hole ${64 * K}+${64 * K}`,
    `data ${128 * K}+${256 * K}`,
    `data ${384 * K}+${256 * K}`,
    `data ${640 * K}+${256 * K}`,
    `data ${896 * K}+${128 * K}`,
    `hole ${MiB}+${MiB}`,
    ...[0, 1, 2, 3].map((n) => `data ${2 * MiB + n * 256 * K}+${256 * K}`),
  ]);
  const read = exported.calls.filter((call) => call.startsWith("read"));
  assertEquals(read.length, 9);
  stream.finish("over");
});

Deno.test("Transmission sends a large read under DF in one chunk", () => {
  const exported = sparse();
  const { stream } = startTransmission(exported);
  stream.feed(request({ type: READ, flags: DF, length: 3 * MiB }));
  assertEquals(contents(stream.take(), exported.bytes), [`data 0+${3 * MiB}`]);
  stream.finish("over");
});

Deno.test("Transmission gives no data of a large read that is refused in one byte", () => {
  const forbidden = [{ offset: 2 * MiB + 512, length: 512 }];
  for (const isLater of [false, true]) {
    const exported = sparse(
      isLater ? { forbidden, before: () => Promise.resolve() } : { forbidden },
    );
    const { stream } = startTransmission(exported);
    stream.feed(request({ type: READ, cookie: COOKIE, length: 3 * MiB }));
    const refused = chunk(
      0x8002,
      failure(
        1,
        `access denied: bytes ${2 * MiB + 512} to ${2 * MiB + 1024} may not be read`,
        2 * MiB + 512,
      ),
    );
    assertEquals(toHex(stream.take()), toHex(refused));
    assertEquals(exported.calls.some((call) => call.startsWith("read")), false);
    stream.finish("over");
  }
});

Deno.test("Transmission reports where a large read failed, behind the data before", () => {
  const exported = sparse({
    before: (operation, offset) => {
      if (operation === "read" && offset >= MiB) throw new BlockError("EIO", "bad sector");
    },
  });
  const { stream } = startTransmission(exported);
  stream.feed(request({ type: READ, cookie: COOKIE, offset: 64 * 1024, length: 2 * MiB }));
  const reply = stream.take();
  const error = chunk(0x8002, failure(5, "bad sector", 2 * MiB));
  assertEquals(toHex(reply.subarray(reply.length - error.length)), toHex(error));
  stream.feed(request({ type: FLUSH, cookie: COOKIE }));
  assertEquals(toHex(stream.take()), toHex(NONE));
  stream.finish("over");
});
