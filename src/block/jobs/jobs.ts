/**
 * The jobs of a block layer: their ids, their events, and which nodes are theirs.
 *
 * @module
 */

import { limits } from "../../limits.ts";
import { type Clock, systemClock } from "../clock.ts";
import { BlockError } from "../errors.ts";
import type { BlockGraph } from "../graph.ts";
import { BlockNode } from "../node.ts";
import { Job, type JobDriver, type JobOptions } from "./job.ts";
import type { JobEvent } from "./types.ts";

/** Who is told of events. */
export type JobListener = (event: JobEvent) => void;

/** See the module's head. */
export class Jobs {
  /** Where their nodes are. */
  readonly graph: BlockGraph;
  /**
   * Asked, with no request in flight, before a node takes another's place for good (the end of a
   * mirror or of an active commit, an external snapshot): who keeps on record which file a disk is
   * in does so now, or throws to refuse it.
   */
  beforeReplace: (from: BlockNode, to: BlockNode) => Promise<void> = () => Promise.resolve();
  /** For speed limits. */
  readonly clock: Clock;
  readonly #jobs = new Map<string, Job>();
  readonly #listeners = new Set<JobListener>();
  /** The jobs whose nodes they are: other jobs may not have them. */
  readonly #blocked = new Map<BlockNode, Job[]>();

  /** `clock`: the machine's unless given. */
  constructor(graph: BlockGraph, clock: Clock = systemClock) {
    this.graph = graph;
    this.clock = clock;
  }

  /** All jobs, the last to come first, as QEMU shows them. */
  list(): Job[] {
    return [...this.#jobs.values()].reverse();
  }

  /** The job of that id, if there is one. */
  find(id: string): Job | undefined {
    return this.#jobs.get(id);
  }

  /** The job of that id. Throws a BlockError (ENOENT) where there is none. */
  get(id: string): Job {
    const job = this.#jobs.get(id);
    if (job === undefined) throw new BlockError("ENOENT", "Job not found");
    return job;
  }

  /** Calls `listener` with every event until the returned function is called. */
  onEvent(listener: JobListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** A job that has not started. Throws a BlockError on a bad or taken id. */
  create(driver: JobDriver, options: JobOptions): Job {
    const { jobId } = options;
    if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(jobId)) {
      throw new BlockError("EINVAL", `Invalid job ID '${jobId}'`);
    }
    if (this.#jobs.has(jobId)) throw new BlockError("EINVAL", `Job ID '${jobId}' already in use`);
    if (this.#jobs.size >= limits.jobs) {
      throw new BlockError("EINVAL", `There are ${limits.jobs} jobs already`);
    }
    const job = new Job(this, driver, options);
    this.#jobs.set(jobId, job);
    job.announce();
    return job;
  }

  /** Throws a BlockError (EBUSY) where a job works on the node, so that another may not. */
  checkFree(node: BlockNode): void {
    const [job] = this.#blocked.get(node) ?? [];
    if (job === undefined) return;
    throw new BlockError(
      "EBUSY",
      `Node '${node.nodeName}' is busy: block device is in use by block job: ${job.type}`,
    );
  }

  /** Throws a BlockError (EBUSY) where the node is the backing node of another. */
  checkNotBacking(node: BlockNode): void {
    for (const { parent, role } of node.parents) {
      if (role !== "cow" || !(parent instanceof BlockNode)) continue;
      throw new BlockError(
        "EBUSY",
        `Node '${node.nodeName}' is busy: node is used as backing hd of '${parent.nodeName}'`,
      );
    }
  }

  /** Cancels all jobs and waits for their end. */
  async close(): Promise<void> {
    for (const job of this.list()) {
      if (job.status === "concluded") job.dismiss();
      else if (job.status !== "aborting") await job.cancel();
    }
    await Promise.all(this.list().map((job) => job.whenConcluded()));
    for (const job of this.list()) job.dismiss();
  }

  // For jobs.

  /** Tells all listeners. */
  emit(event: JobEvent): void {
    for (const listener of this.#listeners) listener(event);
  }

  /** Keeps other jobs off a node. */
  block(node: BlockNode, job: Job): void {
    this.#blocked.set(node, [...this.#blocked.get(node) ?? [], job]);
  }

  /** The way back from `block`. */
  unblock(node: BlockNode, job: Job): void {
    const rest = [...this.#blocked.get(node) ?? []];
    rest.splice(rest.indexOf(job), 1);
    if (rest.length > 0) this.#blocked.set(node, rest);
    else this.#blocked.delete(node);
  }

  /** The job was dismissed. */
  forget(job: Job): void {
    this.#jobs.delete(job.id);
  }

  /** A bug in a job: fails as loudly as one anywhere else. */
  reportBug(error: unknown): void {
    queueMicrotask(() => {
      throw error;
    });
  }
}
