/** Being told to stop. @module */

/** Exit status of a program that a signal ended, as shells report it. */
export const INTERRUPTED = 130;

/** Resolves with the name of the first SIGTERM or SIGINT. */
export function waitForSignal(): Promise<string> {
  return new Promise((resolve) => {
    for (const name of ["SIGTERM", "SIGINT"] as const) {
      const listener = () => {
        Deno.removeSignalListener(name, listener);
        resolve(name);
      };
      Deno.addSignalListener(name, listener);
    }
  });
}
