/**
 * A machine's monitor (QMP): QEMU's commands on its block layer, served on its unix socket and over
 * ports. What only the control isolate can do (stop, cont, reset, quit) is asked of it.
 *
 * Exports that a monitor adds are offered by the machine's own NBD server. One that a client starts
 * is another name of that one's socket: the worker may listen nowhere else. Files are opened, and
 * names made, where the worker may.
 *
 * QEMU's commands take memory, 6 MB of it: they are loaded for the first client. Until then there
 * is nobody whom events could be told.
 *
 * @module
 */

import type { BlockLayer } from "../block/block_layer.ts";
import { BlockError } from "../block/errors.ts";
import type { ByteStream } from "../nbd/byte_stream.ts";
import { PortStream } from "../nbd/transports/port.ts";
import type { StreamListener } from "../nbd/transports/tcp.ts";
import { listenUnix } from "../nbd/transports/unix.ts";
import type { QmpMachine, QmpRunState } from "../qmp/machine.ts";
import type { Monitor, MonitorOptions } from "../qmp/monitor.ts";
import type { QmpServer } from "../qmp/server.ts";
import type { MachineExports } from "./exports.ts";
import type { HostQuestions } from "./host_questions.ts";
import type { HostQuestion } from "./messages.ts";
import type { StorageDisks } from "./storage_disks.ts";
import type { StorageImages } from "./storage_images.ts";

/** What a monitor needs of its worker. */
export interface MonitorSurroundings {
  /** The machine's name. */
  name: string;
  /** What commands work on. */
  block: BlockLayer;
  /** Says where files may be opened. */
  images: StorageImages;
  /** The machine's disks. */
  disks: StorageDisks;
  /** Where exports of the monitor go. */
  exports: MachineExports;
  /** Ends the sessions on an export that can't be opened any more. */
  closeSessions: (exportName: string) => Promise<unknown>;
  /** Whether somebody has an export open. */
  hasClients: (exportName: string) => boolean;
  /** Where the machine's NBD server listens, null: nowhere. */
  nbdSocketPath: string | null;
  /** Asks the control isolate. */
  questions: HostQuestions;
}

/** What monitors ask for of a machine. */
type ControlRequest = Extract<HostQuestion, { type: "control" }>["request"];

interface LoadedMonitor {
  monitor: Monitor;
  server: QmpServer;
}

/** See the module's head. */
export class MachineMonitor {
  readonly #options: MonitorOptions;
  #listener: StreamListener | null = null;
  /** From the first client on. */
  #loading: Promise<LoadedMonitor> | null = null;
  #monitor: Monitor | null = null;
  #runState: QmpRunState = "prelaunch";

  /** Serves nobody yet. */
  constructor(around: MonitorSurroundings) {
    const { block, images, exports, closeSessions, questions } = around;
    const ask = async (request: ControlRequest): Promise<void> => {
      await questions.ask({ type: "control", request });
    };
    this.#options = {
      block,
      mayOpen: (path) => images.mayOpen(path),
      // Backup tools start a server of their own: on a socket, where files may be made too.
      mayListen: (address) => address.type === "unix" && images.mayOpen(address.path),
      opened: images.context.opened,
      quit: () => void ask("quit").catch(() => {}),
      machine: this.#describe(around, ask),
      exportHost: {
        added: (blockExport) => exports.add([blockExport]),
        removed: async ({ name }) => {
          exports.remove(name);
          await closeSessions(name);
        },
        hasClients: around.hasClients,
        offerAt: (path) => offerAt(around.nbdSocketPath, path),
      },
    };
  }

  /** Serves a unix socket. */
  async listen(path: string): Promise<void> {
    this.#listener = await listenUnix(path, (stream) => void this.#serve(stream));
  }

  /** Serves a client behind a message port. */
  serve(port: MessagePort): void {
    void this.#serve(new PortStream(port, "monitor"));
  }

  /** What the machine is doing now: clients are told of changes. */
  setRunState(state: "running" | "paused"): void {
    const before = this.#runState;
    this.#runState = state;
    if (before === state || before === "prelaunch") return;
    this.#monitor?.emit({ event: state === "paused" ? "STOP" : "RESUME" });
  }

  /** The machine was loaded anew: it is reset, unless this was its first start. */
  noteReset(): void {
    if (this.#runState !== "prelaunch") this.#monitor?.emit({ event: "RESET" });
  }

  /** Ends all sessions, then what they made. */
  async close(): Promise<void> {
    await this.#listener?.close();
    if (this.#loading === null) return;
    const { server, monitor } = await this.#loading;
    await server.close();
    await monitor.close();
  }

  async #serve(stream: ByteStream): Promise<void> {
    this.#loading ??= this.#load();
    const { server } = await this.#loading;
    await server.serve(stream);
  }

  async #load(): Promise<LoadedMonitor> {
    const { Monitor } = await import("../qmp/monitor.ts");
    const { QmpServer } = await import("../qmp/server.ts");
    const monitor = new Monitor(this.#options);
    this.#monitor = monitor;
    return { monitor, server: new QmpServer(monitor) };
  }

  #describe(
    { name, disks }: MonitorSurroundings,
    ask: (request: ControlRequest) => Promise<void>,
  ): QmpMachine {
    return {
      name,
      runState: () => this.#runState,
      stop: () => ask("stop"),
      cont: () => ask("cont"),
      reset: () => ask("reset"),
      powerdown: () => ask("powerdown"),
      disks: () =>
        disks.list.map(({ config, backend }) => ({
          name: config.name,
          qdev: `/machine/peripheral/${config.name}/virtio-backend`,
          backend,
        })),
    };
  }
}

/** Makes the machine's NBD server reachable at another path of the same file system. */
async function offerAt(socketPath: string | null, path: string): Promise<() => Promise<void>> {
  if (socketPath === null) throw new BlockError("ENOTSUP", "The machine has no NBD server");
  const { ino, dev } = await Deno.lstat(socketPath);
  const isOurs = async (): Promise<boolean> => {
    const found = await Deno.lstat(path).catch(() => null);
    return found?.ino === ino && found.dev === dev;
  };
  // It may have been left there, as a socket may that a server listened at.
  if (!await isOurs()) await Deno.link(socketPath, path);
  return async () => {
    if (await isOurs()) await Deno.remove(path);
  };
}
