/**
 * virtio-blk (virtio 1.2, 5.2): requests of a guest's driver, carried out on a block backend.
 *
 * Data moves directly between guest RAM and the backend: the buffers of a request are views of the
 * shared memory. A request that the backend answers at once is finished within `process`; others
 * finish whenever they do, in any order. Each gets its status byte; a chain without room for one
 * breaks the queue, since there is no other way to say anything about it.
 *
 *   running --status 0 written--> resetting (takes nothing more) --nothing in flight--> running
 *
 * @module
 */

import type { BlockErrorCode } from "../block/errors.ts";
import { toBlockError } from "../block/errors.ts";
import { IoVector } from "../block/io_vector.ts";
import { REQ_FUA, REQ_MAY_UNMAP } from "../block/types.ts";
import type { MaybePromise } from "../block/types.ts";
import { limits } from "../limits.ts";
import { nextTurn } from "./event_loop.ts";
import type { GuestMemory } from "./guest_memory.ts";
import {
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_VERSION_1,
} from "./virtio_transport.ts";
import type { VirtioTransport } from "./virtio_transport.ts";
import { Virtqueue } from "./virtqueue.ts";
import type { VirtqueueChain } from "./virtqueue.ts";

const VIRTIO_ID_BLOCK = 2;

const VIRTIO_BLK_F_SIZE_MAX = 1n << 1n;
const VIRTIO_BLK_F_SEG_MAX = 1n << 2n;
const VIRTIO_BLK_F_RO = 1n << 5n;
const VIRTIO_BLK_F_BLK_SIZE = 1n << 6n;
const VIRTIO_BLK_F_FLUSH = 1n << 9n;
const VIRTIO_BLK_F_TOPOLOGY = 1n << 10n;
const VIRTIO_BLK_F_DISCARD = 1n << 13n;
const VIRTIO_BLK_F_WRITE_ZEROES = 1n << 14n;

const VIRTIO_BLK_T_IN = 0;
const VIRTIO_BLK_T_OUT = 1;
const VIRTIO_BLK_T_FLUSH = 4;
const VIRTIO_BLK_T_GET_ID = 8;
const VIRTIO_BLK_T_DISCARD = 11;
const VIRTIO_BLK_T_WRITE_ZEROES = 13;

const VIRTIO_BLK_S_OK = 0;
const VIRTIO_BLK_S_IOERR = 1;
const VIRTIO_BLK_S_UNSUPP = 2;

const VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1;

const SECTOR_BYTES = 512;
const HEADER_BYTES = 16;
const RANGE_BYTES = 16;
const ID_BYTES = 20;
const CONFIG_BYTES = 60;
/** Ranges of one discard or write-zeroes request. */
const RANGES_MAX = 16;
/** What the guest is asked to keep a buffer below; a longer one is fine too. */
const SEGMENT_BYTES_MAX = 1024 * 1024;
/** 2^3 sectors: the page of the host's cache; 128 sectors: a cluster of a fleecing. */
const PHYSICAL_BLOCK_EXPONENT = 3;
const OPTIMAL_IO_SECTORS = 128;
/** A longer transfer is made in pieces of this size, between which others get their turn. */
const PIECE_BYTES = 4 * 1024 * 1024;
/** The same for discards and write-zeroes, which mostly move no data. */
const CLEAR_PIECE_BYTES = 64 * 1024 * 1024;
/** What one call of `process` may do before others get their turn. */
const TURN_REQUESTS = 32;
const TURN_BYTES = 4 * 1024 * 1024;

/** What a disk needs of a block backend. Requests are in range and whole sectors. */
export interface VirtioBlkBackend {
  /** A multiple of a sector; a rest is not shown to the guest. */
  readonly sizeBytes: number;
  /** Fills `target` from `offset` on. */
  read(offset: number, target: IoVector): MaybePromise<void>;
  /** Writes `source` at `offset`. `flags`: REQ_FUA. */
  write(offset: number, source: IoVector, flags?: number): MaybePromise<void>;
  /** Makes a range read as zeroes. `flags`: REQ_FUA, REQ_MAY_UNMAP. */
  writeZeroes(offset: number, length: number, flags?: number): MaybePromise<void>;
  /** Says that a range's content is no longer needed. */
  discard(offset: number, length: number): MaybePromise<void>;
  /** Resolves when everything answered before is on stable storage. */
  flush(): MaybePromise<void>;
}

