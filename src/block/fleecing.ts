/**
 * A fleecing: the frozen view of one or several disks at one moment, ready to be read, from one
 * call; and gone with nothing left behind from another.
 *
 *   [device] --root--> [copy-before-write] <--snapshot-- [snapshot-access] <--root-- [export]
 *                        |file        |target
 *                        v            v
 *                 [what was below]  [temporary image, or a node that was given]
 *
 * The moment is one drained section over all disks: no guest request is in flight, filters go in,
 * bitmaps are copied and changed, requests go on. Fleecings stack: each filter goes on top of what
 * is there, each view shows its own moment, and they end in any order.
 *
 *   start --failed--> everything is as before
 *     |
 *   standing --stop--> no view, no filter, no temporary image
 *
 * @module
 */

import type { BlockBackend } from "./backend.ts";
import type { Clock } from "./clock.ts";
import type { DirtyBitmap } from "./dirty_bitmap.ts";
import { FileNode } from "./drivers/file.ts";
import type { BlockEdge } from "./edge.ts";
import { BlockError, toBlockError } from "./errors.ts";
import { NodeExport } from "./exports/node_export.ts";
import { SnapshotExport } from "./exports/snapshot_export.ts";
import {
  type CopyBeforeWriteInfo,
  CopyBeforeWriteNode,
  type OnCbwError,
} from "./filters/copy_before_write.ts";
import { SnapshotAccessNode } from "./filters/snapshot_access.ts";
import type { BlockGraph } from "./graph.ts";
import type { BlockNode } from "./node.ts";
import { parentsFirst } from "./permissions.ts";
import { ScratchBudget } from "./scratch_budget.ts";
import { PERM_WRITE } from "./types.ts";
import type { Kernels } from "../wasm/kernels.ts";

/** A disk to be frozen. */
export interface FleecingDisk {
  /** The disk's name, unique in the fleecing. */
  name: string;
  /** The name of the view's export. */
  exportName: string;
  /** What the guest's device works on. All others who may write to the same node are frozen too. */
  backend: BlockBackend;
  /** Only what is dirty in it is protected and readable; null: everything. Only read. */
  bitmap: DirtyBitmap | null;
  /** Where old data goes; null: a new temporary image. A node that is given is not removed. */
  target: BlockNode | null;
  /** Shown with the view as `qemu:dirty-bitmap:NAME`, as they are after the transaction's changes. */
  exportBitmaps?: readonly DirtyBitmap[];
  /**
   * The old scheme: the target, which must be backed by what the backend works on, is itself the
   * view. Reads are not limited to `bitmap`, and can't be discarded.
   */
  isTargetView?: boolean;
}

/** What a fleecing is started with. */
export interface FleecingOptions {
  /** The fleecing's name. */
  name: string;
  /** At least one, none twice. */
  disks: readonly FleecingDisk[];
  /** What to give up when old data can't be kept. */
  onCbwError: OnCbwError;
  /** 0: none. */
  cbwTimeoutSeconds: number;
  /** 0 or a power of two. */
  minClusterSizeBytes: number;
  /** What all temporary images may hold together; null: no bound. */
  scratchMaxBytes: number | null;
  /** Folder for temporary images. */
  scratchDirectory: string;
  /** Where the bitmaps live. */
  kernels: Kernels;
  /** For the timeout: the machine's unless given. */
  clock?: Clock;
  /** Called once for each disk whose snapshot breaks. */
  onBroken?: (disk: string, error: BlockError) => void;
}

/** One disk of a fleecing, as it stands. */
export interface FleecingDiskInfo extends CopyBeforeWriteInfo {
  /** The disk's name. */
  disk: string;
  /** By which NBD and HTTP open its view. */
  exportName: string;
  /** The disk's size in bytes, and the view's. */
  sizeBytes: number;
}

/** A disk's part of the graph, as far as it was made. */
interface Part {
  readonly disk: FleecingDisk;
  readonly target: BlockNode;
  /** The temporary image's path, where it is ours. */
  readonly scratchPath: string | null;
  filter: CopyBeforeWriteNode | null;
  access: SnapshotAccessNode | null;
  blockExport: SnapshotExport | NodeExport | null;
}

/** A fleecing that stands. */
export class Fleecing {
  /** As given at the start. */
  readonly name: string;
  readonly #graph: BlockGraph;
  readonly #parts: readonly Part[];
  #stopping: Promise<void> | null = null;

  /** For FleecingStart. */
  constructor(name: string, graph: BlockGraph, parts: readonly Part[]) {
    this.name = name;
    this.#graph = graph;
    this.#parts = parts;
  }

  /** Freezes the disks. Throws a BlockError and leaves everything as it was where that fails. */
  static async start(graph: BlockGraph, options: FleecingOptions): Promise<Fleecing> {
    const start = new FleecingStart(graph, options);
    try {
      start.prepare();
      await graph.drained(start.nodes, () => {
        start.freeze();
        start.show();
      });
    } catch (error) {
      await start.undo();
      throw toBlockError(error);
    }
    return start.result();
  }

  /** The views, one for each disk, in the order of the disks. */
  get exports(): (SnapshotExport | NodeExport)[] {
    return this.#parts.flatMap(({ blockExport }) => blockExport ?? []);
  }

  /** How it stands, disk by disk. */
  info(): FleecingDiskInfo[] {
    return this.#parts.flatMap(({ disk, filter }) => {
      if (filter === null) return [];
      const { name, exportName } = disk;
      return { disk: name, exportName, sizeBytes: filter.sizeBytes, ...filter.info() };
    });
  }

  /** Takes it down, leaving nothing behind. May be repeated: waits for the same end. */
  stop(): Promise<void> {
    this.#stopping ??= takeDown(this.#graph, this.#parts).then((errors) => {
      if (errors[0] !== undefined) throw errors[0];
    });
    return this.#stopping;
  }
}

