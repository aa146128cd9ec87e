/**
 * The copy engine of `convert`: one or several disks, one behind the other, into a target that may
 * have a backing file, may be known to be zero, may be compressed.
 *
 *   cursor --chunk--> worker: read, look for zeroes --in order, unless told otherwise--> write
 *
 * Chunks are runs of one state (data, zero, left to the backing file) of bounded length, given out
 * by one cursor. Where source and target answer at once (local files) a single worker does all the
 * work within one call; where they don't (NBD, compression) the others have theirs in flight
 * meanwhile. The rules about what is written where are qemu-img's (convert_iteration_sectors,
 * convert_co_write).
 *
 * @module
 */

import { isZero } from "../../wasm/kernels.ts";
import { systemClock } from "../clock.ts";
import { FileNode } from "../drivers/file.ts";
import { IoVector } from "../io_vector.ts";
import type { BlockNode } from "../node.ts";
import { requestBuffer } from "../request_buffer.ts";
import { runSteps, settle, type Steps } from "../steps.ts";
import {
  type ByteRange,
  type MaybePromise,
  REQ_MAY_UNMAP,
  REQ_WRITE_COMPRESSED,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
} from "../types.ts";
import { type DiskRun, DiskStatus, sectorBytes } from "./chain.ts";

/**
 * What is copied at once where both answer within the call: what was read stays in the processor's
 * own cache until it is written, which makes copying twice as fast as 2 MiB at a time.
 */
const CHUNK_BYTES = 512 * 1024;
/** The same where answers are waited for. */
const REMOTE_CHUNK_BYTES = 2 * 1024 * 1024;
/** Signals and other work get their turn after so long at the latest, also where nothing waits. */
const TURN_MS = 250;
const SECTOR_BYTES = 512;
/** Zeroes within a cluster of up to this size are not worth a write of their own. */
const WHOLE_CLUSTER_BYTES = 65536;

/** How to copy. */
export interface ConvertOptions {
  /** Read one behind the other; each fills whole sectors. */
  sources: readonly BlockNode[];
  /** Where to. Large enough: see `sectorBytes`. */
  target: BlockNode;
  /** Zeroes of this length, at multiples of it, are not written. 0: everything is written. */
  sparseBytes: number;
  /** Whole clusters are written compressed. */
  isCompressed?: boolean;
  /** The target reads as zeroes everywhere. */
  isTargetZero: boolean;
  /** The target's backing node; what the source leaves to its own backing file, it leaves to. */
  targetBacking?: BlockNode | null;
  /** Chunks in flight. */
  parallel: number;
  /** Chunks may be written in any order. */
  isUnordered?: boolean;
  /** Data moves in the kernel where source and target can do that. */
  usesCopyRange?: boolean;
  /** Waits until so many bytes more may be written. */
  throttle?: (bytes: number) => Promise<void>;
  /** What can't be read becomes zeroes, and is told here. */
  salvage?: (error: ConvertError) => void;
  /** Told how far it is. */
  onProgress?: (doneBytes: number, totalBytes: number) => void;
}

/** Which step of a copy failed where. */
export class ConvertError extends Error {
  /** What stands before the message when it is printed. */
  override readonly name = "ConvertError";

  /** `offset`: in the target. The cause is the BlockError. */
  constructor(
    readonly step: "status" | "read" | "write",
    readonly offset: number,
    options: ErrorOptions,
  ) {
    super(options.cause instanceof Error ? options.cause.message : String(options.cause), options);
  }
}

/** Copies. Throws a ConvertError; the target then holds a part. */
export async function convertDisks(options: ConvertOptions): Promise<void> {
  const converter = new Converter(options);
  // What is there already may have holes that stay.
  if (options.isTargetZero) takeRoomAhead(options.target);
  const workers: Promise<void>[] = [];
  let failure: { error: unknown } | null = null;
  for (let index = 0; index < options.parallel && !converter.isDone; index++) {
    const worker = Promise.try(() => runSteps(converter.work()));
    workers.push(worker.catch((error) => {
      failure ??= { error };
      converter.stop();
    }));
  }
  await Promise.all(workers);
  if (failure !== null) throw (failure as { error: unknown }).error;
}

/** For a target that is written from start to end. */
function takeRoomAhead(target: BlockNode): void {
  for (const name of ["file", "data-file"]) {
    const node = target.children.get(name)?.node;
    if (node instanceof FileNode) node.takeRoomAhead();
  }
}

