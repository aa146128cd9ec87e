/**
 * The scenarios against Ovis: a target that answers within the call, and one that takes its time.
 *
 * @module
 */

import type { FaultRule } from "../../src/block/filters/fault_injection.ts";
import { settleAll } from "../support/fake_clock.ts";
import { dataClusters, MiB, Rig, type Side } from "../support/fleecing_rig.ts";
import { type Scenario, scenarios, type ScenarioSetup } from "./fleecing_rows.ts";

for (const scenario of scenarios) {
  Deno.test(`fleecing: ${scenario.row}`, () => runScenario(scenario, { isSlow: false }));
  Deno.test(`fleecing, slow nodes: ${scenario.row}`, () => runScenario(scenario, { isSlow: true }));
}

/** `isSlow`: every node takes 3 ms for a request. */
async function runScenario(scenario: Scenario, { isSlow }: { isSlow: boolean }): Promise<void> {
  const rig = new Rig();
  await rig.guest.write(0, MiB, 0x11);
  await rig.guest.write(2 * MiB, MiB, 0x11);
  const setup = scenario.setup ?? {};
  if (setup.bitmap) {
    const { granularity, dirty } = setup.bitmap;
    const bitmap = rig.bitmaps.add(rig.disk, { name: "b0", granularity });
    for (const [offset, length] of dirty) bitmap.mark(offset, length);
  }
  const fleecing = await rig.fleece({
    bitmap: setup.bitmap ? "b0" : null,
    onCbwError: setup.onCbwError ?? "break-guest-write",
    cbwTimeoutSeconds: setup.cbwTimeoutSeconds ?? 0,
  });
  for (const rule of targetRules(setup)) fleecing.faults.addRule(rule);
  if (isSlow) {
    const delay: FaultRule = {
      operations: ["read", "write", "blockStatus", "discard"],
      delayMs: 3,
    };
    fleecing.faults.addRule(delay);
    rig.disk.addRule(delay);
  }
  await scenario.run({
    guest: timed(rig, rig.guest),
    view: timed(rig, fleecing.view),
    target: () => Promise.resolve(dataClusters(fleecing.target)),
    recovered: () => rig.clock.advance(60_000),
  });
  await rig.close(fleecing);
}

function targetRules(setup: ScenarioSetup): FaultRule[] {
  const rules: FaultRule[] = [];
  if (setup.failsOnce) rules.push({ operations: ["write"], error: "EIO", count: 1 });
  if (setup.isSlow) {
    rules.push({ operations: ["write"], delayMs: 3300, skipCount: 1, count: 1 });
  }
  return rules;
}

/** Lets time pass while a request waits for it. */
function timed(rig: Rig, side: Side): Side {
  const wait = async (answer: Promise<string>): Promise<string> => {
    let isPending = true;
    answer.finally(() => isPending = false);
    await settleAll();
    while (isPending) await rig.clock.advance(100);
    return await answer;
  };
  return {
    read: (offset, length) => wait(side.read(offset, length)),
    write: (offset, length, value) => wait(side.write(offset, length, value)),
    zero: (offset, length, options) => wait(side.zero(offset, length, options)),
    trim: (offset, length) => wait(side.trim(offset, length)),
    flush: () => wait(side.flush()),
  };
}
