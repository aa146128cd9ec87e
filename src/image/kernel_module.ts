/**
 * What a Linux kernel module says of itself: its `.modinfo` section holds `key=value` texts. A
 * package has no modules.dep (depmod makes it on the target), so the order of loading comes from
 * here.
 *
 * @module
 */

import { ImageError } from "./errors.ts";

/**
 * Names of the modules that the module in `elf` (ELF64, little-endian) needs, `-` written as `_`.
 */
export function moduleDependencies(elf: Uint8Array): string[] {
  for (const text of modinfo(elf)) {
    if (text.startsWith("depends=")) {
      return text.slice("depends=".length).split(",").filter((name) => name !== "").map(moduleName);
    }
  }
  return [];
}

/** A module's name as the kernel writes it. */
export function moduleName(name: string): string {
  return name.replaceAll("-", "_");
}

/**
 * Orders `wanted` and all that they need, each behind its own needs. `load` gives a module's bytes.
 */
export function loadOrder(
  wanted: readonly string[],
  load: (name: string) => Uint8Array | undefined,
): string[] {
  const order: string[] = [];
  const seen = new Set<string>();
  const visit = (name: string): void => {
    if (seen.has(name)) return;
    seen.add(name);
    const elf = load(name);
    if (elf === undefined) return; // built into the kernel
    for (const needed of moduleDependencies(elf)) visit(needed);
    order.push(name);
  };
  for (const name of wanted) visit(name);
  return order;
}

function modinfo(elf: Uint8Array): string[] {
  const view = new DataView(elf.buffer, elf.byteOffset, elf.byteLength);
  try {
    if (view.getUint32(0) !== 0x7f454c46 || view.getUint8(4) !== 2) throw new RangeError();
    const headers = Number(view.getBigUint64(0x28, true));
    const headerBytes = view.getUint16(0x3a, true);
    const count = view.getUint16(0x3c, true);
    const section = (index: number) => {
      const at = headers + index * headerBytes;
      return {
        name: view.getUint32(at, true),
        offset: Number(view.getBigUint64(at + 0x18, true)),
        length: Number(view.getBigUint64(at + 0x20, true)),
      };
    };
    const names = section(view.getUint16(0x3e, true));
    for (let index = 0; index < count; index++) {
      const { name, offset, length } = section(index);
      if (textAt(elf, names.offset + name) !== ".modinfo") continue;
      return new TextDecoder().decode(elf.subarray(offset, offset + length)).split("\0");
    }
  } catch (error) {
    if (error instanceof RangeError) throw new ImageError("not a kernel module");
    throw error;
  }
  return [];
}

function textAt(bytes: Uint8Array, offset: number): string {
  const end = bytes.indexOf(0, offset);
  return new TextDecoder().decode(bytes.subarray(offset, end));
}
