/**
 * Describes the board to firmware and kernel: the device tree of a machine. Addresses and interrupt
 * numbers come from the processor module's layout, so that they are written once.
 *
 * @module
 */

import type { HartLayout } from "../wasm/hart.ts";
import { cellsOf, type DeviceTreeNode, type DeviceTreeValue } from "./device_tree.ts";
import { TICKS_PER_MS } from "./host_ticks.ts";

/** What a machine's device tree depends on. */
export interface BoardOptions {
  /** Addresses and interrupts of the devices. */
  layout: HartLayout;
  /** Harts, at least 1; each needs a PLIC context and a CLINT register set. */
  hartCount: number;
  /** Size of the memory at RAM_GPA. */
  ramBytes: number;
  /** The kernel's command line. */
  cmdline: string;
  /** Where the initrd lies in guest physical memory. */
  initrd: { start: number; end: number } | null;
  /** Slots of virtio-mmio that have a device. */
  virtioSlots: number[];
  /** Entropy for the kernel's generator, fresh for each start. */
  rngSeed: Uint8Array;
}

/** The extensions that the processor has. It sets A and D bits in page tables itself (Svadu). */
export const ISA_EXTENSIONS = [
  ..."imafdc",
  "zicntr",
  "zicsr",
  "zifencei",
  "zihpm",
  "zba",
  "zbb",
  "zbs",
  "sstc",
  "svadu",
  "svinval",
];

// Interrupts of a hart's local controller (mcause).
const IRQ_S_EXTERNAL = 9;
const IRQ_M_EXTERNAL = 11;
const IRQ_M_SOFTWARE = 3;
const IRQ_M_TIMER = 7;

const UART_CLOCK_HZ = 3_686_400;
const FINISHER_PASS = 0x5555;
const FINISHER_RESET = 0x7777;

/** The tree of a machine's board. */
export function describeBoard(options: BoardOptions): DeviceTreeNode {
  const { layout, hartCount, ramBytes } = options;
  const ramGpa = Number(layout.RAM_GPA);
  const finisher = phandles(hartCount).finisher;
  return {
    name: "",
    properties: {
      "#address-cells": [2],
      "#size-cells": [2],
      compatible: "riscv-virtio",
      model: "riscv-virtio,ovis",
    },
    children: [
      describeChosen(options),
      {
        name: `memory@${ramGpa.toString(16)}`,
        properties: { device_type: "memory", reg: [...cellsOf(ramGpa), ...cellsOf(ramBytes)] },
        children: [],
      },
      describeCpus(hartCount),
      describeSoc(options),
      describeSyscon("poweroff", { finisher, value: FINISHER_PASS }),
      describeSyscon("reboot", { finisher, value: FINISHER_RESET }),
    ],
  };
}

function describeChosen(options: BoardOptions): DeviceTreeNode {
  const { layout, cmdline, initrd, rngSeed } = options;
  const properties: Record<string, DeviceTreeValue> = {
    bootargs: cmdline,
    "stdout-path": `/soc/serial@${layout.UART_GPA.toString(16)}`,
    "rng-seed": rngSeed,
  };
  if (initrd !== null) {
    properties["linux,initrd-start"] = BigInt(initrd.start);
    properties["linux,initrd-end"] = BigInt(initrd.end);
  }
  return { name: "chosen", properties, children: [] };
}

function describeCpus(hartCount: number): DeviceTreeNode {
  const harts = Array.from({ length: hartCount }, (_, id) => id);
  return {
    name: "cpus",
    properties: {
      "#address-cells": [1],
      "#size-cells": [0],
      "timebase-frequency": [TICKS_PER_MS * 1000],
    },
    children: [
      ...harts.map((id): DeviceTreeNode => ({
        name: `cpu@${id}`,
        properties: {
          device_type: "cpu",
          reg: [id],
          status: "okay",
          compatible: "riscv",
          "riscv,isa": isaString(),
          "riscv,isa-base": "rv64i",
          "riscv,isa-extensions": ISA_EXTENSIONS,
          "mmu-type": "riscv,sv48",
        },
        children: [{
          name: "interrupt-controller",
          properties: {
            "#address-cells": [0],
            "#interrupt-cells": [1],
            "interrupt-controller": true,
            compatible: "riscv,cpu-intc",
            phandle: [phandles(hartCount).cpu(id)],
          },
          children: [],
        }],
      })),
    ],
  };
}

