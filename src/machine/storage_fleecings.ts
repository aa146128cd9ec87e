/**
 * The fleecings of an I/O worker's disks, and what bitmaps have to do with them.
 *
 *   start:     since     recording --> still, limits the view, shown by the export
 *              checkpoint (none)   --> recording                        one moment
 *   success:   since     --> gone           checkpoint stays
 *   failure:   checkpoint --merged--> since, which records on           one moment; checkpoint gone
 *
 * Without a checkpoint a bitmap of our own stands for it, and every end is as a failure: `since`
 * goes on to mark what changed since its own moment (a differential backup).
 *
 * A disk whose `since` is missing or inconsistent is read as a whole; a success then removes what is
 * left of it. Ends that nobody asked for (the worker closes) are failures: nothing is missed.
 *
 * @module
 */

import type { BlockLayer } from "../block/block_layer.ts";
import type { BitmapAction } from "../block/bitmap_actions.ts";
import type { DirtyBitmap, DirtyBitmaps } from "../block/dirty_bitmap.ts";
import { BlockError } from "../block/errors.ts";
import type { Fleecing, FleecingDisk, FleecingOptions } from "../block/fleecing.ts";
import type { BlockNode } from "../block/node.ts";
import { limits } from "../limits.ts";
import type { MachineExports } from "./exports.ts";
import { toWireError } from "./io_rpc.ts";
import type { FleecingInfo, FleecingRequest, FleecingResult, IoEvent } from "./messages.ts";
import { removeChain, type StorageDisk, type StorageDisks } from "./storage_disks.ts";
import type { StorageImages } from "./storage_images.ts";

/** What they need of their worker. */
export interface FleecingSurroundings {
  /** Of the machine or the disk: begins export names. */
  name: string;
  /** Where filters and bitmaps are. */
  block: BlockLayer;
  /** Makes the overlays of the old scheme. */
  images: StorageImages;
  /** What can be frozen. */
  disks: StorageDisks;
  /** Takes the views. */
  exports: MachineExports;
  /** Where temporary images go unless a request says otherwise. */
  scratchDirectory: string;
  /** Says that a view broke. */
  emit: (event: IoEvent) => void;
  /** Ends the sessions on an export that can't be opened any more. */
  closeSessions: (exportName: string) => Promise<unknown>;
}

/** A fleecing that is about to start. */
export interface BegunFleecing {
  /** For the block layer. */
  readonly options: FleecingOptions;
  /** Changes of bitmaps at the same moment, after its own action. */
  readonly changes: readonly BitmapAction[];
  /** It stands. */
  readonly accept: (fleecing: Fleecing) => FleecingInfo;
  /** It does not: nothing is left. */
  readonly reject: () => Promise<void>;
}

/** A disk in a fleecing. */
interface Part {
  disk: StorageDisk;
  /** Whose bitmaps they are: the active image at the start. */
  node: BlockNode;
  since: DirtyBitmap | null;
  /** Why `since` could not be used. */
  reason: string | null;
  /** An overlay of the old scheme, with its path. */
  overlay: { node: BlockNode; path: string } | null;
}

interface Standing {
  fleecing: Fleecing;
  request: FleecingRequest;
  parts: Part[];
}

/** See the module's head. Calls must not overlap: the worker carries them out in turn. */
export class StorageFleecings {
  readonly #around: FleecingSurroundings;
  readonly #standing = new Map<string, Standing>();

  /** None stands. */
  constructor(around: FleecingSurroundings) {
    this.#around = around;
  }

