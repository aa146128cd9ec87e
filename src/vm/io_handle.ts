/**
 * The control side's hold on an I/O worker: its calls, its events, its questions.
 *
 *   open --close--> closed
 *   any --(the worker died)--> failed: only `close` is left
 *
 * @module
 */

import { BlockError } from "../block/errors.ts";
import { limits } from "../limits.ts";
import type {
  HostQuestion,
  IoEvent,
  IoMethod,
  IoMethods,
  IoNotice,
  IoRequest,
  IoResponse,
  StorageConfig,
  StorageOpened,
} from "../machine/messages.ts";
import type { DriverEvents, StorageDriver, StorageEvents } from "./driver.ts";
import { toWireError } from "../machine/io_rpc.ts";

/** What can't be done any more once a worker has failed. */
export class MachineFailure extends Error {
  /** For whoever prints it. */
  override readonly name = "MachineFailure";
}

/** A call that was not answered yet. */
interface PendingCall {
  resolve: (result: never) => void;
  reject: (error: unknown) => void;
}

/** Who hears of what. Console and exit are a machine's only. */
export type IoHandleEvents = StorageEvents & Partial<DriverEvents>;

/** See the module's head. */
export class IoHandle {
  readonly #events: IoHandleEvents;
  readonly #worker: Worker;
  readonly #calls = new Map<number, PendingCall>();
  #nextCallId = 1;
  #failure: MachineFailure | null = null;
  #isAlive = true;
  #closing: Promise<void> | null = null;

  /** Starts the worker, with the permissions that `config` and `files` (read only) ask for. */
  constructor(config: StorageConfig, files: readonly string[], events: IoHandleEvents) {
    this.#events = events;
    const worker = new Worker(new URL("../machine/io_worker.ts", import.meta.url), {
      type: "module",
      name: `io ${config.name}`,
      deno: { permissions: ioPermissions(config, files) },
    });
    worker.onmessage = ({ data }: MessageEvent<IoResponse | IoEvent>) => this.#onMessage(data);
    worker.onerror = (event) => {
      event.preventDefault();
      this.#isAlive = false;
      this.fail(`the I/O worker died: ${event.message}`);
    };
    this.#worker = worker;
  }

  /** Why it is of no use any more. */
  get failure(): MachineFailure | null {
    return this.#failure;
  }

  /** Whether `close` was called. */
  get isClosing(): boolean {
    return this.#closing !== null;
  }

