/**
 * NBD servers side by side, each a process of its own over the same file: `ovis nbd serve`,
 * qemu-nbd and nbdkit's file plugin. The clients are the same programs for all of them.
 *
 * @module
 */

import { findProgram } from "../tests/support/clients.ts";
import { median } from "./table.ts";

const MAIN = new URL("../main.ts", import.meta.url).pathname;

/** The servers. */
export type ServerName = "ovis" | "qemu-nbd" | "nbdkit file";
/** How clients reach them. */
export type Transport = "tcp" | "unix";

/** A running server. */
export interface BenchServer extends AsyncDisposable {
  readonly name: ServerName;
  /** Of its only export. */
  readonly uri: string;
  /** Of its process. */
  readonly pid: number;
}

/** Starts a server over a raw file, for up to 16 clients and more. */
export async function startServer(
  name: ServerName,
  path: string,
  { transport, isReadOnly }: { transport: Transport; isReadOnly: boolean },
): Promise<BenchServer> {
  const folder = await Deno.makeTempDir();
  const port = freePort();
  const socket = `${folder}/s`;
  const isTcp = transport === "tcp";
  const readOnly = isReadOnly ? ["-r"] : [];
  const [program, args] = {
    "ovis": ["deno", [
      ...["run", "-P=ovis", MAIN, "nbd", "serve", "-f", "raw", ...readOnly, "--shared", "2000"],
      ...(isTcp ? ["--port", `${port}`] : ["--socket", socket]),
      path,
    ]],
    "qemu-nbd": ["qemu-nbd", [
      ...["-t", ...readOnly, "-e", "1200", "-f", "raw", "--discard=unmap"],
      ...(isTcp ? ["-b", "127.0.0.1", "-p", `${port}`] : ["-k", socket]),
      path,
    ]],
    "nbdkit file": ["nbdkit", [
      ...["-f", ...readOnly],
      ...(isTcp ? ["-i", "127.0.0.1", "-p", `${port}`] : ["-U", socket]),
      ...["file", path],
    ]],
  }[name] as [string, string[]];
  const child = new Deno.Command(program, { args, stdout: "null", stderr: "null" }).spawn();
  const uri = isTcp ? `nbd://127.0.0.1:${port}/` : `nbd+unix:///?socket=${socket}`;
  for (let attempt = 0; attempt < 200; attempt++) {
    if (await run("nbdinfo", ["--size", uri]).then(() => true, () => false)) break;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return {
    name,
    uri,
    pid: child.pid,
    async [Symbol.asyncDispose]() {
      child.kill("SIGTERM");
      await child.status;
      await Deno.remove(folder, { recursive: true });
    },
  };
}

/**
 * Runs `measure` for every server, in turn and `runs` times, so that what else the machine does
 * meets all of them alike: the medians.
 */
export async function measureInTurn(
  servers: readonly BenchServer[],
  runs: number,
  measure: (server: BenchServer) => Promise<number>,
): Promise<Map<ServerName, number>> {
  const values = new Map<ServerName, number[]>(servers.map(({ name }) => [name, []]));
  for (const server of servers) await measure(server);
  for (let turn = 0; turn < runs; turn++) {
    for (const server of servers) values.get(server.name)?.push(await measure(server));
  }
  return new Map([...values].map(([name, list]) => [name, median(list)]));
}

/** Megabytes a second of nbdcopy reading all of an export. */
export async function copySpeed(uri: string, bytes: number, connections: number): Promise<number> {
  const begin = performance.now();
  await run("nbdcopy", [`--connections=${connections}`, uri, "null:"]);
  return bytes / 1e3 / (performance.now() - begin);
}

/** Requests a second of fio's nbd engine, 4 KiB, random. */
export async function fioRate(
  uri: string,
  { isWrite, depth, seconds }: { isWrite: boolean; depth: number; seconds: number },
): Promise<number> {
  const output = await run(findProgram("fio") ?? "fio", [
    ...["--name=bench", "--ioengine=nbd", `--uri=${uri}`, "--bs=4k", `--iodepth=${depth}`],
    ...[`--rw=${isWrite ? "randwrite" : "randread"}`, "--time_based", `--runtime=${seconds}`],
    "--output-format=json",
  ]);
  const { jobs } = JSON.parse(output.slice(output.indexOf("{")));
  return isWrite ? jobs[0].write.iops : jobs[0].read.iops;
}

/** Writes a second of 4 KiB with FUA at depth 16, spread over the export, by qemu-img. */
export async function fuaRate(uri: string, count: number): Promise<number> {
  const begin = performance.now();
  await run("qemu-img", [
    ...["bench", "-w", "-f", "raw", "-t", "writethrough", "-d", "16", "-s", "4096"],
    ...["-S", "1052672", "-c", `${count}`, uri],
  ]);
  return count / (performance.now() - begin) * 1000;
}

/** Milliseconds of nbdinfo --map. */
export async function mapTime(uri: string): Promise<number> {
  const begin = performance.now();
  await run("nbdinfo", ["--map", uri]);
  return performance.now() - begin;
}

/** Resident memory of a process, in bytes. */
export function residentBytes(pid: number): number {
  const status = Deno.readTextFileSync(`/proc/${pid}/status`);
  return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) * 1024;
}

/** Descriptors that a process has open. */
export function openFiles(pid: number): number {
  return [...Deno.readDirSync(`/proc/${pid}/fd`)].length;
}

/** Seconds of processor time that a process has had, in all its threads. */
export function processorSeconds(pid: number): number {
  const stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

/** Runs a program that must succeed; what it printed. */
export async function run(program: string, args: string[]): Promise<string> {
  const output = await new Deno.Command(program, { args, stdout: "piped", stderr: "piped" })
    .output();
  if (!output.success) throw new Error(`${program}: ${new TextDecoder().decode(output.stderr)}`);
  return new TextDecoder().decode(output.stdout);
}

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}
