/**
 * Workers that do nothing but remember; their disks hold the offset's low byte at each offset.
 */

import { BlockError } from "../../src/block/errors.ts";
import type {
  DirtyBitmapInfo,
  DiskInfo,
  FleecingInfo,
  FleecingRequest,
  IoMethod,
  IoMethods,
  JobInfo,
  JobRequest,
  MachineConfig,
  StorageConfig,
  StorageOpened,
  TransactionAction,
  TransactionResult,
} from "../../src/machine/messages.ts";
import type {
  DriverEvents,
  MachineDriver,
  StorageDriver,
  StorageEvents,
} from "../../src/vm/driver.ts";
import type { Profile, ProfileOrder } from "../../src/vm/profiler.ts";
import { NbdServer } from "../../src/nbd/server.ts";

const CLUSTER_BYTES = 65536;
const NO_EXPORTS = { find: () => undefined, list: () => [] };

type Params<M extends IoMethod> = IoMethods[M]["params"];

/** The worker of a disk without a machine. */
export class FakeStorage implements StorageDriver {
  readonly calls: string[] = [];
  readonly opened: StorageOpened;
  /** Offset from which on reads are forbidden. */
  forbiddenFrom = Number.MAX_SAFE_INTEGER;
  /** Reads of exports and disks that were asked for. */
  readCount = 0;
  /** Writes to disks fail. */
  isFull = false;
  readonly ports: MessagePort[] = [];
  /** Discarded ranges, as EXPORT OFFSET+LENGTH. */
  readonly discarded: string[] = [];
  readonly jobs = new Map<string, JobInfo>();
  /** Of each disk. */
  readonly bitmaps = new Map<string, DirtyBitmapInfo[]>();
  readonly #sizes = new Map<string, number>();
  readonly #fleecings = new Map<string, FleecingInfo>();

