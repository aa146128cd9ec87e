/**
 * Puts a machine into the state from which its harts start: devices reset, boot files and device
 * tree in RAM, the harts' registers set.
 *
 *   0x80000000  firmware, if there is one (M mode starts here)
 *   0x80200000  kernel, or where its own header or segments say
 *   ...
 *   initrd      page-aligned, as high as the device tree leaves room
 *   device tree with room to grow, since firmware edits it; below it the fw_dynamic information
 *   top         end of RAM, or 3 GiB if that is less, as on QEMU
 *
 * All harts must be parked, and the I/O worker puts its virtio devices into their slots afterwards.
 *
 * @module
 */

import { instantiateHart } from "../wasm/hart.ts";
import { describeBoard } from "./board.ts";
import { BootError } from "./boot_error.ts";
import { clearMemory } from "./clear_memory.ts";
import { writeDeviceTree } from "./device_tree.ts";
import type { GuestMemory } from "./guest_memory.ts";
import { createHostTicks, TICKS_EPOCH_MS, TICKS_PER_MS } from "./host_ticks.ts";
import { type BootImage, type ImageArea, planImage } from "./kernel_image.ts";

/**
 * What a machine starts from. Without a firmware the SBI is built in and the kernel starts in S
 * mode.
 */
export interface LoadOptions {
  /** Compiled hart.wasm. */
  module: WebAssembly.Module;
  /** At most MAX_HARTS of layout.ts. */
  hartCount: number;
  /** Of any kind that kernel_image.ts knows. */
  kernel: Uint8Array<ArrayBuffer> | null;
  /** Taken as it is. */
  initrd: Uint8Array<ArrayBuffer> | null;
  /** Starts in M mode; without it the SBI is built in. */
  firmware: Uint8Array<ArrayBuffer> | null;
  /** The kernel's command line. */
  cmdline: string;
  /** Slots of virtio-mmio that will have a device. */
  virtioSlots: number[];
}

/** Where things went, for logs and tests. */
export interface LoadResult {
  /** Where hart 0 starts. */
  entryPc: number;
  /** Guest physical address of the device tree. */
  deviceTreeGpa: number;
}

const PAGE_BYTES = 4096;
/** OpenSBI adds nodes (reserved memory) and properties to the tree where it lies. */
const DEVICE_TREE_ROOM_BYTES = 64 * 1024;
const DEVICE_TREE_ALIGNMENT = 0x20_0000;
const KERNEL_OFFSET = 0x20_0000;
/** Firmware with 32-bit assumptions must reach what it is given. */
const HIGHEST_GPA = 0xc000_0000;
const RNG_SEED_BYTES = 64;

// OpenSBI: include/sbi/fw_dynamic.h
const FW_DYNAMIC_MAGIC = 0x4942534fn;
const FW_DYNAMIC_VERSION = 2n;
const FW_DYNAMIC_NEXT_MODE_S = 1n;

const REGISTER_A0 = 10;
const REGISTER_A1 = 11;
const REGISTER_A2 = 12;

/** Where everything goes; nothing has been written yet. */
interface Placement {
  firmware: BootImage | null;
  kernel: BootImage | null;
  initrd: { start: number; end: number } | null;
  deviceTreeGpa: number;
  fwDynamicGpa: number;
}

/** Loads the machine. Throws a BootError, with nothing changed, where the files can't be used. */
export async function loadMachine(memory: GuestMemory, options: LoadOptions): Promise<LoadResult> {
  const placement = await place(memory, options);
  const { firmware, kernel, initrd, deviceTreeGpa } = placement;
  const entryPc = (firmware ?? kernel)?.entry ?? 0;
  await resetDevices(memory, options);
  for (const image of [firmware, kernel]) {
    for (const part of image?.parts ?? []) copyToRam(memory, part.gpa, part.bytes);
  }
  if (initrd !== null && options.initrd !== null) copyToRam(memory, initrd.start, options.initrd);
  const tree = writeDeviceTree(describeBoard({
    layout: memory.layout,
    hartCount: options.hartCount,
    ramBytes: memory.ramBytes,
    cmdline: options.cmdline,
    initrd,
    virtioSlots: options.virtioSlots,
    rngSeed: crypto.getRandomValues(new Uint8Array(RNG_SEED_BYTES)),
  }));
  if (tree.length + PAGE_BYTES > DEVICE_TREE_ROOM_BYTES) {
    throw new RangeError(`a device tree of ${tree.length} bytes`);
  }
  copyToRam(memory, deviceTreeGpa, tree);
  if (firmware !== null) writeFwDynamic(memory, placement);
  resetHarts(memory, { options, placement, entryPc });
  return { entryPc, deviceTreeGpa };
}

async function place(memory: GuestMemory, options: LoadOptions): Promise<Placement> {
  const ramStart = Number(memory.layout.RAM_GPA);
  const ramEnd = Math.min(ramStart + memory.ramBytes, HIGHEST_GPA);
  const deviceTreeGpa = alignDown(ramEnd - DEVICE_TREE_ROOM_BYTES, DEVICE_TREE_ALIGNMENT);
  const fwDynamicGpa = deviceTreeGpa - PAGE_BYTES;
  const area = { ramStart, ramEnd: fwDynamicGpa };
  const { firmware, kernel } = await planImages(options, area);
  const first = firmware ?? kernel;
  if (first === null) {
    throw new BootError("nothingToBoot", "kernel", "neither a kernel nor a firmware was given");
  }
  if (firmware !== null && kernel !== null && overlaps(firmware, kernel)) {
    throw new BootError("doesNotFit", "kernel", "it would lie over the firmware");
  }
  const end = Math.max(firmware?.end ?? 0, kernel?.end ?? 0);
  const initrd = placeInitrd(options.initrd, { after: end, before: fwDynamicGpa });
  return { firmware, kernel, initrd, deviceTreeGpa, fwDynamicGpa };
}

