/**
 * All disks of the service, whether a machine uses them or not.
 *
 *   creating --> ready --> deleting --> (gone)
 *
 * A machine's disk is the disk that it uses: one that was made with its machine is named
 * MACHINE:DISK and goes with it; one that was made by itself can be given to a machine and stays
 * when that goes.
 *
 * A disk is open in one worker at a time: its machine's, or one of its own, which starts when the
 * disk is used and ends when nobody has used it for a while.
 *
 *   free <--(idle)-- own worker <--(use)-- free --(machine starts)--> machine's worker
 *
 * @module
 */

import { isAbsolute, join, resolve } from "node:path";
import { limits } from "../limits.ts";
import type { DiskConfig, DiskInfo, NewImage, StorageConfig } from "../machine/messages.ts";
import { type DataFolder, ignoreMissing } from "./data_folder.ts";
import { isNotEmpty, makeRawFile, randomHex, relativeTo } from "./disk_files.ts";
import { DiskSessions } from "./disk_sessions.ts";
import type { OpenStorage, StorageDriver } from "./driver.ts";
import { ServiceError, toServiceError } from "./errors.ts";
import type { EventLog } from "./event_log.ts";
import { explainFile } from "./explain.ts";
import type { JobBook } from "./job_book.ts";
import type { Log } from "./log.ts";
import type { DiskFormat, DiskRecord, MachineDisk, Store } from "./store.ts";

/** What disks need of their surroundings. */
export interface DisksContext {
  /** Where their files are. */
  folder: DataFolder;
  /** Keeps their records. */
  store: Store;
  /** Opens those without a machine. */
  openStorage: OpenStorage;
  /** Told of what becomes of them. */
  events: EventLog;
  /** Told of jobs of disks without a machine. */
  jobs: JobBook;
  /** Gets a child. */
  log: Log;
  /** Folders of the operator's that disks may be in. */
  allowedFolders: readonly string[];
}

/** A disk to be made. */
export interface DiskOrder {
  /** Chosen, or that of a machine's disk. */
  name: string;
  /** The machine that it goes with. */
  owner: { vm: string; folder: string; disk: string } | null;
  /** null: as its backing disk, or as the file that is there. */
  sizeBytes: number | null;
  /** How its content is kept. */
  format: DiskFormat;
  /** Of qcow2, null: its default. */
  clusterSizeBytes: number | null;
  /** A disk whose content it begins with. */
  backing: string | null;
  /** A file that is there already, in a folder that the operator allowed; null: a new one. */
  path: string | null;
}

/** An open machine that has a disk. */
export interface DiskHolder {
  /** The machine's name. */
  readonly vm: string;
  /** The disk's name in the machine. */
  readonly disk: string;
  /** The machine's worker. Throws where it is not open yet, or not any more. */
  readonly driver: () => StorageDriver;
}

const ID_BYTES = 4;
const NAME_BYTES = 3;

/** See the module's head. */
export class Disks {
  readonly #context: DisksContext;
  readonly #sessions: DiskSessions;
  readonly #holders = new Map<string, DiskHolder>();
  /** Disks that are being made or deleted now. */
  readonly #changing = new Set<string>();

  /** Knows every disk that the store has. */
  constructor(context: DisksContext) {
    this.#context = context;
    this.#sessions = new DiskSessions(this, { ...context, log: context.log.getChild("disk") });
  }

  /** A disk; throws diskNotFound. */
  get(name: string): DiskRecord {
    const record = this.find(name);
    if (record === undefined) throw new ServiceError("diskNotFound", `there is no disk ${name}`);
    return record;
  }

  /** A disk that is there and not half made, or undefined. */
  find(name: string): DiskRecord | undefined {
    const record = this.#context.store.disks.get(name);
    return record?.phase === "ready" ? record : undefined;
  }

  /** Up to `limit` disks whose names come after `after`, by name. */
  list({ after, limit }: { after: string; limit: number }): DiskRecord[] {
    return this.#context.store.disks.list({ ...ALL, after })
      .filter(({ phase }) => phase === "ready").slice(0, limit);
  }

  /** The machine that has a disk open, null: none has. */
  holderOf(name: string): DiskHolder | null {
    return this.#holders.get(name) ?? null;
  }

