/** The ring itself: indexes, notifications, interrupts, and every way a driver can break it. */
import { assert, assertEquals } from "@std/assert";
import {
  BLK_S_OK,
  BLK_T_FLUSH,
  BLK_T_IN,
  DESC_INDIRECT,
  DESC_NEXT,
  DESC_WRITE,
  FEATURE_EVENT_IDX,
  FEATURE_INDIRECT,
  FEATURE_VERSION_1,
  type GuestBuffer,
  GuestDisk,
  layout,
} from "../support/guest_queue.ts";
import { TestDisk } from "../support/test_disk.ts";

const RAM_GPA = Number(layout.RAM_GPA);
const RAM_BYTES = 256 * 1024;
const NO_EVENT_INDEX = FEATURE_VERSION_1 | FEATURE_INDIRECT;

function createDisk(options: { size?: number; features?: bigint } = {}): GuestDisk {
  return new GuestDisk(new TestDisk(64 * 1024), { ramBytes: RAM_BYTES, ...options });
}

/** Offers a chain of one writable buffer and says how the queue took it. */
function offerBuffer(guest: GuestDisk, buffer: Partial<GuestBuffer>): string {
  const head = guest.queue.addChain([{ gpa: RAM_GPA, length: 1, isWritable: true, ...buffer }]);
  guest.queue.offer(head);
  guest.work();
  return guest.device.brokenBy;
}

Deno.test("Virtqueue.pop() wraps around the ring and the 16-bit index", () => {
  const guest = createDisk({ size: 4 });
  // Indexes run freely: 70,000 requests pass 2^16 once.
  const request = guest.request(BLK_T_FLUSH, 0);
  for (let count = 1; count <= 70_000; count++) {
    guest.queue.offer(request.head);
    guest.work();
    if (guest.queue.usedIndex !== (count & 0xffff)) throw new Error(`request ${count} is lost`);
  }
  assertEquals(guest.statusOf(request), BLK_S_OK);
  assertEquals(guest.device.brokenBy, "");
});

Deno.test("Virtqueue takes a full ring in one go and interrupts once", () => {
  const guest = createDisk({ size: 8, features: NO_EVENT_INDEX });
  const requests = Array.from(
    { length: 8 },
    () => guest.request(BLK_T_IN, 0, { segments: [512], isIndirect: true }),
  );
  for (const { head } of requests) guest.queue.offer(head);
  guest.work();
  assertEquals(guest.queue.takeUsed().length, 8);
  assertEquals(guest.queue.takeInterrupts(), 1);
  guest.work();
  assertEquals(guest.queue.takeInterrupts(), 0);
});

Deno.test("Virtqueue.signal() heeds NO_INTERRUPT without the event index", () => {
  const guest = createDisk({ features: NO_EVENT_INDEX });
  guest.queue.availFlags = 1;
  guest.run(guest.request(BLK_T_FLUSH, 0));
  assertEquals(guest.queue.takeInterrupts(), 0);
  guest.queue.availFlags = 0;
  guest.run(guest.request(BLK_T_FLUSH, 0));
  assertEquals(guest.queue.takeInterrupts(), 1);
});

Deno.test("Virtqueue.signal() interrupts when the used index passes the driver's event", () => {
  const guest = createDisk();
  guest.queue.usedEvent = 2;
  const counts = [];
  for (let index = 0; index < 5; index++) {
    guest.run(guest.request(BLK_T_FLUSH, 0));
    counts.push(guest.queue.takeInterrupts());
  }
  assertEquals(counts, [0, 0, 1, 0, 0]);
  // An event inside a batch counts as well.
  guest.queue.usedEvent = 6;
  const requests = [0, 1, 2].map(() => guest.request(BLK_T_FLUSH, 0));
  for (const { head } of requests) guest.queue.offer(head);
  guest.work();
  assertEquals(guest.queue.takeInterrupts(), 1);
});

Deno.test("Virtqueue.signal() compares indexes modulo 2^16", () => {
  const guest = createDisk({ size: 4 });
  const request = guest.request(BLK_T_FLUSH, 0);
  for (let count = 0; count < 0xffff; count++) {
    guest.queue.offer(request.head);
    guest.work();
  }
  guest.queue.takeInterrupts();
  guest.queue.usedEvent = 0;
  guest.run(request);
  assertEquals([guest.queue.usedIndex, guest.queue.takeInterrupts()], [0, 0]);
  guest.run(request);
  assertEquals([guest.queue.usedIndex, guest.queue.takeInterrupts()], [1, 1]);
});

