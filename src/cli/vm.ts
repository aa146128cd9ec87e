/** `ovis vm`: machines of a running service, for people. @module */

import type { Command } from "commander";
import { type Client, openClient } from "./client.ts";
import type { Program } from "./mod.ts";
import { printBytes, printLine, printTable } from "./output.ts";
import { addCheckpointCommands, addFleecingCommands } from "./vm_fleecings.ts";
import { addBitmapCommands, addDiskCommands } from "./vm_disks.ts";
import { addJobCommands } from "./vm_jobs.ts";
import { addProfile } from "./vm_profile.ts";
import { formatSize, parseCount, parseSize, pathOf } from "./vm_text.ts";

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
  addFleecingCommands(vm, client);
  addCheckpointCommands(vm, client);
  addDiskCommands(vm, client);
  addBitmapCommands(vm, client);
  addJobCommands(vm, client);
  addProfile(vm, client);
  addEvents(vm, client);
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
    .option(
      "--accel <how>",
      "translator, or interpreter, which is the slower reference",
      "translator",
    )
    .option(
      "--disk <name:size>",
      "or NAME:SIZE:qcow2 for a new one, NAME=DISK for one that is there (ovis vm disk); " +
        "may be repeated; default disk0:64M",
      collectDisk,
    )
    .option("--no-start", "only make it")
    .action(async (name, options) => {
      const { image, memory, harts, accel, disk, start } = options;
      const { state } = await (await client()).call<Vm>("POST", "/v1/vms", {
        name,
        image,
        memoryBytes: memory,
        harts,
        accel,
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

function addEvents(vm: Command, client: () => Promise<Client>): void {
  vm.command("events").description("what happens in the service, as it happens")
    .action(async () => {
      const { body } = await (await client()).request("GET", "/v1/events");
      for await (const chunk of body ?? []) printBytes(chunk);
    });
}

/** A disk of a new machine, as the API takes it. */
type DiskOrder =
  & { name: string }
  & (
    | { sizeBytes: number; format?: string }
    | { disk: string }
  );

function collectDisk(text: string, previous: DiskOrder[] = []): DiskOrder[] {
  const [, taker, disk] = /^([^:=]+)=(.+)$/.exec(text) ?? [];
  if (taker !== undefined && disk !== undefined) return [...previous, { name: taker, disk }];
  const [name = "", size = "", format] = text.split(":");
  const order = { name, sizeBytes: parseSize(size), ...(format !== undefined && { format }) };
  return [...previous, order];
}
