import { assertEquals, assertStringIncludes } from "@std/assert";
import { describeBoard, ISA_EXTENSIONS } from "../../src/machine/board.ts";
import {
  cellsOf,
  type DeviceTreeNode,
  type DeviceTreeValue,
  writeDeviceTree,
} from "../../src/machine/device_tree.ts";
import { layout } from "../support/bare_hart.ts";
import { findProgram, needs } from "../support/clients.ts";

function node(
  name: string,
  properties: Record<string, DeviceTreeValue> = {},
  children: DeviceTreeNode[] = [],
): DeviceTreeNode {
  return { name, properties, children };
}

/** The blob as dtc reads it; fails on what dtc finds wrong. */
async function decompile(blob: Uint8Array<ArrayBuffer>): Promise<string> {
  const child = new Deno.Command(findProgram("dtc") ?? "dtc", {
    args: ["-I", "dtb", "-O", "dts"],
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(blob);
  await writer.close();
  const { stdout, stderr, success } = await child.output();
  const complaints = new TextDecoder().decode(stderr);
  assertEquals([success, complaints], [true, ""]);
  return new TextDecoder().decode(stdout);
}

function boardOf(options: { hartCount?: number; slots?: number[]; initrd?: boolean } = {}) {
  return describeBoard({
    layout,
    hartCount: options.hartCount ?? 1,
    ramBytes: 0x1_2345_6000,
    cmdline: 'console=ttyS0 quiet "a b"',
    initrd: options.initrd === true ? { start: 0x9000_0000, end: 0x9012_3456 } : null,
    virtioSlots: options.slots ?? [],
    rngSeed: new Uint8Array([1, 2, 3, 4, 5]),
  });
}

Deno.test("writeDeviceTree() lays out header, reservations, structure and strings", () => {
  const blob = writeDeviceTree(node("", { a: [1], b: "x" }, [node("c", { a: true })]));
  const view = new DataView(blob.buffer);
  const header = Array.from({ length: 10 }, (_, index) => view.getUint32(4 * index));
  const [magic, total, structure, strings, reservations, version, compatible, , stringBytes] =
    header;
  assertEquals(magic, 0xd00dfeed);
  assertEquals(total, blob.length);
  assertEquals([reservations, structure, version, compatible], [40, 56, 17, 16]);
  assertEquals(new TextDecoder().decode(blob.subarray(strings)), "a\0b\0");
  assertEquals(stringBytes, 4);
  const cells = Array.from(
    { length: ((strings ?? 0) - (structure ?? 0)) / 4 },
    (_, index) => view.getUint32((structure ?? 0) + 4 * index),
  );
  assertEquals(cells, [
    ...[1, 0], // BEGIN ""
    ...[3, 4, 0, 1], // a = <1>
    ...[3, 2, 2, 0x78000000], // b = "x"
    ...[1, 0x63000000, 3, 0, 0, 2], // c { a; }
    ...[2, 9],
  ]);
});

Deno.test({
  name: "writeDeviceTree() writes what dtc reads: every kind of value, long and empty ones",
  ...needs("dtc"),
  fn: async () => {
    const text = await decompile(writeDeviceTree(node("", {
      "#address-cells": [2],
      "#size-cells": [2],
      text: "hello",
      empty: true,
      list: ["one", "two"],
      cells: [0, 1, 0xffff_ffff],
      large: 0x1234_5678_9abc_def0n,
      bytes: new Uint8Array([1, 2, 3]),
      long: "x".repeat(3000),
    }, [node("child", {}, [node("grandchild", { leaf: true })]), node("last")])));
    for (
      const expected of [
        'text = "hello";',
        "empty;",
        'list = "one\\0two";',
        "cells = <0x00 0x01 0xffffffff>;",
        "large = <0x12345678 0x9abcdef0>;",
        "bytes = [01 02 03];",
        `long = "${"x".repeat(3000)}";`,
        "grandchild {\n\t\t\tleaf;",
      ]
    ) assertStringIncludes(text, expected);
  },
});

Deno.test({
  name: "describeBoard() describes every device that the board has, for one hart and for eight",
  ...needs("dtc"),
  fn: async () => {
    for (const hartCount of [1, 8]) {
      const slots = [0, 1, 7];
      const text = await decompile(
        writeDeviceTree(boardOf({ hartCount, slots, initrd: true })),
      );
      assertEquals(text.match(/cpu@[0-9a-f]+ \{/g)?.length, hartCount);
      assertEquals(text.match(/virtio_mmio@([0-9a-f]+)/g), [
        "virtio_mmio@10001000",
        "virtio_mmio@10002000",
        "virtio_mmio@10008000",
      ]);
      for (
        const expected of [
          "memory@80000000",
          "reg = <0x00 0x80000000 0x01 0x23456000>;",
          "timebase-frequency = <0x989680>;",
          'mmu-type = "riscv,sv48";',
          'riscv,isa = "rv64imafdc_zicntr_',
          'compatible = "sifive,plic-1.0.0\\0riscv,plic0";',
          'compatible = "sifive,clint0\\0riscv,clint0";',
          'compatible = "ns16550a";',
          'compatible = "google,goldfish-rtc";',
          'compatible = "sifive,test1\\0sifive,test0\\0syscon";',
          "riscv,ndev = <0x1f>;",
          "linux,initrd-start = <0x00 0x90000000>;",
          "linux,initrd-end = <0x00 0x90123456>;",
          "rng-seed = [01 02 03 04 05];",
          'stdout-path = "/soc/serial@10000000";',
          'bootargs = "console=ttyS0 quiet \\"a b\\"";',
          "value = <0x5555>;",
          "value = <0x7777>;",
        ]
      ) assertStringIncludes(text, expected);
    }
  },
});

Deno.test("describeBoard() wires the PLIC to both modes of every hart, in the order of contexts", () => {
  const tree = boardOf({ hartCount: 3 });
  const soc = tree.children.find((child) => child.name === "soc");
  const plic = soc?.children.find((child) => child.name.startsWith("plic"));
  assertEquals(plic?.properties["interrupts-extended"], [1, 11, 1, 9, 2, 11, 2, 9, 3, 11, 3, 9]);
  const cpus = tree.children.find((child) => child.name === "cpus")?.children ?? [];
  const handles = cpus.map((cpu) => cpu.children[0]?.properties["phandle"]);
  assertEquals(handles, [[1], [2], [3]]);
});

Deno.test("describeBoard() names each extension once, in both spellings", () => {
  assertEquals(new Set(ISA_EXTENSIONS).size, ISA_EXTENSIONS.length);
  const cpus = boardOf().children.find((child) => child.name === "cpus");
  const isa = cpus?.children[0]?.properties["riscv,isa"];
  const spelled = String(isa).slice("rv64".length).split("_");
  assertEquals([...(spelled[0] ?? ""), ...spelled.slice(1)], ISA_EXTENSIONS);
});

Deno.test("cellsOf() splits at 32 bits", () => {
  assertEquals(cellsOf(0x8000_0000), [0, 0x8000_0000]);
  assertEquals(cellsOf(0x1_0000_0001), [1, 1]);
});
