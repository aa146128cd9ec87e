// Transcripts of the transmission phase, written from the protocol's document ("Transmission",
// "Request types", "Structured reply types", and the EXTENDED_HEADERS extension).
import { assert, assertEquals } from "@std/assert";
import { BlockError, type BlockErrorCode } from "../../src/block/errors.ts";
import { MemoryExport } from "../support/memory_export.ts";
import { be, hex, pattern, request, startTransmission, toHex } from "../support/nbd.ts";

const READ = 0, WRITE = 1, DISC = 2, FLUSH = 3, TRIM = 4, CACHE = 5, ZEROES = 6, STATUS = 7;
const FUA = 1, NO_HOLE = 2, DF = 4, REQ_ONE = 8, FAST_ZERO = 16, PAYLOAD_LEN = 32;
const COOKIE = 0x1122334455667788n;
const MiB = 1024 * 1024;

type Style = "simple" | "structured" | "extended";

const SIMPLE = (errno: number, data = "") => hex("67446698", be(4, errno), be(8, COOKIE), data);

/** A structured chunk, by its type, and its payload. */
function chunk(type: number, payload: string, { isDone = true, cookie = COOKIE } = {}) {
  const length = hex(payload).length;
  return hex(
    "668e33ef",
    isDone ? "0001" : "0000",
    be(2, type),
    be(8, cookie),
    be(4, length),
    payload,
  );
}

/** An extended chunk; `offset` is the request's. */
function extended(type: number, offset: number | bigint, payload: string, isDone = true) {
  return hex(
    "6e8a278c",
    isDone ? "0001" : "0000",
    be(2, type),
    be(8, COOKIE),
    be(8, offset),
    be(8, hex(payload).length),
    payload,
  );
}

/** The payload of an error chunk. */
function failure(errno: number, message: string, offset?: number): string {
  const text = new TextEncoder().encode(message);
  return [be(4, errno), be(2, text.length), toHex(text), offset === undefined ? "" : be(8, offset)]
    .join(" ");
}

const NONE = chunk(0, "");
const PAST_END = "the request reaches past the end of the export";

interface Case {
  request: Parameters<typeof request>[0];
  answer: Uint8Array;
  style?: Style;
  exported?: MemoryExport;
  contexts?: string[];
  /** What the export must have been asked. */
  calls?: string[];
}

function check(name: string, one: Case): void {
  Deno.test(`Transmission answers ${name}`, () => {
    const { style = "structured", contexts = [] } = one;
    const exported = one.exported ?? memory();
    const { stream } = startTransmission(exported, { style, contexts });
    stream.feed(request({ cookie: COOKIE, isExtended: style === "extended", ...one.request }));
    assertEquals(toHex(stream.take()), toHex(one.answer));
    if (one.calls !== undefined) assertEquals(exported.calls, one.calls);
    // Whatever it was, the connection must still understand the next request.
    stream.feed(request({ type: FLUSH, isExtended: style === "extended" }));
    assert(stream.take().length > 0);
    stream.finish("over");
  });
}

const BYTES = pattern(8192);
const DATA = (offset: number, length: number) => toHex(BYTES.subarray(offset, offset + length));

function memory(options: ConstructorParameters<typeof MemoryExport>[1] = {}): MemoryExport {
  return new MemoryExport(BYTES.slice(), options);
}

/** 4 KiB of pattern, 4 KiB of zeroes. */
function half(): MemoryExport {
  const bytes = BYTES.slice();
  bytes.fill(0, 4096);
  return new MemoryExport(bytes);
}

