/**
 * What `ovis storage-daemon` does: carries its options out in their order, then serves until it is
 * told to stop: by a signal, or by `quit` on one of its monitors.
 *
 *   options, one by one --> pid file written --> serving --> exports closed, jobs ended, nodes
 *                                                            flushed and closed
 *
 * @module
 */

import { BlockLayer } from "../block/block_layer.ts";
import { BlockError } from "../block/errors.ts";
import type { JsonObject } from "../block/open/json.ts";
import { parseKeyval, parseOptionText } from "../block/open/keyval.ts";
import {
  bool,
  oneOf,
  optional,
  type Parsed,
  type QapiType,
  rootPlace,
  str,
  struct,
} from "../block/open/qapi.ts";
import { socketAddressType } from "../nbd/nbd_driver.ts";
import { connectTcp, listenTcp, type StreamListener } from "../nbd/transports/tcp.ts";
import { connectUnix, listenUnix } from "../nbd/transports/unix.ts";
import type { ByteStream } from "../nbd/byte_stream.ts";
import { nbdServerFields, serverOptions } from "../qmp/commands/export.ts";
import { QmpError } from "../qmp/errors.ts";
import { Monitor } from "../qmp/monitor.ts";
import { QmpServer } from "../qmp/server.ts";
import type { QmpSessionOptions } from "../qmp/session.ts";
import { compileKernels, Kernels } from "../wasm/kernels.ts";
import { VERSION } from "../version.ts";
import { printError, printLine } from "./output.ts";
import { type DaemonOption, parseOptions, USAGE, UsageError } from "./storage_daemon_options.ts";
import { StdioStream } from "./stdio_stream.ts";

const PROGRAM = "ovis storage-daemon";

/** Runs a daemon with a command line; ends the process. */
export async function runStorageDaemon(args: readonly string[]): Promise<void> {
  let options: DaemonOption[];
  try {
    options = parseOptions(args);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    printError(`${PROGRAM}: ${error.message}\nTry '${PROGRAM} --help' for more information.`);
    Deno.exit(1);
  }
  // Those that decide how the program runs count wherever they stand.
  for (const { name } of options) {
    if (name === "help") return printLine(USAGE.trimEnd());
    if (name === "version") return printLine(`${PROGRAM} version ${VERSION}`);
    if (name === "daemonize") {
      printError(
        `${PROGRAM}: --daemonize is not supported: ` +
          "start the daemon in the background and wait for its --pidfile",
      );
      Deno.exit(1);
    }
  }
  const daemon = new StorageDaemon(new Kernels(await compileKernels()));
  const stopped = daemon.whenStopped();
  const failed = await daemon.start(options);
  if (failed === null) await stopped;
  else printError(`${PROGRAM}: ${failed}`);
  await daemon.close();
  Deno.exit(failed === null ? 0 : 1);
}

const monitorType = struct("MonitorOptions", {
  id: optional(str),
  mode: optional(oneOf("MonitorMode", ["readline", "control"])),
  pretty: optional(bool),
  chardev: str,
});

const nbdServerType = struct("NbdServerOptions", { addr: socketAddressType, ...nbdServerFields });

const chardevType = struct("ChardevOptions", {
  id: str,
  backend: oneOf("ChardevBackendKind", ["socket", "stdio"]),
  path: optional(str),
  host: optional(str),
  port: optional(str),
  server: optional(bool),
  wait: optional(bool),
  signal: optional(bool),
  mux: optional(bool),
});

type Chardev = Parsed<{
  id: typeof str;
  backend: QapiType<"socket" | "stdio">;
  path: { optional: typeof str };
  host: { optional: typeof str };
  port: { optional: typeof str };
  server: { optional: typeof bool };
  wait: { optional: typeof bool };
}>;

/** Hands streams to whoever listens; those that come before wait. */
class Connections {
  #onStream: ((stream: ByteStream) => void) | null = null;
  readonly #waiting: ByteStream[] = [];
  readonly #first = Promise.withResolvers<void>();

  /** Resolves when there was a connection. */
  get first(): Promise<void> {
    return this.#first.promise;
  }

  add(stream: ByteStream): void {
    this.#first.resolve();
    if (this.#onStream === null) this.#waiting.push(stream);
    else this.#onStream(stream);
  }

  handTo(onStream: (stream: ByteStream) => void): void {
    this.#onStream = onStream;
    for (const stream of this.#waiting.splice(0)) onStream(stream);
  }
}

/** A daemon: one block layer, its monitor, and where that listens. */
class StorageDaemon {
  readonly #block: BlockLayer;
  readonly #monitor: Monitor;
  readonly #server: QmpServer;
  readonly #chardevs = new Map<string, Connections>();
  readonly #usedChardevs = new Set<string>();
  readonly #listeners: StreamListener[] = [];
  readonly #stop = Promise.withResolvers<void>();
  #pidfile: string | null = null;

  constructor(kernels: Kernels) {
    this.#block = new BlockLayer(kernels);
    this.#monitor = new Monitor({
      block: this.#block,
      // Whoever starts the daemon, and owns its sockets, may open what the system lets them.
      mayOpen: () => true,
      mayListen: () => true,
      quit: () => this.#stop.resolve(),
    });
    this.#server = new QmpServer(this.#monitor);
  }

  /** Resolves when it is told to stop. */
  whenStopped(): Promise<void> {
    for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) {
      Deno.addSignalListener(signal, () => this.#stop.resolve());
    }
    return this.#stop.promise;
  }

