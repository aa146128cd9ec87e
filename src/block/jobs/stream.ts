/**
 * The stream job (QEMU's block/stream.c): copies into a node what it reads from its backing nodes,
 * down to but without `base`, then takes those nodes out of the chain.
 *
 *   [device] --> [node] --> ... --> [base]      ==>      [device] --> [node] --> [base]
 *
 * What a reader sees never changes. A guest's write and a chunk keep out of each other's way (see
 * CopyOnReadNode), so that the job never overwrites what is newer.
 *
 * @module
 */

import type { BlockLayer } from "../block_layer.ts";
import { BlockError } from "../errors.ts";
import { CopyOnReadNode } from "../filters/copy_on_read.ts";
import { backingOf, chainOf, unfiltered } from "../image/chain.ts";
import type { BlockNode } from "../node.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import { type ByteRange, PERM_ALL, PERM_CONSISTENT_READ, REQ_WRITE_UNCHANGED } from "../types.ts";
import { ChunkRunner } from "./chunks.ts";
import { COPY_BYTES, DataCopier, runKind, type Transfer } from "./data_copier.ts";
import { freeze, imageName, nodesBetween, putAbove, setBackingFile } from "./filters.ts";
import type { Job, JobDriver, JobOptions } from "./job.ts";
import type { OnError } from "./types.ts";

/** Arguments of block-stream. */
export interface StreamOptions extends JobOptions {
  /** The node that is filled, or a filter above it. */
  device: BlockNode;
  /** Its backing node in the end: a node of the chain. None unless given. */
  base?: BlockNode;
  /** Instead of a base: the last node whose data is copied. */
  bottom?: BlockNode;
  /** The name of the base in the header; the base's own unless given. */
  backingFile?: string;
  /** "report" unless given. "ignore": what can't be read is left out; the job fails at the end. */
  onError?: OnError;
  /** The filter's name. */
  filterNodeName?: string;
}

const WORKERS = 16;
/** Where nothing is to be copied, a look goes so far. */
const LOOK_BYTES = 64 * 1024 * 1024;

/** Starts a stream. Throws a BlockError and changes nothing. */
export async function startStream(layer: BlockLayer, options: StreamOptions): Promise<Job> {
  const node = unfiltered(options.device);
  const base = checkOptions(layer, options, node);
  const wasReadOnly = node.isReadOnly;
  if (wasReadOnly) await layer.graph.setReadOnly(node.nodeName, false);
  const restore = async (): Promise<void> => {
    if (wasReadOnly && node.graph !== null) await layer.graph.setReadOnly(node.nodeName, true);
  };
  try {
    const driver = new StreamDriver(layer, { options, node, base, restore });
    const job = await layer.graph.drained([node], () => driver.prepareJob());
    job.start();
    return job;
  } catch (error) {
    await restore();
    throw error;
  }
}

/** What is known when a stream starts. */
interface StreamPlan {
  options: StreamOptions;
  /** What is filled. */
  node: BlockNode;
  /** What stays below it. */
  base: BlockNode | null;
  /** Makes the node read-only again, if it was. */
  restore: () => Promise<void>;
}

class StreamDriver implements JobDriver {
  readonly type = "stream";
  readonly isBlockJob = true;
  readonly #layer: BlockLayer;
  readonly #plan: StreamPlan;
  readonly #chunks = new ChunkRunner();
  readonly #copier = new DataCopier();
  readonly #filter: CopyOnReadNode;
  readonly #again: ByteRange[] = [];
  /** The first error that was ignored. */
  #ignored: BlockError | null = null;
  #offset = 0;
  /** The chain is being changed: it is too late to cancel the job. */
  #isEnding = false;
  #thaw: () => void = () => {};