check("READ simply", {
  style: "simple",
  request: { type: READ, offset: 3, length: 5 },
  answer: SIMPLE(0, DATA(3, 5)),
});
check("READ of nothing simply", {
  style: "simple",
  request: { type: READ, offset: 3 },
  answer: SIMPLE(0),
});
check("READ past the end simply", {
  style: "simple",
  request: { type: READ, offset: 8190, length: 3 },
  answer: SIMPLE(22),
  calls: [],
});
check("READ beyond the payload limit simply", {
  style: "simple",
  request: { type: READ, length: 32 * MiB + 1 },
  answer: SIMPLE(22),
});
check("READ of zeroes simply, as data", {
  style: "simple",
  exported: half(),
  request: { type: READ, offset: 4096, length: 16 },
  answer: SIMPLE(0, "00".repeat(16)),
});
check("READ with a data chunk", {
  request: { type: READ, offset: 3, length: 5 },
  answer: chunk(1, `${be(8, 3)} ${DATA(3, 5)}`),
});
check("READ with an extended data chunk", {
  style: "extended",
  request: { type: READ, offset: 3, length: 5 },
  answer: extended(1, 3, `${be(8, 3)} ${DATA(3, 5)}`),
});
check("READ of the last byte", {
  request: { type: READ, offset: 8191, length: 1 },
  answer: chunk(1, `${be(8, 8191)} ${DATA(8191, 1)}`),
});
check("READ of nothing with no content chunk", {
  request: { type: READ, offset: 8192 },
  answer: NONE,
});
check("READ of zeroes with a hole", {
  exported: half(),
  request: { type: READ, offset: 4097, length: 4095 },
  answer: chunk(2, `${be(8, 4097)} ${be(4, 4095)}`),
});
check("READ of zeroes with an extended hole", {
  style: "extended",
  exported: half(),
  request: { type: READ, offset: 4096, length: 4096 },
  answer: extended(2, 4096, `${be(8, 4096)} ${be(4, 4096)}`),
});
check("READ of zeroes with data under DF", {
  exported: half(),
  request: { type: READ, flags: DF, offset: 4096, length: 4 },
  answer: chunk(1, `${be(8, 4096)} 00000000`),
});
check("READ past the end", {
  request: { type: READ, offset: 8192, length: 1 },
  answer: chunk(0x8001, failure(22, PAST_END)),
});
check("READ at 2^64 - 1", {
  style: "extended",
  request: { type: READ, offset: 0xffffffffffffffffn, length: 1 },
  answer: extended(0x8001, 0xffffffffffffffffn, failure(22, PAST_END)),
});
check("READ beyond the payload limit", {
  request: { type: READ, length: 32 * MiB + 1 },
  answer: chunk(0x8001, failure(75, "longer than the maximum payload")),
});
check("READ of 2^64 - 1 bytes", {
  style: "extended",
  request: { type: READ, length: 0xffffffffffffffffn },
  answer: extended(0x8001, 0, failure(75, "longer than the maximum payload")),
});
check("READ that the export refuses, EACCES as EPERM with the reason", {
  exported: memory({ forbidden: [{ offset: 4096, length: 512 }] }),
  request: { type: READ, offset: 4000, length: 512 },
  answer: chunk(0x8001, failure(1, "bytes at 4096 may not be read")),
});
check("WRITE", {
  request: { type: WRITE, offset: 7, payload: hex("0102") },
  answer: NONE,
  calls: ["write 7+2"],
});
check("WRITE simply", {
  style: "simple",
  request: { type: WRITE, payload: hex("0102") },
  answer: SIMPLE(0),
});
check("WRITE with FUA", {
  request: { type: WRITE, flags: FUA, payload: hex("01") },
  answer: NONE,
  calls: ["write 0+1", "flush 0+0"],
});
check("WRITE of nothing", { request: { type: WRITE }, answer: NONE, calls: [] });
check("WRITE past the end, its payload skipped", {
  request: { type: WRITE, offset: 8191, payload: hex("0102") },
  answer: chunk(0x8001, failure(28, PAST_END)),
  calls: [],
});
check("WRITE on a read-only export, its payload skipped", {
  exported: memory({ isReadOnly: true }),
  request: { type: WRITE, payload: hex("0102") },
  answer: chunk(0x8001, failure(1, "this export is read-only")),
  calls: [],
});
check("WRITE with extended headers", {
  style: "extended",
  request: { type: WRITE, flags: PAYLOAD_LEN, offset: 9, payload: hex("0102") },
  answer: extended(0, 9, ""),
  calls: ["write 9+2"],
});
check("WRITE with extended headers but without PAYLOAD_LEN, as QEMU's client sends it", {
  style: "extended",
  request: { type: WRITE, offset: 9, payload: hex("0102") },
  answer: extended(0, 9, ""),
  calls: ["write 9+2"],
});
check("FLUSH, whatever its offset and length", {
  request: { type: FLUSH, offset: 1n << 63n, length: 77 },
  answer: NONE,
  calls: ["flush 0+0"],
});
check("TRIM", {
  request: { type: TRIM, offset: 512, length: 1024 },
  answer: NONE,
  calls: ["discard 512+1024"],
});
check("TRIM with FUA by a flush", {
  request: { type: TRIM, flags: FUA, length: 512 },
  answer: NONE,
  calls: ["discard 0+512", "flush 0+0"],
});
check("TRIM past the end", {
  request: { type: TRIM, offset: 8192, length: 1 },
  answer: chunk(0x8001, failure(22, PAST_END)),
});
check("TRIM on a read-only export", {
  exported: memory({ isReadOnly: true }),
  request: { type: TRIM, length: 1 },
  answer: chunk(0x8001, failure(1, "this export is read-only")),
});
check("TRIM on a read-only view that can be discarded", {
  exported: memory({ isReadOnly: true, canDiscard: true }),
  request: { type: TRIM, length: 512 },
  answer: NONE,
  calls: ["discard 0+512"],
});
check("TRIM on an export that can't", {
  exported: memory({ canDiscard: false }),
  request: { type: TRIM, length: 1 },
  answer: chunk(0x8001, failure(22, "this export does not support NBD_CMD_TRIM")),
});
check("CACHE", { request: { type: CACHE, length: 8192 }, answer: NONE, calls: [] });
check("CACHE past the end", {
  request: { type: CACHE, length: 8193 },
  answer: chunk(0x8001, failure(22, PAST_END)),
});
check("WRITE_ZEROES, which may unmap", {
  request: { type: ZEROES, offset: 512, length: 512 },
  answer: NONE,
  calls: ["writeZeroes 512+512 flags 2"],
});
check("WRITE_ZEROES with NO_HOLE and FUA", {
  request: { type: ZEROES, flags: NO_HOLE | FUA, length: 512 },
  answer: NONE,
  calls: ["writeZeroes 0+512 flags 1"],
});
check("WRITE_ZEROES with FAST_ZERO", {
  request: { type: ZEROES, flags: FAST_ZERO, length: 512 },
  answer: NONE,
  calls: ["writeZeroes 0+512 flags 6"],
});
check("WRITE_ZEROES with FAST_ZERO that would be slow", {
  request: { type: ZEROES, flags: FAST_ZERO, length: 100 },
  answer: chunk(0x8001, failure(95, "not fast where it is not aligned")),
});
check("WRITE_ZEROES past the end", {
  request: { type: ZEROES, length: 8193 },
  answer: chunk(0x8001, failure(28, PAST_END)),
});
check("WRITE_ZEROES on a read-only export", {
  exported: memory({ isReadOnly: true }),
  request: { type: ZEROES, length: 1 },
  answer: chunk(0x8001, failure(1, "this export is read-only")),
});

