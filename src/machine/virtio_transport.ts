/**
 * The device's end of one virtio-mmio slot (virtio 1.2, 4.2.2). Register accesses are answered on
 * the hart's path out of the slot's words; this side fills in what the device is, reads what the
 * driver chose, and raises interrupts.
 *
 *   driver resets (status 0)  -> VIRTIO_RESET_WORD runs ahead of the DONE word: `isResetAsked`
 *   device has nothing left   -> `finishReset`, on which the hart goes on
 *   a queue makes no sense    -> `fail`: DEVICE_NEEDS_RESET and a configuration interrupt; only a
 *                                reset brings the device back
 *
 * @module
 */

import type { GuestMemory } from "./guest_memory.ts";

/** 2.1: the driver is ready. */
const VIRTIO_STATUS_DRIVER_OK = 4;
/** 2.1: the device gave up. */
const VIRTIO_STATUS_DEVICE_NEEDS_RESET = 64;

/** 4.2.2, InterruptStatus: a used ring has something new. */
const VIRTIO_INTERRUPT_USED = 1;
/** 4.2.2, InterruptStatus: the configuration or the status changed. */
const VIRTIO_INTERRUPT_CONFIG = 2;

/** 2.7.5.3: descriptors may name a table of descriptors. */
export const VIRTIO_F_INDIRECT_DESC = 1n << 28n;
/** 2.7.7, 2.7.10: each side says at which index it wants to hear of the other. */
export const VIRTIO_F_EVENT_IDX = 1n << 29n;
/** 6: not a legacy device. */
export const VIRTIO_F_VERSION_1 = 1n << 32n;

/** What a device says about itself. */
export interface VirtioIdentity {
  /** 5: what kind of device it is. */
  deviceId: number;
  /** The feature bits that it offers. */
  features: bigint;
  /** How many virtqueues it has. */
  queueCount: number;
  /** The most entries that one of them may have. */
  queueSize: number;
  /** 4.2.2: the bytes from offset 0x100 of the registers on, little-endian. */
  config: Uint8Array;
}

/** One slot, seen from the device. */
export class VirtioTransport {
  /** Offset of the slot's words in the memory. */
  readonly base: number;

  /** The device's end of slot `slot`. */
  constructor(readonly memory: GuestMemory, readonly slot: number) {
    const { VIRTIO_BASE, VIRTIO_STRIDE } = memory.layout;
    this.base = VIRTIO_BASE + slot * VIRTIO_STRIDE;
  }

  /** Puts the device into the slot. The harts must be parked. */
  announce(identity: VirtioIdentity): void {
    const { memory, base } = this;
    const { layout, view } = memory;
    memory.bytes.fill(0, base, base + layout.VIRTIO_STRIDE);
    view.setBigUint64(base + layout.VIRTIO_DEVICE_FEATURES, identity.features, true);
    for (let queue = 0; queue < identity.queueCount; queue++) {
      const block = this.queueBase(queue);
      view.setUint32(block + layout.VIRTIO_QUEUE_NUM_MAX, identity.queueSize, true);
    }
    memory.bytes.set(identity.config, base + layout.VIRTIO_CONFIG);
    memory.storeWord(base + layout.VIRTIO_DEVICE_ID, identity.deviceId);
  }

  /** Offset of the words of queue `index`. */
  queueBase(index: number): number {
    const { layout } = this.memory;
    return this.base + layout.VIRTIO_QUEUES + index * layout.VIRTIO_QUEUE_STRIDE;
  }

  /** The driver has finished its set-up, and the device has not failed. */
  get isLive(): boolean {
    const status = this.memory.loadWord(this.base + this.memory.layout.VIRTIO_STATUS_WORD);
    return (status & (VIRTIO_STATUS_DRIVER_OK | VIRTIO_STATUS_DEVICE_NEEDS_RESET)) ===
      VIRTIO_STATUS_DRIVER_OK;
  }

  /** The features that both sides have: a driver may have written anything. */
  get features(): bigint {
    const { view, layout } = this.memory;
    return view.getBigUint64(this.base + layout.VIRTIO_DEVICE_FEATURES, true) &
      view.getBigUint64(this.base + layout.VIRTIO_DRIVER_FEATURES, true);
  }

  /** The queues that were notified since the last call, one bit each. */
  takeNotifications(): number {
    const { words, layout } = this.memory;
    return Atomics.exchange(words, (this.base + layout.VIRTIO_NOTIFY_WORD) >>> 2, 0) >>> 0;
  }

  /** The driver has written status 0, and a hart waits for `finishReset`. */
  get isResetAsked(): boolean {
    const { memory, base } = this;
    return memory.loadWord(base + memory.layout.VIRTIO_RESET_WORD) !==
      memory.loadWord(base + memory.layout.VIRTIO_RESET_DONE_WORD);
  }

  /** Nothing of the device is in flight any more. */
  finishReset(): void {
    const { memory, base } = this;
    const { words, layout } = memory;
    const done = (base + layout.VIRTIO_RESET_DONE_WORD) >>> 2;
    Atomics.store(words, done, memory.loadWord(base + layout.VIRTIO_RESET_WORD));
    Atomics.notify(words, done);
  }

  /** Rings the slot's doorbell, as a hart does: the device has to be looked at again. */
  ringDoorbell(): void {
    const { words, layout } = this.memory;
    Atomics.or(words, layout.DOORBELL_WORD >>> 2, layout.DOORBELL_VIRTIO << this.slot);
    Atomics.add(words, layout.IO_WAKE_WORD >>> 2, 1);
    Atomics.notify(words, layout.IO_WAKE_WORD >>> 2);
  }

  /** There is something new in a used ring. */
  interruptUsed(): void {
    this.#interrupt(VIRTIO_INTERRUPT_USED);
  }

  /**
   * Changes the configuration space under a driver that may be reading it. The generation moves
   * before and after (4.2.2.2); whoever still read a mixture reads again at the interrupt.
   */
  updateConfig(config: Uint8Array): void {
    const { memory, base } = this;
    const { words, layout } = memory;
    const generation = (base + layout.VIRTIO_CONFIG_GENERATION_WORD) >>> 2;
    Atomics.add(words, generation, 1);
    memory.bytes.set(config, base + layout.VIRTIO_CONFIG);
    Atomics.add(words, generation, 1);
    if (this.isLive) this.#interrupt(VIRTIO_INTERRUPT_CONFIG);
  }

  /** The driver broke its contract: nothing more is done until it resets the device (2.1.2). */
  fail(): void {
    const { words, layout } = this.memory;
    const status = Atomics.or(
      words,
      (this.base + layout.VIRTIO_STATUS_WORD) >>> 2,
      VIRTIO_STATUS_DEVICE_NEEDS_RESET,
    );
    if ((status & VIRTIO_STATUS_DRIVER_OK) !== 0) this.#interrupt(VIRTIO_INTERRUPT_CONFIG);
  }

  /** The PLIC takes the line's level from the status itself, so that no edge can be lost. */
  #interrupt(cause: number): void {
    const { words, layout } = this.memory;
    Atomics.or(words, (this.base + layout.VIRTIO_INTERRUPT_STATUS_WORD) >>> 2, cause);
    this.memory.wakeHarts();
  }
}
