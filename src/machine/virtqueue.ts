/**
 * The device's side of a split virtqueue (virtio 1.2, 2.7) over guest RAM.
 *
 * The driver is hostile: every address, length, index and flag is checked here, each is read once,
 * and nobody behind this file sees a number that was not. What breaks the rules of the ring itself
 * (rings outside RAM or misaligned, an index that jumped, a chain that loops, is too long or leaves
 * RAM, an indirect table inside another, a buffer of no bytes) breaks the queue: the device asks
 * for a reset and touches the queue no more until it came.
 *
 *   idle --activate--> live --break--> broken
 *     ^-----reset------/------reset-------/
 *
 * The rings' words are read and written with atomics: the index of the available ring before its
 * entries, an entry of the used ring before its index, and, with the event index (2.7.10), each
 * side's index before the other side's event.
 *
 * @module
 */

import { limits } from "../limits.ts";
import type { GuestMemory } from "./guest_memory.ts";
import { VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC } from "./virtio_transport.ts";
import type { VirtioTransport } from "./virtio_transport.ts";

const VIRTQ_DESC_F_NEXT = 1;
const VIRTQ_DESC_F_WRITE = 2;
const VIRTQ_DESC_F_INDIRECT = 4;
const VIRTQ_AVAIL_F_NO_INTERRUPT = 1;
const VIRTQ_USED_F_NO_NOTIFY = 1;
const DESC_BYTES = 16;
const USED_ELEMENT_BYTES = 8;
/** No chain is longer than the largest queue (2.7.5.3.1), also by way of an indirect table. */
const CHAIN_LENGTH_MAX = limits.queueSize;

/**
 * One request: its buffers as offsets in the shared memory, those that the device reads first.
 * Objects are reused: a chain is its holder's from `pop` to `push`.
 */
export class VirtqueueChain {
  /** Its first descriptor, by which the driver knows it. */
  head = 0;
  /** Resets of the queue before this chain was taken. */
  generation = 0;
  /** Buffers. */
  segmentCount = 0;
  /** Buffers that the device reads: they come first. */
  readableCount = 0;
  /** Bytes that the device may read. */
  readableBytes = 0;
  /** Bytes that the device may write. */
  writableBytes = 0;
  /** Bytes, from the first writable one on, that the request fills if it succeeds. */
  filledBytes = 0;
  /** Where each buffer starts in the shared memory. */
  readonly offsets: Uint32Array = new Uint32Array(CHAIN_LENGTH_MAX);
  /** Bytes of each buffer, at least one. */
  readonly lengths: Uint32Array = new Uint32Array(CHAIN_LENGTH_MAX);

  /** Views of `length` bytes, `skip` bytes into what the device may read. */
  readable(memory: GuestMemory, skip: number, length: number): Uint8Array[] {
    return this.#slice(memory, { from: 0, to: this.readableCount, skip, length });
  }

  /** Views of `length` bytes, `skip` bytes into what the device may write. */
  writable(memory: GuestMemory, skip: number, length: number): Uint8Array[] {
    return this.#slice(memory, { from: this.readableCount, to: this.segmentCount, skip, length });
  }

  /** Copies the first bytes of what the device may read, as many as `target` takes. */
  readInto(memory: GuestMemory, target: Uint8Array, skip: number): void {
    let done = 0;
    for (const part of this.readable(memory, skip, target.length)) {
      target.set(part, done);
      done += part.length;
    }
  }

  #slice(
    memory: GuestMemory,
    range: { from: number; to: number; skip: number; length: number },
  ): Uint8Array[] {
    const parts: Uint8Array[] = [];
    let { skip, length } = range;
    for (let index = range.from; index < range.to && length > 0; index++) {
      const segmentLength = this.lengths[index] ?? 0;
      if (skip >= segmentLength) {
        skip -= segmentLength;
        continue;
      }
      const take = Math.min(segmentLength - skip, length);
      parts.push(new Uint8Array(memory.buffer, (this.offsets[index] ?? 0) + skip, take));
      length -= take;
      skip = 0;
    }
    return parts;
  }
}

