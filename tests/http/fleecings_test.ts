import { assertEquals, assertMatch } from "@std/assert";
import { limits } from "../../src/limits.ts";
import { openTestApp, outcome, type TestApp } from "./support.ts";

const DISKS = [{ name: "disk0", sizeBytes: 4 << 20 }, { name: "disk1", sizeBytes: 65536 + 512 }];

async function openMachine(): Promise<TestApp> {
  const test = await openTestApp();
  await test.send("POST", "/v1/vms", { name: "t1", image: "demo", disks: DISKS });
  return test;
}

Deno.test("POST fleecings answers with the exports and where to read them", async () => {
  await using test = await openMachine();
  const response = await test.send("POST", "/v1/vms/t1/fleecings", {
    name: "f1",
    disks: ["disk0"],
    onCbwError: "break-snapshot",
    cbwTimeoutSeconds: 45,
    bitmap: null,
  });
  assertEquals(response.status, 201);
  assertEquals(response.headers.get("location"), "/v1/vms/t1/fleecings/f1");
  const fleecing = await response.json();
  assertEquals([fleecing.name, fleecing.state, fleecing.brokenBy], ["f1", "active", null]);
  const [item, ...more] = fleecing.exports;
  assertEquals(more, []);
  assertEquals(item.disk, "disk0");
  assertEquals(item.sizeBytes, 4 << 20);
  assertEquals(item.nbd, "nbd://127.0.0.1:10809/t1-disk0-f1");
  assertMatch(item.nbdUnix, /^nbd\+unix:\/\/\/t1-disk0-f1\?socket=\/.*\.sock$/);
  assertEquals(item.websocket, "ws://127.0.0.1:8080/v1/exports/t1-disk0-f1/nbd");
  assertEquals(item.content, "http://127.0.0.1:8080/v1/exports/t1-disk0-f1/content");
  assertEquals(item.copiedBytes, 0);
  assertEquals("tag" in item, false);
});

Deno.test("POST fleecings without a body freezes all disks under a name of its own", async () => {
  await using test = await openMachine();
  const fleecing = await (await test.send("POST", "/v1/vms/t1/fleecings")).json();
  assertMatch(fleecing.name, /^\d{8}t\d{6}$/);
  assertEquals(fleecing.exports.map(({ disk }: { disk: string }) => disk), ["disk0", "disk1"]);
  const second = await (await test.send("POST", "/v1/vms/t1/fleecings", {})).json();
  assertEquals(second.name === fleecing.name, false);
});

Deno.test("POST fleecings refuses what can't be", async () => {
  await using test = await openMachine();
  const post = (body: unknown) => test.send("POST", "/v1/vms/t1/fleecings", body).then(outcome);
  assertEquals(await post({ disks: ["disk7"] }), "422 badReference");
  assertEquals(await post({ disks: ["disk0", "disk0"] }), "400 invalidRequest");
  assertEquals(await post({ bitmap: "none" }), "422 badReference");
  assertEquals(await post({ onCbwError: "ignore" }), "400 invalidRequest");
  assertEquals(await post({ minClusterSize: 65537 }), "400 invalidRequest");
  assertEquals(await post({ cbwTimeoutSeconds: -1 }), "400 invalidRequest");
  assertEquals(await post({ name: "a/b" }), "400 invalidRequest");
  assertEquals(await post({ name: "f1" }), "201");
  assertEquals(await post({ name: "f1" }), "409 nameTaken");
  for (let count = 1; count < limits.fleecingsPerVm; count++) assertEquals(await post({}), "201");
  assertEquals(await post({}), "409 limitReached");
  assertEquals(
    await outcome(await test.send("POST", "/v1/vms/none/fleecings", {})),
    "404 vmNotFound",
  );
});

Deno.test("a fleecing needs an open machine, with disks", async () => {
  await using test = await openMachine();
  const post = (vm: string) => test.send("POST", `/v1/vms/${vm}/fleecings`, {}).then(outcome);
  await test.send("POST", "/v1/vms/t1/pause");
  assertEquals(await post("t1"), "201");
  await test.send("POST", "/v1/vms/t1/stop");
  assertEquals(await post("t1"), "409 wrongState");
  await test.send("POST", "/v1/vms", { name: "t2", image: "demo", disks: [] });
  assertEquals(await post("t2"), "422 badReference");
});

Deno.test("two machines can't have exports of one name", async () => {
  await using test = await openTestApp();
  const disks = (name: string) => [{ name, sizeBytes: 512 }];
  await test.send("POST", "/v1/vms", { name: "a", image: "demo", disks: disks("b-c") });
  await test.send("POST", "/v1/vms", { name: "a-b", image: "demo", disks: disks("c") });
  await test.send("POST", "/v1/vms/a/fleecings", { name: "f" });
  const response = await test.send("POST", "/v1/vms/a-b/fleecings", { name: "f" });
  assertEquals(await outcome(response), "409 nameTaken");
  assertEquals(test.driver().calls, ["start", "fleecingEstimate", "fleecingStart", "fleecingEnd"]);
  assertEquals((await (await test.fetch("/v1/vms/a-b/fleecings")).json()).items, []);
  assertEquals((await (await test.fetch("/v1/exports")).json()).items.length, 1);
});

Deno.test("GET and DELETE of fleecings show figures and leave nothing behind", async () => {
  await using test = await openMachine();
  await test.send("POST", "/v1/vms/t1/fleecings", { name: "f1" });
  await test.send("POST", "/v1/vms/t1/fleecings", { name: "f2", disks: ["disk1"] });
  const shown = await (await test.fetch("/v1/vms/t1/fleecings/f1")).json();
  assertEquals(shown.exports[1].clustersTotal, 2);
  const list = await (await test.fetch("/v1/vms/t1/fleecings?limit=1")).json();
  assertEquals(list.items.map(({ name }: { name: string }) => name), ["f1"]);
  assertEquals((await (await test.fetch("/v1/vms/t1")).json()).fleecings, ["f1", "f2"]);
  assertEquals(await outcome(await test.send("DELETE", "/v1/vms/t1/fleecings/f1")), "204");
  assertEquals(
    await outcome(await test.send("DELETE", "/v1/vms/t1/fleecings/f1")),
    "404 fleecingNotFound",
  );
  assertEquals(
    await outcome(await test.fetch("/v1/exports/t1-disk0-f1")),
    "404 exportNotFound",
  );
  await test.send("POST", "/v1/vms/t1/stop");
  assertEquals((await (await test.fetch("/v1/exports")).json()).items, []);
  assertEquals((await (await test.fetch("/v1/vms/t1")).json()).fleecings, []);
});

Deno.test("a fleecing that broke says so", async () => {
  await using test = await openMachine();
  await test.send("POST", "/v1/vms/t1/fleecings", { name: "f1" });
  test.driver().events.onFleecingBroken("f1", "disk0", "no space left");
  const shown = await (await test.fetch("/v1/vms/t1/fleecings/f1")).json();
  assertEquals([shown.state, shown.brokenBy], ["broken", "no space left"]);
  const event = test.service.events.after(0)?.find(({ type }) => type === "fleecing.broken");
  const reason = "no space left";
  assertEquals(event?.data, { vm: "t1", fleecing: "f1", disk: "disk0", reason });
});
