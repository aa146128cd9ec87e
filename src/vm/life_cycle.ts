/**
 * The life cycle of a machine as a pure function: what a request means in a state. machine.ts
 * carries it out, one request at a time.
 *
 *                  start                    pause
 *   creating --> starting --> running  <-----------> paused
 *                   |  ^       |   ^      resume       |
 *                   |  |  exit,|   | reset             | stop
 *                   |  |  stop v   +-------------------+
 *                   |  |   stopping --> stopped --+
 *                   v  +--------------------------+--> deleting --> (gone)
 *                 failed -----------start, delete-+
 *
 * `creating`, `starting`, `stopping` and `deleting` last only while a request is being carried out.
 *
 * @module
 */

/** Where a machine stands. */
export type MachineState =
  | "creating"
  | "starting"
  | "running"
  | "paused"
  | "stopping"
  | "stopped"
  | "failed"
  | "deleting";

/** What people, and the guest, ask of a machine. */
export type LifeCycleRequest = "start" | "stop" | "pause" | "resume" | "reset" | "delete";

/** What to do about a request: carry it out, nothing since it is so already, or refuse it. */
export type Decision = "act" | "done" | { refused: string };

/** What `request` means for a machine in `state`, with nothing else under way. */
export function decide(state: MachineState, request: LifeCycleRequest): Decision {
  // A deletion that failed half-way can only be repeated.
  if (state === "deleting" && request !== "delete") return { refused: "it is being deleted" };
  switch (request) {
    case "start":
      if (state === "running") return "done";
      if (state === "paused") return { refused: "it is paused: resume it instead" };
      return state === "stopped" || state === "failed" ? "act" : notNow(state);
    case "stop":
      if (state === "stopped") return "done";
      return isOpen(state) || state === "failed" ? "act" : notNow(state);
    case "pause":
      if (state === "paused") return "done";
      return state === "running" ? "act" : notNow(state);
    case "resume":
      if (state === "running") return "done";
      return state === "paused" ? "act" : notNow(state);
    case "reset":
      return isOpen(state) ? "act" : notNow(state);
    case "delete":
      return "act";
  }
}

/** Whether the machine has workers, open disks and perhaps fleecings. */
export function isOpen(state: MachineState): state is "running" | "paused" {
  return state === "running" || state === "paused";
}

function notNow(state: MachineState): Decision {
  return { refused: `it is ${state}` };
}
