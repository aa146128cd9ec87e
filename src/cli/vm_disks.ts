/** `ovis vm disk` and `ovis vm bitmap`: disks of a running service. @module */

import type { Command } from "commander";
import type { Client } from "./client.ts";
import { printLine, printTable } from "./output.ts";
import { Progress } from "./progress.ts";
import { diskPath, formatSize, parseSize, pathOf } from "./vm_text.ts";
import { followJob, type Job } from "./vm_jobs.ts";

/** A disk as the API shows it, as far as it is shown here. */
interface Disk {
  name: string;
  vm: string | null;
  format: string;
  sizeBytes: number;
  backing: string | null;
  bitmaps: Bitmap[];
}

/** A bitmap as the API shows it. */
interface Bitmap {
  name: string;
  dirtyBytes: number;
  granularityBytes: number;
  recording: boolean;
  busy: boolean;
  persistent: boolean;
  inconsistent: boolean;
}

/**
 * Adds the commands.
 *
 * @internal
 */
export function addDiskCommands(vm: Command, client: () => Promise<Client>): void {
  const disk = vm.command("disk")
    .description("disks: of machines (MACHINE:DISK), and by themselves");
  addListAndMake(disk, client);
  addChanges(disk, client);
  addContent(disk, client);
  vm.command("snapshot <vm>")
    .description("give disks a new active image, upon the one before, at one moment")
    .option("--disk <name...>", "only these disks")
    .action(async (name, options) => {
      const service = await client();
      const { disks } = await service.call<{ disks: { name: string }[] }>("GET", pathOf(name));
      const names: string[] = options.disk ?? disks.map((disk) => disk.name);
      const actions = names.map((disk) => ({ type: "snapshot", disk }));
      await service.call("POST", `${pathOf(name)}/transactions`, { actions });
      printLine(`${names.join(", ")} of ${name}: what is written goes to new images`);
    });
}

function addListAndMake(disk: Command, client: () => Promise<Client>): void {
  disk.command("list").description("list disks").action(async () => {
    const disks = await (await client()).list<Disk>("/v1/disks");
    printTable([
      ["NAME", "SIZE", "FORMAT", "BACKING", "MACHINE"],
      ...disks.map(({ name, sizeBytes, format, backing, vm }) => [
        name,
        formatSize(sizeBytes),
        format,
        backing ?? "",
        vm ?? "",
      ]),
    ]);
  });
  disk.command("show <disk>").description("everything about a disk, as JSON").action(async (name) =>
    printLine(JSON.stringify(await (await client()).call("GET", diskPath(name)), null, 2))
  );
  disk.command("create <name> [size]").description("make a disk")
    .option("--format <format>", "raw (default) or qcow2")
    .option("--cluster-size <size>", "of qcow2", parseSize)
    .option("--backing <disk>", "a disk that it begins as, and which then stays as it is")
    .option("--path <file>", "an image that is there, in a folder that the operator allowed")
    .option("--copy-of <disk>", "a disk to copy, as it is now")
    .action(async (name, size, options) => {
      const service = await client();
      const made = await service.call<Disk | Job>("POST", "/v1/disks", {
        name,
        sizeBytes: size === undefined ? undefined : parseSize(size),
        format: options.format,
        clusterSizeBytes: options.clusterSize,
        backing: options.backing,
        path: options.path,
        copyOf: options.copyOf,
      });
      if ("id" in made) await followJob(service, made.id);
      printLine(`${name} is made`);
    });
}

function addChanges(disk: Command, client: () => Promise<Client>): void {
  disk.command("resize <disk> <size>").description("change a disk's size; its guest is told")
    .option("--shrink", "also to a smaller one: what is beyond its end is lost")
    .action(async (name, size, { shrink }) => {
      const { sizeBytes } = await (await client()).call<Disk>("PATCH", diskPath(name), {
        sizeBytes: parseSize(size),
        allowShrink: shrink,
      });
      printLine(`${name} has ${formatSize(sizeBytes)}`);
    });
  disk.command("delete <disk>").description("delete a disk that no machine has")
    .action(async (name) => {
      await (await client()).call("DELETE", diskPath(name));
      printLine(`${name} is gone`);
    });
}

