/**
 * The command line: `ovis COMMAND ...`. Each command is a file in src/cli, loaded when it is named.
 *
 * @module
 */

import { COMMANDS } from "./src/cli/mod.ts";
import { printError } from "./src/cli/output.ts";
import { VERSION } from "./src/version.ts";

/** Runs a command line; resolves when the command has ended. */
export async function main(args: readonly string[]): Promise<void> {
  const named = args[0] === "help" ? args[1] : args[0];
  const run = COMMANDS.find(({ name }) => name === named)?.run;
  if (run !== undefined) return await run(args[0] === "help" ? ["--help"] : args.slice(1));
  // Loading it takes longer than some commands.
  const { Command } = await import("commander");
  const program = new Command("ovis")
    .description("RISC-V machines whose disks can be read as they were, while they write")
    .version(VERSION)
    .showHelpAfterError("(--help says more)");
  for (const { name, summary, load } of COMMANDS) {
    if (name === named && load !== undefined) (await load())(program);
    else program.command(name).description(summary);
  }
  await program.parseAsync([...args], { from: "user" });
}

if (import.meta.main) {
  try {
    await main(Deno.args);
  } catch (error) {
    // What a command expects to go wrong carries a message for people; the rest is a bug.
    const isExpected = error instanceof Error && error.name !== "TypeError" &&
      error.name !== "RangeError" && error.name !== "AssertionError";
    printError(isExpected ? `ovis: ${error.message}` : `ovis: ${(error as Error).stack ?? error}`);
    Deno.exit(1);
  }
}
