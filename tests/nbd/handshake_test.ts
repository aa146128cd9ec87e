// Transcripts of the handshake, written from the protocol's document ("Fixed newstyle negotiation",
// "Option types", and the EXTENDED_HEADERS extension).
import { assertEquals } from "@std/assert";
import type { BlockExport } from "../../src/block/export.ts";
import { directoryOf, MemoryExport } from "../support/memory_export.ts";
import {
  be,
  CLIENT_FLAGS,
  FedStream,
  go,
  hex,
  metaContext,
  option,
  pattern,
  startSession,
  toHex,
} from "../support/nbd.ts";

const GREETING = hex("'NBDMAGIC' 'IHAVEOPT' 0003");
const EXPORT_INFO = "0003e889045565a9 00000007 00000003 0000000c 0000 0000000000001000";
/** A reply with a message: its bytes and text. */
const reply = (opt: number, type: string, data = "") =>
  hex("0003e889045565a9", be(4, opt), type, be(4, hex(data).length), data);
const text = (message: string) => `'${message}'`;

function memory(options: ConstructorParameters<typeof MemoryExport>[1] = {}): MemoryExport {
  return new MemoryExport(pattern(4096), options);
}

/**
 * Feeds the parts one after the other and returns everything that was answered behind the greeting.
 */
function converse(exports: BlockExport[], ...parts: Uint8Array[]): FedStream {
  const { stream } = startSession(directoryOf(...exports), { handshakeMs: 1_000_000 });
  assertEquals(toHex(stream.take()), toHex(GREETING));
  for (const part of parts) stream.feed(part);
  return stream;
}

/** One step of talk: what a client sends behind its flags, and what must come back. */
function check(
  name: string,
  input: Uint8Array[],
  output: Uint8Array[],
  { isClosed = false, exports = [memory()] }: { isClosed?: boolean; exports?: MemoryExport[] } = {},
): void {
  Deno.test(`Handshake answers ${name}`, () => {
    const stream = converse(exports, CLIENT_FLAGS, ...input);
    const expected = hex(...output.map(toHex));
    assertEquals(toHex(stream.take()), toHex(expected));
    assertEquals(stream.closedWith !== null, isClosed);
    stream.finish("over");
  });
}

// Transmission flags of a writable export: HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN,
// CACHE, FAST_ZERO; DF (bit 7) only with structured replies.
const WRITABLE = "0d6d";
const WRITABLE_DF = "0ded";

check("EXPORT_NAME without zeroes", [option(1, hex("'mem'"))], [hex(be(8, 4096), WRITABLE)]);
check("EXPORT_NAME of the default export", [option(1)], [hex(be(8, 4096), WRITABLE)]);
check("EXPORT_NAME of an unknown export by closing", [option(1, hex("'no'"))], [], {
  isClosed: true,
});
check("EXPORT_NAME that is no UTF-8 by closing", [option(1, hex("ff"))], [], { isClosed: true });
check("EXPORT_NAME with a NUL by closing", [option(1, hex("'mem' 00"))], [], { isClosed: true });
check(
  "EXPORT_NAME after EXTENDED_HEADERS by closing",
  [option(11), option(1)],
  [reply(11, "00000001")],
  { isClosed: true },
);
check("EXPORT_NAME that is longer than any option", [hex("'IHAVEOPT' 00000001 00010001")], [], {
  isClosed: true,
});

Deno.test("Handshake pads EXPORT_NAME's answer for a client without NO_ZEROES", () => {
  const stream = converse([memory()], hex("00000001"), option(1));
  assertEquals(toHex(stream.take()), toHex(hex(be(8, 4096), WRITABLE, "00".repeat(124))));
  stream.finish("over");
});

Deno.test("Handshake serves EXPORT_NAME to a client that is not fixed newstyle", () => {
  const stream = converse([memory()], hex("00000000"), option(1));
  assertEquals(stream.take().length, 134);
  stream.finish("over");
});

