/** virtio-blk as its driver sees it: each request type, over a memory without any hart. */
import { assert, assertEquals } from "@std/assert";
import { BlockError } from "../../src/block/errors.ts";
import { REQ_FUA, REQ_MAY_UNMAP } from "../../src/block/types.ts";
import { limits } from "../../src/limits.ts";
import { statusOfError } from "../../src/machine/virtio_blk.ts";
import {
  BLK_S_IOERR,
  BLK_S_NONE,
  BLK_S_OK,
  BLK_S_UNSUPP,
  BLK_T_DISCARD,
  BLK_T_FLUSH,
  BLK_T_GET_ID,
  BLK_T_IN,
  BLK_T_OUT,
  BLK_T_WRITE_ZEROES,
  FEATURE_VERSION_1,
  GuestDisk,
  layout,
} from "../support/guest_queue.ts";
import { TestDisk } from "../support/test_disk.ts";

const KiB = 1024;

function fill(disk: TestDisk): void {
  for (let index = 0; index < disk.sizeBytes; index++) disk.bytes[index] = (index * 7) >>> 3;
}

/** Ranges of a discard or write-zeroes request. */
function ranges(...list: { sector: number | bigint; count: number; flags?: number }[]): Uint8Array {
  const bytes = new Uint8Array(16 * list.length);
  const view = new DataView(bytes.buffer);
  list.forEach(({ sector, count, flags }, index) => {
    view.setBigUint64(16 * index, BigInt(sector), true);
    view.setUint32(16 * index + 8, count, true);
    view.setUint32(16 * index + 12, flags ?? 0, true);
  });
  return bytes;
}

Deno.test("VirtioBlk describes the disk in its configuration space", () => {
  const { queue } = new GuestDisk(new TestDisk(7 * 512));
  const { view } = queue.memory;
  const config = queue.base + layout.VIRTIO_CONFIG;
  assertEquals(queue.memory.loadWord(queue.base + layout.VIRTIO_DEVICE_ID), 2);
  assertEquals(view.getBigUint64(config, true), 7n);
  assertEquals(view.getUint32(config + 12, true), 254);
  assertEquals(view.getUint32(config + 20, true), 512);
  assertEquals(view.getUint16(config + 34, true), 1);
  assertEquals(view.getUint8(config + 56), 1);
});

Deno.test("VirtioBlk moves data between several segments and the disk, direct and indirect", () => {
  for (const isIndirect of [false, true]) {
    const disk = new TestDisk(64 * KiB);
    fill(disk);
    const guest = new GuestDisk(disk);
    const read = guest.request(BLK_T_IN, 3, { segments: [512, 1000, 24, 512], isIndirect });
    assertEquals(guest.run(read), BLK_S_OK);
    assertEquals(guest.queue.at(read.dataGpa, 2048), disk.bytes.subarray(1536, 1536 + 2048));
    assertEquals(guest.queue.takeUsed(), [{ id: read.head, length: 2049 }]);

    const data = crypto.getRandomValues(new Uint8Array(1024));
    const write = guest.request(BLK_T_OUT, 10, { data, segments: [1, 511, 512], isIndirect });
    assertEquals(guest.run(write), BLK_S_OK);
    assertEquals(disk.bytes.slice(5120, 6144), data);
    assertEquals(guest.queue.takeUsed(), [{ id: write.head, length: 1 }]);
    assertEquals(disk.seen.at(-1)?.flags, 0);
  }
});

Deno.test("VirtioBlk accepts headers, data and status cut into any buffers", () => {
  const disk = new TestDisk(4 * KiB);
  fill(disk);
  const guest = new GuestDisk(disk);
  const header = guest.header(BLK_T_IN, 1);
  const target = guest.queue.allocate(513);
  const head = guest.queue.addChain([
    { gpa: header, length: 3, isWritable: false },
    { gpa: header + 3, length: 13, isWritable: false },
    { gpa: target, length: 1, isWritable: true },
    { gpa: target + 1, length: 512, isWritable: true },
  ]);
  guest.queue.offer(head);
  guest.work();
  assertEquals(guest.queue.at(target, 512), disk.bytes.subarray(512, 1024));
  assertEquals(guest.queue.at(target + 512, 1)[0], BLK_S_OK);
});

