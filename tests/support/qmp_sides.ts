/**
 * One script of monitor commands run against two programs, QEMU's storage daemon and ours, with
 * everything that they answer, made comparable.
 *
 * @module
 */

import { BlockLayer } from "../../src/block/block_layer.ts";
import { Monitor } from "../../src/qmp/monitor.ts";
import { QmpServer } from "../../src/qmp/server.ts";
import { compileKernels, Kernels } from "../../src/wasm/kernels.ts";

/** How long an answer may take: a bound for what went wrong, not a measure. */
const ANSWER_MS = 20_000;

/** A JSON object. */
export type Json = Record<string, unknown>;

/** A client of one program, which keeps what it was answered. */
export class QmpSide {
  /** Answers in their order. */
  readonly answers: unknown[] = [];
  /** Events in their order. */
  readonly events: Json[] = [];
  readonly #conn: Deno.UnixConn;
  readonly #pending: Json[] = [];
  readonly #decoder = new TextDecoder();
  #text = "";
  #sent = "";

  constructor(
    conn: Deno.UnixConn,
    /** The program's own folder: what it says of files there is compared without it. */
    readonly folder: string,
    readonly isQemu: boolean,
  ) {
    this.#conn = conn;
  }

  /** A path in the folder. */
  path(name: string): string {
    return `${this.folder}/${name}`;
  }

  /** Runs a command; the answer is kept and returned. */
  async run(execute: string, args: Json = {}, more: Json = {}): Promise<Json> {
    return await this.raw(JSON.stringify({ execute, arguments: args, ...more }) + "\n");
  }

  /** Sends bytes; waits for `count` answers, of which the last is returned. */
  async raw(text: string | Uint8Array, count = 1): Promise<Json> {
    const bytes = typeof text === "string" ? new TextEncoder().encode(text) : text;
    this.#sent = String(text);
    await writeAll(this.#conn, bytes);
    let last: Json = {};
    for (let index = 0; index < count; index++) {
      last = await this.#answer();
      this.answers.push(last);
    }
    return last;
  }

  /** Waits for an event that has not been waited for, of that name and with these data. */
  async until(name: string, data: Json = {}): Promise<void> {
    for (;;) {
      const index = this.#pending.findIndex((event) =>
        event.event === name &&
        Object.entries(data).every(([key, value]) => (event.data as Json)[key] === value)
      );
      if (index >= 0) {
        this.#pending.splice(0, index + 1);
        return;
      }
      this.#take(await this.#receive());
    }
  }

  close(): void {
    this.#conn.close();
  }

  async #answer(): Promise<Json> {
    for (;;) {
      const message = await this.#receive();
      if (!("event" in message)) return message;
      this.#take(message);
    }
  }

  async #read(buffer: Uint8Array): Promise<number | null> {
    const { promise, reject } = Promise.withResolvers<never>();
    const timer = setTimeout(() => reject(new Error(`no answer to ${this.#sent}`)), ANSWER_MS);
    try {
      return await Promise.race([this.#conn.read(buffer), promise]);
    } finally {
      clearTimeout(timer);
    }
  }

  #take(message: Json): void {
    if (!("event" in message)) throw new Error(`unexpected: ${JSON.stringify(message)}`);
    this.events.push(message);
    this.#pending.push(message);
  }

  async #receive(): Promise<Json> {
    const buffer = new Uint8Array(65536);
    for (;;) {
      const end = this.#text.indexOf("\n");
      if (end >= 0) {
        const line = this.#text.slice(0, end);
        this.#text = this.#text.slice(end + 1);
        return JSON.parse(line);
      }
      const count = await this.#read(buffer);
      if (count === null) throw new Error("the monitor was closed");
      this.#text += this.#decoder.decode(buffer.subarray(0, count), { stream: true });
    }
  }
}

/** What a script does with each side. */
export type Script = (side: QmpSide) => Promise<void>;

/** What a side answered, without what may differ. */
export interface Transcript {
  answers: unknown[];
  events: unknown[];
}

