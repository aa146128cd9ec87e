// Hostile bytes: truncation at every byte, any split of the input, and structure-aware mutations of
// real conversations. Nothing may throw, hang or hold more than its bounds, and what a session
// answers must not depend on how its input was cut.
import { assert, assertEquals } from "@std/assert";
import { NbdClient } from "../../src/nbd/client.ts";
import { concatBytes } from "../../src/nbd/codec.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { connectTcp } from "../../src/nbd/transports/tcp.ts";
import { directoryOf, MemoryExport } from "../support/memory_export.ts";
import {
  CLIENT_FLAGS,
  FedStream,
  go,
  hex,
  metaContext,
  option,
  pattern,
  request,
  seededRandom,
  startSession,
} from "../support/nbd.ts";

const SEED = Number(Deno.env.get("OVIS_SEED") ?? 20_260_101);
const CASES = Number(Deno.env.get("OVIS_FUZZ_CASES") ?? 6_000);

/** A conversation that uses every option and command, in each style of headers. */
function conversations(): Uint8Array[][] {
  const commands = (isExtended: boolean) => [
    request({ type: 0, cookie: 1, offset: 3, length: 700, isExtended }),
    request({
      type: 1,
      flags: isExtended ? 32 : 0,
      cookie: 2,
      offset: 512,
      payload: pattern(300),
      isExtended,
    }),
    request({
      type: 1,
      flags: isExtended ? 32 : 0,
      payload: pattern(9, 3),
      offset: 4095,
      isExtended,
    }),
    request({ type: 3, cookie: 3, isExtended }),
    request({ type: 4, cookie: 4, offset: 1024, length: 512, isExtended }),
    request({ type: 5, cookie: 5, length: 4096, isExtended }),
    request({ type: 6, flags: 2, cookie: 6, offset: 2048, length: 100, isExtended }),
    request({ type: 7, cookie: 7, length: 4096, isExtended }),
    request({ type: 0, cookie: 8, length: 4096, isExtended }),
    request({ type: 99, cookie: 9, isExtended }),
    request({ type: 0, cookie: 10, offset: 1n << 60n, length: 1, isExtended }),
    request({ type: 2, isExtended }),
  ];
  const contexts = metaContext(10, "", "base:allocation", "x-ovis:access");
  return [
    [CLIENT_FLAGS, option(3), option(5), option(77, pattern(40)), go(6), go(), ...commands(false)],
    [
      CLIENT_FLAGS,
      option(8),
      metaContext(9, "mem", "base:"),
      contexts,
      option(7, hex("00000003 'mem' 0002 0001 0003")),
      ...commands(false),
    ],
    [CLIENT_FLAGS, option(11), contexts, go(), ...commands(true)],
    [hex("00000000"), option(1, hex("'mem'")), ...commands(false)],
    [CLIENT_FLAGS, option(8), option(2)],
  ];
}

/** Everything that can be seen from outside: what was answered, and the rest in one line. */
interface Outcome {
  output: Uint8Array;
  /** Whether it was closed, and what the disk holds. */
  rest: string;
  summary: string;
}

/** Feeds the pieces to a fresh session and says everything that can be seen from outside. */
function run(pieces: Iterable<Uint8Array>): Outcome {
  const exported = new MemoryExport(pattern(4096));
  const { stream, session } = startSession(directoryOf(exported), { handshakeMs: 1_000_000 });
  for (const piece of pieces) {
    assert(!stream.isPaused || stream.closedWith !== null, "an export that answers at once blocks");
    stream.feed(piece);
    if (stream.closedWith !== null) break;
  }
  const isClosed = stream.closedWith !== null;
  stream.finish("over");
  assert(session !== undefined);
  const output = stream.take();
  const rest = `${isClosed ? "closed" : "open"} ${digest(exported.bytes)}`;
  return { output, rest, summary: `${rest} ${digest(output)}` };
}