async function planImages(
  options: LoadOptions,
  area: { ramStart: number; ramEnd: number },
): Promise<{ firmware: BootImage | null; kernel: BootImage | null }> {
  const plan = async (
    bytes: Uint8Array<ArrayBuffer> | null,
    where: Pick<ImageArea, "file" | "gpa">,
  ) => bytes === null ? null : await planImage(bytes, { ...area, ...where });
  const firmware = await plan(options.firmware, { file: "firmware", gpa: area.ramStart });
  const kernelGpa = area.ramStart + KERNEL_OFFSET;
  const kernel = await plan(options.kernel, { file: "kernel", gpa: kernelGpa });
  return { firmware, kernel };
}

function overlaps(one: BootImage, other: BootImage): boolean {
  return one.parts.some((part) =>
    other.parts.some(({ gpa, memoryBytes }) =>
      gpa < part.gpa + part.memoryBytes && part.gpa < gpa + memoryBytes
    )
  );
}

function placeInitrd(
  bytes: Uint8Array | null,
  room: { after: number; before: number },
): { start: number; end: number } | null {
  if (bytes === null || bytes.length === 0) return null;
  const start = alignDown(room.before - bytes.length, PAGE_BYTES);
  if (start < room.after) {
    const free = Math.max(0, room.before - room.after);
    throw new BootError(
      "doesNotFit",
      "initrd",
      `${bytes.length} bytes, but there are ${free} bytes of memory beside the kernel`,
    );
  }
  return { start, end: start + bytes.length };
}

/** Everything but the wish to stop goes back to what it was before the first start. */
async function resetDevices(memory: GuestMemory, options: LoadOptions): Promise<void> {
  const { layout, bytes, view } = memory;
  const stop = memory.loadWord(layout.STOP_WORD);
  // A machine that was never loaded has no RAM in use: there is nothing to look for.
  if (memory.loadWord(layout.HART_COUNT) !== 0) {
    await clearMemory(memory, layout.RAM_BASE, bytes.length);
  }
  bytes.fill(0, layout.CONTROL_BASE, layout.STATIC_BASE);
  memory.storeWord(layout.STOP_WORD, stop);
  memory.storeWord(layout.HART_COUNT, options.hartCount);
  view.setBigUint64(layout.RAM_BYTES, BigInt(memory.ramBytes), true);
  memory.storeWord(layout.SBI_BUILT_IN, options.firmware === null ? 1 : 0);
  bytes.fill(0, layout.CODE_FLAGS, layout.CODE_FLAGS + layout.MAX_RAM_PAGES);

  const now = createHostTicks()();
  view.setBigUint64(layout.MTIME_ORIGIN, BigInt(now), true);
  const epochNs = (BigInt(TICKS_EPOCH_MS) * BigInt(TICKS_PER_MS) + BigInt(now)) * 100n;
  view.setBigUint64(layout.RTC_EPOCH_NS, epochNs, true);
}

/** struct fw_dynamic_info: what fw_dynamic finds at a2. */
function writeFwDynamic(memory: GuestMemory, placement: Placement): void {
  const next = placement.kernel?.entry ?? Number(memory.layout.RAM_GPA) + KERNEL_OFFSET;
  const fields = [
    FW_DYNAMIC_MAGIC,
    FW_DYNAMIC_VERSION,
    BigInt(next),
    FW_DYNAMIC_NEXT_MODE_S,
    0n, // options
    0n, // boot hart
  ];
  const bytes = new Uint8Array(8 * fields.length);
  const view = new DataView(bytes.buffer);
  fields.forEach((field, index) => view.setBigUint64(8 * index, field, true));
  copyToRam(memory, placement.fwDynamicGpa, bytes);
}

function resetHarts(
  memory: GuestMemory,
  start: { options: LoadOptions; placement: Placement; entryPc: number },
): void {
  const { layout, view } = memory;
  const { options, placement, entryPc } = start;
  for (let hartId = 0; hartId < options.hartCount; hartId++) {
    const hart = instantiateHart(options.module, {
      memory: memory.memory,
      hartId,
      imports: { hostTicks: () => 0 },
    });
    hart.reset(BigInt(entryPc));
    const registers = layout.HART_BASE + hartId * layout.HART_STRIDE + layout.HART_X;
    const set = (register: number, value: number) =>
      view.setBigUint64(registers + 8 * register, BigInt(value), true);
    set(REGISTER_A0, hartId);
    set(REGISTER_A1, placement.deviceTreeGpa);
    if (placement.firmware !== null) set(REGISTER_A2, placement.fwDynamicGpa);
  }
}

/** What was planned lies in RAM: the planner has checked it. */
function copyToRam(memory: GuestMemory, gpa: number, bytes: Uint8Array): void {
  const offset = memory.translate(gpa, bytes.length);
  if (offset < 0) throw new RangeError(`0x${gpa.toString(16)} is not in RAM`);
  memory.bytes.set(bytes, offset);
}

function alignDown(value: number, alignment: number): number {
  return Math.floor(value / alignment) * alignment;
}