  /**
   * What a fleecing is made of, to be started in a transaction with `changes` of bitmaps behind it.
   * Either `accept` or `reject` is called then.
   */
  async begin(request: FleecingRequest): Promise<BegunFleecing> {
    this.#checkNew(request);
    const { emit, block: { kernels, bitmaps } } = this.#around;
    const { name } = request;
    const scratchDirectory = request.scratchDirectory ?? this.#around.scratchDirectory;
    const parts: Part[] = [];
    const reject = () => this.#dropOverlays(parts);
    try {
      for (const disk of request.disks) parts.push(await this.#prepare(disk, request));
      const options = {
        ...request,
        disks: parts.map((part) => this.#describePart(part, request)),
        scratchDirectory,
        kernels,
        onBroken: (disk: string, error: BlockError) =>
          emit({ type: "fleecingBroken", fleecing: name, disk, error: toWireError(error) }),
      };
      const changes = startActions(parts, { request, bitmaps });
      const accept = (fleecing: Fleecing) => this.#accept({ fleecing, request, parts });
      return { options, changes, accept, reject };
    } catch (error) {
      await reject();
      throw error;
    }
  }

  #accept(standing: Standing): FleecingInfo {
    const { fleecing } = standing;
    this.#around.exports.add(fleecing.exports);
    this.#standing.set(fleecing.name, standing);
    return this.info(fleecing.name);
  }

  /** How it stands. Throws ENOENT. */
  info(name: string): FleecingInfo {
    const { fleecing, request, parts } = this.#get(name);
    const disks = fleecing.info().map((info) => {
      const part = parts.find(({ disk }) => disk.config.name === info.disk);
      const incremental = request.since === null
        ? null
        : { isIncremental: part?.since !== null, reason: part?.reason ?? null };
      return { ...info, incremental };
    });
    return { name, disks };
  }

  /** Ends it: readers first. */
  async end(name: string, result: FleecingResult): Promise<void> {
    const standing = this.#get(name);
    const { brokenBy } = standing.fleecing.info().find((info) => info.brokenBy !== null) ?? {};
    if (result === "success" && brokenBy) {
      throw new BlockError("EBUSY", `the view broke, which is no success: ${brokenBy}`);
    }
    await this.#takeDown(standing, result);
  }

  /** Ends all, the newest first, whatever fails: then throws the first failure. */
  async close(): Promise<void> {
    const failures: unknown[] = [];
    for (const standing of [...this.#standing.values()].reverse()) {
      await this.#takeDown(standing, "failure").catch((error: unknown) => failures.push(error));
    }
    if (failures.length > 0) throw failures[0];
  }

  #get(name: string): Standing {
    const standing = this.#standing.get(name);
    if (standing === undefined) {
      throw new BlockError("ENOENT", `there is no fleecing named ${name}`);
    }
    return standing;
  }

  #checkNew({ name, scheme, since, bitmap }: FleecingRequest): void {
    if (this.#standing.has(name)) {
      throw new BlockError("EBUSY", `there is a fleecing named ${name} already`);
    }
    if (this.#standing.size >= limits.fleecingsPerVm) {
      throw new BlockError("EBUSY", `there are ${limits.fleecingsPerVm} fleecings already`);
    }
    if (since !== null && bitmap !== null) {
      throw new BlockError("EINVAL", "a fleecing takes since or a bitmap, not both");
    }
    if (scheme === "old" && bitmap !== null) {
      throw new BlockError("EINVAL", "the old scheme can't limit its view to a bitmap");
    }
  }

