/**
 * The registers of virtio-mmio slots, version 2 (virtio 1.2, 4.2.2), over the slot words of
 * layout.ts. The driver's accesses are answered here; queues and configuration are the I/O
 * worker's.
 *
 * - QueueNotify, and every store to Status, rings the slot's doorbell.
 * - Status 0 resets: status and queues are cleared first, so that the I/O worker takes nothing new;
 *   then the hart waits until the I/O worker has nothing of the device in flight; interrupts are
 *   cleared last.
 * - The interrupt line is high while InterruptStatus is not 0 (plic.ts), so an acknowledgement and
 *   a new interrupt at the same time can't lose each other.
 *
 * What the driver must not do is refused where it could reach beyond the slot or RAM, and ignored
 * elsewhere; a queue outside RAM sets DEVICE_NEEDS_RESET.
 */

import {
  DOORBELL_VIRTIO,
  HART_RUNNING,
  HART_STATE_WORD,
  HART_WAITING,
  RAM_BYTES,
  RAM_GPA,
  VIRTIO_BASE,
  VIRTIO_CONFIG,
  VIRTIO_CONFIG_GENERATION_WORD,
  VIRTIO_DEVICE_FEATURES,
  VIRTIO_DEVICE_FEATURES_SEL,
  VIRTIO_DEVICE_ID,
  VIRTIO_DRIVER_FEATURES,
  VIRTIO_DRIVER_FEATURES_SEL,
  VIRTIO_INTERRUPT_STATUS_WORD,
  VIRTIO_IRQ,
  VIRTIO_NOTIFY_WORD,
  VIRTIO_QUEUE_COUNT,
  VIRTIO_QUEUE_DESC,
  VIRTIO_QUEUE_DEVICE,
  VIRTIO_QUEUE_DRIVER,
  VIRTIO_QUEUE_NUM,
  VIRTIO_QUEUE_NUM_MAX,
  VIRTIO_QUEUE_READY_WORD,
  VIRTIO_QUEUE_SEL,
  VIRTIO_QUEUE_STRIDE,
  VIRTIO_QUEUES,
  VIRTIO_RESET_DONE_WORD,
  VIRTIO_RESET_WORD,
  VIRTIO_SLOT_SIZE,
  VIRTIO_SLOTS,
  VIRTIO_STATUS_WORD,
  VIRTIO_STRIDE,
} from "../layout";
import { hart } from "../state";
import { refuseAccess } from "./fault";
import { updateLines } from "./interrupts";
import { handleRemoteRequests } from "./remote";
import { isStopping, ringDoorbell } from "./signal";

/** The sources of all slots. */
export const VIRTIO_IRQ_MASK: u32 = ((1 << VIRTIO_SLOTS) - 1) << VIRTIO_IRQ;

const VIRTIO_MAGIC: u32 = 0x74726976;
const VIRTIO_VERSION: u32 = 2;
const VIRTIO_VENDOR: u32 = 0x5349564f; // "OVIS"
const VIRTIO_F_VERSION_1: u64 = 1 << 32;
const VIRTIO_CONFIG_BYTES: u32 = VIRTIO_STRIDE - VIRTIO_CONFIG;

const STATUS_DRIVER_OK: u32 = 4;
const STATUS_FEATURES_OK: u32 = 8;
const STATUS_NEEDS_RESET: u32 = 64;
const STATUS_DRIVER_BITS: u32 = 0x8f;
const INTERRUPT_CONFIG: u32 = 2;

// Registers.
const MAGIC_VALUE: u32 = 0x000;
const VERSION: u32 = 0x004;
const DEVICE_ID: u32 = 0x008;
const VENDOR_ID: u32 = 0x00c;
const DEVICE_FEATURES: u32 = 0x010;
const DEVICE_FEATURES_SEL: u32 = 0x014;
const DRIVER_FEATURES: u32 = 0x020;
const DRIVER_FEATURES_SEL: u32 = 0x024;
const QUEUE_SEL: u32 = 0x030;
const QUEUE_NUM_MAX: u32 = 0x034;
const QUEUE_NUM: u32 = 0x038;
const QUEUE_READY: u32 = 0x044;
const QUEUE_NOTIFY: u32 = 0x050;
const INTERRUPT_STATUS: u32 = 0x060;
const INTERRUPT_ACK: u32 = 0x064;
const STATUS: u32 = 0x070;
const QUEUE_DESC_LOW: u32 = 0x080; // and high halves, driver, device: up to QUEUE_ADDRESS_END
const QUEUE_DRIVER_LOW: u32 = 0x090;
const QUEUE_DEVICE_LOW: u32 = 0x0a0;
const SHM_LEN_LOW: u32 = 0x0b0;
const SHM_BASE_HIGH: u32 = 0x0bc;
const CONFIG_GENERATION: u32 = 0x0fc;
const CONFIG: u32 = 0x100;