/** Runs a script against QEMU's daemon. `prepare` makes files in the folder. */
export async function runOnQemu(program: string, script: Script): Promise<Transcript> {
  const folder = await Deno.makeTempDir({ prefix: "ovis-qmp-" });
  const process = new Deno.Command(program, {
    args: [
      ...["--chardev", `socket,id=qmp,path=${folder}/qmp,server=on,wait=off`],
      ...["--monitor", "chardev=qmp", "--pidfile", `${folder}/pid`],
    ],
    stdout: "null",
    stderr: "inherit",
  }).spawn();
  try {
    while (!await exists(`${folder}/pid`)) {
      const ended = await Promise.race([process.status, delay(10)]);
      if (ended !== undefined) throw new Error("the storage daemon did not start");
    }
    const conn = await Deno.connect({ path: `${folder}/qmp`, transport: "unix" });
    return await play(new QmpSide(conn, folder, true), script);
  } finally {
    try {
      process.kill("SIGTERM");
    } catch {
      // It has ended.
    }
    await process.status;
    await Deno.remove(folder, { recursive: true });
  }
}

/** Runs a script against a monitor of ours, in this process. */
export async function runOnOurs(script: Script): Promise<Transcript> {
  const folder = await Deno.makeTempDir({ prefix: "ovis-qmp-" });
  const block = new BlockLayer(new Kernels(await compileKernels()));
  const monitor = new Monitor({
    block,
    mayOpen: () => true,
    mayListen: () => true,
    quit: () => {},
  });
  const server = new QmpServer(monitor);
  try {
    await server.listenUnix(`${folder}/qmp`);
    const conn = await Deno.connect({ path: `${folder}/qmp`, transport: "unix" });
    return await play(new QmpSide(conn, folder, false), script);
  } finally {
    await monitor.close();
    await block.close();
    await server.close();
    await Deno.remove(folder, { recursive: true });
  }
}

async function play(side: QmpSide, script: Script): Promise<Transcript> {
  try {
    await side.raw("");
    await side.raw('{"execute": "qmp_capabilities"}');
    await script(side);
    return normalise(side);
  } finally {
    side.close();
  }
}

function normalise({ answers, events, folder }: QmpSide): Transcript {
  const clean = (value: unknown): unknown => {
    if (typeof value === "string") return cleanText(value);
    if (Array.isArray(value)) return value.map(clean);
    if (typeof value !== "object" || value === null) return value;
    const entries = Object.entries(value).filter(([key]) => key !== "timestamp");
    return Object.fromEntries(
      entries.map(([key, member]) => {
        // Bitmaps without names are the program's own affair.
        if (key === "dirty-bitmaps" && Array.isArray(member)) {
          return [key, clean(member.filter(({ name }) => name !== undefined))];
        }
        return [key, clean(member)];
      }).filter(([key, member]) => key !== "dirty-bitmaps" || (member as unknown[]).length > 0),
    );
  };
  const cleanText = (text: string): unknown => {
    if (text.startsWith("json:")) return { json: clean(JSON.parse(text.slice(5))) };
    return text.replaceAll(folder, "$DIR").replace(/#block\d+/g, "#block");
  };
  return {
    answers: clean(answers.slice(1)) as unknown[],
    events: clean(withoutPauses(events)) as unknown[],
  };
}

/** QEMU's jobs are there before some of their arguments are found wrong. */
function isCreation(event: Json | undefined, id: unknown): boolean {
  const data = event?.data as Json | undefined;
  return event?.event === "JOB_STATUS_CHANGE" && data?.id === id && data?.status === "created";
}

/** How QEMU's jobs get out of states in which they stand still, by themselves or when told. */
const PAUSES: Record<string, string> = { paused: "running", standby: "ready" };

/**
 * Events without jobs' pauses: QEMU's stand still, for a moment, in drained sections too. That a
 * job which is told to pause does so is waited for by the scripts.
 */
function withoutPauses(events: Json[]): Json[] {
  const kept: Json[] = [];
  const pausedIn = new Map<unknown, string>();
  for (const event of events) {
    const { id, status } = (event.data ?? {}) as { id?: unknown; status?: string };
    if (event.event !== "JOB_STATUS_CHANGE" || status === undefined) kept.push(event);
    else if (status in PAUSES) pausedIn.set(id, PAUSES[status] ?? "");
    else if (pausedIn.get(id) === status) pausedIn.delete(id);
    else if (status === "null" && isCreation(kept.at(-1), id)) kept.pop();
    else kept.push(event);
  }
  return kept;
}

async function writeAll(conn: Deno.Conn, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) done += await conn.write(bytes.subarray(done));
}

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

function delay(ms: number): Promise<undefined> {
  return new Promise((resolve) => setTimeout(resolve, ms, undefined));
}