  async #prepare(name: string, request: FleecingRequest): Promise<Part> {
    const disk = this.#around.disks.get(name);
    const { node } = disk;
    const part: Part = { disk, node, since: null, reason: null, overlay: null };
    if (request.since !== null) {
      const found = this.#around.block.bitmaps.list(node).find((bitmap) =>
        bitmap.name === request.since
      );
      if (found === undefined) part.reason = `disk ${name} has no bitmap ${request.since}`;
      else if (found.isInconsistent) {
        part.reason = `bitmap ${request.since} of disk ${name} missed changes in a crash`;
      } else {
        found.check("use");
        part.since = found;
      }
    }
    if (request.scheme === "old") {
      const directory = request.scratchDirectory ?? this.#around.scratchDirectory;
      const path = `${directory}/fleecing-${crypto.randomUUID()}.qcow2`;
      const overlay = await this.#makeOverlay(path, disk.backend.node);
      part.overlay = { node: overlay, path };
    }
    return part;
  }

  /** A qcow2 image whose backing node is what the guest works on now. */
  async #makeOverlay(path: string, below: BlockNode): Promise<BlockNode> {
    const { images, block: { graph } } = this.#around;
    const { sizeBytes } = below;
    const image = {
      path,
      format: "qcow2",
      sizeBytes,
      clusterSizeBytes: null,
      backing: null,
    } as const;
    const overlay = await images.make(image);
    try {
      await graph.drained([overlay, below], () => graph.setBacking(overlay, below));
      return overlay;
    } catch (error) {
      await removeChain(graph, overlay);
      images.discard(path);
      throw error;
    }
  }

  #describePart({ disk, node, since, overlay }: Part, request: FleecingRequest): FleecingDisk {
    const { name } = disk.config;
    const { bitmap } = request;
    return {
      name,
      exportName: `${this.#around.name}-${name}-${request.name}`,
      backend: disk.backend,
      bitmap: overlay === null
        ? since ?? (bitmap === null ? null : this.#around.block.bitmaps.get(node, bitmap))
        : null,
      target: overlay?.node ?? null,
      isTargetView: overlay !== null,
      exportBitmaps: since === null ? [] : [since],
    };
  }

  async #takeDown(standing: Standing, result: FleecingResult): Promise<void> {
    const { fleecing, parts, request } = standing;
    const { exports, closeSessions, block: { bitmaps } } = this.#around;
    const names = fleecing.exports.map(({ name }) => name);
    for (const name of names) exports.remove(name);
    await Promise.all(names.map(closeSessions));
    this.#standing.delete(fleecing.name);
    try {
      await fleecing.stop();
      await this.#dropOverlays(parts);
    } finally {
      const actions = endActions(parts, { request, result, bitmaps });
      const { runTransaction } = await import("../block/transaction.ts");
      await runTransaction(this.#around.block, actions);
    }
  }

  /** Nothing of the old scheme's images is needed after the fleecing. */
  async #dropOverlays(parts: readonly Part[]): Promise<void> {
    for (const part of parts) {
      if (part.overlay === null) continue;
      const { node, path } = part.overlay;
      part.overlay = null;
      await removeChain(this.#around.block.graph, node);
      this.#around.images.discard(path);
    }
  }
}

/** What records from the moment on, null: nothing does. */
function recorderOf({ name, since, checkpoint }: FleecingRequest): string | null {
  return checkpoint ?? (since === null ? null : `ovis-fleecing-${name}`);
}

/** A bitmap that missed changes is of no use to anybody: its name is free. */
function startActions(
  parts: readonly Part[],
  { request, bitmaps }: { request: FleecingRequest; bitmaps: DirtyBitmaps },
): BitmapAction[] {
  const recorder = recorderOf(request);
  return parts.flatMap(({ node, since }) => {
    const actions: BitmapAction[] = [];
    const known = bitmaps.list(node).find(({ name }) => name === recorder);
    if (known?.isInconsistent) actions.push({ type: "remove", node, name: known.name });
    if (since !== null) actions.push({ type: "disable", node, name: since.name });
    if (recorder !== null && (since !== null || request.checkpoint !== null)) {
      const persistent = node.bitmapStore !== null && request.checkpoint !== null;
      actions.push({ type: "add", node, options: { name: recorder, persistent } });
    }
    return actions;
  });
}

/** Bitmaps that were removed meanwhile are passed over. */
function endActions(
  parts: readonly Part[],
  { request, result, bitmaps }: {
    request: FleecingRequest;
    result: FleecingResult;
    bitmaps: DirtyBitmaps;
  },
): BitmapAction[] {
  const recorder = recorderOf(request);
  const isKept = result === "success" && request.checkpoint !== null;
  return parts.flatMap(({ node, since, reason }) => {
    const known = new Set(bitmaps.list(node).map(({ name }) => name));
    const hasRecorder = recorder !== null && known.has(recorder);
    const hasSince = request.since !== null && known.has(request.since);
    if (isKept) {
      return hasSince ? [{ type: "remove" as const, node, name: request.since ?? "" }] : [];
    }
    const actions: BitmapAction[] = [];
    if (hasRecorder) {
      if (since !== null && hasSince && reason === null) {
        const merged = [{ node, name: recorder }];
        actions.push({ type: "merge", node, target: since.name, bitmaps: merged });
      }
      actions.push({ type: "remove", node, name: recorder });
    }
    if (since !== null && hasSince) actions.push({ type: "enable", node, name: since.name });
    return actions;
  });
}
