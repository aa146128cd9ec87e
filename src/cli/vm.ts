/** `ovis vm`: machines of a running service, for people. @module */

import { type Command, InvalidArgumentError } from "commander";
import { type Client, openClient } from "./client.ts";
import type { Program } from "./mod.ts";
import { printBytes, printLine, printTable } from "./output.ts";

/** A machine as the API shows it, as far as it is shown here. */
interface Vm {
  name: string;
  state: string;
  failure: string | null;
  image: string;
  memoryBytes: number;
  disks: { name: string; sizeBytes: number }[];
  fleecings: string[];
}

/** A fleecing as the API shows it, as far as it is shown here. */
interface Fleecing {
  name: string;
  state: string;
  exports: {
    name: string;
    disk: string;
    copiedBytes: number;
    nbd: string | null;
    nbdUnix: string | null;
    websocket: string;
    content: string;
  }[];
}

const MiB = 1024 * 1024;
const UNITS: Record<string, number> = { "": 1, K: 1024, M: MiB, G: 1024 * MiB, T: MiB * MiB };

/** Adds the command. */
export function registerVm(program: Program): void {
  const vm = program.command("vm")
    .description("Machines of a running service")
    .option("--url <url>", "the service (OVIS_URL)", undefined)
    .option("--token <token>", "its token (OVIS_TOKEN; else the data folder's, OVIS_DATA)");
  const client = () => openClient(vm.opts());
  addListAndCreate(vm, client);
  for (const request of ["start", "stop", "pause", "resume", "reset"] as const) {
    vm.command(`${request} <vm>`).description(`${request} a machine`).action(async (name) => {
      const { state } = await (await client()).call<Vm>("POST", `${pathOf(name)}/${request}`);
      printLine(`${name} is ${state}`);
    });
  }
  vm.command("delete <vm>").description("stop a machine and delete it with its disks")
    .action(async (name) => {
      await (await client()).call("DELETE", pathOf(name));
      printLine(`${name} is gone`);
    });
  addConsole(vm, client);
  addFleecings(vm, client);
}

function addListAndCreate(vm: Command, client: () => Promise<Client>): void {
  vm.command("list").description("list machines").action(async () => {
    const vms = await (await client()).list<Vm>("/v1/vms");
    printTable([
      ["NAME", "STATE", "IMAGE", "MEMORY", "DISKS", "FLEECINGS"],
      ...vms.map(({ name, state, image, memoryBytes, disks, fleecings }) => [
        name,
        state,
        image,
        formatSize(memoryBytes),
        disks.map((disk) => `${disk.name}:${formatSize(disk.sizeBytes)}`).join(","),
        fleecings.join(","),
      ]),
    ]);
  });
  vm.command("show <vm>").description("everything about a machine, as JSON").action(async (name) =>
    printLine(JSON.stringify(await (await client()).call("GET", pathOf(name)), null, 2))
  );
  vm.command("create <vm>").description("make a machine and start it")
    .option("--image <image>", "what it boots", "demo")
    .option("--memory <size>", "with K, M, G or T; default 256M", parseSize)
    .option("--harts <count>", "processors", parseCount)
    .option("--disk <name:size>", "a disk, may be repeated; default disk0:64M", collectDisk)
    .option("--no-start", "only make it")
    .action(async (name, options) => {
      const { image, memory, harts, disk, start } = options;
      const { state } = await (await client()).call<Vm>("POST", "/v1/vms", {
        name,
        image,
        memoryBytes: memory,
        harts,
        disks: disk,
        start,
      });
      printLine(`${name} is ${state}`);
    });
}

function addConsole(vm: Command, client: () => Promise<Client>): void {
  vm.command("log <vm>").description("what the guest wrote")
    .option("-f, --follow", "and what it goes on to write")
    .action(async (name, { follow }) => {
      const query = follow ? "?follow" : "";
      const { body } = await (await client()).request("GET", `${pathOf(name)}/console/log${query}`);
      for await (const chunk of body ?? []) printBytes(chunk);
    });
  vm.command("type <vm> <text>").description("type a line on the console")
    .action(async (name, text) => {
      await (await client()).request("POST", `${pathOf(name)}/console/input`, {
        body: `${text}\n`,
      });
    });
  vm.command("console <vm>").description("the console in this terminal; Ctrl-] leaves")
    .action(async (name) => {
      const { attachConsole } = await import("./vm_console.ts");
      const service = await client();
      // A WebSocket that is refused does not say why.
      await service.call("GET", pathOf(name));
      await attachConsole(service.openWebSocket(`${pathOf(name)}/console`));
    });
}

function addFleecings(vm: Command, client: () => Promise<Client>): void {
  vm.command("fleece <vm>").description("freeze a view of its disks and say where to read it")
    .option("--name <name>", "of the fleecing; default: the moment")
    .option("--disk <name...>", "only these disks")
    .action(async (name, options) => {
      const fleecing = await (await client()).call<Fleecing>("POST", `${pathOf(name)}/fleecings`, {
        name: options.name,
        disks: options.disk,
      });
      printLine(`${fleecing.name}`);
      for (const { disk, nbd, nbdUnix, websocket, content } of fleecing.exports) {
        for (const address of [nbd, nbdUnix, websocket, content]) {
          if (address !== null) printLine(`  ${disk}  ${address}`);
        }
      }
    });
  vm.command("fleecings <vm>").description("list a machine's fleecings").action(async (name) => {
    const fleecings = await (await client()).list<Fleecing>(`${pathOf(name)}/fleecings`);
    printTable([
      ["FLEECING", "STATE", "DISK", "EXPORT", "COPIED"],
      ...fleecings.flatMap((fleecing) =>
        fleecing.exports.map((item) => [
          fleecing.name,
          fleecing.state,
          item.disk,
          item.name,
          formatSize(item.copiedBytes),
        ])
      ),
    ]);
  });
  vm.command("unfleece <vm> <fleecing>").description("end a fleecing")
    .action(async (name, fleecing) => {
      await (await client()).call(
        "DELETE",
        `${pathOf(name)}/fleecings/${encodeURIComponent(fleecing)}`,
      );
      printLine(`${fleecing} is gone`);
    });
}

function pathOf(name: string): string {
  return `/v1/vms/${encodeURIComponent(name)}`;
}

function parseCount(text: string): number {
  if (!/^\d+$/.test(text)) throw new InvalidArgumentError("not a number");
  return Number(text);
}

/** Bytes of `64M` and the like. */
export function parseSize(text: string): number {
  const [, digits, unit] = /^(\d+)([KMGT]?)$/i.exec(text) ?? [];
  if (digits === undefined || unit === undefined) {
    throw new InvalidArgumentError("not a size: a number with K, M, G or T behind it");
  }
  return Number(digits) * (UNITS[unit.toUpperCase()] ?? 1);
}

/** The other way round, rounded down. */
export function formatSize(bytes: number): string {
  const [unit, factor] = Object.entries(UNITS).findLast(([, size]) => bytes >= size) ?? ["", 1];
  return `${Math.floor(bytes / factor)}${unit}`;
}

function collectDisk(
  text: string,
  previous: { name: string; sizeBytes: number }[] = [],
): { name: string; sizeBytes: number }[] {
  const [name = "", size = ""] = text.split(":");
  return [...previous, { name, sizeBytes: parseSize(size) }];
}