  constructor(readonly config: StorageConfig, readonly events: StorageEvents) {
    for (const { name, path } of config.disks) this.#sizes.set(name, Deno.statSync(path).size);
    this.opened = { nbd: null, disks: config.disks.map(({ name }) => this.#diskInfo(name)) };
  }

  close(): Promise<void> {
    this.calls.push("close");
    for (const port of this.ports) port.close();
    return Promise.resolve();
  }

  call<M extends IoMethod>(method: M, params: Params<M>): Promise<IoMethods[M]["result"]> {
    this.calls.push(method);
    try {
      return Promise.resolve(this.answer(method, params as never) as IoMethods[M]["result"]);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  protected answer(method: IoMethod, params: never): unknown {
    const handlers: Partial<Record<IoMethod, (params: never) => unknown>> = {
      fleecingStart: (request: FleecingRequest) => this.#startFleecing(request),
      fleecingInfo: ({ name }: { name: string }) => this.#find(name),
      fleecingEnd: ({ name }: { name: string }) => {
        this.#find(name);
        this.#fleecings.delete(name);
        return {};
      },
      fleecingEstimate: () => ({ bytes: CLUSTER_BYTES }),
      transact: ({ actions }: Params<"transact">) => this.#transact(actions),
      diskInfo: ({ disk }: { disk: string }) => this.#diskInfo(disk),
      diskCreate: ({ path, sizeBytes }: Params<"diskCreate">) => {
        Deno.writeTextFileSync(path, "");
        Deno.truncateSync(path, sizeBytes);
        return {};
      },
      diskResize: ({ disk, sizeBytes }: Params<"diskResize">) => {
        this.#sizes.set(disk, sizeBytes);
        this.events.onDiskResized(disk, sizeBytes);
        return {};
      },
      diskRead: (part: Params<"diskRead">) => this.#read(part),
      diskWrite: () => {
        if (this.isFull) throw new BlockError("ENOSPC", "No space left on device");
        return {};
      },
      diskFlush: () => ({}),
      diskExtents: (part: Params<"diskExtents">) => this.#diskExtents(part),
      jobStart: (request: JobRequest) => this.#startJob(request),
      jobCommand: ({ id, command }: Params<"jobCommand">) => {
        const status = { cancel: "concluded", pause: "paused", resume: "running" };
        this.setJob(id, {
          status: { ...status, complete: "concluded", finalize: "concluded", dismiss: "null" }[
            command
          ],
          error: command === "cancel" ? "Operation canceled" : null,
        });
        return {};
      },
      jobSetSpeed: ({ id, speed }: Params<"jobSetSpeed">) => {
        this.setJob(id, { speed });
        return {};
      },
      exportRead: (part: Params<"exportRead">) => this.#read(part),
      exportExtents: (part: Params<"exportExtents">) => this.#extents(part),
      exportDiscard: ({ exportName, ranges }: Params<"exportDiscard">) => {
        for (const { offset, length } of ranges) {
          this.discarded.push(`${exportName} ${offset}+${length}`);
        }
        return {};
      },
      nbdStatistics: () => new NbdServer({ directory: NO_EXPORTS }).statistics,
      nbdOpen: ({ port }: { port: MessagePort }) => {
        this.ports.push(port);
        return {};
      },
    };
    const handler = handlers[method];
    if (handler === undefined) throw new BlockError("ENOTSUP", `the fake does not ${method}`);
    return handler(params);
  }

  /** A job changes, and says so. */
  setJob(id: string, change: Partial<JobInfo>): void {
    const job = this.jobs.get(id);
    if (job === undefined) throw new BlockError("ENOENT", "Job not found");
    const changed = { ...job, ...change };
    this.jobs.set(id, changed);
    this.events.onJob(changed);
  }

  #diskInfo(name: string): DiskInfo {
    const config = this.config.disks.find((disk) => disk.name === name);
    const sizeBytes = this.#sizes.get(name);
    if (config === undefined || sizeBytes === undefined) {
      throw new BlockError("ENOENT", `there is no disk named ${name}`);
    }
    const { path, format: driver, isReadOnly } = config;
    const chain = [{ nodeName: "disk-0", driver, path, sizeBytes }];
    const bitmaps = this.bitmaps.get(name) ?? [];
    const sizes = { sizeBytes, clusterSizeBytes: null, allocatedBytes: 0 };
    return { name, ...sizes, isReadOnly, chain, bitmaps };
  }

  #startFleecing(request: FleecingRequest): FleecingInfo {
    if (request.bitmap !== null) {
      throw new BlockError("ENOENT", `there is no bitmap ${request.bitmap}`);
    }
    const incremental = request.since === null ? null : { isIncremental: true, reason: null };
    const info: FleecingInfo = {
      name: request.name,
      disks: request.disks.map((disk) => {
        const sizeBytes = this.#sizes.get(disk) ?? 0;
        return {
          disk,
          exportName: `${this.config.name}-${disk}-${request.name}`,
          sizeBytes,
          clusterSizeBytes: CLUSTER_BYTES,
          copiedBytes: 0,
          clustersDone: 0,
          clustersTotal: Math.ceil(sizeBytes / CLUSTER_BYTES),
          refusedReads: 0,
          guestWaitMs: 0,
          scratchUsedBytes: 0,
          brokenBy: null,
          incremental,
        };
      }),
    };
    this.#fleecings.set(request.name, info);
    return info;
  }

  #find(name: string): FleecingInfo {
    const info = this.#fleecings.get(name);
    if (info === undefined) throw new BlockError("ENOENT", `there is no fleecing ${name}`);
    return info;
  }

  #transact(actions: TransactionAction[]): { results: TransactionResult[] } {
    if (actions.some(({ type }) => type === "abort")) throw new BlockError("EINVAL", "aborted");
    return { results: actions.map((action) => this.#act(action)) };
  }

  #act(action: TransactionAction): TransactionResult {
    switch (action.type) {
      case "fleecing":
        return { fleecing: this.#startFleecing(action) };
      case "backup":
        return { job: this.#startJob(action) };
      case "snapshot":
      case "abort":
        return null;
    }
    this.#diskInfo(action.disk);
    const list = this.bitmaps.get(action.disk) ?? [];
    this.bitmaps.set(action.disk, list);
    const name = action.type === "bitmap-merge" ? action.target : action.name;
    const bitmap = list.find((known) => known.name === name);
    if (action.type === "bitmap-add") {
      if (bitmap) throw new BlockError("EINVAL", `Bitmap already exists: ${name}`);
      list.push({
        name,
        count: 0,
        granularity: action.granularityBytes ?? CLUSTER_BYTES,
        recording: !action.isDisabled,
        busy: false,
        persistent: false,
        inconsistent: false,
      });
      return null;
    }
    if (bitmap === undefined) throw new BlockError("ENOENT", `Dirty bitmap '${name}' not found`);
    if (action.type === "bitmap-remove") list.splice(list.indexOf(bitmap), 1);
    if (action.type === "bitmap-enable") bitmap.recording = true;
    if (action.type === "bitmap-disable") bitmap.recording = false;
    return null;
  }

  #startJob({ id, type, disk, speed }: JobRequest): JobInfo {
    const progress = { currentProgress: 0, totalProgress: 0 };
    const job = { id, type, disk, status: "running", ...progress, speed, error: null };
    this.jobs.set(id, job);
    this.events.onJob(job);
    return job;
  }

  #read({ offset, length }: { offset: number; length: number }): { bytes: ArrayBuffer } {
    this.readCount++;
    if (offset + length > this.forbiddenFrom) throw new BlockError("EACCES", "may not be read");
    return { bytes: Uint8Array.from({ length }, (_, index) => offset + index).buffer };
  }

  #diskExtents({ context, offset, length }: Params<"diskExtents">) {
    return { extents: [{ offset, length, flags: context === "dirty" ? 1 : 3 }] };
  }

