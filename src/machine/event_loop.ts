/**
 * Turns of the I/O worker's event loop, which guest requests, sockets and messages share.
 *
 * @module
 */

import { setImmediate } from "node:timers";

/**
 * Resolves after everything else that is ready had its turn. About 2 us, where a timer takes 2 ms.
 */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
