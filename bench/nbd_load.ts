/**
 * A load of many clients on one `ovis nbd serve`: every byte that they read is checked against a
 * pattern, connections are cut at random with requests under way. A wrong byte ends the run.
 *
 * @module
 */

import { NbdClient } from "../src/nbd/client.ts";
import { connectTcp } from "../src/nbd/transports/tcp.ts";
import { seededRandom } from "../tests/support/nbd.ts";
import { openFiles, residentBytes, startServer } from "./nbd_servers.ts";
import type { Row } from "./table.ts";

const MiB = 1024 * 1024;
const FILE_BYTES = 256 * MiB;
const CLIENTS = 64;
const SECONDS = 10;
const READ_BYTES_MAX = 256 * 1024;
/** Of all requests, those that are cut off. */
const CUT_PART = 0.02;
/** Bytes of a word of the pattern. */
const WORD = 4;

/** A word of the file says where it is. */
function wordAt(offset: number): number {
  return (Math.imul(offset / WORD, 0x9e3779b1) ^ 0x5a5a5a5a) >>> 0;
}

/** What the clients did. */
interface Tally {
  reads: number;
  bytes: number;
  cuts: number;
}

/** Rates, and what the server holds when all clients have gone. */
export async function* benchNbdLoad(): AsyncGenerator<Row> {
  const path = await Deno.makeTempFile({ prefix: "ovis-bench-nbd-" });
  try {
    await writePattern(path);
    await using server = await startServer("ovis", path, { transport: "tcp", isReadOnly: true });
    const { hostname, port } = new URL(server.uri.replace("nbd:", "http:"));
    const address = { host: hostname, port: Number(port) };
    await runClients(address, { seconds: 1, seed: 0 });
    const before = { memory: residentBytes(server.pid), files: openFiles(server.pid) };
    const { reads, bytes, cuts } = await runClients(address, { seconds: SECONDS, seed: 1 });
    const memory = residentBytes(server.pid) - before.memory;
    const row = (what: string, ours: number, unit: string, aim = ""): Row => ({
      what: `NBD tcp, ${CLIENTS} clients: ${what}`,
      unit,
      ours,
      peer: undefined,
      aim,
      isSmallerBetter: false,
    });
    yield row("reads of up to 256 KiB, every byte checked", reads / SECONDS, "reads/s");
    yield row("the same", bytes / 1e6 / SECONDS, "MB/s");
    yield row("connections cut with reads under way", cuts, "");
    yield row("memory more than before, all gone", memory / 1e6, "MB", "bounded");
    yield row("descriptors more than before", openFiles(server.pid) - before.files, "", "0");
  } finally {
    await Deno.remove(path);
  }
}

async function runClients(
  address: { host: string; port: number },
  { seconds, seed }: { seconds: number; seed: number },
): Promise<Tally> {
  const tally = { reads: 0, bytes: 0, cuts: 0 };
  const endMs = performance.now() + 1000 * seconds;
  await Promise.all(Array.from({ length: CLIENTS }, async (_, index) => {
    const random = seededRandom(1000 * seed + index);
    while (performance.now() < endMs) await useConnection(address, { random, endMs, tally });
  }));
  return tally;
}

/** Reads until the time is over, or it cuts its connection. */
async function useConnection(
  address: { host: string; port: number },
  { random, endMs, tally }: { random: () => number; endMs: number; tally: Tally },
): Promise<void> {
  const stream = await connectTcp(address);
  const client = await NbdClient.connect(stream);
  while (performance.now() < endMs) {
    const length = WORD * (1 + Math.floor(random() * READ_BYTES_MAX / WORD));
    const offset = WORD * Math.floor(random() * (FILE_BYTES - length) / WORD);
    const reading = client.read(offset, length);
    if (random() < CUT_PART) {
      tally.cuts++;
      stream.close("cut");
      await Promise.allSettled([reading, client.close()]);
      return;
    }
    check(await reading, offset);
    tally.reads++;
    tally.bytes += length;
  }
  await client.close();
}

function check(bytes: Uint8Array<ArrayBuffer>, offset: number): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = 0; at < bytes.length; at += WORD) {
    if (view.getUint32(at, true) !== wordAt(offset + at)) {
      throw new Error(`wrong at ${offset + at}`);
    }
  }
}

async function writePattern(path: string): Promise<void> {
  using file = await Deno.open(path, { write: true });
  const words = new Uint32Array(MiB / WORD);
  for (let offset = 0; offset < FILE_BYTES; offset += MiB) {
    for (let index = 0; index < words.length; index++) words[index] = wordAt(offset + WORD * index);
    file.writeSync(new Uint8Array(words.buffer));
  }
}
