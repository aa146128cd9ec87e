/**
 * Helpers for results that may be there already (see MaybePromise in types.ts): the synchronous
 * case makes no promise and no extra turn of the event loop.
 *
 * @module
 */

import type { MaybePromise } from "./types.ts";

/** Goes on with `next` now or when `value` is there. Errors of either are thrown or reject. */
export function andThen<T, U>(
  value: MaybePromise<T>,
  next: (value: T) => MaybePromise<U>,
): MaybePromise<U> {
  return value instanceof Promise ? value.then(next) : next(value);
}
