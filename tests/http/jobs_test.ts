import { assertEquals, assertMatch } from "@std/assert";
import { limits } from "../../src/limits.ts";
import { openTestApp, outcome, type TestApp } from "./support.ts";

const MiB = 1024 * 1024;

async function openMachine(): Promise<TestApp> {
  const test = await openTestApp();
  const disks = [{ name: "d0", sizeBytes: MiB }, { name: "d1", sizeBytes: MiB }];
  await test.send("POST", "/v1/vms", { name: "t1", image: "demo", disks });
  return test;
}

/** Ends a job as its worker would; the target of a fake has no file. */
function conclude(test: TestApp, id: string, error: string | null = null): void {
  test.driver().setJob(id, { status: "concluded", error });
}

async function diskNames(test: TestApp): Promise<string[]> {
  const { items } = await (await test.fetch("/v1/disks")).json();
  return items.map(({ name }: { name: string }) => name);
}

const BACKUP = { type: "backup", disk: "t1:d0", target: { name: "monday" } };

Deno.test("a backup job makes a disk when it concludes well, and nothing otherwise", async () => {
  await using test = await openMachine();
  const started = await test.send("POST", "/v1/jobs", { ...BACKUP, id: "b1", speed: 1000 });
  assertEquals([started.status, started.headers.get("location")], [202, "/v1/jobs/b1"]);
  const job = await started.json();
  assertEquals([job.status, job.vm, job.disk, job.target], ["running", "t1", "t1:d0", "monday"]);
  assertEquals(await outcome(await test.fetch("/v1/disks/monday")), "404 diskNotFound");
  assertEquals(await outcome(await test.send("POST", "/v1/jobs", BACKUP)), "409 nameTaken");
  conclude(test, "b1");
  assertEquals(await diskNames(test), ["monday", "t1:d0", "t1:d1"]);
  const made = test.service.disks.get("monday");
  assertMatch(made.file, /^[0-9a-f]{8}\/monday-[0-9a-f]{6}\.qcow2$/);

  await test.send("POST", "/v1/jobs", { ...BACKUP, id: "b2", target: { name: "tuesday" } });
  conclude(test, "b2", "Input/output error");
  const failed = await (await test.fetch("/v1/jobs/b2")).json();
  assertEquals([failed.status, failed.error], ["concluded", "Input/output error"]);
  assertEquals(await diskNames(test), ["monday", "t1:d0", "t1:d1"]);
  assertEquals(test.service.jobs.book.list().map(({ id }) => id), ["b1", "b2"]);
});

Deno.test("jobs are steered and dismissed; a wait ends with the state, or says how it stands", async () => {
  await using test = await openMachine();
  await test.send("POST", "/v1/jobs", { ...BACKUP, id: "b1" });
  const post = async (verb: string) =>
    (await (await test.send("POST", `/v1/jobs/b1/${verb}`)).json()).status;
  assertEquals(await post("pause"), "paused");
  assertEquals(await outcome(await test.fetch("/v1/jobs/b1/wait?timeout=0")), "408 waitTimedOut");
  assertEquals(await outcome(await test.fetch("/v1/jobs/b1/wait?state=paused&timeout=0")), "200");
  const waiting = test.fetch("/v1/jobs/b1/wait?state=running,ready&timeout=60").then(outcome);
  assertEquals(await post("resume"), "running");
  assertEquals(await waiting, "200");
  const speed = await test.send("PATCH", "/v1/jobs/b1", { speed: 77 });
  assertEquals((await speed.json()).speed, 77);
  assertEquals(await outcome(await test.send("POST", "/v1/jobs/b1/dismiss")), "409 wrongState");
  const end = test.fetch("/v1/jobs/b1/wait?timeout=60").then((response) => response.json());
  await test.send("POST", "/v1/jobs/b1/cancel");
  assertEquals((await end).error, "Operation canceled");
  assertEquals(await outcome(await test.send("POST", "/v1/jobs/b1/cancel")), "409 wrongState");
  assertEquals(await outcome(await test.send("POST", "/v1/jobs/b1/dismiss")), "200");
  assertEquals(await outcome(await test.fetch("/v1/jobs/b1")), "404 jobNotFound");
  assertEquals(
    await outcome(await test.fetch("/v1/jobs/b1/wait?timeout=9999")),
    "400 invalidRequest",
  );
});

Deno.test("POST /v1/jobs refuses what can't be", async () => {
  await using test = await openMachine();
  const post = (body: object) =>
    test.send("POST", "/v1/jobs", { ...BACKUP, ...body }).then(outcome);
  assertEquals(await post({ type: "format" }), "400 invalidRequest");
  assertEquals(await post({ id: "1x" }), "400 invalidRequest");
  assertEquals(await post({ disk: "none" }), "404 diskNotFound");
  assertEquals(await post({ target: { name: "t1:d1" } }), "400 invalidRequest");
  assertEquals(await post({ target: { name: "m", backing: "none" } }), "422 badReference");
  assertEquals(await post({ sync: "some" }), "400 invalidRequest");
  assertEquals(await post({ id: "b1" }), "202");
  assertEquals(await post({ id: "b1", target: { name: "x" } }), "409 nameTaken");
  assertEquals(await outcome(await test.fetch("/v1/jobs/none")), "404 jobNotFound");
});