Deno.test("Handshake closes on client flags that were not offered", () => {
  for (const flags of ["00000004", "80000003", "00010000"]) {
    const stream = converse([memory()], hex(flags));
    assertEquals(stream.take().length, 0);
    assertEquals(stream.closedWith?.startsWith("unknown client flags"), true);
  }
});

check("ABORT, and closes", [option(2)], [reply(2, "00000001")], { isClosed: true });
check("ABORT with data all the same", [option(2, hex("0102"))], [reply(2, "00000001")], {
  isClosed: true,
});
check(
  "LIST",
  [option(3)],
  [
    reply(3, "00000002", "00000003 'mem' 'bytes in memory'"),
    reply(3, "00000002", "00000002 'ro' 'bytes in memory'"),
    reply(3, "00000001"),
  ],
  { exports: [memory(), memory({ name: "ro", isReadOnly: true })] },
);
check("LIST of nothing", [option(3)], [reply(3, "00000001")], { exports: [] });
check("LIST with data", [option(3, hex("00"))], [
  reply(3, "80000003", text("this option takes no data")),
]);
check("STARTTLS without a certificate", [option(5)], [
  reply(5, "80000002", text("this server has no certificate")),
]);
check("STARTTLS with data", [option(5, hex("00"))], [
  reply(5, "80000003", text("this option takes no data")),
]);
check("an unknown option, and goes on", [option(77, hex("010203")), option(2)], [
  reply(77, "80000001", text("option 77 is not known here")),
  reply(2, "00000001"),
], { isClosed: true });
check("the withdrawn PEEK_EXPORT", [option(4)], [
  reply(4, "80000001", text("option 4 is not known here")),
]);
check("GO", [go()], [hex(EXPORT_INFO, WRITABLE), reply(7, "00000001")]);
check("INFO, and stays in the handshake", [go(6), option(2)], [
  hex("0003e889045565a9 00000006 00000003 0000000c 0000", be(8, 4096), WRITABLE),
  reply(6, "00000001"),
  reply(2, "00000001"),
], { isClosed: true });
check(
  "GO that asks for everything, something unknown and something twice",
  [option(7, hex("00000003 'mem' 0006 0003 0001 0002 0000 7777 0003"))],
  [
    hex(EXPORT_INFO, WRITABLE),
    reply(7, "00000003", "0001 'mem'"),
    reply(7, "00000003", "0002 'bytes in memory'"),
    reply(7, "00000003", "0003 00000001 00001000 02000000"),
    reply(7, "00000001"),
  ],
);
check("GO of an unknown export, and goes on", [option(7, hex("00000002 'no' 0000")), option(2)], [
  reply(7, "80000006", text('no export is named "no"')),
  reply(2, "00000001"),
], { isClosed: true });
check("GO where there is no default export", [go()], [
  reply(7, "80000006", text("there is no default export")),
], { exports: [] });
check("GO with DF once structured replies are on", [option(8), go()], [
  reply(8, "00000001"),
  hex(EXPORT_INFO, WRITABLE_DF),
  reply(7, "00000001"),
]);
check("GO of a read-only export", [go()], [hex(EXPORT_INFO, "050f"), reply(7, "00000001")], {
  exports: [memory({ isReadOnly: true })],
});
check(
  "GO of a read-only export that can be discarded, as not READ_ONLY but without WRITE_ZEROES",
  [go()],
  [hex(EXPORT_INFO, "052d"), reply(7, "00000001")],
  { exports: [memory({ isReadOnly: true, canDiscard: true })] },
);

const LYING = "the lengths in this option's data contradict each other";
for (
  const [what, data] of [
    ["no data", ""],
    ["a name longer than the data", "00000004 'mem' 0000"],
    ["a name of 4 GiB", "ffffffff 'mem' 0000"],
    ["fewer items than it says", "00000003 'mem' 0002 0003"],
    ["more items than it says", "00000003 'mem' 0000 0003"],
    ["half an item", "00000003 'mem' 0001 00"],
    ["a name with a NUL", "00000003 'm' 00 'm' 0000"],
    ["a name that is no UTF-8", "00000002 'm' c0 0000"],
  ] as const
) {
  check(`GO with ${what}`, [option(7, hex(data)), option(6, hex(data))], [
    reply(7, "80000003", hexOf(LYING)),
    reply(6, "80000003", hexOf(LYING)),
  ]);
}