const BAD_FLAG = chunk(
  0x8001,
  failure(22, "a command flag that is unknown, not advertised or not valid for this command"),
);
for (
  const [what, type, flags] of [
    ["REQ_ONE on READ", READ, REQ_ONE],
    ["DF on WRITE", WRITE, DF],
    ["NO_HOLE on TRIM", TRIM, NO_HOLE],
    ["FAST_ZERO on FLUSH", FLUSH, FAST_ZERO],
    ["a flag nobody knows on CACHE", CACHE, 0x8000],
    ["PAYLOAD_LEN in a compact request", READ, PAYLOAD_LEN],
  ] as const
) {
  check(what, { request: { type, flags, length: 1, ...withPayload(type) }, answer: BAD_FLAG });
}

function withPayload(type: number): { payload?: Uint8Array } {
  return type === WRITE ? { payload: hex("00") } : {};
}

check("FUA on READ, which is let pass", {
  request: { type: READ, flags: FUA, length: 2 },
  answer: chunk(1, `${be(8, 0)} ${DATA(0, 2)}`),
});
check("FAST_ZERO on a read-only export, where it is not advertised", {
  exported: memory({ isReadOnly: true }),
  request: { type: ZEROES, flags: FAST_ZERO, length: 512 },
  answer: BAD_FLAG,
});
check("DF without structured replies, where it is not advertised", {
  style: "simple",
  request: { type: READ, flags: DF, length: 1 },
  answer: SIMPLE(22),
});
check("an unknown command", {
  request: { type: 9, length: 1 },
  answer: chunk(0x8001, failure(22, "unknown command")),
});
check("an unknown command simply", {
  style: "simple",
  request: { type: 8, flags: 7 },
  answer: SIMPLE(22),
});
check("a payload on a command that takes none, which is skipped", {
  style: "extended",
  request: { type: READ, flags: PAYLOAD_LEN, payload: hex("010203") },
  answer: extended(
    0x8001,
    0,
    failure(22, "a command flag that is unknown, not advertised or not valid for this command"),
  ),
});