Deno.test("a machine that stops ends its jobs; a job keeps a disk's own worker", async () => {
  await using test = await openMachine();
  await test.send("POST", "/v1/jobs", { ...BACKUP, id: "b1" });
  await test.send("POST", "/v1/vms/t1/stop");
  const job = await (await test.fetch("/v1/jobs/b1")).json();
  assertEquals([job.status, job.error], ["concluded", "the machine was stopped"]);
  await test.send("POST", "/v1/jobs", { ...BACKUP, id: "b2", target: { name: "cold" } });
  assertEquals((await (await test.fetch("/v1/jobs/b2")).json()).vm, null);
  assertEquals(await outcome(await test.send("POST", "/v1/vms/t1/start")), "409 deviceBusy");
  test.storages.at(-1)?.setJob("b2", { status: "concluded" });
  assertEquals(await outcome(await test.send("POST", "/v1/vms/t1/start")), "200");
});

Deno.test("a disk is copied by a job", async () => {
  await using test = await openMachine();
  const response = await test.send("POST", "/v1/disks", { name: "copy", copyOf: "t1:d0" });
  assertEquals(response.status, 202);
  const { id, type, target } = await response.json();
  assertEquals([type, target], ["backup", "copy"]);
  conclude(test, id);
  assertEquals((await diskNames(test)).includes("copy"), true);
});

Deno.test("a transaction does several things at once, or nothing", async () => {
  await using test = await openMachine();
  const post = (actions: unknown) => test.send("POST", "/v1/vms/t1/transactions", { actions });
  const response = await post([
    { type: "bitmap-add", disk: "d0", name: "b0" },
    { type: "fleecing", name: "f1", checkpoint: "c1" },
    { type: "backup", disk: "d1", id: "j1", target: { name: "copy" } },
    { type: "snapshot", disk: "d1" },
  ]);
  assertEquals(response.status, 201);
  const { results } = await response.json();
  assertEquals(results.map(({ type }: { type: string }) => type), [
    "bitmap-add",
    "fleecing",
    "backup",
    "snapshot",
  ]);
  assertEquals(results[1].fleecing.checkpoint, "c1");
  assertEquals(results[2].job.disk, "t1:d1");
  assertEquals(test.driver().calls.filter((call) => call === "transact").length, 1);
  assertEquals((await (await test.fetch("/v1/vms/t1")).json()).checkpoints, ["c1"]);

  const wrong = await post([
    { type: "fleecing", name: "f2", checkpoint: "c2" },
    { type: "backup", disk: "d0", id: "j2", target: { name: "other" } },
    { type: "bitmap-remove", disk: "d0", name: "none" },
  ]);
  assertEquals(await outcome(wrong), "422 badReference");
  const { fleecings, checkpoints } = await (await test.fetch("/v1/vms/t1")).json();
  assertEquals([fleecings, checkpoints], [["f1"], ["c1"]]);
  assertEquals(await outcome(await test.fetch("/v1/jobs/j2")), "404 jobNotFound");
  assertEquals(test.service.disks.find("other"), undefined);
  assertEquals(await outcome(await post([])), "400 invalidRequest");
  assertEquals(await outcome(await post([{ type: "abort" }])), "400 invalidRequest");
  assertEquals(await outcome(await post([{ type: "snapshot", disk: "d9" }])), "422 badReference");
});