  /** A call to the worker. Rejects with a BlockError. */
  call<M extends IoMethod>(
    method: M,
    params: IoMethods[M]["params"],
    transfer: Transferable[] = [],
  ): Promise<IoMethods[M]["result"]> {
    if (this.#closing !== null && method !== "close") {
      return Promise.reject(new BlockError("ESHUTDOWN", "the worker is closed"));
    }
    if (this.#failure !== null && method !== "close") return Promise.reject(this.#failure);
    const id = this.#nextCallId++;
    return new Promise((resolve, reject) => {
      this.#calls.set(id, { resolve, reject });
      const request = { id, method, params } as IoRequest;
      this.#worker.postMessage(request, transfer);
    });
  }

  /** From now on every call fails. */
  fail(message: string): void {
    if (this.#failure !== null) return;
    this.#failure = new MachineFailure(message);
    this.#rejectCalls(this.#failure);
    if (this.#closing === null) this.#events.onFailed(message);
  }

  /** Closes what is open in the worker and ends it. Never throws; may be repeated. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    if (this.#isAlive) {
      try {
        await within(
          limits.closeDeadlineMs,
          this.call("close", {}),
          () => new MachineFailure("the disks could not be closed in time"),
        );
      } catch (error) {
        if (this.#failure === null) this.#events.onFailed(messageOf(error));
      }
    }
    this.#worker.terminate();
    this.#rejectCalls(new BlockError("ESHUTDOWN", "the worker is closed"));
  }

  #onMessage(message: IoResponse | IoEvent): void {
    switch (message.type) {
      case "response":
        return this.#onResponse(message);
      case "console":
        this.#events.onConsole?.(message.bytes);
        return this.notify({ type: "consoleTaken", byteCount: message.bytes.length });
      case "exit":
        return this.#events.onExit?.(message.reason, message.code);
      case "fleecingBroken": {
        const { fleecing, disk, error } = message;
        return this.#events.onFleecingBroken(fleecing, disk, error.message);
      }
      case "job":
        return this.#events.onJob(message.job);
      case "diskResized":
        return this.#events.onDiskResized(message.disk, message.sizeBytes);
      case "question":
        return void this.#answer(message.id, message.question);
    }
  }

  async #answer(id: number, question: HostQuestion): Promise<void> {
    try {
      await this.#events.onQuestion(question);
      this.notify({ type: "answer", id, error: null });
    } catch (error) {
      this.notify({ type: "answer", id, error: toWireError(error) });
    }
  }

  /** Says something that is not answered. */
  notify(notice: IoNotice): void {
    this.#worker.postMessage(notice);
  }

  #onResponse(response: IoResponse): void {
    const call = this.#calls.get(response.id);
    if (call === undefined) return;
    this.#calls.delete(response.id);
    if ("error" in response) {
      const { code, message, range } = response.error;
      call.reject(new BlockError(code, message, range === undefined ? {} : { range }));
    } else call.resolve(response.result as never);
  }

  #rejectCalls(error: unknown): void {
    for (const { reject } of this.#calls.values()) reject(error);
    this.#calls.clear();
  }
}

/** Disks without a machine, open in a worker of their own. */
export class StorageHandle implements StorageDriver {
  readonly #io: IoHandle;

  private constructor(io: IoHandle, readonly opened: StorageOpened) {
    this.#io = io;
  }

  /** Opens disks. Throws a BlockError. */
  static async open(
    config: StorageConfig,
    kernels: WebAssembly.Module,
    events: StorageEvents,
  ): Promise<StorageHandle> {
    const io = new IoHandle(config, [], events);
    try {
      return new StorageHandle(io, await io.call("openStorage", { config, kernels }));
    } catch (error) {
      await io.close();
      throw error;
    }
  }

  /** See IoHandle.call. */
  call<M extends IoMethod>(
    method: M,
    params: IoMethods[M]["params"],
    transfer: Transferable[] = [],
  ): Promise<IoMethods[M]["result"]> {
    return this.#io.call(method, params, transfer);
  }

  /** See IoHandle.close. */
  close(): Promise<void> {
    return this.#io.close();
  }
}

/** What an I/O worker may do: its disks' files, `files` for reading, and its listeners. */
function ioPermissions(
  config: StorageConfig,
  files: readonly string[],
): Deno.PermissionOptionsObject {
  const { disks, writableFolders, readableFolders, scratchDirectory, nbd, monitorPath } = config;
  const sockets = [nbd?.socketPath ?? null, monitorPath].filter((path) => path !== null);
  const written = [
    ...disks.flatMap(({ path, isReadOnly }) => isReadOnly ? [] : [path]),
    ...writableFolders,
    scratchDirectory,
    ...sockets,
  ];
  const read = [...written, ...disks.map(({ path }) => path), ...readableFolders, ...files];
  return {
    read: withRealPaths(read),
    write: withRealPaths(written),
    net: [
      ...(nbd === null ? [] : [`${hostForPermission(nbd.host)}:${nbd.port}`]),
      ...sockets.map((path) => `unix:${path}`),
    ],
    // Holes, discards and locks of files need the C library; without the permission they are done
    // without.
    ffi: "inherit",
    env: false,
    sys: false,
    run: false,
    import: false,
  };
}

/**
 * Permissions are compared with paths as they were resolved: symbolic links count as where they
 * lead.
 */
function withRealPaths(paths: string[]): string[] {
  return [...new Set(paths.flatMap((path) => [path, realPath(path)]))];
}

function realPath(path: string): string {
  try {
    return Deno.realPathSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return path;
    throw error;
  }
}

/** IPv6 addresses stand in brackets. */
function hostForPermission(host: string): string {
  return host.includes(":") ? `[${host}]` : host;
}

/** `work`, unless it takes longer: then the error. */
export async function within<T>(ms: number, work: Promise<T>, error: () => Error): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const deadline = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(error()), ms);
  });
  try {
    return await Promise.race([work, deadline]);
  } finally {
    clearTimeout(timer);
  }
}

/** What went wrong, in words. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