/** A run of one state, and what becomes of it. */
interface Chunk {
  /** In the target. */
  offset: number;
  length: number;
  kind: "data" | "zero" | "backing";
  source: Source;
  /** Where the bytes lie as they are. */
  host: DiskRun["host"];
  /** How far the run goes from here. */
  runBytes: number;
  /** Resolves when this chunk may be written; null: at once. */
  before: Promise<void> | null;
  /** Lets the next one be written. */
  written: () => void;
}

/** A run of a source. */
interface SourceRun {
  kind: Chunk["kind"];
  /** In the target. */
  start: number;
  end: number;
  /** Where the first of its bytes lies. */
  host: DiskRun["host"];
}

interface Source {
  node: BlockNode;
  status: DiskStatus;
  /** Where it begins in the target. */
  start: number;
  end: number;
}

class Converter {
  readonly #options: ConvertOptions;
  readonly #sources: Source[] = [];
  readonly #total: number;
  /** Data is looked for zeroes in this unit; whole clusters where it is compressed. */
  readonly #unit: number;
  readonly #clusterBytes: number;
  #chunkBytes: number;
  /** A request of the target did not answer at once. */
  #isWaiting = false;
  readonly #buffers: Uint8Array[] = [];
  #turnStartMs = systemClock.now();
  #offset = 0;
  #doneBytes = 0;
  #isStopped = false;
  /** The state of the run that the cursor is in. */
  #run: SourceRun | null = null;
  /** Somebody moves the cursor. */
  #moving: Promise<void> | null = null;
  /** The last chunk's write, as long as it has not ended. */
  #lastWrite: Promise<void> | null = null;

