import { assertEquals, assertRejects } from "@std/assert";
import { Buffer } from "node:buffer";
import { BootError } from "../../src/machine/boot_error.ts";
import { GuestMemory } from "../../src/machine/guest_memory.ts";
import { loadMachine, type LoadOptions } from "../../src/machine/loader.ts";
import { createMachineMemory } from "../../src/wasm/hart.ts";
import { layout, module, RAM } from "../support/bare_hart.ts";

const MiB = 1024 * 1024;
const RAM_BYTES = 16 * MiB;
const DEVICE_TREE = RAM + 14 * MiB;
const FW_DYNAMIC = DEVICE_TREE - 4096;

function createMemory(): GuestMemory {
  return new GuestMemory(createMachineMemory(layout, RAM_BYTES), layout);
}

function optionsOf(options: Partial<LoadOptions>): LoadOptions {
  return {
    module,
    hartCount: 1,
    kernel: null,
    initrd: null,
    firmware: null,
    cmdline: "",
    virtioSlots: [],
    ...options,
  };
}

function binary(length: number, fill: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(length).fill(fill);
}

function read(memory: GuestMemory, gpa: number, length: number): Uint8Array {
  return memory.bytes.slice(layout.RAM_BASE + gpa - RAM, layout.RAM_BASE + gpa - RAM + length);
}

function registerOf(memory: GuestMemory, hart: number, index: number): number {
  return memory.readU64(layout.HART_BASE + hart * layout.HART_STRIDE + layout.HART_X + 8 * index);
}

function wordOf(memory: GuestMemory, hart: number, offset: number): number {
  return memory.loadWord(layout.HART_BASE + hart * layout.HART_STRIDE + offset);
}

Deno.test("loadMachine() starts a kernel in S mode with hart id and device tree, others stopped", async () => {
  const memory = createMemory();
  const options = optionsOf({ kernel: binary(1000, 0x13), hartCount: 3 });
  const result = await loadMachine(memory, options);
  assertEquals(result, { entryPc: RAM + 2 * MiB, deviceTreeGpa: DEVICE_TREE });
  assertEquals(memory.loadWord(layout.SBI_BUILT_IN), 1);
  assertEquals(memory.loadWord(layout.HART_COUNT), 3);
  assertEquals(read(memory, RAM + 2 * MiB, 1000), binary(1000, 0x13));
  assertEquals([...read(memory, DEVICE_TREE, 4)], [0xd0, 0x0d, 0xfe, 0xed]);
  for (const hart of [0, 1, 2]) {
    assertEquals(registerOf(memory, hart, 10), hart);
    assertEquals(registerOf(memory, hart, 11), DEVICE_TREE);
    assertEquals(registerOf(memory, hart, 12), 0);
    assertEquals(wordOf(memory, hart, layout.HART_PRIV), 1);
    const expected = hart === 0 ? layout.HART_RUNNING : layout.HART_STOPPED;
    assertEquals(wordOf(memory, hart, layout.HART_STATE_WORD), expected);
  }
});

Deno.test("loadMachine() starts all harts in M mode at a firmware, which finds the kernel by a2", async () => {
  const memory = createMemory();
  const options = optionsOf({
    firmware: binary(500, 0x01),
    kernel: binary(1000, 0x02),
    hartCount: 2,
  });
  const result = await loadMachine(memory, options);
  assertEquals(result.entryPc, RAM);
  assertEquals(memory.loadWord(layout.SBI_BUILT_IN), 0);
  assertEquals(read(memory, RAM, 500), binary(500, 0x01));
  assertEquals(read(memory, RAM + 2 * MiB, 1000), binary(1000, 0x02));
  for (const hart of [0, 1]) {
    assertEquals([10, 11, 12].map((index) => registerOf(memory, hart, index)), [
      hart,
      DEVICE_TREE,
      FW_DYNAMIC,
    ]);
    assertEquals(wordOf(memory, hart, layout.HART_PRIV), 3);
    assertEquals(wordOf(memory, hart, layout.HART_STATE_WORD), layout.HART_RUNNING);
  }
  const info = new BigUint64Array(read(memory, FW_DYNAMIC, 48).buffer);
  assertEquals([...info], [0x4942534fn, 2n, BigInt(RAM + 2 * MiB), 1n, 0n, 0n]);
});

