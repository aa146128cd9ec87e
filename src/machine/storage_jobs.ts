/**
 * The jobs of a worker's disks, as the control isolate knows them: it starts and commands them, and
 * is told of each change of status, of progress at most once a second, and of the end.
 *
 *   started --...--> concluded: what only it used is closed, then it is told with its error and
 *                              dismissed here; the control isolate keeps it
 *
 * Jobs that a monitor started are told of too; only their monitor dismisses them.
 *
 * @module
 */

import type { BlockLayer } from "../block/block_layer.ts";
import { BlockError } from "../block/errors.ts";
import type { BackupOptions } from "../block/jobs/backup.ts";
import type { Job } from "../block/jobs/job.ts";
import type { JobEvent } from "../block/jobs/types.ts";
import type { BlockNode } from "../block/node.ts";
import { pathOf } from "../block/open/open_image.ts";
import type {
  BackupRequest,
  IoEvent,
  JobCommand,
  JobInfo,
  JobRequest,
  JobRequestBase,
} from "./messages.ts";
import { chainOf, removeChain, type StorageDisks } from "./storage_disks.ts";
import type { StorageImages } from "./storage_images.ts";

const PROGRESS_MS = 1000;

/** What jobs need of their worker. */
export interface JobSurroundings {
  /** Whose jobs they are. */
  block: BlockLayer;
  /** What they work on. */
  disks: StorageDisks;
  /** Makes their targets. */
  images: StorageImages;
  /** Tells of them. */
  emit: (event: IoEvent) => void;
}

/** A backup that is about to start. */
export interface BegunBackup {
  /** For the block layer. */
  readonly options: BackupOptions;
  /** It runs. */
  readonly accept: (job: Job) => JobInfo;
  /** It does not: nothing is left. */
  readonly reject: () => Promise<void>;
}

/** A job that was started here. */
interface OwnJob {
  disk: string;
  /** Nodes that may have lost their last user at its end. */
  nodes: Set<BlockNode>;
}

/** See the module's head. */
export class StorageJobs {
  readonly #around: JobSurroundings;
  readonly #block: BlockLayer;
  readonly #unlisten: () => void;
  readonly #own = new Map<string, OwnJob>();
  #timer: ReturnType<typeof setInterval> | null = null;

  /** Follows all jobs of the block layer. */
  constructor(around: JobSurroundings) {
    this.#around = around;
    this.#block = around.block;
    this.#unlisten = around.block.jobs.onEvent((event) => this.#onEvent(event));
  }

