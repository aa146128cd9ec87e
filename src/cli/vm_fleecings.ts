/** `ovis vm fleece` and its like: fleecings and checkpoints of machines. @module */

import type { Command } from "commander";
import type { Client } from "./client.ts";
import { printError, printLine, printTable } from "./output.ts";
import { formatSize, parseCount, parseSize, pathOf } from "./vm_text.ts";

/** A fleecing as the API shows it, as far as it is shown here. */
interface Fleecing {
  name: string;
  state: string;
  scratch: { warning: string | null };
  exports: {
    name: string;
    disk: string;
    copiedBytes: number;
    incremental: { isIncremental: boolean; reason: string | null } | null;
    nbd: string | null;
    nbdUnix: string | null;
    websocket: string;
    content: string;
  }[];
}

/** A checkpoint as the API shows it. */
interface Checkpoint {
  name: string;
  createdAt: string;
  disks: { disk: string; usable: boolean; dirtyBytes: number | null }[];
}

/**
 * Adds the commands.
 *
 * @internal
 */
export function addFleecingCommands(vm: Command, client: () => Promise<Client>): void {
  addFleece(vm, client);
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
  vm.command("complete <vm> <fleecing>")
    .description("end a fleecing that was read: the checkpoint that it was since goes")
    .option("--failure", "it was not: the next one will miss nothing")
    .action(async (name, fleecing, { failure }) => {
      const result = failure ? "failure" : "success";
      await (await client()).call("POST", `${fleecingPath(name, fleecing)}/complete`, { result });
      printLine(`${fleecing} is gone: ${result}`);
    });
  vm.command("unfleece <vm> <fleecing>").description("end a fleecing, as a failure")
    .action(async (name, fleecing) => {
      await (await client()).call("DELETE", fleecingPath(name, fleecing));
      printLine(`${fleecing} is gone`);
    });
}

function addFleece(vm: Command, client: () => Promise<Client>): void {
  vm.command("fleece <vm>").description("freeze a view of its disks and say where to read it")
    .option("--name <name>", "of the fleecing; default: the moment")
    .option("--disk <name...>", "only these disks")
    .option("--checkpoint <name>", "record what changes from this moment on")
    .option("--since <checkpoint>", "show only what changed since, and say where")
    .option("--bitmap <name>", "show only what this dirty bitmap of each disk marks")
    .option("--old-scheme", "the view is a qcow2 overlay of the disk")
    .option("--break-guest-write", "a copy that fails breaks the guest's write, not the view")
    .option("--timeout <seconds>", "how long a guest's write waits for its copy", parseCount)
    .option("--scratch-max <size>", "the most that copies may take", parseSize)
    .option("--scratch-folder <path>", "where copies go: a folder that the operator allowed")
    .option("--refuse-short", "refuse where there may not be room enough, else warn")
    .option("--expires <seconds>", "end by itself after so long", parseCount)
    .action(async (name, options) => {
      const fleecing = await (await client()).call<Fleecing>("POST", `${pathOf(name)}/fleecings`, {
        name: options.name,
        disks: options.disk,
        checkpoint: options.checkpoint,
        since: options.since,
        bitmap: options.bitmap,
        scheme: options.oldScheme && "old",
        onCbwError: options.breakGuestWrite && "break-guest-write",
        cbwTimeoutSeconds: options.timeout,
        scratchMaxBytes: options.scratchMax,
        scratchFolder: options.scratchFolder,
        onScratchShort: options.refuseShort && "refuse",
        expiresInSeconds: options.expires,
      });
      printFleecing(fleecing);
    });
}

function printFleecing({ name, scratch, exports }: Fleecing): void {
  printLine(name);
  if (scratch.warning !== null) printError(`ovis: ${scratch.warning}`);
  for (const { disk, incremental, nbd, nbdUnix, websocket, content } of exports) {
    if (incremental?.reason) printError(`ovis: read all of disk ${disk}: ${incremental.reason}`);
    for (const address of [nbd, nbdUnix, websocket, content]) {
      if (address !== null) printLine(`  ${disk}  ${address}`);
    }
  }
}

/**
 * Adds the commands.
 *
 * @internal
 */
export function addCheckpointCommands(vm: Command, client: () => Promise<Client>): void {
  const checkpoint = vm.command("checkpoint").description("moments that changes are recorded from");
  checkpoint.command("list <vm>").description("list a machine's checkpoints")
    .action(async (name) => {
      const checkpoints = await (await client()).list<Checkpoint>(`${pathOf(name)}/checkpoints`);
      printTable([
        ["CHECKPOINT", "SINCE", "DISK", "CHANGED"],
        ...checkpoints.flatMap(({ name, createdAt, disks }) =>
          disks.map(({ disk, usable, dirtyBytes }) => [
            name,
            createdAt,
            disk,
            usable ? formatSize(dirtyBytes ?? 0) : "lost",
          ])
        ),
      ]);
    });
  checkpoint.command("delete <vm> <checkpoint>").description("stop recording, and forget it")
    .action(async (name, checkpoint) => {
      const path = `${pathOf(name)}/checkpoints/${encodeURIComponent(checkpoint)}`;
      await (await client()).call("DELETE", path);
      printLine(`${checkpoint} is gone`);
    });
}

function fleecingPath(name: string, fleecing: string): string {
  return `${pathOf(name)}/fleecings/${encodeURIComponent(fleecing)}`;
}
