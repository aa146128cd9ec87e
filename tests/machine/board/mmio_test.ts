import { assertEquals } from "@std/assert";
import { BARE_RAM_BYTES, BareMachine, layout, RAM } from "../../support/bare_hart.ts";

const SIZES = [1, 2, 4, 8];
const DEVICES: [name: string, gpa: number, size: number][] = [
  ["finisher", layout.FINISHER_GPA, layout.FINISHER_SIZE],
  ["rtc", layout.RTC_GPA, layout.RTC_SIZE],
  ["clint", layout.CLINT_GPA, layout.CLINT_SIZE],
  ["plic", layout.PLIC_GPA, layout.PLIC_SIZE],
  ["uart", layout.UART_GPA, layout.UART_SIZE],
  ["virtio", layout.VIRTIO_GPA, layout.VIRTIO_SLOTS * layout.VIRTIO_SLOT_SIZE],
];

Deno.test("mmio: what no device answers is an access fault", () => {
  const hart = new BareMachine().hart();
  const gaps = [0, 0xff000, 0x102000, 0x3000000, layout.UART_GPA + 0x100, 0x7ffffff8];
  for (
    const gpa of [...gaps, RAM + BARE_RAM_BYTES, 2 ** 32, 2 ** 32 + layout.UART_GPA, 2n ** 55n]
  ) {
    assertEquals(hart.load(gpa, 4), null, `load ${gpa}`);
    assertEquals(hart.cause, 5n);
    assertEquals(hart.store(gpa, 1, 4), false, `store ${gpa}`);
    assertEquals(hart.cause, 7n);
  }
});

Deno.test("mmio: a size that a device does not have is an access fault", () => {
  const hart = new BareMachine().hart();
  const allowed: Record<string, number[]> = {
    finisher: [2, 4],
    rtc: [4],
    clint: [4, 8],
    plic: [4],
    uart: SIZES,
    virtio: [4],
  };
  for (const [name, gpa] of DEVICES) {
    for (const size of SIZES) {
      assertEquals(hart.load(gpa, size) !== null, allowed[name]?.includes(size), `${name} ${size}`);
    }
  }
});

Deno.test("mmio: nonsense in every register changes nothing but the devices' own words", () => {
  // Every word of every window up to the first 4 KiB, and the PLIC's contexts, with every pattern.
  const machine = new BareMachine({ hartCount: 2 });
  const hart = machine.hart();
  const { memory } = machine;
  const patterns = [0n, 1n, 0xffff_ffff_ffff_ffffn, 0x8000_0000n, 0x5a5a_a5a5_1234_fedcn];
  const ramMark = layout.RAM_BASE + 0x10_0000;
  memory.bytes.fill(0x77, ramMark, layout.RAM_BASE + BARE_RAM_BYTES);
  const device = memory.bytes.slice(layout.STATIC_BASE - 0x400, layout.STATIC_BASE);
  const nullPage = memory.bytes.slice(0, layout.CONTROL_BASE);

  for (const [name, gpa, size] of DEVICES) {
    const offsets = [];
    for (let offset = 0; offset < Math.min(size, 0x1200); offset += 8) offsets.push(offset);
    if (name === "plic") offsets.push(0x2000, 0x2080, 0x200000, 0x201000, 0x210000, 0x5ffff8);
    if (name === "clint") offsets.push(0x4000, 0x4008, 0x4040, 0xbff8, 0xfff8);
    for (const offset of offsets) {
      for (const width of SIZES) {
        for (const pattern of patterns) {
          hart.store(gpa + offset, pattern, width);
          hart.load(gpa + offset, width);
        }
      }
      // The finisher did what it is for.
      memory.storeWord(layout.EXIT_WORD, layout.EXIT_NONE);
    }
  }
  assertEquals(memory.bytes.subarray(0, layout.CONTROL_BASE), nullPage);
  assertEquals(memory.bytes.subarray(layout.STATIC_BASE - 0x400, layout.STATIC_BASE), device);
  const marked = memory.bytes.subarray(ramMark, layout.RAM_BASE + BARE_RAM_BYTES);
  assertEquals(marked.every((byte) => byte === 0x77), true);
  assertEquals(memory.loadWord(layout.HART_COUNT), 2);
  // The machine goes on.
  assertEquals(hart.read(layout.VIRTIO_GPA), 0x74726976);
});

Deno.test("finisher: pass, fail and reset end the machine with their reason and code", () => {
  const cases: [value: number, reason: number, code: number][] = [
    [0x5555, layout.EXIT_SHUTDOWN, 0],
    [0x0007_3333, layout.EXIT_SHUTDOWN, 7],
    [0x3333, layout.EXIT_SHUTDOWN, 1],
    [0x7777, layout.EXIT_REBOOT, 0],
    [0x1234, layout.EXIT_NONE, 0],
  ];
  for (const [value, reason, code] of cases) {
    const machine = new BareMachine();
    machine.hart().put(layout.FINISHER_GPA, value);
    assertEquals(machine.memory.loadWord(layout.EXIT_WORD), reason);
    assertEquals(machine.memory.loadWord(layout.EXIT_CODE), code);
    const isRung = (machine.takeDoorbells() & layout.DOORBELL_EXIT) !== 0;
    assertEquals(isRung, reason !== layout.EXIT_NONE);
  }
});

Deno.test("finisher: the first reason counts", () => {
  const machine = new BareMachine();
  machine.hart().put(layout.FINISHER_GPA, 0x7777);
  machine.memory.storeWord(layout.STOP_WORD, 0);
  machine.hart().store(layout.FINISHER_GPA, 0x5555, 4);
  assertEquals(machine.memory.loadWord(layout.EXIT_WORD), layout.EXIT_REBOOT);
});
