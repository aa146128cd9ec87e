/**
 * Random guests, views and failures against the model. A run follows from its seed alone:
 *
 *   OVIS_SEED=... OVIS_MODEL_RUNS=... deno test tests/block/fleecing_model_test.ts
 *
 * @module
 */

import { assert } from "@std/assert";
import { runSimulations } from "../support/simulation.ts";
import { FleecingSimulation } from "./fleecing_model.ts";

const FIRST_SEED = Number(Deno.env.get("OVIS_SEED") ?? 20261123);
const RUNS = Number(Deno.env.get("OVIS_MODEL_RUNS") ?? 40);
const STEPS = 250;

Deno.test(`fleecing model: ${RUNS} runs of ${STEPS} steps from seed ${FIRST_SEED}`, async () => {
  const counts = await runSimulations(
    { firstSeed: FIRST_SEED, runs: RUNS, steps: STEPS },
    (seed) => new FleecingSimulation(seed),
  );
  // Everything that the model knows did happen.
  const expected = [
    ...["guest write", "guest zero", "guest discard", "guest read", "guest flush"],
    ...["view read", "view status", "view discard", "view refused: EACCES"],
    ...["start", "stop", "broken", "bitmap"],
    ...["guest write failed: EIO", "guest write failed: ENOSPC", "guest write failed: ETIMEDOUT"],
  ];
  const missing = RUNS < 40 ? [] : expected.filter((what) => !(what in counts));
  assert(missing.length === 0, `never seen: ${missing.join(", ")}`);
});