  /** Makes a disk: it is there whole, or nothing of it is. */
  async create(order: DiskOrder): Promise<DiskRecord> {
    const record = this.#record(order);
    const { store, folder } = this.#context;
    this.#changing.add(record.name);
    try {
      store.disks.put(record.name, record);
      // From now on nobody may write to it: a worker that could ends.
      if (order.backing !== null) await this.#sessions.end(order.backing);
      if (order.path === null) {
        await Deno.mkdir(folder.diskDirectory(record.folder), { recursive: true, mode: 0o700 });
        await this.#makeFile(record, order);
      } else record.sizeBytes = await this.#sizeOfFile(record);
      const made: DiskRecord = { ...record, phase: "ready" };
      store.disks.put(made.name, made);
      this.#tell("disk.created", made.name);
      return made;
    } catch (error) {
      await this.#removeFiles(record);
      store.disks.remove(record.name);
      throw order.path === null ? toServiceError(error) : explainFile(error);
    } finally {
      this.#changing.delete(record.name);
    }
  }

  /** Removes a disk with its files. Throws deviceBusy where it is in use. */
  async remove(name: string): Promise<void> {
    const record = this.get(name);
    if (record.owner !== null) {
      throw new ServiceError("deviceBusy", `disk ${name} goes with machine ${record.owner}`);
    }
    this.#checkUnused(name);
    for (const machine of this.#context.store.machines.list(ALL)) {
      if (!machine.disks.some(({ disk }) => disk === name)) continue;
      throw new ServiceError("deviceBusy", `machine ${machine.name} has disk ${name}`);
    }
    await this.#destroy(record);
  }

  /** Removes the disks that were made with a machine, whose phase says so already. */
  async removeOwned(disks: readonly MachineDisk[], vm: string): Promise<void> {
    for (const { disk } of disks) {
      const record = disk === undefined ? undefined : this.#context.store.disks.get(disk);
      if (record?.owner === vm) await this.#destroy(record);
    }
  }

  /** Throws deviceBusy where other disks are made upon one that goes with a machine. */
  checkOwnedFree(vm: string): void {
    const owned = new Set(
      this.#context.store.disks.list(ALL).filter(({ owner }) => owner === vm)
        .map(({ name }) => name),
    );
    for (const name of owned) {
      const upon = this.#dependentsOf(name).filter((other) => !owned.has(other));
      if (upon.length === 0) continue;
      throw new ServiceError("deviceBusy", `disk ${name} is what ${upon.join(", ")} stands on`);
    }
  }

