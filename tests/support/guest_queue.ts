/**
 * A virtqueue's driver side, as a guest would be one: it lays rings and requests out in a plain
 * shared memory, writes the slot's registers, and looks at the used ring. No hart is involved.
 *
 * @module
 */

import { compileHart, createMachineMemory, readHartLayout } from "../../src/wasm/hart.ts";
import { GuestMemory } from "../../src/machine/guest_memory.ts";
import { VirtioTransport } from "../../src/machine/virtio_transport.ts";
import { VirtioBlk, type VirtioBlkBackend } from "../../src/machine/virtio_blk.ts";

export const DESC_NEXT = 1;
export const DESC_WRITE = 2;
export const DESC_INDIRECT = 4;

export const FEATURE_INDIRECT = 1n << 28n;
export const FEATURE_EVENT_IDX = 1n << 29n;
export const FEATURE_VERSION_1 = 1n << 32n;
export const FEATURE_FLUSH = 1n << 9n;
export const FEATURE_DISCARD = 1n << 13n;
export const FEATURE_WRITE_ZEROES = 1n << 14n;

export const BLK_T_IN = 0;
export const BLK_T_OUT = 1;
export const BLK_T_FLUSH = 4;
export const BLK_T_GET_ID = 8;
export const BLK_T_DISCARD = 11;
export const BLK_T_WRITE_ZEROES = 13;

export const BLK_S_OK = 0;
export const BLK_S_IOERR = 1;
export const BLK_S_UNSUPP = 2;
/** What a status byte holds before the device has written it. */
export const BLK_S_NONE = 0xee;

const hartModule = await compileHart();
export const layout = readHartLayout(hartModule);

/** A memory with `ramBytes` of RAM and `hartCount` harts that nobody runs. */
export function createGuestMemory(ramBytes = 1024 * 1024): GuestMemory {
  const memory = new GuestMemory(createMachineMemory(layout, ramBytes), layout);
  memory.storeWord(layout.HART_COUNT, 1);
  return memory;
}

/** One buffer of a chain. */
export interface GuestBuffer {
  gpa: number | bigint;
  length: number;
  isWritable: boolean;
}

/** What came back through the used ring. */
export interface UsedElement {
  id: number;
  length: number;
}

/** The driver of queue 0 of a slot. */
export class GuestQueue {
  readonly descGpa: number;
  readonly availGpa: number;
  readonly usedGpa: number;
  readonly base: number;
  usedSeen = 0;
  #nextDescriptor = 0;
  #allocated: number;

  constructor(
    readonly memory: GuestMemory,
    readonly options: { slot?: number; size?: number; features?: bigint } = {},
  ) {
    this.base = layout.VIRTIO_BASE + (options.slot ?? 0) * layout.VIRTIO_STRIDE;
    // The first page is left alone, so that tests can guard it.
    this.#allocated = 4096;
    this.descGpa = this.allocate(16 * this.size, 16);
    this.availGpa = this.allocate(6 + 2 * this.size, 2);
    this.usedGpa = this.allocate(6 + 8 * this.size, 4);
  }

  get size(): number {
    return this.options.size ?? 16;
  }

  get features(): bigint {
    return this.options.features ??
      (FEATURE_VERSION_1 | FEATURE_FLUSH | FEATURE_DISCARD | FEATURE_WRITE_ZEROES |
        FEATURE_INDIRECT | FEATURE_EVENT_IDX);
  }

