/**
 * One machine under random requests, events and faults, against what must hold always: its driver
 * is used as driver.ts says, one call at a time; nothing of an ended session is left; the state
 * that people see is the driver's.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { getLogger } from "@logtape/logtape";
import { BlockError } from "../../src/block/errors.ts";
import type { IoMethod, IoMethods, MachineConfig } from "../../src/machine/messages.ts";
import type { DriverEvents, MachineDriver } from "../../src/vm/driver.ts";
import type { Profile, ProfileOrder } from "../../src/vm/profiler.ts";
import { ServiceError } from "../../src/vm/errors.ts";
import { Service } from "../../src/vm/service.ts";

const DEATH = "a worker died";

type DriverState = "open" | "running" | "paused" | "closed";

/** A driver that checks how it is used and fails when it is told to. */
class CheckedDriver implements MachineDriver {
  readonly nbd;
  readonly translator = null;
  readonly opened = { nbd: null, disks: [] };
  readonly fleecings = new Set<string>();
  state: DriverState = "open";
  isDead = false;
  #isBusy = false;

  constructor(
    readonly config: MachineConfig,
    readonly events: DriverEvents,
    readonly shouldFail: () => boolean,
  ) {
    this.nbd = { host: "127.0.0.1", port: 1, socketPath: config.nbd.socketPath };
  }

