/**
 * NBD: `ovis nbd serve` beside qemu-nbd and nbdkit's file plugin, server by server, over the same
 * content with the same clients; then what a guest that writes at full speed takes from the readers
 * of its frozen disk, and WebSocket beside a server that only sends.
 *
 * @module
 */

import type { FleecingAnswer, Service } from "../tests/support/service.ts";
import { demoGuest, startOurs } from "./machines.ts";
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
import { benchWebSocket } from "./nbd_websocket.ts";
import { median, type Row } from "./table.ts";

const MiB = 1024 * 1024;
const GiB = 1024 * MiB;
const COPY_BYTES = GiB;
const WRITE_BYTES = 256 * MiB;
const MAP_BYTES = 64 * GiB;
const MAP_EXTENTS = 100_000;
const RUNS = 5;
const SERVERS: readonly ServerName[] = ["ovis", "qemu-nbd", "nbdkit file"];

/** All rows. */
export async function benchNbd(service: Service): Promise<Row[]> {
  const folder = await Deno.makeTempDir({ prefix: "ovis-bench-nbd-" });
  try {
    return [
      ...await benchServers(folder),
      ...await benchIdle(folder),
      ...await benchViews(service),
    ];
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** One measurement of all servers. */
interface Test {
  what: string;
  unit: string;
  /** By the name of the peer. */
  aims: Partial<Record<ServerName, string>>;
  file: "read" | "write" | "map";
  transports: readonly Transport[];
  isSmallerBetter?: boolean;
  measure: (server: BenchServer) => Promise<number>;
}

const TESTS: readonly Test[] = [
  ...[1, 4].map((connections): Test => ({
    what: `nbdcopy of 1 GiB, ${connections} connection${connections > 1 ? "s" : ""}`,
    unit: "MB/s",
    aims: { "qemu-nbd": "1.5x", "nbdkit file": "no slower" },
    file: "read",
    transports: ["tcp", "unix"],
    measure: ({ uri }) => copySpeed(uri, COPY_BYTES, connections),
  })),
  ...[1, 16].map((depth): Test => ({
    what: `4 KiB random read, depth ${depth}`,
    unit: "IOPS",
    aims: { "qemu-nbd": depth === 1 ? "no slower" : "2x" },
    file: "read",
    transports: ["tcp", "unix"],
    measure: ({ uri }) => fioRate(uri, { isWrite: false, depth, seconds: 2 }),
  })),
  {
    what: "4 KiB random write, depth 16",
    unit: "IOPS",
    aims: { "qemu-nbd": "no slower" },
    file: "write",
    transports: ["tcp", "unix"],
    measure: ({ uri }) => fioRate(uri, { isWrite: true, depth: 16, seconds: 2 }),
  },
  {
    what: "4 KiB writes with FUA, depth 16",
    unit: "IOPS",
    aims: { "qemu-nbd": "no slower" },
    file: "write",
    transports: ["unix"],
    measure: ({ uri }) => fuaRate(uri, 2000),
  },
  {
    what: "nbdinfo --map, 64 GiB, 100,000 extents",
    unit: "ms",
    aims: { "qemu-nbd": "no slower" },
    file: "map",
    transports: ["tcp", "unix"],
    isSmallerBetter: true,
    measure: ({ uri }) => mapTime(uri),
  },
];

async function benchServers(folder: string): Promise<Row[]> {
  const files = await makeFiles(folder);
  const rows: Row[] = [];
  for (const test of TESTS) {
    for (const transport of test.transports) {
      await using stack = new AsyncDisposableStack();
      const servers: BenchServer[] = [];
      for (const [index, name] of SERVERS.entries()) {
        // Who writes locks its file: each has a copy of its own.
        const path = test.file === "write" ? `${files.write}${index}` : files[test.file];
        const options = { transport, isReadOnly: test.file !== "write" };
        servers.push(stack.use(await startServer(name, path, options)));
      }
      rows.push(...rowsOf(test, transport, await measureInTurn(servers, RUNS, test.measure)));
    }
  }
  return rows;
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

/** Random bytes, so that nothing is zero and nothing compresses. */
async function makeFiles(folder: string): Promise<Record<Test["file"], string>> {
  const files = { read: `${folder}/read`, write: `${folder}/write`, map: `${folder}/map` };
  await writeRandom(files.read, COPY_BYTES);
  for (const index of SERVERS.keys()) await writeRandom(`${files.write}${index}`, WRITE_BYTES);
  using map = await Deno.open(files.map, { create: true, write: true });
  await map.truncate(MAP_BYTES);
  const step = Math.floor(MAP_BYTES / (MAP_EXTENTS / 2) / 65536) * 65536;
  const block = new Uint8Array(4096).fill(0x5a);
  for (let index = 0; index < MAP_EXTENTS / 2; index++) {
    map.seekSync(index * step, Deno.SeekMode.Start);
    map.writeSync(block);
  }
  return files;
}

async function writeRandom(path: string, byteCount: number): Promise<void> {
  using file = await Deno.open(path, { create: true, write: true });
  const bytes = new Uint8Array(MiB);
  for (let done = 0; done < byteCount; done += bytes.length) {
    for (let at = 0; at < bytes.length; at += 65536) {
      crypto.getRandomValues(bytes.subarray(at, at + 65536));
    }
    for (let at = 0; at < bytes.length;) at += await file.write(bytes.subarray(at));
  }
}

/** What a thousand connections cost that were opened and then left alone. */
async function benchIdle(folder: string): Promise<Row[]> {
  const path = `${folder}/idle`;
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

/** A frozen disk of a machine: read while its guest sleeps, and while it writes all the time. */
async function benchViews(service: Service): Promise<Row[]> {
  await using guest = await startOurs(service, demoGuest, {
    memoryBytes: 64 * MiB,
    diskBytes: 512 * MiB,
  });
  await guest.waitFor(/demo> /);
  await guest.demo("fill 0 0 512M 0x33");
  const { exports: [view] } = await service.call<FleecingAnswer>(
    "POST",
    `/v1/vms/${guest.vm}/fleecings`,
    {},
  );
  if (view === undefined) throw new Error("no export");
  const tests: [string, string, () => Promise<number>][] = [
    ["nbdcopy, 1 connection", "MB/s", () => copySpeed(view.nbdUnix, view.sizeBytes, 1)],
    [
      "4 KiB random read, depth 1",
      "IOPS",
      () => fioRate(view.nbdUnix, { isWrite: false, depth: 1, seconds: 2 }),
    ],
    [
      "4 KiB random read, depth 16",
      "IOPS",
      () => fioRate(view.nbdUnix, { isWrite: false, depth: 16, seconds: 2 }),
    ],
  ];
  const rows: Row[] = [];
  for (const [what, unit, measure] of tests) {
    const idle: number[] = [];
    const busy: number[] = [];
    for (let turn = 0; turn < 3; turn++) {
      idle.push(await measure());
      const writing = { isOver: false };
      const writes = writeOn(() => guest.demo(`stress 0 ${turn} 20000`), writing);
      busy.push(await measure());
      writing.isOver = true;
      await writes;
    }
    rows.push({
      what: `NBD unix over a fleecing, guest writing at full speed: ${what}`,
      unit,
      ours: median(busy),
      peer: { name: "idle guest", value: median(idle) },
      aim: "0.8 of an idle guest's",
      isSmallerBetter: false,
    });
  }
  rows.push(...await benchWebSocket(service, view));
  return rows;
}

/** Repeats the guest's command until it is over. */
async function writeOn(command: () => Promise<string>, writing: { isOver: boolean }) {
  while (!writing.isOver) await command();
}