/** A range of a discard or write-zeroes request. */
interface SectorRange {
  offset: number;
  length: number;
  isUnmap: boolean;
}

/** A request that is refused with a status before it reaches the backend. */
class Refusal {
  constructor(readonly status: number) {}
}

const IO_ERROR = new Refusal(VIRTIO_BLK_S_IOERR);
const UNSUPPORTED = new Refusal(VIRTIO_BLK_S_UNSUPP);

/** The status that a failed request ends with: the one place that knows. */
export function statusOfError(code: BlockErrorCode): number {
  return code === "ENOTSUP" ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR;
}

/** A disk in a virtio slot. */
export class VirtioBlk {
  readonly #transport: VirtioTransport;
  readonly #memory: GuestMemory;
  readonly #backend: VirtioBlkBackend;
  readonly #isReadOnly: boolean;
  readonly #serial: Uint8Array;
  readonly #queue: Virtqueue;
  /** The header read last. */
  #type = 0;
  #sector = 0;
  /** Bytes moved in the turn under way. */
  #turnBytes = 0;
  #isSignalDue = false;
  #isResetting = false;
  /** Called when nothing is in flight any more. */
  #onIdle: (() => void) | null = null;

  /** The device does nothing before `announce`. */
  constructor(
    transport: VirtioTransport,
    options: { backend: VirtioBlkBackend; isReadOnly: boolean; serial: string },
  ) {
    this.#transport = transport;
    this.#memory = transport.memory;
    this.#backend = options.backend;
    this.#isReadOnly = options.isReadOnly;
    this.#serial = new TextEncoder().encode(options.serial).subarray(0, ID_BYTES);
    this.#queue = new Virtqueue(transport, 0);
  }

  /** What the driver did to break the queue; empty if it did not. */
  get brokenBy(): string {
    return this.#queue.brokenBy;
  }

