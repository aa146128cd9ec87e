/**
 * Requests of several steps, each of which may answer at once or later (see MaybePromise in
 * types.ts), written once for both: a generator that yields only the promises it has to wait for.
 *
 *   function* copy(): Steps<void> {
 *     yield* settle(source.read(0, buffer));
 *     yield* settle(target.write(0, buffer));
 *   }
 *   const result: MaybePromise<void> = runSteps(copy());
 *
 * @module
 */

import type { MaybePromise } from "./types.ts";

/** The steps of a request whose result is a T. */
export type Steps<T> = Generator<Promise<unknown>, T, unknown>;

/** One step: its value, waited for only where it isn't there yet. */
export function* settle<T>(value: MaybePromise<T>): Steps<T> {
  return value instanceof Promise ? (yield value) as T : value;
}

/** Runs the steps: within the call where none has to wait, else up to the first that has to. */
export function runSteps<T>(steps: Steps<T>): MaybePromise<T> {
  const first = steps.next();
  return first.done ? first.value : finishSteps(steps, first.value);
}

async function finishSteps<T>(steps: Steps<T>, first: Promise<unknown>): Promise<T> {
  let waitingFor = first;
  for (;;) {
    let next: IteratorResult<Promise<unknown>, T>;
    let value: unknown;
    let failure: { error: unknown } | null = null;
    try {
      value = await waitingFor;
    } catch (error) {
      failure = { error };
    }
    if (failure === null) next = steps.next(value);
    else next = steps.throw(failure.error);
    if (next.done) return next.value;
    waitingFor = next.value;
  }
}
