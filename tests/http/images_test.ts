import { assertEquals, assertMatch } from "@std/assert";
import { limits } from "../../src/limits.ts";
import { openTestApp, outcome } from "./support.ts";

Deno.test("an image is made, filled, shown and deleted", async () => {
  await using test = await openTestApp();
  const made = await test.send("POST", "/v1/images", { name: "held", cmdline: "console=ttyS0" });
  assertEquals(made.status, 201);
  assertEquals((await made.json()).files, {});
  assertEquals(
    await outcome(await test.send("POST", "/v1/images", { name: "held" })),
    "409 nameTaken",
  );
  const put = await test.fetch("/v1/images/held/files/kernel", { method: "PUT", body: "abc" });
  assertEquals(put.status, 204);
  const image = await (await test.fetch("/v1/images/held")).json();
  assertEquals(image.cmdline, "console=ttyS0");
  assertEquals(image.files.kernel, {
    sizeBytes: 3,
    sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
  });
  assertEquals(await Deno.readTextFile(`${test.dataPath}/images/held/kernel`), "abc");
  await test.fetch("/v1/images/held/files/kernel", { method: "PUT", body: "abcd" });
  assertEquals(await Deno.readTextFile(`${test.dataPath}/images/held/kernel`), "abcd");
  const names = (await (await test.fetch("/v1/images")).json()).items
    .map(({ name }: { name: string }) => name);
  assertEquals(names, ["demo", "held"]);
  assertEquals((await test.send("DELETE", "/v1/images/held")).status, 204);
  assertEquals(await outcome(await test.fetch("/v1/images/held")), "404 imageNotFound");
  assertEquals([...Deno.readDirSync(`${test.dataPath}/images`)], []);
});

Deno.test("images refuse what can't be", async () => {
  await using test = await openTestApp();
  const make = (body: unknown) => test.send("POST", "/v1/images", body).then(outcome);
  assertEquals(await make({ name: "a/b" }), "400 invalidRequest");
  assertEquals(await make({ name: "a", cmdline: "x".repeat(2049) }), "400 invalidRequest");
  assertEquals(await make({ name: "a", cmdline: "é".repeat(1025) }), "400 invalidRequest");
  assertEquals(await make({ name: "a", cmdline: "a\0b" }), "400 invalidRequest");
  assertEquals(await make({ name: "demo" }), "409 nameTaken");
  assertEquals(await make({ name: "a" }), "201");
  const put = (path: string, body: BodyInit | null, headers = {}) =>
    test.fetch(path, { method: "PUT", body, headers }).then(outcome);
  assertEquals(await put("/v1/images/none/files/kernel", "x"), "404 imageNotFound");
  assertEquals(await put("/v1/images/demo/files/kernel", "x"), "409 imageBuiltIn");
  assertEquals(await put("/v1/images/a/files/other", "x"), "400 invalidRequest");
  assertEquals(await put("/v1/images/a/files/kernel", ""), "422 outOfRange");
  assertEquals(await put("/v1/images/a/files/kernel", null), "422 outOfRange");
  const tooLong = { "content-length": String(limits.bootFileBytes + 1) };
  assertEquals(await put("/v1/images/a/files/kernel", "x", tooLong), "413 tooLarge");
  assertEquals(await outcome(await test.send("DELETE", "/v1/images/demo")), "409 imageBuiltIn");
  assertEquals([...Deno.readDirSync(`${test.dataPath}/images/a`)], []);
});

Deno.test("an image that a machine refers to stays", async () => {
  await using test = await openTestApp();
  await test.send("POST", "/v1/images", { name: "held" });
  await test.send("POST", "/v1/vms", { name: "t1", image: "held", start: false, disks: [] });
  const response = await test.send("DELETE", "/v1/images/held");
  assertMatch((await response.clone().json()).detail, /t1/);
  assertEquals(await outcome(response), "409 imageInUse");
  await test.send("DELETE", "/v1/vms/t1");
  assertEquals(await outcome(await test.send("DELETE", "/v1/images/held")), "204");
});

Deno.test("an upload that breaks off leaves nothing behind, and the old file in place", async () => {
  await using test = await openTestApp();
  await test.send("POST", "/v1/images", { name: "held" });
  await test.fetch("/v1/images/held/files/initrd", { method: "PUT", body: "old" });
  const body = new ReadableStream<Uint8Array>({
    pull(controller) {
      controller.enqueue(new Uint8Array(1000));
      if (controller.desiredSize !== null && controller.desiredSize <= 0) {
        controller.error(new Error("the client went away"));
      }
    },
  });
  assertEquals(
    await outcome(await test.fetch("/v1/images/held/files/initrd", { method: "PUT", body })),
    "400 bodyBroken",
  );
  const names = [...Deno.readDirSync(`${test.dataPath}/images/held`)].map(({ name }) => name);
  assertEquals(names, ["initrd"]);
  assertEquals(await Deno.readTextFile(`${test.dataPath}/images/held/initrd`), "old");
});

Deno.test("an image deleted under an upload stays deleted", async () => {
  await using test = await openTestApp();
  await test.send("POST", "/v1/images", { name: "held" });
  const feed = Promise.withResolvers<void>();
  const begun = Promise.withResolvers<void>();
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      begun.resolve();
      await feed.promise;
      controller.enqueue(new Uint8Array(10));
      controller.close();
    },
  }, { highWaterMark: 0 });
  const upload = test.fetch("/v1/images/held/files/kernel", { method: "PUT", body });
  await begun.promise;
  assertEquals(await outcome(await test.send("DELETE", "/v1/images/held")), "204");
  feed.resolve();
  assertEquals(await outcome(await upload), "404 imageNotFound");
  assertEquals(await outcome(await test.fetch("/v1/images/held")), "404 imageNotFound");
  assertEquals([...Deno.readDirSync(`${test.dataPath}/images`)], []);
});
