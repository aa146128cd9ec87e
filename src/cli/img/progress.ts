/**
 * How far a command is: with -p as qemu-img shows it; else, where people look at a terminal and it
 * takes longer, as a bar.
 *
 * @module
 */

import type { Progress } from "../progress.ts";
import type { Arguments } from "./args.ts";
import type { ImgOutput } from "./run.ts";

/** A bar is not worth its lines before. */
const BAR_AFTER_MS = 1000;
/** How often a bar is drawn anew. */
const BAR_EVERY_MS = 100;

/** Tells people. */
export class ImgProgress {
  readonly #output: ImgOutput;
  readonly #step: string;
  readonly #isPlain: boolean;
  readonly #isSilent: boolean;
  #percent = -1;
  #lastMs: number;
  #bar: Progress | null = null;
  #loading: Promise<void> | null = null;
  #isEnded = false;

  /** `step`: what is being done, for the bar. */
  constructor(args: Arguments, output: ImgOutput, step: string) {
    this.#output = output;
    this.#step = step;
    const isQuiet = args.has("quiet");
    this.#isPlain = args.has("progress") && !isQuiet;
    this.#isSilent = isQuiet || (!this.#isPlain && !output.isTerminal);
    this.#lastMs = performance.now() + BAR_AFTER_MS - BAR_EVERY_MS;
    if (this.#isPlain) this.#print(0);
  }

  /** So much is done. */
  readonly report = (doneBytes: number, totalBytes: number): void => {
    if (this.#isSilent) return;
    if (this.#isPlain) {
      const percent = totalBytes === 0 ? 100 : doneBytes / totalBytes * 100;
      if (percent - this.#percent >= 1) this.#print(percent);
      return;
    }
    const nowMs = performance.now();
    if (nowMs - this.#lastMs < BAR_EVERY_MS) return;
    this.#lastMs = nowMs;
    // Most commands end before they need what draws bars.
    this.#loading ??= import("../progress.ts").then(({ Progress }) => {
      if (!this.#isEnded) this.#bar = new Progress();
    });
    this.#bar?.report(this.#step, doneBytes, totalBytes);
  };

  /** The end; a failed command leaves the line as it is. */
  end(isDone: boolean): void {
    this.#isEnded = true;
    this.#bar?.end();
    if (!this.#isPlain) return;
    if (isDone) this.#print(100);
    this.#output.print("\n");
  }

  #print(percent: number): void {
    this.#percent = percent;
    this.#output.print(`    (${percent.toFixed(2)}/100%)\r`);
  }
}
