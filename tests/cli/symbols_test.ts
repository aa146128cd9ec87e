/** Names of a guest's functions, out of files that may be anything. */

import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { SymbolTable } from "../../src/cli/symbols.ts";
import { makeElf, withSymbols } from "../support/elf_file.ts";

const SEED = Number(Deno.env.get("OVIS_SEED") ?? 20261130);
const RUNS = 500;
const BASE = 0xffff_ffff_8000_0000n;

const MAP = `ffffffff80000000 T _start
ffffffff80000000 t $x
ffffffff80000100 t helper
ffffffff80000180 d table
ffffffff80000200 W weak
ffffffff80000200 T same
ffffffff01234000 t module_function\t[module]
ffffffff80000300 B _end
`;

Deno.test("SymbolTable finds the function of an address in System.map and kallsyms", () => {
  const table = SymbolTable.parse(new TextEncoder().encode(MAP));
  const names = ([
    [0n, null],
    [BASE - 1n, "module_function"],
    [BASE, "_start"],
    [BASE + 0xffn, "_start"],
    [BASE + 0x100n, "helper"],
    [BASE + 0x180n, null],
    [BASE + 0x200n, "weak"],
    [BASE + 0x2ffn, "weak"],
    [BASE + 0x300n, null],
    [(1n << 64n) - 1n, null],
  ] as const).map(([address, name]) => [table.nameOf(address), name]);
  for (const [found, expected] of names) assertEquals(found, expected);
});

Deno.test("SymbolTable finds functions in ELF files, and their ends", () => {
  const elf = withSymbols(makeElf(BASE, new Uint8Array(64)), {
    first: { address: BASE, bytes: 16 },
    second: { address: BASE + 32n, bytes: 0 },
  });
  const table = SymbolTable.parse(elf);
  const names = [-1n, 0n, 15n, 16n, 31n, 32n, 1000n].map((at) => table.nameOf(BASE + at));
  assertEquals(names, [null, "first", "first", null, null, "second", "second"]);
});

Deno.test("SymbolTable refuses what names no function, and says why", () => {
  const parse = (text: string) => () => SymbolTable.parse(new TextEncoder().encode(text));
  assertThrows(parse(""), RangeError, "names no function");
  assertThrows(parse("ffffffffffffffff B The real System.map is elsewhere\n"), RangeError);
  assertThrows(parse("0000000000000000 T _start\n"), RangeError, "as root");
  assertThrows(() => SymbolTable.parse(makeElf(BASE, new Uint8Array(4))), RangeError);
});

Deno.test(`SymbolTable takes damaged ELF files for what they are (seed ${SEED})`, () => {
  const elf = withSymbols(makeElf(BASE, new Uint8Array(16)), {
    first: { address: BASE, bytes: 16 },
  });
  const change = fc.record({ at: fc.nat(elf.length - 1), value: fc.nat(255) });
  const cut = fc.nat(elf.length);
  fc.assert(
    fc.property(fc.array(change, { maxLength: 20 }), cut, (changes, length) => {
      const damaged = elf.slice(0, length);
      for (const { at, value } of changes) if (at < length) damaged[at] = value;
      try {
        SymbolTable.parse(damaged).nameOf(BASE);
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        assertEquals(error.message.startsWith("it names") || error.message.startsWith("all"), true);
      }
    }),
    { seed: SEED, numRuns: RUNS },
  );
});
