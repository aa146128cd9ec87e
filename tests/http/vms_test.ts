import { assertEquals, assertMatch } from "@std/assert";
import { openTestApp, outcome } from "./support.ts";

Deno.test("POST /v1/vms makes and starts a machine, also with the content type of curl -d", async () => {
  await using test = await openTestApp();
  const response = await test.fetch("/v1/vms", {
    method: "POST",
    headers: { "content-type": "application/x-www-form-urlencoded" },
    body: '{"name":"t1","image":"demo","memoryBytes":536870912,' +
      '"disks":[{"name":"disk0","sizeBytes":67108864}]}',
  });
  assertEquals(response.status, 201);
  assertEquals(response.headers.get("location"), "/v1/vms/t1");
  const vm = await response.json();
  assertEquals(vm.state, "running");
  assertEquals(vm.memoryBytes, 536870912);
  assertEquals(vm.disks, [{
    name: "disk0",
    disk: "t1:disk0",
    format: "raw",
    sizeBytes: 67108864,
    readOnly: false,
  }]);
  const [disk] = test.driver().config.disks;
  assertEquals((await Deno.stat(disk?.path ?? "")).size, 67108864);
  assertEquals(test.driver().calls, ["start"]);
});

Deno.test("POST /v1/vms refuses what can't be, and leaves nothing of it", async () => {
  await using test = await openTestApp();
  const make = (body: unknown) => test.send("POST", "/v1/vms", body).then(outcome);
  const withDisk = (sizeBytes: unknown) =>
    make({ name: "t1", image: "demo", disks: [{ name: "d", sizeBytes }] });
  for (const size of [0, 1, 513, -512, 2 ** 63, 2 ** 53, 512.5, "512", null, 1e300]) {
    assertEquals(await withDisk(size), "400 invalidRequest", `size ${size}`);
  }
  for (const name of ["a/b", "../x", "", ".x", "A", "a".repeat(64), 7, "a\n"]) {
    assertEquals(await make({ name, image: "demo" }), "400 invalidRequest", `name ${name}`);
  }
  assertEquals(await make({ name: "t1", image: "none" }), "422 badReference");
  assertEquals(await make({ name: "t1", image: "demo", bogus: 1 }), "400 invalidRequest");
  assertEquals(await make({ name: "t1", image: "demo", memoryBytes: 1 }), "400 invalidRequest");
  assertEquals(await make([1]), "400 invalidRequest");
  const disk = { name: "d", sizeBytes: 512 };
  assertEquals(
    await make({ name: "t1", image: "demo", disks: [disk, disk] }),
    "400 invalidRequest",
  );
  assertEquals((await (await test.fetch("/v1/vms")).json()).items, []);
  assertEquals([...Deno.readDirSync(`${test.dataPath}/disks`)], []);
  assertEquals(test.drivers.length, 0);
});

Deno.test("POST /v1/vms names the value that it refuses", async () => {
  await using test = await openTestApp();
  const response = await test.send("POST", "/v1/vms", {
    name: "t1",
    image: "demo",
    disks: [{ name: "d", sizeBytes: 1 }],
  });
  const problem = await response.json();
  assertEquals(problem.type, "urn:ovis:problem:invalidRequest");
  assertEquals(problem.errors[0].pointer, "#/disks/0/sizeBytes");
  assertMatch(problem.errors[0].detail, /from 512 to 17592186044416, a multiple of 512/);
});

Deno.test("POST /v1/vms refuses bodies that are no JSON, or too much of it", async () => {
  await using test = await openTestApp();
  const post = (body: BodyInit) => test.fetch("/v1/vms", { method: "POST", body }).then(outcome);
  assertEquals(await post("{"), "400 invalidJson");
  assertEquals(await post(new Uint8Array([0x22, 0xff, 0x22])), "400 invalidJson");
  assertEquals(await post("[".repeat(500_000)), "400 invalidJson");
  assertEquals(await post("[".repeat(500_000) + "]".repeat(500_000)), "400 invalidRequest");
  assertEquals(await post(" ".repeat(2 * 1024 * 1024)), "413 tooLarge");
  assertEquals(await post('{"__proto__":{"name":"x"},"name":"t1"}'), "400 invalidRequest");
  assertEquals(await post(""), "400 invalidRequest");
});

