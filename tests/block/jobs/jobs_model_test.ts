/**
 * Random guests and jobs against the model. A run follows from its seed alone:
 *
 *   OVIS_SEED=... OVIS_MODEL_RUNS=... deno test tests/block/jobs/jobs_model_test.ts
 *
 * @module
 */

import { assert } from "@std/assert";
import { runSimulations } from "../../support/simulation.ts";
import { JobSimulation } from "./jobs_model.ts";

const FIRST_SEED = Number(Deno.env.get("OVIS_SEED") ?? 20261123);
const RUNS = Number(Deno.env.get("OVIS_MODEL_RUNS") ?? 120);
const STEPS = 200;

Deno.test(`jobs model: ${RUNS} runs of ${STEPS} steps from seed ${FIRST_SEED}`, async () => {
  const counts = await runSimulations(
    { firstSeed: FIRST_SEED, runs: RUNS, steps: STEPS },
    (seed) => new JobSimulation(seed),
  );
  // Everything that the model knows did happen.
  const expected = [
    ...[
      "guest write",
      "guest zero",
      "guest discard",
      "guest read",
      "guest write failed",
      "target fails",
    ],
    ...["backup done", "backup failed", "mirror done", "mirror failed", "commit done"],
    ...["commit failed", "stream done", "stream failed"],
    ...["status paused", "status standby", "status ready", "status aborting"],
  ];
  const missing = RUNS < 120 ? [] : expected.filter((what) => !(what in counts));
  assert(missing.length === 0, `never seen: ${missing.join(", ")}`);
});