  start(): Promise<void> {
    return this.#step(["open"], "running");
  }
  pause(): Promise<void> {
    return this.#step(["running"], "paused");
  }
  resume(): Promise<void> {
    return this.#step(["paused"], "running");
  }
  reset(): Promise<void> {
    return this.#step(["running", "paused"], "running");
  }
  profile({ seconds }: ProfileOrder): Promise<Profile> {
    return Promise.resolve({ seconds, samples: 0, lost: 0, stacks: [] });
  }
  async close(): Promise<void> {
    assert(!this.#isBusy, "close during another call");
    assert(this.state !== "closed", "closed twice");
    this.state = "closed";
    await Promise.resolve();
  }
  consoleInput(bytes: Uint8Array<ArrayBuffer>): Promise<number> {
    assert(this.state !== "closed");
    return Promise.resolve(bytes.length);
  }
  call<M extends IoMethod>(
    method: M,
    params: IoMethods[M]["params"],
  ): Promise<IoMethods[M]["result"]> {
    assert(this.state === "running" || this.state === "paused", `${method} when ${this.state}`);
    const { name } = params as { name: string };
    if (this.shouldFail()) return Promise.reject(new BlockError("EIO", "the fake fails"));
    if (method === "fleecingEstimate") {
      return Promise.resolve({ bytes: 0 } as unknown as IoMethods[M]["result"]);
    }
    if (method === "fleecingStart") this.fleecings.add(name);
    else assert(this.fleecings.has(name));
    if (method === "fleecingEnd") this.fleecings.delete(name);
    return Promise.resolve({ name, disks: [] } as unknown as IoMethods[M]["result"]);
  }

  async #step(from: DriverState[], to: DriverState): Promise<void> {
    assert(!this.#isBusy, `${to} during another call`);
    assert(from.includes(this.state), `${to} when ${this.state}`);
    this.#isBusy = true;
    await Promise.resolve();
    this.#isBusy = false;
    if (this.shouldFail()) throw new BlockError("EIO", "the fake fails");
    this.state = to;
  }
}

const step = fc.oneof(
  { weight: 8, arbitrary: fc.constantFrom("start", "start", "start", "stop", "pause", "reset") },
  { weight: 3, arbitrary: fc.constant("resume") },
  { weight: 8, arbitrary: fc.constantFrom("fleece f1", "fleece f2", "unfleece f1", "unfleece f2") },
  { weight: 2, arbitrary: fc.constantFrom("shutdown", "reboot", "hostFault", "died") },
  { weight: 2, arbitrary: fc.constant("restart") },
  { weight: 1, arbitrary: fc.constant("fail") },
  { weight: 6, arbitrary: fc.constant("settle") },
);

const history = fc.array(step, { minLength: 5, maxLength: 60, size: "max" });

Deno.test("Machine holds its promises under random requests, events and faults", async () => {
  const dataPath = await Deno.makeTempDir({ prefix: "ovis-model-" });
  const kernelPath = `${dataPath}/kernel`;
  await Deno.writeTextFile(kernelPath, "kernel");
  const drivers: CheckedDriver[] = [];
  let failures = 0;
  const shouldFail = () => failures > 0 && failures-- > 0;
  const service = await Service.open({
    dataPath,
    builtInImages: [{ name: "demo", cmdline: "", kernelPath }],
    openDriver: (config, events) => {
      if (shouldFail()) return Promise.reject(new BlockError("EINVAL", "the fake does not open"));
      drivers.push(new CheckedDriver(config, events, shouldFail));
      return Promise.resolve(drivers[drivers.length - 1] as CheckedDriver);
    },
    openStorage: () => Promise.reject(new BlockError("EIO", "no disk is opened without a machine")),
    nbdHost: "127.0.0.1",
    log: getLogger("ovis-test"),
  });
  try {
    await fc.assert(
      fc.asyncProperty(history, async (steps) => {
        drivers.length = 0;
        failures = 0;
        try {
          await runSteps(service, { steps, drivers, fail: () => failures++ });
        } finally {
          // A counterexample is looked for among shorter ones: the next run begins anew.
          for (const { record } of service.machines.list({ after: "", limit: 1 })) {
            await service.machines.remove(record.name);
          }
        }
      }),
      { numRuns: 100 },
    );
  } finally {
    await service[Symbol.asyncDispose]();
    await Deno.remove(dataPath, { recursive: true });
  }
});

async function runSteps(
  service: Service,
  { steps, drivers, fail }: { steps: string[]; drivers: CheckedDriver[]; fail: () => void },
): Promise<void> {
  const machine = await service.machines.create({
    name: "t1",
    image: "demo",
    memoryBytes: 1 << 24,
    hartCount: 1,
    disks: [{ name: "disk0", sizeBytes: 512, isReadOnly: false }],
    start: false,
  });
  let pending: Promise<unknown>[] = [];
  const settle = async () => {
    for (const result of await Promise.allSettled(pending)) {
      // Refusals and the fake's faults are errors that clients see; anything else is a bug.
      if (result.status === "rejected") assert(result.reason instanceof ServiceError);
    }
    pending = [];
    // What events queued runs before this, which changes nothing.
    await machine.stopFleecing("none").catch(() => {});
    checkState(machine.state, drivers, machine.fleecings.list().map(({ name }) => name));
    if (machine.failure === DEATH) assertEquals(drivers.at(-1)?.isDead, true);
  };
  for (const action of steps) {
    const [verb = "", name = ""] = action.split(" ");
    const driver = drivers.at(-1);
    if (verb === "settle") await settle();
    else if (verb === "fail") fail();
    else if (verb === "fleece") {
      pending.push(machine.startFleecing({
        name,
        disks: [],
        onCbwError: "break-snapshot",
        cbwTimeoutSeconds: 45,
        minClusterSizeBytes: 65536,
        scheme: "new",
        bitmap: null,
        since: null,
        checkpoint: null,
        scratchFolder: null,
        onScratchShort: "warn",
        expiresInSeconds: null,
        scratchMaxBytes: null,
      }));
    } else if (verb === "unfleece") pending.push(machine.stopFleecing(name));
    else if (verb === "restart" && driver !== undefined) {
      // The death of a session that has ended when anybody hears of it.
      pending.push(machine.request("stop"), machine.request("start"));
      driver.events.onFailed(DEATH);
    } else if (verb === "restart") continue;
    else if (verb === "died") {
      if (driver === undefined) continue;
      driver.isDead = true;
      driver.events.onFailed(DEATH);
    } else if (verb === "shutdown" || verb === "reboot" || verb === "hostFault") {
      if (driver?.state === "running") driver.events.onExit(verb, 0);
    } else pending.push(machine.request(verb as "start"));
    for (const promise of pending) promise.catch(() => {});
  }
  await settle();
  await service.machines.remove("t1");
  assertEquals(drivers.every(({ state }) => state === "closed"), true);
  for (const folder of ["disks", "scratch", "sockets"]) {
    assertEquals([...Deno.readDirSync(`${service.folder.path}/${folder}`)], []);
  }
  assertEquals(service.exports.size, 0);
}

function checkState(state: string, drivers: CheckedDriver[], fleecings: string[]): void {
  const open = drivers.filter((driver) => driver.state !== "closed");
  if (state === "running" || state === "paused") {
    assertEquals(open.map((driver) => driver.state), [state]);
    assertEquals([...open[0]?.fleecings ?? []].sort(), fleecings);
  } else {
    assertEquals(["stopped", "failed"].includes(state), true, state);
    assertEquals([open.length, fleecings.length], [0, 0]);
  }
}
