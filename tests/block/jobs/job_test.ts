import { assert, assertEquals } from "@std/assert";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { BlockError } from "../../../src/block/errors.ts";
import { startBackup } from "../../../src/block/jobs/backup.ts";
import type { Job, JobDriver, JobOptions } from "../../../src/block/jobs/job.ts";
import { JobTransaction } from "../../../src/block/jobs/job_transaction.ts";
import { startMirror } from "../../../src/block/jobs/mirror.ts";
import { STATES_OF_VERB } from "../../../src/block/jobs/types.ts";
import { limits } from "../../../src/limits.ts";
import { assertFails } from "../support.ts";
import { fill, JobRig, MiB } from "./rig.ts";

/** A job that goes as far as a test lets it. */
class Puppet implements JobDriver {
  readonly type = "backup";
  readonly isBlockJob = true;
  readonly calls: string[] = [];
  readonly preparing = Promise.withResolvers<void>();
  /** Ends the work; "ready" becomes ready first. */
  next: "work" | "ready" | "end" | "fail" = "work";
  isPreparingSlow = false;

  async run(job: Job): Promise<void> {
    while (!job.isCancelled) {
      if (this.next === "fail") throw new BlockError("EIO", "as told");
      if (this.next === "end") return;
      if (this.next === "ready" && !job.isReady) job.becomeReady();
      if (job.isReady && job.isCancelRequested) return;
      await job.sleep(100);
    }
  }

  complete(): void {
    this.next = "end";
  }

  cancel(job: Job, force: boolean): boolean {
    return force || !job.isReady;
  }

  async prepare(): Promise<void> {
    this.calls.push("prepare");
    if (this.isPreparingSlow) await this.preparing.promise;
  }

  commit(): void {
    this.calls.push("commit");
  }

  abort(): void {
    this.calls.push("abort");
  }

  clean(): void {
    this.calls.push("clean");
  }
}

function start(rig: JobRig, options: Partial<JobOptions> = {}): [Job, Puppet] {
  const puppet = new Puppet();
  const job = rig.jobs.create(puppet, { jobId: "job0", ...options });
  job.start();
  return [job, puppet];
}

const MANUAL = { autoFinalize: false, autoDismiss: false };

/** A job in each state that lasts, from QEMU's table. */
const STATES: Record<string, (rig: JobRig) => Promise<Job>> = {
  created: (rig) => Promise.resolve(rig.jobs.create(new Puppet(), { jobId: "job0" })),
  running: (rig) => Promise.resolve(start(rig)[0]),
  paused: async (rig) => {
    const [job] = start(rig);
    job.pause();
    await rig.until(() => job.status === "paused");
    return job;
  },
  ready: async (rig) => {
    const [job, puppet] = start(rig);
    puppet.next = "ready";
    await rig.until(() => job.status === "ready");
    return job;
  },
  standby: async (rig) => {
    const job = await STATES["ready"]?.(rig);
    if (job === undefined) throw new Error("no job");
    job.pause();
    await rig.until(() => job.status === "standby");
    return job;
  },
  waiting: async (rig) => {
    const transaction = new JobTransaction();
    const [job, puppet] = start(rig, { transaction });
    start(rig, { transaction, jobId: "other" });
    puppet.next = "end";
    await rig.until(() => job.status === "waiting");
    return job;
  },
  pending: async (rig) => {
    const [job, puppet] = start(rig, MANUAL);
    puppet.next = "end";
    await rig.until(() => job.status === "pending");
    return job;
  },
  concluded: async (rig) => {
    const [job, puppet] = start(rig, { autoDismiss: false });
    puppet.next = "end";
    await rig.until(() => job.status === "concluded");
    return job;
  },
};

/** A target on a server that is gone: its writes wait, until they are told not to. */
class LostNode extends MemoryNode {
  #waiting: ((error: BlockError) => void)[] = [];