/** The start of a fleecing in steps, for transactions; `start` above is all of them. */
export class FleecingStart {
  readonly #graph: BlockGraph;
  readonly #options: FleecingOptions;
  readonly #parts: Part[] = [];

  /** Throws EINVAL where no disk is named, or one twice. */
  constructor(graph: BlockGraph, options: FleecingOptions) {
    checkDisks(options.disks);
    this.#graph = graph;
    this.#options = options;
  }

  /**
   * What the moment's drained section is to cover: all nodes of the stacks, since the upper ones may
   * be filters that go while the section begins.
   */
  get nodes(): BlockNode[] {
    return parentsFirst(this.#options.disks.map(({ backend }) => backend.node));
  }

  /** Makes what can be made before the moment. May fail halfway. */
  prepare(): void {
    const { disks, scratchDirectory } = this.#options;
    for (const disk of disks) this.#parts.push(prepare(this.#graph, disk, scratchDirectory));
  }

  /** The moment. Nothing is in flight, and nothing here waits. May fail halfway. */
  freeze(): void {
    freeze(this.#graph, this.#parts, this.#options);
  }

  /** Makes the views, all else having been done at the moment. May fail halfway. */
  show(): void {
    for (const part of this.#parts) show(this.#graph, part);
  }

  /** It stands. */
  result(): Fleecing {
    return new Fleecing(this.#options.name, this.#graph, this.#parts);
  }

  /** The way back, from wherever it came. */
  async undo(): Promise<void> {
    await takeDown(this.#graph, this.#parts);
  }
}

function checkDisks(disks: readonly FleecingDisk[]): void {
  if (disks.length === 0) throw new BlockError("EINVAL", "A fleecing needs at least one disk");
  const names = new Set(disks.map(({ name }) => name));
  if (names.size < disks.length) throw new BlockError("EINVAL", "A disk is named twice");
}

/** What can be made before the moment: the target. */
function prepare(graph: BlockGraph, disk: FleecingDisk, scratchDirectory: string): Part {
  const made = { disk, filter: null, access: null, blockExport: null };
  if (disk.target !== null) return { ...made, target: disk.target, scratchPath: null };
  const scratchPath = `${scratchDirectory}/fleecing-${crypto.randomUUID()}.img`;
  const target = FileNode.open({
    nodeName: "",
    path: scratchPath,
    isReadOnly: false,
    create: true,
    sizeBytes: disk.backend.sizeBytes,
  });
  graph.add(target);
  return { ...made, target, scratchPath };
}

function freeze(graph: BlockGraph, parts: readonly Part[], options: FleecingOptions): void {
  const budget = new ScratchBudget(options.scratchMaxBytes);
  for (const part of parts) {
    const { disk } = part;
    disk.bitmap?.checkConsistent();
    const below = disk.backend.node;
    const filter = new CopyBeforeWriteNode({
      nodeName: "",
      file: below,
      target: part.target,
      kernels: options.kernels,
      bitmap: disk.bitmap?.bits ?? null,
      onCbwError: options.onCbwError,
      cbwTimeoutSeconds: options.cbwTimeoutSeconds,
      minClusterSizeBytes: options.minClusterSizeBytes,
      budget,
      ...(options.clock ? { clock: options.clock } : {}),
      onBroken: (error) => options.onBroken?.(disk.name, error),
    });
    part.filter = filter;
    const edges = [...below.parents].filter((edge) => isChanger(edge, disk.backend));
    graph.add(filter);
    graph.replaceChildren(edges, filter);
  }
}

/** Makes the view of a disk whose filter stands. */
function show(graph: BlockGraph, part: Part): void {
  const { disk, filter, target } = part;
  if (filter === null) return;
  const shown = {
    name: disk.exportName,
    description: `disk ${disk.name}, frozen`,
    bitmaps: disk.exportBitmaps ?? [],
  };
  if (disk.isTargetView) {
    part.blockExport = new NodeExport(graph, { ...shown, nodeName: target.nodeName });
    return;
  }
  part.access = graph.add(new SnapshotAccessNode({ nodeName: "", file: filter }));
  part.blockExport = new SnapshotExport(graph, { ...shown, node: part.access });
}

/** Whether the filter goes into this edge: it is the device's, or somebody may write through it. */
function isChanger(edge: BlockEdge, backend: BlockBackend): boolean {
  return edge === backend.root || (edge.perm & PERM_WRITE) !== 0;
}

/** Takes down what there is, the last first, whatever fails. Returns what failed. */
async function takeDown(graph: BlockGraph, parts: readonly Part[]): Promise<unknown[]> {
  const errors: unknown[] = [];
  const attempt = async (action: () => unknown): Promise<void> => {
    try {
      await action();
    } catch (error) {
      errors.push(error);
    }
  };
  // First of all the guest: it no longer waits for copies that nobody will read.
  for (const { filter } of parts) filter?.endSnapshot();
  for (const part of [...parts].reverse()) {
    const { filter, access, blockExport, target, scratchPath } = part;
    await attempt(() => blockExport?.close());
    await attempt(() => access?.graph === graph ? graph.remove(access.nodeName) : access?.close());
    await attempt(() => filter?.graph === graph ? graph.removeFilter(filter) : filter?.close());
    if (scratchPath === null) continue;
    await attempt(() => graph.remove(target.nodeName));
    await attempt(() => Deno.removeSync(scratchPath));
  }
  return errors;
}
