/**
 * NBD: `ovis nbd serve` beside qemu-nbd and nbdkit's file plugin, server by server, over the same
 * content with the same clients.
 *
 * @module
 */

import {
  type BenchServer,
  copySpeed,
  fioRate,
  fuaRate,
  mapTime,
  measureInTurn,
  processorSeconds,
  residentBytes,
  type ServerName,
  startServer,
  type Transport,
} from "./nbd_servers.ts";
import type { Row } from "./table.ts";

const MiB = 1024 * 1024;
const GiB = 1024 * MiB;
const COPY_BYTES = GiB;
const WRITE_BYTES = 256 * MiB;
const MAP_BYTES = 64 * GiB;
const MAP_EXTENTS = 100_000;
const RUNS = 3;
const SERVERS: readonly ServerName[] = ["ovis", "qemu-nbd", "nbdkit file"];

/** What belongs together, and is measured in a minute or two. */
export type NbdPart = "copy" | "read" | "write" | "map";

/** One measurement of all servers. */
interface Test {
  what: string;
  unit: string;
  /** By the name of the peer. */
  aims: Partial<Record<ServerName, string>>;
  part: NbdPart;
  transports: readonly Transport[];
  isSmallerBetter?: boolean;
  measure: (server: BenchServer) => Promise<number>;
}

const TESTS: readonly Test[] = [
  ...[1, 4].map((connections): Test => ({
    what: `nbdcopy of 1 GiB, ${connections} connection${connections > 1 ? "s" : ""}`,
    unit: "MB/s",
    aims: { "qemu-nbd": "1.5x", "nbdkit file": "no slower" },
    part: "copy",
    transports: ["tcp", "unix"],
    measure: ({ uri }) => copySpeed(uri, COPY_BYTES, connections),
  })),
  ...[1, 16].map((depth): Test => ({
    what: `4 KiB random read, depth ${depth}`,
    unit: "IOPS",
    aims: { "qemu-nbd": depth === 1 ? "no slower" : "2x" },
    part: "read",
    transports: ["tcp", "unix"],
    measure: ({ uri }) => fioRate(uri, { isWrite: false, depth, seconds: 1 }),
  })),
  {
    what: "4 KiB random write, depth 16",
    unit: "IOPS",
    aims: { "qemu-nbd": "no slower" },
    part: "write",
    transports: ["tcp", "unix"],
    measure: ({ uri }) => fioRate(uri, { isWrite: true, depth: 16, seconds: 1 }),
  },
  {
    what: "4 KiB writes with FUA, depth 16",
    unit: "IOPS",
    aims: { "qemu-nbd": "no slower" },
    part: "write",
    transports: ["unix"],
    measure: ({ uri }) => fuaRate(uri, 20000),
  },
  {
    what: "nbdinfo --map, 64 GiB, 100,000 extents",
    unit: "ms",
    aims: { "qemu-nbd": "no slower" },
    part: "map",
    transports: ["tcp", "unix"],
    isSmallerBetter: true,
    measure: ({ uri }) => mapTime(uri),
  },
];

/** One part of the rows. */
export async function* benchNbdServers(part: NbdPart): AsyncGenerator<Row> {
  const folder = await Deno.makeTempDir({ prefix: "ovis-bench-nbd-" });
  try {
    const paths = await makeFiles(folder, part);
    for (const test of TESTS.filter((test) => test.part === part)) {
      for (const transport of test.transports) {
        await using stack = new AsyncDisposableStack();
        const servers: BenchServer[] = [];
        for (const [index, name] of SERVERS.entries()) {
          const options = { transport, isReadOnly: part !== "write" };
          servers.push(stack.use(await startServer(name, paths[index] ?? "", options)));
        }
        yield* rowsOf(test, transport, await measureInTurn(servers, RUNS, test.measure));
      }
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

function rowsOf(test: Test, transport: Transport, values: Map<ServerName, number>): Row[] {
  return SERVERS.filter((name) => name !== "ovis").map((name) => ({
    what: `NBD ${transport}: ${test.what}`,
    unit: test.unit,
    ours: values.get("ovis"),
    peer: { name, value: values.get(name) },
    aim: test.aims[name] ?? "",
    isSmallerBetter: test.isSmallerBetter ?? false,
  }));
}

/** A file for each server. Who writes locks its file and has one of its own. */
async function makeFiles(folder: string, part: NbdPart): Promise<string[]> {
  const paths = SERVERS.map((_, index) => `${folder}/${part === "write" ? index : 0}`);
  for (const path of new Set(paths)) {
    if (part === "map") await writeSparse(path);
    else await writeRandom(path, part === "write" ? WRITE_BYTES : COPY_BYTES);
  }
  return paths;
}

/** 50,000 pieces of data, as many holes. */
async function writeSparse(path: string): Promise<void> {
  using map = await Deno.open(path, { create: true, write: true });
  await map.truncate(MAP_BYTES);
  const step = Math.floor(MAP_BYTES / (MAP_EXTENTS / 2) / 65536) * 65536;
  const block = new Uint8Array(4096).fill(0x5a);
  for (let index = 0; index < MAP_EXTENTS / 2; index++) {
    map.seekSync(index * step, Deno.SeekMode.Start);
    map.writeSync(block);
  }
  await map.sync();
}

/** Random bytes, so that nothing is zero and nothing compresses. */
async function writeRandom(path: string, byteCount: number): Promise<void> {
  using file = await Deno.open(path, { create: true, write: true });
  const bytes = new Uint8Array(MiB);
  for (let done = 0; done < byteCount; done += bytes.length) {
    for (let at = 0; at < bytes.length; at += 65536) {
      crypto.getRandomValues(bytes.subarray(at, at + 65536));
    }
    for (let at = 0; at < bytes.length;) at += await file.write(bytes.subarray(at));
  }
  // Else the first to be measured pays for the system's writing.
  await file.sync();
}

/** What a thousand connections cost that were opened and then left alone. */
export async function benchNbdIdle(): Promise<Row[]> {
  const path = await Deno.makeTempFile({ prefix: "ovis-bench-nbd-" });
  await writeRandom(path, MiB);
  await using server = await startServer("ovis", path, { transport: "tcp", isReadOnly: true });
  await copySpeed(server.uri, MiB, 1);
  const before = residentBytes(server.pid);
  const script = `
import time
handles = []
for n in range(1000):
    handle = nbd.NBD()
    handle.connect_uri("${server.uri}")
    handles.append(handle)
print("ready", flush=True)
time.sleep(6)
`;
  const env = { PATH: `/usr/bin:${Deno.env.get("PATH") ?? ""}` };
  const child = new Deno.Command("nbdsh", { args: ["-c", script], env, stdout: "piped" }).spawn();
  const reader = child.stdout.getReader();
  await reader.read();
  await new Promise((resolve) => setTimeout(resolve, 500));
  const cpuBefore = processorSeconds(server.pid);
  await new Promise((resolve) => setTimeout(resolve, 5000));
  const cpu = processorSeconds(server.pid) - cpuBefore;
  const memory = residentBytes(server.pid) - before;
  await reader.cancel();
  await child.status;
  const row = (what: string, unit: string, ours: number, aim: string): Row => ({
    what: `NBD tcp: 1,000 idle connections, ${what}`,
    unit,
    ours,
    peer: undefined,
    aim,
    isSmallerBetter: true,
  });
  return [
    row("memory", "MB", memory / 1e6, "under 50 MB"),
    row("processor time", "%", cpu / 5 * 100, "none"),
  ];
}