  /** Carries the options out. Returns what went wrong, null where nothing did. */
  async start(options: readonly DaemonOption[]): Promise<string | null> {
    for (const option of options) {
      try {
        await this.#carryOut(option);
      } catch (error) {
        if (!(error instanceof BlockError || error instanceof QmpError)) throw error;
        return `--${option.name} ${option.value}: ${error.message}`;
      }
    }
    return this.#pidfile === null ? null : this.#writePidfile(this.#pidfile);
  }

  async close(): Promise<void> {
    // The command that stopped us is answered first.
    await this.#monitor.inTurn(() => {});
    await Promise.all(this.#listeners.map((listener) => listener.close()));
    // Clients are told how exports and jobs end.
    await this.#monitor.exports.close();
    await this.#block.jobs.close();
    await this.#monitor.close();
    try {
      await this.#block.close();
    } catch (error) {
      printError(`${PROGRAM}: ${error instanceof Error ? error.message : error}`);
    }
    await this.#server.close();
    if (this.#pidfile !== null) removeIfThere(this.#pidfile);
  }

  async #carryOut({ name, value }: DaemonOption): Promise<void> {
    switch (name) {
      case "blockdev":
        await this.#execute("blockdev-add", value, "driver");
        break;
      case "export":
        await this.#execute("block-export-add", value, "type");
        break;
      case "object":
        if (value === "help") printLine("iothread\nthrottle-group\ntls-creds-x509");
        else await this.#execute("object-add", value, "qom-type");
        break;
      case "nbd-server":
        await this.#monitor.exports.startServer(serverOptions(parsed(nbdServerType, value, null)));
        break;
      case "chardev":
        await this.#addChardev(value);
        break;
      case "monitor":
        this.#addMonitor(value);
        break;
      case "pidfile":
        this.#pidfile = value;
        break;
      case "trace":
        throw new BlockError("ENOTSUP", "tracing is not supported");
    }
  }

  async #execute(command: string, text: string, impliedKey: string): Promise<void> {
    const { object, isKeyval } = parseOptionText(text, impliedKey);
    await this.#monitor.execute(command, object, { isKeyval });
  }

  async #addChardev(text: string): Promise<void> {
    const chardev = chardevType.parse(chardevOptions(text), rootPlace({ isKeyval: true }));
    if (this.#chardevs.has(chardev.id)) {
      throw new BlockError("EINVAL", `Duplicate ID '${chardev.id}' for chardev`);
    }
    const connections = new Connections();
    this.#chardevs.set(chardev.id, connections);
    if (chardev.backend === "stdio") connections.add(new StdioStream());
    else if (chardev.server !== true) connections.add(await connectTo(chardev));
    else {
      this.#listeners.push(await listenAt(chardev, (stream) => connections.add(stream)));
      if (chardev.wait !== false) await connections.first;
    }
  }

  #addMonitor(text: string): void {
    const { chardev, mode, pretty } = parsed(monitorType, text, "chardev");
    if (mode === "readline") {
      throw new BlockError("EINVAL", "Only QMP is supported: mode=control");
    }
    const connections = this.#chardevs.get(chardev);
    if (connections === undefined) throw new BlockError("ENOENT", `chardev "${chardev}" not found`);
    if (this.#usedChardevs.has(chardev)) {
      throw new BlockError("EBUSY", `Device '${chardev}' is in use`);
    }
    this.#usedChardevs.add(chardev);
    const options: QmpSessionOptions = { isPretty: pretty ?? false };
    connections.handTo((stream) => this.#server.serve(stream, options));
  }

  #writePidfile(path: string): string | null {
    try {
      Deno.writeTextFileSync(path, `${Deno.pid}\n`, { mode: 0o600 });
      return null;
    } catch (error) {
      this.#pidfile = null;
      return `cannot create PID file: ${error instanceof Error ? error.message : error}`;
    }
  }
}

function parsed<T>(type: QapiType<T>, text: string, impliedKey: string | null): T {
  const { object, isKeyval } = parseOptionText(text, impliedKey);
  return type.parse(object, rootPlace({ isKeyval }));
}

/** `socket,id=...`: a word alone is a switch, with `no` before it one that is off. */
function chardevOptions(text: string): JsonObject {
  const switches = text.split(",").map((part, index) => {
    if (part.includes("=") || index === 0) return part;
    return part.startsWith("no") ? `${part.slice(2)}=off` : `${part}=on`;
  });
  return parseKeyval(switches.join(","), "backend");
}

async function connectTo(chardev: Chardev): Promise<ByteStream> {
  try {
    if (chardev.path !== undefined) return await connectUnix(chardev.path);
    return await connectTcp(tcpAddress(chardev));
  } catch (error) {
    throw systemError(`Failed to connect to '${chardev.path ?? chardev.host}'`, error);
  }
}

async function listenAt(
  chardev: Chardev,
  onStream: (stream: ByteStream) => void,
): Promise<StreamListener> {
  try {
    if (chardev.path !== undefined) return await listenUnix(chardev.path, onStream);
    return listenTcp(tcpAddress(chardev), onStream);
  } catch (error) {
    throw systemError(`Failed to bind socket to ${chardev.path ?? chardev.host}`, error);
  }
}

function tcpAddress({ host, port }: Chardev): { host: string; port: number } {
  if (host === undefined || port === undefined || !/^\d{1,5}$/.test(port)) {
    throw new BlockError("EINVAL", "chardev: socket: no path given, nor host and port");
  }
  return { host: host === "" ? "127.0.0.1" : host, port: Number(port) };
}

function systemError(what: string, error: unknown): BlockError {
  if (error instanceof BlockError) return error;
  const reason = error instanceof Error ? error.message : String(error);
  return new BlockError("EIO", `${what}: ${reason.replace(/ \(os error \d+\).*$/, "")}`);
}

function removeIfThere(path: string): void {
  try {
    Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}
