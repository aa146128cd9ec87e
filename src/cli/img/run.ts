/**
 * The commands of `ovis img`: finds the one that is named, reads its arguments, runs it, and turns
 * what it throws into a message and an exit status. Only the command's own file is loaded.
 *
 * @module
 */

import { type Arguments, commandHelp, type CommandSyntax, parseArguments } from "./args.ts";
import { ImgError, UsageError } from "./errors.ts";

/** Where a command writes. */
export interface ImgOutput {
  /** To the standard output, as it is. */
  print(text: string): void;
  /** To the standard error, as it is. */
  printError(text: string): void;
  /** People look at both. */
  isTerminal: boolean;
}

/** What the file of a command exports. */
export interface ImgCommand {
  /** Its options. */
  syntax: CommandSyntax;
  /** Does the work; the exit status. What it throws becomes a message and status 1. */
  run(args: Arguments, output: ImgOutput): Promise<number> | number;
  /** The exit status where it throws anything; 1 unless given. */
  failureStatus?: number;
}

interface ImgCommandEntry {
  summary: string;
  load: () => Promise<{ command: ImgCommand }>;
}

const COMMANDS: Readonly<Record<string, ImgCommandEntry>> = {
  bench: { summary: "Run simple image benchmark", load: () => open("./bench.ts") },
  bitmap: {
    summary: "Perform modifications of the persistent bitmap in the image",
    load: () => open("./bitmap.ts"),
  },
  check: { summary: "Check basic image integrity", load: () => open("./check.ts") },
  commit: { summary: "Commit image to its backing file", load: () => open("./commit.ts") },
  compare: {
    summary: "Check if two images have the same contents",
    load: () => open("./compare.ts"),
  },
  convert: {
    summary: "Copy one image to another with optional format conversion",
    load: () => open("./convert.ts"),
  },
  create: { summary: "Create and format new image file", load: () => open("./create.ts") },
  dd: {
    summary: "Copy input to output with optional format conversion",
    load: () => open("./dd.ts"),
  },
  info: { summary: "Display information about image", load: () => open("./info.ts") },
  map: { summary: "Dump image metadata", load: () => open("./map.ts") },
  measure: {
    summary: "Calculate file size required for a new image",
    load: () => open("./measure.ts"),
  },
  rebase: { summary: "Change backing file of the image", load: () => open("./rebase.ts") },
  resize: { summary: "Resize the image to the new size", load: () => open("./resize.ts") },
  snapshot: {
    summary: "List or manipulate snapshots within image",
    load: () => open("./snapshot.ts"),
  },
};

/** What stands before every message. */
const PREFIX = "ovis img: ";

/** Runs one command line, without `ovis img`; the exit status. */
export async function runImg(words: readonly string[], output: ImgOutput): Promise<number> {
  const [name, ...rest] = words;
  if (name === "--help" || name === "-h" || name === "help") {
    output.print(imgHelp());
    return 0;
  }
  if (name === undefined) return usage(output, "Not enough arguments");
  const entry = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (entry === undefined) {
    return usage(
      output,
      name.startsWith("-") ? `unrecognized option '${name}'` : `Command not found: ${name}`,
    );
  }
  const { command } = await entry.load();
  try {
    const help = { name: "help", short: "h", help: "print this help and exit" };
    const options = [help, ...command.syntax.options];
    const syntax = { ...command.syntax, options };
    const args = parseArguments(rest, syntax);
    if (args.has("help")) {
      output.print(commandHelp(name, entry.summary, syntax));
      return 0;
    }
    return await command.run(args, output);
  } catch (error) {
    if (error instanceof UsageError) {
      return usage(output, error.message, name);
    }
    // What is not expected carries no message for people.
    if (!isExpected(error)) throw error;
    output.printError(`${PREFIX}${error.message}\n`);
    return error instanceof ImgError ? error.exitCode : command.failureStatus ?? 1;
  }
}

/** The list of commands. */
export function imgHelp(): string {
  return [
    "Usage: ovis img COMMAND [--help | command options]",
    "",
    "Disk images, as qemu-img handles them",
    "",
    "Commands (ovis img COMMAND --help says more):",
    "",
    ...Object.entries(COMMANDS).map(([name, { summary }]) => `  ${name.padEnd(9)} ${summary}`),
    "",
    "Formats: raw, qcow2. An image is a file name, an nbd:// or nbd+unix:// address, json:{...}, or",
    "with --image-opts what blockdev-add takes, as KEY=VALUE,...",
    "",
  ].join("\n");
}

function usage(output: ImgOutput, message: string, command?: string): number {
  output.printError(`${PREFIX}${message}\n`);
  const help = command === undefined ? "" : ` ${command}`;
  output.printError(`Try 'ovis img${help} --help' for more info\n`);
  return 1;
}

function isExpected(error: unknown): error is Error {
  return error instanceof ImgError || (error instanceof Error && error.name === "BlockError");
}

/**
 * Imports a command. Of an import with a literal the runtime would read all modules below before
 * it starts, whichever command is named.
 */
async function open(specifier: `./${string}.ts`): Promise<{ command: ImgCommand }> {
  return await import(specifier);
}