const ALLOCATION = ["base:allocation"];
const BOTH = ["base:allocation", "x-ovis:access"];
check("BLOCK_STATUS", {
  exported: half(),
  contexts: ALLOCATION,
  request: { type: STATUS, offset: 1, length: 8191 },
  answer: chunk(5, "00000001 00000fff 00000000 00001000 00000003"),
});
check("BLOCK_STATUS with REQ_ONE", {
  exported: half(),
  contexts: ALLOCATION,
  request: { type: STATUS, flags: REQ_ONE, length: 8192 },
  answer: chunk(5, "00000001 00001000 00000000"),
});
check("BLOCK_STATUS of two contexts with a chunk each", {
  exported: half(),
  contexts: BOTH,
  request: { type: STATUS, length: 8192 },
  answer: hex(
    toHex(chunk(5, "00000001 00001000 00000000 00001000 00000003", { isDone: false })),
    toHex(chunk(5, "00000002 00002000 00000000")),
  ),
});
check("BLOCK_STATUS with extended headers", {
  style: "extended",
  exported: half(),
  contexts: ALLOCATION,
  request: { type: STATUS, length: 8192 },
  answer: extended(6, 0, `00000001 00000002 ${be(8, 4096)} ${be(8, 0)} ${be(8, 4096)} ${be(8, 3)}`),
});
check("BLOCK_STATUS with a payload that chooses a context", {
  style: "extended",
  contexts: BOTH,
  request: { type: STATUS, flags: PAYLOAD_LEN, payload: hex(be(8, 8192), "00000002") },
  answer: extended(6, 0, `00000002 00000001 ${be(8, 8192)} ${be(8, 0)}`),
});
const BAD_IDS = failure(
  22,
  "the payload must be an effect length and at least one negotiated context id, each once",
);
for (
  const [what, payload] of [
    ["an unknown id", hex(be(8, 8192), "00000003")],
    ["an id twice", hex(be(8, 8192), "00000001 00000001")],
    ["no id", hex(be(8, 8192))],
    ["half an id", hex(be(8, 8192), "0000")],
    ["more ids than there are contexts", hex(be(8, 8192), "00000001 00000002 00000003")],
  ] as const
) {
  check(`BLOCK_STATUS with a payload that has ${what}`, {
    style: "extended",
    contexts: BOTH,
    request: { type: STATUS, flags: PAYLOAD_LEN, payload },
    answer: extended(0x8001, 0, BAD_IDS),
  });
}
check("BLOCK_STATUS whose payload has an effect length past the end", {
  style: "extended",
  contexts: ALLOCATION,
  request: { type: STATUS, flags: PAYLOAD_LEN, payload: hex(be(8, 8193), "00000001") },
  answer: extended(0x8001, 0, failure(22, PAST_END)),
});
check("BLOCK_STATUS without a context", {
  request: { type: STATUS, length: 1 },
  answer: chunk(0x8001, failure(22, "no metadata context was negotiated for this export")),
});
check("BLOCK_STATUS of nothing", {
  contexts: ALLOCATION,
  request: { type: STATUS },
  answer: chunk(0x8001, failure(22, "a block status of no bytes")),
});
check("BLOCK_STATUS past the end", {
  contexts: ALLOCATION,
  request: { type: STATUS, offset: 1, length: 8192 },
  answer: chunk(0x8001, failure(22, PAST_END)),
});
check("BLOCK_STATUS of a forbidden area as a hole, and as refused in the access context", {
  exported: memory({ forbidden: [{ offset: 4096, length: 4096 }] }),
  contexts: BOTH,
  request: { type: STATUS, length: 8192 },
  answer: hex(
    toHex(chunk(5, "00000001 00001000 00000000 00001000 00000001", { isDone: false })),
    toHex(chunk(5, "00000002 00001000 00000000 00001000 00000001")),
  ),
});
check("BLOCK_STATUS of two contexts that fail, with one error", {
  exported: memory({
    before: (operation) => {
      if (operation === "extents") throw new BlockError("EIO", "no map");
    },
  }),
  contexts: BOTH,
  request: { type: STATUS, length: 8192 },
  answer: chunk(0x8001, failure(5, "no map")),
});

