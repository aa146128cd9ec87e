import { assertEquals } from "@std/assert";
import {
  BARE_RAM_BYTES,
  type BareHart,
  BareMachine,
  layout,
  RAM,
} from "../../support/bare_hart.ts";

const SLOT = 3;
const GPA = layout.VIRTIO_GPA + SLOT * layout.VIRTIO_SLOT_SIZE;
const BASE = layout.VIRTIO_BASE + SLOT * layout.VIRTIO_STRIDE;
const DOORBELL = layout.DOORBELL_VIRTIO << SLOT;
const SEIP = 1 << 9;

const DEVICE_FEATURES = 0x010;
const DEVICE_FEATURES_SEL = 0x014;
const DRIVER_FEATURES = 0x020;
const DRIVER_FEATURES_SEL = 0x024;
const QUEUE_SEL = 0x030;
const QUEUE_NUM_MAX = 0x034;
const QUEUE_NUM = 0x038;
const QUEUE_READY = 0x044;
const QUEUE_NOTIFY = 0x050;
const INTERRUPT_STATUS = 0x060;
const INTERRUPT_ACK = 0x064;
const STATUS = 0x070;
const QUEUE_DESC = 0x080;
const QUEUE_DRIVER = 0x090;
const QUEUE_DEVICE = 0x0a0;
const QUEUE_RESET = 0x0c0;
const CONFIG_GENERATION = 0x0fc;
const CONFIG = 0x100;

const DRIVER_OK = 4;
const FEATURES_OK = 8;
const NEEDS_RESET = 64;

/** A device with two queues in the slot, and no I/O worker: resets are answered beforehand. */
function createDevice(): { machine: BareMachine; hart: BareHart } {
  const machine = new BareMachine();
  const { view, bytes } = machine.memory;
  machine.memory.storeWord(BASE + layout.VIRTIO_DEVICE_ID, 2);
  view.setBigUint64(BASE + layout.VIRTIO_DEVICE_FEATURES, 0x1_3000_0200n, true);
  for (const queue of [0, 1]) {
    const block = BASE + layout.VIRTIO_QUEUES + queue * layout.VIRTIO_QUEUE_STRIDE;
    machine.memory.storeWord(block + layout.VIRTIO_QUEUE_NUM_MAX, 256);
  }
  for (let index = 0; index < 256; index++) bytes[BASE + layout.VIRTIO_CONFIG + index] = index;
  machine.memory.storeWord(BASE + layout.VIRTIO_RESET_DONE_WORD, 1000);
  return { machine, hart: machine.hart() };
}

function setUpQueue(hart: BareHart, queue: { index?: number; size?: number; gpa?: number }): void {
  const { index = 0, size = 8, gpa = RAM + 0x10_0000 } = queue;
  hart.put(GPA + QUEUE_SEL, index);
  hart.put(GPA + QUEUE_NUM, size);
  for (
    const [register, offset] of [[QUEUE_DESC, 0], [QUEUE_DRIVER, 0x4000], [QUEUE_DEVICE, 0x8000]]
  ) {
    const address = gpa + (offset ?? 0);
    hart.put(GPA + (register ?? 0), address % 2 ** 32);
    hart.put(GPA + (register ?? 0) + 4, Math.floor(address / 2 ** 32));
  }
  hart.put(GPA + QUEUE_READY, 1);
}

Deno.test("virtio-mmio: an empty slot is a device of id 0 that ignores stores", () => {
  const machine = new BareMachine();
  const hart = machine.hart();
  assertEquals([0, 4, 8].map((offset) => hart.read(GPA + offset)), [0x74726976, 2, 0]);
  for (let offset = 0; offset < 0x100; offset += 4) hart.put(GPA + offset, 0xffff_ffff);
  hart.put(GPA + STATUS, 0); // a reset that nobody would answer
  const slot = machine.memory.bytes.subarray(BASE, BASE + layout.VIRTIO_STRIDE);
  assertEquals(slot.every((byte) => byte === 0), true);
  assertEquals(machine.takeDoorbells(), 0);
});