/** Text as hexadecimal: it may hold a quote. */
function hexOf(message: string): string {
  return toHex(new TextEncoder().encode(message));
}

check("a name of 4,096 bytes as unknown, one of 4,097 as invalid", [
  option(6, hex(be(4, 4096), "61".repeat(4096), "0000")),
  option(6, hex(be(4, 4097), "61".repeat(4097), "0000")),
], [
  reply(6, "80000006", hexOf(`no export is named "${"a".repeat(4096)}"`.slice(0, 256))),
  reply(6, "80000003", hexOf(LYING)),
]);

check("STRUCTURED_REPLY, also twice", [option(8), option(8)], [
  reply(8, "00000001"),
  reply(8, "00000001"),
]);
check("STRUCTURED_REPLY with data", [option(8, hex("00"))], [
  reply(8, "80000003", text("this option takes no data")),
]);
check("STRUCTURED_REPLY after EXTENDED_HEADERS", [option(11), option(8)], [
  reply(11, "00000001"),
  reply(8, "8000000a", text("extended headers are already in use")),
]);
check("EXTENDED_HEADERS with data", [option(11, hex("00"))], [
  reply(11, "80000003", text("this option takes no data")),
]);
check("GO with extended headers and a context as BLOCK_STATUS_PAYLOAD", [
  option(11),
  metaContext(10, "", "base:allocation"),
  go(),
], [
  reply(11, "00000001"),
  reply(10, "00000004", "00000001 'base:allocation'"),
  reply(10, "00000001"),
  hex(EXPORT_INFO, "1ded"),
  reply(7, "00000001"),
]);

check("LIST_META_CONTEXT without queries", [metaContext(9, "mem")], [
  reply(9, "00000004", "00000000 'base:allocation'"),
  reply(9, "00000004", "00000000 'x-ovis:access'"),
  reply(9, "00000001"),
]);
check("LIST_META_CONTEXT with a wildcard and unknown ones", [
  metaContext(9, "mem", "base:", "x-other:thing", "qemu:"),
], [reply(9, "00000004", "00000000 'base:allocation'"), reply(9, "00000001")]);
check("SET_META_CONTEXT, each context once", [
  option(8),
  metaContext(10, "mem", "x-ovis:access", "base:allocation", "base:allocation", "base:none"),
], [
  reply(8, "00000001"),
  reply(10, "00000004", "00000001 'base:allocation'"),
  reply(10, "00000004", "00000002 'x-ovis:access'"),
  reply(10, "00000001"),
]);
check("SET_META_CONTEXT with no query or only wildcards as no context", [
  option(8),
  metaContext(10, "mem"),
  metaContext(10, "mem", "base:", "x-ovis:"),
], [reply(8, "00000001"), reply(10, "00000001"), reply(10, "00000001")]);
check("SET_META_CONTEXT before structured replies", [metaContext(10, "", "base:allocation")], [
  reply(10, "80000003", text("negotiate structured replies or extended headers first")),
]);
check("SET_META_CONTEXT of an unknown export", [option(8), metaContext(10, "no", "base:")], [
  reply(8, "00000001"),
  reply(10, "80000006", text('no export is named "no"')),
]);
const MALFORMED = hexOf("malformed names, queries or lengths in this option's data");
for (
  const [what, data] of [
    ["no data", ""],
    ["a name longer than the data", "00000009 'mem' 00000000"],
    ["no count", "00000003 'mem'"],
    ["4 Gi queries", "00000003 'mem' ffffffff"],
    ["fewer queries than it says", "00000000 00000002 00000005 'base:'"],
    ["a query longer than the data", "00000000 00000001 00000006 'base:'"],
    ["bytes behind the queries", "00000000 00000000 00"],
    ["a query without a namespace", "00000000 00000001 00000004 ':abc'"],
    ["a query without a colon", "00000000 00000001 00000004 'base'"],
  ] as const
) {
  check(`SET_META_CONTEXT with ${what}`, [option(8), option(10, hex(data))], [
    reply(8, "00000001"),
    reply(10, "80000003", MALFORMED),
  ]);
}

