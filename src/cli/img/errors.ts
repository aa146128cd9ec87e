/**
 * How a command of `ovis img` ends early.
 *
 * @module
 */

/** A command line that makes no sense: `--help` says more. */
export class UsageError extends Error {
  /** What stands before the message when it is printed. */
  override readonly name = "UsageError";
}

/** A command that can't be done. The message is for people. */
export class ImgError extends Error {
  /** What stands before the message when it is printed. */
  override readonly name = "ImgError";

  /** `exitCode`: 1 where the command does not say otherwise. */
  constructor(message: string, readonly exitCode = 1, options: ErrorOptions = {}) {
    super(message, options);
  }
}