Deno.test("virtio-mmio: features are offered and accepted by halves, and checked", () => {
  const { machine, hart } = createDevice();
  const offered = [0, 1, 2].map((half) => {
    hart.put(GPA + DEVICE_FEATURES_SEL, half);
    return hart.read(GPA + DEVICE_FEATURES);
  });
  assertEquals(offered, [0x3000_0200, 1, 0]);

  const accept = (low: number, high: number) => {
    hart.put(GPA + DRIVER_FEATURES_SEL, 0);
    hart.put(GPA + DRIVER_FEATURES, low);
    hart.put(GPA + DRIVER_FEATURES_SEL, 1);
    hart.put(GPA + DRIVER_FEATURES, high);
    hart.put(GPA + DRIVER_FEATURES_SEL, 2);
    hart.put(GPA + DRIVER_FEATURES, 0xffff_ffff);
    hart.put(GPA + STATUS, 3 | FEATURES_OK);
    return hart.read(GPA + STATUS) & FEATURES_OK;
  };
  assertEquals(accept(0x200, 0), 0, "without VERSION_1");
  assertEquals(accept(0x201, 1), 0, "with what was not offered");
  assertEquals(accept(0x200, 1), FEATURES_OK);
  accept(0x3000_0200, 1); // settled: no longer changed
  const accepted = machine.memory.view.getBigUint64(BASE + layout.VIRTIO_DRIVER_FEATURES, true);
  assertEquals(accepted, 0x1_0000_0200n);
});

Deno.test("virtio-mmio: a queue is set up once, within its bounds, and notified by its number", () => {
  const { machine, hart } = createDevice();
  setUpQueue(hart, { index: 1 });
  assertEquals(hart.read(GPA + QUEUE_NUM_MAX), 256);
  assertEquals(hart.read(GPA + QUEUE_READY), 1);
  setUpQueue(hart, { index: 1, size: 16, gpa: 0 }); // in use: nothing changes
  const block = BASE + layout.VIRTIO_QUEUES + layout.VIRTIO_QUEUE_STRIDE;
  const { memory } = machine;
  assertEquals(memory.loadWord(block + layout.VIRTIO_QUEUE_NUM), 8);
  assertEquals(memory.readU64(block + layout.VIRTIO_QUEUE_DEVICE), RAM + 0x10_8000);

  machine.takeDoorbells();
  hart.put(GPA + QUEUE_NOTIFY, 1);
  hart.put(GPA + QUEUE_NOTIFY, 8);
  hart.put(GPA + QUEUE_NOTIFY, 0xffff_ffff);
  assertEquals(memory.loadWord(BASE + layout.VIRTIO_NOTIFY_WORD), 2);
  assertEquals(machine.takeDoorbells(), DOORBELL);

  hart.put(GPA + QUEUE_READY, 0);
  assertEquals(hart.read(GPA + QUEUE_READY), 0);
});

Deno.test("virtio-mmio: a queue that does not exist has no size and can't be made ready", () => {
  const { hart } = createDevice();
  for (const index of [2, 7, 8, 0x1000_0000, 0xffff_ffff]) {
    setUpQueue(hart, { index });
    assertEquals(hart.read(GPA + QUEUE_NUM_MAX), 0);
    assertEquals(hart.read(GPA + QUEUE_READY), 0);
  }
  assertEquals(hart.read(GPA + STATUS), 0);
});

