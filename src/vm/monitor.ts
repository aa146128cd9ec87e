/**
 * What a machine's monitor (QMP) asks of the control side, in QEMU's words.
 *
 * @module
 */

import type { HostQuestion } from "../machine/messages.ts";
import { ServiceError } from "./errors.ts";
import type { Machine } from "./machine.ts";

/** Carries out a request; resolves when the machine is there, or goes there for `quit`. */
export async function answerMonitor(
  machine: Machine,
  request: Extract<HostQuestion, { type: "control" }>["request"],
): Promise<void> {
  switch (request) {
    case "stop":
      return await machine.request("pause");
    case "cont":
      return await machine.request("resume");
    case "reset":
      return await machine.request("reset");
    case "quit":
      // The monitor that asks ends with it: it is answered before.
      return void machine.request("stop").catch(() => {});
    case "powerdown":
      throw new ServiceError("notSupported", "the board has no power button");
  }
}
