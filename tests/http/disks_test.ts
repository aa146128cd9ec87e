import { assertEquals, assertMatch } from "@std/assert";
import { limits } from "../../src/limits.ts";
import { openTestApp, outcome, type TestApp } from "./support.ts";

const MiB = 1024 * 1024;

async function names(test: TestApp): Promise<string[]> {
  const { items } = await (await test.fetch("/v1/disks")).json();
  return items.map(({ name }: { name: string }) => name);
}

async function files(test: TestApp): Promise<string[]> {
  const found: string[] = [];
  for await (const folder of Deno.readDir(`${test.dataPath}/disks`)) {
    for await (const { name } of Deno.readDir(`${test.dataPath}/disks/${folder.name}`)) {
      found.push(name);
    }
  }
  return found.sort();
}

Deno.test("a machine's disk is the resource that it uses, and goes with it", async () => {
  await using test = await openTestApp();
  const body = { name: "t1", image: "demo", disks: [{ name: "d0", sizeBytes: MiB }] };
  await test.send("POST", "/v1/vms", body);
  const disk = await (await test.fetch("/v1/disks/t1:d0")).json();
  assertEquals([disk.name, disk.vm, disk.owner, disk.format], ["t1:d0", "t1", "t1", "raw"]);
  assertEquals(disk.chain.length, 1);
  assertEquals(test.storages.length, 0);
  assertEquals(await outcome(await test.send("DELETE", "/v1/disks/t1:d0")), "409 deviceBusy");
  await test.send("POST", "/v1/vms/t1/stop");
  // Without its machine it is served by a worker of its own, which ends when the machine starts.
  assertEquals((await (await test.fetch("/v1/disks/t1:d0")).json()).vm, null);
  assertEquals(test.storages.length, 1);
  assertEquals(await outcome(await test.send("DELETE", "/v1/disks/t1:d0")), "409 deviceBusy");
  await test.send("POST", "/v1/vms/t1/start");
  assertEquals(test.storages[0]?.calls, ["diskInfo", "close"]);
  await test.send("DELETE", "/v1/vms/t1");
  assertEquals([await names(test), await files(test)], [[], []]);
});

Deno.test("POST /v1/disks makes disks that stay when their machine goes", async () => {
  await using test = await openTestApp();
  const made = await test.send("POST", "/v1/disks", { name: "data", sizeBytes: MiB });
  assertEquals([made.status, made.headers.get("location")], [201, "/v1/disks/data"]);
  assertEquals((await made.json()).format, "raw");
  const use = (name: string) =>
    test.send("POST", "/v1/vms", { name, image: "demo", disks: [{ name: "d", disk: "data" }] })
      .then(outcome);
  assertEquals(await use("t1"), "201");
  assertEquals(test.driver().config.disks[0]?.name, "d");
  assertEquals(await use("t2"), "409 deviceBusy");
  assertEquals((await (await test.fetch("/v1/vms")).json()).items.length, 1);
  await test.send("DELETE", "/v1/vms/t1");
  assertEquals(await names(test), ["data"]);
  assertEquals(await use("t2"), "201");
  await test.send("DELETE", "/v1/vms/t2");
  assertEquals(await outcome(await test.send("DELETE", "/v1/disks/data")), "204");
  assertEquals([await names(test), await files(test)], [[], []]);
});

