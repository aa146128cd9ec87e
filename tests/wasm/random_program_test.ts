/** Random programs leave the same registers and memory behind here as under qemu-riscv64. */

import { assertEquals } from "@std/assert";
import { needs } from "../support/clients.ts";
import { BASE, DATA_BYTES, DATA_OFFSET, RandomPrograms } from "../support/random_program.ts";
import { CSR, halt } from "../support/rv_asm.ts";
import { layout, RAM, TestHart } from "../support/test_hart.ts";

const SEED = Number(Deno.env.get("OVIS_SEED") ?? 20261123);
const PROGRAMS = 12;
const INSTRUCTIONS = 3000;
const HALT_AT = RAM + 0x100000n;
const MISTAKES_SHOWN = 10;

const HEADER_BYTES = 0x1000;

/** An ELF file with one segment, readable, writable and executable. */
function makeElf(image: Uint8Array): Uint8Array<ArrayBuffer> {
  const file = new Uint8Array(HEADER_BYTES + image.length);
  const view = new DataView(file.buffer);
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true); // ET_EXEC
  view.setUint16(18, 243, true); // EM_RISCV
  view.setUint32(20, 1, true);
  view.setBigUint64(24, BigInt(BASE), true);
  view.setBigUint64(32, 64n, true);
  view.setUint32(48, 5, true); // RVC, double floats
  view.setUint16(52, 64, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, 1, true);
  view.setUint32(64, 1, true); // PT_LOAD
  view.setUint32(68, 7, true);
  view.setBigUint64(72, BigInt(HEADER_BYTES), true);
  view.setBigUint64(80, BigInt(BASE), true);
  view.setBigUint64(88, BigInt(BASE), true);
  view.setBigUint64(96, BigInt(image.length), true);
  view.setBigUint64(104, BigInt(image.length), true);
  view.setBigUint64(112, BigInt(HEADER_BYTES), true);
  file.set(image, HEADER_BYTES);
  return file;
}

async function runQemu(image: Uint8Array): Promise<Uint8Array> {
  const path = await Deno.makeTempFile({ prefix: "ovis-random-" });
  try {
    await Deno.writeFile(path, makeElf(image));
    await Deno.chmod(path, 0o700);
    const { code, stdout } = await new Deno.Command("qemu-riscv64", { args: [path] }).output();
    assertEquals(code, 0);
    return stdout;
  } finally {
    await Deno.remove(path);
  }
}

/** Runs the program up to its first system call. */
function runHere(image: Uint8Array): Uint8Array {
  const hart = new TestHart();
  const memory = new Uint8Array(hart.view.buffer, layout.RAM_BASE);
  memory.set(image);
  hart.setCsr(CSR.mstatus, 1n << 13n);
  hart.setCsr(CSR.mtvec, HALT_AT);
  hart.load(HALT_AT, [halt]);
  hart.setPc(RAM);
  for (let turn = 0; turn < 100 && hart.pc() !== HALT_AT; turn++) hart.run(1000);
  assertEquals(hart.csr(CSR.mcause), 11n, "it ends with ECALL");
  return memory.slice(DATA_OFFSET, DATA_OFFSET + DATA_BYTES);
}

Deno.test({
  name: `${PROGRAMS} random programs end as under qemu-riscv64 (seed ${SEED})`,
  ...needs("qemu-riscv64"),
  fn: async () => {
    const programs = new RandomPrograms(SEED);
    for (let number = 0; number < PROGRAMS; number++) {
      const image = programs.next(INSTRUCTIONS);
      const ours = new DataView(runHere(image).buffer);
      const theirs = new DataView((await runQemu(image)).slice().buffer);
      assertEquals(theirs.byteLength, DATA_BYTES);
      const wrong: string[] = [];
      for (let at = 0; at < DATA_BYTES; at += 8) {
        const [a, b] = [ours.getBigUint64(at, true), theirs.getBigUint64(at, true)];
        if (a !== b) wrong.push(`+0x${at.toString(16)}: ${a.toString(16)}, qemu ${b.toString(16)}`);
      }
      assertEquals(wrong.slice(0, MISTAKES_SHOWN), [], `program ${number} of seed ${SEED}`);
    }
  },
});
