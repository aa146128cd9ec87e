/**
 * The monitor of a block layer: QEMU's commands on its nodes, bitmaps, jobs and exports, for the
 * sessions of any number of clients, and the events that they are told of.
 *
 *   session --request--> dispatch, one after the other, whichever session they came from
 *                          --> arguments checked --> the command --> answer
 *   jobs, exports, the machine --> event --> every session that has negotiated
 *
 * @module
 */

import type { BlockLayer } from "../block/block_layer.ts";
import { BlockError } from "../block/errors.ts";
import type { BlockNode } from "../block/node.ts";
import type { BlockDriver, OpenContext } from "../block/open/context.ts";
import { createDriverTable } from "../block/open/drivers.ts";
import { isJsonObject, type JsonObject, type JsonValue } from "../block/open/json.ts";
import { realPath } from "../block/open/open_image.ts";
import type { MaybePromise } from "../block/types.ts";
import type { NbdAddress } from "../nbd/address.ts";
import { createNbdDriver } from "../nbd/nbd_driver.ts";
import type { CommandResult, QmpCommand } from "./command.ts";
import { allCommands } from "./commands/mod.ts";
import { describeError, QmpError } from "./errors.ts";
import { BlockExports, type ExportHost } from "./exports.ts";
import type { QmpMachine } from "./machine.ts";
import { MonitorObjects } from "./objects.ts";

/** What a monitor is made of. */
export interface MonitorOptions {
  /** What its commands work on. */
  block: BlockLayer;
  /** The path policy: see OpenContext. */
  mayOpen(path: string): boolean;
  /** Whether an NBD server may be started there. */
  mayListen(address: NbdAddress): boolean;
  /** Called by `quit`, after its answer was sent. */
  quit(): void;
  /** The machine whose disks the nodes are, if there is one. */
  machine?: QmpMachine;
  /** Drivers beside those of the block layer and nbd. */
  drivers?: readonly BlockDriver[];
  /** With which arguments nodes were opened by others: see OpenContext. */
  opened?: OpenContext["opened"];
  /** Who offers exports, instead of a server of the monitor's own. */
  exportHost?: ExportHost;
}

/** An event without its time. */
export interface QmpEvent {
  /** In capitals. */
  event: string;
  /** What it says. */
  data?: JsonObject;
}

/** What a session may ask for. */
export interface RequestOptions {
  /** It negotiated `oob`: then a command may want to be carried out of turn. None here can. */
  mayOutOfBand?: boolean;
}

/** A request's parts. */
export interface ParsedRequest {
  /** The command. */
  name: string;
  /** Its arguments. */
  args: JsonObject;
  /** It wants to be carried out of turn. */
  isOutOfBand: boolean;
}

/** Who is told of events. */
export type EventListener = (event: JsonObject) => void;

/** See the module's head. */
export class Monitor {
  /** What commands work on. */
  readonly block: BlockLayer;
  /** How nodes are opened. */
  readonly context: OpenContext;
  /** Nodes that blockdev-add made: only these can be deleted. */
  readonly nodes = new Set<BlockNode>();
  /** What block-export-add made. */
  readonly exports: BlockExports;
  /** What object-add made. */
  readonly objects: MonitorObjects;
  /** The machine, if there is one. */
  readonly machine: QmpMachine | null;
  /** All commands by name. */
  readonly commands: ReadonlyMap<string, QmpCommand>;
  readonly #options: MonitorOptions;
  readonly #listeners = new Set<EventListener>();
  readonly #stopJobEvents: () => void;
  #serial: Promise<unknown> = Promise.resolve();