Deno.test("POST /v1/vms gives a name once, also when two ask at the same time", async () => {
  await using test = await openTestApp();
  const make = () => test.send("POST", "/v1/vms", { name: "t1", image: "demo" }).then(outcome);
  assertEquals((await Promise.all([make(), make()])).sort(), ["201", "409 nameTaken"]);
  assertEquals(await make(), "409 nameTaken");
});

Deno.test("POST /v1/vms removes a machine that does not boot", async () => {
  await using test = await openTestApp();
  await test.send("POST", "/v1/images", { name: "text" });
  assertEquals(
    await outcome(await test.send("POST", "/v1/vms", { name: "t1", image: "text" })),
    "409 imageIncomplete",
  );
  await test.fetch("/v1/images/text/files/kernel", { method: "PUT", body: "not a kernel" });
  const response = await test.send("POST", "/v1/vms", { name: "t1", image: "text" });
  assertEquals(await outcome(response), "422 bootFailed");
  assertEquals(await outcome(await test.fetch("/v1/vms/t1")), "404 vmNotFound");
  assertEquals([...Deno.readDirSync(`${test.dataPath}/disks`)], []);
  assertEquals(test.driver().calls, ["start", "close"]);
});

Deno.test("a machine made with start: false fails visibly when it can't boot", async () => {
  await using test = await openTestApp();
  await test.send("POST", "/v1/images", { name: "text" });
  await test.fetch("/v1/images/text/files/kernel", { method: "PUT", body: "not a kernel" });
  const body = { name: "t1", image: "text", start: false };
  assertEquals((await (await test.send("POST", "/v1/vms", body)).json()).state, "stopped");
  assertEquals(await outcome(await test.send("POST", "/v1/vms/t1/start")), "422 bootFailed");
  const vm = await (await test.fetch("/v1/vms/t1")).json();
  assertEquals([vm.state, vm.failure], ["failed", "the kernel is not one"]);
});

Deno.test("life cycle requests do what they say, and say what they can't", async () => {
  await using test = await openTestApp();
  await test.send("POST", "/v1/vms", { name: "t1", image: "demo" });
  const ask = async (request: string) => {
    const response = await test.send("POST", `/v1/vms/t1/${request}`);
    return response.ok ? (await response.json()).state : await outcome(response);
  };
  assertEquals(await ask("start"), "running");
  assertEquals(await ask("pause"), "paused");
  assertEquals(await ask("pause"), "paused");
  assertEquals(await ask("start"), "409 wrongState");
  assertEquals(await ask("resume"), "running");
  assertEquals(await ask("reset"), "running");
  assertEquals(await ask("stop"), "stopped");
  assertEquals(await ask("pause"), "409 wrongState");
  assertEquals(await ask("resume"), "409 wrongState");
  assertEquals(await ask("reset"), "409 wrongState");
  assertEquals(await ask("stop"), "stopped");
  assertEquals(test.driver().calls, ["start", "pause", "resume", "reset", "close"]);
  assertEquals(await ask("start"), "running");
  assertEquals(test.drivers.length, 2);
  assertEquals(await ask("explode"), "404 notFound");
});

Deno.test("a guest that ends by itself leaves a stopped, rebooted or failed machine", async () => {
  await using test = await openTestApp();
  await test.send("POST", "/v1/vms", { name: "t1", image: "demo" });
  // A request in the machine's queue comes after the event before it.
  const settle = () => test.send("POST", "/v1/vms/t1/pause").then((response) => response.text());
  const show = async () => await (await test.fetch("/v1/vms/t1")).json();
  test.driver().events.onExit("reboot", 0);
  await settle();
  assertEquals((await show()).exit, { reason: "reboot", code: 0 });
  assertEquals(test.driver().calls, ["start", "reset", "pause"]);
  await test.send("POST", "/v1/vms/t1/resume");
  test.driver().events.onExit("shutdown", 3);
  await settle();
  assertEquals([(await show()).state, (await show()).exit.code], ["stopped", 3]);
  await test.send("POST", "/v1/vms/t1/start");
  test.driver().events.onFailed("a worker died");
  await settle();
  assertEquals([(await show()).state, (await show()).failure], ["failed", "a worker died"]);
  assertEquals((await test.send("POST", "/v1/vms/t1/start")).status, 200);
  test.drivers.at(-2)?.events.onExit("shutdown", 0);
  assertEquals((await show()).state, "running", "an ended session has nothing to say");
});