  /** Throws deviceBusy where other disks are made upon it or a machine has it open. */
  #checkUnused(name: string): void {
    const upon = this.#dependentsOf(name);
    if (upon.length > 0) {
      throw new ServiceError("deviceBusy", `disk ${name} is what ${upon.join(", ")} stands on`);
    }
    const holder = this.#holders.get(name);
    if (holder !== undefined) {
      throw new ServiceError("deviceBusy", `machine ${holder.vm} has disk ${name} open`);
    }
    if (this.#changing.has(name)) {
      throw new ServiceError("deviceBusy", `disk ${name} is being made or deleted`);
    }
  }

  async #destroy(record: DiskRecord): Promise<void> {
    const { store } = this.#context;
    this.#changing.add(record.name);
    try {
      await this.#sessions.end(record.name);
      store.disks.put(record.name, { ...record, phase: "deleting" });
      await this.#removeFiles(record);
      store.disks.remove(record.name);
      this.#tell("disk.deleted", record.name);
      // What it stood on may be written again, by a worker that opens it anew.
      if (record.backing !== null) await this.#sessions.end(record.backing).catch(() => {});
    } finally {
      this.#changing.delete(record.name);
    }
  }

  /** Files and the folder, unless another disk's are in it. */
  async #removeFiles(record: DiskRecord): Promise<void> {
    const { folder } = this.#context;
    for (const file of record.files) await Deno.remove(folder.diskPath(file)).catch(ignoreMissing);
    await Deno.remove(folder.diskDirectory(record.folder)).catch((error: unknown) => {
      if (error instanceof Deno.errors.NotFound || isNotEmpty(error)) return;
      throw error;
    });
  }

  /**
   * Changes a disk's size. What is on record is never more than the file has, so that the disk can
   * be opened whatever happens meanwhile.
   */
  async resize(
    name: string,
    { sizeBytes, allowShrink }: { sizeBytes: number; allowShrink: boolean },
  ): Promise<void> {
    const before = this.get(name).sizeBytes;
    if (sizeBytes < before && !allowShrink) {
      throw new ServiceError(
        "outOfRange",
        `disk ${name} has ${before} bytes: a smaller size loses data, and needs allowShrink`,
      );
    }
    if (this.isStoodUpon(name)) {
      const upon = this.#dependentsOf(name).join(", ");
      throw new ServiceError("deviceBusy", `disk ${name} is what ${upon} stands on`);
    }
    if (sizeBytes < before) this.noteSize(name, sizeBytes);
    try {
      await this.use(name, (driver, disk) => driver.call("diskResize", { disk, sizeBytes }));
      this.noteSize(name, sizeBytes);
    } catch (error) {
      this.noteSize(name, before);
      throw error;
    }
  }

  /** Calls `action` with the worker that has the disk open, and the disk's name there. */
  async use<T>(
    name: string,
    action: (driver: StorageDriver, disk: string) => Promise<T>,
  ): Promise<T> {
    this.get(name);
    if (this.#changing.has(name)) {
      throw new ServiceError("deviceBusy", `disk ${name} is being made or deleted`);
    }
    const holder = this.#holders.get(name);
    try {
      if (holder !== undefined) return await action(holder.driver(), holder.disk);
      return await this.#sessions.use(name, (driver) => action(driver, name));
    } catch (error) {
      throw toServiceError(error);
    }
  }

  /** The same with the worker that a job is in: a monitor's need not be of a disk known here. */
  async useFor<T>(
    job: { vm: string | null; disk: string },
    action: (driver: StorageDriver) => Promise<T>,
  ): Promise<T> {
    const holder = [...this.#holders.values()].find(({ vm }) => vm === job.vm);
    if (holder === undefined) return await this.use(job.disk, action);
    try {
      return await action(holder.driver());
    } catch (error) {
      throw toServiceError(error);
    }
  }

  /**
   * Gives disks to a machine that starts: workers of their own end. Throws deviceBusy where one is
   * in use, or has a job.
   */
  async claim(
    disks: readonly { name: string; disk: string; isReadOnly: boolean }[],
    machine: { vm: string; driver: () => StorageDriver },
  ): Promise<void> {
    for (const { disk } of disks) {
      this.get(disk);
      if (this.#changing.has(disk)) {
        throw new ServiceError("deviceBusy", `disk ${disk} is being made or deleted`);
      }
      const holder = this.#holders.get(disk);
      if (holder === undefined) continue;
      throw new ServiceError("deviceBusy", `machine ${holder.vm} has disk ${disk} open`);
    }
    for (const { disk, isReadOnly } of disks) {
      const upon = this.#dependentsOf(disk);
      if (isReadOnly || upon.length === 0) continue;
      throw new ServiceError(
        "deviceBusy",
        `disk ${disk} is what ${upon.join(", ")} stands on: it can be used for reading only`,
      );
    }
    const { vm, driver } = machine;
    for (const { name, disk } of disks) this.#holders.set(disk, { vm, disk: name, driver });
    try {
      for (const { disk } of disks) {
        await this.#sessions.end(disk);
        for (const base of this.backingOf(disk)) await this.#sessions.endWriter(base.name);
      }
    } catch (error) {
      this.release(vm);
      throw error;
    }
  }

  /** The machine has closed its disks. */
  release(vm: string): void {
    for (const [disk, holder] of this.#holders) {
      if (holder.vm === vm) this.#holders.delete(disk);
    }
  }

  /** How a worker opens a disk, under `name`. */
  config(disk: string, options: { name: string; isReadOnly: boolean; serial: string }): DiskConfig {
    const { file, format, sizeBytes } = this.get(disk);
    return { ...options, path: this.#context.folder.diskPath(file), format, sizeBytes };
  }

  /** Where a worker that opens these disks may open files. */
  folders(disks: readonly string[]): Pick<StorageConfig, "writableFolders" | "readableFolders"> {
    const { folder, allowedFolders } = this.#context;
    const own = disks.map((disk) => folder.diskDirectory(this.get(disk).folder));
    const below = disks.flatMap((disk) => [...this.backingOf(disk)])
      .map((record) => folder.diskDirectory(record.folder));
    return {
      writableFolders: [...new Set([...own, ...allowedFolders])],
      readableFolders: [...new Set(below)].filter((path) => !own.includes(path)),
    };
  }

  /**
   * Another file is about to be a disk's active one; on stable storage when this returns. Where
   * the file is another disk's (a mirror's target), that one gets the file that was active.
   */
  switchFile(name: string, active: { path: string; format: DiskFormat }): void {
    const { store, folder } = this.#context;
    const record = this.get(name);
    const file = relativeTo(folder.disksDirectory, active.path);
    const other = store.disks.list(ALL).find((disk) => disk.name !== name && disk.file === file);
    if (other !== undefined) {
      const { file, format, files, backing } = record;
      store.disks.put(other.name, { ...other, file, format, files, backing, phase: "ready" });
      store.disks.put(name, {
        ...record,
        file: other.file,
        format: other.format,
        files: other.files,
        backing: other.backing,
      });
      return this.#tell("disk.changed", name);
    }
    const isNew = !isAbsolute(file) && !record.files.includes(file);
    const files = isNew ? [...record.files, file] : record.files;
    store.disks.put(name, { ...record, file, format: active.format, files });
    this.#tell("disk.changed", name);
  }

  /** What a disk's worker says of its size. */
  noteSize(name: string, sizeBytes: number): void {
    const record = this.find(name);
    if (record === undefined || record.sizeBytes === sizeBytes) return;
    this.#context.store.disks.put(name, { ...record, sizeBytes });
    this.#tell("disk.changed", name);
  }

  /** Files that no longer belong to a disk's chain go, and disks that it no longer stands on. */
  async dropOtherFiles(name: string, info: DiskInfo): Promise<void> {
    const { store, folder } = this.#context;
    const inUse = new Set(info.chain.map(({ path }) => path));
    const real = await Deno.realPath(folder.disksDirectory);
    const record = this.get(name);
    const isInUse = (file: string) => inUse.has(resolve(real, file));
    const isKept = (file: string) => isInUse(file) || file === record.file;
    const dropped = record.files.filter((file) => !isKept(file));
    const below = [...this.backingOf(name)].find(({ file }) => isInUse(file));
    const backing = below?.name ?? null;
    if (dropped.length === 0 && backing === record.backing) return;
    store.disks.put(name, { ...record, files: record.files.filter(isKept), backing });
    this.#tell("disk.changed", name);
    for (const file of dropped) await Deno.remove(folder.diskPath(file)).catch(ignoreMissing);
  }

  /**
   * A disk that a worker is about to fill: on record as half made, so that a crash leaves nothing
   * of it. It lives in the folder of `beside`, where that disk's worker may write.
   */
  beginTarget(order: Omit<DiskOrder, "path" | "owner">, beside: string): {
    record: DiskRecord;
    image: NewImage;
  } {
    const { folder } = this.get(beside);
    const record = { ...this.#record({ ...order, path: null, owner: null }), folder };
    record.file = `${folder}/${order.name}-${randomHex(NAME_BYTES)}.${order.format}`;
    record.files = [record.file];
    this.#context.store.disks.put(record.name, record);
    this.#changing.add(record.name);
    return { record, image: this.#imageOf(record, order.clusterSizeBytes) };
  }

  /** The target is filled, or not to be kept. */
  async endTarget(name: string, isKept: boolean): Promise<void> {
    const { store } = this.#context;
    this.#changing.delete(name);
    const record = store.disks.get(name);
    if (record === undefined) return;
    if (isKept || record.phase === "ready") {
      store.disks.put(name, { ...record, phase: "ready" });
      this.#tell("disk.created", name);
    } else {
      await this.#removeFiles(record);
      store.disks.remove(name);
    }
  }

  /** Whether other disks are made upon it, so that it may not change. */
  isStoodUpon(name: string): boolean {
    return this.#dependentsOf(name).length > 0;
  }

  /** The path of a new file beside a disk's own, for an overlay. */
  newOverlay(name: string): NewImage {
    const record = this.get(name);
    const { folder } = this.#context;
    const base = (record.file.split("/").at(-1) ?? name).replace(/(-[0-9a-f]{6})?\.\w+$/, "");
    const path = join(
      folder.diskDirectory(record.folder),
      `${base}-${randomHex(NAME_BYTES)}.qcow2`,
    );
    const { sizeBytes, format } = record;
    const backing = { path: folder.diskPath(record.file), format };
    return { path, format: "qcow2", sizeBytes, clusterSizeBytes: null, backing };
  }

  /** Ends all workers of disks without a machine. */
  close(): Promise<void> {
    return this.#sessions.close();
  }

  #record(order: DiskOrder): DiskRecord {
    const { store } = this.#context;
    const { name, owner, backing, format } = order;
    if (store.disks.get(name) !== undefined) {
      throw new ServiceError("nameTaken", `there is a disk named ${name} already`);
    }
    if (store.disks.list(ALL).length >= limits.diskTotal) {
      throw new ServiceError("limitReached", `there are ${limits.diskTotal} disks already`);
    }
    const base = backing === null ? null : this.#backing(backing, format);
    const sizeBytes = order.sizeBytes ?? base?.sizeBytes ?? 0;
    const folder = owner?.folder ?? this.#freeFolder();
    const file = order.path ?? `${folder}/${owner?.disk ?? name}.${format}`;
    return {
      name,
      owner: owner?.vm ?? null,
      folder,
      file,
      format,
      files: order.path === null ? [file] : [],
      sizeBytes,
      backing,
      createdAt: new Date().toISOString(),
      phase: "creating",
    };
  }

  #backing(name: string, format: DiskFormat): DiskRecord {
    const base = this.find(name);
    if (base === undefined) throw new ServiceError("badReference", `there is no disk ${name}`);
    if (format !== "qcow2") {
      throw new ServiceError("badReference", "only a qcow2 disk can stand on another disk");
    }
    const holder = this.#holders.get(name);
    if (holder !== undefined) {
      throw new ServiceError("deviceBusy", `machine ${holder.vm} has disk ${name} open`);
    }
    return base;
  }

  async #makeFile(record: DiskRecord, order: DiskOrder): Promise<void> {
    const { folder } = this.#context;
    if (record.format === "raw") return await makeRawFile(folder.diskPath(record.file), record);
    const image = this.#imageOf(record, order.clusterSizeBytes);
    await this.#sessions.useTemporary(record, (driver) => driver.call("diskCreate", image));
  }

  #imageOf(record: DiskRecord, clusterSizeBytes: number | null): NewImage {
    const { folder } = this.#context;
    const { format, sizeBytes, backing } = record;
    const base = backing === null ? null : this.get(backing);
    return {
      path: folder.diskPath(record.file),
      format,
      sizeBytes,
      clusterSizeBytes,
      backing: base && { path: folder.diskPath(base.file), format: base.format },
    };
  }

  /** An image that is there already. */
  async #sizeOfFile(record: DiskRecord): Promise<number> {
    const { folder, allowedFolders } = this.#context;
    const named = folder.diskPath(record.file);
    // Nobody learns what is there outside of the allowed folders.
    const path = await Deno.realPath(named).catch(() => named);
    if (!allowedFolders.some((allowed) => path.startsWith(`${allowed}/`))) {
      throw new ServiceError(
        "badReference",
        `${path} is in none of the folders that the operator allowed (--allow-folder)`,
      );
    }
    const { name, format } = record;
    const config = { name, path, format, sizeBytes: 0, isReadOnly: true, serial: "" };
    return await this.#sessions.useTemporary(record, (driver) => {
      const [disk] = driver.opened.disks;
      return Promise.resolve(disk?.sizeBytes ?? 0);
    }, [config]);
  }

  /** What a disk stands on, the nearest first. */
  *backingOf(name: string): Generator<DiskRecord> {
    const seen = new Set<string>();
    for (let next = this.get(name).backing; next !== null && !seen.has(next);) {
      seen.add(next);
      const record = this.get(next);
      yield record;
      next = record.backing;
    }
  }

  #dependentsOf(name: string): string[] {
    return this.#context.store.disks.list(ALL).filter(({ backing }) => backing === name)
      .map((record) => record.name);
  }

  #freeFolder(): string {
    const { store } = this.#context;
    const used = new Set([
      ...store.disks.list(ALL).map(({ folder }) => folder),
      ...store.machines.list(ALL).map(({ id }) => id),
    ]);
    for (;;) {
      const id = randomHex(ID_BYTES);
      if (!used.has(id)) return id;
    }
  }

  #tell(type: string, disk: string): void {
    this.#context.events.add(type, { disk });
  }
}

const ALL = { after: "", limit: Number.MAX_SAFE_INTEGER };
