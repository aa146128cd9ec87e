/**
 * Reads arguments as glibc's getopt_long does for qemu-img: clustered short options, values joined
 * or apart, long options by any unambiguous beginning, operands anywhere, all operands after `--`.
 *
 * @module
 */

import { UsageError } from "./errors.ts";

/** An option of a command. */
export interface OptionSpec {
  /** Its long name, which is also what the command asks for. */
  name: string;
  /** One letter. */
  short?: string;
  /** What its value is called in the help; without it the option takes none. */
  value?: string;
  /** For the help; an option without it is taken and not shown. */
  help?: string;
  /** Other long names of the same option. */
  aliases?: readonly string[];
}

/** Which words a command takes. */
export interface CommandSyntax {
  /** What stands behind the command's name in "Usage:". */
  usage: string;
  /** All of them. */
  options: readonly OptionSpec[];
  /** A word like -5G is no option. */
  hasNegativeOperands?: boolean;
}

/** An option that was given. */
export interface GivenOption {
  /** OptionSpec.name. */
  name: string;
  /** "" for an option that takes none. */
  value: string;
}

/** The words of a command, sorted. */
export class Arguments {
  /** `options`: in the order they were given. */
  constructor(readonly options: readonly GivenOption[], readonly operands: readonly string[]) {}

  /** The value of the last option of that name. */
  get(name: string): string | undefined {
    return this.options.findLast((option) => option.name === name)?.value;
  }

  /** The values of all options of that name. */
  all(name: string): string[] {
    return this.options.filter((option) => option.name === name).map(({ value }) => value);
  }

  /** Whether the option was given. */
  has(name: string): boolean {
    return this.options.some((option) => option.name === name);
  }
}

/** Sorts the words of a command. Throws a UsageError, in getopt's words. */
export function parseArguments(words: readonly string[], syntax: CommandSyntax): Arguments {
  const specs = syntax.options;
  const options: GivenOption[] = [];
  const operands: string[] = [];
  for (let index = 0; index < words.length; index++) {
    const word = words[index] ?? "";
    if (word === "--") {
      operands.push(...words.slice(index + 1));
      break;
    }
    const isNumber = syntax.hasNegativeOperands === true && /^-\d/.test(word);
    if (word === "-" || !word.startsWith("-") || isNumber) {
      operands.push(word);
      continue;
    }
    const next = words[index + 1];
    const takesNext = word.startsWith("--")
      ? parseLong(word.slice(2), { specs, next, options })
      : parseShort(word.slice(1), { specs, next, options });
    if (takesNext) index++;
  }
  return new Arguments(options, operands);
}

interface WordContext {
  specs: readonly OptionSpec[];
  /** The word behind this one. */
  next: string | undefined;
  /** Where the options go. */
  options: GivenOption[];
}

/** True if the next word was the option's value. */
function parseLong(word: string, { specs, next, options }: WordContext): boolean {
  const equals = word.indexOf("=");
  const name = equals < 0 ? word : word.slice(0, equals);
  const spec = findLong(name, specs);
  if (spec.value === undefined) {
    if (equals >= 0) throw new UsageError(`option '--${spec.name}' doesn't allow an argument`);
    options.push({ name: spec.name, value: "" });
    return false;
  }
  if (equals >= 0) {
    options.push({ name: spec.name, value: word.slice(equals + 1) });
    return false;
  }
  if (next === undefined) throw new UsageError(`option '--${spec.name}' requires an argument`);
  options.push({ name: spec.name, value: next });
  return true;
}

function findLong(name: string, specs: readonly OptionSpec[]): OptionSpec {
  const matches = new Map<OptionSpec, string>();
  for (const spec of specs) {
    for (const candidate of [spec.name, ...spec.aliases ?? []]) {
      if (candidate === name) return spec;
      if (candidate.startsWith(name) && !matches.has(spec)) matches.set(spec, candidate);
    }
  }
  const [match] = matches.keys();
  if (match === undefined || name === "") throw new UsageError(`unrecognized option '--${name}'`);
  if (matches.size > 1) {
    const possible = [...matches.values()].map((candidate) => `'--${candidate}'`).join(" ");
    throw new UsageError(`option '--${name}' is ambiguous; possibilities: ${possible}`);
  }
  return match;
}

/** True if the next word was the value of the last letter. */
function parseShort(letters: string, { specs, next, options }: WordContext): boolean {
  for (let index = 0; index < letters.length; index++) {
    const letter = letters[index] ?? "";
    const spec = specs.find((candidate) => candidate.short === letter);
    if (spec === undefined) throw new UsageError(`invalid option -- '${letter}'`);
    if (spec.value === undefined) {
      options.push({ name: spec.name, value: "" });
      continue;
    }
    const rest = letters.slice(index + 1);
    if (rest === "" && next === undefined) {
      throw new UsageError(`option requires an argument -- '${letter}'`);
    }
    options.push({ name: spec.name, value: rest === "" ? next ?? "" : rest });
    return rest === "";
  }
  return false;
}

/** The help of a command, in the form of qemu-img's. */
export function commandHelp(name: string, summary: string, syntax: CommandSyntax): string {
  const lines = [`${summary}.  Usage:`, "", `  ovis img ${name} ${syntax.usage}`, "", "Arguments:"];
  for (const { name, short, value, help } of syntax.options) {
    if (help === undefined) continue;
    const head = `${short === undefined ? "" : `-${short}, `}--${name}`;
    lines.push(`  ${head}${value === undefined ? "" : ` ${value}`}`, `     ${help}`);
  }
  return lines.join("\n") + "\n";
}