/** One step of the wait for a reset, between looks at the stop word. */
const RESET_WAIT_NS: i64 = 5_000_000;

/** Level of every slot's line, as bits of PLIC sources. */
export function virtioLevels(): u32 {
  let levels: u32 = 0;
  for (let index: u32 = 0; index < VIRTIO_SLOTS; index++) {
    const word: u32 = VIRTIO_BASE + index * VIRTIO_STRIDE + VIRTIO_INTERRUPT_STATUS_WORD;
    if (atomic.load<u32>(word) !== 0) levels |= 1 << (VIRTIO_IRQ + index);
  }
  return levels;
}

/** `offset` is from the first slot's start and within the last slot. */
export function virtioLoad(offset: u32, size: u32): u64 {
  const slot: u32 = VIRTIO_BASE + offset / VIRTIO_SLOT_SIZE * VIRTIO_STRIDE;
  const register: u32 = offset % VIRTIO_SLOT_SIZE;
  if (register >= CONFIG) return loadConfig(slot, register - CONFIG, size);
  // Device-independent registers are 32 bits wide (virtio 1.2, 4.2.2.2).
  return size === 4 ? <u64> loadRegister(slot, register) : refuseAccess();
}

/**
 * `offset` as for virtioLoad. The driver may not write to the configuration of any of our devices.
 */
export function virtioStore(offset: u32, value: u32, size: u32): void {
  const index: u32 = offset / VIRTIO_SLOT_SIZE;
  const slot: u32 = VIRTIO_BASE + index * VIRTIO_STRIDE;
  const register: u32 = offset % VIRTIO_SLOT_SIZE;
  if (register >= CONFIG) return;
  if (size !== 4) {
    refuseAccess();
    return;
  }
  if (load<u32>(slot, VIRTIO_DEVICE_ID) === 0) return;
  storeRegister(slot, index, register, value);
}

function loadConfig(slot: u32, offset: u32, size: u32): u64 {
  if (offset + size > VIRTIO_CONFIG_BYTES) return 0;
  const source: u32 = slot + VIRTIO_CONFIG + offset;
  if (size === 1) return <u64> load<u8>(source);
  if (size === 2) return <u64> load<u16>(source);
  return size === 4 ? <u64> load<u32>(source) : load<u64>(source);
}

function loadRegister(slot: u32, register: u32): u32 {
  switch (register) {
    case MAGIC_VALUE:
      return VIRTIO_MAGIC;
    case VERSION:
      return VIRTIO_VERSION;
    case DEVICE_ID:
      return load<u32>(slot, VIRTIO_DEVICE_ID);
    case VENDOR_ID:
      return VIRTIO_VENDOR;
    case DEVICE_FEATURES: {
      const select: u32 = load<u32>(slot, VIRTIO_DEVICE_FEATURES_SEL);
      return select < 2 ? load<u32>(slot + 4 * select, VIRTIO_DEVICE_FEATURES) : 0;
    }
    case QUEUE_NUM_MAX:
      return readQueueWord(slot, VIRTIO_QUEUE_NUM_MAX);
    case QUEUE_READY:
      return readQueueWord(slot, VIRTIO_QUEUE_READY_WORD);
    case INTERRUPT_STATUS:
      return atomic.load<u32>(slot, VIRTIO_INTERRUPT_STATUS_WORD);
    case STATUS:
      return atomic.load<u32>(slot, VIRTIO_STATUS_WORD);
    case CONFIG_GENERATION:
      return atomic.load<u32>(slot, VIRTIO_CONFIG_GENERATION_WORD);
    default:
      // A shared memory region that does not exist has length and base -1 (virtio 1.2, 4.2.2).
      // QueueReset reads 0, since VIRTIO_F_RING_RESET is not offered, and so does what can only be
      // written.
      return register >= SHM_LEN_LOW && register <= SHM_BASE_HIGH ? u32.MAX_VALUE : 0;
  }
}