Deno.test("VirtioBlk reaches a disk's last sector and nothing behind it", () => {
  const disk = new TestDisk(9 * 512);
  fill(disk);
  const guest = new GuestDisk(disk, { size: 64 });
  const last = guest.request(BLK_T_IN, 8, { segments: [512] });
  assertEquals(guest.run(last), BLK_S_OK);
  assertEquals(guest.queue.at(last.dataGpa, 512), disk.bytes.subarray(4096));
  for (const sector of [9n, 8n + (1n << 32n), 1n << 55n, (1n << 64n) - 1n]) {
    assertEquals(guest.run(guest.request(BLK_T_IN, sector, { segments: [512] })), BLK_S_IOERR);
    const data = new Uint8Array(512);
    assertEquals(guest.run(guest.request(BLK_T_OUT, sector, { data })), BLK_S_IOERR);
  }
  assertEquals(guest.run(guest.request(BLK_T_IN, 8, { segments: [1024] })), BLK_S_IOERR);
  assertEquals(guest.run(guest.request(BLK_T_IN, 9, { segments: [] })), BLK_S_OK);
  assertEquals(disk.seen.length, 1);
});

Deno.test("VirtioBlk refuses what is no whole number of sectors, and short headers", () => {
  const guest = new GuestDisk(new TestDisk(4 * KiB));
  assertEquals(guest.run(guest.request(BLK_T_IN, 0, { segments: [511] })), BLK_S_IOERR);
  assertEquals(
    guest.run(guest.request(BLK_T_OUT, 0, { data: new Uint8Array(513) })),
    BLK_S_IOERR,
  );
  const status = guest.queue.allocate(1);
  const head = guest.queue.addChain([
    { gpa: guest.header(BLK_T_IN, 0), length: 15, isWritable: false },
    { gpa: status, length: 1, isWritable: true },
  ]);
  guest.queue.offer(head);
  guest.work();
  assertEquals(guest.queue.at(status, 1)[0], BLK_S_IOERR);
  assert(!guest.queue.needsReset);
});

Deno.test("VirtioBlk answers unknown requests as unsupported", () => {
  const guest = new GuestDisk(new TestDisk(4 * KiB), { size: 64 });
  for (const type of [2, 3, 5, 9, 10, 12, 14, 15, 0x8000_0000, 0xffff_ffff]) {
    assertEquals(guest.run(guest.request(type, 0)), BLK_S_UNSUPP);
  }
  assertEquals(guest.queue.takeUsed().length, 10);
});

Deno.test("VirtioBlk breaks the queue where a request has no status byte", () => {
  const guest = new GuestDisk(new TestDisk(4 * KiB));
  const header = guest.header(BLK_T_FLUSH, 0);
  guest.queue.offer(guest.queue.addChain([{ gpa: header, length: 16, isWritable: false }]));
  guest.work();
  assert(guest.queue.needsReset);
  assertEquals(guest.queue.takeInterrupts(), 2);
  assertEquals(guest.device.brokenBy, "a request without a status byte");
});

Deno.test("VirtioBlk tells its serial number, cut to the room there is", () => {
  const guest = new GuestDisk(new TestDisk(512), { serial: "0123456789abcdefghijXYZ" });
  const request = guest.request(BLK_T_GET_ID, 0, { segments: [20] });
  assertEquals(guest.run(request), BLK_S_OK);
  const text = new TextDecoder().decode(guest.queue.at(request.dataGpa, 20).slice());
  assertEquals(text, "0123456789abcdefghij");
  assertEquals(guest.queue.takeUsed(), [{ id: request.head, length: 21 }]);

  const short = guest.request(BLK_T_GET_ID, 0, { segments: [4] });
  assertEquals(guest.run(short), BLK_S_OK);
  assertEquals([...guest.queue.at(short.dataGpa, 4)], [48, 49, 50, 51]);
  const long = guest.request(BLK_T_GET_ID, 0, { segments: [32] });
  guest.queue.at(long.dataGpa, 32).fill(0xaa);
  assertEquals(guest.run(long), BLK_S_OK);
  assertEquals(guest.queue.at(long.dataGpa, 32)[20], 0xaa);
  assertEquals(guest.queue.takeUsed().map(({ length }) => length), [5, 20]);
});