/** Where a walk reads its descriptors: the queue's table or an indirect one. */
interface DescriptorTable {
  offset: number;
  count: number;
  isIndirect: boolean;
}

/** A queue of a device. */
export class Virtqueue {
  readonly #transport: VirtioTransport;
  readonly #memory: GuestMemory;
  readonly #base: number;
  readonly #free: VirtqueueChain[] = [];
  readonly #table: DescriptorTable = { offset: 0, count: 0, isIndirect: false };
  #state: "idle" | "live" | "broken" = "idle";
  #brokenBy = "";
  #generation = 0;
  #size = 0;
  #descriptors = 0;
  #available = 0;
  #used = 0;
  #hasEventIndex = false;
  #hasIndirect = false;
  /** Free-running 16-bit indexes, as the rings have them. */
  #availableSeen = 0;
  #availableIndex = 0;
  #usedIndex = 0;
  #usedSignalled = 0;
  #inFlight = 0;

  /** Queue `index` of a device; idle. */
  constructor(transport: VirtioTransport, index: number) {
    this.#transport = transport;
    this.#memory = transport.memory;
    this.#base = transport.queueBase(index);
  }

  /** Chains that were popped and not pushed yet, also of before a reset. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** What the driver did wrong, for a log; empty unless the queue is broken. */
  get brokenBy(): string {
    return this.#brokenBy;
  }

  /** Forgets everything about the driver. Chains still out are taken back when they are pushed. */
  reset(): void {
    this.#state = "idle";
    this.#brokenBy = "";
    this.#generation++;
  }

