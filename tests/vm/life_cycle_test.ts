import { assertEquals } from "@std/assert";
import { decide, type LifeCycleRequest, type MachineState } from "../../src/vm/life_cycle.ts";

const STATES: MachineState[] = [
  "creating",
  "starting",
  "running",
  "paused",
  "stopping",
  "stopped",
  "failed",
  "deleting",
];

/** For each request: what each state says. A: act, D: done already, -: refused. */
const TABLE: Record<LifeCycleRequest, string> = {
  //       crea star runn paus stpg stpd fail dele
  start: "-    -    D    -    -    A    A    -",
  stop: "-    -    A    A    -    D    A    -",
  pause: "-    -    A    D    -    -    -    -",
  resume: "-    -    D    A    -    -    -    -",
  reset: "-    -    A    A    -    -    -    -",
  delete: "A    A    A    A    A    A    A    A",
};

Deno.test("decide() says what each request means in each state", () => {
  for (const [request, row] of Object.entries(TABLE)) {
    const seen = STATES.map((state) => {
      const decision = decide(state, request as LifeCycleRequest);
      return decision === "act" ? "A" : decision === "done" ? "D" : "-";
    });
    assertEquals(seen, row.split(/ +/), request);
  }
});