Deno.test("VirtioBlk.resized() shows the new size and says so by a configuration interrupt", () => {
  let sizeBytes = 4 * KiB;
  const disk = new TestDisk(8 * KiB);
  const backend = {
    get sizeBytes() {
      return sizeBytes;
    },
    read: disk.read.bind(disk),
    write: disk.write.bind(disk),
    writeZeroes: disk.writeZeroes.bind(disk),
    discard: disk.discard.bind(disk),
    flush: disk.flush.bind(disk),
  };
  const guest = new GuestDisk(backend);
  const { memory } = guest.queue;
  const base = memory.layout.VIRTIO_BASE;
  const capacity = () => memory.view.getBigUint64(base + memory.layout.VIRTIO_CONFIG, true);
  const generation = () => memory.loadWord(base + memory.layout.VIRTIO_CONFIG_GENERATION_WORD);
  const before = generation();
  assertEquals(capacity(), 8n);
  const beyond = () => guest.run(guest.request(BLK_T_OUT, 8, { data: new Uint8Array(512) }));
  assertEquals(beyond(), BLK_S_IOERR);
  guest.queue.takeInterrupts();
  sizeBytes = 8 * KiB;
  guest.device.resized();
  assertEquals([capacity(), guest.queue.takeInterrupts()], [16n, 2]);
  assert(generation() !== before);
  assertEquals(beyond(), BLK_S_OK);
});

Deno.test("VirtioBlk flushes, and writes through where the driver can't flush", () => {
  const disk = new TestDisk(4 * KiB);
  const guest = new GuestDisk(disk);
  assertEquals(guest.run(guest.request(BLK_T_FLUSH, 0)), BLK_S_OK);
  assertEquals(disk.seen.map(({ kind }) => kind), ["flush"]);

  const simple = new GuestDisk(disk, { features: FEATURE_VERSION_1 });
  simple.run(simple.request(BLK_T_OUT, 0, { data: new Uint8Array(512) }));
  assertEquals(disk.seen.at(-1)?.flags, REQ_FUA);
  const data = ranges({ sector: 0, count: 1, flags: 1 });
  simple.run(simple.request(BLK_T_WRITE_ZEROES, 0, { data }));
  assertEquals(disk.seen.at(-1)?.flags, REQ_FUA | REQ_MAY_UNMAP);
});

Deno.test("VirtioBlk discards and writes zeroes, one or several ranges", () => {
  const disk = new TestDisk(64 * 512);
  fill(disk);
  const guest = new GuestDisk(disk, { size: 64 });
  const discard = ranges({ sector: 1, count: 2 }, { sector: 8, count: 0 }, {
    sector: 60,
    count: 4,
  });
  assertEquals(guest.run(guest.request(BLK_T_DISCARD, 0, { data: discard })), BLK_S_OK);
  assertEquals(disk.seen.map(({ kind, offset, length }) => [kind, offset, length]), [
    ["discard", 512, 1024],
    ["discard", 60 * 512, 2048],
  ]);
  disk.seen.length = 0;
  const zeroes = ranges({ sector: 4, count: 1 }, { sector: 6, count: 1, flags: 1 });
  assertEquals(guest.run(guest.request(BLK_T_WRITE_ZEROES, 0, { data: zeroes })), BLK_S_OK);
  assertEquals(disk.seen.map(({ kind, flags }) => [kind, flags]), [
    ["writeZeroes", 0],
    ["writeZeroes", REQ_MAY_UNMAP],
  ]);
  assert(disk.bytes.subarray(4 * 512, 5 * 512).every((byte) => byte === 0));
});

