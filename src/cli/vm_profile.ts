/** `ovis vm profile`: where a machine spends its time. @module */

import { type Command, InvalidArgumentError } from "commander";
import type { Client } from "./client.ts";
import { printLine, printTable } from "./output.ts";
import { withTimeBar } from "./progress.ts";
import { SymbolTable } from "./symbols.ts";
import { pathOf } from "./vm_text.ts";

/** A profile as the API shows it. */
interface Profile {
  seconds: number;
  samples: number;
  lost: number;
  stacks: { mode: string; frames: string[]; samples: number }[];
}

const ROWS_SHOWN = 30;
/** Addresses without a name are told by their page. */
const PAGE_MASK = ~0xfffn;

/**
 * Adds the command.
 *
 * @internal
 */
export function addProfile(vm: Command, client: () => Promise<Client>): void {
  vm.command("profile <vm>")
    .description("look where a machine spends its time")
    .option("--seconds <seconds>", "how long", parseSeconds, 10)
    .option("--symbols <file>", "System.map, /proc/kallsyms of the guest, or an ELF file")
    .option("--output <file>", "write collapsed stacks, which flame graph viewers open")
    .action(async (name, { seconds, symbols, output }) => {
      const table = symbols === undefined ? null : await readSymbols(symbols);
      const service = await client();
      const profile = await withTimeBar(
        `profiling ${name}`,
        seconds,
        service.call<Profile>("POST", `${pathOf(name)}/profile`, { seconds }),
      );
      if (output !== undefined) await Deno.writeTextFile(output, collapse(profile, table));
      printProfile(profile, table);
    });
}

function parseSeconds(text: string): number {
  if (!/^\d+(\.\d+)?$/.test(text)) throw new InvalidArgumentError("not a number of seconds");
  return Number(text);
}

async function readSymbols(path: string): Promise<SymbolTable> {
  try {
    return SymbolTable.parse(await Deno.readFile(path));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new RangeError(`${path}: ${error.message}`, { cause: error });
  }
}

/** The names of a stack, innermost first. */
function namesOf(frames: readonly string[], table: SymbolTable | null): string[] {
  return frames.map((frame, depth) => {
    const address = BigInt(frame);
    // A call's return address may lie behind the end of the function that called.
    const name = table?.nameOf(depth === 0 ? address : address - 1n);
    return name?.replace(/[;\s]/g, "_") ?? `[0x${(address & PAGE_MASK).toString(16)}]`;
  });
}

/** A line a stack, outermost first: `mode;outer;inner COUNT`. */
function collapse({ stacks }: Profile, table: SymbolTable | null): string {
  const counts = new Map<string, number>();
  for (const { mode, frames, samples } of stacks) {
    const line = [mode, ...namesOf(frames, table).reverse()].join(";");
    counts.set(line, (counts.get(line) ?? 0) + samples);
  }
  return [...counts].map(([line, count]) => `${line} ${count}\n`).join("");
}

function printProfile(profile: Profile, table: SymbolTable | null): void {
  const counts = new Map<string, { name: string; mode: string; samples: number }>();
  for (const { mode, frames, samples } of profile.stacks) {
    const [name = ""] = namesOf(frames.slice(0, 1), table);
    const key = `${mode} ${name}`;
    const known = counts.get(key);
    if (known === undefined) counts.set(key, { name, mode, samples });
    else known.samples += samples;
  }
  const rows = [...counts.values()].sort((a, b) => b.samples - a.samples);
  printTable([
    ["SYMBOL", "MODE", "SAMPLES", "PERCENT"],
    ...rows.slice(0, ROWS_SHOWN).map(({ name, mode, samples }) => [
      name,
      mode,
      `${samples}`,
      (100 * samples / profile.samples).toFixed(1),
    ]),
  ]);
  if (rows.length > ROWS_SHOWN) printLine(`and ${rows.length - ROWS_SHOWN} more`);
  const { samples, seconds, lost } = profile;
  printLine(`${samples} samples in ${seconds.toFixed(1)} s, ${lost} lost`);
}