Deno.test("virtio-mmio: a queue outside RAM, misaligned or of a bad size fails the device", () => {
  const bad = [
    { size: 0 },
    { size: 3 },
    { size: 512 },
    { gpa: 0 },
    { gpa: RAM - 0x1000 },
    { gpa: RAM + BARE_RAM_BYTES - 0x8000 },
    { gpa: 2 ** 52 },
    { gpa: RAM + 0x10_0008 },
  ];
  for (const queue of bad) {
    const { machine, hart } = createDevice();
    hart.put(layout.PLIC_GPA + 4 * (layout.VIRTIO_IRQ + SLOT), 1);
    hart.put(layout.PLIC_GPA + 0x2080, 1 << (layout.VIRTIO_IRQ + SLOT));
    hart.put(GPA + STATUS, DRIVER_OK);
    setUpQueue(hart, queue);
    assertEquals(hart.read(GPA + QUEUE_READY), 0, JSON.stringify(queue));
    assertEquals(hart.read(GPA + STATUS), DRIVER_OK | NEEDS_RESET);
    assertEquals(hart.read(GPA + INTERRUPT_STATUS), 2);
    assertEquals(hart.pending() & SEIP, SEIP);
    hart.put(GPA + STATUS, DRIVER_OK); // only a reset helps
    assertEquals(hart.read(GPA + STATUS), DRIVER_OK | NEEDS_RESET);
    hart.put(GPA + STATUS, 0);
    assertEquals(hart.read(GPA + STATUS), 0);
    assertEquals(machine.memory.loadWord(BASE + layout.VIRTIO_INTERRUPT_STATUS_WORD), 0);
  }
});

Deno.test("virtio-mmio: the line is high while any interrupt is unacknowledged", () => {
  const { machine, hart } = createDevice();
  const { words } = machine.memory;
  const status = (BASE + layout.VIRTIO_INTERRUPT_STATUS_WORD) >>> 2;
  hart.put(layout.PLIC_GPA + 4 * (layout.VIRTIO_IRQ + SLOT), 1);
  hart.put(layout.PLIC_GPA + 0x2080, 1 << (layout.VIRTIO_IRQ + SLOT));
  Atomics.or(words, status, 3);
  assertEquals(hart.pending() & SEIP, SEIP);
  hart.put(GPA + INTERRUPT_ACK, 1);
  assertEquals(hart.read(GPA + INTERRUPT_STATUS), 2);
  assertEquals(hart.pending() & SEIP, SEIP);
  hart.put(GPA + INTERRUPT_ACK, 0xffff_ffff);
  assertEquals(hart.pending() & SEIP, 0);
});

Deno.test("virtio-mmio: configuration is read in every size, within its bounds, and not written", () => {
  const { machine, hart } = createDevice();
  assertEquals(hart.load(GPA + CONFIG + 8, 8), 0x0f0e_0d0c_0b0a_0908n);
  assertEquals(hart.read(GPA + CONFIG + 4, 4), 0x0706_0504);
  assertEquals(hart.read(GPA + CONFIG + 6, 2), 0x0706);
  assertEquals(hart.read(GPA + CONFIG + 255, 1), 255);
  for (const size of [1, 2, 4, 8]) {
    assertEquals(hart.read(GPA + CONFIG + 256, size), 0);
    assertEquals(hart.read(GPA + 0xff8, size), 0);
    hart.put(GPA + CONFIG + 8, 0xffff, size);
  }
  assertEquals(hart.load(GPA + CONFIG + 8, 8), 0x0f0e_0d0c_0b0a_0908n);
  machine.memory.storeWord(BASE + layout.VIRTIO_CONFIG_GENERATION_WORD, 41);
  assertEquals(hart.read(GPA + CONFIG_GENERATION), 41);
});

Deno.test("virtio-mmio: shared memory regions do not exist, queue reset is not offered", () => {
  const { hart } = createDevice();
  hart.put(GPA + 0x0ac, 0);
  for (const register of [0x0b0, 0x0b4, 0x0b8, 0x0bc]) {
    assertEquals(hart.read(GPA + register), 0xffff_ffff);
  }
  setUpQueue(hart, {});
  hart.put(GPA + QUEUE_RESET, 1);
  assertEquals(hart.read(GPA + QUEUE_RESET), 0);
  assertEquals(hart.read(GPA + QUEUE_READY), 1);
});

