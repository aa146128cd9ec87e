/**
 * A driver that goes mad: random descriptors, rings, headers and registers, thousands of steps.
 * Nothing may hang, nothing but RAM and the slot may change, and what can be answered is answered.
 */
import { assert, assertEquals } from "@std/assert";
import {
  BLK_S_NONE,
  DESC_INDIRECT,
  DESC_NEXT,
  DESC_WRITE,
  GuestDisk,
  layout,
} from "../support/guest_queue.ts";
import { TestDisk } from "../support/test_disk.ts";

const STEPS = 4000;
const RAM_GPA = Number(layout.RAM_GPA);
const RAM_BYTES = 128 * 1024;
const QUEUE_SIZE = 16;

/** xorshift32: the same steps for the same seed. */
function createRandom(seed: number): (bound: number) => number {
  let state = seed | 1;
  return (bound) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % bound;
  };
}

/** What lies before RAM, and what no device has any business with in the first blocks. */
const GUARD_BYTES = 64 * 1024;
const GUARD = 0xa5;

function placeGuards(guest: GuestDisk): void {
  guest.queue.memory.bytes.fill(GUARD, layout.RAM_BASE - GUARD_BYTES, layout.RAM_BASE);
}

/** The control and device blocks without the words that a working device changes. */
function snapshotBlocks(guest: GuestDisk): Uint8Array {
  const { memory, base } = guest.queue;
  const copy = memory.bytes.slice(0, layout.HART_BASE);
  copy.fill(0, base, base + layout.VIRTIO_STRIDE);
  for (const word of [layout.DOORBELL_WORD, layout.IO_WAKE_WORD, layout.CODE_WRITES_WORD]) {
    copy.fill(0, word, word + 4);
  }
  return copy;
}

function checkGuards(guest: GuestDisk, before: Uint8Array): void {
  const after = snapshotBlocks(guest);
  assertEquals(after.findIndex((byte, offset) => byte !== before[offset]), -1);
  const { bytes } = guest.queue.memory;
  const guards = bytes.subarray(layout.RAM_BASE - GUARD_BYTES, layout.RAM_BASE);
  assertEquals(guards.findIndex((byte) => byte !== GUARD), -1);
}

class MadDriver {
  readonly disk = new TestDisk(32 * 1024);
  readonly guest = new GuestDisk(this.disk, { ramBytes: RAM_BYTES, size: QUEUE_SIZE });
  readonly #random: (bound: number) => number;

  constructor(seed: number) {
    this.#random = createRandom(seed);
  }

  pick<T>(...values: T[]): T {
    return values[this.#random(values.length)] as T;
  }

  #gpa(): number | bigint {
    const random = this.#random;
    if (random(40) > 0) return RAM_GPA + 16 * random(RAM_BYTES / 16);
    return this.pick<number | bigint>(
      0,
      RAM_GPA - 1,
      RAM_GPA + RAM_BYTES - random(64),
      BigInt(random(0xffff_ffff)) << 32n,
      (1n << 64n) - BigInt(random(4096)) - 1n,
    );
  }