  constructor(options: ConvertOptions) {
    this.#options = options;
    let start = 0;
    for (const node of options.sources) {
      const end = start + sectorBytes(node);
      // With a backing file of its own the target wants to know what the source itself has.
      const base = options.targetBacking === undefined || options.targetBacking === null
        ? null
        : firstBacking(node);
      this.#sources.push({ node, status: new DiskStatus(node, base), start, end });
      start = end;
    }
    this.#total = start;
    this.#clusterBytes = options.target.clusterSizeBytes ?? SECTOR_BYTES;
    this.#unit = options.isCompressed ? this.#clusterBytes : Math.max(
      options.sparseBytes,
      options.isTargetZero && this.#clusterBytes <= WHOLE_CLUSTER_BYTES ? this.#clusterBytes : 0,
    );
    this.#chunkBytes = Math.max(CHUNK_BYTES, Math.min(this.#clusterBytes, REMOTE_CHUNK_BYTES));
  }

  get isDone(): boolean {
    return this.#isStopped || this.#offset >= this.#total;
  }

  /** No more chunks are given out. */
  stop(): void {
    this.#isStopped = true;
  }

  /** One worker: chunk after chunk. */
  *work(): Steps<void> {
    for (;;) {
      const chunk = yield* this.#next();
      if (chunk === null) return;
      try {
        yield* this.#copy(chunk);
      } finally {
        chunk.written();
      }
      this.#doneBytes += chunk.length;
      this.#options.onProgress?.(this.#doneBytes, this.#total);
      if (systemClock.now() - this.#turnStartMs < TURN_MS) continue;
      yield nextTurn();
      this.#turnStartMs = systemClock.now();
    }
  }

  /** The next chunk, null at the end. One worker at a time moves the cursor. */
  *#next(): Steps<Chunk | null> {
    while (this.#moving !== null) yield this.#moving;
    if (this.isDone) return null;
    const source = this.#sources.find(({ end }) => end > this.#offset);
    if (source === undefined) return null;
    if (this.#run === null || this.#run.end <= this.#offset) {
      const steps = this.#findRun(source);
      // Only a status that is not there yet lets other workers come in between.
      const found = runSteps(steps);
      if (found instanceof Promise) {
        this.#moving = found.then(() => {}, () => {}).finally(() => this.#moving = null);
      }
      this.#run = yield* settle(found);
    }
    return this.#takeChunk(source, this.#run);
  }

  *#findRun(source: Source): Steps<SourceRun> {
    const offset = this.#offset;
    const at = offset - source.start;
    const run = yield* this.#statusOf(source, at);
    // The last sector of a disk that does not fill it.
    const isEnd = at + run.length >= source.node.sizeBytes;
    let end = isEnd ? source.end : offset + run.length;
    const aligned = end - end % this.#clusterBytes;
    if (!isEnd && aligned > offset) end = aligned;
    return { kind: this.#kindOf(run, offset), start: offset, end, host: run.host };
  }

  *#statusOf({ node, status, start }: Source, at: number): Steps<DiskRun> {
    try {
      return yield* status.at(at, node.sizeBytes - at);
    } catch (cause) {
      const error = new ConvertError("status", start + at, { cause });
      if (this.#options.salvage === undefined) throw error;
      this.#options.salvage(error);
      const length = Math.min(this.#chunkBytes, node.sizeBytes - at);
      return { length, flags: STATUS_DATA | STATUS_ALLOCATED, depth: 0, host: null };
    }
  }

  #kindOf({ flags }: DiskRun, offset: number): Chunk["kind"] {
    const { targetBacking = null } = this.#options;
    if ((flags & STATUS_ZERO) !== 0) {
      return targetBacking !== null && offset >= targetBacking.sizeBytes ? "backing" : "zero";
    }
    // What only the source's backing file has.
    return targetBacking !== null && (flags & STATUS_ALLOCATED) === 0 ? "backing" : "data";
  }

  #takeChunk(source: Source, run: SourceRun): Chunk {
    const offset = this.#offset;
    let { kind } = run;
    let length = Math.min(run.end, source.end) - offset;
    if (kind === "data" || (kind === "zero" && this.#options.sparseBytes === 0)) {
      length = Math.min(length, this.#chunkBytes);
    }
    if (this.#options.isCompressed) {
      // Compressed clusters are written whole.
      const left = source.end - offset;
      if (length < this.#clusterBytes) {
        if (length < left) kind = "data";
        length = Math.min(this.#clusterBytes, left);
      } else if (length < left) length -= length % this.#clusterBytes;
    }
    this.#offset += length;
    // Compressed clusters are put where there is room: they have no order to keep.
    const { isUnordered, isCompressed } = this.#options;
    const before = isUnordered || isCompressed ? null : this.#lastWrite;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#lastWrite = promise;
    const written = (): void => {
      resolve();
      if (this.#lastWrite === promise) this.#lastWrite = null;
    };
    const host = run.host && { ...run.host, offset: run.host.offset + offset - run.start };
    return { offset, length, kind, source, host, runBytes: run.end - offset, before, written };
  }

  *#copy(chunk: Chunk): Steps<void> {
    const { sparseBytes } = this.#options;
    if (chunk.kind === "backing") return;
    if (chunk.kind === "zero" && sparseBytes > 0) {
      yield* this.#turn(chunk);
      return yield* this.#writeZeroes(chunk.offset, chunk.length);
    }
    if (this.#options.usesCopyRange && (yield* this.#copyRange(chunk))) return;
    if (yield* this.#copySeen(chunk)) return;
    const buffer = this.#takeBuffer(chunk.length);
    try {
      const data = buffer.subarray(0, chunk.length);
      if (chunk.kind === "zero") data.fill(0);
      else yield* this.#read(chunk, data);
      yield* this.#turn(chunk);
      yield* this.#writeRuns(chunk.offset, data);
    } finally {
      this.#buffers.push(buffer);
    }
  }

  /**
   * Writes data from where it lies in a file, without reading it; false where that can't be done.
   * What is seen must not be another place of the file before it is written: as soon as the target
   * lets somebody wait, nobody looks any more.
   */
  *#copySeen(chunk: Chunk): Steps<boolean> {
    const { isCompressed, throttle } = this.#options;
    // Compressors need data that nobody changes meanwhile.
    if (this.#isWaiting || chunk.kind !== "data" || isCompressed || throttle) return false;
    if (chunk.before !== null) yield chunk.before;
    if (this.#isWaiting) return false;
    const data = chunk.source.status.view(chunk.host, chunk.length, chunk.runBytes);
    if (data === null) return false;
    yield* this.#writeRuns(chunk.offset, data);
    return true;
  }

  #takeBuffer(length: number): Uint8Array {
    const buffer = this.#buffers.pop();
    return buffer !== undefined && buffer.length >= length
      ? buffer
      : requestBuffer(this.#chunkBytes);
  }

  /** Waits for the chunk's turn and for the rate limit. */
  *#turn(chunk: Chunk): Steps<void> {
    if (chunk.before !== null) yield chunk.before;
    const { throttle } = this.#options;
    if (throttle !== undefined) yield throttle(chunk.length);
  }

  *#read(chunk: Chunk, data: Uint8Array): Steps<void> {
    const { node, start } = chunk.source;
    const at = chunk.offset - start;
    const length = Math.min(data.length, Math.max(node.sizeBytes - at, 0));
    data.fill(0, length);
    try {
      yield* settle(node.read(at, IoVector.of(data.subarray(0, length))));
    } catch (cause) {
      if (this.#options.salvage === undefined) {
        throw new ConvertError("read", chunk.offset, { cause });
      }
      yield* this.#salvage(chunk, data.subarray(0, length));
    }
  }

  /** Sector by sector; what can't be read is zero. */
  *#salvage(chunk: Chunk, data: Uint8Array): Steps<void> {
    const { node, start } = chunk.source;
    for (let done = 0; done < data.length; done += SECTOR_BYTES) {
      const sector = data.subarray(done, done + SECTOR_BYTES);
      try {
        yield* settle(node.read(chunk.offset - start + done, IoVector.of(sector)));
      } catch (cause) {
        this.#options.salvage?.(new ConvertError("read", chunk.offset + done, { cause }));
        sector.fill(0);
      }
    }
  }

  /** Writes what is not zero; what is, only where the target does not read so by itself. */
  *#writeRuns(offset: number, data: Uint8Array): Steps<void> {
    if (this.#options.sparseBytes === 0) return yield* this.#write(offset, data);
    for (const run of zeroAndDataRuns(data, offset, this.#unit)) {
      if (run.isZero) yield* this.#writeZeroes(offset + run.offset, run.length);
      else {
        const part = data.subarray(run.offset, run.offset + run.length);
        yield* this.#write(offset + run.offset, part);
      }
    }
  }

  *#write(offset: number, data: Uint8Array): Steps<void> {
    const { target, isCompressed } = this.#options;
    // The target may end within the last sector, as the source does.
    const part = data.subarray(0, Math.max(target.sizeBytes - offset, 0));
    try {
      const flags = isCompressed ? REQ_WRITE_COMPRESSED : 0;
      yield* this.#watched(target.write(offset, IoVector.of(part), flags));
    } catch (cause) {
      throw new ConvertError("write", offset, { cause });
    }
  }

  /** Chunks are larger from the first one that is waited for. */
  #watched(request: MaybePromise<void>): Steps<void> {
    if (request instanceof Promise) {
      this.#isWaiting = true;
      if (!this.#options.isCompressed) {
        this.#chunkBytes = Math.max(this.#chunkBytes, REMOTE_CHUNK_BYTES);
      }
    }
    return settle(request);
  }

  *#writeZeroes(offset: number, length: number): Steps<void> {
    const { target, isTargetZero } = this.#options;
    if (isTargetZero) return;
    const end = Math.min(offset + length, target.sizeBytes);
    try {
      const length = Math.max(end - offset, 0);
      yield* this.#watched(target.writeZeroes(offset, length, REQ_MAY_UNMAP));
    } catch (cause) {
      throw new ConvertError("write", offset, { cause });
    }
  }

  /** Copies in the kernel; false where that can't be done, then nothing has changed for good. */
  *#copyRange(chunk: Chunk): Steps<boolean> {
    const { target } = this.#options;
    if (chunk.kind !== "data" || chunk.host === null || target.driver !== "raw") return false;
    const file = target.children.get("file")?.node;
    if (file?.driver !== "file" || chunk.host.node.driver !== "file") return false;
    yield* this.#turn(chunk);
    const length = Math.min(chunk.length, target.sizeBytes - chunk.offset);
    const offset = chunk.offset + Number(target.details()["offset"] ?? 0);
    const range = { sourceOffset: chunk.host.offset, offset, length };
    return (file as FileNode).copyFrom(chunk.host.node as FileNode, range);
  }
}