  #extents(params: Params<"exportExtents">): IoMethods["exportExtents"]["result"] {
    const { context, offset, length } = params;
    if (context === "allocation") return { extents: [{ offset, length, flags: 3 }] };
    if (context === "dirty") return { extents: [{ offset, length, flags: 1 }] };
    const readable = Math.max(0, Math.min(length, this.forbiddenFrom - offset));
    return {
      extents: [
        ...(readable > 0 ? [{ offset, length: readable, flags: 0 }] : []),
        ...(readable < length
          ? [{ offset: offset + readable, length: length - readable, flags: 1 }]
          : []),
      ],
    };
  }
}

/** The workers of a machine. */
export class FakeDriver extends FakeStorage implements MachineDriver {
  readonly nbd;
  readonly translator = null;
  readonly typed: number[] = [];
  /** How much the console takes at once. */
  consoleRoom = Number.MAX_SAFE_INTEGER;

  constructor(override readonly config: MachineConfig, override readonly events: DriverEvents) {
    super(config, events);
    this.nbd = { host: "127.0.0.1", port: 10809, socketPath: config.nbd.socketPath };
  }

  start(): Promise<void> {
    this.calls.push("start");
    const kernel = this.config.boot.kernel;
    if (kernel !== null && Deno.readTextFileSync(kernel).startsWith("not a kernel")) {
      return Promise.reject(new BlockError("EINVAL", "the kernel is not one"));
    }
    return Promise.resolve();
  }
  pause(): Promise<void> {
    this.calls.push("pause");
    return Promise.resolve();
  }
  resume(): Promise<void> {
    this.calls.push("resume");
    return Promise.resolve();
  }
  reset(): Promise<void> {
    this.calls.push("reset");
    return Promise.resolve();
  }
  profile({ seconds }: ProfileOrder): Promise<Profile> {
    this.calls.push(`profile ${seconds}`);
    if (seconds === 99) return Promise.reject(new BlockError("EBUSY", "profiled already"));
    const stacks = [{ mode: "supervisor" as const, frames: ["0x80200000"], samples: 5 }];
    return Promise.resolve({ seconds, samples: 5, lost: 0, stacks });
  }
  consoleInput(bytes: Uint8Array<ArrayBuffer>): Promise<number> {
    const taken = bytes.subarray(0, this.consoleRoom);
    this.typed.push(...taken);
    return Promise.resolve(taken.length);
  }
}