for (
  const [code, errno] of [
    ["EACCES", 1],
    ["EBUSY", 5],
    ["EFBIG", 28],
    ["EINVAL", 22],
    ["EIO", 5],
    ["ENOENT", 5],
    ["ENOSPC", 28],
    ["ENOTSUP", 22],
    ["EPERM", 1],
    ["ESHUTDOWN", 108],
    ["ETIMEDOUT", 5],
  ] satisfies [BlockErrorCode, number][]
) {
  const exported = (isLater: boolean) =>
    memory({
      before: (operation) => {
        if (operation === "flush") return;
        const error = new BlockError(code, `no: ${code}`);
        if (isLater) return Promise.reject(error);
        throw error;
      },
    });
  check(`an export's ${code} as ${errno}`, {
    exported: exported(false),
    request: { type: ZEROES, length: 1 },
    answer: chunk(0x8001, failure(errno, `no: ${code}`)),
  });
  Deno.test(`Transmission answers an export's late ${code} as ${errno}`, async () => {
    const { stream } = startTransmission(exported(true));
    stream.feed(request({ type: READ, cookie: COOKIE, length: 10 }));
    stream.feed(request({ type: WRITE, cookie: COOKIE, payload: hex("01") }));
    for (let turn = 0; turn < 10; turn++) await Promise.resolve();
    const one = toHex(chunk(0x8001, failure(errno, `no: ${code}`)));
    assertEquals(toHex(stream.take()), toHex(hex(one, one)));
    stream.finish("over");
  });
}

Deno.test("Transmission answers an error that is no BlockError as EIO", () => {
  const exported = memory({
    before: () => {
      throw new Error("odd");
    },
  });
  const { stream } = startTransmission(exported);
  stream.feed(request({ type: READ, cookie: COOKIE, length: 10 }));
  assertEquals(toHex(stream.take()), toHex(chunk(0x8001, failure(5, "odd"))));
  stream.finish("over");
});