function storeRegister(slot: u32, index: u32, register: u32, value: u32): void {
  switch (register) {
    case DEVICE_FEATURES_SEL:
      store<u32>(slot, value, VIRTIO_DEVICE_FEATURES_SEL);
      break;
    case DRIVER_FEATURES:
      storeDriverFeatures(slot, value);
      break;
    case DRIVER_FEATURES_SEL:
      store<u32>(slot, value, VIRTIO_DRIVER_FEATURES_SEL);
      break;
    case QUEUE_SEL:
      store<u32>(slot, value, VIRTIO_QUEUE_SEL);
      break;
    case QUEUE_NUM:
      storeQueueSize(slot, value);
      break;
    case QUEUE_READY:
      storeQueueReady(slot, index, value);
      break;
    case QUEUE_NOTIFY:
      notifyQueue(slot, index, value);
      break;
    case INTERRUPT_ACK:
      atomic.and<u32>(slot, ~value, VIRTIO_INTERRUPT_STATUS_WORD);
      updateLines();
      break;
    case STATUS:
      if (value === 0) resetDevice(slot, index);
      else storeStatus(slot, index, value);
      break;
    default:
      if (register >= QUEUE_DESC_LOW && register < SHM_LEN_LOW) {
        storeQueueAddress(slot, register, value);
      }
      break;
  }
}

/** Features are settled once FEATURES_OK stands (virtio 1.2, 3.1.1). */
function storeDriverFeatures(slot: u32, value: u32): void {
  const select: u32 = load<u32>(slot, VIRTIO_DRIVER_FEATURES_SEL);
  const status: u32 = atomic.load<u32>(slot, VIRTIO_STATUS_WORD);
  if (select >= 2 || (status & STATUS_FEATURES_OK) !== 0) return;
  store<u32>(slot + 4 * select, value, VIRTIO_DRIVER_FEATURES);
}

function storeStatus(slot: u32, index: u32, value: u32): void {
  let status: u32 = value & STATUS_DRIVER_BITS;
  const offered: u64 = load<u64>(slot, VIRTIO_DEVICE_FEATURES);
  const accepted: u64 = load<u64>(slot, VIRTIO_DRIVER_FEATURES);
  if ((accepted & ~offered) !== 0 || (accepted & VIRTIO_F_VERSION_1) === 0) {
    // Only what was offered, and always version 1 (virtio 1.2, 2.2.2 and 6.2).
    status &= ~STATUS_FEATURES_OK;
  }
  // Only the driver's own bits change: NEEDS_RESET is the device's until the next reset.
  atomic.or<u32>(slot, status, VIRTIO_STATUS_WORD);
  atomic.and<u32>(slot, status | ~STATUS_DRIVER_BITS, VIRTIO_STATUS_WORD);
  ringDoorbell(DOORBELL_VIRTIO << index);
}

/**
 * The selected queue's block; 0 if there is none. The selection is read once: another hart may
 * change it.
 */
function findQueue(slot: u32): u32 {
  const select: u32 = load<u32>(slot, VIRTIO_QUEUE_SEL);
  if (select >= VIRTIO_QUEUE_COUNT) return 0;
  const queue: u32 = slot + VIRTIO_QUEUES + select * VIRTIO_QUEUE_STRIDE;
  return load<u32>(queue, VIRTIO_QUEUE_NUM_MAX) === 0 ? 0 : queue;
}

function readQueueWord(slot: u32, offset: u32): u32 {
  const queue: u32 = findQueue(slot);
  return queue === 0 ? 0 : atomic.load<u32>(queue + offset);
}

/** Whether the driver may set the queue up: it must not touch one in use (virtio 1.2, 4.2.3.2). */
function isQueueOpen(queue: u32): bool {
  return queue !== 0 && atomic.load<u32>(queue, VIRTIO_QUEUE_READY_WORD) === 0;
}

function storeQueueSize(slot: u32, value: u32): void {
  const queue: u32 = findQueue(slot);
  if (!isQueueOpen(queue)) return;
  const isLegal: bool = value <= load<u32>(queue, VIRTIO_QUEUE_NUM_MAX) && popcnt(value) === 1;
  store<u32>(queue, isLegal ? value : 0, VIRTIO_QUEUE_NUM);
}

function storeQueueAddress(slot: u32, register: u32, value: u32): void {
  const queue: u32 = findQueue(slot);
  if (!isQueueOpen(queue) || (register & 0x0f) > 4) return;
  let field: u32 = VIRTIO_QUEUE_DESC;
  if (register >= QUEUE_DEVICE_LOW) field = VIRTIO_QUEUE_DEVICE;
  else if (register >= QUEUE_DRIVER_LOW) field = VIRTIO_QUEUE_DRIVER;
  store<u32>(queue + field + (register & 4), value);
}