/** Single letters first, then the others, each behind an underscore. */
function isaString(): string {
  const single = ISA_EXTENSIONS.filter((name) => name.length === 1).join("");
  return [`rv64${single}`, ...ISA_EXTENSIONS.filter((name) => name.length > 1)].join("_");
}

function describeSoc(options: BoardOptions): DeviceTreeNode {
  const { layout, hartCount, virtioSlots } = options;
  const { plic, finisher } = phandles(hartCount);
  const wired = (source: number) => ({ "interrupt-parent": [plic], interrupts: [source] });
  return {
    name: "soc",
    properties: {
      "#address-cells": [2],
      "#size-cells": [2],
      compatible: "simple-bus",
      ranges: true,
    },
    children: [
      describeDevice("test", { gpa: layout.FINISHER_GPA, size: layout.FINISHER_SIZE }, {
        compatible: ["sifive,test1", "sifive,test0", "syscon"],
        phandle: [finisher],
      }),
      describeDevice("rtc", { gpa: layout.RTC_GPA, size: layout.RTC_SIZE }, {
        compatible: "google,goldfish-rtc",
        ...wired(layout.RTC_IRQ),
      }),
      describeDevice("clint", { gpa: layout.CLINT_GPA, size: layout.CLINT_SIZE }, {
        compatible: ["sifive,clint0", "riscv,clint0"],
        "interrupts-extended": wireHarts(hartCount, [IRQ_M_SOFTWARE, IRQ_M_TIMER]),
      }),
      describeDevice("plic", { gpa: layout.PLIC_GPA, size: layout.PLIC_SIZE }, {
        compatible: ["sifive,plic-1.0.0", "riscv,plic0"],
        phandle: [plic],
        "#interrupt-cells": [1],
        "#address-cells": [0],
        "interrupt-controller": true,
        "interrupts-extended": wireHarts(hartCount, [IRQ_M_EXTERNAL, IRQ_S_EXTERNAL]),
        "riscv,ndev": [layout.PLIC_SOURCE_COUNT - 1],
      }),
      describeDevice("serial", { gpa: layout.UART_GPA, size: layout.UART_SIZE }, {
        compatible: "ns16550a",
        "clock-frequency": [UART_CLOCK_HZ],
        ...wired(layout.UART_IRQ),
      }),
      ...virtioSlots.map((slot) => {
        const gpa = layout.VIRTIO_GPA + slot * layout.VIRTIO_SLOT_SIZE;
        return describeDevice("virtio_mmio", { gpa, size: layout.VIRTIO_SLOT_SIZE }, {
          compatible: "virtio,mmio",
          ...wired(layout.VIRTIO_IRQ + slot),
        });
      }),
    ],
  };
}

function describeDevice(
  name: string,
  window: { gpa: number; size: number },
  properties: Record<string, DeviceTreeValue>,
): DeviceTreeNode {
  return {
    name: `${name}@${window.gpa.toString(16)}`,
    properties: { reg: [...cellsOf(window.gpa), ...cellsOf(window.size)], ...properties },
    children: [],
  };
}

function describeSyscon(
  kind: "poweroff" | "reboot",
  store: { finisher: number; value: number },
): DeviceTreeNode {
  return {
    name: kind,
    properties: {
      compatible: `syscon-${kind}`,
      regmap: [store.finisher],
      offset: [0],
      value: [store.value],
    },
    children: [],
  };
}

/** interrupts-extended: for each hart in turn, these interrupts of its local controller. */
function wireHarts(hartCount: number, interrupts: number[]): number[] {
  const cells: number[] = [];
  for (let id = 0; id < hartCount; id++) {
    for (const interrupt of interrupts) cells.push(phandles(hartCount).cpu(id), interrupt);
  }
  return cells;
}

/** Numbers by which nodes refer to each other. */
function phandles(hartCount: number) {
  return { cpu: (id: number) => 1 + id, plic: hartCount + 1, finisher: hartCount + 2 };
}