  /** Room in RAM; never given back. */
  allocate(length: number, alignment = 16): number {
    this.#allocated = Math.ceil(this.#allocated / alignment) * alignment;
    const gpa = Number(layout.RAM_GPA) + this.#allocated;
    this.#allocated += length;
    if (this.#allocated > this.memory.ramBytes) throw new Error("the test's RAM is full");
    return gpa;
  }

  /** The bytes at a guest physical address. */
  at(gpa: number, length: number): Uint8Array {
    return new Uint8Array(this.memory.buffer, this.offsetOf(gpa), length);
  }

  offsetOf(gpa: number): number {
    return gpa - Number(layout.RAM_GPA) + layout.RAM_BASE;
  }

  /** Registers as a driver leaves them, DRIVER_OK included. */
  start(): void {
    const { view } = this.memory;
    view.setBigUint64(this.base + layout.VIRTIO_DRIVER_FEATURES, this.features, true);
    const block = this.base + layout.VIRTIO_QUEUES;
    view.setUint32(block + layout.VIRTIO_QUEUE_NUM, this.size, true);
    view.setBigUint64(block + layout.VIRTIO_QUEUE_DESC, BigInt(this.descGpa), true);
    view.setBigUint64(block + layout.VIRTIO_QUEUE_DRIVER, BigInt(this.availGpa), true);
    view.setBigUint64(block + layout.VIRTIO_QUEUE_DEVICE, BigInt(this.usedGpa), true);
    this.memory.storeWord(block + layout.VIRTIO_QUEUE_READY_WORD, 1);
    this.memory.storeWord(this.base + layout.VIRTIO_STATUS_WORD, 0xf);
  }

  get status(): number {
    return this.memory.loadWord(this.base + layout.VIRTIO_STATUS_WORD);
  }

  get needsReset(): boolean {
    return (this.status & 64) !== 0;
  }

  /** Takes and clears the interrupt status, as an acknowledging driver does. */
  takeInterrupts(): number {
    const word = (this.base + layout.VIRTIO_INTERRUPT_STATUS_WORD) >>> 2;
    return Atomics.exchange(this.memory.words, word, 0);
  }

  /** Status 0, as the hart's path does it: the rest is cleared once the device says so. */
  askReset(): void {
    this.memory.storeWord(this.base + layout.VIRTIO_STATUS_WORD, 0);
    this.memory.storeWord(this.base + layout.VIRTIO_QUEUES + layout.VIRTIO_QUEUE_READY_WORD, 0);
    const word = (this.base + layout.VIRTIO_RESET_WORD) >>> 2;
    Atomics.add(this.memory.words, word, 1);
  }

  get isResetDone(): boolean {
    return this.memory.loadWord(this.base + layout.VIRTIO_RESET_WORD) ===
      this.memory.loadWord(this.base + layout.VIRTIO_RESET_DONE_WORD);
  }

  /** After a reset: registers, rings and indexes as new. */
  clear(): void {
    this.memory.storeWord(this.base + layout.VIRTIO_INTERRUPT_STATUS_WORD, 0);
    this.at(this.descGpa, 16 * this.size).fill(0);
    this.at(this.availGpa, 6 + 2 * this.size).fill(0);
    this.at(this.usedGpa, 6 + 8 * this.size).fill(0);
    this.usedSeen = 0;
    this.#nextDescriptor = 0;
  }

  /** Writes descriptor `index` of the table at `tableGpa`. */
  setDescriptor(
    index: number,
    descriptor: { gpa: number | bigint; length: number; flags: number; next: number },
    tableGpa = this.descGpa,
  ): void {
    const { view } = this.memory;
    const at = this.offsetOf(tableGpa) + 16 * index;
    view.setBigUint64(at, BigInt.asUintN(64, BigInt(descriptor.gpa)), true);
    view.setUint32(at + 8, descriptor.length, true);
    view.setUint16(at + 12, descriptor.flags, true);
    view.setUint16(at + 14, descriptor.next, true);
  }

  /** Lays a chain out in the next free descriptors (round and round) and returns its head. */
  addChain(buffers: GuestBuffer[]): number {
    const indexes = buffers.map(() => this.#nextDescriptor++ % this.size);
    this.#link(buffers, indexes, this.descGpa);
    return indexes[0] ?? 0;
  }

  /** The same by way of an indirect table, which takes one descriptor. */
  addIndirectChain(buffers: GuestBuffer[]): number {
    const table = this.allocate(16 * buffers.length);
    this.#link(buffers, buffers.map((_, index) => index), table);
    const head = this.#nextDescriptor++ % this.size;
    const length = 16 * buffers.length;
    this.setDescriptor(head, { gpa: table, length, flags: DESC_INDIRECT, next: 0 });
    return head;
  }

  /** Makes the chain at `head` available; the index is written last. */
  offer(head: number): void {
    const at = this.offsetOf(this.availGpa);
    const index = this.availIndex;
    this.memory.view.setUint16(at + 4 + 2 * (index % this.size), head, true);
    this.availIndex = index + 1;
  }

  get availIndex(): number {
    return Atomics.load(this.memory.halves, (this.offsetOf(this.availGpa) + 2) >>> 1);
  }

  set availIndex(value: number) {
    Atomics.store(this.memory.halves, (this.offsetOf(this.availGpa) + 2) >>> 1, value);
  }

  set availFlags(value: number) {
    this.memory.view.setUint16(this.offsetOf(this.availGpa), value, true);
  }

  get usedFlags(): number {
    return this.memory.view.getUint16(this.offsetOf(this.usedGpa), true);
  }

  get usedIndex(): number {
    return Atomics.load(this.memory.halves, (this.offsetOf(this.usedGpa) + 2) >>> 1);
  }

  /** The driver's event: interrupt when the used index passes it. */
  set usedEvent(value: number) {
    this.memory.view.setUint16(this.offsetOf(this.availGpa) + 4 + 2 * this.size, value, true);
  }

  /** The device's event: notify when the available index passes it. */
  get availEvent(): number {
    return this.memory.view.getUint16(this.offsetOf(this.usedGpa) + 4 + 8 * this.size, true);
  }

  /** What came back since the last call. */
  takeUsed(): UsedElement[] {
    const elements: UsedElement[] = [];
    const at = this.offsetOf(this.usedGpa);
    for (; this.usedSeen !== this.usedIndex; this.usedSeen = (this.usedSeen + 1) & 0xffff) {
      const element = at + 4 + 8 * (this.usedSeen % this.size);
      elements.push({
        id: this.memory.view.getUint32(element, true),
        length: this.memory.view.getUint32(element + 4, true),
      });
    }
    return elements;
  }

  #link(buffers: GuestBuffer[], indexes: number[], tableGpa: number): void {
    buffers.forEach((buffer, position) => {
      const isLast = position === buffers.length - 1;
      const flags = (buffer.isWritable ? DESC_WRITE : 0) | (isLast ? 0 : DESC_NEXT);
      const next = isLast ? 0 : indexes[position + 1] ?? 0;
      const { gpa, length } = buffer;
      this.setDescriptor(indexes[position] ?? 0, { gpa, length, flags, next }, tableGpa);
    });
  }
}

/** A request that was put together but not necessarily offered yet. */
export interface BlkRequest {
  head: number;
  dataGpa: number;
  statusGpa: number;
}

/** A disk in slot 0 and its driver. */
export class GuestDisk {
  readonly device: VirtioBlk;
  readonly queue: GuestQueue;