  /**
   * Takes over the registers of a queue that the driver has made ready; they count from then to the
   * next reset, whatever the driver writes in between. True if the queue can be worked.
   */
  activate(): boolean {
    const { layout, view } = this.#memory;
    if (this.#memory.loadWord(this.#base + layout.VIRTIO_QUEUE_READY_WORD) !== 1) return false;
    if (this.#state !== "idle") return this.#state === "live";
    const size = view.getUint32(this.#base + layout.VIRTIO_QUEUE_NUM, true);
    const sizeMax = view.getUint32(this.#base + layout.VIRTIO_QUEUE_NUM_MAX, true);
    if (size === 0 || size > sizeMax || (size & (size - 1)) !== 0) {
      return this.#break(`a queue of ${size} entries`);
    }
    const descriptors = this.#ringAt(layout.VIRTIO_QUEUE_DESC, size * DESC_BYTES, 16);
    const available = this.#ringAt(layout.VIRTIO_QUEUE_DRIVER, 6 + 2 * size, 2);
    const used = this.#ringAt(layout.VIRTIO_QUEUE_DEVICE, 6 + USED_ELEMENT_BYTES * size, 4);
    if (descriptors < 0 || available < 0 || used < 0) {
      return this.#break("a ring that is misaligned or outside RAM");
    }
    const { features } = this.#transport;
    this.#size = size;
    this.#descriptors = descriptors;
    this.#available = available;
    this.#used = used;
    this.#hasEventIndex = (features & VIRTIO_F_EVENT_IDX) !== 0n;
    this.#hasIndirect = (features & VIRTIO_F_INDIRECT_DESC) !== 0n;
    this.#availableSeen = this.#availableIndex = 0;
    this.#usedIndex = this.#usedSignalled = 0;
    this.#state = "live";
    return true;
  }

  /** The next request, or null if there is none or the queue is not, or no more, to be worked. */
  pop(): VirtqueueChain | null {
    if (this.#state !== "live") return null;
    if (this.#availableSeen === this.#availableIndex && !this.#refresh()) return null;
    if (this.#inFlight >= this.#size) {
      this.#break("more requests than entries");
      return null;
    }
    const { halves } = this.#memory;
    const entry = this.#available + 4 + 2 * (this.#availableSeen & (this.#size - 1));
    const chain = this.#free.pop() ?? new VirtqueueChain();
    chain.head = halves[entry >>> 1] ?? 0;
    chain.generation = this.#generation;
    if (!this.#walk(chain)) {
      this.#free.push(chain);
      return null;
    }
    this.#availableSeen = (this.#availableSeen + 1) & 0xffff;
    this.#inFlight++;
    return chain;
  }

  /**
   * Gives a request back, of whose device-writable bytes the first `written` are new. The driver
   * sees it at once; whether it is interrupted, `signal` decides.
   */
  push(chain: VirtqueueChain, written: number): void {
    this.#inFlight--;
    const isCurrent = this.#state === "live" && chain.generation === this.#generation;
    const { head } = chain;
    this.#free.push(chain);
    if (!isCurrent) return;
    const { view, halves } = this.#memory;
    const element = this.#used + 4 + USED_ELEMENT_BYTES * (this.#usedIndex & (this.#size - 1));
    view.setUint32(element, head, true);
    view.setUint32(element + 4, written, true);
    this.#usedIndex = (this.#usedIndex + 1) & 0xffff;
    this.#memory.markWritten(element, USED_ELEMENT_BYTES);
    Atomics.store(halves, (this.#used + 2) >>> 1, this.#usedIndex);
    this.#memory.markWritten(this.#used, 4);
  }

  /** Interrupts the driver if something was pushed since the last call and it wants to know. */
  signal(): void {
    if (this.#state !== "live" || this.#usedSignalled === this.#usedIndex) return;
    const { halves } = this.#memory;
    const before = this.#usedSignalled;
    this.#usedSignalled = this.#usedIndex;
    if (this.#hasEventIndex) {
      // 2.7.7.2, vring_need_event: only when the index passes the driver's used_event.
      const event = Atomics.load(halves, (this.#available + 4 + 2 * this.#size) >>> 1);
      const sinceEvent = (this.#usedIndex - event - 1) & 0xffff;
      if (sinceEvent >= ((this.#usedIndex - before) & 0xffff)) return;
    } else {
      const flags = Atomics.load(halves, this.#available >>> 1);
      if ((flags & VIRTQ_AVAIL_F_NO_INTERRUPT) !== 0) return;
    }
    this.#transport.interruptUsed();
  }

  /**
   * Tells the driver that it need not notify. Without the event index only: its event stands still.
   */
  suppressNotifications(): void {
    if (this.#state !== "live" || this.#hasEventIndex) return;
    Atomics.store(this.#memory.halves, this.#used >>> 1, VIRTQ_USED_F_NO_NOTIFY);
  }

  /** Asks for notifications again; true if a request came before the driver could know. */
  wantNotifications(): boolean {
    if (this.#state !== "live") return false;
    const { halves } = this.#memory;
    if (this.#hasEventIndex) {
      const event = this.#used + 4 + USED_ELEMENT_BYTES * this.#size;
      Atomics.store(halves, event >>> 1, this.#availableSeen);
    } else {
      Atomics.store(halves, this.#used >>> 1, 0);
    }
    return this.#refresh();
  }

  /** The request can't be answered in any way that the driver would see. */
  breakChain(chain: VirtqueueChain, reason: string): void {
    this.#inFlight--;
    const isCurrent = chain.generation === this.#generation;
    this.#free.push(chain);
    if (isCurrent) this.#break(reason);
  }

  /** Looks at the available ring's index; true if there is something. */
  #refresh(): boolean {
    const index = Atomics.load(this.#memory.halves, (this.#available + 2) >>> 1);
    if (((index - this.#availableSeen) & 0xffff) > this.#size) {
      return this.#break("an available index that jumped");
    }
    this.#availableIndex = index;
    return index !== this.#availableSeen;
  }

  /** The memory offset of a ring whose address stands in a register, -1 if it can't be there. */
  #ringAt(register: number, length: number, alignment: number): number {
    const gpa = this.#memory.readU64(this.#base + register);
    return gpa % alignment === 0 ? this.#memory.translate(gpa, length) : -1;
  }

  /**
   * Collects the buffers of the chain that starts at `chain.head`; false if that broke the queue.
   */
  #walk(chain: VirtqueueChain): boolean {
    const { view } = this.#memory;
    const table = this.#table;
    table.offset = this.#descriptors;
    table.count = this.#size;
    table.isIndirect = false;
    chain.segmentCount = chain.readableCount = 0;
    chain.readableBytes = chain.writableBytes = chain.filledBytes = 0;
    let index = chain.head;
    for (let step = 0; step <= CHAIN_LENGTH_MAX; step++) {
      if (index >= table.count) return this.#break("a descriptor index outside its table");
      const descriptor = table.offset + DESC_BYTES * index;
      const gpa = this.#memory.readU64(descriptor);
      const length = view.getUint32(descriptor + 8, true);
      const flags = view.getUint16(descriptor + 12, true);
      const next = view.getUint16(descriptor + 14, true);
      if ((flags & VIRTQ_DESC_F_INDIRECT) !== 0) {
        if (!this.#enterIndirect(table, { gpa, length, flags })) return false;
        index = 0;
        continue;
      }
      if (!this.#addSegment(chain, { gpa, length, flags })) return false;
      if ((flags & VIRTQ_DESC_F_NEXT) === 0) return true;
      index = next;
    }
    return this.#break("a chain that loops or is too long");
  }

  /**
   * 2.7.5.3: not negotiated, nested, with a successor, or no table of whole descriptors: broken.
   */
  #enterIndirect(
    table: DescriptorTable,
    descriptor: { gpa: number; length: number; flags: number },
  ): boolean {
    const { gpa, length, flags } = descriptor;
    if (!this.#hasIndirect) return this.#break("an indirect descriptor without the feature");
    if (table.isIndirect) return this.#break("an indirect table inside an indirect table");
    if ((flags & VIRTQ_DESC_F_NEXT) !== 0) return this.#break("an indirect descriptor with a next");
    if (length === 0 || length % DESC_BYTES !== 0 || length > DESC_BYTES * CHAIN_LENGTH_MAX) {
      return this.#break(`an indirect table of ${length} bytes`);
    }
    const offset = this.#memory.translate(gpa, length);
    if (offset < 0) return this.#break("an indirect table outside RAM");
    table.offset = offset;
    table.count = length / DESC_BYTES;
    table.isIndirect = true;
    return true;
  }

  #addSegment(
    chain: VirtqueueChain,
    descriptor: { gpa: number; length: number; flags: number },
  ): boolean {
    const { gpa, length, flags } = descriptor;
    if (chain.segmentCount === CHAIN_LENGTH_MAX) return this.#break("a chain that is too long");
    if (length === 0) return this.#break("a buffer of no bytes");
    const offset = this.#memory.translate(gpa, length);
    if (offset < 0) return this.#break("a buffer outside RAM");
    if ((flags & VIRTQ_DESC_F_WRITE) !== 0) {
      chain.writableBytes += length;
    } else {
      // 2.7.4.2: everything that the device writes stands behind everything that it reads.
      if (chain.writableBytes !== 0) return this.#break("a readable buffer behind a writable one");
      chain.readableCount++;
      chain.readableBytes += length;
    }
    chain.offsets[chain.segmentCount] = offset;
    chain.lengths[chain.segmentCount] = length;
    chain.segmentCount++;
    return true;
  }

  #break(reason: string): false {
    this.#state = "broken";
    this.#brokenBy = reason;
    this.#transport.fail();
    return false;
  }
}