Deno.test("loadMachine() puts the initrd below the device tree and names it there", async () => {
  const memory = createMemory();
  const initrd = binary(5000, 0x42);
  await loadMachine(memory, optionsOf({ kernel: binary(1000, 0x13), initrd }));
  const start = FW_DYNAMIC - 8192;
  assertEquals(read(memory, start, 5001), new Uint8Array([...initrd, 0]));
  const tree = read(memory, DEVICE_TREE, 4096);
  const cells = new Uint8Array(16);
  const view = new DataView(cells.buffer);
  view.setUint32(4, start);
  view.setUint32(12, start + 5000);
  const text = (bytes: Uint8Array) => String.fromCharCode(...bytes);
  assertEquals(text(tree).includes(text(cells.subarray(0, 8))), true);
  assertEquals(text(tree).includes(text(cells.subarray(8))), true);
});

Deno.test("loadMachine() refuses what does not fit, and leaves the machine as it was", async () => {
  const memory = createMemory();
  await loadMachine(memory, optionsOf({ kernel: binary(1000, 0x13) }));
  const before = memory.bytes.slice();
  const kernel = binary(1000, 0x13);
  const cases: [Partial<LoadOptions>, string, string][] = [
    [{}, "nothingToBoot", "neither a kernel nor a firmware"],
    [{ initrd: binary(10, 1) }, "nothingToBoot", "neither"],
    [{ kernel, initrd: binary(RAM_BYTES, 1) }, "doesNotFit", "initrd: 16777216 bytes, but there"],
    [{ kernel, initrd: binary(13 * MiB, 1) }, "doesNotFit", "initrd: "],
    [{ kernel: binary(RAM_BYTES, 1) }, "doesNotFit", "kernel: "],
    [{ kernel, firmware: binary(RAM_BYTES, 1) }, "doesNotFit", "firmware: "],
    [{ kernel, firmware: binary(3 * MiB, 1) }, "doesNotFit", "over the firmware"],
    [{ kernel: new TextEncoder().encode("hello\n") }, "unknownFormat", "kernel: this is a text"],
    [{ kernel, firmware: new TextEncoder().encode("hi") }, "unknownFormat", "firmware: this is"],
  ];
  for (const [options, code, message] of cases) {
    const load = () => loadMachine(memory, optionsOf(options));
    const error = await assertRejects(load, BootError, message);
    assertEquals(error.code, code);
  }
  assertEquals(Buffer.compare(memory.bytes.slice(), before), 0);
});

Deno.test("loadMachine() again is a machine as new: RAM, devices, harts; but not the wish to stop", async () => {
  const memory = createMemory();
  const options = optionsOf({ kernel: binary(1000, 0x13), hartCount: 2 });
  await loadMachine(memory, options);
  const fresh = memory.bytes.slice();
  memory.bytes.fill(0xee, layout.RAM_BASE, layout.RAM_BASE + RAM_BYTES);
  memory.bytes.fill(0xee, layout.DEVICE_BASE, layout.STATIC_BASE);
  memory.storeWord(layout.EXIT_WORD, layout.EXIT_REBOOT);
  memory.storeWord(layout.IRQ_LEVEL_WORD, 0xff);
  memory.storeWord(layout.STOP_WORD, 1);
  for (const hart of [0, 1]) {
    const base = layout.HART_BASE + hart * layout.HART_STRIDE;
    memory.storeWord(base + layout.HART_MIP_WORD, 0x222);
    memory.storeWord(base + layout.HART_REMOTE_WORD, 3);
    memory.bytes.fill(0xee, base + layout.HART_X, base + layout.HART_X + 256);
  }
  await loadMachine(memory, options);
  assertEquals(memory.loadWord(layout.STOP_WORD), 1);
  memory.storeWord(layout.STOP_WORD, 0);
  // The clock has moved on, and the device tree's seed is new.
  for (const word of [layout.MTIME_ORIGIN, layout.RTC_EPOCH_NS]) {
    fresh.set(memory.bytes.slice(word, word + 8), word);
  }
  const tree = layout.RAM_BASE + DEVICE_TREE - RAM;
  fresh.set(memory.bytes.slice(tree, tree + 4096), tree);
  assertEquals(Buffer.compare(memory.bytes.slice(), fresh), 0);
});

Deno.test("loadMachine() gives each start another random seed", async () => {
  const seeds = new Set<string>();
  for (let start = 0; start < 3; start++) {
    const memory = createMemory();
    await loadMachine(memory, optionsOf({ kernel: binary(1000, 0x13) }));
    seeds.add(read(memory, DEVICE_TREE, 2048).join());
  }
  assertEquals(seeds.size, 3);
});
