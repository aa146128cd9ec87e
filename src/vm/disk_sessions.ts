/**
 * Workers of disks without a machine. Each serves one disk, starts when it is used, and ends when
 * nobody used it for a while and it has no jobs.
 *
 *   (none) --use--> opening --> open --idle, no jobs--> closing --> (none)
 *
 * @module
 */

import { limits } from "../limits.ts";
import type { DiskConfig } from "../machine/messages.ts";
import type { Disks, DisksContext } from "./disks.ts";
import type { StorageDriver, StorageEvents } from "./driver.ts";
import { ServiceError } from "./errors.ts";
import type { DiskRecord } from "./store.ts";

/** A worker that has to end waits so long for those who use it. */
const PATIENCE_MS = 5_000;

interface Session {
  opening: Promise<StorageDriver>;
  useCount: number;
  /** Called when nobody uses it any more. */
  onIdle: (() => void) | null;
  timer: ReturnType<typeof setTimeout> | null;
  ended: Promise<void> | null;
}

/** See the module's head. */
export class DiskSessions {
  readonly #disks: Disks;
  readonly #context: DisksContext;
  readonly #sessions = new Map<string, Session>();
  #isClosed = false;

  /** None is open. */
  constructor(disks: Disks, context: DisksContext) {
    this.#disks = disks;
    this.#context = context;
  }

  /** Calls `action` with the disk's worker. */
  async use<T>(name: string, action: (driver: StorageDriver) => Promise<T>): Promise<T> {
    const session = await this.#session(name);
    session.useCount++;
    if (session.timer !== null) clearTimeout(session.timer);
    session.timer = null;
    try {
      return await action(await session.opening);
    } finally {
      if (--session.useCount === 0) this.#idle(name, session);
      if (session.useCount === 0) session.onIdle?.();
    }
  }

  /** Calls `action` with a worker that may write where `record` is, and has `disks` open. */
  async useTemporary<T>(
    record: DiskRecord,
    action: (driver: StorageDriver) => Promise<T>,
    disks: DiskConfig[] = [],
  ): Promise<T> {
    const { folder, allowedFolders, openStorage } = this.#context;
    const below = record.backing === null ? [] : this.#disks.folders([record.backing]);
    const readableFolders = Array.isArray(below)
      ? []
      : [...below.writableFolders, ...below.readableFolders];
    const driver = await openStorage({
      name: record.name,
      disks,
      writableFolders: [folder.diskDirectory(record.folder), ...allowedFolders],
      readableFolders,
      scratchDirectory: folder.scratchDirectory(record.folder),
      nbd: null,
      monitorPath: null,
    }, this.#eventsOf(record.name));
    try {
      return await action(driver);
    } finally {
      await driver.close();
    }
  }

  /** Ends a disk's worker. Throws deviceBusy where it is in use or has jobs. */
  async end(name: string): Promise<void> {
    const session = this.#sessions.get(name);
    if (session === undefined) return;
    if (session.ended === null) await waitForUsers(session);
    const isBusy = session.useCount > 0 || this.#context.jobs.hasActive({ disk: name });
    if (isBusy && session.ended === null) {
      throw new ServiceError("deviceBusy", `disk ${name} is in use, or has a job`);
    }
    await this.#close(name, session);
  }

  /** The same for a disk that others stand on, where its worker opened it before they did. */
  async endWriter(name: string): Promise<void> {
    const driver = await this.#sessions.get(name)?.opening.catch(() => undefined);
    if (driver?.opened.disks.some(({ isReadOnly }) => !isReadOnly)) await this.end(name);
  }

  /** Ends all workers. */
  async close(): Promise<void> {
    this.#isClosed = true;
    for (const [name, session] of [...this.#sessions]) await this.#close(name, session);
  }

  async #session(name: string): Promise<Session> {
    for (;;) {
      if (this.#isClosed) throw new ServiceError("stopping", "the service is stopping");
      const known = this.#sessions.get(name);
      if (known === undefined) break;
      if (known.ended === null) return known;
      await known.ended;
    }
    const opening = this.#open(name);
    const session: Session = { opening, useCount: 0, onIdle: null, timer: null, ended: null };
    this.#sessions.set(name, session);
    session.opening.catch(() => this.#sessions.delete(name));
    return session;
  }

  async #open(name: string): Promise<StorageDriver> {
    const { folder, openStorage } = this.#context;
    const record = this.#disks.get(name);
    const isReadOnly = this.#disks.isStoodUpon(name);
    for (const base of this.#disks.backingOf(name)) await this.endWriter(base.name);
    const driver = await openStorage({
      name: name.replace(":", "-"),
      disks: [this.#disks.config(name, { name, isReadOnly, serial: "" })],
      ...this.#disks.folders([name]),
      scratchDirectory: folder.scratchDirectory(record.folder),
      nbd: null,
      monitorPath: null,
    }, this.#eventsOf(name));
    const [info] = driver.opened.disks;
    if (info !== undefined) this.#disks.noteSize(name, info.sizeBytes);
    return driver;
  }

  #idle(name: string, session: Session): void {
    if (session.ended !== null || this.#sessions.get(name) !== session) return;
    session.timer = setTimeout(() => {
      if (this.#context.jobs.hasActive({ disk: name })) return this.#idle(name, session);
      void this.#close(name, session);
    }, limits.diskIdleMs);
  }

  #close(name: string, session: Session): Promise<void> {
    if (session.timer !== null) clearTimeout(session.timer);
    session.timer = null;
    session.ended ??= session.opening.then((driver) => driver.close(), () => {}).then(() => {
      if (this.#sessions.get(name) === session) this.#sessions.delete(name);
    });
    return session.ended;
  }

  #eventsOf(name: string): StorageEvents {
    const { log, jobs } = this.#context;
    return {
      onFleecingBroken: () => {},
      onJob: (job) => jobs.note(job, { vm: null, disk: name }),
      onDiskResized: (_disk, sizeBytes) => this.#disks.noteSize(name, sizeBytes),
      onQuestion: (question) => {
        if (question.type === "activeFile") {
          return Promise.resolve(this.#disks.switchFile(name, question));
        }
        const message = `disk ${name} has no machine that could ${question.request}`;
        return Promise.reject(new ServiceError("notSupported", message));
      },
      onFailed: (message) => {
        jobs.endAll({ disk: name }, message);
        log.error("the worker of disk {disk} failed: {message}", { disk: name, message });
        const session = this.#sessions.get(name);
        if (session !== undefined) void this.#close(name, session);
      },
    };
  }
}

/** Resolves when nobody uses it, or patience is over. */
async function waitForUsers(session: Session): Promise<void> {
  if (session.useCount === 0) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  session.onIdle = resolve;
  const timer = setTimeout(resolve, PATIENCE_MS);
  await promise;
  clearTimeout(timer);
  session.onIdle = null;
}