Deno.test("Virtqueue.wantNotifications() asks for the next request only", () => {
  const guest = createDisk();
  guest.run(guest.request(BLK_T_FLUSH, 0));
  assertEquals(guest.queue.availEvent, 1);
  guest.run(guest.request(BLK_T_FLUSH, 0));
  assertEquals(guest.queue.availEvent, 2);

  const plain = createDisk({ features: NO_EVENT_INDEX });
  plain.run(plain.request(BLK_T_FLUSH, 0));
  assertEquals(plain.queue.usedFlags, 0);
});

Deno.test("Virtqueue does nothing before DRIVER_OK, without a ready queue, and after it broke", () => {
  const guest = createDisk();
  const status = guest.queue.base + layout.VIRTIO_STATUS_WORD;
  guest.queue.memory.storeWord(status, 0xb);
  const request = guest.request(BLK_T_FLUSH, 0);
  guest.run(request);
  assertEquals(guest.queue.usedIndex, 0);
  guest.queue.memory.storeWord(status, 0xf);
  guest.work();
  assertEquals(guest.queue.usedIndex, 1);
  offerBuffer(guest, { length: 0 });
  assert(guest.queue.needsReset);
  guest.queue.offer(request.head);
  guest.work();
  assertEquals(guest.queue.usedIndex, 1);
});

Deno.test("Virtqueue refuses buffers outside RAM, empty ones, and wrapped lengths", () => {
  const cases: Partial<GuestBuffer>[] = [
    { gpa: 0 },
    { gpa: RAM_GPA - 1 },
    { gpa: RAM_GPA - 1, length: 2 },
    { gpa: RAM_GPA + RAM_BYTES },
    { gpa: RAM_GPA + RAM_BYTES - 1, length: 2 },
    { gpa: RAM_GPA, length: RAM_BYTES + 1 },
    { gpa: RAM_GPA, length: 0xffff_ffff },
    { gpa: (1n << 64n) - 1n, length: 2 },
    { gpa: (1n << 64n) - 512n, length: 0xffff_ffff },
    { gpa: (1n << 63n) + BigInt(RAM_GPA) },
    { gpa: (1n << 32n) + BigInt(RAM_GPA) },
  ];
  for (const buffer of cases) {
    assertEquals(offerBuffer(createDisk(), buffer), "a buffer outside RAM", `${buffer.gpa}`);
  }
  assertEquals(offerBuffer(createDisk(), { length: 0 }), "a buffer of no bytes");
  const whole = createDisk();
  assertEquals(offerBuffer(whole, { gpa: RAM_GPA + RAM_BYTES - 1 }), "");
});

Deno.test("Virtqueue refuses chains that loop, leave their table or mix their order", () => {
  const loop = createDisk();
  loop.queue.setDescriptor(0, { gpa: RAM_GPA, length: 1, flags: DESC_NEXT, next: 1 });
  loop.queue.setDescriptor(1, { gpa: RAM_GPA, length: 1, flags: DESC_NEXT, next: 0 });
  loop.queue.offer(0);
  loop.work();
  assertEquals(loop.device.brokenBy, "a chain that is too long");

  const outside = createDisk();
  outside.queue.setDescriptor(0, { gpa: RAM_GPA, length: 1, flags: DESC_NEXT, next: 16 });
  outside.queue.offer(0);
  outside.work();
  assertEquals(outside.device.brokenBy, "a descriptor index outside its table");

  const head = createDisk();
  head.queue.offer(16);
  head.work();
  assertEquals(head.device.brokenBy, "a descriptor index outside its table");

  const order = createDisk();
  order.queue.offer(order.queue.addChain([
    { gpa: RAM_GPA, length: 1, isWritable: true },
    { gpa: RAM_GPA, length: 1, isWritable: false },
  ]));
  order.work();
  assertEquals(order.device.brokenBy, "a readable buffer behind a writable one");
});

Deno.test("Virtqueue refuses an available index that jumped, and more than fits", () => {
  const jump = createDisk();
  jump.queue.availIndex = 17;
  jump.work();
  assertEquals(jump.device.brokenBy, "an available index that jumped");

  const disk = new TestDisk(4096);
  disk.isHeld = true;
  const many = new GuestDisk(disk, { ramBytes: RAM_BYTES, size: 4 });
  const request = many.request(BLK_T_FLUSH, 0);
  for (let index = 0; index < 5; index++) {
    many.queue.offer(request.head);
    many.work();
  }
  assertEquals(many.device.brokenBy, "more requests than entries");
  disk.releaseAll();
  return many.device.drain();
});