  constructor(layer: BlockLayer, plan: StreamPlan) {
    this.#layer = layer;
    this.#plan = plan;
    this.#filter = new CopyOnReadNode({
      nodeName: plan.options.filterNodeName ?? "",
      file: plan.node,
    });
  }

  /** In a drained section over the node. Undoes what it did where it throws. */
  async prepareJob(): Promise<Job> {
    const { graph, jobs } = this.#layer;
    const { options, node, base } = this.#plan;
    const undo: (() => Promise<void>)[] = [() => this.#filter.close()];
    try {
      const job = jobs.create(this, options);
      undo.push(() => job.discard());
      putAbove(graph, node, this.#filter);
      undo[0] = () => graph.removeFilter(this.#filter);
      job.addNode(this.#filter, { name: "main node", perm: 0, shared: PERM_ALL });
      for (const each of nodesBetween(node, base)) {
        const perm = each === node ? PERM_CONSISTENT_READ : 0;
        job.addNode(each, { name: "intermediate node", perm, shared: PERM_ALL });
      }
      this.#thaw = freeze(node, base);
      job.progress.total = node.sizeBytes;
      return job;
    } catch (error) {
      for (const action of undo.reverse()) await action();
      throw error;
    }
  }

  async run(job: Job): Promise<void> {
    // Nothing is to be had from below.
    if (backingOf(this.#plan.node) === null) this.#offset = this.#plan.node.sizeBytes;
    await this.#chunks.run(job, {
      workers: WORKERS,
      next: () => this.#next(),
      copy: (chunk) => runSteps(this.#copyAlone(job, chunk)),
      failed: (error, chunk) => {
        const action = job.handleError(this.#plan.options.onError ?? "report", true, error);
        if (action === "stop") this.#again.push(chunk);
        if (action === "ignore") this.#ignored ??= error;
        return action;
      },
    });
    if (this.#ignored !== null && !job.isCancelled) throw this.#ignored;
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
    const { node, base, options } = this.#plan;
    const { backing } = node;
    if (backing === null) return;
    await graph.drained([node, backing.node], async () => {
      await node.flush();
      const name = base === null ? null : options.backingFile ?? imageName(base);
      await setBackingFile(graph, node, name === null || base === null ? null : { name, base });
      this.#thaw();
      await job.releaseNodes();
      graph.setBacking(node, base);
    });
  }

  async clean(job: Job): Promise<void> {
    this.#thaw();
    await job.releaseNodes();
    await this.#layer.graph.removeFilter(this.#filter);
    await this.#layer.graph.sweep();
    await this.#plan.restore();
  }

  #next(): ByteRange | null {
    const again = this.#again.shift();
    if (again !== undefined) return again;
    const length = Math.min(this.#plan.node.sizeBytes - this.#offset, LOOK_BYTES);
    if (length === 0) return null;
    const chunk = { offset: this.#offset, length };
    this.#offset += length;
    return chunk;
  }

  *#copyAlone(job: Job, chunk: ByteRange): Steps<number> {
    const locked = yield* this.#filter.lock.lock(chunk);
    try {
      return yield* this.#copy(job, chunk);
    } finally {
      this.#filter.lock.unlock(locked);
    }
  }

  /** Copies the first part of a chunk that is of one kind; the rest comes again. */
  *#copy(job: Job, chunk: ByteRange): Steps<number> {
    const { node, base } = this.#plan;
    const backing = backingOf(node);
    const own = yield* runKind(node, backing, chunk);
    let length = own.length;
    let dataBytes = 0;
    if (!own.isAllocated && backing !== null) {
      const end = base === null ? null : unfiltered(base);
      const below = backing === end
        ? { length, isZero: false, isAllocated: false }
        : yield* runKind(backing, end, { offset: chunk.offset, length });
      length = Math.min(length, below.length);
      if (below.isAllocated && below.isZero) {
        // Without a base, what nobody holds is zeroes too.
        if (base !== null) {
          yield* settle(node.writeZeroes(chunk.offset, length, REQ_WRITE_UNCHANGED));
        }
      } else if (below.isAllocated) {
        length = dataBytes = Math.min(length, COPY_BYTES);
        yield* this.#copier.copyData(this.#transfer, { offset: chunk.offset, length });
      }
    }
    job.progress.current += length;
    const left = chunk.length - length;
    if (left > 0) this.#again.unshift({ offset: chunk.offset + length, length: left });
    return dataBytes;
  }

  /** A node to itself: what it reads through the chain becomes its own. */
  get #transfer(): Transfer {
    const { node } = this.#plan;
    const unit = node.clusterSizeBytes ?? 65536;
    return { source: node, target: node, unit, flags: REQ_WRITE_UNCHANGED, mayUnmap: false };
  }
}

/** Returns the base. The texts are QEMU's (qmp_block_stream, stream_start). */
function checkOptions(
  layer: BlockLayer,
  options: StreamOptions,
  node: BlockNode,
): BlockNode | null {
  const { device, bottom, backingFile } = options;
  let base = options.base ?? null;
  if (base !== null && bottom !== undefined) {
    throw new BlockError("EINVAL", "'bottom' and 'base-node' cannot be specified at the same time");
  }
  if (base !== null && (base === device || !nodesBetween(device, null).includes(base))) {
    throw new BlockError(
      "EINVAL",
      `Node '${base.nodeName}' is not a backing image of '${device.nodeName}'`,
    );
  }
  if (bottom !== undefined) {
    if (unfiltered(bottom) !== bottom) {
      throw new BlockError(
        "EINVAL",
        `Node '${bottom.nodeName}' is filter, use a non-filter node as 'bottom'`,
      );
    }
    if (!chainOf(device).includes(bottom)) {
      throw new BlockError(
        "EINVAL",
        `Node '${bottom.nodeName}' is not in a chain starting from '${device.nodeName}'`,
      );
    }
    base = bottom.backing?.node ?? null;
  }
  if (base === null && backingFile !== undefined) {
    throw new BlockError("EINVAL", "backing file specified, but streaming the entire chain");
  }
  for (const each of nodesBetween(node, base)) layer.jobs.checkFree(each);
  return base;
}