Deno.test("POST /v1/disks refuses what can't be, and leaves nothing", async () => {
  await using test = await openTestApp();
  const post = (body: unknown) => test.send("POST", "/v1/disks", body).then(outcome);
  for (const name of ["a:b", "../x", "A", ""]) {
    assertEquals(await post({ name, sizeBytes: MiB }), "400 invalidRequest", name);
  }
  assertEquals(await post({ name: "a" }), "400 invalidRequest");
  assertEquals(await post({ name: "a", sizeBytes: 7 }), "400 invalidRequest");
  assertEquals(await post({ name: "a", sizeBytes: MiB, format: "vmdk" }), "400 invalidRequest");
  assertEquals(
    await post({ name: "a", sizeBytes: MiB, clusterSizeBytes: 1000 }),
    "400 invalidRequest",
  );
  assertEquals(
    await post({ name: "a", sizeBytes: MiB, clusterSizeBytes: 65536 }),
    "400 invalidRequest",
    "raw has no clusters",
  );
  assertEquals(await post({ name: "a", backing: "b", path: "/c" }), "400 invalidRequest");
  assertEquals(await post({ name: "a", backing: "none" }), "422 badReference");
  assertEquals(await post({ name: "a", copyOf: "none" }), "404 diskNotFound");
  assertEquals(
    await post({ name: "a", path: `${test.dataPath}/token`, format: "raw" }),
    "422 badReference",
  );
  assertEquals(await post({ name: "a", sizeBytes: 2 ** 45 }), "400 invalidRequest");
  assertEquals([await names(test), await files(test)], [[], []]);
  assertEquals(await post({ name: "a", sizeBytes: MiB }), "201");
  assertEquals(await post({ name: "a", sizeBytes: MiB }), "409 nameTaken");
  assertEquals(await outcome(await test.fetch("/v1/disks/none")), "404 diskNotFound");
});

Deno.test("a disk that others stand on is read only, and stays", async () => {
  await using test = await openTestApp();
  await test.send("POST", "/v1/disks", { name: "base", sizeBytes: MiB, format: "qcow2" });
  const upon = await (await test.send("POST", "/v1/disks", { name: "top", backing: "base" }))
    .json();
  assertEquals([upon.format, upon.backing, upon.sizeBytes], ["qcow2", "base", MiB]);
  assertEquals(await outcome(await test.send("DELETE", "/v1/disks/base")), "409 deviceBusy");
  assertEquals(
    await outcome(await test.send("PATCH", "/v1/disks/base", { sizeBytes: 2 * MiB })),
    "409 deviceBusy",
  );
  const vm = (name: string, disk: object) =>
    test.send("POST", "/v1/vms", { name, image: "demo", disks: [{ name: "d", ...disk }] })
      .then(outcome);
  assertEquals(await vm("t1", { disk: "base" }), "409 deviceBusy");
  assertEquals(await vm("t1", { disk: "base", readOnly: true }), "201");
  assertEquals(await vm("t2", { disk: "top" }), "201");
  assertEquals(await outcome(await test.send("PUT", "/v1/disks/base/content")), "409 deviceBusy");
  const { readableFolders, writableFolders } = test.driver().config;
  assertEquals([readableFolders.length, writableFolders.length], [1, 1]);
});