/** The first node of the chain that the disk's own node does not itself hold. */
function firstBacking(node: BlockNode): BlockNode | null {
  return node.backing?.node ?? null;
}

/** A turn of the event loop, without the runtime's timers: to load those takes 13 ms. */
async function nextTurn(): Promise<void> {
  const word = new Int32Array(new SharedArrayBuffer(4));
  await Atomics.waitAsync(word, 0, 0, 1).value;
}

/** Runs of zero and of other units, in turn. The units lie at multiples of `unit` on the disk. */
export function* zeroAndDataRuns(
  data: Uint8Array,
  diskOffset: number,
  unit: number,
): Generator<ByteRange & { isZero: boolean }> {
  let runStart = 0;
  let isRunZero = false;
  for (let start = 0; start < data.length;) {
    const end = Math.min(data.length, start + unit - (diskOffset + start) % unit);
    const isUnitZero = data[start] === 0 && isZero(data.subarray(start, end));
    if (start > 0 && isUnitZero !== isRunZero) {
      yield { offset: runStart, length: start - runStart, isZero: isRunZero };
      runStart = start;
    }
    isRunZero = isUnitZero;
    start = end;
  }
  if (data.length > 0) {
    yield { offset: runStart, length: data.length - runStart, isZero: isRunZero };
  }
}
