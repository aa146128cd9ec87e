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

/** How often a bar of time is drawn. */
const TIME_STEP_MS = 200;

/** Shows how far along `work` must be that takes so long. */
export async function withTimeBar<T>(step: string, seconds: number, work: Promise<T>): Promise<T> {
  if (!Deno.stderr.isTerminal()) {
    printError(`${step} (${seconds} s)`);
    return await work;
  }
  const bar = new SingleBar({
    format: `${step.padEnd(40)} {bar} {value} of {total} s`,
    hideCursor: true,
  }, Presets.shades_classic);
  const begin = performance.now();
  bar.start(seconds, 0);
  const timer = setInterval(() => {
    bar.update(Math.min(seconds, Math.floor((performance.now() - begin) / 1000)));
  }, TIME_STEP_MS);
  try {
    return await work;
  } finally {
    clearInterval(timer);
    bar.stop();
  }
}
