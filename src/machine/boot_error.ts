/**
 * Why a machine can't be started from the files it was given. One class, a closed list of codes.
 *
 * @module
 */

/** What is wrong with a boot file. */
export type BootErrorCode =
  | "nothingToBoot" // neither a kernel nor a firmware
  | "unknownFormat" // not a kernel: a text file, a program for another machine, ...
  | "unsupportedCompression" // named in the file, but not known here
  | "damaged" // truncated, or it contradicts itself
  | "doesNotFit"; // larger than RAM, or its addresses are outside

/** Which of the files. */
export type BootFile = "kernel" | "initrd" | "firmware";

/** A boot file that can't be used. The message names the file and says why. */
export class BootError extends Error {
  /** For logs. */
  override readonly name = "BootError";
  /** An error about `file`, whose name the message will start with. */
  constructor(
    /** What is wrong. */
    readonly code: BootErrorCode,
    /** With which file. */
    readonly file: BootFile,
    message: string,
    options?: ErrorOptions,
  ) {
    super(`${file}: ${message}`, options);
  }
}