Deno.test("Virtqueue follows indirect tables, also behind direct descriptors, and checks them", () => {
  const guest = createDisk();
  const { queue } = guest;
  const status = queue.allocate(1);
  const table = queue.allocate(32);
  queue.setDescriptor(0, { gpa: status, length: 1, flags: DESC_WRITE, next: 0 }, table);
  queue.setDescriptor(0, { gpa: guest.header(BLK_T_FLUSH, 0), length: 16, flags: 1, next: 1 });
  queue.setDescriptor(1, { gpa: table, length: 32, flags: DESC_INDIRECT, next: 0 });
  queue.at(status, 1)[0] = 9;
  queue.offer(0);
  guest.work();
  assertEquals(queue.at(status, 1)[0], BLK_S_OK);

  const bad: [string, Partial<{ gpa: number; length: number; flags: number }>][] = [
    ["an indirect table of 0 bytes", { length: 0 }],
    ["an indirect table of 17 bytes", { length: 17 }],
    ["an indirect table of 4112 bytes", { length: 16 * 257 }],
    ["an indirect table outside RAM", { gpa: RAM_GPA + RAM_BYTES - 16 }],
    ["an indirect descriptor with a next", { flags: DESC_INDIRECT | DESC_NEXT }],
  ];
  for (const [reason, change] of bad) {
    const other = createDisk();
    const descriptor = { gpa: RAM_GPA, length: 32, flags: DESC_INDIRECT, next: 0, ...change };
    other.queue.setDescriptor(0, descriptor);
    other.queue.offer(0);
    other.work();
    assertEquals(other.device.brokenBy, reason);
  }
  const nested = createDisk();
  const inner = nested.queue.allocate(16);
  nested.queue.setDescriptor(0, { gpa: inner, length: 16, flags: DESC_INDIRECT, next: 0 });
  nested.queue.setDescriptor(0, { gpa: inner, length: 16, flags: DESC_INDIRECT, next: 0 }, inner);
  nested.queue.offer(0);
  nested.work();
  assertEquals(nested.device.brokenBy, "an indirect table inside an indirect table");

  const plain = createDisk({ features: FEATURE_VERSION_1 | FEATURE_EVENT_IDX });
  plain.queue.setDescriptor(0, { gpa: inner, length: 16, flags: DESC_INDIRECT, next: 0 });
  plain.queue.offer(0);
  plain.work();
  assertEquals(plain.device.brokenBy, "an indirect descriptor without the feature");
});

Deno.test("Virtqueue refuses rings that are misaligned, outside RAM or of a bad size", () => {
  const { VIRTIO_QUEUE_NUM, VIRTIO_QUEUE_DESC, VIRTIO_QUEUE_DRIVER, VIRTIO_QUEUE_DEVICE } = layout;
  const cases: [number, bigint][] = [
    [VIRTIO_QUEUE_NUM, 0n],
    [VIRTIO_QUEUE_NUM, 3n],
    [VIRTIO_QUEUE_NUM, 512n],
    [VIRTIO_QUEUE_NUM, 0xffff_ffffn],
    [VIRTIO_QUEUE_DESC, BigInt(RAM_GPA + 8)],
    [VIRTIO_QUEUE_DESC, BigInt(RAM_GPA + RAM_BYTES - 16)],
    [VIRTIO_QUEUE_DESC, 0n],
    [VIRTIO_QUEUE_DRIVER, BigInt(RAM_GPA + 1)],
    [VIRTIO_QUEUE_DRIVER, (1n << 64n) - 2n],
    [VIRTIO_QUEUE_DEVICE, BigInt(RAM_GPA + 2)],
    [VIRTIO_QUEUE_DEVICE, BigInt(RAM_GPA + RAM_BYTES - 64)],
  ];
  for (const [register, value] of cases) {
    const guest = createDisk();
    const { view } = guest.queue.memory;
    const at = guest.queue.base + layout.VIRTIO_QUEUES + register;
    if (register === VIRTIO_QUEUE_NUM) view.setUint32(at, Number(value), true);
    else view.setBigUint64(at, value, true);
    guest.work();
    assert(guest.queue.needsReset, `register ${register} = ${value}`);
    assertEquals(guest.queue.takeInterrupts(), 2);
  }
});

Deno.test("Virtqueue keeps what it took over when the driver changes registers of a live queue", () => {
  const guest = createDisk();
  const request = guest.request(BLK_T_FLUSH, 0);
  guest.run(request);
  const { view } = guest.queue.memory;
  const block = guest.queue.base + layout.VIRTIO_QUEUES;
  view.setBigUint64(block + layout.VIRTIO_QUEUE_DESC, 0n, true);
  view.setUint32(block + layout.VIRTIO_QUEUE_NUM, 0x8000, true);
  guest.queue.offer(request.head);
  guest.work();
  assertEquals(guest.queue.usedIndex, 2);
});