Deno.test("an image in a folder that the operator allowed becomes a disk, others do not", async () => {
  const folder = await Deno.realPath(await Deno.makeTempDir());
  try {
    await Deno.writeFile(`${folder}/image`, new Uint8Array(4096));
    await using test = await openTestApp({ allowedFolders: [folder] });
    const post = (path: string) =>
      test.send("POST", "/v1/disks", { name: "given", path, format: "raw" }).then(outcome);
    assertEquals(await post("/etc/hostname"), "422 badReference");
    assertEquals(await post(`${folder}/../../etc/hostname`), "422 badReference");
    assertEquals(await post(`${folder}/image`), "201");
    assertEquals((await (await test.fetch("/v1/disks/given")).json()).sizeBytes, 4096);
    await test.send("DELETE", "/v1/disks/given");
    // The file is the operator's.
    assertEquals((await Deno.stat(`${folder}/image`)).size, 4096);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("PATCH resizes, also under a running machine; shrinking has to be asked for", async () => {
  await using test = await openTestApp();
  const body = { name: "t1", image: "demo", disks: [{ name: "d0", sizeBytes: MiB }] };
  await test.send("POST", "/v1/vms", body);
  const resize = (body: unknown) => test.send("PATCH", "/v1/disks/t1:d0", body);
  assertEquals((await (await resize({ sizeBytes: 2 * MiB })).json()).sizeBytes, 2 * MiB);
  assertEquals((await (await test.fetch("/v1/vms/t1")).json()).disks[0].sizeBytes, 2 * MiB);
  assertEquals(await outcome(await resize({ sizeBytes: MiB })), "422 outOfRange");
  assertEquals(await outcome(await resize({ sizeBytes: MiB, allowShrink: true })), "200");
  assertEquals(await outcome(await resize({ sizeBytes: 5 })), "400 invalidRequest");
});

Deno.test("content of a disk is read in ranges, and written where no machine has it", async () => {
  await using test = await openTestApp();
  await test.send("POST", "/v1/disks", { name: "d", sizeBytes: 4096 });
  const whole = await test.fetch("/v1/disks/d/content");
  assertEquals([whole.status, whole.headers.get("content-length")], [200, "4096"]);
  assertEquals((await whole.bytes())[300], 300 & 255);
  const part = await test.fetch("/v1/disks/d/content", { headers: { range: "bytes=10-19" } });
  assertEquals(part.headers.get("content-range"), "bytes 10-19/4096");
  assertEquals((await part.bytes()).length, 10);
  const beyond = await test.fetch("/v1/disks/d/content", { headers: { range: "bytes=4096-" } });
  assertEquals(await outcome(beyond), "416 rangeNotSatisfiable");
  const put = (path: string, length: number) =>
    test.fetch(path, { method: "PUT", body: new Uint8Array(length) }).then(outcome);
  assertEquals(await put("/v1/disks/d/content", 4096), "204");
  assertEquals(await put("/v1/disks/d/content?offset=4000", 97), "413 tooLarge");
  assertEquals(await put("/v1/disks/d/content?offset=9999", 1), "413 tooLarge");
  assertMatch(test.storages.at(-1)?.calls.join() ?? "", /diskWrite,diskFlush/);
  await test.send("POST", "/v1/vms", {
    name: "t1",
    image: "demo",
    disks: [{ name: "x", disk: "d" }],
  });
  assertEquals(await put("/v1/disks/d/content", 1), "409 deviceBusy");
});

Deno.test("extents of a disk: what is allocated, what a bitmap marks", async () => {
  await using test = await openTestApp();
  await test.send("POST", "/v1/disks", { name: "d", sizeBytes: MiB });
  const map = async (query: string) =>
    await (await test.fetch(`/v1/disks/d/extents?${query}`)).json();
  assertEquals(await map("context=zero"), {
    extents: [{ offset: 0, length: MiB, hole: true, zero: true }],
    nextOffset: null,
  });
  assertEquals(await map("context=dirty&bitmap=b&offset=512&length=512"), {
    extents: [{ offset: 512, length: 512, dirty: true, zero: true }],
    nextOffset: null,
  });
  const refused = async (query: string) =>
    await outcome(await test.fetch(`/v1/disks/d/extents?${query}`));
  assertEquals(await refused(`offset=${MiB}`), "422 outOfRange");
  assertEquals(await refused("context=access"), "501 notSupported");
  assertEquals(await refused("context=bogus"), "400 invalidRequest");
});

Deno.test("bitmaps are added, steered, merged and removed", async () => {
  await using test = await openTestApp();
  const body = { name: "t1", image: "demo", disks: [{ name: "d0", sizeBytes: MiB }] };
  await test.send("POST", "/v1/vms", body);
  const path = "/v1/disks/t1:d0/bitmaps";
  const added = await test.send("POST", `${path}/b0`, { granularityBytes: 4096, disabled: true });
  assertEquals(added.status, 201);
  const bitmap = await added.json();
  assertEquals([bitmap.name, bitmap.granularityBytes, bitmap.recording], ["b0", 4096, false]);
  assertEquals((await (await test.send("POST", `${path}/b0/enable`)).json()).recording, true);
  assertEquals((await (await test.send("POST", `${path}/b0/disable`)).json()).recording, false);
  assertEquals(await outcome(await test.send("POST", `${path}/b0/clear`)), "200");
  assertEquals(await outcome(await test.send("POST", `${path}/b1`, {})), "201");
  assertEquals(await outcome(await test.send("POST", `${path}/b1`, {})), "409 nameTaken");
  const merge = (bitmaps: unknown) =>
    test.send("POST", `${path}/b0/merge`, { bitmaps }).then(outcome);
  assertEquals(await merge([{ name: "b1" }]), "200");
  assertEquals(await merge([]), "400 invalidRequest");
  assertEquals(await merge([{ disk: "t2:d0", name: "b1" }]), "422 badReference");
  assertEquals((await (await test.fetch("/v1/disks/t1:d0")).json()).bitmaps.length, 2);
  const { items, nextCursor } = await (await test.fetch(`${path}?limit=1`)).json();
  assertEquals(items.map(({ name }: { name: string }) => name), ["b0"]);
  const rest = await (await test.fetch(`${path}?cursor=${nextCursor}`)).json();
  assertEquals([rest.items.length, rest.nextCursor], [1, null]);
  assertEquals(await outcome(await test.fetch("/v1/disks/none/bitmaps")), "404 diskNotFound");
  assertEquals(await outcome(await test.send("DELETE", `${path}/b0`)), "204");
  assertEquals(await outcome(await test.send("DELETE", `${path}/b0`)), "404 bitmapNotFound");
  assertEquals(await outcome(await test.fetch(`${path}/b0`)), "404 bitmapNotFound");
  assertEquals(await outcome(await test.send("POST", `${path}/b0/clear`)), "404 bitmapNotFound");
  assertEquals(
    await outcome(await test.send("POST", `${path}/b2`, { granularityBytes: 1000 })),
    "400 invalidRequest",
  );
});

Deno.test("Idempotency-Key makes a disk once", async () => {
  await using test = await openTestApp();
  const post = () =>
    test.fetch("/v1/disks", {
      method: "POST",
      headers: { "idempotency-key": "k1" },
      body: JSON.stringify({ name: "d", sizeBytes: MiB }),
    }).then(outcome);
  assertEquals([await post(), await post()], ["201", "201"]);
});

Deno.test("a machine whose disk others stand on can't be deleted", async () => {
  await using test = await openTestApp();
  const disks = [{ name: "d0", sizeBytes: MiB, format: "qcow2" }];
  await test.send("POST", "/v1/vms", { name: "t1", image: "demo", disks, start: false });
  await test.send("POST", "/v1/disks", { name: "top", backing: "t1:d0" });
  assertEquals(await outcome(await test.send("DELETE", "/v1/vms/t1")), "409 deviceBusy");
  assertEquals((await (await test.fetch("/v1/vms/t1")).json()).state, "stopped");
  await test.send("DELETE", "/v1/disks/top");
  assertEquals(await outcome(await test.send("DELETE", "/v1/vms/t1")), "204");
});

Deno.test("a machine's own disk may stand on another disk", async () => {
  await using test = await openTestApp();
  await test.send("POST", "/v1/disks", { name: "base", sizeBytes: MiB, format: "qcow2" });
  const disks = [{ name: "d0", backing: "base" }];
  const made = await (await test.send("POST", "/v1/vms", { name: "t1", image: "demo", disks }))
    .json();
  assertEquals(made.disks[0], {
    name: "d0",
    disk: "t1:d0",
    format: "qcow2",
    sizeBytes: MiB,
    readOnly: false,
  });
});

Deno.test("a disk's own worker ends when nobody used it for a while, unless it has a job", async () => {
  const idle: (() => void)[] = [];
  const original = globalThis.setTimeout;
  // The only timer that is not real here.
  const fake = (action: () => void, ms?: number) => {
    if (ms !== limits.diskIdleMs) return original(action, ms);
    idle.push(action);
    return 0;
  };
  globalThis.setTimeout = fake as typeof setTimeout;
  try {
    await using test = await openTestApp();
    await test.send("POST", "/v1/disks", { name: "d", sizeBytes: MiB });
    const show = () => test.fetch("/v1/disks/d").then(outcome);
    const job = { type: "backup", disk: "d", id: "b1", target: { name: "copy" } };
    assertEquals(await outcome(await test.send("POST", "/v1/jobs", job)), "202");
    idle.splice(0).at(-1)?.();
    assertEquals(test.storages[0]?.calls, ["jobStart"]);
    test.storages[0]?.setJob("b1", { status: "concluded" });
    idle.splice(0).at(-1)?.();
    await Promise.resolve();
    assertEquals(await show(), "200");
    assertEquals(test.storages.map(({ calls }) => calls), [["jobStart", "close"], ["diskInfo"]]);
  } finally {
    globalThis.setTimeout = original;
  }
});