Deno.test("DELETE /v1/vms/{vm} removes machine, disks and socket", async () => {
  await using test = await openTestApp();
  await test.send("POST", "/v1/vms", { name: "t1", image: "demo" });
  const both = await Promise.all([
    test.send("DELETE", "/v1/vms/t1").then(outcome),
    test.send("DELETE", "/v1/vms/t1").then(outcome),
  ]);
  assertEquals(both.sort(), ["204", "404 vmNotFound"]);
  assertEquals(test.driver().calls, ["start", "close"]);
  for (const folder of ["disks", "scratch", "sockets"]) {
    assertEquals([...Deno.readDirSync(`${test.dataPath}/${folder}`)], []);
  }
  assertEquals(await outcome(await test.fetch("/v1/vms/t1")), "404 vmNotFound");
  assertEquals((await test.send("POST", "/v1/vms", { name: "t1", image: "demo" })).status, 201);
});

Deno.test("GET /v1/vms comes in pages", async () => {
  await using test = await openTestApp();
  for (const name of ["c", "a", "b"]) {
    await test.send("POST", "/v1/vms", { name, image: "demo", disks: [], start: false });
  }
  const names: string[] = [];
  let cursor: string | null = "";
  while (cursor !== null) {
    const query: string = cursor === "" ? "?limit=2" : `?limit=2&cursor=${cursor}`;
    const page = await (await test.fetch(`/v1/vms${query}`)).json();
    names.push(...page.items.map(({ name }: { name: string }) => name));
    cursor = page.nextCursor;
  }
  assertEquals(names, ["a", "b", "c"]);
  for (const query of ["?limit=0", "?limit=1001", "?limit=x", "?cursor=%2F", "?bogus=1"]) {
    assertEquals(await outcome(await test.fetch(`/v1/vms${query}`)), "400 invalidRequest");
  }
});

Deno.test("Idempotency-Key gives a repeated POST the first answer", async () => {
  await using test = await openTestApp();
  const post = (key: string, name: string) =>
    test.fetch("/v1/vms", {
      method: "POST",
      headers: { "idempotency-key": key },
      body: JSON.stringify({ name, image: "demo" }),
    });
  const [first, second] = await Promise.all([post("k1", "t1"), post("k1", "t1")]);
  assertEquals([first.status, second.status], [201, 201]);
  assertEquals(await first.text(), await second.text());
  assertEquals(await outcome(await post("k1", "t2")), "422 idempotencyKeyReused");
  assertEquals(await outcome(await post("k2", "t1")), "409 nameTaken");
  assertEquals(await outcome(await post("k".repeat(256), "t3")), "400 invalidRequest");
});

Deno.test("a wait for a machine's state ends when it is there, or says how it stands", async () => {
  await using test = await openTestApp();
  await test.send("POST", "/v1/vms", { name: "t1", image: "demo" });
  const wait = (query: string) => test.fetch(`/v1/vms/t1/wait?${query}`).then(outcome);
  assertEquals(await wait(""), "200");
  assertEquals(await wait("state=paused,stopped&timeout=0"), "408 waitTimedOut");
  const waiting = wait("state=paused,stopped&timeout=60");
  await test.send("POST", "/v1/vms/t1/pause");
  assertEquals(await waiting, "200");
  assertEquals(await wait("state=Paused"), "400 invalidRequest");
});

Deno.test("POST /v1/vms/{vm}/profile gives what was seen, of open machines", async () => {
  await using test = await openTestApp();
  const profile = (body: unknown) => test.send("POST", "/v1/vms/t1/profile", body);
  assertEquals(await outcome(await profile({})), "404 vmNotFound");
  await test.send("POST", "/v1/vms", { name: "t1", image: "demo", disks: [] });
  assertEquals(await (await profile({ seconds: 2.5 })).json(), {
    seconds: 2.5,
    samples: 5,
    lost: 0,
    stacks: [{ mode: "supervisor", frames: ["0x80200000"], samples: 5 }],
  });
  assertEquals((await (await profile({})).json()).seconds, 10);
  assertEquals(await outcome(await profile({ seconds: 99 })), "409 deviceBusy");
  for (const seconds of [0, -1, 601, 1e300, "1", null, [1]]) {
    assertEquals(await outcome(await profile({ seconds })), "400 invalidRequest", `${seconds}`);
  }
  await test.send("POST", "/v1/vms/t1/stop");
  assertEquals(await outcome(await profile({})), "409 wrongState");
});