Deno.test("VirtioBlk refuses bad ranges before it touches any", () => {
  const disk = new TestDisk(64 * 512);
  const guest = new GuestDisk(disk, { size: 256, ramBytes: 1024 * KiB });
  const fine = { sector: 0, count: 1 };
  const run = (type: number, data: Uint8Array) => guest.run(guest.request(type, 0, { data }));
  for (const type of [BLK_T_DISCARD, BLK_T_WRITE_ZEROES]) {
    assertEquals(run(type, ranges(fine, { sector: 63, count: 2 })), BLK_S_IOERR);
    assertEquals(run(type, ranges(fine, { sector: (1n << 64n) - 1n, count: 1 })), BLK_S_IOERR);
    assertEquals(run(type, ranges(fine, { sector: 0, count: 0xffff_ffff })), BLK_S_IOERR);
    assertEquals(run(type, ranges(fine, { sector: 0, count: 1, flags: 2 })), BLK_S_UNSUPP);
    assertEquals(run(type, ranges(...Array(17).fill(fine))), BLK_S_IOERR);
    assertEquals(run(type, new Uint8Array(15)), BLK_S_IOERR);
    assertEquals(run(type, new Uint8Array(17)), BLK_S_IOERR);
    assertEquals(guest.run(guest.request(type, 0)), BLK_S_IOERR);
  }
  // 5.2.6.2: unmap is for write-zeroes only.
  assertEquals(run(BLK_T_DISCARD, ranges({ ...fine, flags: 1 })), BLK_S_UNSUPP);
  assertEquals(disk.seen, []);
});

Deno.test("VirtioBlk refuses every change of a read-only disk", () => {
  const disk = new TestDisk(64 * 512);
  const guest = new GuestDisk(disk, { isReadOnly: true });
  const { view } = guest.queue.memory;
  const features = view.getBigUint64(guest.queue.base + layout.VIRTIO_DEVICE_FEATURES, true);
  assertEquals(features & ((1n << 5n) | (1n << 13n) | (1n << 14n)), 1n << 5n);
  const data = ranges({ sector: 0, count: 1 });
  for (const type of [BLK_T_DISCARD, BLK_T_WRITE_ZEROES]) {
    assertEquals(guest.run(guest.request(type, 0, { data })), BLK_S_IOERR);
  }
  const write = guest.request(BLK_T_OUT, 0, { data: new Uint8Array(512) });
  assertEquals(guest.run(write), BLK_S_IOERR);
  assertEquals(disk.seen, []);
  assertEquals(guest.run(guest.request(BLK_T_IN, 0, { segments: [512] })), BLK_S_OK);
});

Deno.test("VirtioBlk maps a backend's errors to a status, thrown or rejected", async () => {
  assertEquals(statusOfError("ENOTSUP"), BLK_S_UNSUPP);
  for (const code of ["EIO", "ENOSPC", "EPERM", "ETIMEDOUT", "EACCES", "EINVAL"] as const) {
    assertEquals(statusOfError(code), BLK_S_IOERR);
  }
  const disk = new TestDisk(4 * KiB);
  const guest = new GuestDisk(disk);
  disk.error = new BlockError("EIO", "the medium is gone");
  assertEquals(guest.run(guest.request(BLK_T_IN, 0, { segments: [512] })), BLK_S_IOERR);
  assertEquals(guest.queue.takeUsed().map(({ length }) => length), [0]);
  disk.isHeld = true;
  const write = guest.request(BLK_T_OUT, 0, { data: new Uint8Array(512) });
  assertEquals(guest.run(write), BLK_S_NONE);
  disk.releaseAll();
  await guest.device.drain();
  assertEquals(guest.statusOf(write), BLK_S_IOERR);
});

Deno.test("VirtioBlk finishes requests in whatever order the backend does", async () => {
  const disk = new TestDisk(4 * KiB);
  fill(disk);
  disk.isHeld = true;
  const guest = new GuestDisk(disk, { size: 32 });
  const requests = [0, 1, 2].map((sector) => guest.request(BLK_T_IN, sector, { segments: [512] }));
  for (const { head } of requests) guest.queue.offer(head);
  guest.work();
  assertEquals(guest.queue.usedIndex, 0);
  for (const index of [2, 0, 0]) {
    disk.release(index);
    await Promise.resolve();
  }
  await guest.device.drain();
  const order = [requests[2], requests[0], requests[1]].map((request) => request?.head);
  assertEquals(guest.queue.takeUsed().map(({ id }) => id), order);
  for (const [sector, request] of requests.entries()) {
    assertEquals(guest.statusOf(request), BLK_S_OK);
    const expected = disk.bytes.subarray(512 * sector, 512 * (sector + 1));
    assertEquals(guest.queue.at(request.dataGpa, 512), expected);
  }
});

