/** What `ovis demo` does. @module */

import { createHash } from "node:crypto";
import { connect, RemoteDisk } from "../client/mod.ts";
import { resolveSettings } from "../config.ts";
import { ImageError } from "../image/errors.ts";
import { NbdClient } from "../nbd/client.ts";
import { connectTcp } from "../nbd/transports/tcp.ts";
import { Client } from "./client.ts";
import { ConsoleDialogue } from "./console_dialogue.ts";
import { fetchDebian } from "./image_action.ts";
import { setUpLogging } from "./logging.ts";
import { printLine } from "./output.ts";
import { type RunningService, startService } from "./run_service.ts";
import { INTERRUPTED, waitForSignal } from "./signals.ts";

const MiB = 1024 * 1024;
const DISK_BYTES = 16 * MiB;
const VM = "demo";

/** The command's options. */
export interface DemoOptions {
  /** What boots. Without it: Debian if it can be fetched, else the demo guest. */
  guest?: "debian" | "demo";
  /** Leaves the service running at the end, until Ctrl-C. */
  keep?: boolean;
}

/** A guest that can be told to write and to hash its disk. */
interface DemoGuest {
  image: string;
  /** Waits until it takes commands. */
  ready(console: ConsoleDialogue): Promise<unknown>;
  write(console: ConsoleDialogue): Promise<unknown>;
  overwrite(console: ConsoleDialogue): Promise<unknown>;
  /** The SHA-256 of its disk as it computes it itself. */
  hash(console: ConsoleDialogue): Promise<string>;
}

const DEMO_GUEST: DemoGuest = {
  image: "demo",
  ready: (console) => console.waitFor(/demo> /),
  async write(console) {
    await console.demo(`fill 0 0 ${DISK_BYTES} 0x41`);
    await console.demo("stress 0 1 2000");
  },
  overwrite: (console) => console.demo(`fill 0 0 ${DISK_BYTES} 0x5a`),
  hash: async (console) => hashIn(await console.demo("hash 0")),
};