Deno.test("checkpoints follow fleecings, tell of lost bitmaps, and are removed", async () => {
  await using test = await openMachine();
  const fleece = (body: object) => test.send("POST", "/v1/vms/t1/fleecings", body);
  const list = async () =>
    (await (await test.fetch("/v1/vms/t1/checkpoints")).json()).items
      .map(({ name }: { name: string }) => name);
  assertEquals(await outcome(await fleece({ since: "c0" })), "422 badReference");
  await fleece({ name: "f0", checkpoint: "c0" });
  assertEquals(await outcome(await fleece({ checkpoint: "c0" })), "409 nameTaken");
  assertEquals(
    await outcome(await test.send("DELETE", "/v1/vms/t1/checkpoints/c0")),
    "409 deviceBusy",
  );
  const complete = (name: string, result: string) =>
    test.send("POST", `/v1/vms/t1/fleecings/${name}/complete`, { result }).then(outcome);
  assertEquals(await complete("f0", "maybe"), "400 invalidRequest");
  assertEquals(await complete("f0", "success"), "204");
  const shown = await (await test.fetch("/v1/vms/t1/checkpoints/c0")).json();
  // The fake makes no bitmaps: to its clients they are lost.
  assertEquals(shown.disks[0], { disk: "d0", usable: false, dirtyBytes: null, persistent: null });

  await fleece({ name: "f1", since: "c0", checkpoint: "c1" });
  assertEquals(await list(), ["c0", "c1"]);
  assertEquals(await complete("f1", "failure"), "204");
  assertEquals(await list(), ["c0"]);
  await fleece({ name: "f2", since: "c0", checkpoint: "c2" });
  test.driver().events.onFleecingBroken("f2", "d0", "no room");
  assertEquals(await complete("f2", "success"), "409 wrongState");
  assertEquals(await complete("f2", "failure"), "204");
  await fleece({ name: "f3", since: "c0", checkpoint: "c3" });
  assertEquals(await complete("f3", "success"), "204");
  assertEquals(await list(), ["c3"]);
  assertEquals(await outcome(await test.send("DELETE", "/v1/vms/t1/checkpoints/c3")), "204");
  assertEquals(
    await outcome(await test.fetch("/v1/vms/t1/checkpoints/c3")),
    "404 checkpointNotFound",
  );
});

Deno.test("a fleecing's parts are discarded, its room is estimated, its time ends it", async () => {
  await using test = await openMachine();
  const fleece = (body: object) => test.send("POST", "/v1/vms/t1/fleecings", body);
  assertEquals(
    await outcome(await fleece({ scratchMaxBytes: 1, onScratchShort: "refuse" })),
    "507 noSpace",
  );
  const { scratch } = await (await fleece({ name: "f0", scratchMaxBytes: 1 })).json();
  assertEquals([scratch.maxBytes, scratch.roomBytes, scratch.estimateBytes], [1, 1, 65536]);
  assertMatch(scratch.warning, /room/);
  const discard = (body: object) =>
    test.send("POST", "/v1/vms/t1/fleecings/f0/discard", body).then(outcome);
  const ranges = [{ offset: 0, length: 65536 }];
  assertEquals(await discard({ ranges }), "422 badReference");
  assertEquals(await discard({ disk: "d1", ranges }), "204");
  assertEquals(test.driver().discarded, ["t1-d1-f0 0+65536"]);
  assertEquals(await outcome(await fleece({ scratchFolder: "/tmp" })), "422 badReference");
  const { expiresAt } = await (await fleece({ name: "f1", expiresInSeconds: 1 })).json();
  assertEquals(Date.parse(expiresAt) > Date.now() - 1000, true);
  const ended = new Promise<unknown>((resolve) =>
    test.service.events.follow(({ type, data }) => {
      if (type === "fleecing.ended") resolve(data.fleecing);
    })
  );
  assertEquals(await ended, "f1");
});

Deno.test("GET /v1/events tells what happens, with rising ids, and what was missed", async () => {
  await using test = await openMachine();
  const open = (lastId?: number) =>
    test.fetch("/v1/events", {
      headers: lastId === undefined ? {} : { "last-event-id": String(lastId) },
    });
  const response = await open();
  assertEquals(response.headers.get("content-type"), "text/event-stream");
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  const until = async (pattern: RegExp) => {
    while (!pattern.test(text)) text += (await reader?.read())?.value ?? "";
  };
  await test.send("POST", "/v1/vms/t1/pause");
  await until(/"paused"/);
  assertMatch(text, /^: since \d+\n\nid: \d+\nevent: vm\.state\ndata: \{"time":"[^"]+","vm":"t1"/);
  const paused = Number(/id: (\d+)\n/.exec(text)?.[1]);
  await reader?.cancel();
  await test.send("POST", "/v1/vms/t1/resume");
  await test.send("POST", "/v1/vms/t1/pause");
  const missed = (await open(paused)).body?.pipeThrough(new TextDecoderStream()).getReader();
  text = "";
  while ((text.match(/event:/g) ?? []).length < 2) text += (await missed?.read())?.value ?? "";
  assertMatch(text, new RegExp(`id: ${paused + 1}\n[^]*id: ${paused + 2}\n`));
  await missed?.cancel();
  for (let count = 0; count < limits.eventsKept; count++) test.service.events.add("test", {});
  const late = (await open(paused)).body?.pipeThrough(new TextDecoderStream()).getReader();
  text = "";
  while (!/event:/.test(text)) text += (await late?.read())?.value ?? "";
  assertMatch(text, /event: reset/);
  await late?.cancel();
});

Deno.test("a client that does not read its events is disconnected", async () => {
  await using test = await openTestApp();
  const response = await test.fetch("/v1/events");
  for (let count = 0; count < 2 * limits.eventsQueued; count++) test.service.events.add("test", {});
  const text = await response.text();
  assertEquals((text.match(/event:/g) ?? []).length < 2 * limits.eventsQueued, true);
});
