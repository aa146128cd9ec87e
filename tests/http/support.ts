/**
 * A service with a fake machine below it, and requests to its HTTP face without a server.
 *
 * @module
 */

import { getLogger } from "@logtape/logtape";
import { type App, createApp } from "../../src/http/app.ts";
import { Authenticator, TicketBook } from "../../src/http/auth.ts";
import type { OpenDriver } from "../../src/vm/driver.ts";
import { Service } from "../../src/vm/service.ts";
import { FakeDriver, FakeStorage } from "./fake_driver.ts";

/** The token of `openTestApp({ hasAuth: true })`. */
export const TOKEN = "correct-horse-battery";

const BASE = "http://127.0.0.1:8080";

/** A service in a folder of its own, which goes with it. */
export interface TestApp extends AsyncDisposable {
  app: App;
  service: Service;
  dataPath: string;
  /** Every driver that was opened, in order. */
  drivers: FakeDriver[];
  /** Every worker of a disk without a machine, in order. */
  storages: FakeStorage[];
  /** The newest. */
  driver(): FakeDriver;
  /** A request to the face. */
  fetch(path: string, init?: RequestInit): Promise<Response>;
  /** The same with a method and a JSON body. */
  send(method: string, path: string, body?: unknown): Promise<Response>;
}

/** Opens one. */
export async function openTestApp(
  options: {
    hasAuth?: boolean;
    dataPath?: string;
    allowedFolders?: string[];
    now?: () => number;
  } = {},
): Promise<TestApp> {
  const dataPath = options.dataPath ?? await Deno.makeTempDir({ prefix: "ovis-http-" });
  const kernelPath = `${dataPath}/demo.elf`;
  await Deno.writeTextFile(kernelPath, "a kernel");
  const drivers: FakeDriver[] = [];
  const storages: FakeStorage[] = [];
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
    openStorage: (config, events) => {
      const storage = new FakeStorage(config, events);
      storages.push(storage);
      return Promise.resolve(storage);
    },
    allowedFolders: options.allowedFolders ?? [],
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
    relayTextSocket: (_socket, port) => Promise.resolve(port.close()),
  });
  const fetch = (path: string, init?: RequestInit) => app.handle(new Request(BASE + path, init));
  return {
    app,
    service,
    dataPath,
    drivers,
    storages,
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