function addContent(disk: Command, client: () => Promise<Client>): void {
  disk.command("upload <disk> <file>").description("write a file's bytes to a disk")
    .option("--offset <size>", "where they go", parseSize)
    .action(async (name, file, { offset = 0 }) => {
      const { size } = await Deno.stat(file);
      const { readable } = await Deno.open(file);
      const service = await client();
      await withProgress(`uploading ${file}`, size, async (count) => {
        const body = readable.pipeThrough(counting(count));
        await service.request("PUT", `${diskPath(name)}/content?offset=${offset}`, { body });
      });
      printLine(`${name} has it`);
    });
  disk.command("download <disk> <file>").description("read a disk, as it is now, into a file")
    .action(async (name, file) => {
      const service = await client();
      const { body, headers } = await service.request("GET", `${diskPath(name)}/content`);
      if (body === null) throw new Error("the service sent nothing");
      const size = Number(headers.get("content-length"));
      const target = await Deno.open(file, { write: true, create: true, truncate: true });
      await withProgress(
        `downloading ${name}`,
        size,
        (count) => body.pipeThrough(counting(count)).pipeTo(target.writable),
      );
      printLine(`${file} has it`);
    });
}

/**
 * Adds the commands.
 *
 * @internal
 */
export function addBitmapCommands(vm: Command, client: () => Promise<Client>): void {
  const bitmap = vm.command("bitmap").description("dirty bitmaps of disks: what was written since");
  const pathOfBitmap = (disk: string, name: string) =>
    `${diskPath(disk)}/bitmaps/${encodeURIComponent(name)}`;
  bitmap.command("list <disk>").description("list a disk's bitmaps").action(async (disk) => {
    const { bitmaps } = await (await client()).call<Disk>("GET", diskPath(disk));
    printTable([
      ["BITMAP", "DIRTY", "GRANULARITY", "STATE"],
      ...bitmaps.map((item) => [
        item.name,
        formatSize(item.dirtyBytes),
        formatSize(item.granularityBytes),
        statesOf(item).join(","),
      ]),
    ]);
  });
  bitmap.command("add <disk> <bitmap>").description("mark what is written from now on")
    .option("--granularity <size>", "of a mark", parseSize)
    .option("--no-persistent", "not kept with the disk")
    .option("--disabled", "it does not record yet")
    .action(async (disk, name, { granularity, persistent, disabled }) => {
      await (await client()).call("POST", pathOfBitmap(disk, name), {
        granularityBytes: granularity,
        persistent: persistent ? undefined : false,
        disabled,
      });
      printLine(`${name} is added`);
    });
  bitmap.command("remove <disk> <bitmap>").description("remove a bitmap")
    .action(async (disk, name) => {
      await (await client()).call("DELETE", pathOfBitmap(disk, name));
      printLine(`${name} is gone`);
    });
  for (const request of ["clear", "enable", "disable"] as const) {
    bitmap.command(`${request} <disk> <bitmap>`).description(`${request} a bitmap`)
      .action(async (disk, name) => {
        const path = `${pathOfBitmap(disk, name)}/${request}`;
        const shown = await (await client()).call<Bitmap>("POST", path);
        printLine(`${name}: ${formatSize(shown.dirtyBytes)} dirty, ${statesOf(shown).join(",")}`);
      });
  }
  bitmap.command("merge <disk> <bitmap> <sources...>")
    .description("add what other bitmaps of the disk mark")
    .action(async (disk, name, sources: string[]) => {
      const bitmaps = sources.map((source) => ({ name: source }));
      const path = `${pathOfBitmap(disk, name)}/merge`;
      const { dirtyBytes } = await (await client()).call<Bitmap>("POST", path, { bitmaps });
      printLine(`${name}: ${formatSize(dirtyBytes)} dirty`);
    });
}

function statesOf({ recording, busy, persistent, inconsistent }: Bitmap): string[] {
  const states = { recording, busy, persistent, inconsistent };
  return Object.entries(states).filter(([, isSo]) => isSo).map(([name]) => name);
}

async function withProgress(
  step: string,
  totalBytes: number,
  work: (count: (bytes: number) => void) => Promise<void>,
): Promise<void> {
  const progress = new Progress();
  let doneBytes = 0;
  progress.report(step, 0, totalBytes);
  try {
    await work((bytes) => {
      doneBytes += bytes;
      progress.report(step, doneBytes, totalBytes);
    });
  } finally {
    progress.end();
  }
}

function counting(count: (bytes: number) => void) {
  return new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
    transform(chunk, controller) {
      count(chunk.length);
      controller.enqueue(chunk);
    },
  });
}
