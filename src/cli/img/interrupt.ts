/**
 * Copies that are broken off by a signal.
 *
 * @module
 */

import { INTERRUPTED } from "../signals.ts";
import { abandonTarget, type MadeTarget } from "./convert_target.ts";
import type { ImgOutput } from "./run.ts";

const SIGNALS: readonly Deno.Signal[] = ["SIGINT", "SIGTERM"];

/** While it is not disposed of, a signal ends the process and leaves no half a copy unsaid. */
export function watchSignals(made: MadeTarget, output: ImgOutput): Disposable {
  const listener = (): void => {
    const left = abandonTarget(made);
    output.printError(`ovis img: interrupted${left === null ? "" : `\n${left}`}\n`);
    Deno.exit(INTERRUPTED);
  };
  for (const signal of SIGNALS) Deno.addSignalListener(signal, listener);
  return {
    [Symbol.dispose]: () => {
      for (const signal of SIGNALS) Deno.removeSignalListener(signal, listener);
    },
  };
}
