/**
 * Random programs leave the same registers and memory behind here, interpreted and translated, as
 * under qemu-riscv64.
 */

import { assertEquals } from "@std/assert";
import { needs } from "../support/clients.ts";
import { makeElf } from "../support/elf_file.ts";
import { BASE, DATA_BYTES, DATA_OFFSET, RandomPrograms } from "../support/random_program.ts";
import { CSR, halt } from "../support/rv_asm.ts";
import { layout, RAM, TestHart } from "../support/test_hart.ts";

const SEED = Number(Deno.env.get("OVIS_SEED") ?? 20261123);
const PROGRAMS = Number(Deno.env.get("OVIS_LOCKSTEP_PROGRAMS") ?? 12);
const INSTRUCTIONS = 3000;
const HALT_AT = RAM + 0x100000n;
const MISTAKES_SHOWN = 10;

async function runQemu(image: Uint8Array): Promise<Uint8Array> {
  const path = await Deno.makeTempFile({ prefix: "ovis-random-" });
  try {
    await Deno.writeFile(path, makeElf(BigInt(BASE), image));
    await Deno.chmod(path, 0o700);
    const { code, stdout } = await new Deno.Command("qemu-riscv64", { args: [path] }).output();
    assertEquals(code, 0);
    return stdout;
  } finally {
    await Deno.remove(path);
  }
}

/** Runs the program up to its first system call; what it left, and how much ran translated. */
function runHere(image: Uint8Array, translates: boolean): { data: Uint8Array; retired: bigint } {
  const hart = new TestHart();
  hart.hart(0).setTranslator(translates ? 1 : 0, 1);
  const memory = new Uint8Array(hart.view.buffer, layout.RAM_BASE);
  memory.set(image);
  hart.setCsr(CSR.mstatus, 1n << 13n);
  hart.setCsr(CSR.mtvec, HALT_AT);
  hart.load(HALT_AT, [halt]);
  hart.setPc(RAM);
  for (let turn = 0; turn < 100 && hart.pc() !== HALT_AT; turn++) hart.run(1000);
  assertEquals(hart.csr(CSR.mcause), 11n, "it ends with ECALL");
  const data = memory.slice(DATA_OFFSET, DATA_OFFSET + DATA_BYTES);
  return { data, retired: hart.statistic("retired") };
}

/** Where what a program left differs, as lines. */
function differences(ours: Uint8Array, theirs: Uint8Array): string[] {
  const [our, their] = [ours, theirs].map((bytes) => new DataView(bytes.slice().buffer));
  const wrong: string[] = [];
  for (let at = 0; at < DATA_BYTES; at += 8) {
    const [a, b] = [our, their].map((view) => view?.getBigUint64(at, true) ?? 0n);
    if (a !== b) wrong.push(`+0x${at.toString(16)}: ${a?.toString(16)}, qemu ${b?.toString(16)}`);
  }
  return wrong.slice(0, MISTAKES_SHOWN);
}

Deno.test({
  name: `${PROGRAMS} random programs end as under qemu-riscv64 (seed ${SEED})`,
  ...needs("qemu-riscv64"),
  fn: async () => {
    const programs = new RandomPrograms(SEED);
    for (let number = 0; number < PROGRAMS; number++) {
      const image = programs.next(INSTRUCTIONS);
      const theirs = await runQemu(image);
      assertEquals(theirs.length, DATA_BYTES);
      for (const translates of [false, true]) {
        const { data, retired } = runHere(image, translates);
        const tier = translates ? "translated" : "interpreted";
        assertEquals(differences(data, theirs), [], `program ${number} of seed ${SEED}, ${tier}`);
        assertEquals(retired > BigInt(INSTRUCTIONS / 2), translates, `${retired} translated`);
      }
    }
  },
});