  /** Starts a job. Throws a BlockError and leaves nothing. */
  async start(request: JobRequest): Promise<JobInfo> {
    if (request.type === "backup") {
      const { options, accept, reject } = await this.beginBackup(request);
      try {
        const { startBackup } = await import("../block/jobs/backup.ts");
        return accept(await startBackup(this.#block, options));
      } catch (error) {
        await reject();
        throw error;
      }
    }
    const { node } = this.#around.disks.get(request.disk);
    const own = this.#begin(request);
    try {
      return this.#describe(await this.#startOn(node, request, own));
    } catch (error) {
      this.#own.delete(request.id);
      throw error;
    }
  }

  /** A backup with its target, to be started alone or in a transaction. */
  async beginBackup(request: BackupRequest): Promise<BegunBackup> {
    const { id, sync, bitmap, bitmapMode, target } = request;
    const source = this.#around.disks.get(request.disk).node;
    const own = this.#begin(request);
    const targetNode = await this.#around.images.make(target).catch((error: unknown) => {
      this.#own.delete(id);
      throw error;
    });
    own.nodes.add(targetNode);
    const options: BackupOptions = {
      ...jobOptions(request),
      source,
      target: targetNode,
      sync,
      ...(bitmap !== null && { bitmap }),
      ...(bitmapMode !== null && { bitmapMode }),
      compress: request.isCompressed,
      onSourceError: request.onSourceError,
      onTargetError: request.onTargetError,
    };
    return {
      options,
      accept: (job) => this.#describe(job),
      reject: async () => {
        this.#own.delete(id);
        await removeChain(this.#block.graph, targetNode);
        this.#around.images.discard(target.path);
      },
    };
  }

  #begin({ id, disk }: JobRequestBase): OwnJob {
    if (this.#own.has(id)) throw new BlockError("EINVAL", `Job ID '${id}' already in use`);
    const nodes = new Set(chainOf(this.#around.disks.get(disk).node));
    const own = { disk, nodes };
    this.#own.set(id, own);
    return own;
  }

  async #startOn(
    node: BlockNode,
    request: Exclude<JobRequest, { type: "backup" }>,
    own: OwnJob,
  ): Promise<Job> {
    const { graph } = this.#block;
    const options = jobOptions(request);
    switch (request.type) {
      case "mirror": {
        const { sync, copyMode, onSourceError, onTargetError, target: image } = request;
        const target = await this.#around.images.make(image);
        own.nodes.add(target);
        const policies = { onSourceError, onTargetError };
        const mirror = { ...options, ...policies, source: node, target, sync, copyMode };
        const { startMirror } = await import("../block/jobs/mirror.ts");
        return await startMirror(this.#block, mirror).catch(async (error: unknown) => {
          await removeChain(graph, target);
          this.#around.images.discard(image.path);
          throw error;
        });
      }
      case "commit": {
        const { top, base, onError } = request;
        checkOwn(base === null ? bottomOf(node) : this.#inChain(node, base));
        const { startCommit } = await import("../block/jobs/commit.ts");
        return await startCommit(this.#block, {
          ...options,
          device: node,
          ...(top !== null && { top: this.#inChain(node, top) }),
          ...(base !== null && { base: this.#inChain(node, base) }),
          onError,
        });
      }
      case "stream": {
        const { base, onError } = request;
        const kept = base === null ? {} : { base: this.#inChain(node, base) };
        const { startStream } = await import("../block/jobs/stream.ts");
        return await startStream(this.#block, { ...options, device: node, ...kept, onError });
      }
    }
  }

  /** A node of a disk's chain, by name. */
  #inChain(node: BlockNode, name: string): BlockNode {
    for (const image of chainOf(node)) {
      if (image.nodeName === name) return image;
    }
    throw new BlockError("ENOENT", `Node '${name}' is not in the disk's chain`);
  }

  /** Asks something of a job. Throws where its status does not allow that, or it is not there. */
  async command(id: string, command: JobCommand): Promise<void> {
    const job = this.#block.jobs.get(id);
    switch (command) {
      case "cancel":
        // A mirror or commit that is ready ends without its switch; anything else just ends.
        return await job.cancel();
      case "finalize":
        return await job.finalize();
      default:
        job[command]();
    }
  }

  /** Changes a job's limit. */
  setSpeed(id: string, speed: number): void {
    this.#block.jobs.get(id).setSpeed(speed);
  }

  /** All jobs. */
  list(): JobInfo[] {
    return this.#block.jobs.list().map((job) => this.#describe(job));
  }

  /** Cancels all and waits for their end. */
  async close(): Promise<void> {
    await this.#block.jobs.close();
    this.#unlisten();
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
  }

  #describe(job: Job): JobInfo {
    const { id, type, status, currentProgress, totalProgress, error } = job.info();
    const disk = this.#own.get(id)?.disk ?? "";
    const { speed } = job;
    return { id, type, disk, status, currentProgress, totalProgress, speed, error: error ?? null };
  }

  #onEvent(event: JobEvent): void {
    if (event.event !== "JOB_STATUS_CHANGE") return;
    const { id, status } = event.data;
    const job = this.#block.jobs.find(id);
    if (job === undefined) return;
    const own = this.#own.get(id);
    // The status is being changed right now.
    if (status === "concluded" && own !== undefined) {
      queueMicrotask(() => void this.#putAway(job, own));
    } else if (status !== "null") this.#around.emit({ type: "job", job: this.#describe(job) });
    this.#follow();
  }

  /** Whoever hears of the end may open what the job made. */
  async #putAway(job: Job, { nodes }: OwnJob): Promise<void> {
    await job.whenConcluded();
    const { graph, jobs } = this.#block;
    try {
      for (const node of nodes) await removeChain(graph, node);
    } finally {
      this.#around.emit({ type: "job", job: this.#describe(job) });
      if (jobs.find(job.id) === job) job.dismiss();
      this.#own.delete(job.id);
      this.#follow();
    }
  }

  /** A timer runs while there are jobs. */
  #follow(): void {
    const hasJobs = this.#block.jobs.list().length > 0;
    if (hasJobs && this.#timer === null) {
      this.#timer = setInterval(() => this.#report(), PROGRESS_MS);
    } else if (!hasJobs && this.#timer !== null) {
      clearInterval(this.#timer);
      this.#timer = null;
    }
  }

  #report(): void {
    for (const job of this.#block.jobs.list()) {
      if (job.status === "running" || job.status === "ready") {
        this.#around.emit({ type: "job", job: this.#describe(job) });
      }
    }
  }
}

function jobOptions({ id, speed, isAutoFinalize }: JobRequestBase) {
  return { jobId: id, speed, autoFinalize: isAutoFinalize, autoDismiss: false };
}

function bottomOf(node: BlockNode): BlockNode {
  return [...chainOf(node)].at(-1) ?? node;
}

/** What this worker may not write is the image of another disk, and that stays as it is. */
function checkOwn(base: BlockNode): void {
  const path = pathOf(base);
  if (path === null) return;
  if (Deno.permissions.querySync({ name: "write", path }).state === "granted") return;
  throw new BlockError(
    "EPERM",
    `'${base.nodeName}' (${path}) is the image of another disk, which stays as it is: a commit ` +
      "goes into images of the disk's own, those of its snapshots",
  );
}