Deno.test("Transmission cuts a long message at a whole character", () => {
  const exported = memory({
    before: () => {
      throw new BlockError("EIO", "é".repeat(200));
    },
  });
  const { stream } = startTransmission(exported);
  stream.feed(request({ type: READ, cookie: COOKIE, length: 10 }));
  assertEquals(toHex(stream.take()), toHex(chunk(0x8001, failure(5, "é".repeat(128)))));
  stream.finish("over");
});

Deno.test("Transmission ends on DISC without a reply, and looks at nothing behind it", () => {
  const exported = memory();
  const { stream } = startTransmission(exported);
  stream.feed(hex(toHex(request({ type: DISC })), toHex(request({ type: FLUSH }))));
  assertEquals(stream.take().length, 0);
  assertEquals(exported.calls, []);
  assertEquals(stream.closedWith, "the client disconnected");
});

Deno.test("Transmission closes on a request without its magic number", () => {
  for (const style of ["simple", "structured", "extended"] as const) {
    const { stream } = startTransmission(memory(), { style });
    stream.feed(new Uint8Array(32));
    assertEquals(stream.take().length, 0);
    assertEquals(stream.closedWith, "a request without its magic number, or too long");
  }
});

Deno.test("Transmission skips a compact payload beyond the limit and goes on", () => {
  const { stream } = startTransmission(memory());
  stream.feed(request({ type: WRITE, cookie: COOKIE, length: 40 * MiB }));
  for (let sent = 0; sent < 40; sent++) stream.feed(new Uint8Array(MiB));
  const tooLong = chunk(0x8001, failure(22, "longer than the maximum payload"));
  assertEquals(toHex(stream.take()), toHex(tooLong));
  stream.feed(request({ type: FLUSH, cookie: COOKIE }));
  assertEquals(toHex(stream.take()), toHex(NONE));
  stream.finish("over");
});

Deno.test("Transmission closes on an extended payload beyond the limit", () => {
  const { stream } = startTransmission(memory(), { style: "extended" });
  const length = 32 * MiB + 1;
  stream.feed(request({ type: WRITE, flags: PAYLOAD_LEN, length, isExtended: true }));
  assertEquals(stream.closedWith, "a request without its magic number, or too long");
});

Deno.test("Transmission bounds the extents of a block status", () => {
  const asked: number[] = [];
  const context = (name: string) => ({
    name,
    extents: (_offset: number, _length: number, { maxExtents }: { maxExtents: number }) => {
      asked.push(maxExtents);
      return Array.from({ length: maxExtents }, (_, at) => ({ length: 1, flags: at % 2 }));
    },
  });
  const exported = Object.assign(memory(), { contexts: [context("x-a:1"), context("x-a:2")] });
  const { stream } = startTransmission(exported, { contexts: ["x-a:1", "x-a:2"] });
  stream.feed(request({ type: STATUS, length: 8192 }));
  assertEquals(asked, [32768, 32768]);
  assertEquals(stream.take().length, 2 * (20 + 4 + 8 * 32768));
  stream.finish("over");
});

Deno.test("Transmission answers a context that breaks its promise with an error", () => {
  for (const extents of [[], [{ length: 1, flags: 0 }, { length: 1, flags: 1 }]]) {
    const contexts = [{ name: "x-a:1", extents: () => extents }];
    const exported = Object.assign(memory(), { contexts });
    const { stream } = startTransmission(exported, { contexts: ["x-a:1"] });
    stream.feed(request({ type: STATUS, flags: REQ_ONE, cookie: COOKIE, length: 8192 }));
    const message = `context x-a:1 gave ${extents.length} extents`;
    assertEquals(toHex(stream.take()), toHex(chunk(0x8001, failure(5, message))));
    stream.finish("over");
  }
});