function storeQueueReady(slot: u32, index: u32, value: u32): void {
  const queue: u32 = findQueue(slot);
  if (queue === 0) return;
  if ((value & 1) === 0) {
    atomic.store<u32>(queue, 0, VIRTIO_QUEUE_READY_WORD);
    return;
  }
  if (isQueueInRam(queue)) {
    atomic.store<u32>(queue, 1, VIRTIO_QUEUE_READY_WORD);
    return;
  }
  const status: u32 = atomic.or<u32>(slot, STATUS_NEEDS_RESET, VIRTIO_STATUS_WORD);
  if ((status & STATUS_DRIVER_OK) !== 0) {
    atomic.or<u32>(slot, INTERRUPT_CONFIG, VIRTIO_INTERRUPT_STATUS_WORD);
    updateLines();
  }
  ringDoorbell(DOORBELL_VIRTIO << index);
}

/** Sizes and alignments of the three parts: virtio 1.2, 2.7. */
function isQueueInRam(queue: u32): bool {
  const count: u64 = <u64> load<u32>(queue, VIRTIO_QUEUE_NUM);
  return count !== 0 &&
    isRamArea(load<u64>(queue, VIRTIO_QUEUE_DESC), 16 * count, 16) &&
    isRamArea(load<u64>(queue, VIRTIO_QUEUE_DRIVER), 6 + 2 * count, 2) &&
    isRamArea(load<u64>(queue, VIRTIO_QUEUE_DEVICE), 6 + 8 * count, 4);
}

function isRamArea(gpa: u64, length: u64, alignment: u64): bool {
  const ramBytes: u64 = load<u64>(RAM_BYTES);
  return gpa % alignment === 0 && gpa >= RAM_GPA && gpa - RAM_GPA <= ramBytes &&
    length <= ramBytes - (gpa - RAM_GPA);
}

function notifyQueue(slot: u32, index: u32, value: u32): void {
  if (value >= VIRTIO_QUEUE_COUNT) return;
  atomic.or<u32>(slot, 1 << value, VIRTIO_NOTIFY_WORD);
  ringDoorbell(DOORBELL_VIRTIO << index);
}

function resetDevice(slot: u32, index: u32): void {
  atomic.store<u32>(slot, 0, VIRTIO_STATUS_WORD);
  for (let select: u32 = 0; select < VIRTIO_QUEUE_COUNT; select++) {
    const queue: u32 = slot + VIRTIO_QUEUES + select * VIRTIO_QUEUE_STRIDE;
    atomic.store<u32>(queue, 0, VIRTIO_QUEUE_READY_WORD);
  }
  const ticket: i32 = atomic.add<i32>(slot, 1, VIRTIO_RESET_WORD) + 1;
  ringDoorbell(DOORBELL_VIRTIO << index);
  awaitReset(slot, ticket);

  for (let select: u32 = 0; select < VIRTIO_QUEUE_COUNT; select++) {
    const queue: u32 = slot + VIRTIO_QUEUES + select * VIRTIO_QUEUE_STRIDE;
    store<u32>(queue, 0, VIRTIO_QUEUE_NUM);
    store<u64>(queue, 0, VIRTIO_QUEUE_DESC);
    store<u64>(queue, 0, VIRTIO_QUEUE_DRIVER);
    store<u64>(queue, 0, VIRTIO_QUEUE_DEVICE);
  }
  store<u64>(slot, 0, VIRTIO_DRIVER_FEATURES);
  store<u32>(slot, 0, VIRTIO_DEVICE_FEATURES_SEL);
  store<u32>(slot, 0, VIRTIO_DRIVER_FEATURES_SEL);
  store<u32>(slot, 0, VIRTIO_QUEUE_SEL);
  atomic.store<u32>(slot, 0, VIRTIO_NOTIFY_WORD);
  atomic.store<u32>(slot, 0, VIRTIO_INTERRUPT_STATUS_WORD);
  updateLines();
}

/**
 * Waits until the I/O worker has finished with the device. The disk may take its time, so other
 * harts' fences don't wait for this one meanwhile (remote.ts), and a stop of the machine ends the
 * wait.
 */
function awaitReset(slot: u32, ticket: i32): void {
  atomic.store<u32>(hart, HART_WAITING, HART_STATE_WORD);
  while (!isStopping()) {
    const done: i32 = atomic.load<i32>(slot, VIRTIO_RESET_DONE_WORD);
    if (done - ticket >= 0) break;
    atomic.wait<i32>(slot + VIRTIO_RESET_DONE_WORD, done, RESET_WAIT_NS);
  }
  atomic.store<u32>(hart, HART_RUNNING, HART_STATE_WORD);
  handleRemoteRequests();
}
