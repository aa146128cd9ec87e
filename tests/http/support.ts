/**
 * A service with a fake machine below it, and requests to its HTTP face without a server.
 *
 * @module
 */

import { getLogger } from "@logtape/logtape";
import type {
  FleecingInfo,
  FleecingRequest,
  IoMethod,
  IoMethods,
  MachineConfig,
} from "../../src/machine/messages.ts";
import { BlockError } from "../../src/block/errors.ts";
import { type App, createApp } from "../../src/http/app.ts";
import { Authenticator, TicketBook } from "../../src/http/auth.ts";
import type { DriverEvents, MachineDriver, OpenDriver } from "../../src/vm/driver.ts";
import { Service } from "../../src/vm/service.ts";

/** The token of `openTestApp({ hasAuth: true })`. */
export const TOKEN = "correct-horse-battery";

const BASE = "http://127.0.0.1:8080";
const CLUSTER_BYTES = 65536;

/** A driver that does nothing but remember; its disks hold the offset's low byte at each offset. */
export class FakeDriver implements MachineDriver {
  readonly calls: string[] = [];
  readonly nbd;
  readonly typed: number[] = [];
  /** How much the console takes at once. */
  consoleRoom = Number.MAX_SAFE_INTEGER;
  /** Offset from which on reads are forbidden. */
  forbiddenFrom = Number.MAX_SAFE_INTEGER;
  /** Reads of the export that were asked for. */
  readCount = 0;
  readonly ports: MessagePort[] = [];
  readonly #fleecings = new Map<string, FleecingInfo>();

  constructor(readonly config: MachineConfig, readonly events: DriverEvents) {
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
  close(): Promise<void> {
    this.calls.push("close");
    for (const port of this.ports) port.close();
    return Promise.resolve();
  }
  consoleInput(bytes: Uint8Array<ArrayBuffer>): Promise<number> {
    const taken = bytes.subarray(0, this.consoleRoom);
    this.typed.push(...taken);
    return Promise.resolve(taken.length);
  }

  call<M extends IoMethod>(
    method: M,
    params: IoMethods[M]["params"],
  ): Promise<IoMethods[M]["result"]> {
    this.calls.push(method);
    try {
      return Promise.resolve(this.#answer(method, params as never) as IoMethods[M]["result"]);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  #answer(method: IoMethod, params: never): unknown {
    switch (method) {
      case "fleecingStart":
        return this.#startFleecing(params);
      case "fleecingInfo":
        return this.#find((params as { name: string }).name);
      case "fleecingStop":
        this.#find((params as { name: string }).name);
        this.#fleecings.delete((params as { name: string }).name);
        return {};
      case "exportRead":
        return this.#read(params);
      case "exportExtents":
        return this.#extents(params);
      case "nbdOpen":
        this.ports.push((params as { port: MessagePort }).port);
        return {};
      default:
        throw new BlockError("ENOTSUP", `the fake does not ${method}`);
    }
  }

  #startFleecing(request: FleecingRequest): FleecingInfo {
    if (request.bitmap !== null) {
      throw new BlockError("ENOENT", `there is no bitmap ${request.bitmap}`);
    }
    const info: FleecingInfo = {
      name: request.name,
      disks: request.disks.map((disk) => {
        const sizeBytes = this.config.disks.find(({ name }) => name === disk)?.sizeBytes ?? 0;
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

  #read({ offset, length }: IoMethods["exportRead"]["params"]): IoMethods["exportRead"]["result"] {
    this.readCount++;
    if (offset + length > this.forbiddenFrom) throw new BlockError("EACCES", "may not be read");
    return { bytes: Uint8Array.from({ length }, (_, index) => offset + index).buffer };
  }

  #extents(params: IoMethods["exportExtents"]["params"]): IoMethods["exportExtents"]["result"] {
    const { context, offset, length } = params;
    if (context === "allocation") return { extents: [{ offset, length, flags: 3 }] };
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

/** A service in a folder of its own, which goes with it. */
export interface TestApp extends AsyncDisposable {
  app: App;
  service: Service;
  dataPath: string;
  /** Every driver that was opened, in order. */
  drivers: FakeDriver[];
  /** The newest. */
  driver(): FakeDriver;
  /** A request to the face. */
  fetch(path: string, init?: RequestInit): Promise<Response>;
  /** The same with a method and a JSON body. */
  send(method: string, path: string, body?: unknown): Promise<Response>;
}

/** Opens one. */
export async function openTestApp(
  options: { hasAuth?: boolean; dataPath?: string; now?: () => number } = {},
): Promise<TestApp> {
  const dataPath = options.dataPath ?? await Deno.makeTempDir({ prefix: "ovis-http-" });
  const kernelPath = `${dataPath}/demo.elf`;
  await Deno.writeTextFile(kernelPath, "a kernel");
  const drivers: FakeDriver[] = [];
  const openDriver: OpenDriver = (config, events) => {
    const driver = new FakeDriver(config, events);
    drivers.push(driver);
    return Promise.resolve(driver);
  };
  const log = getLogger("ovis-test");
  const service = await Service.open({
    dataPath,
    builtInImages: [{ name: "demo", cmdline: "", kernelPath }],
    openDriver,
    nbdHost: "127.0.0.1",
    log,
  });
  const app = createApp({
    service,
    access: { hosts: ["ovis.example"], origins: ["https://tools.example"] },
    auth: new Authenticator(options.hasAuth ? TOKEN : null, new TicketBook(options.now)),
    log,
    version: "0.0.0",
    publicUrl: null,
    relayWebSocket: (_socket, port) => Promise.resolve(port.close()),
  });
  const fetch = (path: string, init?: RequestInit) => app.handle(new Request(BASE + path, init));
  return {
    app,
    service,
    dataPath,
    drivers,
    driver() {
      const driver = drivers.at(-1);
      if (driver === undefined) throw new Error("no driver was opened");
      return driver;
    },
    fetch,
    send: (method, path, body) =>
      fetch(path, { method, ...(body !== undefined && { body: JSON.stringify(body) }) }),
    async [Symbol.asyncDispose]() {
      app.stop();
      await service[Symbol.asyncDispose]();
      if (options.dataPath === undefined) await Deno.remove(dataPath, { recursive: true });
    },
  };
}

/** Status and problem code of a response, its body consumed. */
export async function outcome(response: Response): Promise<string> {
  const text = await response.text();
  const isProblem = response.headers.get("content-type") === "application/problem+json";
  return isProblem ? `${response.status} ${JSON.parse(text).code}` : String(response.status);
}
