/**
 * The service as a user runs it: a process of its own, spoken to by HTTP.
 *
 * @module
 */

import { ConsoleDialogue } from "../../src/cli/console_dialogue.ts";

const ROOT = new URL("../..", import.meta.url).pathname;
/** The words behind `deno` of the task that users start the service by. */
const START: string[] = JSON.parse(Deno.readTextFileSync(`${ROOT}deno.json`)).tasks.start.command
  .split(" ").slice(1);
/** What the services of tests take as their token. */
export const TOKEN = "test-token-0123456789abcdef";

/** A fleecing's answer, as far as tests read it. */
export interface FleecingAnswer {
  name: string;
  state: "active" | "broken";
  exports: {
    name: string;
    disk: string;
    sizeBytes: number;
    nbd: string;
    nbdUnix: string;
    websocket: string;
    content: string;
    copiedBytes: number;
    clustersDone: number;
    refusedReads: number;
  }[];
}

/** A running service over a data folder. */
export class Service implements AsyncDisposable {
  /** What it wrote to its standard error so far. */
  log = "";
  readonly #child: Deno.ChildProcess;
  readonly #drained: Promise<unknown>;

  private constructor(child: Deno.ChildProcess, readonly url: string, readonly dataFolder: string) {
    this.#child = child;
    const collect = async (stream: ReadableStream<Uint8Array<ArrayBuffer>>) => {
      for await (const text of stream.pipeThrough(new TextDecoderStream())) this.log += text;
    };
    this.#drained = Promise.all([collect(child.stdout), collect(child.stderr)]);
  }

  /**
   * Starts the service on a free port over `dataFolder`, with more arguments where given, and waits
   * until it answers.
   */
  static async start(dataFolder: string, more: readonly string[] = []): Promise<Service> {
    const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const { port } = listener.addr;
    listener.close();
    const child = new Deno.Command(Deno.execPath(), {
      args: [...START, "--port", `${port}`, "--data", dataFolder, "--token", TOKEN, ...more],
      cwd: ROOT,
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const service = new Service(child, `http://127.0.0.1:${port}`, dataFolder);
    let hasEnded = false;
    child.status.then(() => hasEnded = true);
    while (!hasEnded) {
      try {
        const response = await fetch(`${service.url}/healthz`);
        await response.body?.cancel();
        if (response.ok) return service;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
    await service.#drained;
    throw new Error(`the service did not start:\n${service.log}`);
  }

  get processId(): number {
    return this.#child.pid;
  }

  /** A request with the token; `body` as JSON unless it is bytes or a stream. */
  request(method: string, path: string, body?: unknown, init: RequestInit = {}): Promise<Response> {
    const isRaw = body instanceof Uint8Array || body instanceof ReadableStream ||
      typeof body === "string";
    const url = path.startsWith("http") ? path : this.url + path;
    return fetch(url, {
      method,
      ...init,
      headers: { authorization: `Bearer ${TOKEN}`, ...init.headers as Record<string, string> },
      body: body === undefined ? null : isRaw ? body as BodyInit : JSON.stringify(body),
    });
  }

  /** A request that must succeed; its JSON, or undefined where there is none. */
  async call<T>(method: string, path: string, body?: unknown): Promise<T> {
    const response = await this.request(method, path, body);
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
    return (text === "" ? undefined : JSON.parse(text)) as T;
  }

  /** A request of which only the status matters. */
  async status(method: string, path: string, body?: unknown): Promise<number> {
    const response = await this.request(method, path, body);
    await response.body?.cancel();
    return response.status;
  }

  /** Streams a file into an image. */
  async putImageFile(image: string, part: string, path: string): Promise<void> {
    const file = await Deno.open(path);
    const response = await this.request("PUT", `/v1/images/${image}/files/${part}`, file.readable);
    if (!response.ok) throw new Error(await response.text());
  }

  /** Asks it to stop (SIGTERM) and waits; its exit code. */
  async stop(): Promise<number> {
    this.#child.kill("SIGTERM");
    return await this.#ended();
  }

  /** Ends it at once, as a crash would. */
  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#ended();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.#child.kill("SIGTERM");
    } catch {
      // it has ended already
    }
    await this.#ended();
  }

  async #ended(): Promise<number> {
    const [status] = await Promise.all([this.#child.status, this.#drained]);
    return status.code;
  }
}

/** A machine's console. */
export class ServiceConsole extends ConsoleDialogue {
  constructor(service: Service, machine: string) {
    const path = `/v1/vms/${machine}/console`;
    super({
      async output() {
        const response = await service.request("GET", `${path}/log?follow`);
        if (response.body === null) throw new Error("the log has no body");
        return response.body;
      },
      async input(bytes) {
        await service.call("POST", `${path}/input`, bytes);
      },
    });
  }
}