Deno.test("VirtioBlk makes a transfer in pieces where it is long, and still exact", async () => {
  const disk = new TestDisk(10 * 1024 * KiB);
  fill(disk);
  const guest = new GuestDisk(disk, { ramBytes: 16 * 1024 * KiB });
  const length = 9 * 1024 * KiB + 512;
  const request = guest.request(BLK_T_IN, 1, { segments: [length - 1000, 1000] });
  guest.run(request);
  await guest.device.drain();
  assertEquals(guest.statusOf(request), BLK_S_OK);
  assertEquals(disk.seen.length, 3);
  const got = guest.queue.at(request.dataGpa, length);
  assert(got.every((byte, index) => byte === disk.bytes[512 + index]));
});

Deno.test("VirtioBlk answers a reset when nothing is in flight any more", async () => {
  const disk = new TestDisk(4 * KiB);
  const guest = new GuestDisk(disk);
  guest.queue.askReset();
  guest.work();
  assert(guest.queue.isResetDone);
  guest.queue.clear();
  guest.queue.start();

  disk.isHeld = true;
  const pending = guest.request(BLK_T_IN, 0, { segments: [512] });
  guest.run(pending);
  guest.queue.askReset();
  guest.work();
  assert(!guest.queue.isResetDone);
  const late = guest.request(BLK_T_FLUSH, 0);
  guest.queue.offer(late.head);
  guest.work();
  assertEquals(disk.heldCount, 1);
  disk.isHeld = false;
  disk.releaseAll();
  await guest.device.drain();
  assert(guest.queue.isResetDone);
  // The driver took its buffers back with the reset.
  assertEquals(guest.statusOf(pending), BLK_S_NONE);
  assertEquals(guest.queue.usedIndex, 0);

  guest.queue.clear();
  guest.queue.start();
  assertEquals(guest.run(guest.request(BLK_T_FLUSH, 0)), BLK_S_OK);
  assertEquals(guest.queue.takeUsed().length, 1);
});

Deno.test("VirtioBlk tells the harts of code that a read overwrote", () => {
  const disk = new TestDisk(4 * KiB);
  const guest = new GuestDisk(disk, { ramBytes: 256 * KiB });
  const { memory } = guest.queue;
  const request = guest.request(BLK_T_IN, 0, { segments: [4096] });
  const page = (guest.queue.offsetOf(request.dataGpa) - layout.RAM_BASE) >>> 12;
  const other = 60;
  memory.bytes[layout.CODE_FLAGS + page] = 1;
  memory.bytes[layout.CODE_FLAGS + other] = 1;
  const before = memory.loadWord(layout.CODE_WRITES_WORD);
  assertEquals(guest.run(request), BLK_S_OK);
  assertEquals(memory.bytes[layout.CODE_FLAGS + page], 2);
  assertEquals(memory.bytes[layout.CODE_FLAGS + other], 1);
  assert(memory.loadWord(layout.CODE_WRITES_WORD) > before);
});

Deno.test("VirtioBlk reaches the end of the largest RAM, and not beyond", () => {
  const disk = new TestDisk(64 * KiB);
  fill(disk);
  const guest = new GuestDisk(disk, { ramBytes: limits.memoryMaxBytes });
  const { queue } = guest;
  const end = Number(layout.RAM_GPA) + limits.memoryMaxBytes;
  const read = (gpa: number) => {
    const head = queue.addChain([
      { gpa: guest.header(BLK_T_IN, 1), length: 16, isWritable: false },
      { gpa, length: 513, isWritable: true },
    ]);
    queue.offer(head);
    guest.work();
  };
  const page = (limits.memoryMaxBytes >>> 12) - 1;
  queue.memory.bytes[layout.CODE_FLAGS + page] = 1;
  read(end - 513);
  assertEquals(queue.at(end - 513, 512), disk.bytes.subarray(512, 1024));
  assertEquals(queue.at(end - 1, 1)[0], BLK_S_OK);
  assertEquals(queue.memory.bytes[layout.CODE_FLAGS + page], 2);
  read(end - 512);
  assertEquals(guest.device.brokenBy, "a buffer outside RAM");
});