const DEBIAN_GUEST: DemoGuest = {
  image: "debian",
  ready: (console) => console.waitFor(/~ # /),
  write: (console) => console.shell("dd if=/dev/urandom of=/dev/vda bs=1M 2>/dev/null; sync"),
  overwrite: (console) =>
    console.shell(
      "tr '\\0' Z </dev/zero | dd of=/dev/vda bs=1M count=16 " +
        "iflag=fullblock 2>/dev/null; sync",
    ),
  hash: async (console) => hashIn(await console.shell("sha256sum /dev/vda")),
};

/** Runs the demonstration; throws where the past is not what it was. Ctrl-C breaks it off. */
export async function demo(options: DemoOptions): Promise<void> {
  const steps = new Steps();
  const stopped = waitForSignal();
  const data = await Deno.makeTempDir({ prefix: "ovis-demo-" });
  let isBrokenOff = false;
  try {
    const environment = (name: string) => name === "HOME" ? data : undefined;
    const settings = resolveSettings({
      flags: { port: 0, data, logLevel: "warning" },
      environment,
      file: {},
    });
    const running = await startService(settings, await setUpLogging(settings.logLevel));
    try {
      steps.done(`the service runs at ${running.url}`);
      const shown = showAll(running, options, steps);
      isBrokenOff = await Promise.race([shown.then(() => false), stopped.then(() => true)]);
      // What it was at fails once the service is gone.
      if (isBrokenOff) shown.catch(() => {});
      else if (options.keep) {
        printLine(`\nThe service stays at ${running.url} until Ctrl-C. Try:`);
        const { token, url } = running;
        printLine(`  curl -s -H "authorization: Bearer ${token}" ${url}/v1/vms/${VM}`);
        await stopped;
      }
    } finally {
      await running.stop();
    }
  } finally {
    await Deno.remove(data, { recursive: true });
  }
  steps.done("stopped, everything removed");
  Deno.exit(isBrokenOff ? INTERRUPTED : 0);
}

async function showAll(running: RunningService, options: DemoOptions, steps: Steps): Promise<void> {
  const client = new Client(running);
  await show(client, await chooseGuest(client, options, steps), steps);
}

async function chooseGuest(client: Client, options: DemoOptions, steps: Steps): Promise<DemoGuest> {
  if (options.guest === "demo") return DEMO_GUEST;
  try {
    const image = await fetchDebian({ suite: "trixie" });
    await client.call("POST", "/v1/images", { name: "debian", cmdline: image.cmdline });
    for (const part of ["kernel", "initrd"] as const) {
      await client.request("PUT", `/v1/images/debian/files/${part}`, { body: image[part] });
    }
    steps.done(`fetched ${image.description}`);
    return DEBIAN_GUEST;
  } catch (error) {
    if (options.guest === "debian" || !(error instanceof ImageError)) throw error;
    steps.done(`Debian can't be fetched (${error.message}): the small demo guest runs instead`);
    return DEMO_GUEST;
  }
}

/** A fleecing as the API shows it, as far as it is used here. */
interface Fleecing {
  name: string;
  exports: { name: string; nbd: string; websocket: string; content: string; copiedBytes: number }[];
}

async function show(client: Client, guest: DemoGuest, steps: Steps): Promise<void> {
  await client.call("POST", "/v1/vms", {
    name: VM,
    image: guest.image,
    disks: [{ name: "disk0", sizeBytes: DISK_BYTES }],
  });
  await using console = new ConsoleDialogue({
    async output() {
      const response = await client.request("GET", `/v1/vms/${VM}/console/log?follow`);
      return response.body ?? new ReadableStream();
    },
    async input(bytes) {
      await client.request("POST", `/v1/vms/${VM}/console/input`, { body: bytes });
    },
  });
  await guest.ready(console);
  steps.done(`a machine has booted ${guest.image}`);
  await guest.write(console);
  const before = await guest.hash(console);
  steps.done(`the guest wrote ${DISK_BYTES / MiB} MiB; its SHA-256: ${before}`);

  const fleecing = await client.call<Fleecing>("POST", `/v1/vms/${VM}/fleecings`, {});
  const [view] = fleecing.exports;
  if (view === undefined) throw new Error("the fleecing has no export");
  steps.done(`its disk is frozen as ${view.name}; the guest goes on`);
  await guest.overwrite(console);
  steps.done(`the guest overwrote all of it; its SHA-256 now: ${await guest.hash(console)}`);

  for await (const [way, hash] of readThreeWays(client, view)) {
    if (hash !== before) throw new Error(`${way} gave ${hash}, not what the guest had`);
    steps.done(`read ${way}: ${hash}, as it was`);
  }
  const path = `/v1/vms/${VM}/fleecings/${fleecing.name}`;
  const copied = (await client.call<Fleecing>("GET", path)).exports[0]?.copiedBytes ?? 0;
  steps.done(`the view cost ${copied / MiB} MiB of copies`);
}

/** Reads all of a view in three ways, one after the other: how, and what its hash is. */
async function* readThreeWays(
  client: Client,
  view: Fleecing["exports"][number],
): AsyncGenerator<[way: string, hash: string]> {
  const { ticket } = await client.call<{ ticket: string }>(
    "POST",
    `/v1/exports/${encodeURIComponent(view.name)}/tickets`,
  );
  yield ["over NBD in a WebSocket", await hashDisk(await connect(view.websocket, { ticket }))];

  const nbd = new URL(view.nbd.replace(/^nbd:/, "http:"));
  const stream = await connectTcp({ host: nbd.hostname, port: Number(nbd.port) });
  const exportName = decodeURIComponent(nbd.pathname.slice(1));
  const overTcp = new RemoteDisk(await NbdClient.connect(stream, { exportName }));
  yield ["over NBD on TCP", await hashDisk(overTcp)];

  const { body } = await client.request("GET", new URL(view.content).pathname);
  const hash = createHash("sha256");
  for await (const chunk of body ?? []) hash.update(chunk);
  yield ["over HTTP", hash.digest("hex")];
}

async function hashDisk(disk: RemoteDisk): Promise<string> {
  try {
    const hash = createHash("sha256");
    for await (const { length, bytes } of disk.chunks()) {
      hash.update(bytes ?? new Uint8Array(length));
    }
    return hash.digest("hex");
  } finally {
    await disk.close();
  }
}

function hashIn(output: string): string {
  const hash = /[0-9a-f]{64}/.exec(output)?.[0];
  if (hash === undefined) throw new Error(`the guest did not print a hash: ${output}`);
  return hash;
}

/** Says what was done, and how long it took. */
class Steps {
  #last = performance.now();

  done(what: string): void {
    const now = performance.now();
    printLine(`${((now - this.#last) / 1000).toFixed(2).padStart(6)} s  ${what}`);
    this.#last = now;
  }
}
