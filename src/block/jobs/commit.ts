/**
 * The commit job (QEMU's block/commit.c): writes what the nodes from `top` down to `base` hold into
 * `base`, then takes those nodes out of the chain.
 *
 *   [overlay] --> [top] --> ... --> [base]      ==>      [overlay] --> [base]
 *
 * Where top is the active layer, it is a mirror to the base: it becomes ready, and `complete` lets
 * everybody use the base (see mirror.ts).
 *
 * What is committed is not written meanwhile, since it is below an overlay. Whatever happens, the
 * chain shows the same: the base gets only what is above it anyway.
 *
 * @module
 */

import { assert } from "../assert.ts";
import type { BlockLayer } from "../block_layer.ts";
import { BlockError } from "../errors.ts";
import { CommitTopNode } from "../filters/commit_top.ts";
import { chainOf, unfiltered } from "../image/chain.ts";
import { BlockNode } from "../node.ts";
import { runSteps, type Steps } from "../steps.ts";
import {
  type ByteRange,
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
} from "../types.ts";
import { ChunkRunner } from "./chunks.ts";
import { COPY_BYTES, DataCopier, runKind, TransferError, ZERO_BYTES } from "./data_copier.ts";
import { freeze, imageName, nodesBetween, putAbove, setBackingFile } from "./filters.ts";
import type { Job, JobDriver, JobOptions } from "./job.ts";
import { startMirroring } from "./mirror.ts";
import type { OnError } from "./types.ts";

/** Arguments of block-commit. */
export interface CommitOptions extends JobOptions {
  /** What the guest uses: the active layer, or a filter above it. */
  device: BlockNode;
  /** What is committed, from here on down; the active layer unless given. */
  top?: BlockNode;
  /** What it is committed into; the last node of the chain unless given. */
  base?: BlockNode;
  /** The name of the base in the overlay's header; the base's own unless given. */
  backingFile?: string;
  /** "report" unless given. */
  onError?: OnError;
  /** The filter's name. */
  filterNodeName?: string;
}

const WORKERS = 16;

/** Starts a commit. Throws a BlockError and changes nothing. */
export async function startCommit(layer: BlockLayer, options: CommitOptions): Promise<Job> {
  const { top, base } = checkOptions(layer, options);
  const wasReadOnly = base.isReadOnly;
  if (wasReadOnly) await layer.graph.setReadOnly(base.nodeName, false);
  const restore = async (): Promise<void> => {
    if (wasReadOnly && base.graph !== null) await layer.graph.setReadOnly(base.nodeName, true);
  };
  try {
    if (unfiltered(top) === unfiltered(options.device)) {
      return await startMirroring(layer, {
        ...options,
        type: "commit",
        source: top,
        target: base,
        sync: "top",
        base: unfiltered(base),
        onSourceError: options.onError ?? "report",
        onTargetError: options.onError ?? "report",
        onEnd: async (isCommitted) => isCommitted ? undefined : await restore(),
      });
    }
    const driver = new CommitDriver(layer, { options, top, base, restore });
    const job = await layer.graph.drained([top], () => driver.prepareJob());
    job.start();
    return job;
  } catch (error) {
    await restore();
    throw error;
  }
}

/** What is known when a commit starts. */
interface CommitPlan {
  options: CommitOptions;
  top: BlockNode;
  base: BlockNode;
  /** Makes the base read-only again, if it was. */
  restore: () => Promise<void>;
}

class CommitDriver implements JobDriver {
  readonly type = "commit";
  readonly isBlockJob = true;
  readonly #layer: BlockLayer;
  readonly #plan: CommitPlan;
  readonly #chunks = new ChunkRunner();
  readonly #copier = new DataCopier();
  readonly #filter: CommitTopNode;
  /** Chunks that failed and are to be tried again. */
  readonly #again: ByteRange[] = [];
  #offset = 0;
  /** The chain is being changed: it is too late to cancel the job. */
  #isEnding = false;
  #thaw: () => void = () => {};

