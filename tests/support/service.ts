/**
 * The service as a user runs it: a process of its own, spoken to by HTTP.
 *
 * @module
 */

const ROOT = new URL("../..", import.meta.url).pathname;
const TOKEN = "test-token-0123456789abcdef";

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

  /** Starts the service on a free port over `dataFolder` and waits until it answers. */
  static async start(dataFolder: string): Promise<Service> {
    const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const { port } = listener.addr;
    listener.close();
    const child = new Deno.Command(Deno.execPath(), {
      args: ["run", "-P=ovis", "main.ts", "serve", "--port", `${port}`, "--data", dataFolder]
        .concat(["--token", TOKEN]),
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

/** A machine's console: what was printed so far, and waiting for more. */
export class ServiceConsole implements AsyncDisposable {
  text = "";
  #seen = 0;
  #wake: (() => void) | undefined;
  #isOver = false;
  readonly #abort = new AbortController();
  readonly #reader: Promise<void>;

  constructor(readonly service: Service, readonly machine: string) {
    this.#reader = this.#read();
  }

  /** Waits until `pattern` appears in what was not yet waited for; the match. */
  async waitFor(pattern: RegExp): Promise<RegExpExecArray> {
    for (;;) {
      const match = pattern.exec(this.text.slice(this.#seen));
      if (match) {
        this.#seen += match.index + match[0].length;
        return match;
      }
      if (this.#isOver) throw new Error(`the console ended without ${pattern}:\n${this.text}`);
      await new Promise<void>((resolve) => this.#wake = resolve);
    }
  }

  /** Types `text`. */
  async type(text: string): Promise<void> {
    const path = `/v1/vms/${this.machine}/console/input`;
    await this.service.call("POST", path, new TextEncoder().encode(text));
  }

  /** Runs a command of the demo guest; what it printed. Throws where it failed. */
  async demo(command: string): Promise<string> {
    await this.type(`${command}\r`);
    const [all, output, result] = await this.waitFor(/^[^]*?\r?\n([^]*?)(ok|failed)\r\ndemo> /);
    if (result === "failed") throw new Error(all);
    return output ?? "";
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#abort.abort();
    await this.#reader;
  }

  async #read(): Promise<void> {
    try {
      const path = `/v1/vms/${this.machine}/console/log?follow`;
      const response = await this.service.request("GET", path, undefined, {
        signal: this.#abort.signal,
      });
      if (response.body === null) return;
      for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
        this.text += text;
        this.#wake?.();
      }
    } catch (error) {
      if (!this.#abort.signal.aborted) this.text += `\n[console: ${error}]`;
    } finally {
      this.#isOver = true;
      this.#wake?.();
    }
  }
}