/** How often each byte comes. */
function histogram(bytes: Uint8Array): number[] {
  const counts: number[] = new Array(256).fill(0);
  for (const byte of bytes) counts[byte] = (counts[byte] ?? 0) + 1;
  return counts;
}

/** Length and a hash (FNV-1a): quicker to compare than thousands of long texts. */
function digest(bytes: Uint8Array): string {
  let hash = 0x811c9dc5;
  for (const byte of bytes) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return `${bytes.length}:${hash.toString(16)}`;
}

function* splitBy(bytes: Uint8Array, lengthOf: () => number): Generator<Uint8Array> {
  for (let at = 0; at < bytes.length;) {
    const length = Math.max(1, lengthOf());
    yield bytes.subarray(at, at + length);
    at += length;
  }
}

Deno.test("NbdSession answers the same, however its input is cut", () => {
  const random = seededRandom(SEED);
  for (const parts of conversations()) {
    const bytes = concatBytes(parts);
    const { summary } = run([bytes]);
    assertEquals(run(parts).summary, summary);
    for (const length of [1, 2, 3, 7, 13, 27, 28, 29, 31, 33]) {
      assertEquals(run(splitBy(bytes, () => length)).summary, summary);
    }
    for (let round = 0; round < 100; round++) {
      const split = run(splitBy(bytes, () => Math.floor(random() * 90)));
      assertEquals(split.summary, summary, `seed ${SEED} round ${round}`);
    }
  }
});

Deno.test("NbdSession waits for the rest, wherever its input breaks off", () => {
  for (const parts of conversations()) {
    const bytes = concatBytes(parts);
    const whole = run([bytes]);
    for (let length = 0; length < bytes.length; length++) {
      const cut = run([bytes.subarray(0, length)]);
      const start = whole.output.subarray(0, cut.output.length);
      assertEquals(digest(cut.output), digest(start), `cut at ${length}`);
      assert(cut.summary.startsWith("open"), `cut at ${length}`);
    }
  }
});

/** Values that break careless arithmetic. */
const NASTY = [0, 1, 2, 3, 5, 7, 11, 20, 28, 32, 255, 256, 4095, 4096, 4097, 65535, 65536, 65537]
  .concat([
    0xfffff,
    0x100000,
    0x2000000,
    0x2000001,
    0x7fffffff,
    0x80000000,
    0xfffffffe,
    0xffffffff,
  ]);

/**
 * One conversation with some of its messages changed: cut, doubled, swapped, or given odd numbers.
 */
function mutate(parts: readonly Uint8Array[], random: () => number): Uint8Array[] {
  const pick = (count: number) => Math.floor(random() * count);
  const mutated = parts.map((part) => part.slice());
  const changes = 1 + pick(4);
  for (let change = 0; change < changes; change++) {
    const at = pick(mutated.length);
    const part = mutated[at];
    if (part === undefined || part.length === 0) continue;
    const view = new DataView(part.buffer);
    switch (pick(8)) {
      case 0:
        part[pick(part.length)] = pick(256);
        break;
      case 1:
      case 2:
      case 3: // a field of 4 bytes, which are aligned in every message
        if (part.length >= 4) {
          view.setUint32(4 * pick(part.length >> 2), NASTY[pick(NASTY.length)] ?? 0);
        }
        break;
      case 4: // a field of 2 bytes
        if (part.length >= 2) view.setUint16(2 * pick(part.length >> 1), pick(65536));
        break;
      case 5:
        mutated[at] = part.subarray(0, pick(part.length));
        break;
      case 6:
        mutated.splice(at, 0, part.slice());
        break;
      case 7:
        mutated.splice(pick(mutated.length), 0, ...mutated.splice(at, 1));
    }
  }
  return mutated;
}