Deno.test("virtio-mmio: a reset clears what the driver set, and not what the device is", () => {
  const { machine, hart } = createDevice();
  hart.put(GPA + DRIVER_FEATURES_SEL, 1);
  hart.put(GPA + DRIVER_FEATURES, 1);
  setUpQueue(hart, { index: 1 });
  hart.put(GPA + STATUS, 0x0f);
  hart.put(GPA + QUEUE_NOTIFY, 1);
  machine.takeDoorbells();
  hart.put(GPA + STATUS, 0);
  assertEquals(machine.takeDoorbells(), DOORBELL);
  assertEquals(machine.memory.loadWord(BASE + layout.VIRTIO_RESET_WORD), 1);
  assertEquals(machine.memory.loadWord(BASE + layout.VIRTIO_NOTIFY_WORD), 0);
  assertEquals(machine.memory.view.getBigUint64(BASE + layout.VIRTIO_DRIVER_FEATURES, true), 0n);
  hart.put(GPA + QUEUE_SEL, 1);
  assertEquals(hart.read(GPA + QUEUE_READY), 0);
  assertEquals(hart.read(GPA + QUEUE_NUM_MAX), 256);
  assertEquals(hart.read(GPA + 8), 2);
  assertEquals(hart.state, layout.HART_RUNNING);
});

Deno.test("virtio-mmio: a reset that nobody finishes ends with the machine's stop", () => {
  const { machine, hart } = createDevice();
  machine.memory.storeWord(BASE + layout.VIRTIO_RESET_DONE_WORD, 0);
  // The clock is asked while the hart waits for nothing else: that is where the stop comes from.
  hart.put(GPA + STATUS, 1);
  const worker = new Worker(
    `data:text/javascript,self.onmessage = ({ data }) => {
      const words = new Int32Array(data.buffer);
      while (Atomics.load(words, data.reset) === 0);
      Atomics.store(words, data.stop, 1);
      self.close();
    }`,
    { type: "module" },
  );
  worker.postMessage({
    buffer: machine.memory.buffer,
    reset: (BASE + layout.VIRTIO_RESET_WORD) >>> 2,
    stop: layout.STOP_WORD >>> 2,
  });
  hart.put(GPA + STATUS, 0);
  assertEquals(machine.memory.loadWord(layout.STOP_WORD), 1);
  assertEquals(machine.memory.loadWord(BASE + layout.VIRTIO_STATUS_WORD), 0);
  worker.terminate();
});

Deno.test("virtio-mmio: nonsense in every register leaves other slots and the device alone", () => {
  const { machine, hart } = createDevice();
  const neighbours = [BASE - layout.VIRTIO_STRIDE, BASE + layout.VIRTIO_STRIDE];
  for (const base of neighbours) {
    machine.memory.bytes.fill(0x3c, base, base + layout.VIRTIO_STRIDE);
    machine.memory.storeWord(base + layout.VIRTIO_INTERRUPT_STATUS_WORD, 0);
  }
  const before = neighbours.map((base) =>
    machine.memory.bytes.slice(base, base + layout.VIRTIO_STRIDE)
  );
  const values = [0, 1, 7, 8, 0x7f, 0x8000_0000, 0xffff_ffff];
  for (const select of values) {
    for (let offset = 0; offset < 0x400; offset += 4) {
      hart.put(GPA + QUEUE_SEL, select);
      for (const value of values) hart.put(GPA + offset, value);
      hart.read(GPA + offset);
    }
  }
  neighbours.forEach((base, index) =>
    assertEquals(machine.memory.bytes.slice(base, base + layout.VIRTIO_STRIDE), before[index])
  );
  assertEquals(hart.read(GPA + 8), 2);
  hart.put(GPA + QUEUE_SEL, 0);
  assertEquals(hart.read(GPA + QUEUE_NUM_MAX), 256);
});