  protected override doWrite(): Promise<void> {
    return new Promise((_, reject) => this.#waiting.push(reject));
  }

  override cancelInFlight(): void {
    for (const reject of this.#waiting.splice(0)) {
      reject(new BlockError("EIO", "the server is gone"));
    }
  }
}

Deno.test("a job that is cancelled by force does not wait for a server that is gone", async () => {
  for (const start of [startMirror, startBackup]) {
    const rig = new JobRig();
    const source = rig.memory("source");
    const target = rig.graph.add(new LostNode({ nodeName: "target", sizeBytes: 4 * MiB }));
    await fill(rig.device(source), 0, MiB, 0x11);
    const job = await start(rig.layer, { jobId: "job0", source, target, sync: "full" });
    await rig.clock.advance(100);
    assertEquals(job.status, "running");
    await job.cancel();
    await rig.conclude(job);
    assert(rig.takeEvents().includes("BLOCK_JOB_CANCELLED"), start.name);
    await rig.close();
  }
});

Deno.test("a job accepts each verb in the states of QEMU's table, and refuses it in all others", async () => {
  const verbs: Record<string, (job: Job) => unknown> = {
    cancel: (job) => job.cancel(),
    pause: (job) => job.pause(),
    resume: (job) => job.resume(),
    "set-speed": (job) => job.setSpeed(1),
    complete: (job) => job.complete(),
    finalize: (job) => job.finalize(),
    dismiss: (job) => job.dismiss(),
  };
  for (const [state, reach] of Object.entries(STATES)) {
    for (const [verb, action] of Object.entries(verbs)) {
      const rig = new JobRig();
      const job = await reach(rig);
      assertEquals(job.status, state);
      const isPaused = state === "paused" || state === "standby";
      const isAllowed = STATES_OF_VERB[verb as "cancel"].includes(job.status);
      const refusal = verb === "pause" && isPaused
        ? "Job is already paused"
        : verb === "resume" && !isPaused
        ? "Can't resume a job that was not paused"
        : isAllowed
        ? null
        : `Job 'job0' in state '${state}' cannot accept command verb '${verb}'`;
      if (refusal === null) await action(job);
      else {
        const code = refusal.startsWith("Job 'job0'") ? "EPERM" : "EINVAL";
        await assertFails(() => action(job), code, refusal);
      }
      await rig.close();
    }
  }
});

Deno.test("a job prepares, commits and cleans up at a good end; aborts and cleans up at a bad one", async () => {
  const ends: ["end" | "fail" | "cancel", string[], string[]][] = [
    ["end", ["prepare", "commit", "clean"], [
      "job0 waiting",
      "job0 pending",
      "BLOCK_JOB_COMPLETED",
      "job0 concluded",
      "job0 null",
    ]],
    ["fail", ["abort", "clean"], [
      "job0 aborting",
      "BLOCK_JOB_COMPLETED: Input/output error",
      "job0 concluded",
      "job0 null",
    ]],
    ["cancel", ["abort", "clean"], [
      "job0 aborting",
      "BLOCK_JOB_CANCELLED",
      "job0 concluded",
      "job0 null",
    ]],
  ];
  for (const [end, calls, events] of ends) {
    const rig = new JobRig();
    const [job, puppet] = start(rig);
    if (end === "cancel") await job.cancel();
    else puppet.next = end;
    await rig.conclude(job);
    assertEquals(puppet.calls, calls);
    assertEquals(rig.takeEvents(), ["job0 created", "job0 running", ...events]);
    await rig.close();
  }
});

Deno.test("a created job that is cancelled ends without an event about a block job", async () => {
  const rig = new JobRig();
  const puppet = new Puppet();
  const job = rig.jobs.create(puppet, { jobId: "job0", autoDismiss: false });
  await job.cancel();
  assertEquals(job.status, "null");
  assertEquals(puppet.calls, ["abort", "clean"]);
  assertEquals(rig.takeEvents(), [
    "job0 created",
    "job0 aborting",
    "job0 concluded",
    "job0 null",
  ]);
  await rig.close();
});

Deno.test("jobs of a transaction end together, the last to come first; one that fails cancels all", async () => {
  for (const isGood of [true, false]) {
    const rig = new JobRig();
    const transaction = new JobTransaction();
    const [a, puppetA] = start(rig, { transaction, jobId: "a" });
    const [b, puppetB] = start(rig, { transaction, jobId: "b" });
    rig.takeEvents();
    puppetA.next = "end";
    await rig.until(() => a.status === "waiting");
    puppetB.next = isGood ? "end" : "fail";
    await rig.conclude(b);
    await rig.conclude(a);
    assertEquals(
      rig.takeEvents(),
      isGood
        ? [
          ...["a waiting", "b waiting", "b pending", "a pending"],
          ...["BLOCK_JOB_COMPLETED", "b concluded", "b null"],
          ...["BLOCK_JOB_COMPLETED", "a concluded", "a null"],
        ]
        : [
          ...["a waiting", "b aborting"],
          ...["BLOCK_JOB_COMPLETED: Input/output error", "b concluded", "b null"],
          ...["a aborting", "BLOCK_JOB_CANCELLED", "a concluded", "a null"],
        ],
    );
    assertEquals(puppetA.calls, isGood ? ["prepare", "commit", "clean"] : ["abort", "clean"]);
    await rig.close();
  }
});

Deno.test("a pending transaction is finalized through any of its jobs, or cancelled", async () => {
  for (const verb of ["finalize", "cancel"] as const) {
    const rig = new JobRig();
    const transaction = new JobTransaction();
    const puppets = ["a", "b"].map((jobId) => start(rig, { transaction, jobId, ...MANUAL }));
    for (const [, puppet] of puppets) puppet.next = "end";
    await rig.until(() => puppets.every(([job]) => job.status === "pending"));
    await puppets[1]?.[0][verb]();
    assertEquals(puppets.map(([job]) => job.status), ["concluded", "concluded"]);
    assertEquals(
      puppets.map(([job]) => job.error),
      verb === "finalize" ? [null, null] : ["Operation canceled", "Operation canceled"],
    );
    for (const [job] of puppets) job.dismiss();
    await rig.close();
  }
});

Deno.test("a cancel while a job does its last step waits for that, and then undoes it", async () => {
  const rig = new JobRig();
  const [job, puppet] = start(rig);
  puppet.isPreparingSlow = true;
  puppet.next = "end";
  await rig.until(() => puppet.calls.length === 1);
  assertEquals(job.status, "pending");
  let isCancelled = false;
  const cancelled = job.cancel().then(() => isCancelled = true);
  await rig.clock.advance(1000);
  assertEquals([isCancelled, puppet.calls], [false, ["prepare"]]);
  puppet.preparing.resolve();
  await cancelled;
  assertEquals(puppet.calls, ["prepare", "abort", "clean"]);
  assertEquals(rig.takeEvents().slice(-4), [
    "job0 aborting",
    "BLOCK_JOB_CANCELLED",
    "job0 concluded",
    "job0 null",
  ]);
  await rig.close();
});

Deno.test("operations of a job wait for drained sections, and drained sections for operations", async () => {
  const rig = new JobRig();
  const node = rig.memory("n", MiB);
  const [job] = start(rig);
  job.addNode(node, { name: "main node", perm: 0, shared: 15 });
  const operation = Promise.withResolvers<void>();
  const first = job.operate(() => operation.promise);
  const section = Promise.withResolvers<void>();
  let isDrained = false;
  const drained = rig.graph.drained([node], () => {
    isDrained = true;
    return section.promise;
  });
  let hasBegun = false;
  const second = job.operate(() => {
    hasBegun = true;
  });
  await rig.clock.advance(10);
  assertEquals([isDrained, hasBegun], [false, false]);
  operation.resolve();
  await first;
  await rig.clock.advance(10);
  assertEquals([isDrained, hasBegun], [true, false]);
  section.resolve();
  await Promise.all([drained, second]);
  await job.cancel();
  await rig.conclude(job);
  await rig.close();
});

Deno.test("there are only so many jobs, also of those that nobody dismisses", async () => {
  const rig = new JobRig();
  for (let i = 0; i < limits.jobs; i++) {
    const [job, puppet] = start(rig, { jobId: `job${i}`, autoDismiss: false });
    puppet.next = "end";
    await rig.conclude(job);
  }
  await assertFails(() => start(rig, { jobId: "more" }), "EINVAL", /256 jobs already/);
  rig.jobs.get("job7").dismiss();
  start(rig, { jobId: "more" });
  await rig.close();
});