Deno.test("NbdSession stands thousands of mutated conversations", () => {
  const random = seededRandom(SEED);
  const all = conversations();
  for (let round = 0; round < CASES; round++) {
    const parts = mutate(all[round % all.length] ?? [], random);
    const bytes = concatBytes(parts);
    const where = `seed ${SEED} round ${round}`;
    const whole = run([bytes]);
    // Replies are bounded: a session that multiplied its input would show here.
    assert(whole.output.length < 1_000_000, where);
    const split = run(splitBy(bytes, () => Math.floor(random() * 60)));
    // Writes with FUA that come together are answered behind others: then only the order differs.
    if (split.summary !== whole.summary) {
      assertEquals(histogram(split.output), histogram(whole.output), where);
      assertEquals(split.rest, whole.rest, where);
    }
  }
});

Deno.test("NbdServer serves others while hostile clients come and go", async () => {
  const random = seededRandom(SEED + 1);
  const pick = (count: number) => Math.floor(random() * count);
  const exported = new MemoryExport(pattern(256 * 1024), { name: "honest" });
  const victim = new MemoryExport(pattern(4096));
  const server = new NbdServer({ directory: directoryOf(victim, exported) });
  const address = server.listenTcp({ host: "127.0.0.1", port: 0 });
  const all = conversations();
  const attack = async (round: number) => {
    const bytes = concatBytes(mutate(all[round % all.length] ?? [], random));
    const conn = await Deno.connect({ hostname: address.host, port: address.port });
    try {
      for (const piece of splitBy(bytes, () => pick(2000))) {
        for (let done = 0; done < piece.length;) done += await conn.write(piece.subarray(done));
      }
      // Some listen for a while, some leave at once, in the middle of whatever it is.
      if (pick(2) === 0) await conn.read(new Uint8Array(1 + pick(500)));
    } catch {
      // The server hung up, as it should on most of this.
    } finally {
      conn.close();
    }
  };
  const client = await NbdClient.connect(await connectTcp(address), { exportName: "honest" });
  const rounds = Math.ceil(CASES / 40);
  for (let round = 0; round < rounds; round += 8) {
    const attacks = Array.from({ length: 8 }, (_, index) => attack(round + index));
    const offset = pick(200_000);
    const bytes = await client.read(offset, 50_000);
    const expected = exported.bytes.subarray(offset, offset + 50_000);
    assertEquals(digest(bytes), digest(expected), `seed ${SEED} round ${round}`);
    await Promise.all(attacks);
  }
  await client.close();
  await server.close();
  const { connections, bufferedBytes, inFlight } = server.statistics;
  assertEquals([connections.open, bufferedBytes, inFlight], [0, 0, 0]);
});

Deno.test("NbdSession stands noise", () => {
  const random = seededRandom(SEED);
  for (let round = 0; round < 500; round++) {
    const { stream } = startSession(directoryOf(new MemoryExport(pattern(64))), {
      handshakeMs: 1_000_000,
    });
    const noise = Uint8Array.from({ length: 200 }, () => Math.floor(random() * 256));
    for (const piece of splitBy(noise, () => Math.floor(random() * 40))) stream.feed(piece);
    assert(stream.closedWith !== null, `seed ${SEED} round ${round}: noise was taken for a client`);
  }
});

Deno.test("NbdSession holds no memory for lengths that are only announced", () => {
  const announced = [
    request({ type: 1, length: 32 * 1024 * 1024 }),
    request({ type: 1, length: 0xffffffff }),
  ];
  const directory = directoryOf(new MemoryExport(new Uint8Array(1 << 26)));
  const before = Deno.memoryUsage().external;
  const streams: FedStream[] = [];
  for (let count = 0; count < 50; count++) {
    for (const bytes of announced) {
      const { stream } = startSession(directory);
      stream.feed(concatBytes([CLIENT_FLAGS, go(), bytes]));
      assertEquals(stream.closedWith, null);
      streams.push(stream);
    }
  }
  const grown = Deno.memoryUsage().external - before;
  for (const stream of streams) stream.finish("over");
  assert(grown < 300 * 1024 * 1024, `${grown} bytes for 100 sessions`);
});
