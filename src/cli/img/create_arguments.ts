/**
 * -o, -b and -F of the commands that make images.
 *
 * @module
 */

import {
  createFormatOf,
  describeOptions,
  parseOptionList,
  type RawCreateOptions,
} from "../../block/image/create_options.ts";
import type { CreateFormat } from "../../block/image/create_options.ts";
import { ImgError } from "./errors.ts";

/** All -o of a command as one list; the last one of a name counts. */
export function joinedOptions(lists: readonly string[]): Map<string, string> {
  const options = new Map<string, string>();
  for (const list of lists) {
    for (const [name, value] of parseOptionList(list)) options.set(name, value);
  }
  return options;
}

/** The list of options of a format. */
export function optionHelp(formatName: string, withFile: boolean): string {
  const descriptions = describeOptions(createFormatOf(formatName), withFile);
  const lines = descriptions.map(({ name, type, help }) =>
    `  ${`${name}=<${type}>`.padEnd(22)} - ${help}`
  );
  const title = withFile ? "Supported options:" : `Supported ${formatName} options:`;
  const more = withFile ? [] : [
    "",
    "The protocol level may support further options.",
    "Specify the target filename to include those options.",
  ];
  return [title, ...lines, ...more, ""].join("\n");
}

/** Adds -b and -F, which stand for options. */
export function withOldOptions(
  format: CreateFormat,
  options: RawCreateOptions,
  { backing, backingFormat }: { backing: string | undefined; backingFormat: string | undefined },
): Map<string, string> {
  const all = new Map(options);
  if (backing !== undefined) {
    if (format !== "qcow2") {
      throw new ImgError(`Backing file not supported for file format '${format}'`);
    }
    all.set("backing_file", backing);
  }
  if (backingFormat !== undefined) {
    if (format !== "qcow2") {
      throw new ImgError(`Backing format not supported for file format '${format}'`);
    }
    all.set("backing_fmt", backingFormat);
  }
  return all;
}
