/**
 * `ovis img`: images, as qemu-img handles them. Its arguments are read as qemu-img reads them
 * (img/args.ts), so that a script written for qemu-img runs against it.
 *
 * @module
 */

import { imgHelp, runImg } from "./img/run.ts";
import type { Program } from "./mod.ts";
import { printErrorText, printText } from "./output.ts";

/** Adds the command. */
export function registerImg(program: Program): void {
  // Options behind the command's name are its own, also those that `ovis` has.
  program.enablePositionalOptions();
  program.command("img").usage("COMMAND [options]")
    .description("Images, as qemu-img handles them")
    .helpOption(false)
    .argument("[words...]")
    .allowUnknownOption()
    .passThroughOptions()
    .configureHelp({ formatHelp: () => imgHelp() })
    .action(async (words: string[]) => {
      const status = await runImg(words, {
        print: printText,
        printError: printErrorText,
        isTerminal: Deno.stdout.isTerminal() && Deno.stderr.isTerminal(),
      });
      if (status !== 0) Deno.exit(status);
    });
}
