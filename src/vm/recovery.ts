/**
 * What the start of the service puts right after a crash: temporary images, sockets and half-made
 * uploads go, machines that were half made or half deleted go, all others stay with their disks.
 *
 * Only what the service itself marked as temporary is removed; a file that it does not know stays.
 *
 * @module
 */

import { join } from "node:path";
import { type DataFolder, ignoreMissing } from "./data_folder.ts";
import type { Log } from "./log.ts";
import { ownDiskName } from "./names.ts";
import type { DiskRecord, Store } from "./store.ts";

/** What a clean-up found. */
export interface RecoveryReport {
  /** Temporary images of fleecings: their paths below the scratch folder. */
  scratchFiles: string[];
  /** Bytes that those took. */
  scratchBytes: number;
  /** Fleecings that ended with the crash, as machine/fleecing. */
  fleecings: string[];
  /** Machines that were being made or deleted. */
  machines: string[];
  /** Disks that were being made, filled or deleted. */
  disks: string[];
  /** Uploads that broke off, and images that were being deleted. */
  uploads: string[];
}

/** Cleans up. Nothing may be running yet. */
export async function recover(folder: DataFolder, store: Store): Promise<RecoveryReport> {
  const report: RecoveryReport = {
    scratchFiles: [],
    scratchBytes: 0,
    fleecings: [],
    machines: [],
    disks: [],
    uploads: [],
  };
  await emptyScratch(folder, report);
  for await (const entry of Deno.readDir(folder.socketDirectory)) {
    if (/\.(sock|qmp)$/.test(entry.name)) {
      await Deno.remove(join(folder.socketDirectory, entry.name));
    }
  }
  const all = { after: "", limit: Number.MAX_SAFE_INTEGER };
  for (const { key, vm, scratchDirectory, checkpoint } of store.fleecings.list(all)) {
    if (scratchDirectory) {
      await Deno.remove(scratchDirectory, { recursive: true }).catch(ignoreMissing);
    }
    // Its reader never said that it has everything: the one before still counts.
    if (checkpoint) store.checkpoints.remove(`${vm}/${checkpoint}`);
    store.fleecings.remove(key);
    report.fleecings.push(key);
  }
  adoptDisks(store);
  for (const { name, id, phase } of store.machines.list(all)) {
    if (phase === "ready") continue;
    for (const disk of store.disks.list(all)) {
      if (disk.owner === name) await removeDisk(folder, store, disk);
    }
    const isShared = store.disks.list(all).some((disk) => disk.folder === id);
    if (!isShared) {
      await Deno.remove(folder.diskDirectory(id), { recursive: true }).catch(ignoreMissing);
    }
    store.machines.remove(name);
    report.machines.push(name);
  }
  for (const disk of store.disks.list(all)) {
    if (disk.phase === "ready") continue;
    await removeDisk(folder, store, disk);
    report.disks.push(disk.name);
  }
  await removeHalfMadeImages(folder, report);
  return report;
}

/** Says what was found, one line each; nothing after a clean stop. */
export function logReport(report: RecoveryReport, log: Log): void {
  const { scratchFiles, scratchBytes, fleecings, machines, disks, uploads } = report;
  if (fleecings.length > 0) log.warn("fleecings lost in a crash: {fleecings}", { fleecings });
  if (scratchFiles.length > 0) {
    log.warn("temporary images removed: {scratchFiles}, {scratchBytes} bytes", {
      scratchFiles,
      scratchBytes,
    });
  }
  if (machines.length > 0) log.warn("half-made machines removed: {machines}", { machines });
  if (disks.length > 0) log.warn("half-made disks removed: {disks}", { disks });
  if (uploads.length > 0) log.warn("half-made uploads removed: {uploads}", { uploads });
}

/** Files that belong to the disk, and its folder unless another disk is in it. */
async function removeDisk(folder: DataFolder, store: Store, disk: DiskRecord): Promise<void> {
  for (const file of disk.files) await Deno.remove(folder.diskPath(file)).catch(ignoreMissing);
  const all = { after: "", limit: Number.MAX_SAFE_INTEGER };
  const others = store.disks.list(all).filter((other) => other.folder === disk.folder);
  const machines = store.machines.list(all).filter(({ id }) => id === disk.folder);
  if (others.length + machines.length <= 1) {
    await Deno.remove(folder.diskDirectory(disk.folder), { recursive: true }).catch(ignoreMissing);
  }
  store.disks.remove(disk.name);
}

async function emptyScratch(folder: DataFolder, report: RecoveryReport): Promise<void> {
  for await (const machine of Deno.readDir(folder.scratchRoot)) {
    const directory = join(folder.scratchRoot, machine.name);
    if (machine.isDirectory) {
      for await (const file of Deno.readDir(directory)) {
        const info = await Deno.lstat(join(directory, file.name));
        report.scratchFiles.push(`${machine.name}/${file.name}`);
        report.scratchBytes += info.blocks === null ? info.size : info.blocks * 512;
      }
    }
    await Deno.remove(directory, { recursive: true });
  }
}

async function removeHalfMadeImages(folder: DataFolder, report: RecoveryReport): Promise<void> {
  for await (const image of Deno.readDir(folder.imagesDirectory)) {
    const directory = join(folder.imagesDirectory, image.name);
    if (image.name.startsWith(".deleted-")) {
      await Deno.remove(directory, { recursive: true });
      report.uploads.push(image.name);
    } else if (image.isDirectory) {
      for await (const file of Deno.readDir(directory)) {
        if (!/^\..*\.tmp$/.test(file.name)) continue;
        await Deno.remove(join(directory, file.name));
        report.uploads.push(`${image.name}/${file.name}`);
      }
    }
  }
}

/** Records of machines from before disks were resources get disks. */
function adoptDisks(store: Store): void {
  for (const machine of store.machines.list({ after: "", limit: Number.MAX_SAFE_INTEGER })) {
    if (machine.disks.every(({ disk }) => disk !== undefined)) continue;
    const disks = machine.disks.map((disk) => {
      const name = disk.disk ?? ownDiskName(machine.name, disk.name);
      const file = `${machine.id}/${disk.name}.raw`;
      store.disks.insert(name, {
        name,
        owner: machine.name,
        folder: machine.id,
        file,
        format: "raw",
        files: [file],
        sizeBytes: disk.sizeBytes,
        backing: null,
        createdAt: machine.createdAt,
        phase: machine.phase === "ready" ? "ready" : "deleting",
      });
      return { ...disk, disk: name };
    });
    store.machines.put(machine.name, { ...machine, disks });
  }
}
