/**
 * Progress of long work on standard error: a bar on a terminal, else a line when a step begins.
 *
 * @module
 */

// @ts-types="npm:@types/cli-progress@3.11.6"
import { Presets, SingleBar } from "cli-progress";
import { printError } from "./output.ts";

const MiB = 1024 * 1024;

/** Shows one step after another. */
export class Progress {
  #step = "";
  #bar: SingleBar | undefined;

  /** Says how far a step is; another name than before begins another step. */
  report(step: string, doneBytes: number, totalBytes: number): void {
    if (step !== this.#step) this.#begin(step, totalBytes);
    this.#bar?.update(doneBytes / MiB);
  }

  /** Ends the last step. */
  end(): void {
    this.#bar?.stop();
    this.#bar = undefined;
    this.#step = "";
  }

  #begin(step: string, totalBytes: number): void {
    this.end();
    this.#step = step;
    if (!Deno.stderr.isTerminal()) {
      return printError(`${step} (${(totalBytes / MiB).toFixed(1)} MiB)`);
    }
    this.#bar = new SingleBar({
      format: `${step.padEnd(40)} {bar} {percentage}% of {total} MiB, {eta_formatted} left`,
      formatValue: (value, _options, type) => type === "total" ? value.toFixed(1) : String(value),
      hideCursor: true,
    }, Presets.shades_classic);
    this.#bar.start(totalBytes / MiB, 0);
  }
}
