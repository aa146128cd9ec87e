/**
 * `ovis img`: images, as qemu-img handles them. Its arguments are read as qemu-img reads them
 * (img/args.ts), so that a script written for qemu-img runs against it.
 *
 * @module
 */

import { runImg } from "./img/run.ts";
import { printErrorText, printText } from "./output.ts";

/** Runs the command with the words behind its name; ends the process where it fails. */
export async function runImgCommand(words: readonly string[]): Promise<void> {
  const status = await runImg(words, {
    print: printText,
    printError: printErrorText,
    isTerminal: Deno.stdout.isTerminal() && Deno.stderr.isTerminal(),
  });
  if (status !== 0) Deno.exit(status);
}