  constructor(
    backend: VirtioBlkBackend,
    options: {
      ramBytes?: number;
      size?: number;
      features?: bigint;
      serial?: string;
      isReadOnly?: boolean;
    } = {},
  ) {
    const memory = createGuestMemory(options.ramBytes);
    this.device = new VirtioBlk(new VirtioTransport(memory, 0), {
      backend,
      isReadOnly: options.isReadOnly ?? false,
      serial: options.serial ?? "serial-of-a-test",
    });
    this.device.announce();
    this.queue = new GuestQueue(memory, options);
    this.queue.start();
  }

  /** A buffer in RAM with the request's header. */
  header(type: number, sector: number | bigint): number {
    const gpa = this.queue.allocate(16);
    const { view } = this.queue.memory;
    const at = this.queue.offsetOf(gpa);
    view.setUint32(at, type, true);
    view.setUint32(at + 4, 0, true);
    view.setBigUint64(at + 8, BigInt(sector), true);
    return gpa;
  }

  /**
   * Lays out header, data in `segments` and status; data is copied in where the device reads it.
   */
  request(
    type: number,
    sector: number | bigint,
    options: { segments?: number[]; data?: Uint8Array; isIndirect?: boolean } = {},
  ): BlkRequest {
    const isRead = type === BLK_T_IN || type === BLK_T_GET_ID;
    const segments = options.segments ?? (options.data ? [options.data.length] : []);
    const total = segments.reduce((sum, length) => sum + length, 0);
    const dataGpa = this.queue.allocate(Math.max(total, 1));
    if (options.data) this.queue.at(dataGpa, options.data.length).set(options.data);
    const statusGpa = this.queue.allocate(1);
    this.queue.at(statusGpa, 1)[0] = BLK_S_NONE;
    const buffers: GuestBuffer[] = [
      { gpa: this.header(type, sector), length: 16, isWritable: false },
    ];
    let gpa = dataGpa;
    for (const length of segments) {
      buffers.push({ gpa, length, isWritable: isRead });
      gpa += length;
    }
    buffers.push({ gpa: statusGpa, length: 1, isWritable: true });
    const head = options.isIndirect
      ? this.queue.addIndirectChain(buffers)
      : this.queue.addChain(buffers);
    return { head, dataGpa, statusGpa };
  }

  /** Offers a request, lets the device work, and returns the status it left. */
  run(request: BlkRequest): number {
    this.queue.offer(request.head);
    this.work();
    return this.statusOf(request);
  }

  statusOf(request: BlkRequest): number {
    return this.queue.at(request.statusGpa, 1)[0] ?? -1;
  }

  /** What a doorbell does: the device's turns until it has nothing left to do at once. */
  work(): void {
    while (this.device.process());
  }
}