  /**
   * Puts the disk into its slot: at a machine's start, with the harts parked and nothing in flight.
   */
  announce(): void {
    this.#queue.reset();
    this.#isResetting = false;
    this.#transport.announce({
      deviceId: VIRTIO_ID_BLOCK,
      features: VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC |
        VIRTIO_BLK_F_SIZE_MAX | VIRTIO_BLK_F_SEG_MAX | VIRTIO_BLK_F_BLK_SIZE |
        VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_TOPOLOGY |
        (this.#isReadOnly ? VIRTIO_BLK_F_RO : VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES),
      queueCount: 1,
      queueSize: limits.queueSize,
      config: this.#describe(),
    });
  }

  /** The backend has another size: the driver hears of it (5.2.6.1). */
  resized(): void {
    this.#transport.updateConfig(this.#describe());
  }

  /**
   * Serves what the driver has asked for, up to a turn's worth. True if there is more: the caller
   * comes back after others had their turn.
   */
  process(): boolean {
    this.#transport.takeNotifications();
    if (this.#transport.isResetAsked) {
      // Chains that are out belong to the driver again: the queue drops them when they come back.
      this.#isResetting = true;
      this.#queue.reset();
      this.#finishResetIfIdle();
      return false;
    }
    if (!this.#transport.isLive || !this.#queue.activate()) return false;
    this.#turnBytes = 0;
    let requestCount = 0;
    do {
      this.#queue.suppressNotifications();
      for (let chain = this.#queue.pop(); chain !== null; chain = this.#queue.pop()) {
        this.#start(chain);
        if (++requestCount >= TURN_REQUESTS || this.#turnBytes >= TURN_BYTES) {
          this.#queue.signal();
          return true;
        }
      }
      this.#queue.signal();
    } while (this.#queue.wantNotifications());
    return false;
  }

  /** Resolves when nothing is in flight. The caller sees to it that nothing new is started. */
  async drain(): Promise<void> {
    while (this.#queue.inFlight > 0) {
      await new Promise<void>((resolve) => {
        const previous = this.#onIdle;
        this.#onIdle = () => {
          previous?.();
          resolve();
        };
      });
    }
  }

  /** 5.2.4: the configuration space. */
  #describe(): Uint8Array {
    const config = new Uint8Array(CONFIG_BYTES);
    const view = new DataView(config.buffer);
    const blockSectors = 1 << PHYSICAL_BLOCK_EXPONENT;
    const sectorCount = Math.floor(this.#backend.sizeBytes / SECTOR_BYTES);
    view.setBigUint64(0, BigInt(sectorCount), true); // capacity
    view.setUint32(8, SEGMENT_BYTES_MAX, true); // size_max
    view.setUint32(12, limits.segmentCount, true); // seg_max
    view.setUint32(20, SECTOR_BYTES, true); // blk_size
    view.setUint8(24, PHYSICAL_BLOCK_EXPONENT);
    view.setUint16(26, blockSectors, true); // min_io_size
    view.setUint32(28, OPTIMAL_IO_SECTORS, true);
    view.setUint8(32, 1); // writeback
    view.setUint16(34, 1, true); // num_queues
    view.setUint32(36, limits.discardSectors, true);
    view.setUint32(40, RANGES_MAX, true); // max_discard_seg
    view.setUint32(44, blockSectors, true); // discard_sector_alignment
    view.setUint32(48, limits.discardSectors, true); // max_write_zeroes_sectors
    view.setUint32(52, RANGES_MAX, true); // max_write_zeroes_seg
    view.setUint8(56, 1); // write_zeroes_may_unmap
    return config;
  }

  /** Starts a request; answers it if it is finished at once. */
  #start(chain: VirtqueueChain): void {
    if (chain.writableBytes === 0) {
      this.#queue.breakChain(chain, "a request without a status byte");
      return;
    }
    let pending: MaybePromise<void>;
    try {
      const outcome = this.#execute(chain);
      if (outcome instanceof Refusal) return this.#finish(chain, outcome.status);
      pending = outcome;
    } catch (error) {
      return this.#finish(chain, statusOfError(toBlockError(error).code));
    }
    if (!(pending instanceof Promise)) return this.#finish(chain, VIRTIO_BLK_S_OK);
    pending.then(
      () => this.#finishLater(chain, VIRTIO_BLK_S_OK),
      (error) => this.#finishLater(chain, statusOfError(toBlockError(error).code)),
    );
  }

  #execute(chain: VirtqueueChain): MaybePromise<void> | Refusal {
    if (chain.readableBytes < HEADER_BYTES) return IO_ERROR;
    this.#readHeader(chain);
    const sector = this.#sector;
    const type = this.#type;
    switch (type) {
      case VIRTIO_BLK_T_IN:
        return this.#transfer(chain, { sector, length: chain.writableBytes - 1, isRead: true });
      case VIRTIO_BLK_T_OUT:
        if (this.#isReadOnly) return IO_ERROR;
        return this.#transfer(chain, {
          sector,
          length: chain.readableBytes - HEADER_BYTES,
          isRead: false,
        });
      case VIRTIO_BLK_T_FLUSH:
        return this.#backend.flush();
      case VIRTIO_BLK_T_GET_ID:
        return this.#writeId(chain);
      case VIRTIO_BLK_T_DISCARD:
      case VIRTIO_BLK_T_WRITE_ZEROES:
        return this.#clear(chain, type);
      default:
        return UNSUPPORTED;
    }
  }

  /** 2.7.4.1: a header may come in any pieces; in practice it comes in one. */
  #readHeader(chain: VirtqueueChain): void {
    let view: DataView = this.#memory.view;
    let at = chain.offsets[0] ?? 0;
    if ((chain.lengths[0] ?? 0) < HEADER_BYTES) {
      const header = new Uint8Array(HEADER_BYTES);
      chain.readInto(this.#memory, header, 0);
      view = new DataView(header.buffer);
      at = 0;
    }
    this.#type = view.getUint32(at, true);
    this.#sector = view.getUint32(at + 12, true) * 0x1_0000_0000 + view.getUint32(at + 8, true);
  }

  #transfer(
    chain: VirtqueueChain,
    request: { sector: number; length: number; isRead: boolean },
  ): MaybePromise<void> | Refusal {
    const { length, isRead } = request;
    const offset = request.sector * SECTOR_BYTES;
    if (length % SECTOR_BYTES !== 0 || !this.#isInside(offset, length)) return IO_ERROR;
    // Buffers of an honest request do not overlap: it can't be larger than RAM.
    if (length > this.#memory.ramBytes) return IO_ERROR;
    if (length === 0) return;
    this.#turnBytes += length;
    if (isRead) chain.filledBytes = length;
    if (length <= PIECE_BYTES) {
      return this.#transferPiece(chain, { offset, length, skip: 0, isRead });
    }
    return this.#transferInPieces(chain, { offset, length, isRead });
  }

  async #transferInPieces(
    chain: VirtqueueChain,
    request: { offset: number; length: number; isRead: boolean },
  ): Promise<void> {
    for (let skip = 0; skip < request.length; skip += PIECE_BYTES) {
      await this.#transferPiece(chain, {
        offset: request.offset + skip,
        length: Math.min(PIECE_BYTES, request.length - skip),
        skip,
        isRead: request.isRead,
      });
      await nextTurn();
    }
  }

  #transferPiece(
    chain: VirtqueueChain,
    piece: { offset: number; length: number; skip: number; isRead: boolean },
  ): MaybePromise<void> {
    const { offset, length, skip, isRead } = piece;
    if (isRead) {
      return this.#backend.read(offset, new IoVector(chain.writable(this.#memory, skip, length)));
    }
    const source = new IoVector(chain.readable(this.#memory, HEADER_BYTES + skip, length));
    // 5.2.6.2: to a driver that can't flush, a finished write is a stable one.
    const canFlush = (this.#transport.features & VIRTIO_BLK_F_FLUSH) !== 0n;
    return this.#backend.write(offset, source, canFlush ? 0 : REQ_FUA);
  }

  #writeId(chain: VirtqueueChain): void {
    const id = new Uint8Array(ID_BYTES);
    id.set(this.#serial);
    const length = Math.min(ID_BYTES, chain.writableBytes - 1);
    new IoVector(chain.writable(this.#memory, 0, length)).copyFrom(id.subarray(0, length));
    chain.filledBytes = length;
  }

  /** Discard and write-zeroes: all ranges are looked at before the first is touched. */
  #clear(chain: VirtqueueChain, type: number): MaybePromise<void> | Refusal {
    if (this.#isReadOnly) return IO_ERROR;
    const byteCount = chain.readableBytes - HEADER_BYTES;
    const rangeCount = byteCount / RANGE_BYTES;
    if (rangeCount < 1 || rangeCount > RANGES_MAX || byteCount % RANGE_BYTES !== 0) return IO_ERROR;
    const bytes = new Uint8Array(byteCount);
    chain.readInto(this.#memory, bytes, HEADER_BYTES);
    const view = new DataView(bytes.buffer);
    const pieces: SectorRange[] = [];
    let isOutside = false;
    for (let at = 0; at < byteCount; at += RANGE_BYTES) {
      const sector = view.getUint32(at + 4, true) * 0x1_0000_0000 + view.getUint32(at, true);
      const sectorCount = view.getUint32(at + 8, true);
      const flags = view.getUint32(at + 12, true);
      // 5.2.6.2: an unknown flag, and unmap in a discard, are unsupported, whatever else is wrong.
      const known = type === VIRTIO_BLK_T_DISCARD ? 0 : VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
      if ((flags & ~known) !== 0) return UNSUPPORTED;
      const range = {
        offset: sector * SECTOR_BYTES,
        length: sectorCount * SECTOR_BYTES,
        isUnmap: flags !== 0,
      };
      if (sectorCount > limits.discardSectors || !this.#isInside(range.offset, range.length)) {
        isOutside = true;
      } else cutIntoPieces(range, pieces);
    }
    if (isOutside) return IO_ERROR;
    return this.#clearPieces(pieces, { from: 0, isDiscard: type === VIRTIO_BLK_T_DISCARD });
  }

  /**
   * One piece after the other, waiting where the backend makes it wait, and after each large one.
   */
  #clearPieces(
    pieces: SectorRange[],
    options: { from: number; isDiscard: boolean },
  ): MaybePromise<void> {
    const { from, isDiscard } = options;
    for (const [index, { offset, length, isUnmap }] of pieces.entries()) {
      if (index < from) continue;
      const pending = isDiscard
        ? this.#backend.discard(offset, length)
        : this.#backend.writeZeroes(offset, length, this.#zeroFlags(isUnmap));
      const isLast = index === pieces.length - 1;
      if (pending instanceof Promise || (length === CLEAR_PIECE_BYTES && !isLast)) {
        return Promise.resolve(pending).then(nextTurn).then(() =>
          this.#clearPieces(pieces, { from: index + 1, isDiscard })
        );
      }
    }
  }

  #zeroFlags(isUnmap: boolean): number {
    const canFlush = (this.#transport.features & VIRTIO_BLK_F_FLUSH) !== 0n;
    return (isUnmap ? REQ_MAY_UNMAP : 0) | (canFlush ? 0 : REQ_FUA);
  }

  #isInside(offset: number, length: number): boolean {
    return offset + length <= this.#backend.sizeBytes;
  }

  /** Writes the status behind the data and gives the request back. */
  #finish(chain: VirtqueueChain, status: number): void {
    // 5.1.6.4, 2.7.8: after a reset the buffers are the driver's again.
    if (!this.#isResetting) {
      const last = chain.segmentCount - 1;
      const statusOffset = (chain.offsets[last] ?? 0) + (chain.lengths[last] ?? 0) - 1;
      // Also after a failure: a part of the data may have been written.
      for (let index = chain.readableCount; index < chain.segmentCount; index++) {
        this.#memory.markWritten(chain.offsets[index] ?? 0, chain.lengths[index] ?? 0);
      }
      this.#memory.bytes[statusOffset] = status;
      this.#memory.markWritten(statusOffset, 1);
    }
    // 2.7.8.2: all that is counted was written, from the first byte on; of a failed read none is
    // sure.
    const filled = status === VIRTIO_BLK_S_OK ? chain.filledBytes : 0;
    this.#queue.push(chain, filled === chain.writableBytes - 1 ? chain.writableBytes : filled);
  }

  /** The end of a request that others may end together with: one interrupt for all of them. */
  #finishLater(chain: VirtqueueChain, status: number): void {
    this.#finish(chain, status);
    if (!this.#isSignalDue) {
      this.#isSignalDue = true;
      queueMicrotask(() => {
        this.#isSignalDue = false;
        this.#queue.signal();
      });
    }
    if (this.#isResetting) {
      this.#finishResetIfIdle();
      // A hart that did not wait for the end (its machine was paused) may have used the queue
      // already.
      this.#transport.ringDoorbell();
    }
    if (this.#queue.inFlight === 0) {
      const onIdle = this.#onIdle;
      this.#onIdle = null;
      onIdle?.();
    }
  }

  #finishResetIfIdle(): void {
    if (this.#queue.inFlight > 0) return;
    this.#isResetting = false;
    this.#transport.finishReset();
  }
}

function cutIntoPieces(range: SectorRange, pieces: SectorRange[]): void {
  const { length, isUnmap } = range;
  for (let done = 0; done < length; done += CLEAR_PIECE_BYTES) {
    pieces.push({
      offset: range.offset + done,
      length: Math.min(CLEAR_PIECE_BYTES, length - done),
      isUnmap,
    });
  }
}
