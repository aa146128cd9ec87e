/** `ovis vm job`: long work on disks of a running service. @module */

import type { Command } from "commander";
import { type Client, ClientError } from "./client.ts";
import { printLine, printTable } from "./output.ts";
import { Progress } from "./progress.ts";
import { formatSize, jobPath, parseSize } from "./vm_text.ts";

/** A job as the API shows it. */
export interface Job {
  /** Its id. */
  id: string;
  /** backup, mirror, commit, stream. */
  type: string;
  /** In QEMU's words. */
  status: string;
  /** The disk that it works on. */
  disk: string;
  /** The disk that it makes. */
  target: string | null;
  /** Bytes done. */
  currentProgress: number;
  /** Bytes to be done. */
  totalProgress: number;
  /** Why it failed. */
  error: string | null;
}

const WAIT_SECONDS = 1;

/** Shows a job's progress until it has concluded, or is ready; throws where it failed. */
export async function followJob(client: Client, id: string): Promise<Job> {
  const progress = new Progress();
  try {
    for (;;) {
      const job = await waitAWhile(client, id);
      const { type, disk, status, currentProgress, totalProgress, error } = job;
      progress.report(`${type} of ${disk}`, currentProgress, Math.max(totalProgress, 1));
      if (error !== null) throw new ClientError("jobFailed", `job ${id} failed: ${error}`);
      if (status === "concluded" || status === "ready") return job;
    }
  } finally {
    progress.end();
  }
}

async function waitAWhile(client: Client, id: string): Promise<Job> {
  const query = `state=concluded,ready&timeout=${WAIT_SECONDS}`;
  try {
    return await client.call<Job>("GET", `${jobPath(id)}/wait?${query}`);
  } catch (error) {
    if (!(error instanceof ClientError) || error.code !== "waitTimedOut") throw error;
    return await client.call<Job>("GET", jobPath(id));
  }
}

/**
 * Adds the commands.
 *
 * @internal
 */
export function addJobCommands(vm: Command, client: () => Promise<Client>): void {
  const job = vm.command("job").description("long work on disks: backup, mirror, commit, stream");
  addShowing(job, client);
  addStarting(job, client);
  addSteering(job, client);
}

function addShowing(job: Command, client: () => Promise<Client>): void {
  job.command("list").description("list jobs that run, and the newest that ended")
    .action(async () => {
      const jobs = await (await client()).list<Job>("/v1/jobs");
      printTable([
        ["JOB", "TYPE", "DISK", "TARGET", "STATUS", "DONE", "ERROR"],
        ...jobs.map((item) => [
          item.id,
          item.type,
          item.disk,
          item.target ?? "",
          item.status,
          `${formatSize(item.currentProgress)}/${formatSize(item.totalProgress)}`,
          item.error ?? "",
        ]),
      ]);
    });
  job.command("show <job>").description("everything about a job, as JSON").action(async (id) =>
    printLine(JSON.stringify(await (await client()).call("GET", jobPath(id)), null, 2))
  );
  job.command("wait <job>").description("wait until a job is ready, or has concluded")
    .action(async (id) => {
      const { status } = await followJob(await client(), id);
      printLine(`${id} is ${status}`);
    });
}

/** A command that starts a job, shows its progress and waits for it. */
function starter(
  job: Command,
  { usage, description, client }: {
    usage: string;
    description: string;
    client: () => Promise<Client>;
  },
) {
  const command = job.command(usage).description(description)
    .option("--id <job>", "the job's id; default: one of the service's")
    .option("--speed <size>", "the most bytes a second", parseSize)
    .option("--detach", "do not wait for it");
  const start = async (options: Record<string, unknown>, body: object): Promise<void> => {
    const service = await client();
    const { id, speed, detach } = options;
    const started = await service.call<Job>("POST", "/v1/jobs", { id, speed, ...body });
    if (detach) return printLine(`${started.id} is ${started.status}`);
    const { status } = await followJob(service, started.id);
    printLine(`${started.id} is ${status}`);
  };
  return { command, start };
}

function addStarting(job: Command, client: () => Promise<Client>): void {
  const backup = starter(job, {
    usage: "backup <disk> <target>",
    description: "copy a disk, as it is now, to a new disk",
    client,
  });
  backup.command.option("--sync <sync>", "full (default), top, none, incremental, bitmap")
    .option("--bitmap <name>", "with sync incremental and bitmap")
    .option("--bitmap-mode <mode>", "on-success, never, always")
    .option("--format <format>", "of the target: qcow2 (default) or raw")
    .option("--backing <disk>", "what the target stands on: the backup before")
    .option("--compress", "store clusters compressed")
    .action((disk, name, options) => {
      const { sync, bitmap, bitmapMode, format, backing, compress } = options;
      const target = { name, format, backing };
      const body = { type: "backup", disk, target, sync, bitmap, bitmapMode, compress };
      return backup.start(options, body);
    });
  const mirror = starter(job, {
    usage: "mirror <disk> <target>",
    description: "keep a new disk the same as a disk; `job complete` then moves to its file",
    client,
  });
  mirror.command.option("--format <format>", "of the target: qcow2 (default) or raw")
    .option("--write-blocking", "guest writes go to both at once")
    .action((disk, name, options) => {
      const { format, writeBlocking } = options;
      const copyMode = writeBlocking && "write-blocking";
      return mirror.start(options, { type: "mirror", disk, target: { name, format }, copyMode });
    });
  const commit = starter(job, {
    usage: "commit <disk>",
    description: "write images of a disk's chain into the one below; of the active one, " +
      "`job complete` ends it",
    client,
  });
  commit.command.option("--top <node>", "from here on down; default: the active one")
    .option("--base <node>", "down to here; default: the lowest one")
    .action((disk, options) => {
      const { top, base } = options;
      return commit.start(options, { type: "commit", disk, top, base });
    });
  const stream = starter(job, {
    usage: "stream <disk>",
    description: "copy what is below the active image into it",
    client,
  });
  stream.command.option("--base <node>", "what it keeps standing on; default: nothing")
    .action((disk, options) => stream.start(options, { type: "stream", disk, base: options.base }));
}

function addSteering(job: Command, client: () => Promise<Client>): void {
  const requests = {
    cancel: "cancel a job",
    pause: "pause a job",
    resume: "let a paused job go on",
    complete: "complete a job that is ready",
    finalize: "let a pending job conclude",
    dismiss: "forget a job that has concluded",
  };
  for (const [request, description] of Object.entries(requests)) {
    job.command(`${request} <job>`).description(description).action(async (id) => {
      const { status } = await (await client()).call<Job>("POST", `${jobPath(id)}/${request}`);
      printLine(request === "dismiss" ? `${id} is gone` : `${id} is ${status}`);
    });
  }
  job.command("speed <job> <size>").description("change a job's limit of bytes a second; 0: none")
    .action(async (id, size) => {
      await (await client()).call("PATCH", jobPath(id), { speed: parseSize(size) });
      printLine(`${id} makes at most ${size} a second`);
    });
}