Deno.test("Handshake answers TOO_BIG to options beyond 64 KiB, and closes beyond 1 MiB", () => {
  const stream = converse([memory()], CLIENT_FLAGS);
  stream.feed(hex("'IHAVEOPT' 00000006 00010001"));
  assertEquals(
    toHex(stream.take()),
    toHex(reply(6, "80000009", text("options may have 65536 bytes of data"))),
  );
  stream.feed(new Uint8Array(65_537));
  stream.feed(option(8));
  assertEquals(toHex(stream.take()), toHex(reply(8, "00000001")));
  stream.feed(hex("'IHAVEOPT' 00000006 ffffffff"));
  assertEquals(stream.closedWith, "an option that is too long");
});

Deno.test("Handshake closes after more options than anyone needs", () => {
  const stream = converse([memory()], CLIENT_FLAGS);
  for (let count = 0; count < 64; count++) stream.feed(option(99));
  assertEquals(stream.closedWith, null);
  stream.feed(option(99));
  assertEquals(stream.closedWith, "too many options");
});

Deno.test("Handshake closes on an option without its magic number", () => {
  const stream = converse([memory()], CLIENT_FLAGS, hex("'IHAVEOPS' 00000003 00000000"));
  assertEquals(stream.closedWith, "an option without its magic number");
});

Deno.test("Handshake looks an export up only where an option names it", () => {
  const found: string[] = [];
  const exported = memory();
  const directory = {
    find: (name: string) => {
      found.push(name);
      return exported;
    },
    list: () => [exported],
  };
  const { stream } = startSession(directory, { handshakeMs: 1_000_000 });
  stream.feed(CLIENT_FLAGS);
  stream.feed(option(8));
  stream.feed(option(3));
  assertEquals(found, []);
  stream.feed(go());
  assertEquals(found, [""]);
  assertEquals(exported.calls, []);
  stream.finish("over");
});

Deno.test("Handshake forgets contexts that were selected for another export", () => {
  const stream = converse([memory(), memory({ name: "two" })], CLIENT_FLAGS);
  stream.feed(option(8));
  stream.feed(metaContext(10, "two", "base:allocation"));
  stream.feed(go());
  stream.take();
  // NBD_CMD_BLOCK_STATUS of 1 byte: an error chunk, NBD_EINVAL.
  stream.feed(hex("25609513 0000 0007 0000000000000001 0000000000000000 00000001"));
  assertEquals(toHex(stream.take().subarray(4, 24)).slice(0, 8), "00018001");
  stream.finish("over");
});

Deno.test("Handshake forgets contexts when a later selection fails", () => {
  const stream = converse([memory()], CLIENT_FLAGS);
  stream.feed(option(11));
  stream.feed(metaContext(10, "", "base:allocation"));
  stream.feed(metaContext(10, "none", "base:allocation"));
  stream.take();
  stream.feed(go());
  // No BLOCK_STATUS_PAYLOAD among the transmission flags: nothing is selected.
  assertEquals(toHex(stream.take().subarray(30, 32)), WRITABLE_DF);
  stream.finish("over");
});

Deno.test("Handshake answers GO of an export that went away after INFO", () => {
  const exports = [memory()];
  const directory = { find: () => exports[0], list: () => exports };
  const { stream } = startSession(directory, { handshakeMs: 1_000_000 });
  stream.feed(CLIENT_FLAGS);
  stream.feed(go(6));
  stream.take();
  exports.pop();
  stream.feed(go());
  assertEquals(
    toHex(stream.take()),
    toHex(reply(7, "80000006", text("there is no default export"))),
  );
  stream.finish("over");
});