  constructor(layer: BlockLayer, plan: CommitPlan) {
    this.#layer = layer;
    this.#plan = plan;
    this.#filter = new CommitTopNode({
      nodeName: plan.options.filterNodeName ?? "",
      file: plan.top,
    });
  }

  /** In a drained section over the top. Undoes what it did where it throws. */
  async prepareJob(): Promise<Job> {
    const { graph, jobs } = this.#layer;
    const { options, top, base } = this.#plan;
    const undo: (() => Promise<void>)[] = [() => this.#filter.close()];
    try {
      const job = jobs.create(this, options);
      undo.push(() => job.discard());
      putAbove(graph, top, this.#filter);
      undo[0] = () => graph.removeFilter(this.#filter);
      job.addNode(this.#filter, { name: "main node", perm: 0, shared: PERM_ALL });
      for (const node of nodesBetween(top, base)) {
        job.addNode(node, { name: "intermediate node", perm: 0, shared: PERM_ALL });
      }
      job.addNode(base, {
        name: "base",
        perm: PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE,
        shared: PERM_ALL & ~PERM_RESIZE,
      });
      this.#thaw = freeze(this.#filter, base);
      job.progress.total = top.sizeBytes;
      return job;
    } catch (error) {
      for (const action of undo.reverse()) await action();
      throw error;
    }
  }

  async run(job: Job): Promise<void> {
    const { top, base, options } = this.#plan;
    if (base.sizeBytes < top.sizeBytes) await job.operate(() => base.resize(top.sizeBytes));
    await this.#chunks.run(job, {
      workers: WORKERS,
      next: () => this.#next(),
      copy: (chunk) => runSteps(this.#copy(job, chunk)),
      failed: (error, chunk) => {
        this.#again.push(chunk);
        const isRead = error instanceof TransferError && error.isRead;
        return job.handleError(options.onError ?? "report", isRead, error);
      },
    });
    if (!job.isCancelled) await this.#zeroBehind(job);
  }

  /** Behind the top's end an overlay reads zeroes, and is to do so when the top is gone. */
  async #zeroBehind(job: Job): Promise<void> {
    const { top, base } = this.#plan;
    const overlays = [...this.#filter.parents].map(({ parent }) => parent);
    const end = Math.max(...overlays.map((each) => each instanceof BlockNode ? each.sizeBytes : 0));
    const length = Math.min(end, base.sizeBytes) - top.sizeBytes;
    if (length > 0) await job.operate(() => base.writeZeroes(top.sizeBytes, length));
  }

  settle(): Promise<void> {
    return this.#chunks.settle();
  }

  cancel(): boolean {
    return !this.#isEnding;
  }

  async prepare(job: Job): Promise<void> {
    this.#isEnding = true;
    const { graph } = this.#layer;
    const { base, options } = this.#plan;
    await graph.drained([this.#filter, base], async () => {
      await base.flush();
      this.#thaw();
      await job.releaseNodes();
      const edges = [...this.#filter.parents].filter(({ role }) => role !== "snapshot");
      const name = options.backingFile ?? imageName(base);
      for (const { parent, role } of edges) {
        if (role !== "cow" || name === null) continue;
        assert(parent instanceof BlockNode, "who has a backing node is a node");
        await setBackingFile(graph, parent, { name, base });
      }
      graph.replaceChildren(edges, base);
      await graph.remove(this.#filter.nodeName);
    });
  }

  async clean(job: Job): Promise<void> {
    this.#thaw();
    await job.releaseNodes();
    if (this.#filter.graph !== null) await this.#layer.graph.removeFilter(this.#filter);
    await this.#layer.graph.sweep();
    await this.#plan.restore();
  }

  #next(): ByteRange | null {
    const again = this.#again.shift();
    if (again !== undefined) return again;
    const { top } = this.#plan;
    const length = Math.min(top.sizeBytes - this.#offset, ZERO_BYTES);
    if (length === 0) return null;
    const chunk = { offset: this.#offset, length };
    this.#offset += length;
    return chunk;
  }

  /** Copies the first part of a chunk that is there to be copied; the rest comes again. */
  *#copy(job: Job, chunk: ByteRange): Steps<number> {
    const { top, base } = this.#plan;
    const run = yield* runKind(top, unfiltered(base), chunk);
    let [doneBytes, dataBytes] = [run.length, 0];
    if (run.isAllocated) {
      const transfer = { source: top, target: base, unit: base.clusterSizeBytes ?? 65536 };
      const length = run.isZero ? run.length : Math.min(run.length, COPY_BYTES);
      [doneBytes, dataBytes] = yield* this.#copier.copy(transfer, { offset: chunk.offset, length });
    }
    job.progress.current += doneBytes;
    const left = chunk.length - doneBytes;
    if (left > 0) this.#again.unshift({ offset: chunk.offset + doneBytes, length: left });
    return dataBytes;
  }
}

/** The texts are QEMU's (qmp_block_commit, blockdev.c). */
function checkOptions(
  layer: BlockLayer,
  options: CommitOptions,
): { top: BlockNode; base: BlockNode } {
  const { device, top = device, backingFile } = options;
  if (!nodesBetween(device, null).includes(top)) throw notInChain(top);
  const base = options.base ?? chainOf(top).at(-1) ?? top;
  if (unfiltered(top) === unfiltered(base)) {
    throw new BlockError("EINVAL", "cannot commit an image into itself");
  }
  if (!nodesBetween(top, null).includes(base)) throw notInChain(base);
  for (const node of [...nodesBetween(top, base), base]) layer.jobs.checkFree(node);
  const isActive = unfiltered(top) === unfiltered(device);
  if (isActive && backingFile !== undefined) {
    throw new BlockError("EINVAL", "'backing-file' specified, but 'top' is the active layer");
  }
  return { top, base };
}

function notInChain(node: BlockNode): BlockError {
  return new BlockError("EINVAL", `'${node.nodeName}' is not in this backing file chain`);
}
