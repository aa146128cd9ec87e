/**
 * A QEMU storage daemon, version 10 or later, run by tests to compare with: OVIS_QEMU10_QSD, or
 * found on PATH. (Version 7.2 answers wrong in places, so it is no oracle.)
 *
 * @module
 */

import { findProgram } from "./clients.ts";

const VERSION_MIN = 10;

/** The daemon's path, or undefined where there is none of that version. */
export async function findQemu10(): Promise<string | undefined> {
  const path = Deno.env.get("OVIS_QEMU10_QSD") || findProgram("qemu-storage-daemon");
  if (path === undefined) return undefined;
  const { stdout } = await new Deno.Command(path, { args: ["--version"] }).output();
  const version = /version (\d+)/.exec(new TextDecoder().decode(stdout))?.[1];
  return Number(version) >= VERSION_MIN ? path : undefined;
}

/** An object of a QMP command. */
export type QmpArguments = Record<string, unknown>;

/** A daemon with a QMP monitor and an NBD server, in a folder of its own. */
export class QemuStorageDaemon implements AsyncDisposable {
  readonly directory: string;
  readonly #process: Deno.ChildProcess;
  readonly #monitor: Deno.UnixConn;
  #received = "";

  private constructor(directory: string, process: Deno.ChildProcess, monitor: Deno.UnixConn) {
    this.directory = directory;
    this.#process = process;
    this.#monitor = monitor;
  }

  static async start(program: string): Promise<QemuStorageDaemon> {
    const directory = await Deno.makeTempDir({ prefix: "ovis-qsd-" });
    const process = new Deno.Command(program, {
      args: [
        ...["--chardev", `socket,id=qmp,path=${directory}/qmp,server=on,wait=off`],
        ...["--monitor", "chardev=qmp"],
        ...["--nbd-server", `addr.type=unix,addr.path=${directory}/nbd,max-connections=0`],
        ...["--pidfile", `${directory}/pid`],
      ],
      stdout: "null",
      stderr: "inherit",
    }).spawn();
    // The pid file is written when both sockets listen.
    while (!await exists(`${directory}/pid`)) {
      const ended = await Promise.race([process.status, delay(10)]);
      if (ended !== undefined) throw new Error("the storage daemon did not start");
    }
    const monitor = await Deno.connect({ path: `${directory}/qmp`, transport: "unix" });
    const daemon = new QemuStorageDaemon(directory, process, monitor);
    await daemon.#receive();
    await daemon.qmp("qmp_capabilities");
    return daemon;
  }

  get nbdPath(): string {
    return `${this.directory}/nbd`;
  }

  /** Runs a command. Throws its error's text. */
  async qmp(execute: string, args: QmpArguments = {}): Promise<unknown> {
    await this.#monitor.write(
      new TextEncoder().encode(JSON.stringify({ execute, arguments: args }) + "\n"),
    );
    for (;;) {
      const answer = await this.#receive();
      if ("return" in answer) return answer.return;
      if ("error" in answer) throw new Error((answer.error as { desc: string }).desc);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#monitor.close();
    this.#process.kill("SIGTERM");
    await this.#process.status;
    await Deno.remove(this.directory, { recursive: true });
  }

  async #receive(): Promise<Record<string, unknown>> {
    const buffer = new Uint8Array(65536);
    while (!this.#received.includes("\n")) {
      const count = await this.#monitor.read(buffer);
      if (count === null) throw new Error("the storage daemon closed its monitor");
      this.#received += new TextDecoder().decode(buffer.subarray(0, count));
    }
    const end = this.#received.indexOf("\n");
    const line = this.#received.slice(0, end);
    this.#received = this.#received.slice(end + 1);
    return JSON.parse(line);
  }
}

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

function delay(ms: number): Promise<undefined> {
  return new Promise((resolve) => setTimeout(resolve, ms, undefined));
}