  #length(): number {
    return this.pick(0, 1, 15, 16, 17, 512, 512, 512, 513, 1024, 4096, RAM_BYTES, 0xffff_ffff);
  }

  /** A chain that is mostly sane, in the ring's own table or an indirect one. */
  #layChain(): void {
    const { queue } = this.guest;
    const random = this.#random;
    const isIndirect = random(4) === 0;
    const table = isIndirect ? RAM_GPA + 65536 + 16 * random(256) : queue.descGpa;
    const count = 2 + random(4);
    const first = isIndirect ? 0 : random(QUEUE_SIZE - count);
    for (let index = 0; index < count; index++) {
      const isLast = index === count - 1;
      const isData = index > 0 && !isLast;
      const isWild = random(60) === 0;
      const isWritable = isLast || (isData && random(2) === 0);
      queue.setDescriptor(first + index, {
        gpa: this.#gpa(),
        length: isWild ? this.#length() : index === 0 ? 16 : isLast ? 1 : 512 * (1 + random(4)),
        flags: isWild ? random(8) : (isWritable ? DESC_WRITE : 0) | (isLast ? 0 : DESC_NEXT),
        next: isWild ? random(0x10000) : first + index + 1,
      }, table);
    }
    const headerGpa = RAM_GPA + 96 * 1024 + 16 * random(64);
    const sector = this.pick(0, random(64), random(80), 0xffff_ffff);
    queue.memory.view.setUint32(queue.offsetOf(headerGpa), random(16), true);
    queue.memory.view.setBigUint64(queue.offsetOf(headerGpa) + 8, BigInt(sector), true);
    queue.setDescriptor(
      first,
      { gpa: headerGpa, length: 16, flags: DESC_NEXT, next: first + 1 },
      table,
    );
    if (!isIndirect) return queue.offer(first);
    const head = random(QUEUE_SIZE);
    queue.setDescriptor(head, { gpa: table, length: 16 * count, flags: DESC_INDIRECT, next: 0 });
    queue.offer(head);
  }

  /** One step; the driver of a broken device resets it. */
  async step(): Promise<void> {
    const { queue, device } = this.guest;
    const random = this.#random;
    this.disk.isHeld = random(3) === 0;
    for (let count = random(4); count >= 0; count--) this.#layChain();
    if (random(100) === 0) queue.availIndex = random(0x10000);
    if (random(50) === 0) queue.usedEvent = random(0x10000);
    if (random(50) === 0) queue.at(queue.availGpa, 64).fill(random(256));
    this.guest.work();
    while (this.disk.heldCount > 0 && random(4) > 0) this.disk.release(random(this.disk.heldCount));
    if (queue.needsReset || random(40) === 0) {
      queue.askReset();
      this.guest.work();
      this.disk.releaseAll();
      await device.drain();
      this.guest.work();
      assert(queue.isResetDone, "a reset with nothing in flight is answered");
      assertEquals(device.brokenBy, "");
      queue.clear();
      queue.start();
    }
  }

  /** After all that, an honest request works. */
  async checkAlive(): Promise<void> {
    const { queue, device } = this.guest;
    queue.askReset();
    this.disk.isHeld = false;
    this.disk.releaseAll();
    this.guest.work();
    await device.drain();
    this.guest.work();
    queue.clear();
    queue.start();
    this.disk.bytes.fill(0x5a);
    const request = this.guest.request(0, 1, { segments: [512] });
    assertEquals(this.guest.run(request), 0);
    assert(queue.at(request.dataGpa, 512).every((byte) => byte === 0x5a));
  }
}

Deno.test("VirtioBlk survives a driver that goes mad", async () => {
  for (const seed of [1, 20_261, 0xdead_beef]) {
    // deno-lint-ignore no-console
    console.log(`seed ${seed}`);
    const driver = new MadDriver(seed);
    placeGuards(driver.guest);
    const before = snapshotBlocks(driver.guest);
    let resets = 0;
    for (let step = 0; step < STEPS; step++) {
      await driver.step();
      if (driver.guest.queue.usedIndex === 0) resets++;
    }
    checkGuards(driver.guest, before);
    assert(resets > 10 && resets < STEPS);
    assert(driver.disk.seen.length > STEPS / 10, "most of the steps must reach the disk");
    await driver.checkAlive();
  }
});

Deno.test("VirtioBlk answers every request whose chain is sound, whatever its header says", () => {
  const random = createRandom(424_242);
  const disk = new TestDisk(32 * 1024);
  const guest = new GuestDisk(disk, { ramBytes: 8 * 1024 * 1024 });
  for (let step = 0; step < 3000; step++) {
    const segments = Array.from({ length: random(4) }, () => 1 + random(1100));
    if (random(2) === 0) segments.forEach((_, index) => segments[index] = 512);
    const type = [random(16), random(0xffff_ffff)][random(2)] ?? 0;
    const sector = [random(70), random(0xffff_ffff), (1n << 64n) - 1n][random(3)] ?? 0;
    const request = guest.request(type, sector, { segments, isIndirect: random(2) === 0 });
    for (let byte = 0; byte < segments.length; byte++) {
      guest.queue.at(request.dataGpa, 1)[byte] = random(256);
    }
    const status = guest.run(request);
    assert(status !== BLK_S_NONE && status <= 2, `step ${step}: status ${status}`);
    assertEquals(guest.queue.takeUsed().length, 1);
  }
  assertEquals(guest.device.brokenBy, "");
});
