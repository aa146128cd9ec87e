/**
 * NBD reads of one and the same content: a fleecing of an idle machine, qemu-nbd, nbdkit file.
 *
 * @module
 */

import { findProgram } from "../tests/support/clients.ts";
import { type FleecingAnswer, Service } from "../tests/support/service.ts";
import { demoGuest, startOurs } from "./machines.ts";
import { medianOf, type Row } from "./table.ts";

const MiB = 1024 * 1024;
const DISK_BYTES = 1024 * MiB;
const RUNS = 5;

/** nbdcopy of 1 GiB to null:, and fio's 4 KiB random reads at depth 1 and 16. */
export async function benchNbd(service: Service): Promise<Row[]> {
  await using guest = await startOurs(service, demoGuest, {
    memoryBytes: 64 * MiB,
    diskBytes: DISK_BYTES,
  });
  await guest.waitFor(/demo> /);
  await guest.demo("fill 0 0 1G 0x33");
  const { exports: [view] } = await service.call<FleecingAnswer>(
    "POST",
    `/v1/vms/${guest.vm}/fleecings`,
    {},
  );
  if (view === undefined) throw new Error("no export");
  const path = await Deno.makeTempFile({ suffix: ".img" });
  const rows: Row[] = [];
  try {
    await run("nbdcopy", [view.nbd, path]);
    for (const transport of ["tcp", "unix"] as const) {
      const peers: [string, string][] = [["ovis", transport === "tcp" ? view.nbd : view.nbdUnix]];
      await using qemu = await startServer("qemu-nbd", path, transport);
      peers.push(["qemu-nbd", qemu.uri]);
      await using nbdkit = await startServer("nbdkit", path, transport);
      peers.push(["nbdkit file", nbdkit.uri]);
      rows.push(...await compare(transport, peers));
    }
    return rows;
  } finally {
    await Deno.remove(path);
  }
}

async function compare(transport: string, peers: [string, string][]): Promise<Row[]> {
  const tests: [string, string, string, (uri: string) => Promise<number>][] = [
    ["sequential read", "MB/s", "1.5x qemu-nbd", copySpeed],
    ["4 KiB random read, depth 1", "IOPS", "no slower", (uri) => fioRate(uri, 1)],
    ["4 KiB random read, depth 16", "IOPS", "2x qemu-nbd", (uri) => fioRate(uri, 16)],
  ];
  const rows: Row[] = [];
  for (const [what, unit, aim, measure] of tests) {
    const values = new Map<string, number>();
    for (const [name, uri] of peers) values.set(name, await medianOf(RUNS, () => measure(uri)));
    for (const name of ["qemu-nbd", "nbdkit file"]) {
      rows.push({
        what: `NBD ${transport}: ${what}`,
        unit,
        ours: values.get("ovis"),
        peer: { name, value: values.get(name) },
        aim: name === "qemu-nbd" ? aim : "",
        isSmallerBetter: false,
      });
    }
  }
  return rows;
}

async function copySpeed(uri: string): Promise<number> {
  const begin = performance.now();
  await run("nbdcopy", ["--connections=1", uri, "null:"]);
  return DISK_BYTES / 1e3 / (performance.now() - begin);
}

async function fioRate(uri: string, depth: number): Promise<number> {
  const output = await run(findProgram("fio") ?? "fio", [
    "--name=read",
    "--ioengine=nbd",
    `--uri=${uri}`,
    "--rw=randread",
    "--bs=4k",
    `--iodepth=${depth}`,
    "--time_based",
    "--runtime=3",
    "--output-format=json",
  ]);
  const { jobs } = JSON.parse(output.slice(output.indexOf("{")));
  return jobs[0].read.iops;
}

async function startServer(
  program: "qemu-nbd" | "nbdkit",
  path: string,
  transport: "tcp" | "unix",
): Promise<AsyncDisposable & { uri: string }> {
  const folder = await Deno.makeTempDir();
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  listener.close();
  const socket = `${folder}/s`;
  const uri = transport === "tcp" ? `nbd://127.0.0.1:${port}/` : `nbd+unix:///?socket=${socket}`;
  const where = program === "qemu-nbd"
    ? transport === "tcp" ? ["-b", "127.0.0.1", "-p", `${port}`] : ["-k", socket]
    : transport === "tcp"
    ? ["-i", "127.0.0.1", "-p", `${port}`]
    : ["-U", socket];
  const args = program === "qemu-nbd"
    ? ["-t", "-r", "-e", "16", "-f", "raw", ...where, path]
    : ["-f", "-r", ...where, "file", path];
  const child = new Deno.Command(program, { args, stdout: "null", stderr: "null" }).spawn();
  for (let attempt = 0; attempt < 100; attempt++) {
    if (await run("nbdinfo", ["--size", uri]).then(() => true, () => false)) break;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return {
    uri,
    async [Symbol.asyncDispose]() {
      child.kill("SIGTERM");
      await child.status;
      await Deno.remove(folder, { recursive: true });
    },
  };
}

async function run(program: string, args: string[]): Promise<string> {
  const output = await new Deno.Command(program, { args, stdout: "piped", stderr: "piped" })
    .output();
  if (!output.success) throw new Error(`${program}: ${new TextDecoder().decode(output.stderr)}`);
  return new TextDecoder().decode(output.stdout);
}