  /** Offers the machine's commands only where there is one. */
  constructor(options: MonitorOptions) {
    this.#options = options;
    this.block = options.block;
    this.machine = options.machine ?? null;
    this.objects = new MonitorObjects(options.block.clock);
    const nbd = createNbdDriver({
      clientTls: (id, hostname) => this.objects.clientTls(id, hostname),
    });
    this.context = {
      drivers: createDriverTable([nbd, ...options.drivers ?? []]),
      mayOpen: (path) => options.mayOpen(path),
      kernels: options.block.kernels,
      bitmaps: options.block.bitmaps,
      opened: options.opened ?? new WeakMap(),
      throttleGroup: (name) => this.objects.throttleGroup(name),
      clock: options.block.clock,
    };
    this.exports = new BlockExports(this, options.exportHost ?? null);
    const commands = allCommands(this.machine !== null);
    this.commands = new Map(commands.map((command) => [command.name, command]));
    this.#stopJobEvents = options.block.jobs.onEvent(({ event, data }) => {
      this.emit({ event, data: { ...data } as JsonObject });
    });
  }

  /** The path policy. Symbolic links are followed first. */
  mayOpen(path: string): boolean {
    return this.#options.mayOpen(realPath(path));
  }

  /** Whether an NBD server may be started there. Symbolic links are followed first. */
  mayListen(address: NbdAddress): boolean {
    if (address.type !== "unix") return this.#options.mayListen(address);
    return this.#options.mayListen({ type: "unix", path: realPath(address.path) });
  }

  /** Ends the program, or the machine. */
  quit(): void {
    this.#options.quit();
  }

  /** Carries a request out when those before it have ended, and answers it. */
  dispatch(request: JsonValue, options: RequestOptions = {}): Promise<JsonObject> {
    return this.inTurn(() => this.#answer(request, options));
  }

  /** Carries a command out, when those before it have ended. Throws BlockErrors and QmpErrors. */
  execute(
    name: string,
    args: JsonObject = {},
    form: { isKeyval?: boolean } = {},
  ): Promise<CommandResult> {
    return this.inTurn(() => this.#command(name).run(args, this, form));
  }

  /** Runs an action when the commands before it have ended. */
  inTurn<T>(action: () => MaybePromise<T>): Promise<T> {
    const result = this.#serial.then(action);
    this.#serial = result.catch(() => {});
    return result;
  }

  /** Tells all sessions of an event. */
  emit({ event, data }: QmpEvent): void {
    const nowMs = Date.now();
    const message: JsonObject = {
      timestamp: { seconds: Math.floor(nowMs / 1000), microseconds: (nowMs % 1000) * 1000 },
      event,
      ...(data === undefined ? {} : { data }),
    };
    for (const listener of [...this.#listeners]) listener(message);
  }

  /** Calls `listener` with every event until the returned function is called. */
  onEvent(listener: EventListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Ends exports and jobs, and deletes the nodes that commands made. */
  async close(): Promise<void> {
    await this.exports.close();
    this.#stopJobEvents();
  }

  async #answer(request: JsonValue, options: RequestOptions): Promise<JsonObject> {
    const id = isJsonObject(request) && Object.hasOwn(request, "id")
      ? { id: request.id ?? null }
      : {};
    try {
      const { name, args, isOutOfBand } = parseRequest(request, options);
      const command = this.#command(name);
      if (isOutOfBand) throw invalid(`The command ${name} does not support OOB`);
      const result = await command.run(args, this);
      return { return: result ?? {}, ...id };
    } catch (error) {
      const description = describeError(error);
      if (description !== null) return { error: description, ...id };
      // A bug: the client gets its answer, and the bug fails as loudly as one anywhere else.
      queueMicrotask(() => {
        throw error;
      });
      return { error: { class: "GenericError", desc: "Internal error" }, ...id };
    }
  }

  #command(name: string): QmpCommand {
    const found = this.commands.get(name);
    if (found !== undefined) return found;
    throw new QmpError("CommandNotFound", `The command ${name} has not been found`);
  }
}

/** A request's parts. Throws a BlockError in QEMU's words (qapi/qmp-dispatch.c). */
export function parseRequest(request: JsonValue, options: RequestOptions = {}): ParsedRequest {
  if (!isJsonObject(request)) throw invalid("QMP input must be a JSON object");
  let found: { by: string; name: string } | null = null;
  let args: JsonObject = {};
  for (const [member, value] of Object.entries(request)) {
    if (member === "id") continue;
    if (member === "execute" || (member === "exec-oob" && options.mayOutOfBand === true)) {
      if (typeof value !== "string") throw invalid(`QMP input member '${member}' must be a string`);
      if (found !== null) throw invalid(`QMP input member '${member}' clashes with '${found.by}'`);
      found = { by: member, name: value };
    } else if (member === "arguments") {
      if (!isJsonObject(value)) throw invalid("QMP input member 'arguments' must be an object");
      args = value;
    } else {
      throw invalid(`QMP input member '${member}' is unexpected`);
    }
  }
  if (found === null) throw invalid("QMP input lacks member 'execute'");
  return { name: found.name, args, isOutOfBand: found.by === "exec-oob" };
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}
